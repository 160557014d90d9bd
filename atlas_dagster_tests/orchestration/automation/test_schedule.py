"""The sensor of a schedule, tick by tick, with a clock of its own."""

import datetime as dt
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.events import StepMaterializationData
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.test_utils import create_run_for_test

from atlas_dagster.orchestration.automation import schedule
from atlas_dagster.orchestration.definitions.connection_check import check_key
from atlas_dagster_tests.orchestration.connections import declare_shop, define

pytestmark = pytest.mark.dagster

QUARTERLY = "*/15 * * * *"
CHECK = check_key(declare_shop())
USERS, ORDERS = dg.AssetKey(["shop", "users"]), dg.AssetKey(["shop", "sales", "orders"])
STREAMS = {USERS, ORDERS}
CHECKS = {
    CHECK,
    *(dg.AssetCheckKey(USERS, name) for name in ("records", "primary_key", "schema")),
    *(dg.AssetCheckKey(ORDERS, name) for name in ("records", "schema")),
}
UNFINISHED = ["QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING"]
#: Dagster queues no run without knowing where its job comes from.
ORIGIN = RemoteJobOrigin(
    RemoteRepositoryOrigin(
        RegisteredCodeLocationOrigin(location_name="atlas_dagster"), "__repository__"
    ),
    "__ASSET_JOB",
)


def at(clock: str, day: int = 1) -> dt.datetime:
    return dt.datetime.fromisoformat(f"2024-05-{day:02}T{clock}:00+00:00")


@dataclass
class Ticking:
    """A sensor, its cursor fed back, and the time it is."""

    instance: dg.DagsterInstance
    now: dt.datetime = field(default_factory=lambda: at("12:07"))
    cursor: str | None = None
    defs: dg.Definitions = field(default_factory=lambda: define(declare_shop(), schedule=QUARTERLY))

    def tick(self, now: dt.datetime | None = None) -> SensorExecutionData:
        self.now = now or self.now
        sensor = self.defs.resolve_sensor_def("shop__schedule")
        with dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, definitions=self.defs
        ) as context:
            result = sensor.evaluate_tick(context)
        self.cursor = result.cursor
        return result

    def checked(self, *, passed: bool) -> None:
        self.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(asset_key=CHECK.asset_key, check_name=CHECK.name, passed=passed)
        )


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ticking]:
    with dg.DagsterInstance.ephemeral() as instance:
        ticking = Ticking(instance)
        monkeypatch.setattr(schedule, "_now", lambda: ticking.now)
        yield ticking


@pytest.fixture
def started(ticking: Ticking) -> Ticking:
    """One whose first tick, at 12:07, is over."""
    ticking.tick()
    return ticking


def only(result: SensorExecutionData) -> dg.RunRequest:
    """The one request of a tick."""
    assert result.run_requests is not None
    assert len(result.run_requests) == 1, result.run_requests
    return result.run_requests[0]


def is_check_alone(request: dg.RunRequest) -> bool:
    return request.asset_selection == [] and request.asset_check_keys == [CHECK]


def is_sync(request: dg.RunRequest) -> bool:
    checks = set(request.asset_check_keys or ())
    return set(request.asset_selection or ()) == STREAMS and checks == CHECKS


def test_the_first_tick_starts_nothing(ticking: Ticking) -> None:
    result = ticking.tick(at("12:07"))

    assert result.run_requests == []
    assert result.skip_message == "The schedule starts now; next at 2024-05-01 12:15 UTC."
    assert json.loads(ticking.cursor or "")["handled"] == "2024-05-01T12:00:00+00:00"


def test_nothing_before_the_time(started: Ticking) -> None:
    result = started.tick(at("12:14"))

    assert result.run_requests == []
    assert result.skip_message == "Not due; next at 2024-05-01 12:15 UTC."


def test_at_the_time_check_and_sync_are_one_run(started: Ticking) -> None:
    request = only(started.tick(at("12:15")))

    assert is_sync(request)
    assert request.run_key == "shop:2024-05-01T12:15:00+00:00"
    assert request.tags["atlas/connection"] == "shop"
    again = started.tick(at("12:16"))
    assert again.run_requests == []
    assert again.skip_message == "Not due; next at 2024-05-01 12:30 UTC."


@pytest.mark.parametrize("status", UNFINISHED)
def test_waits_for_the_run_under_way_and_then_syncs_once(started: Ticking, status: str) -> None:
    run = create_run_for_test(
        started.instance,
        status=dg.DagsterRunStatus[status],
        tags={"atlas/connection": "shop"},
        remote_job_origin=ORIGIN,
    )
    waiting = [started.tick(at("12:15")), started.tick(at("12:31"))]

    assert [result.run_requests for result in waiting] == [[], []]
    assert waiting[1].skip_message == "A run of shop is queued or running; waiting for it."
    started.instance.report_run_failed(run)
    assert only(started.tick(at("12:32"))).run_key == "shop:2024-05-01T12:30:00+00:00"
    assert started.tick(at("12:33")).run_requests == []


