"""The process behind a READ: floods, deaf ones, and those that leave others behind."""

import os
import time
from pathlib import Path

import pytest

from atlas_dagster.sync.events import StreamsCommitted
from atlas_dagster_tests.chaos.chaotic import Chaos

MEGABYTE = 1_000_000


def resident() -> int:
    """Bytes of memory this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_a_flood_of_stderr_takes_no_memory(chaos: Chaos) -> None:
    heard = highest = 0

    def listen(level: str, text: str) -> None:
        nonlocal heard, highest
        heard += len(text)
        highest = max(highest, resident())

    before = resident()
    assert chaos.sync("stderr-flood", log=listen, megabytes=100).failure is None
    assert heard > 99 * MEGABYTE
    assert highest - before < 40 * MEGABYTE
    assert chaos.lake.ids("a") == [1]


@pytest.mark.slow
def test_one_that_ignores_sigterm_is_killed(chaos: Chaos, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("docker.runner", "process"):
        monkeypatch.setattr(f"atlas_dagster.runners.{module}.STOP_GRACE_SECONDS", 1)
    events = chaos.begin("ignores-sigterm")
    assert isinstance(next(events), StreamsCommitted)
    started = time.monotonic()
    events.close()  # type: ignore[attr-defined]
    assert 0.9 < time.monotonic() - started < 8
    assert chaos.lake.ids("a") == [1]


def test_a_child_that_holds_stdout_is_not_waited_for(chaos: Chaos) -> None:
    started = time.monotonic()
    done = chaos.sync("child-holds-stdout")
    assert time.monotonic() - started < 15
    assert done.failure is None
    assert (chaos.lake.ids("a"), chaos.position()) == ([1], 1)


def test_what_a_daemon_would_have_sent_is_missed(chaos: Chaos) -> None:
    started = time.monotonic()
    done = chaos.sync("daemonizes")
    assert time.monotonic() - started < 15
    assert "the source ended without declaring it COMPLETE" in str(done.failure)
    assert chaos.lake.ids("a")[0] == 1
    assert chaos.position() == len(chaos.lake.ids("a"))


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.slow
def test_one_that_closes_its_output_is_judged_by_its_end(chaos: Chaos, both: bool) -> None:
    started = time.monotonic()
    done = chaos.sync("closes-stdout", code=5, stderr_too=both)
    assert time.monotonic() - started > 1
    assert "source-x ended with exit code 5" in str(done.failure)
    assert ("still at work" in str(done.failure)) == (not both)
    assert (chaos.lake.ids("a"), chaos.position()) == ([1], 1)


def test_a_config_file_may_be_rewritten(chaos: Chaos) -> None:
    assert chaos.sync("rewrites-its-config").failure is None
    assert chaos.lake.rows("a") == [(1, "in place")]
