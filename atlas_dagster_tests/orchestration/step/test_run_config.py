"""The options of one run: refresh and state of single streams, and the dry run."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from msgspec import Raw

from atlas_dagster.errors import AtlasError
from atlas_dagster.orchestration.definitions.connection_check import check_key
from atlas_dagster.orchestration.step.run_config import SyncConfig, parse_run_config
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster_tests.orchestration.fake_runs import EVENTS, FakeRuns
from atlas_dagster_tests.sync.fake_source import (
    incremental,
    records,
    state,
    status,
)

pytestmark = pytest.mark.slow

A, B = incremental("a"), incremental("b", namespace="sales")
NAME, OTHER = A.descriptor, B.descriptor
OTHERS = {**EVENTS, "name": "others"}
BOTH = status("events") + status("others")


def read(**config: Any) -> Any:
    names = [NAME, OTHER]
    return parse_run_config("shop", [A, B], names, SyncConfig(**config))


def values(states: Any) -> dict[StreamDescriptor, Any]:
    return {name: json.loads(bytes(blob)) for name, blob in states.items()}


# What they say


def test_a_refresh_is_of_all_selected_streams_but_for_those_with_their_own() -> None:
    given = read(refresh="remove", streams={"sales.b": {"refresh": "retain"}})
    found = {name: how.value for name, how in given.refreshes.items()}
    assert found == {NAME: "remove", OTHER: "retain"}
    assert read(streams={"a": {"refresh": "remove"}}).refreshes.keys() == {NAME}


def test_a_state_is_yaml_or_json_in_a_text() -> None:
    given = read(streams={"a": {"state": {"id": 5}}, "sales.b": {"state": '{"id": 1.50}'}})
    assert values(given.states) == {NAME: {"id": 5}, OTHER: {"id": 1.5}}
    assert given.states[OTHER] == Raw(b'{"id": 1.50}')


def test_a_state_of_the_whole_connection_is_a_state_file() -> None:
    file = [{"type": "GLOBAL", "global": {"shared_state": {"lsn": 7}, "stream_states": []}}]
    for content in (file, json.dumps(file)):
        whole = read(state=content).whole_state
        assert (whole.type, json.loads(bytes(whole.shared))) == ("GLOBAL", {"lsn": 7})


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"streams": {"c": {}}}, "Connection 'shop' has no stream 'c'; it has a, sales.b."),
        (
            {"refresh": "remove", "streams": {"a": {"state": {}}}},
            "Stream 'a' cannot be read from the beginning and from a state; give it refresh or "
            "state, not both.",
        ),
        (
            {"state": [{"type": "LEGACY", "data": {}}], "streams": {"a": {"state": {}}}},
            "A state of the connection cannot be combined with refresh or with the state of a "
            "stream; use one of them.",
        ),
        ({"state": []}, "The state is empty; to read from the beginning, use refresh."),
    ],
)
def test_what_makes_no_sense_is_said_in_one_sentence(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(AtlasError) as refused:
        read(**config)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("config", "start"),
    [
        ({"streams": {"a": {"state": "{nope"}}}, "The state of stream 'a' is not valid JSON ("),
        ({"state": [1]}, "The state is not the content of an Airbyte state file ("),
    ],
)
def test_what_cannot_be_read_is_said_in_one_sentence(config: dict[str, Any], start: str) -> None:
    with pytest.raises(AtlasError) as refused:
        read(**config)
    assert str(refused.value).startswith(start)


def test_options_of_a_stream_that_is_not_selected_are_refused() -> None:
    with pytest.raises(AtlasError, match="'a'"):
        parse_run_config("shop", [A, B], [OTHER], SyncConfig.model_validate({"streams": {"a": {}}}))


# What they do


def test_one_stream_is_read_again_and_the_other_goes_on(runs: FakeRuns) -> None:
    runs.streams = [EVENTS, OTHERS]
    both = (
        *(records(name, [1, 2]) + state(name, {"at": 2}) for name in ("events", "others")),
        BOTH,
    )
    runs.run(*both)

    ran = runs.run(*both, streams={"events": {"refresh": "remove"}})

    assert ran.success
    sent = json.loads(runs.sent("state") or b"")
    assert [each["stream"]["stream_descriptor"]["name"] for each in sent] == ["others"]
    assert ran.metadata["events"]["atlas/cursor_before"] == "none"
    assert ran.metadata["others"]["atlas/cursor_before"] == {"at": 2}


def test_a_stream_reads_on_from_a_state_that_is_given(runs: FakeRuns) -> None:
    runs.run(records("events", [1, 2, 3]), state("events", {"at": 3}), status("events"))

    ran = runs.run(
        records("events", [2, 3]),
        state("events", {"at": 3}),
        status("events"),
        streams={"events": {"state": {"at": 1}}},
    )

    assert b'"stream_state":{"at":1}' in (runs.sent("state") or b"")
    assert ran.metadata["events"]["atlas/cursor_before"] == {"at": 1}
    assert ran.metadata["events"]["dagster/row_count"] == 3


def test_a_wrong_option_is_told_before_anything_runs(runs: FakeRuns) -> None:
    ran = runs.run(streams={"evnts": {"refresh": "remove"}})
    assert ran.failure == "Connection 'shop' has no stream 'evnts'; it has events."
    assert runs.runner.commands == []


# The dry run


def everything_in(lake: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in lake.rglob("*") if file.is_file()}


def test_a_dry_run_of_a_first_sync_writes_nothing(runs: FakeRuns) -> None:
    ran = runs.run(records("events", [1, 2]), state("events", {}), status("events"), dry_run=True)

    assert ran.success
    assert ran.metadata == {}
    assert not runs.lake.exists()
    told = ran.observations["events"]
    assert told["atlas/dry_run"] == (
        "**Dry run: nothing was written.**\n\n"
        "A sync (incremental | append_dedup) would read from the beginning, and keep the newest "
        "row of each primary key.\n\n"
        "2 records read and discarded; there are no more."
    )
    assert [row.data["id"] for row in told["atlas/preview"].records] == ["1", "2"]
    assert any("See the assets events" in message for message in ran.log)


def test_a_dry_run_checks_the_source(runs: FakeRuns) -> None:
    runs.run(status("events"), dry_run=True)
    assert [command.verb for command in runs.runner.commands] == ["check", "read"]
    record = runs.instance.get_latest_asset_check_evaluation_record(check_key(runs.connection))
    assert record is not None


def test_a_dry_run_says_where_it_would_go_on_and_leaves_all_as_it_is(runs: FakeRuns) -> None:
    runs.run(records("events", [1]), state("events", {"at": 1}), status("events"))
    before = everything_in(runs.lake)

    ran = runs.run(records("events", range(3000)), status("events"), dry_run=True)

    assert everything_in(runs.lake) == before
    told = ran.observations["events"]["atlas/dry_run"]
    assert r'would resume from \{"at": 1\}' in told
    assert "there may be more." in told
    after = runs.run(state("events", {"at": 1}), status("events"))
    assert after.metadata["events"]["atlas/cursor_before"] == {"at": 1}


@pytest.mark.parametrize(
    ("options", "would"),
    [
        ({"refresh": "remove"}, "read from the beginning, and replace the rows of the table when"),
        ({"refresh": "retain"}, "read from the beginning, and keep the newest row"),
        ({"streams": {"events": {"state": {"at": 7}}}}, r'resume from \{"at": 7\}'),
    ],
)
def test_a_dry_run_with_options_tells_what_they_would_do(
    runs: FakeRuns, options: dict[str, Any], would: str
) -> None:
    runs.run(records("events", [1]), state("events", {"at": 1}), status("events"))
    before = everything_in(runs.lake)
    ran = runs.run(records("events", [1]), status("events"), dry_run=True, **options)
    assert would in ran.observations["events"]["atlas/dry_run"]
    assert everything_in(runs.lake) == before


def test_a_dry_run_that_cannot_be_read_fails_like_the_sync_would(runs: FakeRuns) -> None:
    ran = runs.run(records("events", [1]), 1, dry_run=True)
    assert not ran.success
    assert "ended with exit code 1" in ran.failure


def test_a_dry_run_shows_why_a_sync_would_not_complete_a_stream(runs: FakeRuns) -> None:
    ran = runs.run(records("events", [1]), state("events", {}, count=2), dry_run=True)
    told = ran.observations["events"]["atlas/dry_run"]
    assert "its state counts 2 records before it, but Atlas received 1" in told
    assert "there may be more" in told


def test_a_dry_run_of_one_stream_reads_no_other(runs: FakeRuns) -> None:
    runs.streams = [EVENTS, OTHERS]
    ran = runs.run(records("events", [1]), status("events"), only=["events"], dry_run=True)
    catalog = json.loads(runs.sent("catalog") or b"")
    assert [each["stream"]["name"] for each in catalog["streams"]] == ["events"]
    assert [*ran.observations] == ["events"]


def test_what_is_downstream_does_not_run_dry(runs: FakeRuns) -> None:
    @dg.asset(deps=[dg.AssetKey(["shop", "events"])])
    def report() -> None:
        raise AssertionError("there is nothing to report")

    assert runs.run(records("events", [1]), status("events"), more=[report], dry_run=True).success
