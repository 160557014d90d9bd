"""Listeners of a step: for Dagster's log, and for the command that runs the step."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import dagster as dg

from atlas_dagster.listener import SILENT, Listener, Work

#: The listener of the command that runs the step. Dagster cannot pass it as an argument.
_command: ContextVar[Listener] = ContextVar("command_listener", default=SILENT)


@contextmanager
def forward_to(listener: Listener) -> Iterator[None]:
    """Make steps that run in this context report to ``listener``, too."""
    token = _command.set(listener)
    try:
        yield
    finally:
        _command.reset(token)


class PrintListener(Listener):
    """Prints to stdout."""

    def info(self, text: str) -> None:
        print(text, flush=True)

    def warning(self, text: str) -> None:
        print(text, flush=True)

    def connector(self, level: str, text: str) -> None:
        print(f"{level:5} {text}", flush=True)


class StepListener(PrintListener):
    """Writes into the event log, but prints the connector's lines into the compute log.

    In the event log each line would cost a database round trip.
    """

    def __init__(self, log: dg.DagsterLogManager) -> None:
        self._log = log
        self._command = _command.get()

    def info(self, text: str) -> None:
        self._log.info(text)
        self._command.info(text)

    def warning(self, text: str) -> None:
        self._log.warning(text)
        self._command.warning(text)

    def progress(self, work: Work, done: int, total: float | None) -> None:
        self._command.progress(work, done, total)
