"""Runs without Docker: of what becomes of tables and event log, and of what a run records."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from atlas_dagster.orchestration.step import sync_step as sync
from atlas_dagster.runners.fake import FakeRunner
from atlas_dagster.source import open_connector as source
from atlas_dagster_tests.orchestration.fake_runs import FakeRuns
from atlas_dagster_tests.orchestration.instances import open_instance, sqlite_instance
from atlas_dagster_tests.orchestration.recovery_cases import Shop


@pytest.fixture
def instance(request: pytest.FixtureRequest) -> Iterator[dg.DagsterInstance]:
    """On SQLite, unless a test asks for Postgres."""
    with open_instance(getattr(request, "param", "sqlite"), request) as instance:
        yield instance


@pytest.fixture
def shop(tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Shop:
    runner = FakeRunner(lambda _: [])
    monkeypatch.setattr(source, "choose_runner", lambda *_: runner)
    monkeypatch.setattr(sync, "reap_ended", lambda *_: [])
    return Shop(tmp_path / "lake", instance, runner)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRuns]:
    runner = FakeRunner(lambda _: [])
    monkeypatch.setattr(source, "choose_runner", lambda *_: runner)
    monkeypatch.setattr(sync, "reap_ended", lambda *_: [])
    with sqlite_instance() as instance:
        runs = FakeRuns(tmp_path / "lake", instance, runner)
        runner.script = runs.script
        yield runs
