"""Calls and streams on a worker thread."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator

import pytest

from atlas_dagster.cancellation import pause
from atlas_dagster.errors import ConfigError, StoppedError
from atlas_dagster.interfaces.python.worker import Stream, Worker, stop_all

SOON = 20.0


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Endless:
    """A function that returns only when it is stopped; ``ended`` is set then."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.ended = threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        try:
            pause(1000)
        finally:
            self.ended.set()


class Numbers:
    """A generator of numbers, and whether it was closed."""

    def __init__(self, count: int = 10**9, error: Exception | None = None) -> None:
        self.made = 0
        self.ended = threading.Event()
        self._count = count
        self._error = error

    def __call__(self) -> Generator[int, None, None]:
        try:
            for number in range(self._count):
                self.made = number + 1
                yield number
            if self._error is not None:
                raise self._error
        finally:
            self.ended.set()


def stream_of(items: Generator[int, None, None], worker: Worker | None = None) -> Stream[int]:
    return Stream((worker or Worker()).submit, items, lambda number: [number])


def submit(function: Callable[[], int], worker: Worker | None = None) -> int:
    return (worker or Worker()).submit(function).wait()


async def submit_async(function: Callable[[], int], worker: Worker | None = None) -> int:
    return await (worker or Worker()).submit(function)


# Calls


def test_a_result_is_waited_for() -> None:
    assert submit(lambda: 5) == 5


def test_a_result_is_awaited() -> None:
    assert asyncio.run(submit_async(lambda: 5)) == 5


def test_an_error_is_the_callers() -> None:
    def fail() -> int:
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        submit(fail)


def test_an_event_loop_stays_responsive_meanwhile() -> None:
    async def both() -> int:
        gate = threading.Event()
        call = Worker().submit(lambda: gate.wait(SOON))
        await asyncio.sleep(0)
        gate.set()
        return await call

    assert asyncio.run(both())


def test_a_cancelled_task_continues_when_its_call_has_ended() -> None:
    endless = Endless()

    async def cancelled() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(submit_async(endless), 0.2)  # type: ignore[arg-type]
        assert endless.ended.is_set()

    asyncio.run(cancelled())


def test_an_interrupt_is_raised_when_the_call_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = Endless()
    call = Worker().submit(endless)
    endless.begun.wait(SOON)

    def interrupted(_: float | None = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(call, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call.wait()
    assert endless.ended.is_set()


def test_all_calls_of_a_process_can_be_stopped() -> None:
    calls = [Worker().submit(Endless()) for _ in range(3)]
    assert set(calls) <= set(stop_all())
    for call in calls:
        with pytest.raises(StoppedError):
            call.wait()


def test_a_process_that_ends_stops_its_calls() -> None:
    program = """
import os
import time
from atlas_dagster.interfaces.python.worker import Stream, Worker
from atlas_dagster.cancellation import pause
def function():
    try:
        pause(1000)
    finally:
        os.write(1, b"ended\\n")
def numbers():
    try:
        yield from range(1000)
    finally:
        os.write(1, b"closed\\n")
call = Worker().submit(function)
stream = Stream(Worker().submit, numbers(), lambda number: [number])
next(stream)
time.sleep(0.1)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (sorted(ran.stdout.split()), ran.returncode) == (["closed", "ended"], 0)


def test_a_forked_process_has_workers_of_its_own() -> None:
    program = """
import os
from atlas_dagster.interfaces.python.worker import Worker
worker = Worker.of("x")
worker.submit(lambda: 1).wait()
if os.fork() == 0:
    os._exit(Worker.of("x").submit(lambda: 7).wait())
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert ran.stdout == "7\n"


# One call at a time


def test_calls_of_one_source_run_one_after_another() -> None:
    running, together = 0, []

    def function() -> int:
        nonlocal running
        running += 1
        time.sleep(0.05)
        together.append(running)
        running -= 1
        return threading.get_ident()

    async def many() -> list[int]:
        return await asyncio.gather(*(submit_async(function, Worker.of("x")) for _ in range(4)))

    assert len(set(asyncio.run(many()))) == 1
    assert together == [1, 1, 1, 1]


def test_a_call_that_is_stopped_before_its_turn_ends_at_once() -> None:
    worker, endless, started = Worker(), Endless(), threading.Event()
    first = worker.submit(endless)
    second = worker.submit(started.set)
    second.close()
    with pytest.raises(StoppedError):
        second.wait()
    assert not endless.ended.is_set()
    first.close()
    assert not started.is_set()


def test_a_stream_that_is_stopped_before_its_turn_ends_at_once() -> None:
    worker, endless, numbers = Worker(), Endless(), Numbers()
    first = worker.submit(endless)

    async def both() -> None:
        stream = stream_of(numbers(), worker)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.1)
        assert [number async for number in stream] == []
        waiting = worker.submit(lambda: None)
        stream = Stream(lambda _: waiting, numbers(), lambda number: [number])
        item = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.05)
        waiting.stop()  # as an adapter that is closed does
        with pytest.raises(StoppedError):
            await item

    asyncio.run(both())
    first.close()
    assert numbers.made == 0


