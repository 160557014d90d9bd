"""What is said of a READ while it runs."""

from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import Raw

from atlas_dagster.protocol.messages import Estimate, StreamDescriptor
from atlas_dagster.sync import progress
from atlas_dagster.sync.progress import Progress
from atlas_dagster_tests.listening import CallbackListener


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def reading(name: str, records: int) -> Any:
    return SimpleNamespace(descriptor=StreamDescriptor(name), records=records)


def said(progress: Progress, streams: list[Any]) -> str | None:
    due = progress.report_if_due(streams)
    return due and due.text


def test_every_ten_seconds_and_not_sooner(clock: Clock) -> None:
    progress = Progress()
    clock.now = 9
    assert said(progress, [reading("a", 5)]) is None
    clock.now = 10
    assert said(progress, [reading("a", 5000), reading("b", 0)]) == (
        "Records so far: a 5,000; 500 a second."
    )
    assert said(progress, [reading("a", 5)]) is None
    clock.now = 20
    assert said(progress, [reading("a", 0)]) == "No records so far."


def test_against_the_latest_estimate_of_each_stream(clock: Clock) -> None:
    progress = Progress()
    progress.add_estimate(Estimate(name="a", raw_rows=Raw(b"10")))
    progress.add_estimate(Estimate(name="a", raw_rows=Raw(b"60000")))
    progress.add_estimate(Estimate(name="b", raw_rows=Raw(b"100000")))
    clock.now = 10
    assert said(progress, [reading("a", 4000), reading("b", 1000)]) == (
        "Records so far: a 4,000 of about 60,000, b 1,000 of about 100,000; 500 a second, "
        "about 5 minutes left."
    )


def test_against_an_estimate_of_the_whole(clock: Clock) -> None:
    progress = Progress()
    progress.add_estimate(Estimate(type="SYNC", raw_rows=Raw(b"6000")))
    clock.now = 10
    assert said(progress, [reading("a", 4000), reading("b", 1000)]) == (
        "Records so far: a 4,000, b 1,000; 500 a second, almost done."
    )


def test_estimates_that_contradict_each_other_or_say_nothing_do_not_count(clock: Clock) -> None:
    progress = Progress()
    progress.add_estimate(Estimate(type="SYNC", raw_rows=Raw(b"6000")))
    progress.add_estimate(Estimate(name="a", raw_rows=Raw(b"9000")))
    progress.add_estimate(Estimate(name="a", raw_rows=Raw(b"null")))
    progress.add_estimate(Estimate(raw_rows=Raw(b"5")))
    clock.now = 10
    assert said(progress, [reading("a", 4000)]) == "Records so far: a 4,000; 400 a second."


def test_an_estimate_that_was_exceeded_is_not_mentioned(clock: Clock) -> None:
    progress = Progress()
    progress.add_estimate(Estimate(name="a", raw_rows=Raw(b"100")))
    clock.now = 10
    assert said(progress, [reading("a", 4000)]) == "Records so far: a 4,000; 400 a second."


def test_the_numbers_come_along(clock: Clock) -> None:
    progress = Progress()
    progress.add_estimate(Estimate(name="a", raw_rows=Raw(b"6000")))
    clock.now = 10
    due = progress.report_if_due([reading("a", 4000)])
    assert due is not None
    assert (due.records, due.expected) == (4000, 6000)


def test_of_many_streams_only_the_largest_are_named(clock: Clock) -> None:
    progress = Progress()
    clock.now = 10
    streams = [reading(f"s{number}", number * 100) for number in range(12)]
    assert said(progress, streams) == (
        "Records so far: s11 1,100, s10 1,000, s9 900, s8 800, s7 700, s6 600, s5 500, s4 400, "
        "3 other streams; 660 a second."
    )


def test_whoever_draws_it_is_told_often(clock: Clock) -> None:
    drawn: list[tuple[str, int, float | None]] = []
    progress = Progress(CallbackListener(progress=lambda *progress: drawn.append(progress)))
    for clock.now in (0.1, 0.15, 0.5):
        assert said(progress, [reading("a", 100)]) is None
    progress.add_estimate(Estimate(name="a", raw_rows=Raw(b"400")))
    clock.now = 1.0
    assert said(progress, [reading("a", 200)]) is None
    assert drawn == [("read", 100, None), ("read", 100, None), ("read", 200, 400)]
