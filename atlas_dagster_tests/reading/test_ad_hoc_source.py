"""A connector without a declaration: its tables, pages of rows, and where they continue."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas_dagster.errors import (
    CheckFailedError,
    ConfigError,
    ConnectorFailedError,
    InvalidConfigError,
    UnknownStreamError,
)
from atlas_dagster.listener import SILENT
from atlas_dagster.protocol.catalog import Stream
from atlas_dagster.protocol.state import ConnectionState
from atlas_dagster.reading.ad_hoc import AdHocConfigStore, adhoc_connection, adhoc_context
from atlas_dagster.reading.ad_hoc_source import AdHocSource, configure_read
from atlas_dagster.runners.base import ConnectorCommand
from atlas_dagster.runners.fake import FakeRunner
from atlas_dagster.source import open_connector as module
from atlas_dagster_tests.sync.fake_source import (
    error,
    global_state,
    legacy_state,
    line,
    records,
    state,
    status,
)

SPEC = {"connectionSpecification": {"properties": {"key": {"type": "string"}}}}


def offered(name: str, namespace: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "json_schema": {"properties": {"id": {"type": "integer"}, "v": {"type": "string"}}},
        "supported_sync_modes": ["full_refresh", "incremental"],
        **({} if namespace is None else {"namespace": namespace}),
        **more,
    }


class Scripted:
    """A connector that offers ``streams`` and prints ``output``."""

    def __init__(self, *output: Any, streams: Any = (), check: str = "SUCCEEDED") -> None:
        self.output = output
        self.streams = list(streams) or [offered("users"), offered("orders")]
        self.check = check
        self.runner = FakeRunner(self)

    def __call__(self, command: ConnectorCommand) -> Iterator[Any]:
        match command.verb:
            case "spec":
                yield line("SPEC", spec=SPEC)
            case "check":
                answer = {"status": self.check, "message": "no such host"}
                yield line("CONNECTION_STATUS", connectionStatus=answer)
            case "discover":
                yield line("CATALOG", catalog={"streams": self.streams})
            case "read":
                yield from self.output

    @property
    def verbs(self) -> list[str]:
        return [command.verb for command in self.runner.commands]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def use(scripted: Scripted, **config: Any) -> AdHocSource:
        monkeypatch.setattr(module, "choose_runner", lambda *_: scripted.runner)
        caller = adhoc_context()
        return AdHocSource(adhoc_connection("my/source-x:1", config), caller)

    return use


def stream(**more: Any) -> Stream:
    return Stream.from_raw(json.dumps(offered("users", **more)).encode())


def ids(page: Any) -> list[int]:
    found: list[int] = page.rows["id"].to_pylist()
    return found


# Answers


def test_a_check_that_fails_says_why(use: Any) -> None:
    source = use(Scripted(check="FAILED"))
    assert source.status().status == "FAILED"
    assert source.status().message == "no such host"
    with pytest.raises(CheckFailedError, match=r"source-x.*: no such host"):
        source.check()


def test_a_wrong_config_is_refused_before_anything_else_runs(use: Any) -> None:
    scripted = Scripted()
    with pytest.raises(InvalidConfigError, match="'key'") as caught:
        use(scripted, key=1).check()
    assert caught.value.field == "key"
    assert scripted.verbs == ["spec"]


def test_streams_are_asked_for_once(use: Any) -> None:
    scripted = Scripted()
    source = use(scripted)
    assert source.table_names() == ["users", "orders"]
    assert source.find_table("orders").descriptor.name == "orders"
    assert scripted.verbs.count("discover") == 1
    source.discover()
    assert scripted.verbs.count("discover") == 2


def test_nothing_stays_of_a_config_that_was_not_renewed(use: Any, tmp_path: Path) -> None:
    use(Scripted()).check()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_renewed_config_stays(use: Any, tmp_path: Path) -> None:
    renewed = {"type": "CONNECTOR_CONFIG", "connectorConfig": {"config": {"key": "new"}}}
    scripted = Scripted(line("CONTROL", control={"emitted_at": 1, **renewed}), status("users"))
    source = use(scripted, key="old")
    source.read_page(
        configure_read(source.find_table("users"), incremental=False), state=ConnectionState()
    )
    source.check()
    assert json.loads(scripted.runner.commands[-1].files["config"]) == {"key": "new"}
    stored = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in stored} == {".json", ".lock"}


def test_a_folder_for_them_that_cannot_be_made_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    store = AdHocConfigStore()
    with (
        pytest.raises(ConfigError, match="XDG_STATE_HOME"),
        store.lock("c", SILENT),
    ):
        pass


# Tables


def test_a_name_in_several_namespaces_is_given_with_one(use: Any) -> None:
    streams = [offered("users", "a"), offered("users", "b"), offered("orders", "a")]
    source = use(Scripted(streams=streams))
    assert source.table_names() == ["a.users", "b.users", "orders"]
    assert source.find_table("b.users").descriptor.namespace == "b"
    assert source.find_table("a.orders").descriptor.name == "orders"
    with pytest.raises(UnknownStreamError, match=r"a\.users or b\.users"):
        source.find_table("users")


def test_an_unknown_table_is_met_with_the_nearest(use: Any) -> None:
    with pytest.raises(UnknownStreamError, match=r"'user'.* users"):
        use(Scripted()).find_table("user")


# How to read


def test_all_is_read_unless_asked_otherwise() -> None:
    found = configure_read(
        stream(source_defined_cursor=True, default_cursor_field=["id"]), incremental=False
    )
    assert (found.sync_mode, found.destination_sync_mode) == ("full_refresh", "append")


def test_a_stream_that_cannot_be_read_as_a_whole_is_read_by_its_cursor() -> None:
    only = stream(supported_sync_modes=["incremental"], default_cursor_field=["id"])
    assert configure_read(only, incremental=False).sync_mode == "incremental"


def test_the_cursor_is_the_callers_where_the_source_leaves_the_choice() -> None:
    assert configure_read(stream(), incremental=True, cursor_field="id").cursor_field == ("id",)


@pytest.mark.parametrize(
    ("more", "cursor", "message"),
    [
        ({}, None, "needs a cursor_field"),
        ({}, "idd", "no field 'idd' for its cursor; it has id, v"),
        (
            {"source_defined_cursor": True, "default_cursor_field": ["id"]},
            "v",
            r"source defines the cursor of 'users' itself \(id\); leave v out",
        ),
        (
            {"supported_sync_modes": ["full_refresh"]},
            "id",
            "does not support sync_mode incremental",
        ),
    ],
)
def test_what_cannot_work_is_said(more: dict[str, Any], cursor: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configure_read(stream(**more), incremental=True, cursor_field=cursor)


def test_a_cursor_of_a_full_read_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="only in incremental reads"):
        configure_read(stream(), incremental=False, cursor_field="id")


# Pages


def page(source: AdHocSource, before: ConnectionState | None = None, **options: Any) -> Any:
    found = configure_read(source.find_table("users"), incremental=True, cursor_field="id")
    return source.read_page(found, state=before or ConnectionState(), **options)


def test_a_page_is_all_there_is(use: Any) -> None:
    source = use(Scripted(records("users", [1, 2]), state("users", {"at": 2}), status("users")))
    found = page(source)
    assert (ids(found), found.overlap, found.is_complete) == ([1, 2], 0, True)
    assert json.loads(found.state.to_file())[0]["stream"]["stream_state"] == {"at": 2}


def test_an_empty_page_has_the_columns_too(use: Any) -> None:
    found = page(use(Scripted(status("users"))))
    assert found.rows.column_names[:2] == ["id", "v"]
    assert ids(found) == []


def test_a_page_ends_where_a_state_covers_it(use: Any) -> None:
    output = [
        records("users", [1, 2]),
        state("users", {"at": 2}),
        records("users", [3, 4]),
        state("users", {"at": 4}),
    ]
    source = use(Scripted(*output))
    found = page(source, limit=3)
    assert (ids(found), found.overlap, found.is_complete) == ([1, 2], 0, False)
    source = use(Scripted(*output[2:]))
    assert ids(page(source, found.state, limit=3)) == [3, 4]


def test_a_source_that_says_no_state_in_time_repeats_itself(use: Any) -> None:
    found = page(use(Scripted(records("users", range(9)), state("users", {"at": 9}))), limit=4)
    assert (ids(found), found.overlap, found.is_complete) == ([0, 1, 2, 3], 4, False)
    assert not found.state


def test_a_page_of_a_full_read_is_as_long_as_it_may_be(use: Any) -> None:
    source = use(Scripted(records("users", range(9))))
    found = source.read_page(
        configure_read(source.find_table("users"), incremental=False),
        state=ConnectionState(),
        limit=4,
    )
    assert (ids(found), found.is_complete) == ([0, 1, 2, 3], False)


def test_a_page_has_no_more_bytes_than_it_may_have(
    use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_dagster.reading.reader._YIELD_SECONDS", 0.0)
    scripted = Scripted(*(records("users", [id]) for id in range(9)))
    source = use(scripted)
    found = source.read_page(
        configure_read(source.find_table("users"), incremental=False),
        state=ConnectionState(),
        most_bytes=1,
    )
    assert (ids(found), found.is_complete) == ([0], False)
    assert scripted.runner.closed == len(scripted.verbs)


def test_a_failure_is_in_the_connectors_own_words(use: Any) -> None:
    source = use(Scripted(records("users", [1]), error("quota exceeded", "transient_error"), 1))
    with pytest.raises(ConnectorFailedError, match="source-x: quota exceeded"):
        page(source)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (global_state({"lsn": 5}, {"users": {"at": 2}}), "GLOBAL"),
        (legacy_state({"at": 2}), "LEGACY"),
    ],
)
def test_a_state_of_any_type_goes_back_as_it_came(use: Any, said: bytes, kind: str) -> None:
    scripted = Scripted(records("users", [1, 2]), said, status("users"))
    source = use(scripted)
    found = page(source)
    assert found.state.type == kind
    page(source, found.state)
    assert scripted.runner.commands[-1].files["state"] == found.state.to_file()
