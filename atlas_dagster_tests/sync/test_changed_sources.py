"""Keys and cursors anywhere in a record, and sources that change under a table."""

import json
from typing import Any

import msgspec
import pytest

from atlas_dagster.errors import BreakingChangeError, ConfigError
from atlas_dagster.protocol.catalog import ConfiguredStream, Stream, configure
from atlas_dagster_tests.sync.fake_source import Lake, line, records, state, status, upkeep

INTEGER, STRING = {"type": "integer"}, {"type": "string"}
KEYED = {
    "v": STRING,
    "plain": INTEGER,
    "table1.Column1": INTEGER,
    "a": {"type": "object", "properties": {"b": INTEGER, "c": {"type": "object"}, "at": INTEGER}},
}


def stream(
    key: list[list[str]],
    mode: Any = "append_dedup",
    *,
    name: str = "a",
    cursor: list[str] | None = None,
    **columns: Any,
) -> ConfiguredStream:
    """``columns`` beside those of ``KEYED``; None drops one."""
    properties = {field: column for field, column in (KEYED | columns).items() if column}
    offered = {
        "name": name,
        "json_schema": {"type": "object", "properties": properties},
        "supported_sync_modes": ["full_refresh", "incremental"],
        "source_defined_cursor": True,
        "default_cursor_field": cursor or [],
        "source_defined_primary_key": key,
    }
    found = Stream.from_raw(json.dumps(offered).encode())
    return configure(found, sync_mode="incremental", destination_sync_mode=mode)


def rows(*data: dict[str, Any]) -> bytes:
    sent = ({"stream": "a", "data": each, "emitted_at": 1_700_000_000_000} for each in data)
    return b"".join(line("RECORD", record=each) for each in sent) + state("a", {}) + status("a")


@pytest.mark.parametrize(
    ("key", "values", "keyless"),
    [
        (
            [["a", "b"]],
            [{"a": {"b": 1}}, {"a": {"b": 2}}, {"a": {"b": 2**63}}, {"a": {"b": 2**64}}],
            [],
        ),
        ([["a", "c", "d"]], [{"a": {"c": {"d": "x"}}}, {"a": {"c": {"d": 1}}}], [{"a": None}]),
        (
            [["a", "b"], ["plain"]],
            [{"a": {"b": 1}, "plain": 1}, {"a": {"b": 1}, "plain": 2}],
            [{}, {"plain": 1}],
        ),
        ([["table1.Column1"]], [{"table1.Column1": 1}, {"table1.Column1": 2}], [{}]),
        ([["a", "b"]], [{"a": "one"}, {"a": "other"}], [{}, {"a": {}}]),
    ],
    ids=["nested", "undeclared", "composite", "a dot in a name", "no object"],
)
def test_keys_of_every_shape(
    lake: Lake, key: list[list[str]], values: list[Any], keyless: list[Any]
) -> None:
    for v in "pqr":
        data = [value | {"v": f"{v} {number}"} for number, value in enumerate(values)]
        without = [value | {"v": "keyless"} for value in keyless]
        assert lake.sync([stream(key)], rows(*data, *without)).failure is None
    kept = [("keyless",)] * 3 * len(keyless)
    found = [(f"r {number}",) for number in range(len(values))]
    assert lake.rows("a", columns="v") == kept + found


def test_a_nested_cursor(lake: Lake) -> None:
    wanted = stream([["plain"]], cursor=["a", "at"])
    lake.sync([wanted], rows({"plain": 1, "a": {"at": 5}, "v": "new"}))
    lake.sync([wanted], rows({"plain": 1, "a": {"at": 4}, "v": "old"}))
    done = lake.sync([wanted], rows({"plain": 2, "v": "other"}))
    assert lake.rows("a", columns="plain, a_at, v") == [(1, 5, "new"), (2, None, "other")]
    (configured,) = done.file("catalog")["streams"]
    assert configured["cursor_field"] == ["a", "at"]


def test_modes_without_a_key_get_no_column_for_it(lake: Lake) -> None:
    done = lake.sync([stream([["a", "b"]], "append")], rows({"a": {"b": 1}}))
    assert [c.field for c in done.plan.streams[0].table.schema.columns] == list(KEYED)


