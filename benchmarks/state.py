"""What state costs: a checkpoint, and finding out at the start where 200 streams stand.

Called by ``run.py``; by itself it prints JSON. A checkpoint brings 10,000 rows. ``prepare`` stores its
envelope (Postgres does so within the commit), ``commit`` makes rows and ``seq`` durable, ``event`` is its
observation in Dagster's event log; ``unpublished`` is a commit whose rows are shown later. ``of_bare`` compares
all of it, with writing the rows, to a bare append of the same rows: ``write_deltalake``, or a binary
``COPY``. At the start, one batched call is compared to a call for each stream; ``died`` is as it is after
all of their syncs died between a commit and its materialization. Postgres runs on this machine, without
fsync; SQLite is Dagster's default, one file for each run.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import dedup
import numpy as np
import pyarrow as pa
import yaml
from adbc_driver_postgresql import dbapi
from deltalake import write_deltalake
from msgspec import Raw

from atlas_dagster.destinations.base import Destination, StreamWriter, TablePath
from atlas_dagster.destinations.delta.destination import DeltaDestination
from atlas_dagster.destinations.envelope import Envelope, StreamCommit, now
from atlas_dagster.destinations.postgres.destination import PostgresDestination
from atlas_dagster.orchestration.definitions.translator import ConnectionAssets
from atlas_dagster.orchestration.step.event_log import EventLogStateStore
from atlas_dagster.orchestration.step.metadata import to_text
from atlas_dagster.orchestration.step.reporter import make_observations
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.discovered_catalog import Discovered
from atlas_dagster_tests.postgres_server import PostgresServer, postgres_server

_ROWS = 10_000
_CHECKPOINTS = 20
_STREAMS = 200
_SPEC = dedup.table("append", text_keys=False)
_DEFINED = ConnectionAssets(
    Connection(name="bench", command=["true"]),
    Discovered("bench:1", "", 0.0, {}, None, streams=(), tables=()),
    specs={},
)
_SOURCE = dg.AssetKey(["bench", "source"])
Milliseconds = dict[str, float]


def measure(runs: int) -> dict[str, dict[str, Milliseconds]]:
    """Medians, in milliseconds."""
    checkpoints: dict[str, Milliseconds] = {}
    starts: dict[str, Milliseconds] = {}
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as folder, postgres_server() as server:
        for event_log in ("sqlite", "postgres"):
            with _instance(Path(folder) / event_log, event_log, server) as instance:
                for kind in ("delta", "postgres"):
                    name = f"{kind}, event log in {event_log}"
                    where = Path(folder) / f"lake_{event_log}"
                    checkpoints[name] = _checkpoint(kind, where, server, instance)
                    print(f"checkpoint, {name}: {checkpoints[name]}", file=sys.stderr, flush=True)
                starts[event_log] = _start(instance, runs)
                print(f"start, {event_log}: {starts[event_log]}", file=sys.stderr, flush=True)
    return {"checkpoint": checkpoints, f"{_STREAMS} streams": starts}


@contextmanager
def _instance(home: Path, event_log: str, server: PostgresServer) -> Iterator[dg.DagsterInstance]:
    settings: dict[str, Any] = {"telemetry": {"enabled": False}}
    if event_log == "postgres":
        # Without the scheme, SQLAlchemy 2.1 would want psycopg 3.
        database = {**server.settings, "scheme": "postgresql+psycopg2"}
        settings["storage"] = {"postgres": {"postgres_db": database}}
    home.mkdir()
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance


def _address(server: PostgresServer) -> str:
    settings = server.settings
    place = f"{settings['hostname']}:{settings['port']}/{settings['db_name']}"
    return f"postgresql://{settings['username']}@{place}"


# A checkpoint


def _checkpoint(
    kind: str, lake: Path, server: PostgresServer, instance: dg.DagsterInstance
) -> Milliseconds:
    address = _address(server)
    if kind == "postgres":
        with (
            dbapi.connect(address, autocommit=True) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("DROP SCHEMA IF EXISTS bench CASCADE")
    (batch,) = dedup.batches(_SPEC, np.arange(_ROWS), version=1)
    destination: Destination = (
        DeltaDestination(str(lake)) if kind == "delta" else PostgresDestination(address)
    )
    taken = _Stopwatch()
    with closing(destination):
        prepare = destination.prepare
        destination.prepare = lambda envelope: taken.of("prepare", prepare, envelope)  # type: ignore[method-assign]
        seq = destination.inspect(_SPEC.path).seq or 0
        for unpublished in (False, True):
            writer = destination.inspect(_SPEC.path).open(_SPEC)
            for _ in range(_CHECKPOINTS):
                seq += 1
                taken.of("write", writer.write, batch)
                envelope = taken.of("write", _staged, writer, seq, unpublished=unpublished)
                taken.of(
                    "held" if unpublished else "commit", destination.commit, envelope, [writer]
                )
                if not unpublished:
                    taken.of("event", _observe, instance, envelope)
            writer.discard()
    bare = _bare_delta(lake, batch) if kind == "delta" else _bare_postgres(address, batch)
    middle = {name: taken.median(name) for name in ("prepare", "commit", "held", "event")}
    # It is part of the commit; taken twice a commit are the batch and its file.
    whole = 2 * taken.median("write") + middle["commit"] + middle["event"]
    prepared = middle["prepare"]
    found = middle | {
        "commit": middle["commit"] - prepared,
        "held": middle["held"] - prepared,
        "bare": bare,
    }
    return {name: round(value, 1) for name, value in found.items()} | {
        "of_bare": round(whole / bare, 2)
    }


class _Stopwatch:
    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def of(self, name: str, work: Any, *arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return work(*arguments, **options)
        finally:
            self._seconds.setdefault(name, []).append(time.perf_counter() - start)

    def median(self, name: str) -> float:
        """In milliseconds."""
        return statistics.median(self._seconds[name]) * 1000


def _staged(writer: StreamWriter, seq: int, *, unpublished: bool) -> Envelope:
    part = StreamCommit(
        StreamDescriptor("events"),
        _SPEC.path,
        0,
        replaces=False,
        files=writer.stage(),
        unpublished=unpublished,
        continues=unpublished,
    )
    return _envelope(seq, part)


def _envelope(seq: int, part: StreamCommit) -> Envelope:
    name = part.stream.name
    state = (
        f'[{{"type":"STREAM","stream":{{"stream_descriptor":{{"name":"{name}"}},'
        f'"stream_state":{{"updated_at":"2024-01-02T03:04:05Z","seq":{seq}}}}}}}]'
    )
    return Envelope(seq, 1, "bench", (part,), Raw(state.encode()), now())


def _observe(instance: dg.DagsterInstance, envelope: Envelope) -> None:
    for observation in make_observations(_DEFINED, envelope):
        instance.report_runless_asset_event(observation)


def _bare_delta(lake: Path, batch: pa.RecordBatch) -> float:
    taken = _Stopwatch()
    rows = pa.Table.from_batches([batch])
    for _ in range(_CHECKPOINTS):
        taken.of("append", write_deltalake, str(lake / "bare"), rows, mode="append")
    return taken.median("append")


def _bare_postgres(address: str, batch: pa.RecordBatch) -> float:
    taken = _Stopwatch()
    with dbapi.connect(address) as connection:

        def append() -> None:
            with connection.cursor() as cursor:
                cursor.adbc_ingest("bare", batch, mode="create_append", db_schema_name="bench")
            connection.commit()

        for _ in range(_CHECKPOINTS):
            taken.of("append", append)
    return taken.median("append")


# The start


def _start(instance: dg.DagsterInstance, runs: int) -> Milliseconds:
    tables: dict[StreamDescriptor, TablePath] = {
        StreamDescriptor(f"stream_{number}"): ("bench", f"stream_{number}")
        for number in range(_STREAMS)
    }
    found: Milliseconds = {}
    for died in (False, True):
        committed = {}
        for seq, (name, path) in enumerate(tables.items(), start=2 if died else 1):
            envelope = _envelope(seq, StreamCommit(name, path, 0, replaces=False))
            committed[name] = seq
            _observe(instance, envelope)
            if not died:
                metadata = {"atlas/envelope": to_text(envelope)}
                event = dg.AssetMaterialization(dg.AssetKey(list(path)), metadata=metadata)
                instance.report_runless_asset_event(event)
        taken = _Stopwatch()
        for _ in range(runs):
            taken.of("batched", _remember, instance, tables, committed)
            taken.of("one by one", _one_by_one, instance, tables, committed)
        batched, alone = taken.median("batched"), taken.median("one by one")
        prefix = "died_" if died else ""
        found[f"{prefix}batched"] = round(batched, 1)
        found[f"{prefix}one_by_one"] = round(alone, 1)
        found[f"{prefix}of_one_by_one"] = round(batched / alone, 3)
    return found


def _remember(
    instance: dg.DagsterInstance,
    tables: Mapping[StreamDescriptor, TablePath],
    committed: Mapping[StreamDescriptor, int],
) -> None:
    found = EventLogStateStore(instance, _SOURCE).last_logged(tables, committed)
    assert {name: each.envelope and each.envelope.seq for name, each in found.items()} == committed


def _one_by_one(
    instance: dg.DagsterInstance,
    tables: Mapping[StreamDescriptor, TablePath],
    committed: Mapping[StreamDescriptor, int],
) -> None:
    for name, path in tables.items():
        _remember(instance, {name: path}, {name: committed[name]})


if __name__ == "__main__":
    print(json.dumps(measure(3), indent=2))
