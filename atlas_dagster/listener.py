"""Say what Atlas does while it does it."""

import logging
from typing import Literal

#: An image's bytes while it is pulled, or records while a stream is read.
Work = Literal["pull", "read"]


class Listener:
    """Takes what one call of a connector has to say. This one drops all of it.

    Texts hold no secrets. Methods may be called from any thread.
    """

    def info(self, text: str) -> None:
        """Take a sentence about the course of things, such as where the connector runs."""

    def warning(self, text: str) -> None:
        """Take a sentence about something odd, such as an unknown field of a config."""

    def connector(self, level: str, text: str) -> None:
        """Take a line of the connector's own log; ``level`` is DEBUG to FATAL."""

    def progress(self, work: Work, done: int, total: float | None) -> None:
        """Take how much of ``work`` is done; ``total`` is None where nobody knows."""


#: Drops all of it.
SILENT = Listener()
#: Seconds between two calls of :meth:`Listener.progress`; enough for a moving bar.
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
    """Writes into ``log``, and the lines of ``connector`` into atlas_dagster.connectors.NAME."""

    def __init__(self, log: logging.Logger, connector: str) -> None:
        self._log = log
        self._connector = _CONNECTORS.getChild(connector)

    def info(self, text: str) -> None:
        self._log.info("%s", text)

    def warning(self, text: str) -> None:
        self._log.warning("%s", text)

    def connector(self, level: str, text: str) -> None:
        self._connector.log(_LEVELS.get(level, logging.INFO), "%s", text)
