"""Work that waits for a connector, told to stop."""

import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from atlas_dagster.cancellation import pause, raise_if_stopped, stop_signal
from atlas_dagster.config.masking import Masker
from atlas_dagster.config.renewable_config import FileConfigStore
from atlas_dagster.errors import StoppedError
from atlas_dagster.listener import SILENT
from atlas_dagster.runners.base import ConnectorCommand
from atlas_dagster.runners.fake import FakeRunner
from atlas_dagster.source.invocation import Invocation


def stopped(call: Callable[[], Any], after: float = 0.0) -> float:
    """Seconds until ``call`` ends with a StoppedError, when its signal is set."""
    signal = threading.Event()

    def run() -> None:
        stop_signal.set(signal)
        with pytest.raises(StoppedError):
            call()

    started = time.monotonic()
    timer = threading.Timer(after, signal.set)
    timer.start()
    copy_context().run(run)
    timer.join()
    return time.monotonic() - started


def test_without_a_signal_nobody_stops_anything() -> None:
    raise_if_stopped()
    pause(0.0)


def test_a_pause_ends_when_it_is_told_to() -> None:
    assert stopped(lambda: pause(60), after=0.05) < 30


def test_a_signal_set_before_is_seen_at_once() -> None:
    assert stopped(lambda: (pause(0.2), pause(60))) < 30


def test_a_silent_connector_is_ended() -> None:
    def silence(_: ConnectorCommand) -> Iterator[tuple[str, bytes]]:
        while True:
            time.sleep(0.01)
            yield "idle", b""

    runner = FakeRunner(silence)  # type: ignore[arg-type]
    talk = Invocation(runner, name="source-x", listener=SILENT, masker=Masker())
    assert stopped(lambda: list(talk.messages(ConnectorCommand("check"))), after=0.05) < 30
    assert runner.closed == 1


def test_whoever_waits_for_a_connection_can_leave(tmp_path: Path) -> None:
    store = FileConfigStore(tmp_path)

    def wait() -> None:
        with store.lock("shop", SILENT):
            pass

    with store.lock("shop", SILENT):
        assert stopped(wait, after=0.05) < 30
    wait()
