"""Silence, chatter without data, announced waits; a config that changes while it is used."""

import time

import pytest

from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster_tests.chaos.chaotic import Chaos


@pytest.mark.slow
def test_a_silent_source_is_stopped(chaos: Chaos) -> None:
    started = time.monotonic()
    done = chaos.sync("silent-hang", executor=ExecutorConfig(silence_seconds=2))
    assert "printed nothing for 2 seconds and was stopped" in str(done.failure)
    assert done.failure is not None
    assert done.failure.failure_type == "transient_error"
    assert time.monotonic() - started < 15
    assert (chaos.lake.ids("a"), chaos.position()) == ([1], 1)
    assert chaos.lake.staged() == set()


@pytest.mark.slow
def test_chatter_is_no_heartbeat(chaos: Chaos) -> None:
    started = time.monotonic()
    done = chaos.sync("logs-for-ever", executor=ExecutorConfig(heartbeat_seconds=2))
    assert "no record and no state for 2 seconds" in str(done.failure)
    assert done.failure is not None
    assert done.failure.failure_type == "transient_error"
    assert time.monotonic() - started < 15
    assert (chaos.lake.ids("a"), chaos.position()) == ([1], 1)


@pytest.mark.slow
def test_a_read_has_an_end(chaos: Chaos) -> None:
    started = time.monotonic()
    done = chaos.sync("logs-for-ever", executor=ExecutorConfig(timeout_seconds=3))
    assert "was still reading after 3 seconds" in str(done.failure)
    assert time.monotonic() - started < 15
    assert (chaos.lake.ids("a"), chaos.position()) == ([1], 1)


@pytest.mark.slow
def test_an_announced_wait_is_no_silence(chaos: Chaos) -> None:
    limits = ExecutorConfig(silence_seconds=2, heartbeat_seconds=2)
    assert chaos.sync("rate-limited", executor=limits, seconds=3).failure is None
    assert (chaos.lake.ids("a"), chaos.position()) == ([1, 2], 2)


@pytest.mark.slow
def test_a_new_config_survives_the_crash(chaos: Chaos) -> None:
    """The old token may be void already; losing the new one would lock the user out."""
    assert "exit code 1" in str(chaos.sync("new-config-then-crash").failure)
    assert (chaos.lake.ids("a"), chaos.position()) == ([1], 1)
    assert "The connector renewed token in its config" in chaos.heard("INFO")[0]
    assert chaos.sync("new-config-then-crash").failure is None
    assert chaos.lake.ids("a") == [1, 2, 3]


def test_two_answers_to_check_are_worth_a_warning(chaos: Chaos) -> None:
    chaos.connector("two-connection-statuses").check()
    assert [level for level, _ in chaos.log] == ["WARN"]


def test_colours_are_not_logged(chaos: Chaos) -> None:
    done = chaos.sync("coloured-log-lines")
    assert done.failure is None
    assert chaos.heard("INFO") == ["careful", "careful"]
    assert chaos.heard("WARN") == ["careful"]