@pytest.mark.parametrize("path", [["a", "x"], ["v", "x"], ["x", "y"]])
def test_a_nested_key_that_cannot_be_there(lake: Lake, path: list[str]) -> None:
    with pytest.raises(ConfigError, match=rf"'a' has no field '{'.'.join(path)}' for its key"):
        lake.prepare([stream([path])])


# Deletes


def test_a_stream_with_hard_deletes(lake: Lake) -> None:
    deleted = "_ab_cdc_deleted_at"
    offered = stream([["plain"]], cursor=["plain"], **{deleted: STRING}).stream
    soft, hard = (configure(offered, hard_deletes=hard) for hard in (False, True))
    gone = {deleted: "2024-01-01T00:00:00Z"}
    lake.sync([hard], rows({"plain": 1}, {"plain": 2}, {"plain": 1} | gone))
    assert lake.rows("a", columns="plain") == [(2,)]
    lake.sync([soft], rows({"plain": 2} | gone))
    assert lake.rows("a", columns=f"plain, {deleted}") == [(2, *gone.values())]


# Breaking changes


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (
            stream([["plain"]], "append", cursor=["v"]),
            stream([["plain"]], "append", cursor=["v"], v=None),
            r"no longer has the field 'v', the cursor of stream 'a'.* refresh the stream",
        ),
        (
            stream([["plain"]], cursor=["a", "at"]),
            stream([["plain"]], cursor=["a", "at"], a={"type": "object", "properties": {"b": {}}}),
            r"no longer has the field 'a.at', the cursor of stream 'a'",
        ),
        (
            stream([["plain"], ["v"]]),
            stream([["plain"], ["v"]], v=None),
            r"no longer has the field 'v', which is in the primary key of stream 'a'.* refresh",
        ),
        (
            stream([["a", "b"]]),
            stream([["a", "b"]], a=None),
            r"no longer has the field 'a.b', which is in the primary key",
        ),
        (
            stream([["plain"]]),
            stream([["plain"], ["v"]]),
            r"'a' has a new primary key, 'plain', 'v' instead of 'plain', so .* refresh the stream",
        ),
        (
            stream([["plain"]], "append"),
            stream([["a", "b"]]),
            r"'a' has the new key field 'a.b', so .* refresh the stream",
        ),
        (
            stream([["a", "b"]]),
            stream([["a", "b"]], a={"type": "object", "properties": {"b": STRING}}),
            r"'a' has a new type for its key 'a.b'",
        ),
    ],
    ids=[
        "cursor gone",
        "nested cursor gone",
        "key gone",
        "nested key gone",
        "another key",
        "a key the table has no column for",
        "key of another type",
    ],
)
def test_a_breaking_change_stops_its_stream_only(
    lake: Lake, before: ConfiguredStream, after: ConfiguredStream, sentence: str
) -> None:
    other = stream([["plain"]], name="b")
    first = rows({"plain": 1, "v": "x", "a": {"b": 1}}), records("b", [1]), status("b")
    assert lake.sync([before, other], *first).failure is None
    with pytest.raises(BreakingChangeError, match=sentence):
        lake.prepare([after])
    versions = lake.versions()
    done = lake.sync([after, other], records("b", [2]), status("b"))
    assert str(done.failure).startswith("1 of 2 streams did not complete. a: ")
    assert list(done.finished) == ["b"]
    now = lake.versions()
    assert {name for name in now if now[name] != versions[name]} <= {"c/b", "_atlas/c/changes/b"}
    assert lake.rows("a", columns="v") == [("x",)]

    if "no longer" not in sentence:
        lake.store.wiped[after.descriptor] = 4e9
        again = lake.sync([after], rows({"plain": 2, "v": "y", "a": {"b": 2}}))
        assert again.failure is None
        assert lake.rows("a", columns="v") == [("y",)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["append", "append_dedup"])
