"""Work in threads, for callers with an event loop and for those without.

A caller that leaves (a task that is cancelled, Ctrl-C) has the work told to stop, and goes on when
the work has ended: then its connector is gone.
"""

import asyncio
import atexit
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from atlas_dagster.cancellation import raise_if_stopped, stop_signal
from atlas_dagster.errors import ConfigError
from atlas_dagster.runners.base import STOP_GRACE_SECONDS

T = TypeVar("T")
#: A thread, and a task in its event loop.
_Place = tuple[int, int]

#: How long whoever leaves waits for the end of the work; it ends by itself then.
_END_SECONDS = STOP_GRACE_SECONDS + 5
_running: "WeakSet[Work[Any]]" = WeakSet()
#: Where somebody loops over a feed, by what that feed needs alone.
_loops: dict[str, _Place] = {}


class Work(Generic[T]):
    """``call`` in a thread of its own, begun at once. Its result is awaited, or waited for."""

    def __init__(self, call: Callable[[], T], *, alone: str | None = None) -> None:
        """``alone``: of what bears this name, one call runs at a time.

        Raises:
            ConfigError: it would wait for ever, for it is asked for in a loop over the one before.
        """
        if alone is not None and _loops.get(alone) == _here():
            raise ConfigError(
                "A connector does one thing at a time, and this one is being read in this very "
                "loop; ask before the loop or after it."
            )
        self._call = call
        self._stop = threading.Event()
        self._future: Future[T] = Future()
        # Cancelling whoever awaits it must not cancel the future itself.
        self._future.set_running_or_notify_cancel()
        self._thread = threading.Thread(target=self._run, name="atlas", daemon=True)
        _running.add(self)
        self._thread.start()

    def _run(self) -> None:
        stop_signal.set(self._stop)
        try:
            result = self._call()
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            self._future.set_exception(error)
        else:
            self._future.set_result(result)
        finally:
            _running.discard(self)

    def stop(self) -> None:
        """Have it end soon, with a StoppedError."""
        self._stop.set()

    def wait(self) -> T:
        """Its result, or its error."""
        try:
            return self._future.result()
        except BaseException:
            self.close()
            raise

    def __await__(self) -> Generator[Any, None, T]:
        return self._awaited().__await__()

    async def _awaited(self) -> T:
        try:
            return await asyncio.wrap_future(self._future)
        except asyncio.CancelledError:
            await self.aclose()
            raise

    def close(self) -> None:
        """Stop it, and return when it has ended."""
        self.stop()
        self._thread.join(_END_SECONDS)

    async def aclose(self) -> None:
        """As :meth:`close`, for callers with an event loop."""
        self.stop()
        end = asyncio.wrap_future(self._future)
        await asyncio.wait([end], timeout=_END_SECONDS)
        if end.done() and not end.cancelled():
            end.exception()  # seen, else asyncio complains


