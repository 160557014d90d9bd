"""A connector made of protocol lines, and syncs of it into a lake of its own."""

import copy
import json
import shutil
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from adbc_driver_postgresql import dbapi
from deltalake import DeltaTable, QueryBuilder

from atlas_dagster.config.masking import Masker
from atlas_dagster.destinations.base import Destination, TablePath
from atlas_dagster.destinations.delta.destination import DeltaDestination
from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.destinations.postgres.destination import PostgresDestination
from atlas_dagster.errors import AtlasError
from atlas_dagster.protocol.catalog import ConfiguredStream, Stream, configure
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.runners.base import ExitStatus
from atlas_dagster.runners.fake import FakeRunner
from atlas_dagster.source.connector import Connector
from atlas_dagster.sync.events import StreamFinished, StreamsCommitted, SyncEvent
from atlas_dagster.sync.plan import SyncPlan, make_plan
from atlas_dagster.sync.resume import LoggedState, RunRef, Target
from atlas_dagster.sync.session import SyncSession
from atlas_dagster.sync.state_edits import StateEditor
from atlas_dagster_tests.listening import CallbackListener

#: Commits at every STATE.
EAGER = {"commit_seconds": 0.0}
COLUMNS = {"id": {"type": "integer"}, "v": {"type": "string"}}

# The messages


def line(kind: str, **content: Any) -> bytes:
    return json.dumps({"type": kind, **content}).encode() + b"\n"


def _named(name: str, namespace: str | None) -> dict[str, str]:
    return {"name": name} | ({} if namespace is None else {"namespace": namespace})


def record(stream: str, id: int, v: str | None = None, *, namespace: str | None = None) -> bytes:
    content = {"stream": stream, "data": {"id": id, "v": v}, "emitted_at": 1_700_000_000_000 + id}
    return line("RECORD", record=content | ({} if namespace is None else {"namespace": namespace}))


def records(stream: str, ids: Iterable[int]) -> bytes:
    return b"".join(record(stream, id) for id in ids)


def state(
    stream: str, blob: Any, *, count: float | None = None, namespace: str | None = None
) -> bytes:
    content = {"stream_descriptor": _named(stream, namespace), "stream_state": blob}
    return line("STATE", state={"type": "STREAM", "stream": content} | _stats(count))


def global_state(shared: Any, streams: Mapping[str, Any], *, count: float | None = None) -> bytes:
    each = [
        {"stream_descriptor": {"name": name}, "stream_state": blob}
        for name, blob in streams.items()
    ]
    content = {"shared_state": shared, "stream_states": each}
    return line("STATE", state={"type": "GLOBAL", "global": content} | _stats(count))


def legacy_state(blob: Any) -> bytes:
    return line("STATE", state={"data": blob})


def _stats(count: float | None) -> dict[str, Any]:
    return {} if count is None else {"sourceStats": {"recordCount": count}}


def status(stream: str, word: str = "COMPLETE", *, namespace: str | None = None) -> bytes:
    content = {"stream_descriptor": _named(stream, namespace), "status": word}
    return line(
        "TRACE", trace={"type": "STREAM_STATUS", "emitted_at": 1.5, "stream_status": content}
    )


def error(message: str, failure_type: str = "system_error", *, stream: str | None = None) -> bytes:
    content: dict[str, Any] = {"message": message, "failure_type": failure_type}
    if stream is not None:
        content["stream_descriptor"] = {"name": stream}
    return line("TRACE", trace={"type": "ERROR", "emitted_at": 1.5, "error": content})


# The catalog


def incremental(
    name: str, mode: str = "append", *, namespace: str | None = None, **columns: Any
) -> ConfiguredStream:
    return _configured(name, "incremental", mode, namespace, columns)


def full_refresh(
    name: str, mode: str = "overwrite", *, namespace: str | None = None, **columns: Any
) -> ConfiguredStream:
    return _configured(name, "full_refresh", mode, namespace, columns)


def resumable(name: str, mode: str = "overwrite", **columns: Any) -> ConfiguredStream:
    """A full refresh that the source can go on with in its middle."""
    return _configured(name, "full_refresh", mode, None, columns, is_resumable=True)


def _configured(
    name: str,
    sync_mode: Any,
    mode: Any,
    namespace: str | None,
    columns: Mapping[str, Any],
    *,
    is_resumable: bool = False,
) -> ConfiguredStream:
    properties = COLUMNS | dict(columns)
    kept = {name: column for name, column in properties.items() if column is not None}
    offered = {
        "name": name,
        "namespace": namespace,
        "json_schema": {"type": "object", "properties": kept},
        "is_resumable": is_resumable,
        "supported_sync_modes": ["full_refresh", "incremental"],
        "source_defined_cursor": True,
        "default_cursor_field": ["id"],
        "source_defined_primary_key": [["id"]],
    }
    stream = Stream.from_raw(json.dumps(offered).encode())
    return configure(stream, sync_mode=sync_mode, destination_sync_mode=mode)


# The sync


