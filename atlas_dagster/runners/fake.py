"""A runner for tests, with a function as the connector."""

from collections.abc import Callable, Iterable, Iterator

from atlas_dagster.runners.base import (
    ConnectorCommand,
    ConnectorProcess,
    ExitStatus,
    Output,
    Runner,
)

#: Takes the command and yields pieces of output, and then an exit code or :class:`ExitStatus`.
Script = Callable[[ConnectorCommand], Iterable[bytes | Output | int | ExitStatus]]


class FakeRunner(Runner):
    """Runs ``script`` in place of a connector. ``commands`` lists the calls."""

    kind = "fake"
    reference = "fake:1"

    def __init__(self, script: Script) -> None:
        self.script = script
        self.commands: list[ConnectorCommand] = []
        self.closed = 0

    def start(self, command: ConnectorCommand) -> ConnectorProcess:
        self.commands.append(command)
        return _FakeProcess(self, self.script(command))


class _FakeProcess(ConnectorProcess):
    def __init__(self, runner: FakeRunner, pieces: Iterable[bytes | Output | int | ExitStatus]):
        self._runner = runner
        self._pieces = pieces
        self._status = ExitStatus(0)

    def output(self) -> Iterator[Output]:
        for piece in self._pieces:
            match piece:
                case bytes():
                    yield "stdout", piece
                case int():
                    self._status = ExitStatus(piece)
                case ExitStatus():
                    self._status = piece
                case _:
                    yield piece

    def wait(self) -> ExitStatus:
        return self._status

    def close(self) -> None:
        self._runner.closed += 1
