"""Work in threads, awaited and waited for."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from atlas_dagster.cancellation import pause
from atlas_dagster.errors import ConfigError, StoppedError
from atlas_dagster.interfaces.python.worker import Feed, Work, stop_all

SOON = 20.0


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Endless:
    """Work that ends only when it is told to; ``ended`` is set then."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.ended = threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        try:
            pause(1000)
        finally:
            self.ended.set()


def counting(put: Callable[[int], None]) -> None:
    for number in range(5):
        put(number)


def failing(put: Callable[[int], None]) -> None:
    put(1)
    raise ConfigError("no more")


# Work


def test_a_result_is_waited_for() -> None:
    assert Work(lambda: 5).wait() == 5


def test_an_error_is_the_callers() -> None:
    def fail() -> None:
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        Work(fail).wait()


async def _awaited(work: Work[int]) -> int:
    return await work


def test_a_result_is_awaited() -> None:
    assert asyncio.run(_awaited(Work(lambda: 5))) == 5


def test_an_event_loop_stays_awake_meanwhile() -> None:
    async def both() -> int:
        gate = threading.Event()
        work = Work(lambda: gate.wait(SOON))
        await asyncio.sleep(0)
        gate.set()
        return await work

    assert asyncio.run(both())


def test_cancelling_whoever_awaits_it_ends_it_first() -> None:
    endless = Endless()

    async def cancelled() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.ensure_future(_awaited(Work(endless))), 0.2)
        assert endless.ended.is_set()

    asyncio.run(cancelled())


def test_an_interrupt_ends_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = Endless()
    work = Work(endless)
    endless.begun.wait(SOON)

    def interrupted(_: float | None = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(work._future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        work.wait()
    assert endless.ended.is_set()


def test_all_of_a_process_can_be_stopped() -> None:
    works = [Work(Endless()) for _ in range(3)]
    assert set(works) <= set(stop_all())
    for work in works:
        with pytest.raises(StoppedError):
            work.wait()


def test_a_process_that_ends_stops_its_work() -> None:
    program = """
import time
from atlas_dagster.interfaces.python.worker import Work
from atlas_dagster.cancellation import pause
def work():
    try:
        pause(1000)
    finally:
        print("ended", flush=True)
kept = Work(work)
time.sleep(0.1)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (ran.stdout, ran.returncode) == ("ended\n", 0)


# Feeds


def test_items_come_in_order_and_end() -> None:
    feed = Feed(counting)
    assert list(feed) == [0, 1, 2, 3, 4]
    assert list(feed) == []


def test_items_are_awaited_too() -> None:
    async def collected() -> list[int]:
        return [item async for item in Feed(counting)]

    assert asyncio.run(collected()) == [0, 1, 2, 3, 4]


def test_an_error_comes_after_the_items_before_it() -> None:
    feed = Feed(failing)
    assert next(feed) == 1
    with pytest.raises(ConfigError, match="no more"):
        next(feed)
    assert list(feed) == []


def test_nothing_is_begun_before_the_first_item_is_asked_for() -> None:
    begun = threading.Event()
    feed = Feed[int](lambda _: begun.set())
    time.sleep(0.05)
    assert not begun.is_set()
    assert list(feed) == []
    assert begun.is_set()


def test_the_work_waits_for_its_consumer() -> None:
    made = 0

    def produce(put: Callable[[int], None]) -> None:
        nonlocal made
        for number in range(1000):
            made = number + 1
            put(number)

    feed = Feed(produce)
    assert next(feed) == 0
    until(lambda: made >= 3)
    time.sleep(0.1)
    assert made == 3  # one ahead, and one in its hands
    feed.close()


@pytest.fixture
def endless() -> tuple[Callable[[Callable[[int], None]], None], threading.Event]:
    ended = threading.Event()

    def produce(put: Callable[[int], None]) -> None:
        try:
            for number in range(10**9):
                put(number)
        finally:
            ended.set()

    return produce, ended


EndlessFeed = tuple[Callable[[Callable[[int], None]], None], threading.Event]


def test_a_loop_that_is_left_stops_the_work(endless: EndlessFeed) -> None:
    produce, ended = endless
    for number in Feed(produce):
        if number == 3:
            break
    gc.collect()
    assert ended.wait(SOON)


def test_an_async_loop_that_is_left_stops_the_work(endless: EndlessFeed) -> None:
    produce, ended = endless

    async def left() -> None:
        async for number in Feed(produce):
            if number == 3:
                break

    asyncio.run(left())
    gc.collect()
    assert ended.wait(SOON)


def test_closing_returns_when_the_work_has_ended(endless: EndlessFeed) -> None:
    produce, ended = endless
    feed = Feed(produce)
    next(feed)
    feed.close()
    assert ended.is_set()
    assert list(feed) == []


def test_a_consumer_that_is_cancelled_stops_the_work() -> None:
    endless = Endless()

    async def cancelled() -> None:
        feed = Feed[int](lambda _: endless())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(feed), 0.2)
        assert endless.ended.is_set()

    asyncio.run(cancelled())


# One thing at a time


def test_a_call_inside_of_the_loop_over_the_same_is_refused(endless: EndlessFeed) -> None:
    produce, _ = endless
    feed = Feed(produce, alone="x")
    for _ in feed:
        with pytest.raises(ConfigError, match="being read in this very loop"):
            Work(lambda: 1, alone="x")
        with pytest.raises(ConfigError, match="being read in this very loop"):
            next(Feed(counting, alone="x"))
        assert Work(lambda: 1, alone="y").wait() == 1
        break
    feed.close()
    assert Work(lambda: 1, alone="x").wait() == 1


def test_another_task_may_call_it_meanwhile(endless: EndlessFeed) -> None:
    produce, _ = endless

    async def both() -> int:
        feed = Feed(produce, alone="x")
        async for _ in feed:
            other = await asyncio.create_task(_made())
            await feed.aclose()
            return other
        return 0

    async def _made() -> int:
        return await Work(lambda: 7, alone="x")

    assert asyncio.run(both()) == 7


def test_a_thread_without_a_loop_may_call_it_meanwhile(endless: EndlessFeed) -> None:
    produce, _ = endless
    feed = Feed(produce, alone="x")

    def numbers() -> Iterator[int]:
        yield Work(lambda: 7, alone="x").wait()

    found: list[int] = []
    for _ in feed:
        thread = threading.Thread(target=lambda: found.extend(numbers()))
        thread.start()
        thread.join(SOON)
        break
    feed.close()
    assert found == [7]