def test_runs_of_other_connections_and_ended_ones_do_not_count(started: Ticking) -> None:
    create_run_for_test(
        started.instance,
        status=dg.DagsterRunStatus.STARTED,
        tags={"atlas/connection": "other"},
    )
    for status in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE):
        create_run_for_test(started.instance, status=status, tags={"atlas/connection": "shop"})

    assert is_sync(only(started.tick(at("12:15"))))


def test_after_three_days_of_downtime_exactly_one_run(started: Ticking) -> None:
    request = only(started.tick(at("09:20", day=4)))

    assert request.run_key == "shop:2024-05-04T09:15:00+00:00"
    after = started.tick(at("09:21", day=4))
    assert after.run_requests == []
    assert after.skip_message == "Not due; next at 2024-05-04 09:30 UTC."


@pytest.mark.slow
def test_while_check_fails_it_is_asked_alone_and_ever_more_rarely(started: Ticking) -> None:
    started.checked(passed=False)
    minutes = []
    for minute in range(0, 30 * 60, 5):
        for request in started.tick(at("12:15") + dt.timedelta(minutes=minute)).run_requests or []:
            assert is_check_alone(request)
            minutes.append(minute)
            started.checked(passed=False)

    # 1, 2, 4 … quarters of an hour apart, six hours at most.
    gaps = [later - earlier for earlier, later in itertools.pairwise(minutes)]
    assert minutes[0] == 0
    assert gaps == [15, 30, 60, 120, 240, 360, 360, 360]


def test_check_runs_have_run_keys_of_their_own(started: Ticking) -> None:
    started.checked(passed=False)

    keys = [only(started.tick(at(clock))).run_key for clock in ("12:15", "12:30", "13:00")]
    assert keys == [
        "shop:check:2024-05-01T12:15:00+00:00",
        "shop:check:2024-05-01T12:30:00+00:00",
        "shop:check:2024-05-01T13:00:00+00:00",
    ]


def test_between_the_tries_it_says_when_the_next_one_is(started: Ticking) -> None:
    started.checked(passed=False)
    for clock in ("12:15", "12:30"):
        started.tick(at(clock))

    for clock in ("12:31", "12:45", "12:59"):
        result = started.tick(at(clock))
        assert result.run_requests == []
        assert result.skip_message == (
            "The last CHECK failed; the next one is at 2024-05-01 13:00 UTC."
        )


def test_a_rare_schedule_never_checks_more_rarely_than_it_would_sync(ticking: Ticking) -> None:
    ticking.defs = define(declare_shop(), schedule="0 3 * * *")
    ticking.tick()
    ticking.checked(passed=False)

    tries = [
        day
        for day in range(2, 8)
        for request in ticking.tick(at("03:00", day)).run_requests or []
        if is_check_alone(request)
    ]
    assert tries == [2, 3, 4, 5, 6, 7]


def test_months_of_failing_are_survived(started: Ticking) -> None:
    started.checked(passed=False)
    handled = at("12:00").isoformat()
    started.cursor = json.dumps({"handled": handled, "failures": 5000, "retry_at": handled})

    assert is_check_alone(only(started.tick(at("12:15"))))
    assert started.tick(at("12:16")).skip_message == (
        "The last CHECK failed; the next one is at 2024-05-01 18:15 UTC."
    )


def test_once_check_passes_it_syncs_at_once_and_then_as_usual(started: Ticking) -> None:
    started.checked(passed=False)
    for clock in ("12:15", "12:30"):
        started.tick(at(clock))
    started.checked(passed=True)

    request = only(started.tick(at("12:41")))

    assert is_sync(request)
    assert request.run_key == "shop:2024-05-01T12:30:00+00:00:recovered"
    quiet = started.tick(at("12:42"))
    assert quiet.run_requests == []
    assert quiet.skip_message == "Not due; next at 2024-05-01 12:45 UTC."
    assert only(started.tick(at("12:45"))).run_key == "shop:2024-05-01T12:45:00+00:00"


def test_after_a_recovery_patience_starts_anew(started: Ticking) -> None:
    started.checked(passed=False)
    for clock in ("12:15", "12:30", "13:00"):
        started.tick(at(clock))
    started.checked(passed=True)
    started.tick(at("13:05"))
    started.checked(passed=False)

    assert is_check_alone(only(started.tick(at("13:15"))))
    assert started.tick(at("13:16")).skip_message == (
        "The last CHECK failed; the next one is at 2024-05-01 13:30 UTC."
    )


