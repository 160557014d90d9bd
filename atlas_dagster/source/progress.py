"""Who watches the progress of a READ."""

from collections.abc import Callable
from contextvars import ContextVar

#: Often enough for a moving bar.
WATCHED_EVERY_SECONDS = 0.2

#: Called with the records so far, the total where the source estimates one, and the rate a second.
Watcher = Callable[[int, float | None, float], None]

#: Draws the progress of a READ in this context.
sync_watcher: ContextVar[Watcher | None] = ContextVar("sync_watcher", default=None)
