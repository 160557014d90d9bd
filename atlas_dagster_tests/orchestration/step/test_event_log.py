"""What the state store finds in Dagster's event log, on SQLite and on Postgres."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
import pytest
from msgspec import Raw

from atlas_dagster.destinations.envelope import Envelope, StagedFile, StreamCommit
from atlas_dagster.orchestration.step import event_log
from atlas_dagster.orchestration.step.event_log import EventLogStateStore
from atlas_dagster.orchestration.step.metadata import (
    AtlasMetadataSet,
    commit_metadata,
    envelope_value,
    shared_state_metadata,
)
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState
from atlas_dagster.sync.resume import LoggedState
from atlas_dagster_tests.orchestration.instances import open_instance

pytestmark = [pytest.mark.slow, pytest.mark.dagster]

USERS = StreamDescriptor("users")
ORDERS = StreamDescriptor("orders", "sales")
TABLES = {USERS: ("shop", "users"), ORDERS: ("shop", "sales", "orders")}
SOURCE = dg.AssetKey(["shop", "source_shop"])
FOREIGN = {"rows": 5, "dagster/row_count": 5, "atlas/note": "by hand"}


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def instance(request: pytest.FixtureRequest) -> Iterator[dg.DagsterInstance]:
    with open_instance(request.param, request) as instance:
        yield instance


def envelope(seq: int, stream: StreamDescriptor = USERS) -> Envelope:
    state = ConnectionState("STREAM", {stream: Raw(b'{"id": %d}' % seq)})
    file = StagedFile(path="part-1.parquet", size=10, rows=seq, stats="{}")
    commit = StreamCommit(stream, TABLES[stream], 0, False, (file,))
    return Envelope(seq, 1, "shop", (commit,), Raw(state.to_file()), prepared_at=1000.0 + seq)


def key_of(stream: StreamDescriptor) -> dg.AssetKey:
    return dg.AssetKey(list(TABLES[stream]))


def observe(instance: dg.DagsterInstance, seq: int, stream: StreamDescriptor = USERS) -> None:
    metadata = commit_metadata(envelope(seq, stream), None)
    instance.report_runless_asset_event(dg.AssetObservation(key_of(stream), metadata=metadata))


def materialize(instance: dg.DagsterInstance, seq: int, stream: StreamDescriptor = USERS) -> None:
    value = envelope_value(envelope(seq, stream))
    metadata = {"atlas/records_synced": 1, **AtlasMetadataSet(envelope=value)}
    instance.report_runless_asset_event(dg.AssetMaterialization(key_of(stream), metadata=metadata))


def last_logged(instance: dg.DagsterInstance, stream: StreamDescriptor = USERS) -> LoggedState:
    return EventLogStateStore(instance, SOURCE).last_logged(TABLES, {}).get(stream, LoggedState())


def seq_of(instance: dg.DagsterInstance, stream: StreamDescriptor = USERS) -> int | None:
    found = last_logged(instance, stream).envelope
    return None if found is None else found.seq


def test_nothing_is_remembered_of_streams_never_synced(instance: dg.DagsterInstance) -> None:
    assert EventLogStateStore(instance, SOURCE).last_logged(TABLES, {}) == {}


def test_the_envelope_comes_back_whole_but_for_its_files(instance: dg.DagsterInstance) -> None:
    observe(instance, 7)

    found = last_logged(instance).envelope

    assert found == envelope(7).without_files()
    assert found is not None
    blob = found.connection_state.streams[USERS]
    assert json.loads(bytes(blob)) == {"id": 7}
    assert found.commit_of(USERS).files == ()


def test_checkpoints_after_the_last_materialization_count(instance: dg.DagsterInstance) -> None:
    materialize(instance, 3)
    observe(instance, 5)
    observe(instance, 8)

    assert seq_of(instance) == 8


def test_a_materialization_after_the_last_checkpoint_counts(instance: dg.DagsterInstance) -> None:
    observe(instance, 5)
    materialize(instance, 9)

    assert seq_of(instance) == 9


def test_the_higher_number_counts_whatever_came_later(instance: dg.DagsterInstance) -> None:
    observe(instance, 9)
    materialize(instance, 5)

    assert seq_of(instance) == 9


def test_a_materialization_by_somebody_else_is_ignored(instance: dg.DagsterInstance) -> None:
    observe(instance, 4)
    materialize(instance, 4)
    instance.report_runless_asset_event(dg.AssetMaterialization(key_of(USERS), metadata=FOREIGN))

    assert seq_of(instance) == 4


def test_an_observation_by_somebody_else_is_ignored(instance: dg.DagsterInstance) -> None:
    materialize(instance, 4)
    instance.report_runless_asset_event(dg.AssetObservation(key_of(USERS), metadata=FOREIGN))

    assert seq_of(instance) == 4


def test_events_of_others_alone_say_nothing(instance: dg.DagsterInstance) -> None:
    instance.report_runless_asset_event(dg.AssetMaterialization(key_of(USERS), metadata=FOREIGN))
    instance.report_runless_asset_event(dg.AssetObservation(key_of(USERS)))

    assert last_logged(instance) == LoggedState(envelope=None, wiped_at=None)


def test_observations_by_others_do_not_hide_a_newer_checkpoint(
    instance: dg.DagsterInstance,
) -> None:
    materialize(instance, 4)
    observe(instance, 6)
    for _ in range(3):
        instance.report_runless_asset_event(dg.AssetObservation(key_of(USERS), metadata=FOREIGN))

    assert seq_of(instance) == 6


def test_what_the_last_syncs_brought_and_its_columns(instance: dg.DagsterInstance) -> None:
    columns = dg.TableSchema([dg.TableColumn("id", "integer")])
    metadata = {
        "atlas/records_synced": 3,
        **AtlasMetadataSet(records_before="2 1", connector="c:1"),
        "dagster/column_schema": columns,
    }
    event = dg.AssetMaterialization(key_of(USERS), metadata=metadata)
    instance.report_runless_asset_event(event)
    instance.report_runless_asset_event(dg.AssetMaterialization(key_of(USERS), metadata=FOREIGN))

    store = EventLogStateStore(instance, SOURCE)
    store.last_logged(TABLES, {})
    assert (store.connectors, store.columns, store.recent_records) == (set(), {}, {})
    instance.report_runless_asset_event(event)
    store.last_logged(TABLES, {})
    assert (store.connectors, store.columns) == ({"c:1"}, {TABLES[USERS]: columns})
    assert store.recent_records == {TABLES[USERS]: [3, 2, 1]}


def test_each_stream_has_its_own(instance: dg.DagsterInstance) -> None:
    observe(instance, 2, USERS)
    materialize(instance, 6, ORDERS)

    found = EventLogStateStore(instance, SOURCE).last_logged(TABLES, {})

    assert {stream: it.envelope.seq for stream, it in found.items() if it.envelope} == {
        USERS: 2,
        ORDERS: 6,
    }


def test_only_the_streams_asked_for_are_answered(instance: dg.DagsterInstance) -> None:
    observe(instance, 2, USERS)
    observe(instance, 3, ORDERS)

    assert set(EventLogStateStore(instance, SOURCE).last_logged({ORDERS: TABLES[ORDERS]}, {})) == {
        ORDERS
    }


def in_a_run_of(
    stream: StreamDescriptor, instance: dg.DagsterInstance
) -> Mapping[StreamDescriptor, LoggedState]:
    """What a step finds that is about to sync ``stream``."""
    found: dict[StreamDescriptor, LoggedState] = {}

    @dg.asset(key=key_of(stream))
    def step(context: dg.AssetExecutionContext) -> None:
        found.update(EventLogStateStore(context.instance, SOURCE).last_logged(TABLES, {}))

    dg.materialize([step], instance=instance)
    return found


def test_a_wipe_forgets_the_envelope_and_leaves_its_time(instance: dg.DagsterInstance) -> None:
    materialize(instance, 4)
    observe(instance, 5)
    observe(instance, 6, ORDERS)
    before = time.time()
    instance.wipe_assets([key_of(USERS)])

    found = in_a_run_of(USERS, instance)

    wiped = found[USERS]
    assert wiped.envelope is None
    assert wiped.wiped_at is not None
    assert before - 1 <= wiped.wiped_at <= time.time() + 1
    assert found[ORDERS].wiped_at is None
    assert found[ORDERS].envelope == envelope(6, ORDERS).without_files()


def test_a_wipe_is_not_seen_where_the_stream_is_not_selected(instance: dg.DagsterInstance) -> None:
    observe(instance, 5)
    observe(instance, 6, ORDERS)
    instance.wipe_assets([key_of(USERS)])

    # Dagster hides a wiped asset until a run is about to materialize it.
    assert set(in_a_run_of(ORDERS, instance)) == {ORDERS}


def test_after_a_wipe_new_events_count_and_the_wipe_stays_known(
    instance: dg.DagsterInstance,
) -> None:
    materialize(instance, 4)
    before = time.time()
    instance.wipe_assets([key_of(USERS)])
    observe(instance, 10)

    assert seq_of(instance) == 10
    wiped_at = last_logged(instance).wiped_at
    assert wiped_at is not None
    assert before - 1 <= wiped_at <= time.time() + 1


def test_two_hundred_streams_that_agree_with_their_tables_are_one_call(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [StreamDescriptor(f"s{n}") for n in range(200)]
    tables = {name: ("shop", name.name) for name in names}
    for name in names:
        commit = StreamCommit(name, tables[name], 0, False)
        whole = Envelope(5, 1, "shop", (commit,), Raw(b"[]"), prepared_at=1.0)
        metadata = {**AtlasMetadataSet(envelope=envelope_value(whole))}
        event = dg.AssetMaterialization(dg.AssetKey(list(tables[name])), metadata=metadata)
        instance.report_runless_asset_event(event)
    asked: list[str] = []
    for call in ("get_asset_records", "fetch_observations", "fetch_materializations"):
        real = getattr(dg.DagsterInstance, call)

        def counted(self: Any, *args: Any, _call: str = call, _real: Any = real, **kw: Any) -> Any:
            asked.append(_call)
            return _real(self, *args, **kw)

        monkeypatch.setattr(dg.DagsterInstance, call, counted)

    found = EventLogStateStore(instance, SOURCE).last_logged(tables, dict.fromkeys(names, 5))
    assert len(found) == 200
    assert asked == ["get_asset_records"]

    EventLogStateStore(instance, SOURCE).last_logged(
        tables, dict.fromkeys(names, 5) | {names[7]: 6}
    )
    assert asked == ["get_asset_records", "get_asset_records", "fetch_observations"]


def shared_envelope(seq: int) -> Envelope:
    commits = tuple(StreamCommit(name, path, 0, False) for name, path in TABLES.items())
    state = ConnectionState("GLOBAL", {USERS: Raw(b'{"u":1}')}, Raw(b'{"lsn": %d}' % seq))
    return Envelope(seq, 1, "shop", commits, Raw(state.to_file()), prepared_at=1000.0)


def observe_shared(instance: dg.DagsterInstance, seq: int, *, source: bool = True) -> None:
    whole = shared_envelope(seq)
    if source:
        metadata = shared_state_metadata(whole)
        instance.report_runless_asset_event(dg.AssetObservation(SOURCE, metadata=metadata))
    for name in TABLES:
        metadata = commit_metadata(whole, None)
        instance.report_runless_asset_event(dg.AssetObservation(key_of(name), metadata=metadata))


def test_a_shared_state_is_written_once_and_found_for_each_stream(
    instance: dg.DagsterInstance,
) -> None:
    observe_shared(instance, 5)
    [event] = instance.fetch_observations(key_of(USERS), limit=1).records
    assert event.asset_observation is not None
    assert "lsn" not in str(event.asset_observation.metadata["atlas/envelope"].value)

    found = EventLogStateStore(instance, SOURCE).last_logged(TABLES, dict.fromkeys(TABLES, 5))

    assert [each.envelope for each in found.values()] == [shared_envelope(5)] * 2


def test_a_shared_state_of_another_commit_is_not_taken_for_it(
    instance: dg.DagsterInstance,
) -> None:
    observe_shared(instance, 5)
    observe_shared(instance, 9, source=False)

    found = last_logged(instance).envelope

    assert found is not None
    assert (found.seq, found.is_reference) == (9, True)


def test_the_shared_state_of_a_quiet_stream_is_found_however_old(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: only the newest observation of the source was looked at."""
    monkeypatch.setattr(event_log, "_PAGE", 2)
    for seq in range(5, 13):
        observe_shared(instance, seq)
    observe(instance, 20)

    store = EventLogStateStore(instance, SOURCE)

    assert store.find(TABLES[ORDERS], 5) == shared_envelope(5)
    assert store.find(TABLES[USERS], 20) == envelope(20).without_files()
    assert store.find(TABLES[USERS], 4) is None


