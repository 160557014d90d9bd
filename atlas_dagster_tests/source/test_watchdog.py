"""How long a connector may take, and what keeps it going."""

import json
from collections.abc import Iterable

import pytest

from atlas_dagster.config.masking import Masker
from atlas_dagster.listener import SILENT
from atlas_dagster.runners.base import ConnectorCommand, ConnectorProcess, Output, Verb
from atlas_dagster.runners.fake import FakeRunner
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.source import watchdog
from atlas_dagster.source.invocation import Invocation
from atlas_dagster_tests.sync.fake_source import record, state, status

IDLE: Output = ("idle", b"")
LIMITS = ExecutorConfig(silence_seconds=45, heartbeat_seconds=100, timeout_seconds=500)
NOW_MS = 1_800_000_000_000


class Clock:
    """Time that passes only while the connector is waited for."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return NOW_MS / 1000 + self.now - 1000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watchdog, "time", clock)
    return clock


def invoke(
    clock: Clock,
    verb: Verb,
    pieces: Iterable[bytes | Output],
    *,
    limits: ExecutorConfig = LIMITS,
) -> tuple[str | None, float]:
    """Call a connector that prints a piece every ten seconds.

    Return why it was stopped, or None, and the seconds that the call took.
    """
    began = clock.now

    def script(_: ConnectorCommand) -> Iterable[bytes | Output]:
        for piece in pieces:
            clock.now += 10
            yield piece

    runner = FakeRunner(script)
    runner.executor = limits
    talk = Invocation(runner, name="src", listener=SILENT, masker=Masker())
    for _ in talk.messages(ConnectorCommand(verb)):
        clock.now += 0
    assert runner.closed == 1
    return (str(talk.failure()) if talk.failed else None), clock.now - began


def rate_limited(reset: int | None) -> bytes:
    reason = {"type": "RATE_LIMITED"} | (
        {} if reset is None else {"rate_limited": {"quota_reset": reset}}
    )
    content = {"stream_descriptor": {"name": "s"}, "status": "RUNNING", "reasons": [reason]}
    trace = {"type": "STREAM_STATUS", "emitted_at": 1, "stream_status": content}
    return json.dumps({"type": "TRACE", "trace": trace}).encode() + b"\n"


def test_a_silent_read_is_stopped(clock: Clock) -> None:
    why, when = invoke(clock, "read", [IDLE] * 20)
    assert why == (
        "src printed nothing for 45 seconds and was stopped; check the source and sync again, or "
        "raise executor.silence_seconds."
    )
    assert when == 50


def test_chatter_is_a_sign_of_life_but_no_data(clock: Clock) -> None:
    chatter: list[bytes | Output] = [IDLE, ("stderr", b"still here\n")] * 20
    why, when = invoke(clock, "read", chatter)
    assert why is not None
    assert "sent no record and no state for 100 seconds" in why
    assert when == 110


@pytest.mark.parametrize("sign", [record("s", 1), state("s", {"n": 1})])
def test_records_and_states_keep_a_read_going(clock: Clock, sign: bytes) -> None:
    assert invoke(clock, "read", [IDLE, IDLE, IDLE, sign] * 10) == (None, 400)


def test_a_status_alone_is_no_data(clock: Clock) -> None:
    why, when = invoke(clock, "read", [status("s", "RUNNING")] * 20)
    assert why is not None
    assert when == 110


def test_a_rate_limited_source_may_wait_until_its_quota_is_reset(clock: Clock) -> None:
    waiting = rate_limited(NOW_MS + 200_000)
    assert invoke(clock, "read", [waiting, *[IDLE] * 20, record("s", 1)]) == (None, 220)


def test_after_the_reset_the_clocks_run_again(clock: Clock) -> None:
    why, when = invoke(clock, "read", [rate_limited(NOW_MS + 200_000), *[IDLE] * 40])
    assert why is not None
    assert "printed nothing for 45 seconds" in why
    assert when == 250


def test_a_rate_limited_source_that_logs_may_wait_as_long(clock: Clock) -> None:
    waiting: list[bytes | Output] = [("stderr", b"waiting\n")] * 25
    assert invoke(clock, "read", [rate_limited(NOW_MS + 200_000), *waiting]) == (None, 260)


@pytest.mark.parametrize("reset", [None, 0, 1, NOW_MS - 1000, 10])
def test_a_reset_that_is_past_or_missing_only_starts_the_clocks_anew(
    clock: Clock, reset: int | None
) -> None:
    why, when = invoke(clock, "read", [IDLE, IDLE, rate_limited(reset), *[IDLE] * 20])
    assert why is not None
    assert when == 80


def test_a_read_has_a_longest_time(clock: Clock) -> None:
    why, when = invoke(clock, "read", [record("s", 1)] * 100)
    assert why == (
        "src was still reading after 500 seconds and was stopped; sync again to continue, or raise "
        "executor.timeout_seconds."
    )
    assert when == 510


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        ("spec", "check_timeout_seconds"),
        ("check", "check_timeout_seconds"),
        ("discover", "discover_timeout_seconds"),
    ],
)
def test_a_slow_answer_is_cut_off(clock: Clock, verb: Verb, name: str) -> None:
    limits = ExecutorConfig.model_validate({name: 60})
    why, when = invoke(clock, verb, [("stderr", b".\n")] * 100, limits=limits)
    assert why == (
        f"src did not finish {verb} within 60 seconds; check that the source is reachable, "
        f"or raise executor.{name}."
    )
    assert when == 70


def test_time_we_take_ourselves_is_not_the_connectors_silence(clock: Clock) -> None:
    def script(_: ConnectorCommand) -> Iterable[bytes | Output]:
        for _ in range(10):
            clock.now += 10
            yield record("s", 1)
            clock.now += 10
            yield IDLE

    runner = FakeRunner(script)
    runner.executor = ExecutorConfig(silence_seconds=45, heartbeat_seconds=45)
    talk = Invocation(runner, name="src", listener=SILENT, masker=Masker())
    for message in talk.messages(ConnectorCommand("read")):
        if message is not None:
            clock.now += 60  # a slow commit
    assert not talk.failed


@pytest.mark.parametrize("verb", ["spec", "check", "discover", "read"])
def test_waiting_to_be_started_is_not_the_connectors_time(clock: Clock, verb: Verb) -> None:
    """In the engine's queue, say, or while its image is pulled."""

    class Queued(FakeRunner):
        def start(self, command: ConnectorCommand) -> ConnectorProcess:
            clock.now += 3600
            return super().start(command)

    runner = Queued(lambda _: [IDLE, record("s", 1)])
    runner.executor = LIMITS
    talk = Invocation(runner, name="src", listener=SILENT, masker=Masker())
    assert len([*talk.messages(ConnectorCommand(verb))]) == 3
    assert not talk.failed
