"""Pulling images, from real and from grumpy registries."""

import base64
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from atlas_dagster.airbyte import get_docker_executor
from atlas_dagster.errors import AtlasError, ConfigError, RunnerUnavailableError
from atlas_dagster.listener import SILENT
from atlas_dagster.runners.docker import images
from atlas_dagster.runners.docker.engine import connect
from atlas_dagster.runners.docker.images import ensure_image
from atlas_dagster.runners.docker.runner import DockerRunner
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN
from atlas_dagster_tests.listening import CallbackListener
from atlas_dagster_tests.runners.docker.engines import behind_port
from atlas_dagster_tests.runners.docker.registries import (
    PASSWORD,
    USER,
    Registry,
    answering,
    error,
    foreign,
    two_layers,
)

pytestmark = pytest.mark.docker


def refusal(kind: type[AtlasError], client: docker.DockerClient, image: str) -> str:
    with pytest.raises(kind) as failure:
        ensure_image(client, image, "missing", SILENT)
    said = str(failure.value)
    assert said.startswith(f"The image {image} cannot be pulled")
    assert said.endswith(".")
    assert "\n" not in said
    return said


# --- A private registry


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path)
    yield registry
    registry.stop()


@pytest.fixture
def log_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Registry) -> Any:
    """As ``docker login`` does; gives a client that knows it."""

    def log_in(password: str | None) -> docker.DockerClient:
        auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
        auths = {registry.name: {"auth": auth}} if password else {}
        (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        return connect()

    return log_in


def test_a_private_registry(
    registry: Registry,
    log_in: Any,
    docker_client: docker.DockerClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = registry.push(docker_client, "team/source-private", "1")
    for wrong in (None, "wrong"):
        said = refusal(ConfigError, log_in(wrong), image)
        assert "there is no such repository, or it needs other credentials" in said
        assert "run `docker login`" in said
    client = log_in(PASSWORD)
    for absent in (image.replace(":1", ":9"), image.replace("private", "absent")):
        said = refusal(ConfigError, client, absent)
        assert "its registry has no such image and tag; check the image's name and tag." in said
    monkeypatch.setattr(images, "_PROGRESS_SECONDS", 0.0)
    told: list[str] = []
    drawn: list[tuple[int, float | None]] = []
    listener = CallbackListener(
        told.append, progress=lambda _, done, total: drawn.append((done, total))
    )
    try:
        runner = DockerRunner(image, client=client, listener=listener)
        runner.ensure_image()
        assert drawn == sorted(drawn)
        assert drawn[-1][0] == drawn[-1][1] > 3_000_000
        assert told[0] == f"Pulling {image}."
        assert len(told) > 1
        assert re.fullmatch(rf"Pulling {image}: \d of 3 MB\.", told[-1])
        assert re.fullmatch(rf"{image}@sha256:[0-9a-f]{{64}}", runner.identity())
        told.clear()
        always = ExecutorConfig(pull="always")
        DockerRunner(
            image, client=client, executor=always, listener=CallbackListener(told.append)
        ).ensure_image()
        assert told == [f"Pulling {image}."]
        pulled = get_docker_executor().sync.pull(image)
        assert pulled == runner.identity()
        registry.stop()
        with pytest.raises(RunnerUnavailableError, match="registry"):
            get_docker_executor().sync.pull(image)
        told.clear()
        ensure_image(client, image, "missing", CallbackListener(told.append))
        ensure_image(client, image, "never", CallbackListener(told.append))
        assert told == []
        runner = DockerRunner(
            image, client=client, executor=always, listener=CallbackListener(told.append)
        )
        runner.ensure_image()
        runner.ensure_image()
        assert told[:-1] == [f"Pulling {image}."]
        assert f"{image} cannot be pulled: its registry cannot be reached; using" in told[-1]
    finally:
        docker_client.images.remove(image)
    assert "its registry cannot be reached" in refusal(RunnerUnavailableError, client, image)


def test_a_credential_helper_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": "none-such"}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with pytest.warns(UserWarning, match="not installed"):
        said = refusal(ConfigError, connect(), "127.0.0.1:1/x:1")
    assert "credential helper" in said


def test_never(docker_client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pull(*_: object, **__: object) -> None:
        raise AssertionError("it was pulled")

    monkeypatch.setattr(docker_client.api, "pull", no_pull)
    ensure_image(docker_client, STANDIN, "never", CallbackListener(no_pull))
    ensure_image(docker_client, STANDIN, "missing", CallbackListener(no_pull))
    with pytest.raises(ConfigError) as failure:
        ensure_image(docker_client, "atlas-test/absent:1", "never", CallbackListener(no_pull))
    assert str(failure.value) == (
        "The image atlas-test/absent:1 is not on the Docker engine and executor.pull is never; "
        "run `docker pull atlas-test/absent:1`, or set executor.pull to missing."
    )


# --- Grumpy registries


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (
            429,
            error("TOOMANYREQUESTS", "You have reached your pull rate limit."),
            RunnerUnavailableError,
            "its registry's rate limit is reached; wait, or run `docker login` for a higher one.",
        ),
        (403, error("DENIED", "requested access to the resource is denied"), ConfigError, "login"),
        (401, error("UNAUTHORIZED", "authentication required"), ConfigError, "docker login"),
        (404, error("NAME_UNKNOWN", "unknown"), ConfigError, "no such image and tag"),
        (404, error("MANIFEST_UNKNOWN", "unknown"), ConfigError, "no such image and tag"),
        (503, error("UNAVAILABLE", "down"), RunnerUnavailableError, "cannot be reached"),
        (200, foreign(), ConfigError, "not built for the architecture of the Docker engine"),
    ],
)
def test_what_registries_refuse(
    docker_client: docker.DockerClient,
    status: int,
    body: dict[str, Any],
    kind: type[AtlasError],
    said: str,
) -> None:
    with answering(status, body) as registry:
        assert said in refusal(kind, docker_client, f"{registry}/x/source:1")


def test_a_rate_limit_on_layers(docker_client: docker.DockerClient) -> None:
    slow = error("TOOMANYREQUESTS", "slow down")
    with answering(200, two_layers(), blobs=(429, slow)) as registry:
        said = refusal(RunnerUnavailableError, docker_client, f"{registry}/x/source:1")
    assert "rate limit" in said


def test_the_connection_breaks_while_pulling(monkeypatch: pytest.MonkeyPatch) -> None:
    with behind_port() as port:

        def cut() -> None:
            port.cut()
            time.sleep(0.5)  # so that the break is what is seen, not this answer

        with answering(200, two_layers(), before_blob=cut) as registry:
            monkeypatch.setenv("DOCKER_HOST", port.address)
            image = f"{registry}/x/source:1"
            with pytest.raises(RunnerUnavailableError) as failure:
                ensure_image(connect(), image, "missing", SILENT)
    assert str(failure.value).startswith(
        f"The connection to the Docker engine broke while it pulled {image} ("
    )


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        # Docker 20.10 with a data root of 12 MB.
        (
            "write /var/lib/docker/tmp/GetImageBlob3203085067: no space left on device",
            RunnerUnavailableError,
            "the disk of the Docker engine is full; free some space",
        ),
        # Docker 29, whose images are containerd's.
        (
            'failed to resolve reference "docker.io/x/y:9": docker.io/x/y:9: not found',
            ConfigError,
            "no such image and tag",
        ),
        (
            "pull access denied, repository does not exist or may require authorization: "
            "server message: insufficient_scope: authorization failed",
            ConfigError,
            "other credentials",
        ),
        ("no match for platform in manifest: not found", ConfigError, "architecture"),
        (
            'failed to do request: Head "https://x/": dial tcp: lookup x: i/o timeout',
            RunnerUnavailableError,
            "cannot be reached",
        ),
        ("the moon is full", RunnerUnavailableError, "(the moon is full); check its name"),
    ],
)
def test_words_of_other_engines(words: str, kind: type[AtlasError], said: str) -> None:
    refused = images._explain_refusal("x:1", words)
    assert isinstance(refused, kind)
    assert said in str(refused)


def test_what_is_no_name(docker_client: docker.DockerClient) -> None:
    assert "not a valid image reference" in refusal(ConfigError, docker_client, "Team/Source:1")