@pytest.mark.parametrize("blob", [b"7", b"true", b'"text"', b'{"__class__":1}', b"1e400"], ids=repr)
def test_a_state_of_any_kind_can_be_shown(instance: dg.DagsterInstance, blob: bytes) -> None:
    metadata = commit_metadata(envelope(3), Raw(blob))
    instance.report_runless_asset_event(dg.AssetObservation(key_of(USERS), metadata=metadata))
    assert seq_of(instance) == 3


# Events that earlier versions made unreadable


@pytest.mark.parametrize(
    "name", ["__class__", "__enum__", "__set__", "__frozenset__", "__mapping_items__"]
)
def test_an_event_that_dagster_cannot_read(instance: dg.DagsterInstance, name: str) -> None:
    """Regression: a field of such a name stopped its connection for ever."""
    metadata = {
        "atlas/envelope": envelope_value(envelope(5)),
        "atlas/preview": dg.MetadataValue.table(
            [dg.TableRecord({"id": "1", name: "x"})],
            dg.TableSchema([dg.TableColumn("id"), dg.TableColumn(name)]),
        ),
        "atlas/cursor_after": dg.MetadataValue.json({"at": [{name: "x"}]}),
    }
    key = key_of(USERS)
    instance.report_runless_asset_event(dg.AssetObservation(key, metadata=metadata))
    instance.report_runless_asset_event(dg.AssetMaterialization(key, metadata=metadata))

    found = EventLogStateStore(instance, SOURCE).last_logged({USERS: TABLES[USERS]}, {USERS: 5})
    assert found[USERS].envelope is not None
    assert found[USERS].envelope.seq == 5

    (record,) = instance.get_asset_records([key])
    assert record.asset_entry.last_materialization is not None
    (observed,) = instance.fetch_observations(key, limit=1).records
    assert observed.asset_observation is not None
    assert observed.asset_observation.metadata["atlas/cursor_after"].value == {
        "at": [{f" {name}": "x"}]
    }
    assert instance.all_logs(observed.run_id)
