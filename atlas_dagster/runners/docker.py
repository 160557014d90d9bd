"""Connectors in containers, through the Docker Engine API.

Create, copy the files in, attach, start: in this order nothing printed is missed. Nothing is bind
mounted, so the engine may be remote or Atlas itself in a container. The log driver is ``none``: the
attached stream is the only reader, and the default driver would write every record to disk a second
time, at a quarter of the speed.
"""

import contextlib
import io
import os
import secrets
import socket
import tarfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import docker
import docker.errors
import requests
from docker.types import LogConfig

from atlas_dagster.errors import ConfigError, RunnerUnavailableError
from atlas_dagster.runners.base import (
    IDLE_SECONDS,
    STOP_GRACE_SECONDS,
    ConnectorCommand,
    ConnectorProcess,
    ExitStatus,
    Output,
    Runner,
    file_name,
)
from atlas_dagster.runners.executor import ExecutorConfig
from atlas_dagster.runners.frames import FrameDecoder

#: Every container of ours carries this label: the name of its connection.
CONNECTION_LABEL = "atlas.connection"
_FOLDER = "atlas"
_READ_BYTES = 1 << 20
_API_TIMEOUT_SECONDS = 60

_API_ERRORS = (docker.errors.DockerException, requests.RequestException)


def connect() -> docker.DockerClient:
    """A client of the engine that ``DOCKER_HOST`` (or the default socket) names.

    Raises:
        RunnerUnavailableError: no engine answers there.
    """
    try:
        client = docker.from_env(timeout=_API_TIMEOUT_SECONDS)
        client.ping()
    except _API_ERRORS as error:
        address = os.environ.get("DOCKER_HOST") or "its default socket"
        raise RunnerUnavailableError(
            f"No Docker engine answers at {address}",
            "start Docker, or point DOCKER_HOST at an engine",
        ) from error
    return client


class DockerRunner(Runner):
    """Runs one image. The image must be there: see :meth:`ensure_image`."""

    kind = "docker"

    def __init__(
        self, image: str, *, client: docker.DockerClient, executor: ExecutorConfig | None = None
    ) -> None:
        self.reference = image
        self.executor = executor or ExecutorConfig()
        self._client = client

    def ensure_image(self) -> None:
        """Pull the image unless the engine has it.

        Raises:
            RunnerUnavailableError: it cannot be pulled.
        """
        try:
            self._client.images.get(self.reference)
        except docker.errors.ImageNotFound:
            try:
                self._client.images.pull(self.reference)
            except _API_ERRORS as error:
                raise RunnerUnavailableError(
                    f"The image {self.reference} is not on this engine and cannot be pulled "
                    f"({_reason(error)})",
                    "check its name, its tag and the network, or build it",
                ) from error
        except _API_ERRORS as error:
            raise RunnerUnavailableError(
                f"The Docker engine failed while looking for {self.reference} ({_reason(error)})."
            ) from error
        self.__dict__.pop("_image", None)

    @cached_property
    def _image(self) -> Mapping[str, Any]:
        attributes: Mapping[str, Any] = self._client.images.get(self.reference).attrs
        return attributes

    def identity(self) -> str:
        digests = self._image.get("RepoDigests") or [self._image["Id"]]
        return f"{self.reference}@{digests[0].rpartition('@')[2]}"

    def start(self, command: ConnectorCommand) -> ConnectorProcess:
        container: str | None = None
        api = self._client.api
        try:
            self.ensure_image()
            container = self._create(command)
            folder = _tar(command.files, *self._owner(container))
            api.put_archive(container, "/", folder)
            stream = api.attach_socket(container, {"stdout": 1, "stderr": 1, "stream": 1})
            api.start(container)
        except BaseException as error:
            if container is not None:
                _remove(api, container)
            if isinstance(error, _API_ERRORS):
                raise RunnerUnavailableError(
                    f"Docker could not start {self.reference} ({_reason(error)})."
                ) from error
            raise
        return _DockerProcess(api, container, stream)

    def _create(self, command: ConnectorCommand) -> str:
        api = self._client.api
        connection = command.labels.get(CONNECTION_LABEL, "adhoc")
        executor = self.executor
        host_config = api.create_host_config(
            init=True,
            log_config=LogConfig(type="none"),
            mem_limit=executor.memory_bytes,
            memswap_limit=executor.memory_bytes,
            nano_cpus=int(executor.cpu_limit * 1e9),
            pids_limit=executor.pids_limit,
            cap_drop=["ALL"],
            cap_add=list(executor.cap_add),
            security_opt=["no-new-privileges"],
            network_mode=executor.network,
            extra_hosts={"host.docker.internal": "host-gateway"},
        )
        created = api.create_container(
            self.reference,
            command.arguments(f"/{_FOLDER}"),
            name=f"atlas-{connection}-{command.verb}-{secrets.token_hex(4)}",
            labels={CONNECTION_LABEL: connection, **command.labels},
            environment={
                "DEPLOYMENT_MODE": "OSS",
                "USE_STREAM_CAPABLE_STATE": "true",
                "WORKER_CONNECTOR_IMAGE": self.reference,
                "JAVA_OPTS": "-XX:+ExitOnOutOfMemoryError",
                **command.environment,
            },
            host_config=host_config,
            stdin_open=False,
            tty=False,
        )
        container: str = created["Id"]
        return container

    def _owner(self, container: str) -> tuple[int, int]:
        """uid and gid of the image's user, so that it may read and rewrite its files."""
        user, _, group = (self._image["Config"].get("User") or "0").partition(":")
        if user.isdigit():
            return int(user), int(group) if group.isdigit() else int(user)
        chunks, _ = self._client.api.get_archive(container, "/etc/passwd")
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            passwd = archive.extractfile("passwd")
            lines = passwd.read().decode("utf-8", "replace").splitlines() if passwd else []
        for line in lines:
            name, _, uid, gid, *_ = line.split(":")
            if name == user:
                return int(uid), int(gid)
        raise ConfigError(
            f"The image {self.reference} runs as user '{user}', which its /etc/passwd does not "
            "have; rebuild the image with a numeric USER."
        )


