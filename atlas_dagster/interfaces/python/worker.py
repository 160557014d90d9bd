"""Calls and streams on a worker thread, for code with an event loop and for code without.

A connector blocks, so it runs in a thread. If its caller is interrupted (by a cancelled task,
Ctrl-C or a break), the call gets the stop signal, and the caller continues when it has ended.
"""

import asyncio
import atexit
import concurrent.futures
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing, suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from atlas_dagster.cancellation import raise_if_stopped, stop_signal
from atlas_dagster.errors import ConfigError
from atlas_dagster.runners.base import STOP_GRACE_SECONDS

T = TypeVar("T")
Item = TypeVar("Item")
#: A thread and the task that it runs, if any.
_Caller = tuple[int, "asyncio.Task[Any] | None"]

#: An interrupted caller waits this long for the end of its call.
_END_SECONDS = STOP_GRACE_SECONDS + 5
_unfinished: "set[Call[Any]]" = set()


class Worker:
    """A thread that runs calls one after another.

    The thread lives as long as the worker and its calls. A connector's process dies with it.
    """

    _shared: "WeakValueDictionary[str, Worker]" = WeakValueDictionary()
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._calls = SimpleQueue[Call[Any] | None]()
        #: The thread and task whose loop reads this worker's stream, if any.
        self.reader: _Caller | None = None
        # The thread does not refer to the worker, so that the worker can be deleted.
        threading.Thread(target=_run_calls, args=(self._calls,), name="atlas", daemon=True).start()

    @classmethod
    def of(cls, source: str) -> "Worker":
        """Return the worker that all calls of ``source`` share."""
        with cls._lock:
            worker = cls._shared.get(source) or cls()
            cls._shared[source] = worker
        return worker

    def submit(self, function: Callable[[], T]) -> "Call[T]":
        """Run ``function`` after the calls before it.

        Raises:
            ConfigError: the caller is in a loop over this worker's stream; the call would not
                start before the loop ends.
        """
        if self.reader is not None and self.reader == _current_caller():
            raise ConfigError(
                "The loop around this call reads from the same connector, which runs one call at a "
                "time; make the call before or after the loop."
            )
        call = Call(function, self)
        self._calls.put(call)
        return call

    def __del__(self) -> None:
        self._calls.put(None)


class Call(Future[T]):
    """A call in a worker's thread. Await it, or :meth:`wait` for its result."""

    def __init__(self, function: Callable[[], T], worker: Worker) -> None:
        super().__init__()
        self.worker = worker
        self.stopped = threading.Event()
        #: Wakes the function if it waits without checking the stop signal.
        self.wake: Callable[[], None] = lambda: None
        self._function = function
        self._start = threading.Lock()
        # A cancelled task must not cancel the future, because the call has to end first.
        self.set_running_or_notify_cancel()
        _unfinished.add(self)

    def run(self) -> None:
        """Run the function in this thread, unless it was started or stopped already."""
        if not self._start.acquire(blocking=False):
            return
        token = stop_signal.set(self.stopped)
        try:
            raise_if_stopped()
            result = self._function()
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            self.set_exception(error)
        else:
            self.set_result(result)
        finally:
            stop_signal.reset(token)
            _unfinished.discard(self)

    def wait(self) -> T:
        """Return the result, or raise the error."""
        try:
            return self.result()
        except BaseException:
            self.close()
            raise

    def __await__(self) -> Generator[Any, None, T]:
        return self._await().__await__()

    async def _await(self) -> T:
        try:
            return await asyncio.wrap_future(self)
        except asyncio.CancelledError:
            await self.aclose()
            raise

    def stop(self) -> None:
        """Make the call end soon with a StoppedError; at once if it has not started."""
        self.stopped.set()
        self.wake()
        self.run()

    def close(self) -> None:
        """Stop the call, and wait for its end."""
        self.stop()
        concurrent.futures.wait([self], timeout=_END_SECONDS)

    async def aclose(self) -> None:
        """Stop the call, and await its end."""
        self.stop()
        end = asyncio.wrap_future(self)
        await asyncio.wait([end], timeout=_END_SECONDS)
        if end.done() and not end.cancelled():
            end.exception()  # otherwise asyncio logs that nobody retrieved it


