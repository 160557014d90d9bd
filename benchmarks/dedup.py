"""Time, CPU and memory of the Delta destination alone: append, first load by key, changes merged.

    .venv/bin/python benchmarks/dedup.py --rows 1000000 --text-keys

Called by ``run.py``; by itself it prints JSON, and ``--text-keys`` uses UUIDs for keys. Rows are made
as Arrow batches, so only the destination is measured; each workload runs in a process of its own,
with its imports, and making the rows (workload ``rows`` does only that) is part of its figures.
``merge_*`` brings 100,000 rows into a table of that many: half of them new, half changed, which are
``spread`` over all rows or the most ``recent`` ones; ``merge_all`` brings every row again.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import environments
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from measuring import Figures, report_and_exit, run
from msgspec import Raw

from atlas_dagster.destinations.base import StreamWriter, TableSpec
from atlas_dagster.destinations.delta.destination import DeltaDestination
from atlas_dagster.destinations.envelope import Envelope, StreamCommit, WriteMode, now
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.records.batches import random_uuids
from atlas_dagster.records.types import TableSchema

_BATCH = 20_000
_CHANGED = 100_000
_COMMIT_EVERY = 50  # batches: one million rows
_TEXT = {"type": "string"}
_TIMESTAMP = {"type": "string", "format": "date-time", "airbyte_type": "timestamp_with_timezone"}
_PROPERTIES = {
    "id": {"type": "integer"},
    "updated_at": _TIMESTAMP,
    "created_at": _TIMESTAMP,
    "name": _TEXT,
    "email": _TEXT,
    "city": _TEXT,
    "age": {"type": "integer"},
    "weight": {"type": "number"},
    "active": {"type": "boolean"},
    "address": {"type": "object"},
}
WORKLOADS = ("rows", "append", "first_load", "merge_spread", "merge_recent", "merge_all")


def table(mode: WriteMode, *, text_keys: bool) -> TableSpec:
    properties = {**_PROPERTIES, "id": _TEXT} if text_keys else _PROPERTIES
    dedup = mode == "append_dedup"
    return TableSpec(
        path=("bench", "events"),
        schema=TableSchema.from_json_schema({"properties": properties}),
        mode=mode,
        primary_key=("id",) if dedup else (),
        cursor="updated_at" if dedup else None,
    )


def batches(spec: TableSpec, ids: np.ndarray, *, version: int) -> Iterator[pa.RecordBatch]:
    """Rows with the keys ``ids``; a later ``version`` of a row replaces an earlier one."""
    for start in range(0, len(ids), _BATCH):
        chosen = ids[start : start + _BATCH]
        count = len(chosen)
        numbers = pa.array(chosen)
        text = pc.cast(numbers, pa.string())
        times = pa.array(1_700_000_000_000_000 + chosen * 1_000_000 + version)
        word = pc.binary_join_element_wise("user", pc.cast(pc.divide(numbers, 7), pa.string()), "-")
        zoned = pa.timestamp("us", tz="UTC")
        columns = {
            "id": _uuids(chosen) if spec.schema.arrow.field("id").type == pa.string() else numbers,
            "updated_at": times.cast(zoned),
            "created_at": times.cast(zoned),
            "name": word,
            "email": pc.binary_join_element_wise(word, text, "@example.com", ""),
            "city": pc.binary_join_element_wise("city", pa.array(chosen % 997).cast("string"), " "),
            "age": pa.array(chosen % 80),
            "weight": pa.array(chosen % 4001 / 37),
            "active": pa.array(chosen % 3 == 0),
            "address": pc.binary_join_element_wise('{"street":"', text, '","zip":"12345"}', ""),
            "_airbyte_raw_id": random_uuids(count),
            "_airbyte_extracted_at": pa.array(np.full(count, version)).cast(zoned),
            "_airbyte_meta": pa.array(['{"sync_id":1,"changes":[]}'] * count),
            "_airbyte_generation_id": pa.array(np.zeros(count, np.int64)),
            "_airbyte_extra": pa.nulls(count, pa.string()),
        }
        schema = spec.schema.arrow
        yield pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _uuids(ids: np.ndarray) -> pa.Array:
    """One random-looking UUID per number, always the same."""
    return pa.array(
        [f"{n * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}" for n in ids.tolist()]
    )


def commit(destination: DeltaDestination, writer: StreamWriter, spec: TableSpec, seq: int) -> None:
    part = StreamCommit(StreamDescriptor("events"), spec.path, 0, False, writer.stage())
    envelope = Envelope(seq, 1, "bench", (part,), Raw(b"[]"), now())
    destination.commit(envelope, [writer])


def load(lake: str, spec: TableSpec, ids: np.ndarray, *, version: int) -> None:
    destination = DeltaDestination(lake)
    snapshot = destination.inspect(spec.path)
    seq, writer = snapshot.seq or 0, snapshot.open(spec)
    for number, batch in enumerate(batches(spec, ids, version=version), 1):
        writer.write(batch)
        if number % _COMMIT_EVERY == 0:
            seq += 1
            commit(destination, writer, spec, seq)
    commit(destination, writer, spec, seq + 1)
    writer.merge_committed()


def run_child(workload: str, rows: int, lake: str, *, text_keys: bool) -> NoReturn:
    spec = table("append" if workload == "append" else "append_dedup", text_keys=text_keys)
    every = np.arange(rows)
    if workload == "rows":
        for _ in batches(spec, every, version=1):
            pass
    elif workload in ("append", "first_load"):
        load(lake, spec, every, version=1)
    elif workload == "merge_all":
        load(lake, spec, every, version=2)
    else:
        half = min(_CHANGED, rows) // 2  # updates, and as many new rows
        spread = np.random.default_rng(1).choice(rows, half, replace=False)
        old = spread if workload == "merge_spread" else every[-half:]
        load(lake, spec, np.concatenate([old, np.arange(rows, rows + half)]), version=2)
    report_and_exit()


def measure(rows: int, *, text_keys: bool = False) -> dict[str, Figures]:
    """Each workload's figures, in seconds and MB."""
    results = {}
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as folder:
        first_load = Path(folder) / "first_load"
        for workload in WORKLOADS:
            lake = Path(folder) / workload
            if workload.startswith("merge"):
                shutil.copytree(first_load, lake)
            command = [
                str(environments.atlas()),
                __file__,
                "--child",
                workload,
                "--lake",
                str(lake),
            ]
            command += ["--rows", str(rows), *(["--text-keys"] if text_keys else [])]
            results[workload] = run(command)
            print(f"{workload} {rows}: {results[workload]}", file=sys.stderr, flush=True)
            if lake != first_load:
                shutil.rmtree(lake, ignore_errors=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--text-keys", action="store_true")
    parser.add_argument("--child", choices=WORKLOADS, help=argparse.SUPPRESS)
    parser.add_argument("--lake", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        run_child(chosen.child, chosen.rows, chosen.lake, text_keys=chosen.text_keys)
    print(json.dumps(measure(chosen.rows, text_keys=chosen.text_keys), indent=2))


if __name__ == "__main__":
    main()
