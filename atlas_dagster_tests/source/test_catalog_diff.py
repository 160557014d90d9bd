"""What changed at a source, what of it is breaking, and what may be taken without asking."""

from collections.abc import Sequence
from typing import Any

import pytest

from atlas_dagster.protocol.catalog import Catalog
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.source.catalog_diff import (
    CatalogChange,
    SchemaPolicy,
    compare,
    find_pending,
    merge_catalogs,
)
from atlas_dagster.source.connection import Connection

TEXT, NUMBER, TIME = (
    {"type": ["null", "string"]},
    {"type": "number"},
    {"type": "string", "format": "date-time"},
)


def stream(name: str, fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    modes = ["full_refresh", "incremental"]
    schema = {"type": "object", "properties": fields}
    return {"name": name, "json_schema": schema, "supported_sync_modes": modes} | more


DEFINED = {
    "source_defined_cursor": True,
    "default_cursor_field": ["at"],
    "source_defined_primary_key": [["id"]],
}
USERS = stream("users", {"id": NUMBER, "at": TIME, "name": TEXT}, **DEFINED)
ORDERS = stream("orders", {"id": NUMBER, "total": NUMBER})


def catalog(*streams: dict[str, Any]) -> Catalog:
    return Catalog.from_json(streams)


def connection(*streams: dict[str, Any]) -> Connection:
    return Connection(name="shop", image="x", streams=list(streams) or None)


def with_fields(stream: dict[str, Any], fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return stream | {"json_schema": {"properties": fields}} | more


def changes(
    after: Sequence[dict[str, Any]],
    *declared: dict[str, Any],
    before: Sequence[dict[str, Any]] = (USERS, ORDERS),
) -> list[str]:
    found = compare(connection(*declared), catalog(*before), catalog(*after))
    return [str(change) for change in found]


def test_nothing_new() -> None:
    assert changes([ORDERS, USERS]) == []


def test_words_alone_are_no_change() -> None:
    described = {"id": NUMBER | {"description": "Which one."}, "total": NUMBER}
    assert changes([USERS, with_fields(ORDERS, described)]) == []


def test_streams_that_come_and_go() -> None:
    assert changes([stream("items", {}), USERS]) == ["items: new stream", "orders: stream is gone"]


def test_nobody_need_know_of_streams_that_are_not_synced() -> None:
    only_users = {"name": "users"}
    after = [USERS, stream("items", {}), with_fields(ORDERS, {})]

    assert changes(after, only_users) == []
    assert changes([USERS], only_users) == []


def test_fields_that_come_and_go_and_change_their_type() -> None:
    after = with_fields(ORDERS, {"total": TEXT, "note": TEXT})

    assert changes([USERS, after]) == [
        "orders.total: string instead of number",
        "orders.note: new field, string",
        "orders.id: field is gone",
    ]


def test_a_type_that_may_be_null_now_is_the_same() -> None:
    after = with_fields(ORDERS, {"id": {"type": ["number", "null"]}, "total": NUMBER})

    assert changes([USERS, after]) == []


def test_the_cursor_and_the_key_must_not_go() -> None:
    without_cursor = with_fields(USERS, {"id": NUMBER, "name": TEXT})
    without_key = with_fields(USERS, {"at": TIME, "name": TEXT})

    assert changes([without_cursor, ORDERS]) == ["users.at: field is gone (breaking)"]
    assert changes([without_key, ORDERS]) == ["users.id: field is gone (breaking)"]


def test_a_key_below_the_top_must_not_go_either() -> None:
    nested = {"at": TIME, "who": {"type": "object", "properties": {"id": NUMBER}}}
    key = {"source_defined_primary_key": [["who", "id"]]}
    before = with_fields(USERS, nested, **key)
    after = with_fields(
        USERS, {"at": TIME, "who": {"type": "object", "properties": {"name": TEXT}}}, **key
    )

    assert changes([after], before=[before]) == ["users.who.id: field is gone (breaking)"]


def test_where_no_key_is_used_its_field_may_go() -> None:
    append = {"name": "users", "sync_mode": "full_refresh", "destination_sync_mode": "append"}
    after = with_fields(USERS, {"name": TEXT}, source_defined_primary_key=[["name"]])

    assert changes([after, ORDERS], append) == [
        "users.id: field is gone",
        "users.at: field is gone",
        "users: primary key name instead of id",
    ]


def test_another_key() -> None:
    after = USERS | {"source_defined_primary_key": [["id"], ["name"]]}
    same = USERS | {"source_defined_primary_key": [["id"]]}

    assert changes([after, ORDERS]) == ["users: primary key id, name instead of id (breaking)"]
    assert changes([same, ORDERS]) == []


def test_another_cursor() -> None:
    after = USERS | {"default_cursor_field": ["id"]}

    assert changes([after, ORDERS]) == ["users: cursor id instead of at"]


def test_a_cursor_of_ones_own_stays() -> None:
    own = {"name": "orders", "cursor_field": "id", "destination_sync_mode": "append"}
    after = ORDERS | {"default_cursor_field": ["total"]}

    assert changes([USERS, after], own, {"name": "users"}) == []


def test_a_stream_that_would_be_read_in_another_way() -> None:
    after = USERS | {"source_defined_cursor": False, "source_defined_primary_key": []}

    assert changes([after, ORDERS]) == [
        "users: primary key none instead of id (breaking)",
        "users: would be read as full_refresh | overwrite instead of incremental | append_dedup "
        "(breaking)",
    ]


def test_a_stream_that_cannot_be_read_as_declared_any_more() -> None:
    declared = {"name": "users", "sync_mode": "incremental"}
    after = USERS | {"supported_sync_modes": ["full_refresh"]}

    assert changes([after, ORDERS], declared) == [
        "users: can no longer be read as declared, incremental | append_dedup"
    ]


def test_the_same_name_in_two_namespaces() -> None:
    a, b = ORDERS | {"namespace": "a"}, ORDERS | {"namespace": "b"}

    assert changes([a], before=[a, b]) == ["b.orders: stream is gone"]


# What is taken

FIELD = CatalogChange(StreamDescriptor("s"), "added", "f")
BREAKING = CatalogChange(StreamDescriptor("s"), "removed", "id", breaking=True)
OTHER_FIELD = CatalogChange(StreamDescriptor("t"), "retyped", "f")
NEW = CatalogChange(StreamDescriptor("new"), "added")
GONE = CatalogChange(StreamDescriptor("old"), "removed")
DECLARED = CatalogChange(StreamDescriptor("mine"), "removed", declared=True)


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ("ignore", [FIELD, OTHER_FIELD, NEW, GONE, DECLARED]),
        ("propagate_columns", [NEW, GONE, DECLARED]),
        ("propagate_all", [DECLARED]),
        (None, [DECLARED]),
    ],
)
def test_what_a_policy_holds_back(policy: SchemaPolicy | None, kept: list[CatalogChange]) -> None:
    assert find_pending([FIELD, OTHER_FIELD, NEW, GONE, DECLARED], policy) == kept