def test_a_worker_ends_with_its_calls() -> None:
    worker = Worker.of("ends")
    ident = submit(threading.get_ident, worker)
    gone = weakref.ref(worker)
    del worker
    assert gone() is None
    until(lambda: ident not in {thread.ident for thread in threading.enumerate()})


def test_a_call_inside_of_the_loop_over_the_same_is_refused() -> None:
    stream = stream_of(Numbers()(), Worker.of("x"))
    for _ in stream:
        with pytest.raises(ConfigError, match="one call at a time"):
            submit(lambda: 1, Worker.of("x"))
        with pytest.raises(ConfigError, match="one call at a time"):
            next(stream_of(Numbers()(), Worker.of("x")))
        assert submit(lambda: 1, Worker.of("y")) == 1
        break
    stream.close()
    assert submit(lambda: 1, Worker.of("x")) == 1


def test_a_call_of_another_task_waits_for_the_end_of_the_loop() -> None:
    async def both() -> tuple[bool, int]:
        stream = stream_of(Numbers()(), Worker.of("x"))
        async for _ in stream:
            other = asyncio.create_task(submit_async(lambda: 7, Worker.of("x")))
            await asyncio.sleep(0.1)
            was_done = other.done()
            await stream.aclose()
            return was_done, await other
        raise AssertionError

    assert asyncio.run(both()) == (False, 7)


def test_a_call_of_another_thread_waits_for_the_end_of_the_loop() -> None:
    stream, found = stream_of(Numbers()(), Worker.of("x")), list[int]()
    for _ in stream:
        thread = threading.Thread(target=lambda: found.append(submit(lambda: 7, Worker.of("x"))))
        thread.start()
        thread.join(0.1)
        assert not found
        break
    stream.close()
    thread.join(SOON)
    assert found == [7]


# Streams


def test_items_come_in_order_and_end() -> None:
    stream = stream_of(Numbers(5)())
    assert list(stream) == [0, 1, 2, 3, 4]
    assert list(stream) == []


def test_items_are_awaited_too() -> None:
    async def collected() -> list[int]:
        return [item async for item in stream_of(Numbers(5)())]

    assert asyncio.run(collected()) == [0, 1, 2, 3, 4]


def test_an_item_can_be_several_values_or_none() -> None:
    stream = Stream(Worker().submit, Numbers(4)(), range)
    assert list(stream) == [0, 0, 1, 0, 1, 2]


def test_an_error_comes_after_the_items_before_it() -> None:
    stream = stream_of(Numbers(1, ConfigError("no more"))())
    assert next(stream) == 0
    with pytest.raises(ConfigError, match="no more"):
        next(stream)
    assert list(stream) == []


def test_nothing_starts_before_the_first_item_is_asked_for() -> None:
    numbers = Numbers(0)
    stream = stream_of(numbers())
    time.sleep(0.05)
    assert not numbers.ended.is_set()
    assert list(stream) == []
    assert numbers.ended.is_set()


def test_the_generator_waits_for_its_consumer() -> None:
    numbers = Numbers()
    stream = stream_of(numbers())
    assert next(stream) == 0
    until(lambda: numbers.made >= 2)
    time.sleep(0.1)
    assert numbers.made == 2  # one ahead
    stream.close()


def test_a_loop_that_is_left_stops_the_generator() -> None:
    numbers = Numbers()
    for number in stream_of(numbers()):
        if number == 3:
            break
    gc.collect()
    assert numbers.ended.wait(SOON)


def test_an_async_loop_that_is_left_stops_the_generator() -> None:
    numbers = Numbers()

    async def left() -> None:
        async for number in stream_of(numbers()):
            if number == 3:
                break

    asyncio.run(left())
    gc.collect()
    assert numbers.ended.wait(SOON)


def test_closing_returns_when_the_generator_has_ended() -> None:
    numbers = Numbers()
    stream = stream_of(numbers())
    next(stream)
    stream.close()
    assert numbers.ended.is_set()
    assert list(stream) == []


def test_a_stream_whose_call_was_stopped_fails() -> None:
    worker = Worker()
    calls = []
    stream = Stream(
        lambda function: calls.append(worker.submit(function)) or calls[0],  # type: ignore[func-returns-value]
        Numbers()(),
        lambda number: [number],
    )
    next(stream)
    calls[0].close()
    with pytest.raises(StoppedError):
        list(stream)


def test_a_consumer_that_is_cancelled_stops_the_generator() -> None:
    endless = Endless()

    def items() -> Generator[int, None, None]:
        endless()
        yield 1

    async def cancelled() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream_of(items())), 0.2)
        assert endless.ended.is_set()

    asyncio.run(cancelled())
