"""Records per second, CPU and memory from a container's stdout to committed Delta tables.

    make bench                     # or: .venv/bin/python benchmarks/run.py --records 200000

Each workload runs in a process of its own, on the same recorded output, played by a container. Beside
it stand two floors (the same container read and thrown away; parsed and written as Parquet, nothing
else) and PyAirbyte on the same recording. Results go to ``benchmarks/results.json``. Needs Docker and
the base image of ``make images``.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import pyairbyte  # noqa: E402
from engine import decoder_speed, start_overhead  # noqa: E402
from recording import catalog_streams, write_recording  # noqa: E402

from atlas_dagster.destinations.delta import DeltaDestination  # noqa: E402
from atlas_dagster.protocol.catalog import Catalog, configure  # noqa: E402
from atlas_dagster.runners.base import ConnectorCommand  # noqa: E402
from atlas_dagster.runners.docker import DockerRunner  # noqa: E402
from atlas_dagster.runners.engine import connect  # noqa: E402
from atlas_dagster.sync.connector import Connector  # noqa: E402
from atlas_dagster.sync.plan import make_plan  # noqa: E402
from atlas_dagster.sync.session import SyncSession  # noqa: E402

BASE = "atlas-test/base:bookworm"
_RUNS = 3


def image_name(records: int) -> str:
    return f"atlas-bench/source-recorded:{records}"


def build_image(records: int) -> None:
    """An image that prints the recording, whatever it is asked."""
    client = connect()
    if client.images.list(name=image_name(records)):
        return
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as folder:
        write_recording(Path(folder) / "recording.jsonl", records)
        (Path(folder) / "Dockerfile").write_text(
            f"FROM {BASE}\nCOPY recording.jsonl /\n"
            'ENTRYPOINT ["sh", "-c", "exec cat /recording.jsonl"]\n'
        )
        subprocess.run(["docker", "build", "-q", "-t", image_name(records), folder], check=True)


def read_to_nothing(records: int) -> None:
    """The floor: attach, take every byte, do nothing with it."""
    for _ in _output(records):
        pass


def write_parquet(records: int) -> None:
    """The floor of tables: the same bytes into typed Parquet, no more."""
    from floor_parquet import parse_to_parquet  # polars is in no other workload's memory

    parse_to_parquet(_output(records), records)


def _output(records: int) -> Iterator[bytes]:
    command = ConnectorCommand("read", {"config": b"{}"}, {"atlas.connection": "bench"})
    with DockerRunner(image_name(records), client=connect()).start(command) as process:
        for channel, content in process.output():
            if channel == "stdout":
                yield content
        assert process.wait().code == 0


class _NothingRemembered:
    def remembered(self, tables: Any, committed: Any) -> dict[Any, Any]:
        return {}


def sync_into_delta(mode: str) -> Callable[[int], None]:
    """A whole sync: parse, type, stage, commit with state, and merge for append_dedup."""

    def run(records: int) -> None:
        runner = DockerRunner(image_name(records), client=connect())
        connector = Connector(
            runner, name="bench", log=lambda *_: None, labels={"atlas.connection": "bench"}
        )
        catalog = Catalog.from_json(catalog_streams())
        sync_mode = "full_refresh" if mode == "overwrite" else "incremental"
        streams = [
            configure(s, sync_mode=sync_mode, destination_sync_mode=mode)  # type: ignore[arg-type]
            for s in catalog.streams
        ]
        names = [stream.descriptor for stream in streams]
        with tempfile.TemporaryDirectory(prefix="atlas-bench-") as lake:
            destination = DeltaDestination(lake)
            plan = make_plan(
                "bench",
                streams,
                selected=names,
                tables={name: ("bench", name.name) for name in names},
                destination=destination,
                store=_NothingRemembered(),
                run_id=None,
                notify=print,
            )
            for _ in SyncSession(plan, connector=connector, destination=destination).run():
                pass
            rows = sum(
                destination.open("bench", stream.table).describe().row_count
                for stream in plan.streams
            )
            assert rows == records, f"{rows} rows instead of {records}"

    return run


FLOORS: dict[str, Callable[[int], None]] = {
    "floor": read_to_nothing,
    "floor_parquet": write_parquet,
}
MODES = ("append", "overwrite", "append_dedup")
WORKLOADS = FLOORS | {mode: sync_into_delta(mode) for mode in MODES}
Figures = dict[str, float]


def measure(command: list[str], records: int, runs: int) -> Figures:
    """Run ``command`` in fresh processes; CPU and memory are that process's own, medians."""
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        child = subprocess.run(command, check=True, capture_output=True, text=True)
        wall = time.perf_counter() - start
        found.append({"wall_s": wall, **json.loads(child.stdout.splitlines()[-1])})
    middle = {key: statistics.median(run[key] for run in found) for key in found[0]}
    return {
        "records_per_s": round(records / middle["wall_s"]),
        "cpu_s_per_million": round(middle["cpu_s"] * 1e6 / records, 2),
        "peak_rss_mb": round(middle["peak_rss_mb"]),
    }


def ours(workload: str, records: int, runs: int) -> Figures:
    command = [sys.executable, __file__, "--child", workload, "--records", str(records)]
    figures = measure(command, records, runs)
    print(f"{workload:13}", figures, flush=True)
    return figures


def theirs(records: int, runs: int) -> dict[str, Figures]:
    """PyAirbyte's figures by workload; none, with the reason printed, where it cannot be had."""
    try:
        python = pyairbyte.environment()
    except subprocess.CalledProcessError as error:
        print("PyAirbyte is left out, its environment cannot be made:", error.stderr.strip())
        return {}
    found = {}
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as folder:
        pyairbyte.write_source(Path(folder), records)
        for mode in MODES:
            command = pyairbyte.command(python, Path(folder), mode, records)
            found[mode] = measure(command, records, runs)
            print(f"PyAirbyte, {mode:13}", found[mode], flush=True)
    return found


def ratios(of: Figures, to: Figures) -> Figures:
    return {key: round(of[key] / to[key], 2) for key in of}


def run_child(workload: str, records: int) -> None:
    WORKLOADS[workload](records)
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {"cpu_s": used.ru_utime + used.ru_stime, "peak_rss_mb": used.ru_maxrss / 1024}
    print(json.dumps(figures), flush=True)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=_RUNS)
    parser.add_argument("--child", choices=WORKLOADS)
    arguments = parser.parse_args()
    if arguments.child:
        run_child(arguments.child, arguments.records)
        return
    build_image(arguments.records)
    floors = {name: ours(name, arguments.records, arguments.runs) for name in FLOORS}
    atlas = {mode: ours(mode, arguments.records, arguments.runs) for mode in MODES}
    rival = theirs(arguments.records, arguments.runs)
    workloads: dict[str, Any] = {}
    for mode, figures in atlas.items():
        workloads[mode] = {"atlas": figures}
        workloads[mode] |= {f"of_{name}": ratios(figures, floor) for name, floor in floors.items()}
        if mode in rival:
            workloads[mode] |= {
                "pyairbyte": rival[mode],
                "of_pyairbyte": ratios(figures, rival[mode]),
            }
    report = {
        "records": arguments.records,
        "runs": arguments.runs,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "pyairbyte": pyairbyte.VERSION,
        "floors": floors,
        "workloads": workloads,
        "decoder": decoder_speed(arguments.records // 5, arguments.runs),
        "start": start_overhead(2 * arguments.runs),
    }
    print(json.dumps({name: report[name] for name in ("decoder", "start")}, indent=2))
    (HERE / "results.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
