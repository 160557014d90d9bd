"""The checks that a sync makes of its streams."""

from typing import Any

import dagster as dg
import pytest

from atlas_dagster.destinations.delta.destination import DeltaDestination
from atlas_dagster.orchestration.definitions.stream_checks import (
    describe_schema_changes,
    describe_unusual_count,
)
from atlas_dagster_tests.orchestration.fake_runs import EVENTS, FakeRuns
from atlas_dagster_tests.sync.fake_source import global_state, line, record, records, state, status

pytestmark = [pytest.mark.slow, pytest.mark.dagster]

WARN, ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR
OVERWRITE = {"sync_mode": "full_refresh", "destination_sync_mode": "overwrite"}
DONE = status("events")


def load(runs: FakeRuns, *ids: int) -> Any:
    return runs.run(records("events", ids), state("events", {"at": ids}, count=len(ids)), DONE)


def said(check: dg.AssetCheckEvaluation) -> tuple[bool, dg.AssetCheckSeverity, str | None]:
    return check.passed, check.severity, check.description


# Records


def test_as_many_came_as_the_source_counted(runs: FakeRuns) -> None:
    check = load(runs, 1, 2).checks["events.records"]
    assert (check.passed, check.description) == (
        True,
        "2 records read; matches the source's count.",
    )


def test_a_source_that_does_not_count_is_believed(runs: FakeRuns) -> None:
    check = runs.run(records("events", [1]), state("events", {}), DONE).checks["events.records"]
    assert (check.passed, check.description) == (True, "1 record read.")


def test_a_count_that_disagrees_fails_check_and_stream(runs: FakeRuns) -> None:
    ran = runs.run(records("events", [1, 2]), state("events", {"at": 3}, count=3), DONE)

    assert not ran.success
    assert ran.metadata == {}
    passed, severity, description = said(ran.checks["events.records"])
    assert (passed, severity) == (False, ERROR)
    assert "its state counts 3 records before it, but Atlas received 2" in (description or "")


def test_records_after_the_last_state_are_a_warning(runs: FakeRuns) -> None:
    output = records("events", [1]), state("events", {}), records("events", [2]), DONE
    passed, severity, description = said(runs.run(*output).checks["events.records"])
    assert (passed, severity) == (False, WARN)
    assert "1 records came after the stream's last state" in (description or "")


def test_far_fewer_records_than_usual_are_a_warning(runs: FakeRuns) -> None:
    runs.select(**OVERWRITE)
    for count in (100, 101, 102, 103, 104, 105, 106):
        assert load(runs, *range(count)).checks["events.records"].passed
    passed, severity, description = said(load(runs, 1, 2).checks["events.records"])
    assert (passed, severity) == (False, WARN)
    assert description is not None
    assert description.endswith("This is fewer than usual: 103 (median of the last 7 syncs).")


@pytest.mark.parametrize(
    ("records", "recent", "odd"),
    [
        (10, [100] * 6, None),  # little history
        (10, [100] * 7, "fewer"),
        (0, [100] * 7, "fewer"),
        (51, [100] * 7, None),
        (199, [100] * 7, None),
        (200, [100] * 7, "more"),
        (5000, [0] * 20, None),  # mostly nothing
        (0, [100] * 10 + [0], None),  # seen before
        (900, [10, 200, 40, 500, 90, 700, 20, 300], None),  # anything goes
        (10**6, [10, 200, 40, 500, 90, 700, 20, 300], "more"),
        (300, [100, 110, 95, 105, 90, 2000, 98, 102], None),  # within what was seen
    ],
)
def test_unusual_is_what_stands_out_of_enough_history(
    records: int, recent: list[int], odd: str | None
) -> None:
    told = describe_unusual_count(records, recent)
    assert (told is None) if odd is None else (told is not None and odd in told)


def test_a_stream_read_from_the_beginning_is_compared_with_nothing(runs: FakeRuns) -> None:
    for number in range(9):
        load(runs, number)
    runs.output = ()
    ran = runs.run(
        records("events", range(500)), state("events", {}, count=500), DONE, refresh="remove"
    )
    assert ran.checks["events.records"].passed


# Primary key


def test_a_key_that_comes_twice_is_an_error_where_rows_are_overwritten(runs: FakeRuns) -> None:
    runs.select(**OVERWRITE)
    ran = load(runs, 1, 2, 2, 3, 2)

    assert said(ran.checks["events.primary_key"]) == (
        False,
        ERROR,
        "2 rows have the primary key (id) of another row. All are kept; to keep only "
        "the newest of each key, use destination_sync_mode: append_dedup.",
    )
    assert ran.success
    assert ran.metadata["events"]["dagster/row_count"] == 5
    assert load(runs, 1, 2, 3).checks["events.primary_key"].passed


