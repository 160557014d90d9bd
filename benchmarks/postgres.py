"""A sync into Postgres beside ``COPY ... FROM STDIN`` of the rows it brought, into empty tables.

Called by ``run.py``. Each run has a Postgres server of its own on this machine, without fsync. The
copy is in Postgres's binary format, from a file, by ``psql``; ``copy`` counts rows of both streams.
"""

import subprocess
import tempfile
import time
from pathlib import Path

import environments
from measuring import Figures, per_record, ratios, run
from recording import RECORDINGS

from atlas_dagster_tests.postgres_server import postgres_binaries, postgres_server

HERE = Path(__file__).parent


def measure(records: int, runs: int) -> dict[str, Figures]:
    atlas, copies = [], []
    for _ in range(runs):
        with postgres_server() as private:
            server = private.settings
            place = f"{server['hostname']}:{server['port']}/{server['db_name']}"
            address = f"postgresql://{server['username']}@{place}"
            workload = [str(environments.atlas()), str(HERE / "workloads.py"), "append", "clean"]
            atlas.append(run([*workload, str(records), address]))
            copies.append(_copy_seconds(address))
            print(f"postgres: {atlas[-1]}, copy: {copies[-1]:.2f} s", flush=True)
    ours = per_record(atlas, records)
    copy: Figures = {"records_per_s": round(records / sorted(copies)[len(copies) // 2])}
    return {"atlas": ours, "copy": copy, "of_copy": ratios(ours, copy)}


def _copy_seconds(address: str) -> float:
    seconds = 0.0
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as folder:
        for stream in RECORDINGS["clean"].streams:
            table, file = f"bench.{stream.name}", f"{folder}/{stream.name}"
            _psql(address, f"\\copy {table} to '{file}' with (format binary)")
            _psql(address, f"create table {table}_copy (like {table})")
            start = time.perf_counter()
            _psql(address, f"\\copy {table}_copy from '{file}' with (format binary)")
            seconds += time.perf_counter() - start
    return seconds


def _psql(address: str, command: str) -> None:
    programs = postgres_binaries()
    assert programs
    options = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--command", command]
    subprocess.run([str(programs / "psql"), address, *options], check=True)