class _DockerProcess(ConnectorProcess):
    def __init__(self, api: docker.APIClient, container: str, stream: Any) -> None:
        self._api = api
        self._container = container
        self._stream = stream
        # docker-py hands out a SocketIO, which cannot time out; its socket can.
        self._socket: socket.socket = getattr(stream, "_sock", stream)
        self._closed = False

    def output(self) -> Iterator[Output]:
        decoder = FrameDecoder()
        buffer = bytearray(_READ_BYTES)
        view = memoryview(buffer)
        self._socket.settimeout(IDLE_SECONDS)
        while True:
            try:
                count = self._socket.recv_into(buffer)
            except TimeoutError:
                yield "idle", b""
                continue
            except OSError as error:
                raise RunnerUnavailableError(
                    f"The connection to the Docker engine broke while reading ({error})."
                ) from error
            if count == 0:
                return
            yield from decoder.feed(view[:count])

    def wait(self) -> ExitStatus:
        try:
            code = self._api.wait(self._container, timeout=_API_TIMEOUT_SECONDS)["StatusCode"]
            state = self._api.inspect_container(self._container)["State"]
        except _API_ERRORS as error:
            raise RunnerUnavailableError(
                f"The Docker engine cannot say how the connector ended ({_reason(error)})."
            ) from error
        return ExitStatus(int(code), bool(state.get("OOMKilled")))

    def close(self) -> None:
        if self._closed:
            return
        with contextlib.suppress(OSError):
            self._stream.close()
        with contextlib.suppress(*_API_ERRORS):
            if self._api.inspect_container(self._container)["State"]["Running"]:
                self._api.stop(self._container, timeout=int(STOP_GRACE_SECONDS))
        _remove(self._api, self._container)
        self._closed = True


def _remove(api: docker.APIClient, container: str) -> None:
    # An engine that went away cannot be asked; the reaper removes the container later.
    with contextlib.suppress(*_API_ERRORS):
        api.remove_container(container, force=True, v=True)


def _tar(files: Mapping[str, bytes], uid: int, gid: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo(_FOLDER)
        folder.type, folder.mode, folder.uid, folder.gid = tarfile.DIRTYPE, 0o700, uid, gid
        archive.addfile(folder)
        for option, content in files.items():
            entry = tarfile.TarInfo(f"{_FOLDER}/{file_name(option)}")
            entry.size, entry.mode, entry.uid, entry.gid = len(content), 0o600, uid, gid
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _reason(error: BaseException) -> str:
    """The engine's own explanation, on one line."""
    text = getattr(error, "explanation", None) or str(error)
    return " ".join(str(text).split())[:300]