def test_what_is_downstream_of_replaced_rows_does_not_rely_on_their_key(runs: FakeRuns) -> None:
    runs.select(**OVERWRITE)

    @dg.asset(deps=[dg.AssetKey(["shop", "events"])])
    def report() -> None: ...

    output = state("events", {}), DONE
    ran = runs.run(records("events", [1, 1]), *output, more=[report])
    assert ran.success
    assert list(ran.metadata) == ["events", "report"]
    assert not ran.checks["events.primary_key"].passed


def test_merged_rows_are_unique_without_looking(
    runs: FakeRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeltaDestination, "count_duplicates", lambda *_: 1 / 0)
    check = load(runs, 1, 2, 2).checks["events.primary_key"]
    assert (check.passed, check.description) == (True, "All rows have a primary key (id).")


@pytest.mark.parametrize("mode", ["append_dedup", "append"])
def test_records_without_a_key_are_a_warning(runs: FakeRuns, mode: str) -> None:
    runs.select(sync_mode="incremental", destination_sync_mode=mode)
    none = line("RECORD", record={"stream": "events", "data": {"v": "x"}, "emitted_at": 1})
    ran = runs.run(record("events", 1), none, none, state("events", {}), DONE)
    assert said(ran.checks["events.primary_key"]) == (
        False,
        WARN,
        "2 rows have no value in a field of the primary key (id); each is kept as a separate "
        "row. To stop the stream instead, use null_keys: refuse.",
    )


def test_a_key_that_does_not_fit_its_column_is_a_key(runs: FakeRuns) -> None:
    ran = runs.run(record("events", 2**64), record("events", 1), state("events", {}), DONE)
    assert said(ran.checks["events.primary_key"])[0]


@pytest.mark.parametrize("mode", ["append_dedup", "append"])
def test_records_without_a_key_stop_a_stream_that_refuses_them(runs: FakeRuns, mode: str) -> None:
    runs.select(sync_mode="incremental", destination_sync_mode=mode, null_keys="refuse")
    none = line("RECORD", record={"stream": "events", "data": {"v": "x"}, "emitted_at": 1})
    first = record("events", 1), state("events", {"at": 1}), DONE
    assert runs.run(*first).success
    ran = runs.run(record("events", 2), none, state("events", {"at": 2}), DONE)
    assert not ran.success
    assert ran.metadata == {}
    assert "sent a record without a value in its primary key (id)" in ran.failure
    again = runs.run(record("events", 3), state("events", {"at": 3}), DONE)
    assert again.success
    assert again.metadata["events"]["dagster/row_count"] == 2


def test_versions_that_come_late_are_counted(runs: FakeRuns) -> None:
    at = {"json_schema": {"properties": {"id": {"type": "integer"}, "at": {"type": "integer"}}}}
    runs.streams = [{**EVENTS, **at, "default_cursor_field": ["at"]}]
    versions = [{"id": 1, "at": at} for at in (5, 3, 4)]
    sent = [
        line("RECORD", record={"stream": "events", "data": data, "emitted_at": 1})
        for data in versions
    ]
    check = runs.run(*sent, state("events", {}), DONE).checks["events.primary_key"]
    assert check.passed
    assert (check.description or "").endswith(
        "2 versions arrived late: a newer version of the key was already in the table."
    )
    assert check.metadata["atlas/late_versions"].value == 2


