"""Find a connector's image on the engine, pull it, and explain failed pulls."""

import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import docker
import docker.errors
import urllib3.exceptions

from atlas_dagster.cancellation import raise_if_stopped
from atlas_dagster.errors import AtlasError, ConfigError, RunnerUnavailableError
from atlas_dagster.listener import Listener
from atlas_dagster.runners.docker.engine import API_ERRORS, describe_error
from atlas_dagster.runners.limits import PullPolicy

_PROGRESS_SECONDS = 5.0
_MEGABYTE = 1_000_000

#: Errors of docker-py when its stream breaks off. It does not read the stream with requests.
_BROKEN_STREAM = (urllib3.exceptions.HTTPError, docker.errors.StreamParseError, OSError)


class _Cause(NamedTuple):
    """A reason for a failed pull; ``words`` is a pattern of messages from engines or registries."""

    words: str
    why: str
    fix: str  # {image} is replaced by its reference
    is_transient: bool  # whether a retry may help


#: The first matching cause is used.
_CAUSES = (
    _Cause(
        r"toomanyrequests|too many requests|rate limit",
        "its registry's rate limit is reached",
        "wait, or run `docker login` for a higher one",
        True,
    ),
    _Cause(
        r"no space left on device|disk quota exceeded",
        "the disk of the Docker engine is full",
        "free some space, for example with `docker system prune`",
        True,
    ),
    _Cause(
        r"no matching manifest|no match for platform|does not match the specified platform",
        "it is not built for the architecture of the Docker engine",
        "choose another version, or let the engine emulate another architecture: "
        "`docker pull --platform linux/amd64 {image}`",
        False,
    ),
    _Cause(
        r"credentials store error",
        "the credential helper in Docker's config.json does not work",
        "repair it, or run `docker login` again",
        False,
    ),
    _Cause(
        r"denied|unauthorized|forbidden|no basic auth|authentication required|may require",
        "there is no such repository, or it needs other credentials",
        "check the name, or run `docker login` for its registry as the user Atlas runs as",
        False,
    ),
    _Cause(
        r"manifest unknown|name unknown|manifest for .* not found|: not found",
        "its registry has no such image and tag",
        "check the image's name and tag",
        False,
    ),
    _Cause(
        r"invalid reference format|invalid tag format",
        "that is not a valid image reference",
        "write it as name:tag, in lower case",
        False,
    ),
    _Cause(
        r"no such host|connection refused|timeout|deadline exceeded|unreachable|\bEOF\b|reset"
        r"|server misbehaving|name resolution|unexpected HTTP status: 5",
        "its registry cannot be reached",
        "check the network, or load the image onto the engine",
        True,
    ),
)


def ensure_image(
    client: docker.DockerClient, reference: str, policy: PullPolicy, listener: Listener
) -> Mapping[str, Any]:
    """Return the engine's description of the image, after a pull if ``policy`` requires one.

    ``listener`` gets the progress of a pull. Without a pull, this needs no network. If the policy
    is ``always`` but the registry cannot be reached, the image on the engine is used.

    Raises:
        ConfigError: the image is not available; a retry cannot help.
        RunnerUnavailableError: the image is not available now.
    """
    found = _find_image(client, reference)
    if found is not None and policy != "always":
        return found
    if policy == "never":
        raise ConfigError(
            f"The image {reference} is not on the Docker engine and executor.pull is never; "
            f"run `docker pull {reference}`, or set executor.pull to missing."
        )
    try:
        return pull_image(client, reference, listener)
    except RunnerUnavailableError as error:
        if found is None:
            raise
        listener.info(f"{error.reason}; using the image that is on the Docker engine.")
        return found


def pull_image(
    client: docker.DockerClient, reference: str, listener: Listener
) -> Mapping[str, Any]:
    """Pull the image, even if the engine has one, and return the engine's description of it.

    Raises:
        ConfigError: the pull failed; a retry cannot help.
        RunnerUnavailableError: the pull failed; a retry may help.
    """
    _pull(client, reference, listener)
    found = _find_image(client, reference)
    if found is None:
        raise RunnerUnavailableError(
            f"The image {reference} was removed right after the pull", "find out what removed it"
        )
    return found


def _find_image(client: docker.DockerClient, reference: str) -> Mapping[str, Any] | None:
    try:
        attributes: Mapping[str, Any] = client.images.get(reference).attrs
    except API_ERRORS as error:
        # 400: the reference is not valid. The error of the pull explains this better.
        if isinstance(error, docker.errors.APIError) and error.status_code in (400, 404):
            return None
        raise RunnerUnavailableError(
            f"The Docker engine failed while looking for {reference} ({describe_error(error)})."
        ) from error
    return attributes


def _pull(client: docker.DockerClient, reference: str, listener: Listener) -> None:
    progress = _Progress(reference, listener)
    try:
        for line in client.api.pull(reference, stream=True, decode=True):
            if "error" in line:
                raise _explain_refusal(reference, " ".join(str(line["error"]).split()))
            raise_if_stopped()
            progress.update(line)
    except docker.errors.DockerException as error:
        raise _explain_refusal(reference, describe_error(error)) from error
    except _BROKEN_STREAM as error:
        raise RunnerUnavailableError(
            f"The connection to the Docker engine broke while it pulled {reference} "
            f"({describe_error(error)})",
            "check that the engine is running",
        ) from error


def _explain_refusal(reference: str, message: str) -> AtlasError:
    """Return the error for the engine's message about a failed pull."""
    sentence = f"The image {reference} cannot be pulled"
    for cause in _CAUSES:
        if re.search(cause.words, message, re.IGNORECASE):
            fix = cause.fix.format(image=reference)
            if cause.is_transient:
                return RunnerUnavailableError(f"{sentence}: {cause.why}", fix)
            return ConfigError(f"{sentence}: {cause.why}; {fix}.")
    return RunnerUnavailableError(
        f"{sentence} ({message})", "check its name, its tag and the network, or load it"
    )


class _Progress:
    """Reports the progress of a pull from time to time."""

    def __init__(self, reference: str, listener: Listener) -> None:
        self._reference = reference
        self._listener = listener
        self._bytes: dict[str, tuple[int, int]] = {}
        self._reported = time.monotonic()
        listener.info(f"Pulling {reference}.")

    def update(self, line: Mapping[str, Any]) -> None:
        layer, detail = line.get("id", ""), line.get("progressDetail") or {}
        if line.get("status") == "Downloading" and detail.get("total"):
            self._bytes[layer] = (detail.get("current", 0), detail["total"])
        elif line.get("status") == "Download complete" and layer in self._bytes:
            self._bytes[layer] = (self._bytes[layer][1],) * 2
        if not self._bytes:
            return
        pulled, total = map(sum, zip(*self._bytes.values(), strict=True))
        self._listener.progress("pull", pulled, total)
        now = time.monotonic()
        if now - self._reported >= _PROGRESS_SECONDS:
            self._reported = now
            megabytes = f"{pulled // _MEGABYTE} of {total // _MEGABYTE} MB"
            self._listener.info(f"Pulling {self._reference}: {megabytes}.")
