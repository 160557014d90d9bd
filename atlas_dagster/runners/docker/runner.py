"""Connectors in containers, through the Docker Engine API.

Atlas creates the container, copies the files in, attaches, and starts it: in this order, no output
is missed. There are no mounts, so the engine may be remote, and Atlas may run in a container.
The log driver is ``none``, because Atlas reads only the attached stream, and the default driver
would write every record to disk a second time, at a quarter of the speed.
"""

import contextlib
import io
import secrets
import socket
import tarfile
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import docker
import docker.errors
import requests
from docker.types import LogConfig
from docker.utils import parse_repository_tag

from atlas_dagster.errors import AtlasError, ConfigError, RunnerUnavailableError
from atlas_dagster.listener import SILENT, Listener
from atlas_dagster.runners.base import (
    CONTAINER_ENV,
    IDLE_SECONDS,
    STOP_GRACE_SECONDS,
    ConnectorCommand,
    ConnectorProcess,
    EnginePlace,
    ExitStatus,
    Output,
    Runner,
    file_name,
)
from atlas_dagster.runners.docker.attach_stream import FrameDecoder
from atlas_dagster.runners.docker.engine import API_ERRORS, describe_error, locate_engine
from atlas_dagster.runners.docker.images import ensure_image, pull_image
from atlas_dagster.runners.docker.memory_queue import MEMORY_LABEL, wait_for_turn
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.runners.process_tags import CONNECTION_LABEL

#: The exit codes of a shell or an init that cannot execute a program.
_NOT_EXECUTED = (126, 127)
#: The label of Airbyte's images with their version.
_VERSION_LABEL = "io.airbyte.version"
_FOLDER = "atlas"
_READ_BYTES = 1 << 20
_LAST_CALL_SECONDS = 60
#: Seconds of silence, about, after which Atlas inspects the container.
_CHECK_AFTER = 60
#: The status codes of requests that may succeed later: not found, conflict, too many requests.
_TRANSIENT_STATUS = (404, 409, 429)
#: The longest time between the end of a container's output and the container's own end.
_ENDING = timedelta(seconds=1)
_FIRST_WORDS = 500
#: The exit code of a JVM that ends because its heap is full (``JAVA_OPTS``).
_JVM_OUT_OF_MEMORY = 3


