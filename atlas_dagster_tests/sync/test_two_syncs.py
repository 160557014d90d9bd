"""Two syncs of one connection at once, in processes that know nothing of each other."""

import pytest

from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster_tests.sync.fake_source import Lake, incremental, records, state, status

A, B = incremental("a"), incremental("b")


def output(name: str, id: int) -> bytes:
    return records(name, [id]) + state(name, {"at": id}) + status(name)


@pytest.mark.parametrize("stream", [A, incremental("a", "append_dedup")], ids=["append", "dedup"])
@pytest.mark.parametrize("exists", [True, False])
def test_what_another_commits_between_plan_and_open_is_refused(
    lake: Lake, stream: ConfiguredStream, exists: bool
) -> None:
    """Regression: in Postgres the same row came twice."""
    if exists:
        lake.sync([stream], output("a", 1))
    session, _ = lake.prepare([stream], output("a", 2))
    assert lake.beside().sync([stream], output("a", 2)).failure is None
    with pytest.raises(Exception, match="sync of this connection"):
        list(session.run())
    assert lake.ids("a") == ([1, 2] if exists else [2])
    done = lake.sync([stream], output("a", 3))
    assert done.file("state")[0]["stream"]["stream_state"] == {"at": 2}
    assert lake.ids("a") == ([1, 2, 3] if exists else [2, 3])


@pytest.mark.parametrize("prepared_first", [True, False])
def test_what_another_stored_is_not_forgotten(
    lake: Lake, prepared_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: its envelope was removed, so nobody knew the commit of its table."""
    lake.sync([A, B], output("a", 1) + output("b", 1))
    other, planned = lake.beside(), []
    store = other.destination.prepare

    def plan() -> None:
        planned.append(lake.prepare([A, B], output("a", 2), selected=["a"])[0])

    def prepare(envelope: Envelope) -> None:
        store(envelope)
        plan()

    if prepared_first:
        monkeypatch.setattr(other.destination, "prepare", prepare)
    else:
        plan()
    assert other.sync([A, B], output("b", 2), selected=["b"]).failure is None
    for event in planned[0].run():
        lake.store.note(event)
    done = lake.sync([A, B], output("a", 3) + output("b", 3))
    assert done.failure is None
    assert [part["stream"]["stream_state"]["at"] for part in done.file("state")] == [2, 2]
    assert (lake.ids("a"), lake.ids("b")) == ([1, 2, 3], [1, 2, 3])


def test_what_no_table_holds_any_more_is_forgotten(delta_lake: Lake) -> None:
    for id in range(1, 5):
        delta_lake.sync([A, B], output("a", id) + output("b", id))
    assert len(list(delta_lake.root.glob("_atlas/c/*.json"))) == 2
