"""Listeners, which receive messages and progress of a connector's call."""

import logging
from typing import Literal

#: The work whose progress is reported: bytes of an image's pull, or records of a read.
Work = Literal["pull", "read"]


class Listener:
    """Receives the messages of one call of a connector. This base class ignores all of them.

    The texts have no secrets. Any thread may call the methods.
    """

    def info(self, text: str) -> None:
        """Receive a sentence about the work, such as the choice of the runner."""

    def warning(self, text: str) -> None:
        """Receive a sentence about a possible problem, such as an unknown config field."""

    def connector(self, level: str, text: str) -> None:
        """Receive a line of the connector's own log; ``level`` is DEBUG to FATAL."""

    def progress(self, work: Work, done: int, total: float | None) -> None:
        """Receive how much of ``work`` is done; ``total`` is None if it is not known."""


#: A listener that ignores everything.
SILENT = Listener()
#: Seconds between two calls of :meth:`Listener.progress`, short enough for a smooth bar.
PROGRESS_SECONDS = 0.2

_CONNECTORS = logging.getLogger("atlas_dagster.connectors")
_CONNECTORS.addHandler(logging.NullHandler())
_LEVELS = {
    "FATAL": logging.CRITICAL,
    "ERROR": logging.ERROR,
    "WARN": logging.WARNING,
    "DEBUG": logging.DEBUG,
    "TRACE": logging.DEBUG,
}


class LoggingListener(Listener):
    """Writes to ``log``, and a connector's lines to the logger atlas_dagster.connectors.NAME."""

    def __init__(self, log: logging.Logger, connector: str) -> None:
        self._log = log
        self._connector = _CONNECTORS.getChild(connector)

    def info(self, text: str) -> None:
        self._log.info("%s", text)

    def warning(self, text: str) -> None:
        self._log.warning("%s", text)

    def connector(self, level: str, text: str) -> None:
        self._connector.log(_LEVELS.get(level, logging.INFO), "%s", text)