class DockerRunner(Runner):
    """Runs one image on one engine."""

    kind = "docker"

    def __init__(
        self,
        image: str,
        *,
        client: docker.DockerClient,
        executor: ExecutorConfig | None = None,
        listener: Listener = SILENT,
    ) -> None:
        """Create the runner without starting or pulling anything.

        Args:
            image: the image reference.
            client: the client of the engine. :meth:`close` closes it.
            executor: the limits.
            listener: gets the progress of a pull, and a message if a start has to wait.
        """
        self.reference = image
        self.executor = executor or ExecutorConfig()
        self._client = client
        self._listener = listener
        self._image: Mapping[str, Any] | None = None

    def ensure_image(self) -> Mapping[str, Any]:
        """Return the engine's description of the image, pulled if ``executor.pull`` requires it.

        Raises:
            ConfigError: the image is not available; a retry cannot help.
            RunnerUnavailableError: the image is not available now.
        """
        if self._image is None:
            pull = self.executor.pull
            self._image = ensure_image(self._client, self.reference, pull, self._listener)
        return self._image

    def pull(self) -> None:
        """Pull the image, even if the engine has one.

        Raises:
            ConfigError: the pull failed; a retry cannot help.
            RunnerUnavailableError: the pull failed; a retry may help.
        """
        self._image = pull_image(self._client, self.reference, self._listener)

    def prepare(self) -> None:
        self.ensure_image()

    def close(self) -> None:
        """Close the client's connections."""
        self._client.close()

    @property
    def engine_place(self) -> EnginePlace:
        return locate_engine(self._client)

    def describe(self) -> str:
        """Return the image reference; for the tag ``latest``, with the version behind it."""
        labels = self.ensure_image()["Config"].get("Labels") or {}
        version = labels.get(_VERSION_LABEL)
        is_latest = self.reference.endswith(":latest")
        return f"{self.reference}={version}" if is_latest and version else self.reference

    def identity(self) -> str:
        image = self.ensure_image()
        repository, _ = parse_repository_tag(self.reference.partition("@")[0])
        digests = dict(d.split("@") for d in image.get("RepoDigests") or [])
        # Use the digest of this repository; the image may have other repositories, too.
        digest = digests.get(repository.removeprefix("docker.io/"))
        return f"{self.describe()}@{digest or next(iter(digests.values()), image['Id'])}"

    def start(self, command: ConnectorCommand) -> ConnectorProcess:
        container: str | None = None
        stream: Any = None
        api = self._client.api
        try:
            image = self.ensure_image()
            container = self._create(command, image["Id"])
            user = image["Config"].get("User") or "0"
            folder = _pack(command.files, *self._find_user(container, user))
            api.put_archive(container, "/", folder)
            room = self._info["MemTotal"] - self.executor.memory_bytes
            wait_for_turn(api, container, room, self._listener)
            stream = api.attach_socket(container, {"stdout": 1, "stderr": 1, "stream": 1})
            api.start(container)
        except BaseException as error:
            try:
                if stream is not None:
                    _close_stream(stream)
            finally:
                if container is not None:
                    _remove(api, container)
            if isinstance(error, API_ERRORS):
                raise self._explain_refusal(error) from error
            raise
        return _DockerProcess(self._client, container, stream, self.reference, image)

    def _create(self, command: ConnectorCommand, image_id: str) -> str:
        api = self._client.api
        connection = command.labels.get(CONNECTION_LABEL, "adhoc")
        executor = self.executor
        host_config = api.create_host_config(
            init=True,
            log_config=LogConfig(type="none"),
            mem_limit=executor.memory_bytes,
            memswap_limit=executor.memory_bytes,
            # Docker refuses more CPUs than the machine has.
            nano_cpus=int(min(executor.cpu_limit, self._info["NCPU"]) * 1e9),
            pids_limit=executor.pids_limit,
            cap_drop=["ALL"],
            cap_add=list(executor.cap_add),
            security_opt=["no-new-privileges"],
            network_mode=executor.network,
            # Docker refuses extra hosts in a network that is shared with another container.
            extra_hosts=None
            if executor.network.startswith("container:")
            else {"host.docker.internal": "host-gateway"},
        )
        created = api.create_container(
            # Not the reference, because its tag may have moved to another image.
            image_id,
            command.arguments(f"/{_FOLDER}"),
            name=f"atlas-{connection}-{command.verb}-{secrets.token_hex(4)}",
            labels={
                CONNECTION_LABEL: connection,
                MEMORY_LABEL: str(executor.memory_bytes),
                **command.labels,
            },
            environment={
                **CONTAINER_ENV,
                "WORKER_CONNECTOR_IMAGE": self.reference,
                **command.environment,
            },
            host_config=host_config,
            stdin_open=False,
            tty=False,
        )
        container: str = created["Id"]
        return container

    @cached_property
    def _info(self) -> Mapping[str, Any]:
        """The engine's description of its machine."""
        info: Mapping[str, Any] = self._client.info()
        return info

    def _explain_refusal(self, error: BaseException) -> AtlasError:
        """Return the error for the engine's message about a container that did not start."""
        message, network = describe_error(error), self.executor.network
        if f"network {network} not found" in message:
            return ConfigError(
                f"The Docker engine has no network '{network}'; create it with "
                f"`docker network create {network}`, or correct executor.network."
            )
        if "unknown capability" in message:
            return ConfigError(
                f"Docker refuses executor.cap_add ({message}); write names such as NET_ADMIN."
            )
        if "no space left on device" in message:
            return RunnerUnavailableError(
                f"Docker could not start {self.reference} because its disk is full",
                "free some space, for example with `docker system prune`",
            )
        status = error.status_code if isinstance(error, docker.errors.APIError) else None
        if status is not None and 400 <= status < 500 and status not in _TRANSIENT_STATUS:
            return ConfigError(
                f"Docker refuses to start {self.reference} ({message}); correct the "
                "connection's executor, or choose another image."
            )
        return RunnerUnavailableError(f"Docker could not start {self.reference} ({message}).")

    def _find_user(self, container: str, image_user: str) -> tuple[int, int]:
        """Return uid and gid of the image's user, who must read and rewrite the files."""
        user, _, group = image_user.partition(":")
        if user.isdigit():
            return int(user), int(group) if group.isdigit() else int(user)
        chunks, _ = self._client.api.get_archive(container, "/etc/passwd")
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            passwd = archive.extractfile("passwd")
            lines = passwd.read().decode("utf-8", "replace").splitlines() if passwd else []
        for line in lines:
            match line.split(":"):
                case [name, _, uid, gid, *_] if name == user:
                    return int(uid), int(gid)
        raise ConfigError(
            f"The image {self.reference} runs as user '{user}', which is not in its /etc/passwd; "
            "rebuild the image with a numeric USER."
        )