def test_a_connection_never_checked_gets_the_benefit_of_the_doubt(started: Ticking) -> None:
    assert is_sync(only(started.tick(at("12:15"))))


def failed_sync(ticking: Ticking, **tags: str) -> dg.DagsterRun:
    """A run that failed now, for a reason that may pass."""
    told = {"atlas/schedule": "shop", "atlas/failure_type": "transient_error", **tags}
    run = create_run_for_test(
        ticking.instance,
        status=dg.DagsterRunStatus.STARTED,
        tags=told,
        remote_job_origin=ORIGIN,
        asset_selection=frozenset(STREAMS),
    )
    ticking.instance.report_run_failed(run)
    [record] = ticking.instance.get_run_records(dg.RunsFilter(run_ids=[run.run_id]))
    assert record.end_time is not None
    ended = dt.datetime.fromtimestamp(record.end_time, dt.UTC)
    ticking.cursor = json.dumps({"handled": ended.isoformat()})
    ticking.now = ended
    return run


def yearly(ticking: Ticking) -> Ticking:
    ticking.defs = define(declare_shop(), schedule="0 0 1 1 *")
    return ticking


def test_a_sync_that_failed_for_a_while_is_tried_again_before_its_time(ticking: Ticking) -> None:
    failed = failed_sync(yearly(ticking))
    ended = ticking.now

    waiting = ticking.tick(ended + dt.timedelta(seconds=60))
    assert waiting.run_requests == []
    assert waiting.skip_message is not None
    assert "failed with a transient error; it is retried at" in waiting.skip_message
    request = only(ticking.tick(ended + dt.timedelta(seconds=91)))
    assert is_sync(request)
    assert request.tags["atlas/tries_without_progress"] == "1"
    assert request.tags["atlas/root_run"] == failed.run_id
    assert request.run_key == f"shop:{ended.isoformat()}:try1"


def test_the_next_try_waits_longer_and_the_last_one_is_the_last(ticking: Ticking) -> None:
    tries = {"atlas/tries": "1", "atlas/tries_without_progress": "1"}
    failed_sync(yearly(ticking), **tries)
    assert ticking.tick(ticking.now + dt.timedelta(seconds=269)).run_requests == []
    assert is_sync(only(ticking.tick(ticking.now + dt.timedelta(seconds=2))))

    tries = {"atlas/tries": "5", "atlas/tries_without_progress": "5"}
    failed_sync(ticking, **tries)
    assert "Not due" in (ticking.tick(ticking.now + dt.timedelta(days=1)).skip_message or "")


def test_streams_that_the_failed_run_finished_are_not_done_again(ticking: Ticking) -> None:
    run = failed_sync(yearly(ticking))
    finished = dg.AssetKey(["shop", "users"])
    ticking.instance.report_dagster_event(
        dg.DagsterEvent(
            event_type_value="ASSET_MATERIALIZATION",
            job_name=run.job_name,
            event_specific_data=StepMaterializationData(dg.AssetMaterialization(finished)),
        ),
        run_id=run.run_id,
    )

    request = only(ticking.tick(ticking.now + dt.timedelta(seconds=91)))

    assert set(request.asset_selection or ()) == STREAMS - {finished}
    assert set(request.asset_check_keys or ()) == {c for c in CHECKS if c.asset_key != finished}


def test_a_failure_that_will_not_pass_waits_for_the_next_time(ticking: Ticking) -> None:
    failed_sync(yearly(ticking), **{"atlas/failure_type": "config_error"})
    assert "Not due" in (ticking.tick(ticking.now + dt.timedelta(days=1)).skip_message or "")


def test_a_run_started_in_the_ui_is_waited_for_and_another_connections_is_not(
    started: Ticking,
) -> None:
    for key in (dg.AssetKey(["shop", "users"]), dg.AssetKey(["other", "users"])):
        by_hand = create_run_for_test(
            started.instance,
            status=dg.DagsterRunStatus.STARTED,
            asset_selection=frozenset({key}),
        )
        result = started.tick(at("12:15"))
        assert bool(result.run_requests) == (key.path[0] == "other")
        started.instance.report_run_failed(by_hand)


def test_a_maintenance_after_a_failed_sync_does_not_take_its_next_try_away(
    ticking: Ticking,
) -> None:
    failed_sync(yearly(ticking))
    create_run_for_test(
        ticking.instance,
        status=dg.DagsterRunStatus.SUCCESS,
        tags={"atlas/connection": "shop"},
    )
    assert is_sync(only(ticking.tick(ticking.now + dt.timedelta(seconds=91))))
