"""Where tables continue: given, shown and saved."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from atlas_dagster.errors import ConfigError
from atlas_dagster.interfaces.python.state import TableStates
from atlas_dagster.protocol.catalog import ConfiguredStream, Stream, configure
from atlas_dagster.protocol.state import ConnectionState


def stream_state(name: str, at: Any, namespace: str | None = None) -> dict[str, Any]:
    descriptor = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"type": "STREAM", "stream": {"stream_descriptor": descriptor, "stream_state": at}}


def table(name: str, namespace: str | None = None) -> ConfiguredStream:
    offered = {"name": name, "namespace": namespace, "json_schema": {}}
    return configure(Stream.from_raw(json.dumps(offered).encode()))


GLOBAL = {"type": "GLOBAL", "global": {"shared_state": {"lsn": 1}, "stream_states": []}}


def test_there_is_none_at_first() -> None:
    states = TableStates()
    assert states.as_json() == {}
    assert not states.of(table("users"))


def test_what_was_shown_is_taken_back() -> None:
    given = {"users": [stream_state("users", {"id": 1})], "orders": [GLOBAL], "old": {"id": 2}}
    states = TableStates(given)
    assert states.as_json() == given
    assert states.of(table("orders")).type == "GLOBAL"
    assert states.of(table("old")).bare


def test_states_as_connectors_print_them_are_taken_apart() -> None:
    states = TableStates(
        [stream_state("users", {"id": 1}), stream_state("orders", {"id": 2}, "shop")]
    )
    assert list(states.as_json()) == ["users", "shop.orders"]
    (name,) = states.of(table("orders", "shop")).streams
    assert str(name) == "shop.orders"


def test_one_state_for_all_tables_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"shared by all tables \(GLOBAL\)"):
        TableStates([GLOBAL])


@pytest.mark.parametrize("given", [[1], {"users": 5}, {"users": [{"type": "STREAM", "stream": 1}]}])
def test_what_is_no_state_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="state is not a valid state"):
        TableStates(given)


def test_a_table_is_found_with_its_namespace_and_without() -> None:
    plain = TableStates({"orders": [stream_state("orders", {"id": 2}, "shop")]})
    assert plain.of(table("orders", "shop"))
    assert not plain.of(table("users", "shop"))


def test_numbers_stay_as_the_source_wrote_them(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    blob = b'{"at":1.10,"big":123456789012345678901234567890.5}'
    file.write_bytes(
        b'{"users":[{"type":"STREAM","stream":{"stream_descriptor":{"name":"users"},'
        b'"stream_state":' + blob + b"}}]}"
    )
    states = TableStates(file)
    assert blob in states.of(table("users")).to_file()
    states.save(tmp_path / "other.json")
    assert blob in (tmp_path / "other.json").read_bytes()


def test_it_is_saved_where_it_came_from(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    states = TableStates(str(file))
    states.update(
        {"users": ConnectionState.from_file(json.dumps([stream_state("users", 1)]).encode())}
    )
    states.save(None)
    assert TableStates(file).as_json() == {"users": [stream_state("users", 1)]}


def test_without_a_file_it_cannot_be_saved() -> None:
    with pytest.raises(ConfigError, match="no file for the state"):
        TableStates().save(None)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be saved in .*No such file"):
        TableStates().save(tmp_path / "none" / "state.json")


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        TableStates(tmp_path)
    (tmp_path / "state.json").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"state\.json is not a valid state"):
        TableStates(tmp_path / "state.json")


@pytest.mark.slow
def test_the_file_is_whole_at_any_time(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    states = TableStates(file)
    blob = {"filler": "x" * 200_000}
    content = json.dumps([stream_state("users", blob)]).encode()
    states.update({"users": ConnectionState.from_file(content)})
    states.save(None)
    done = threading.Event()

    def save() -> None:
        for _ in range(30):
            states.save(None)
        done.set()

    thread = threading.Thread(target=save)
    thread.start()
    while not done.is_set():
        assert TableStates(file).as_json()["users"][0]["stream"]["stream_state"] == blob
    thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