@pytest.mark.parametrize("policy", ["ignore", "propagate_columns", "propagate_all"])
def test_a_breaking_change_holds_back_all_of_its_stream_and_no_other(policy: SchemaPolicy) -> None:
    others = [OTHER_FIELD] if policy == "ignore" else []

    assert find_pending([FIELD, BREAKING, OTHER_FIELD], policy) == [FIELD, BREAKING, *others]
    assert find_pending([FIELD, BREAKING, OTHER_FIELD], None) == []


def take(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], policy: Any) -> Catalog:
    old, new = catalog(*before), catalog(*after)
    return merge_catalogs(old, new, find_pending(compare(connection(), old, new), policy))


def test_held_back_streams_stay_as_they_were_and_the_others_are_new() -> None:
    broken = with_fields(USERS, {"at": TIME})
    wider = with_fields(ORDERS, {"id": NUMBER, "total": NUMBER, "note": TEXT})
    items = stream("items", {})

    taken = take([USERS, ORDERS], [items, broken, wider], "propagate_columns")

    assert taken == catalog(USERS, wider)
    assert take([USERS, ORDERS], [items, broken, wider], None) == catalog(items, broken, wider)


def test_a_stream_that_is_gone_is_kept_until_that_is_taken() -> None:
    assert take([USERS, ORDERS], [ORDERS], "propagate_columns") == catalog(ORDERS, USERS)
    assert take([USERS, ORDERS], [ORDERS], "propagate_all") == catalog(ORDERS)


def test_what_was_held_back_is_found_again() -> None:
    after = [stream("items", {}), with_fields(ORDERS, {"id": NUMBER})]

    known = take([USERS, ORDERS], after, "ignore")

    assert known == catalog(ORDERS, USERS)
    again = compare(connection(), known, catalog(*after))
    assert [str(change) for change in again] == [
        "items: new stream",
        "orders.total: field is gone",
        "users: stream is gone",
    ]
