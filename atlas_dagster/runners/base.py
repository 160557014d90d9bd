"""The seam between Atlas and wherever a connector runs.

A :class:`Runner` turns a :class:`ConnectorCommand` into a running :class:`ConnectorProcess`. It
knows nothing of the messages a connector prints: bytes go in as files, bytes come out on two
channels. A process must be consumed with :meth:`ConnectorProcess.output` and ended with
:meth:`ConnectorProcess.close`; used as a context manager it is ended on every path, interrupts
included.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from types import TracebackType
from typing import Literal, Self

from atlas_dagster.runners.limits import ExecutorConfig

Verb = Literal["spec", "check", "discover", "read"]
#: On this machine, in a virtual machine on it (Docker Desktop, Colima), or on another one.
EnginePlace = Literal["here", "virtual machine", "elsewhere"]
Channel = Literal["stdout", "stderr", "idle"]

#: One piece of output: the channel and its bytes, cut anywhere. ``("idle", b"")`` says that
#: nothing came for :data:`IDLE_SECONDS`, so that the consumer can look at its clocks.
Output = tuple[Channel, bytes]

IDLE_SECONDS = 1.0
#: Seconds between SIGTERM and SIGKILL.
STOP_GRACE_SECONDS = 10.0

#: Files that are not JSON. Python loads no module whose file has another ending.
_FILE_NAMES = {"manifest-path": "manifest.yaml", "components-path": "components.py"}


@dataclass(frozen=True, slots=True)
class ConnectorCommand:
    """One call of a connector.

    ``files`` maps an option (``config``, ``catalog``, ``state``) to the content of the file that
    the runner writes and passes as ``--<option>``. Files are readable by the connector's user
    only, and writable: config migrations rewrite them in place. ``labels`` say whose process it
    is, for the reaper. ``environment`` is added to what the runner gives every connector.
    """

    verb: Verb
    files: Mapping[str, bytes] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def arguments(self, folder: str) -> list[str]:
        """The connector's command line, with its files in ``folder``."""
        options = ([f"--{option}", f"{folder}/{file_name(option)}"] for option in self.files)
        return [self.verb, *chain.from_iterable(options)]


def file_name(option: str) -> str:
    """What the file passed as ``--<option>`` is called."""
    return _FILE_NAMES.get(option, f"{option}.json")


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a connector ended: ``code`` as a shell reports it (137 is SIGKILL).

    ``oom_killed`` says that it needed more than its ``memory_limit``, ``cut_off`` that its output
    ended long before it did: what it printed last may be lost, whatever ``code`` says.
    """

    code: int
    oom_killed: bool = False
    cut_off: bool = False


class ConnectorProcess(ABC):
    """A running connector, owned by whoever started it."""

    @abstractmethod
    def output(self) -> Iterator[Output]:
        """Yield what the connector prints until both channels end.

        The connector is held back while the consumer is busy (backpressure), so memory stays
        flat whatever it prints. Yields ``("idle", b"")`` about once a second of silence.
        """

    @abstractmethod
    def wait(self) -> ExitStatus:
        """How the connector ended. Call after :meth:`output` is exhausted."""

    @abstractmethod
    def close(self) -> None:
        """Stop the connector if it still runs (SIGTERM, grace, SIGKILL) and remove its traces.

        Safe to call twice and from any state.
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
    """Starts one connector, at one version, as often as asked.

    Whoever opens a runner closes it; as a context manager it is closed on every path.
    """

    #: ``docker``, ``python`` or ``command``; shown to users.
    kind: str
    #: What runs, with its version: an image reference or a package pin. Shown to users.
    reference: str
    #: The limits everything it starts runs under.
    executor: ExecutorConfig = ExecutorConfig()
    #: What an error of the connector's code adds: the library that ran it, where Atlas chose that.
    code_note: str = ""

    @abstractmethod
    def start(self, command: ConnectorCommand) -> ConnectorProcess:
        """Start ``command``, and return when the connector runs.

        A time limit of the connector counts from then on: what it has to wait for before (an
        image, memory on the engine) is not its own time.

        Raises:
            RunnerUnavailableError: the engine, image or package cannot be had now.
        """

    def prepare(self) -> None:  # noqa: B027 - a command of the user's own needs nothing
        """Have at hand what is needed to start at once: an image, an environment.

        Raises:
            ConfigError: it cannot be had until someone changes something.
            RunnerUnavailableError: it cannot be had now.
        """

    def close(self) -> None:  # noqa: B027 - most runners hold nothing
        """Release what the runner holds, such as connections to an engine.

        Safe to call twice. End its processes first.
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
        """Where the engine of the connector's container runs.

        None for a connector that is no container: its localhost is ours.
        """
        return None

    def identity(self) -> str:
        """A string that changes whenever the connector's code does (image digest, package pin)."""
        return self.reference