class Feed(AsyncIterator[T], Iterator[T]):
    """What ``produce`` gives to the function that it is called with, one by one.

    The work waits for its consumer (backpressure), is begun when the first item is asked for, and
    stops when the feed is closed or forgotten.
    """

    def __init__(
        self, produce: Callable[[Callable[[T], None]], None], *, alone: str | None = None
    ) -> None:
        """``alone``: as for :class:`Work`."""
        self._produce = produce
        self._alone = alone
        self._loop: _Place | None = None
        self._channel: _Channel[T] | None = None
        self._work: Work[None] | None = None
        self._is_over = False

    def __iter__(self) -> "Feed[T]":
        return self

    def __next__(self) -> T:
        """Raises what the work raises."""
        wanted = self._want()
        if wanted is None:
            raise StopIteration
        try:
            items = wanted.result()
        except BaseException:
            self.close()
            raise
        return self._handed_out(items, StopIteration)

    def __aiter__(self) -> "Feed[T]":
        return self

    async def __anext__(self) -> T:
        """Raises what the work raises."""
        wanted = self._want()
        if wanted is None:
            raise StopAsyncIteration
        try:
            items = await asyncio.wrap_future(wanted)
        except BaseException:
            await self.aclose()
            raise
        return self._handed_out(items, StopAsyncIteration)

    def close(self) -> None:
        """Stop the work, and return when it has ended."""
        self._is_over = True
        self._leave_loop()
        if self._work is not None:
            self._work.close()

    async def aclose(self) -> None:
        """As :meth:`close`, for callers with an event loop."""
        self._is_over = True
        self._leave_loop()
        if self._work is not None:
            await self._work.aclose()

    def __del__(self) -> None:
        self._leave_loop()
        if self._work is not None:
            self._work.stop()

    def _handed_out(self, items: tuple[T, ...], end: type[Exception]) -> T:
        if not items:
            self._is_over = True
            raise end
        if self._alone is not None:
            self._loop = _loops[self._alone] = _here()
        return items[0]

    def _leave_loop(self) -> None:
        if self._alone is not None and self._loop is not None:
            if _loops.get(self._alone) == self._loop:
                del _loops[self._alone]
            self._loop = None

    def _want(self) -> "Future[tuple[T, ...]] | None":
        self._leave_loop()
        if self._is_over:
            return None
        if self._channel is None:
            # The thread must not know the feed, which could not be forgotten then.
            channel, produce = _Channel[T](), self._produce
            self._work = Work(lambda: channel.fill(produce), alone=self._alone)
            self._channel = channel
        return self._channel.take()


class _Channel(Generic[T]):
    """From one thread to one consumer; an item ahead of what is asked for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._items: deque[T] = deque()
        #: Of the consumer that waits. An empty tuple is the end.
        self._wanted: Future[tuple[T, ...]] | None = None
        self._is_over = False
        self._error: BaseException | None = None

    def fill(self, produce: Callable[[Callable[[T], None]], None]) -> None:
        error: BaseException | None = None
        try:
            produce(self._put)
        except BaseException as raised:  # noqa: BLE001 - it is the consumer's
            error = raised
        with self._changed:
            self._is_over, self._error = True, error
            if self._wanted is not None:
                self._answer(self._wanted)

    def take(self) -> "Future[tuple[T, ...]]":
        wanted: Future[tuple[T, ...]] = Future()
        with self._changed:
            if self._items or self._is_over:
                self._answer(wanted)
                self._changed.notify_all()
            else:
                self._wanted = wanted
        return wanted

    def _put(self, item: T) -> None:
        with self._changed:
            while self._items:
                raise_if_stopped()
                self._changed.wait(_POLL_SECONDS)
            raise_if_stopped()
            self._items.append(item)
            if self._wanted is not None:
                self._answer(self._wanted)

    def _answer(self, wanted: "Future[tuple[T, ...]]") -> None:
        self._wanted = None
        if not wanted.set_running_or_notify_cancel():
            return  # who wanted it has left
        if self._items:
            wanted.set_result((self._items.popleft(),))
        elif self._error is not None:
            wanted.set_exception(self._error)
        else:
            wanted.set_result(())


#: How soon a stop is noticed while the consumer takes nothing.
_POLL_SECONDS = 0.2


def _here() -> _Place:
    task = None
    with suppress(RuntimeError):  # no event loop runs here
        task = asyncio.current_task()
    return threading.get_ident(), id(task)


def stop_all() -> list[Work[Any]]:
    """Have all work of this process end soon, with a StoppedError; what that is."""
    works = list(_running)
    for work in works:
        work.stop()
    return works


@atexit.register
def end_all() -> None:
    """Stop all work of this process, and return when it has ended: no connector is left."""
    works = stop_all()
    deadline = time.monotonic() + _END_SECONDS
    for work in works:
        work._thread.join(max(deadline - time.monotonic(), 0.0))
