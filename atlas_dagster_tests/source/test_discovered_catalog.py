import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_dagster.errors import ConfigError
from atlas_dagster.protocol.catalog import Catalog
from atlas_dagster.protocol.messages import Spec, StreamDescriptor
from atlas_dagster.source.discovered_catalog import Discovered, NamedTable, build_discovered

Names = list[tuple[str | None, str]]


def found(names: Names, previous: Discovered | None = None) -> Discovered:
    streams: list[Any] = [{"name": name, "namespace": space} for space, name in names]
    return build_discovered(
        "c",
        connector="x",
        config={"a": 1},
        spec=Spec({"type": "object"}, "https://docs"),
        catalog=Catalog.from_json(streams),
        reserved="source_x",
        previous=previous,
    )


def paths(names: Names) -> list[tuple[str, ...]]:
    tables = found(names).table_paths
    return [tables[StreamDescriptor(name, space)] for space, name in names]


def test_connection_namespace_stream() -> None:
    assert paths([(None, "a"), ("n", "a"), ("", "b")]) == [("c", "a"), ("c", "n", "a"), ("c", "b")]


@pytest.mark.parametrize(
    "names",
    [
        [(None, "a-b"), (None, "a_b"), (None, "a/b"), (None, "A_b")],
        [(None, "a"), ("a", "b")],  # a table must not hold another one
        [(None, "a__b"), ("a", "b")],  # Dagster joins the parts of a key with "__"
        [("a", "b__c"), ("a__b", "c")],
        [(None, "source_x"), ("source_x", "a")],
        [(None, "🎉"), (None, ""), ("é", "é")],
    ],
)
def test_no_two_paths_meet(names: Names) -> None:
    found_paths = paths(names)
    assert len({"__".join(path).lower() for path in found_paths}) == len(names)
    for one, other in itertools.permutations(found_paths, 2):
        assert one != other[: len(one)]
    assert ("c", "source_x") not in {path[:2] for path in found_paths}


@pytest.mark.parametrize("name", ["_delta_log", "_DELTA_LOG", "_atlas", "__class__"])
def test_names_that_stores_keep_for_themselves(name: str) -> None:
    """Regression: a stream or namespace of such a name broke all streams of its connection."""
    for path in paths([(None, name), (name, "a"), ("n", name)]):
        assert name.lower() not in {part.lower() for part in path}
    given = {StreamDescriptor(name): ("c", name)}
    before = found([(None, "a")])
    before = msgspec.structs.replace(
        before, tables=(*before.tables, *(NamedTable(s, p) for s, p in given.items()))
    )
    assert found([(None, name)], before).table_paths.items() >= given.items()


PARTS = st.text("ab_-", min_size=1, max_size=4)
NAMES = st.lists(st.tuples(st.none() | PARTS, PARTS), max_size=6, unique=True)


@given(NAMES, NAMES)
def test_paths_differ_and_never_change(first: Names, more: Names) -> None:
    before = found(first)
    after = found([*dict.fromkeys([*first, *more])], before)
    assert after.table_paths.items() >= before.table_paths.items()
    joined = {"__".join(path) for path in after.table_paths.values()}
    assert len(joined) == len({*first, *more})


def test_a_namespace_that_comes_later() -> None:
    before = found([(None, "a")])
    after = found([(None, "a"), ("a", "b")], before).table_paths
    assert after[StreamDescriptor("a")] == ("c", "a")
    assert after[StreamDescriptor("b", "a")][1] != "a"


def test_streams_that_are_gone_keep_their_names() -> None:
    before = found([(None, "a-b"), (None, "a_b")])
    without = found([(None, "a_b")], before)
    assert without.table_paths == before.table_paths
    assert [stream.descriptor.name for stream in without.catalog.streams] == ["a_b"]


def test_the_cache() -> None:
    cached = found([("n", "a")])
    again = Discovered.decode(cached.encode())
    assert again == cached
    assert again.catalog.streams[0].descriptor == StreamDescriptor("a", "n")
    with pytest.raises(ConfigError, match="discover again"):
        Discovered.decode(b"{}")
