"""What others make of a table that Atlas cannot write to: seen before anything is read."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from atlas_dagster.errors import DestinationError
from atlas_dagster_tests.sync.fake_source import (
    Lake,
    full_refresh,
    incremental,
    records,
    state,
    status,
    upkeep,
)

Edit = Callable[[dict[str, Any], dict[str, Any]], None]


def change(lake: Lake, edit: Edit) -> None:
    """Commit what an engine does that ``edit``s the protocol and the metadata of the table."""
    log = lake.root / "c" / "a" / "_delta_log"
    actions = [
        json.loads(text) for file in sorted(log.glob("*.json")) for text in file.open().readlines()
    ]
    protocol = [action for action in actions if "protocol" in action][-1]
    metadata = [action for action in actions if "metaData" in action][-1]
    edit(protocol["protocol"], metadata["metaData"])
    version = len([*log.glob("*.json")])
    text = "\n".join(map(json.dumps, (protocol, metadata)))
    (log / f"{version:020}.json").write_text(text)


def of_field(table: dict[str, Any], name: str, key: str, value: Any) -> None:
    schema = json.loads(table["schemaString"])
    for field in schema["fields"]:
        if field["name"] == name:
            (field["metadata"] if "." in key else field)[key] = value
    table["schemaString"] = json.dumps(schema)


def column_mapping(protocol: dict[str, Any], metadata: dict[str, Any]) -> None:
    protocol |= {"minReaderVersion": 2, "minWriterVersion": 5}
    metadata["configuration"] |= {"delta.columnMapping.mode": "name"}
    schema = json.loads(metadata["schemaString"])
    for place, field in enumerate(schema["fields"]):
        field["metadata"]["delta.columnMapping.id"] = place
        field["metadata"]["delta.columnMapping.physicalName"] = field["name"]
    metadata["schemaString"] = json.dumps(schema)


def partitions(_: dict[str, Any], metadata: dict[str, Any]) -> None:
    metadata["partitionColumns"] = ["v"]


def constraint(protocol: dict[str, Any], metadata: dict[str, Any]) -> None:
    protocol["minWriterVersion"] = 3
    metadata["configuration"]["delta.constraints.small"] = "id < 5"


def invariant(_: dict[str, Any], metadata: dict[str, Any]) -> None:
    of_field(metadata, "id", "delta.invariants", "{}")


def generated(protocol: dict[str, Any], metadata: dict[str, Any]) -> None:
    protocol["minWriterVersion"] = 4
    of_field(metadata, "v", "delta.generationExpression", "'x'")


def not_null(_: dict[str, Any], metadata: dict[str, Any]) -> None:
    of_field(metadata, "v", "nullable", False)


def feature(name: str, *, reader: bool = False) -> Edit:
    def edit(protocol: dict[str, Any], _: dict[str, Any]) -> None:
        protocol |= {"minWriterVersion": 7, "writerFeatures": [name]}
        if reader:
            protocol |= {"minReaderVersion": 3, "readerFeatures": [name]}

    return edit


def append_only(_: dict[str, Any], metadata: dict[str, Any]) -> None:
    metadata["configuration"]["delta.appendOnly"] = "true"


def sync(lake: Lake, mode: str, id: int) -> Any:
    make = full_refresh if mode == "overwrite" else incremental
    output = (
        records("a", [id]),
        state("a", {"at": id}),
        status("a"),
        *((records("b", [id]), state("b", {"at": id}), status("b"))),
    )
    return lake.sync([make("a", mode), incremental("b", "append")], *output)


GONE_WHEN_REPLACED = [
    (column_mapping, r"column mapping \(delta.columnMapping.mode = name\)"),
    (partitions, r"partition columns \(v\)"),
    (constraint, r"the constraint small \(id < 5\)"),
    (invariant, r"an invariant on column id"),
    (generated, r"the generated column v"),
    (not_null, r"the NOT NULL column v"),
]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["append", "append_dedup"])
@pytest.mark.parametrize(("edit", "words"), GONE_WHEN_REPLACED)
def test_such_a_table_stops_its_stream_until_it_is_refreshed(
    delta_lake: Lake, mode: str, edit: Edit, words: str
) -> None:
    assert sync(delta_lake, mode, 1).failure is None
    change(delta_lake, edit)
    stream = incremental("a", mode)

    with pytest.raises(DestinationError, match=rf"c/a has {words}"):
        delta_lake.prepare([stream])
    done = sync(delta_lake, mode, 2)
    assert list(done.finished) == ["b"]
    assert delta_lake.ids("b") == [1, 2]

    upkeep(delta_lake, stream).refresh([stream.descriptor], keep_rows=False)
    assert sync(delta_lake, mode, 3).failure is None
    assert sync(delta_lake, mode, 4).failure is None
    assert delta_lake.rows("a") == [(3, None), (4, None)]
    assert delta_lake.table("a").protocol().min_writer_version == 2


@pytest.mark.parametrize("edit", [edit for edit, _ in GONE_WHEN_REPLACED])
@pytest.mark.slow
def test_a_swap_makes_it_a_plain_table(delta_lake: Lake, edit: Edit) -> None:
    assert sync(delta_lake, "overwrite", 1).failure is None
    change(delta_lake, edit)
    version = delta_lake.table("a").version()
    assert sync(delta_lake, "overwrite", 2).failure is None
    assert delta_lake.table("a").version() == version + 1
    assert delta_lake.rows("a") == [(2, None)]
    assert sync(delta_lake, "overwrite", 3).failure is None
    assert delta_lake.rows("a") == [(3, None)]


@pytest.mark.parametrize("edit", [edit for edit, _ in GONE_WHEN_REPLACED])
@pytest.mark.slow
def test_it_can_be_cleared(delta_lake: Lake, edit: Edit) -> None:
    assert sync(delta_lake, "append", 1).failure is None
    change(delta_lake, edit)
    stream = incremental("a", "append")
    upkeep(delta_lake, stream).clear([stream.descriptor])
    assert delta_lake.rows("a") == []
    assert sync(delta_lake, "append", 2).failure is None
    assert delta_lake.rows("a") == [(2, None)]


@pytest.mark.parametrize("mode", ["append", "append_dedup", "overwrite"])
@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (feature("rowTracking"), "the table feature rowTracking, which"),
        (feature("unheardOf"), "the table feature unheardOf, which"),
    ],
)
@pytest.mark.slow
def test_what_no_commit_takes_away(delta_lake: Lake, mode: str, edit: Edit, words: str) -> None:
    assert sync(delta_lake, mode, 1).failure is None
    change(delta_lake, edit)
    done = sync(delta_lake, mode, 2)
    assert list(done.finished) == ["b"]
    assert words in str(done.failure)
    assert "move or delete the table" in str(done.failure)
    delta_lake.drop("a")
    assert sync(delta_lake, mode, 3).failure is None
    assert delta_lake.rows("a") == [(3, None)]


@pytest.mark.parametrize("mode", ["append", "append_dedup", "overwrite"])
def test_a_table_that_is_append_only(delta_lake: Lake, mode: str) -> None:
    assert sync(delta_lake, mode, 1).failure is None
    change(delta_lake, append_only)
    done = sync(delta_lake, mode, 2)
    if mode == "append":
        assert done.failure is None
        assert delta_lake.ids("a") == [1, 2]
    else:
        assert "c/a has the property delta.appendOnly, which" in str(done.failure)
        assert list(done.finished) == ["b"]


@pytest.mark.parametrize("mode", ["append", "append_dedup", "overwrite"])
@pytest.mark.parametrize(
    "name", ["deletionVectors", "columnMapping", "v2Checkpoint", "timestampNtz"]
)
@pytest.mark.slow
def test_a_feature_that_is_not_used_is_in_nobodys_way(
    delta_lake: Lake, mode: str, name: str
) -> None:
    assert sync(delta_lake, mode, 1).failure is None
    change(delta_lake, feature(name, reader=True))
    assert sync(delta_lake, mode, 2).failure is None
    assert delta_lake.ids("a") == ([2] if mode == "overwrite" else [1, 2])
