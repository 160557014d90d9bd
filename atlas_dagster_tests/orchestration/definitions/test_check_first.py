"""CHECK comes before READ, however a run is started; and one that hangs does not hang the run."""

import datetime as dt
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from atlas_dagster.orchestration.definitions import connection_check as check
from atlas_dagster.runners.base import ConnectorCommand
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster_tests.orchestration.connections import declare_shop, define, found
from atlas_dagster_tests.orchestration.fake_runs import EVENTS, FakeRuns, Piece
from atlas_dagster_tests.orchestration.instances import sqlite_instance
from atlas_dagster_tests.sync.fake_source import line, records, status

KEY = dg.AssetKey(["shop", "events"])
OUTPUT = [records("events", [1]), status("events")]
#: Dagster's own ways to start a run of a stream, each as a job or a condition.
ASSETS_JOB = dg.define_asset_job("nightly", dg.AssetSelection.assets(KEY))
NIGHTLY = dg.ScheduleDefinition(job=ASSETS_JOB, cron_schedule="0 3 * * *")


def scheduled(runs: FakeRuns) -> bool:
    """By a schedule of the user's own."""
    defs = dg.Definitions.merge(
        runs.definitions, dg.Definitions(jobs=[ASSETS_JOB], schedules=[NIGHTLY])
    )
    at = dt.datetime(2024, 5, 1, 3, tzinfo=dt.UTC)
    with dg.build_schedule_context(instance=runs.instance, scheduled_execution_time=at) as context:
        tick = defs.resolve_schedule_def("nightly_schedule").evaluate_tick(context)
    (request,) = tick.run_requests or ()
    job = defs.resolve_job_def("nightly")
    result = job.execute_in_process(
        instance=runs.instance, tags=dict(request.tags), raise_on_error=False
    )
    return result.success


def automated(runs: FakeRuns) -> bool:
    """By an automation condition on the stream."""
    condition = dg.AutomationCondition.missing()
    defs = runs.definitions.map_resolved_asset_specs(
        func=lambda spec: spec.replace_attributes(automation_condition=condition),
        selection=dg.AssetSelection.assets(KEY),
    )
    asked = dg.evaluate_automation_conditions(defs, runs.instance)
    assert asked.get_num_requested(KEY) == 1
    job = defs.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=runs.instance, asset_selection=[KEY], raise_on_error=False
    )
    return result.success


def by_hand(runs: FakeRuns) -> bool:
    return runs.run(*OUTPUT).success


WAYS = pytest.mark.parametrize("start", [by_hand, scheduled, automated])


@pytest.mark.slow
@WAYS
def test_a_run_checks_first_unless_one_passed_lately(
    runs: FakeRuns, start: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(start)
    runs.output = OUTPUT
    assert start(runs)
    assert [command.verb for command in runs.runner.commands] == ["check", "read"]
    assert by_hand(runs)
    assert [command.verb for command in runs.runner.commands] == ["check", "read", "read"]
    monkeypatch.setattr(check, "_FRESH_SECONDS", 0)
    assert by_hand(runs)
    assert [command.verb for command in runs.runner.commands][3:] == ["check", "read"]


@pytest.mark.slow
@WAYS
def test_a_failed_check_never_starts_a_read(runs: FakeRuns, start: object) -> None:
    assert callable(start)
    refused = {"status": "FAILED", "message": "bad password"}

    def script(command: ConnectorCommand) -> Iterator[Piece]:
        yield line("CONNECTION_STATUS", connectionStatus=refused)

    runs.runner.script = script
    assert not start(runs)
    assert {command.verb for command in runs.runner.commands} == {"check"}
    assert not runs.lake.exists()
    record = runs.instance.get_latest_asset_check_evaluation_record(
        check.check_key(runs.connection)
    )
    assert record is not None
    assert record.status.value == "FAILED"


@pytest.mark.slow
def test_a_check_that_hangs_is_killed_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "pid"
    program = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    connection = declare_shop(
        image=None,
        command=[sys.executable, "-c", program],
        executor=ExecutorConfig(check_timeout_seconds=2),
    )
    monkeypatch.setattr(check.time, "sleep", lambda _: None)
    defs = define(connection, found(connection, [EVENTS]), lake=tmp_path / "lake")
    key = check.check_key(connection)
    job = dg.define_asset_job("check", dg.AssetSelection.checks(key))
    started = time.monotonic()
    with sqlite_instance() as instance:
        whole = dg.Definitions.merge(defs, dg.Definitions(jobs=[job]))
        result = whole.resolve_job_def("check").execute_in_process(
            instance=instance, raise_on_error=False
        )
    (evaluation,) = result.get_asset_check_evaluations()
    assert not evaluation.passed
    assert "did not finish check within 2 seconds" in (evaluation.description or "")
    assert time.monotonic() - started < 120  # of 600, with all its tries
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)
