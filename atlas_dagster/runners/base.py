"""Base classes of runners, which start connectors.

A :class:`Runner` turns a :class:`ConnectorCommand` into a running :class:`ConnectorProcess`. It
handles bytes, not messages: the input is files, and the output has two channels. Read a process
with :meth:`ConnectorProcess.output`, and end it with :meth:`ConnectorProcess.close`. As a context
manager, a process ends on every path, also after an interrupt.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from types import TracebackType
from typing import Literal, Self

from atlas_dagster.runners.limits import ExecutorConfig

Verb = Literal["spec", "check", "discover", "read"]
#: On this machine, in a virtual machine on it (Docker Desktop, Colima), or on another machine.
EnginePlace = Literal["here", "virtual machine", "elsewhere"]
Channel = Literal["stdout", "stderr", "idle"]

#: One piece of output: the channel and its bytes, cut anywhere. ``("idle", b"")`` means that there
#: was no output for :data:`IDLE_SECONDS`, so that the consumer can check its time limits.
Output = tuple[Channel, bytes]

IDLE_SECONDS = 1.0
#: Seconds between SIGTERM and SIGKILL.
STOP_GRACE_SECONDS = 10.0

#: Files that are not JSON. Python loads a module only from a file with this suffix.
_FILE_NAMES = {"manifest-path": "manifest.yaml", "components-path": "components.py"}


@dataclass(frozen=True, slots=True)
class ConnectorCommand:
    """One call of a connector.

    ``files`` maps an option (``config``, ``catalog``, ``state``) to the content of the file that
    the runner writes and passes as ``--<option>``. Only the connector's user can read the files,
    and can write them: config migrations rewrite them in place. ``labels`` identify the owner of
    the process for cleanup. ``environment`` extends the variables that every connector gets.
    """

    verb: Verb
    files: Mapping[str, bytes] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def arguments(self, folder: str) -> list[str]:
        """Return the connector's command line, with its files in ``folder``."""
        options = ([f"--{option}", f"{folder}/{file_name(option)}"] for option in self.files)
        return [self.verb, *chain.from_iterable(options)]


def file_name(option: str) -> str:
    """Return the name of the file that is passed as ``--<option>``."""
    return _FILE_NAMES.get(option, f"{option}.json")


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """The end of a connector; ``code`` is as a shell reports it (137 is SIGKILL).

    ``oom_killed``: the connector needed more than its ``memory_limit``. ``cut_off``: the output
    ended long before the connector, so the last output may be lost, whatever ``code`` is.
    """

    code: int
    oom_killed: bool = False
    cut_off: bool = False


class ConnectorProcess(ABC):
    """A running connector. The caller that started it closes it."""

    @abstractmethod
    def output(self) -> Iterator[Output]:
        """Yield the connector's output until both channels end.

        The connector waits while the consumer is busy (backpressure), so memory stays flat.
        Yields ``("idle", b"")`` after each second of silence, about.
        """

    @abstractmethod
    def wait(self) -> ExitStatus:
        """Return the exit status of the connector. Call this after :meth:`output` is exhausted."""

    @abstractmethod
    def close(self) -> None:
        """Stop the connector if it still runs (SIGTERM, grace, SIGKILL), and remove its files.

        This is safe to call twice and in any state.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Runner(ABC):
    """Starts one connector at one version, any number of times.

    Close a runner after use; as a context manager, it is closed on every path.
    """

    #: ``docker``, ``python``, ``command`` or ``kubernetes``; shown to users.
    kind: str
    #: The connector with its version: an image reference or a package pin. Shown to users.
    reference: str
    #: The limits of its connectors.
    executor: ExecutorConfig = ExecutorConfig()
    #: Added to errors of the connector's code: the CDK that ran it, if Atlas chose the version.
    code_note: str = ""

    @abstractmethod
    def start(self, command: ConnectorCommand) -> ConnectorProcess:
        """Start ``command``, and return when the connector runs.

        The time limits begin at the return, so they do not include a wait for an image or memory.

        Raises:
            RunnerUnavailableError: the engine, image or package is not available now.
        """

    def prepare(self) -> None:  # noqa: B027 - a user's command needs nothing
        """Fetch the image or build the environment, so that a start needs no network.

        Raises:
            ConfigError: the code is not available; a retry cannot help.
            RunnerUnavailableError: the code is not available now.
        """

    def close(self) -> None:  # noqa: B027 - most runners hold nothing
        """Release the runner's resources, such as connections to an engine.

        This is safe to call twice. End the runner's processes before.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def engine_place(self) -> EnginePlace | None:
        """The place of the Docker engine.

        None for a connector without a container, whose localhost is this machine.
        """
        return None

    def identity(self) -> str:
        """Return a text that changes with the connector's code (image digest, package pin)."""
        return self.reference


#: The platform also sets these variables: no cloud features, and a state for each stream.
CONNECTOR_ENV = {"DEPLOYMENT_MODE": "OSS", "USE_STREAM_CAPABLE_STATE": "true"}
#: In a container, a JVM that runs out of memory must exit, so that its exit code shows this.
CONTAINER_ENV = {**CONNECTOR_ENV, "JAVA_OPTS": "-XX:+ExitOnOutOfMemoryError"}