class Stream(AsyncIterator[T], Iterator[T]):
    """The items of a generator that runs on a worker, one item ahead of its consumer.

    It starts with the request for the first item, and stops when it is closed or deleted. Meanwhile
    it occupies the worker: one call runs the generator, and each item is a call inside of that one.

    Args:
        submit: starts a call on the worker.
        items: the generator.
        deliver: called in the consumer's thread with each item; returns the values to iterate over.
    """

    def __init__(
        self,
        submit: Callable[[Callable[[], None]], Call[None]],
        items: Generator[Item, None, None],
        deliver: Callable[[Item], Iterable[T]],
    ) -> None:
        self._submit = submit
        self._items = items
        self._deliver: Callable[[Any], Iterable[T]] = deliver
        self._steps = SimpleQueue[Call[Any] | None]()
        self._ahead: Call[Any] | None = None
        self._ready = deque[T]()
        self._call: Call[None] | None = None
        self._is_reader = self._is_over = False

    def __next__(self) -> T:
        while not self._ready:
            if self._is_over:
                raise StopIteration
            try:
                self._receive(self._take_step().wait())
            except BaseException:
                self.close()
                raise
        return self._ready.popleft()

    async def __anext__(self) -> T:
        while not self._ready:
            if self._is_over:
                raise StopAsyncIteration
            try:
                self._receive(await self._take_step())
            except BaseException:
                await self.aclose()
                raise
        return self._ready.popleft()

    def close(self) -> None:
        """Stop the generator, and wait for its end."""
        self._leave()
        if self._call is not None:
            self._call.close()

    async def aclose(self) -> None:
        """Stop the generator, and await its end."""
        self._leave()
        if self._call is not None:
            await self._call.aclose()

    def __del__(self) -> None:
        self._leave()

    def _take_step(self) -> Call[Any]:
        """Return the call that gets the next item, or None at the end."""
        if self._call is None:
            self._call = self._submit(partial(_run_steps, self._items, self._steps))
            self._call.wake = partial(_stop_steps, self._steps)
        self._mark_reader(None)
        step, self._ahead = self._ahead or self._start_step(self._call), None
        return step

    def _start_step(self, call: Call[None]) -> Call[Any]:
        step = Call(partial(next, self._items, None), call.worker)
        step.stopped = call.stopped
        self._steps.put(step)
        if call.stopped.is_set():
            step.stop()  # the call may have ended before it got the step
        return step

    def _receive(self, item: Any) -> None:
        if item is None:
            self._leave()
        elif self._call is not None:
            self._ahead = self._ahead or self._start_step(self._call)
            self._ready.extend(self._deliver(item))
            self._mark_reader(_current_caller())

    def _leave(self) -> None:
        self._is_over = True
        self._ready.clear()
        self._mark_reader(None)
        if self._call is not None:
            self._call.stop()

    def _mark_reader(self, caller: _Caller | None) -> None:
        if self._call is not None and (self._is_reader or caller):
            self._call.worker.reader = caller
            self._is_reader = caller is not None


def stop_all() -> list[Call[Any]]:
    """Stop all calls of this process, and return them without waiting for their end."""
    calls = list(_unfinished)
    for call in calls:
        call.stop()
    return calls


@atexit.register
def end_all() -> None:
    """Stop all calls of this process, and wait for their end, so that no connector is left."""
    concurrent.futures.wait(stop_all(), timeout=_END_SECONDS)


# A forked process has none of the threads.
os.register_at_fork(after_in_child=Worker._shared.clear)


def _run_calls(calls: SimpleQueue[Call[Any] | None]) -> None:
    while (call := calls.get()) is not None:
        call.run()
        del call  # so that its result can be freed while the queue is empty


def _run_steps(items: Generator[Any, None, None], steps: SimpleQueue[Call[Any] | None]) -> None:
    with closing(items):
        _run_calls(steps)


def _stop_steps(steps: SimpleQueue[Call[Any] | None]) -> None:
    with suppress(Empty):
        while True:
            if (step := steps.get_nowait()) is not None:
                step.stop()
    steps.put(None)


def _current_caller() -> _Caller:
    task = None
    with suppress(RuntimeError):  # no event loop runs here
        task = asyncio.current_task()
    return threading.get_ident(), task
