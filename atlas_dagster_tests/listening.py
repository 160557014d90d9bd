"""A listener that passes what it takes to functions."""

from collections.abc import Callable
from typing import Any

from atlas_dagster.listener import Listener, Work


def _drop(*_: object) -> None:
    pass


class CallbackListener(Listener):
    """``info`` takes warnings too, where nothing else does."""

    def __init__(
        self,
        info: Callable[[str], Any] = _drop,
        *,
        warning: Callable[[str], Any] | None = None,
        connector: Callable[[str, str], Any] = _drop,
        progress: Callable[[Work, int, float | None], Any] = _drop,
    ) -> None:
        self._info = info
        self._warning = warning or info
        self._connector = connector
        self._progress = progress

    def info(self, text: str) -> None:
        self._info(text)

    def warning(self, text: str) -> None:
        self._warning(text)

    def connector(self, level: str, text: str) -> None:
        self._connector(level, text)

    def progress(self, work: Work, done: int, total: float | None) -> None:
        self._progress(work, done, total)