class _DockerProcess(ConnectorProcess):
    def __init__(
        self,
        client: docker.DockerClient,
        container: str,
        stream: Any,
        reference: str,
        image: Mapping[str, Any],
    ) -> None:
        self._client = client
        self._api = client.api
        self._container = container
        self._stream = stream
        self._reference = reference
        self._image = image
        # docker-py returns a SocketIO, which has no timeouts, or a socket if the engine uses TLS.
        self._socket: socket.socket = getattr(stream, "_sock", stream)
        #: The first bytes of stderr, while stdout is silent.
        self._first_output = b""
        self._has_output = False
        #: The end of the output by the engine's clock, which also gives the container's end.
        self._output_ended: datetime | None = None
        self._closed = False

    def output(self) -> Iterator[Output]:
        decoder = FrameDecoder()
        buffer = bytearray(_READ_BYTES)
        view = memoryview(buffer)
        self._socket.settimeout(IDLE_SECONDS)
        _keep_alive(self._socket)
        silent_seconds = 0
        while True:
            try:
                count = self._socket.recv_into(buffer)
            except TimeoutError:
                count = -1
            except OSError as error:
                raise self._connection_error(error) from error
            if count < 0:
                silent_seconds += 1
                if silent_seconds % _CHECK_AFTER == 0:
                    self._check_container()
                yield "idle", b""
                continue
            silent_seconds = 0
            if count == 0:
                if not decoder.is_between_frames:
                    raise self._connection_error(EOFError("the output broke off"))
                yield from self._wait_for_end()
                return
            for channel, piece in decoder.feed(view[:count]):
                if not self._has_output:
                    self._has_output = channel == "stdout"
                    self._first_output = (self._first_output + piece)[:_FIRST_WORDS]
                yield channel, piece

    def _wait_for_end(self) -> Iterator[Output]:
        """Wait for the container's end, because a proxy or tunnel may have closed the stream."""
        try:
            self._output_ended = datetime.fromisoformat(self._api.info()["SystemTime"])
        except API_ERRORS as error:
            raise self._connection_error(error) from error
        while True:
            try:
                self._api.wait(self._container, timeout=int(IDLE_SECONDS))
            except requests.ReadTimeout:
                yield "idle", b""
            except requests.ConnectionError as error:
                # After the headers, a timeout is a ConnectionError that wraps urllib3's error.
                if "timed out" not in str(error):
                    return
                yield "idle", b""
            except API_ERRORS:
                return  # wait() raises the error
            else:
                return

    def wait(self) -> ExitStatus:
        try:
            code = int(self._api.wait(self._container, timeout=_LAST_CALL_SECONDS)["StatusCode"])
            state = self._api.inspect_container(self._container)["State"]
        except docker.errors.NotFound as error:
            raise RunnerUnavailableError(
                f"Another program removed the container of {self._reference} while it ran",
                "find out which one, then sync again",
            ) from error
        except API_ERRORS as error:
            raise self._connection_error(error) from error
        if code != 0 and not self._has_output:
            self._check_architecture(code)
        heap_full = code == _JVM_OUT_OF_MEMORY and self._is_java()
        finished = datetime.fromisoformat(state["FinishedAt"])
        return ExitStatus(
            code,
            oom_killed=bool(state["OOMKilled"]) or heap_full,
            cut_off=self._output_ended is not None and finished > self._output_ended + _ENDING,
        )

    def close(self) -> None:
        if self._closed:
            return
        try:
            _close_stream(self._stream)
            with contextlib.suppress(*API_ERRORS):
                if self._api.inspect_container(self._container)["State"]["Running"]:
                    self._api.stop(self._container, timeout=int(STOP_GRACE_SECONDS))
        finally:  # also after an interrupt, which skips the grace
            _remove(self._api, self._container)
            self._closed = True

    def _check_container(self) -> None:
        """Inspect the container, because a lost connection may stay open without an error."""
        try:
            self._api.inspect_container(self._container)
        except docker.errors.NotFound:
            pass  # the output ends, and wait() raises the error
        except API_ERRORS as error:
            raise self._connection_error(error) from error

    def _connection_error(self, error: Exception) -> RunnerUnavailableError:
        return RunnerUnavailableError(
            f"The connection to the Docker engine broke while {self._reference} ran "
            f"({describe_error(error)})",
            "check that the engine is running, then sync again",
        )

    def _check_architecture(self, code: int) -> None:
        """Raise ConfigError if the image is built for another architecture than the engine's.

        In this case, Docker's init prints an error of the C library to stderr, which is only "no
        such file" for an image without a shell. A shell prints its own error or none, but its exit
        code shows that the program could not be executed.
        """
        first_output = self._first_output.lower()
        if b"exec " not in first_output and code not in _NOT_EXECUTED:
            return
        try:
            engine = self._client.version().get("Arch")
        except API_ERRORS as error:
            raise self._connection_error(error) from error
        image = self._image.get("Architecture")
        if b"exec format error" in first_output or image != engine:
            raise ConfigError(
                f"The image {self._reference} (built for {image}) does not run on this Docker "
                f"engine ({engine}); choose an image for {engine}, or let the engine's machine "
                f"emulate {image} (QEMU and binfmt)."
            )

    def _is_java(self) -> bool:
        names = [entry.partition("=")[0] for entry in self._image["Config"].get("Env") or []]
        return "JAVA_HOME" in names or "JAVA_VERSION" in names


def _keep_alive(connection: socket.socket) -> None:
    """Make the system detect within two minutes that the other side is gone."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # macOS has another name for the first option.
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _close_stream(stream: Any) -> None:
    with contextlib.suppress(OSError):
        # Closing the stream alone leaves the connection to the garbage collector.
        stream._response.close()


def _remove(api: docker.APIClient, container: str) -> None:
    # If the engine is gone, cleanup removes the container later.
    with contextlib.suppress(*API_ERRORS):
        api.remove_container(container, force=True, v=True)


def _pack(files: Mapping[str, bytes], uid: int, gid: int) -> bytes:
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