def test_other_changes_never_stop_a_stream(lake: Lake, mode: str) -> None:
    key = [["plain"], ["a", "b"]]
    changes: list[dict[str, Any]] = [
        {"cursor": ["a", "at"]},
        {"cursor": ["a", "at"], "w": STRING},
        {"cursor": ["a", "at"], "v": None},
        {"cursor": ["a", "at"], "w": INTEGER},
        {"cursor": ["plain"], "table1.Column1": None},
        {"cursor": ["plain"], "v": STRING},
    ]
    for number, change in enumerate(changes):
        sent = {"plain": number, "a": {"b": 0, "at": 1}, "v": "x", "w": 5, "more": True}
        done = lake.sync([stream(key, mode, **change)], rows(sent))
        assert done.failure is None
    found = lake.rows("a", columns="plain, v, w, w_integer")
    assert found == [
        (0, "x", None, None),
        (1, "x", "5", None),
        (2, None, None, None),
        (3, "x", None, 5),
        (4, "x", None, None),
        (5, "x", None, None),
    ]


def test_a_key_in_another_order_is_the_same(lake: Lake) -> None:
    for key in ([["plain"], ["v"]], [["v"], ["plain"]]):
        assert lake.sync([stream(key)], rows({"plain": 1, "v": "x"})).failure is None
    assert lake.rows("a", columns="plain, v") == [(1, "x")]


def by_cursor(field: str, mode: Any = "append", *, own: bool = False) -> ConfiguredStream:
    """A declared cursor; ``own``: of a source that reads by its own."""
    offered = json.loads(bytes(stream([["plain"]]).stream.raw))
    found = Stream.from_raw(json.dumps(offered | {"source_defined_cursor": own}).encode())
    return configure(
        found, sync_mode="incremental", destination_sync_mode=mode, cursor_field=(field,)
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["append", "append_dedup"])
def test_a_changed_cursor_stops_its_stream_only(lake: Lake, mode: str) -> None:
    """Regression: a value of the old one was compared with the new one, and rows were skipped."""
    before, after = by_cursor("plain", mode), by_cursor("v", mode)
    other = stream([["plain"]], name="b")
    both = rows({"plain": 1}), records("b", [1]) + state("b", {}) + status("b")
    assert lake.sync([before, other], *both).failure is None
    done = lake.sync([after, other], both[1])
    assert (
        "a: Stream 'a' has cursor_field 'v', but its stored state belongs to 'plain'. Continuing "
        "with another cursor would skip rows: declare the old one again, or read the stream "
        "again with `atlas refresh c --stream a`. Finished and kept: b."
    ) in str(done.failure)
    assert lake.sync([before, other], *both).failure is None
    upkeep(lake, after, other).refresh([after.descriptor], keep_rows=False)
    assert lake.sync([after, other], *both).file("state") is not None
    assert lake.sync([after, other], *both).failure is None


def test_a_cursor_changed_in_the_middle_of_a_refresh_reads_it_again(lake: Lake) -> None:
    before, after = by_cursor("plain"), by_cursor("v")
    lake.sync([before], rows({"plain": 1}))
    upkeep(lake, before).refresh([before.descriptor], keep_rows=False)
    first = line("RECORD", record={"stream": "a", "data": {"plain": 5}, "emitted_at": 1})
    lake.sync([before], first + state("a", {"at": 5}), 1)
    done = lake.sync([after], rows({"plain": 1}, {"plain": 2}))
    assert (done.failure, done.file("state")) == (None, None)
    assert lake.rows("a", columns="plain") == [(1,), (2,)]


def test_the_cursor_of_a_source_that_has_its_own_does_not_matter(lake: Lake) -> None:
    lake.sync([by_cursor("plain", own=True)], rows({"plain": 1}))
    assert lake.sync([by_cursor("v", own=True)], rows({"plain": 2})).failure is None


def test_a_state_without_its_cursor_is_gone_on_from(lake: Lake) -> None:
    """As version 1 stored it."""
    lake.sync([by_cursor("plain")], rows({"plain": 1}))
    for name, last in lake.store.envelopes.items():
        (commit,) = last.streams
        commit = msgspec.structs.replace(commit, cursor_field=None)
        lake.store.envelopes[name] = msgspec.structs.replace(last, streams=(commit,))
    assert lake.sync([by_cursor("v")], rows({"plain": 2})).failure is None
