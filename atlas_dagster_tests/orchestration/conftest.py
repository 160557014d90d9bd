"""Runs without Docker, for the tests of what a run records."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from fake_runs import FakeRuns

from atlas_dagster.orchestration import sync
from atlas_dagster.runners.fake import FakeRunner
from atlas_dagster.sync import source


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRuns]:
    runner = FakeRunner(lambda _: [])
    monkeypatch.setattr(source, "choose_runner", lambda *_: runner)
    monkeypatch.setattr(sync, "reap_ended", lambda *_: [])
    with dg.instance_for_test() as instance:
        runs = FakeRuns(tmp_path / "lake", instance, runner)
        runner.script = runs.script
        yield runs