def test_a_sync_of_nothing_looks_at_nothing(
    runs: FakeRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.select(**OVERWRITE)
    monkeypatch.setattr(DeltaDestination, "count_duplicates", lambda *_: 1 / 0)
    check = runs.run(DONE).checks["events.primary_key"]
    assert (check.passed, check.description) == (True, "No new rows to check.")


def test_a_check_that_cannot_be_made_never_fails_the_sync(
    runs: FakeRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.select(**OVERWRITE)
    monkeypatch.setattr(DeltaDestination, "count_duplicates", lambda *_: 1 / 0)
    ran = load(runs, 1)
    assert ran.success
    passed, severity, description = said(ran.checks["events.primary_key"])
    assert (passed, severity) == (False, WARN)
    assert description == "The check failed with an error: division by zero"


# Schema


def with_fields(**fields: str) -> dict[str, Any]:
    properties = {name: {"type": kind} for name, kind in fields.items()}
    return {**EVENTS, "json_schema": {"properties": properties}}


def test_fields_that_come_go_and_change_are_told_once(runs: FakeRuns) -> None:
    first = load(runs, 1).checks["events.schema"]
    assert (first.passed, first.description) == (True, "No earlier sync to compare with.")
    same = load(runs, 2).checks["events.schema"]
    assert (same.passed, same.description) == (True, "No changes since the last sync.")

    runs.streams = [with_fields(id="integer", v="integer", more="string", other="boolean")]
    assert said(load(runs, 3).checks["events.schema"]) == (
        False,
        WARN,
        "Since the last sync: v (string) became v_integer (integer); added: more (string), "
        "other (boolean). The table has been adapted.",
    )
    assert load(runs, 4).checks["events.schema"].passed
    runs.streams = [with_fields(id="integer", v="integer")]
    description = load(runs, 5).checks["events.schema"].description
    assert description is not None
    assert "removed: more (string), other (boolean)" in description


def test_where_rows_are_overwritten_a_column_changes_in_its_place() -> None:
    before = dg.TableSchema([dg.TableColumn("v", "string"), dg.TableColumn("id", "integer")])
    now = dg.TableSchema([dg.TableColumn("v", "date"), dg.TableColumn("id", "integer")])
    assert list(describe_schema_changes(before, now)) == ["v (string) became date"]
    assert list(describe_schema_changes(now, now)) == []


def test_a_type_that_changes_again() -> None:
    """Regression: shown as one column gone and another added."""
    kinds = {"x": "integer", "x_string": "string", "x_boolean": "boolean"}
    tables = [dg.TableSchema([dg.TableColumn(name, kind)]) for name, kind in kinds.items()]
    seen = [
        *describe_schema_changes(tables[1], tables[2]),
        *describe_schema_changes(tables[2], tables[0]),
    ]
    assert seen == [
        "x_string (string) became x_boolean (boolean)",
        "x_boolean (boolean) became x (integer)",
    ]


def test_a_breaking_change_is_an_error_and_the_stream_is_not_read(runs: FakeRuns) -> None:
    load(runs, 1)
    runs.streams = [{**with_fields(v="string"), "source_defined_primary_key": [["v"]]}]

    ran = load(runs, 2)

    assert not ran.success
    passed, severity, description = said(ran.checks["events.schema"])
    assert (passed, severity) == (False, ERROR)
    assert description == f"Breaking: {ran.failure}"
    assert "refresh the stream" in ran.failure


# Which checks are recorded


def test_streams_read_along_are_checked_too(runs: FakeRuns) -> None:
    runs.streams = [EVENTS, {**EVENTS, "name": "others"}]
    shared = global_state({"lsn": 1}, {}, count=3)
    both = records("events", [1, 2]) + records("others", [1]), shared, DONE + status("others")
    runs.run(*both)

    ran = runs.run(*both, only=["events"])

    assert sorted(ran.metadata) == ["events", "others"]
    names = ("primary_key", "records", "schema")
    assert {key for key in ran.checks if "source" not in key} == {
        f"{stream}.{name}" for stream in ("events", "others") for name in names
    }
    assert all(check.passed for check in ran.checks.values())


def test_only_checks_that_were_asked_for_are_made(runs: FakeRuns) -> None:
    runs.output = [records("events", [1]), DONE]
    key = dg.AssetKey(["shop", "events"])
    job = dg.define_asset_job(
        "some",
        dg.AssetSelection.assets(key).without_checks()
        | dg.AssetSelection.checks(dg.AssetCheckKey(key, "schema")),
    )
    defs = dg.Definitions.merge(runs.definitions, dg.Definitions(jobs=[job]))
    result = defs.resolve_job_def("some").execute_in_process(instance=runs.instance)
    made = {each.check_name for each in result.get_asset_check_evaluations()}
    assert made == {"schema", "connection"}  # the latter by the sync itself


def test_checks_alone_say_what_the_last_sync_found(runs: FakeRuns) -> None:
    key = dg.AssetKey(["shop", "events"])
    job = dg.define_asset_job("some", dg.AssetSelection.checks_for_assets(key))
    defs = dg.Definitions.merge(runs.definitions, dg.Definitions(jobs=[job]))

    def execute() -> dict[str | None, tuple[bool, str | None]]:
        result = defs.resolve_job_def("some").execute_in_process(instance=runs.instance)
        assert result.success
        made = result.get_asset_check_evaluations()
        return {each.check_name: (each.passed, each.description) for each in made}

    told = "A sync evaluates this check, and the stream was never synced; materialize shop/events."
    assert execute() == dict.fromkeys(("records", "primary_key", "schema"), (False, told))
    runs.run(records("events", [1]), state("events", {}), records("events", [2]), DONE)
    read = len(runs.runner.commands)
    for _ in range(2):
        found = execute()
        assert found["schema"] == (
            True,
            "As of the last sync: No earlier sync to compare with.",
        )
        assert not found["records"][0]
    assert len(runs.runner.commands) == read