class MemoryStore:
    """Remembers what a driver was told, as Dagster's event log would."""

    def __init__(self) -> None:
        self.envelopes: dict[StreamDescriptor, Envelope] = {}
        self.wiped: dict[StreamDescriptor, float] = {}

    def wipe(self, stream: StreamDescriptor) -> None:
        """As a user would wipe its asset in Dagster."""
        self.wiped[stream] = time.time()

    def note(self, event: SyncEvent) -> None:
        if isinstance(event, StreamsCommitted):
            bare = Envelope.decode(event.envelope.without_files().encode())
            for commit in bare.streams:
                self.envelopes[commit.stream] = bare

    def find(self, table: TablePath, seq: int) -> Envelope | None:
        return None

    def last_logged(
        self, tables: Mapping[StreamDescriptor, TablePath], committed: Any
    ) -> Mapping[StreamDescriptor, LoggedState]:
        return {
            name: LoggedState(self.envelopes.get(name), self.wiped.get(name)) for name in tables
        }


@dataclass
class Outcome:
    """What one sync did and said."""

    plan: SyncPlan
    runner: Any
    events: list[SyncEvent] = field(default_factory=list)
    failure: AtlasError | None = None
    log: list[tuple[str, str]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def commits(self) -> list[StreamsCommitted]:
        return [event for event in self.events if isinstance(event, StreamsCommitted)]

    @property
    def finished(self) -> dict[str, StreamFinished]:
        return {
            str(event.plan.descriptor): event
            for event in self.events
            if isinstance(event, StreamFinished)
        }

    def file(self, option: str) -> Any:
        """The JSON of a file the connector was given; None if it was not."""
        content = self.runner.commands[-1].files.get(option)
        return None if content is None else json.loads(content)


class Lake:
    """A lake, its memory, and syncs of the connection ``c`` into it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.destination: Destination = DeltaDestination(str(root))
        self.store = MemoryStore()
        self.runs = 0

    def plan(
        self,
        streams: Collection[ConfiguredStream],
        *,
        selected: Collection[str] | None = None,
        root: str | None = None,
        **options: Any,
    ) -> SyncPlan:
        return make_plan(
            self.target(streams),
            [s.descriptor for s in streams if selected is None or s.descriptor.name in selected],
            RunRef("run", root or f"run {self.runs}"),
            **{"warn": print, **options},
        )

    def target(self, streams: Collection[ConfiguredStream]) -> Target:
        """The tables of ``streams``."""
        configured = {stream.descriptor: stream for stream in streams}
        tables = {name: path(name) for name in configured}
        return Target("c", configured, tables, self.destination, self.store)

    def prepare(
        self,
        streams: Collection[ConfiguredStream],
        *output: bytes | int | ExitStatus,
        selected: Collection[str] | None = None,
        secrets: Collection[str] = (),
        connector: Connector | None = None,
        root: str | None = None,
        **options: Any,
    ) -> tuple[SyncSession, Outcome]:
        """A session about to read ``output``; an ``int`` in it is the exit.

        A ``connector`` of the caller's own, which logs elsewhere, is read instead. ``root``: the
        run that it tries again; by default the last one, if that failed.
        """
        notices: list[str] = []
        plan = self.plan(streams, selected=selected, warn=notices.append, root=root)
        runner = connector.runner if connector else FakeRunner(lambda _: output)
        outcome = Outcome(plan, runner, notices=notices)
        connector = connector or Connector(
            runner,
            name="source-x",
            masker=Masker(secrets),
            listener=CallbackListener(
                connector=lambda level, text: outcome.log.append((level, text))
            ),
        )
        return (
            SyncSession(plan, connector=connector, destination=self.destination, **options),
            outcome,
        )

    def sync(
        self,
        streams: Collection[ConfiguredStream],
        *output: bytes | int | ExitStatus,
        **options: Any,
    ) -> Outcome:
        session, outcome = self.prepare(streams, *output, **options)
        try:
            for event in session.run():
                self.store.note(event)
                outcome.events.append(event)
        except AtlasError as failure:
            outcome.failure = failure
        else:
            self.runs += 1
        return outcome

    def beside(self) -> "Lake":
        """The same tables, as another process sees them that dies before it records anything."""
        other = copy.copy(self)
        other.destination, other.store = DeltaDestination(str(self.root)), MemoryStore()
        other.store.envelopes = dict(self.store.envelopes)
        return other

    def note(self, event: SyncEvent) -> SyncEvent:
        """Remember ``event``, as a driver does."""
        self.store.note(event)
        return event

    def table(self, *names: str) -> DeltaTable:
        return DeltaTable(str(self.root.joinpath("c", *names)))

    def versions(self) -> dict[str, int]:
        """The version of every table."""
        logs = self.root.rglob("_delta_log")
        return {
            str(log.parent.relative_to(self.root)): DeltaTable(str(log.parent)).version()
            for log in logs
        }

    def read(self, names: tuple[str, ...], columns: str) -> pa.Table:
        # Not DeltaTable.to_pyarrow_table: the process then aborts when it ends (deltalake 1.6.6).
        query = QueryBuilder().register("t", self.table(*names))
        return pa.table(query.execute(f"SELECT {columns} FROM t").read_all())

    def drop(self, name: str) -> None:
        """As a user would drop a table."""
        shutil.rmtree(self.root / "c" / name)

    def lose_envelopes(self, of: str = "") -> None:
        """Those of one stream, or all."""
        for file in self.root.glob("_atlas/c/*.json"):
            if f'"name":"{of}' in file.read_text():
                file.unlink()

    def damage_envelopes(self, of: str) -> None:
        """Those of one stream."""
        for file in self.root.glob("_atlas/c/*.json"):
            if f'"name":"{of}' in file.read_text():
                file.write_text(file.read_text()[:40])

    def rows(self, *names: str, columns: str = "id, v") -> list[tuple[Any, ...]]:
        found = self.read(names, columns)
        return sorted((tuple(row.values()) for row in found.to_pylist()), key=repr)

    def ids(self, *names: str) -> list[int]:
        return sorted(row[0] for row in self.rows(*names, columns="id"))

    def untracked(self, name: str) -> set[Any]:
        """Files in the folder of a table that were never files of it."""
        folder = self.root / "c" / name
        shown = "".join(log.read_text() for log in folder.glob("_delta_log/*.json"))
        return {file for file in folder.glob("*.parquet") if file.name not in shown}

    def staged(self) -> set[Any]:
        """Rows written that belong to no table: Parquet files."""
        files = set(self.root.rglob("*.parquet"))
        for log in self.root.rglob("_delta_log"):
            files -= set(log.glob("*.parquet"))
            uris = DeltaTable(str(log.parent)).file_uris()
            files -= {Path(uri) for uri in uris}
        return files


class Warehouse(Lake):
    """The same in Postgres."""

    def __init__(self, server: Mapping[str, Any], *, empty: bool = True) -> None:
        login = f"{server['username']}:{server['password']}"
        place = f"{server['hostname']}:{server['port']}/{server['db_name']}"
        self.address = f"postgresql://{login}@{place}"
        self.destination = PostgresDestination(self.address)
        self.others: list[Destination] = []
        self.store = MemoryStore()
        self.runs = 0
        self.look = dbapi.connect(self.address, autocommit=True)
        if empty:
            self.do("DROP SCHEMA IF EXISTS c CASCADE")

    @classmethod
    def again(cls, dead: "Warehouse", server: Mapping[str, Any]) -> "Warehouse":
        """What the next process finds: the tables, and what the event log remembers."""
        warehouse = cls(server, empty=False)
        warehouse.store, warehouse.runs = dead.store, dead.runs
        return warehouse

    def beside(self) -> "Warehouse":
        other = copy.copy(self)
        other.destination, other.store = PostgresDestination(self.address), MemoryStore()
        other.store.envelopes = dict(self.store.envelopes)
        self.others.append(other.destination)
        return other

    def close(self) -> None:
        for destination in (self.destination, *self.others):
            destination.close()
        self.look.close()

    def ask(self, sql: str) -> pa.Table:
        with self.look.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetch_arrow_table()

    def do(self, sql: str) -> None:
        with self.look.cursor() as cursor:
            cursor.execute(sql)

    def read(self, names: tuple[str, ...], columns: str) -> pa.Table:
        return self.ask(f'SELECT {columns} FROM c."{"__".join(names)}"')

    def versions(self) -> dict[str, int]:
        if not self.ask("SELECT 1 WHERE to_regclass('c._atlas_state') IS NOT NULL").num_rows:
            return {}
        found = self.ask("SELECT replace(path, '.', '/') AS path, seq FROM c._atlas_state")
        return {row["path"]: row["seq"] for row in found.to_pylist() if row["seq"]}

    def staged(self) -> set[Any]:
        found = self.ask("SELECT relname FROM pg_class WHERE relname LIKE '\\_atlas\\_stage%'")
        return set(found.column(0).to_pylist())

    def drop(self, name: str) -> None:
        self.do(f'DROP TABLE c."{name}"')

    def damage_envelopes(self, of: str) -> None:
        named = f'strpos(envelope, \'"name":"{of}\') > 0'
        self.do(f"UPDATE c._atlas_envelopes SET envelope = left(envelope, 40) WHERE {named}")

    def lose_envelopes(self, of: str = "") -> None:
        self.do(f'DELETE FROM c._atlas_envelopes WHERE strpos(envelope, \'"name":"{of}\') > 0')


def upkeep(
    lake: Lake,
    *streams: ConfiguredStream,
    run: str = "upkeep",
    root: str = "",
    assume: Collection[Envelope] | None = None,
) -> StateEditor:
    """What a user does about the state of ``streams``."""
    return StateEditor(lake.target(streams), RunRef(run, root or run), assume=assume)


def path(stream: StreamDescriptor) -> TablePath:
    return ("c", *([stream.namespace] if stream.namespace else []), stream.name)
