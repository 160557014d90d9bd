"""Records per second, CPU and memory from a container's stdout to committed Delta tables.

    make bench                     # or: .venv/bin/python benchmarks/run.py --records 200000

Each workload runs in a process of its own, on the same recorded output, played by a container; the
floor is the same container read and thrown away. Results go to ``benchmarks/results.json``. Needs
Docker and the base image of ``make images``.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

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
    command = ConnectorCommand("read", {"config": b"{}"}, {"atlas.connection": "bench"})
    with DockerRunner(image_name(records), client=connect()).start(command) as process:
        for _ in process.output():
            pass
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


WORKLOADS: dict[str, Callable[[int], None]] = {
    "floor": read_to_nothing,
    "append": sync_into_delta("append"),
    "overwrite": sync_into_delta("overwrite"),
    "append_dedup": sync_into_delta("append_dedup"),
}


def measure(workload: str, records: int) -> dict[str, float]:
    """Run one workload in a fresh process; CPU and memory are that process's own."""
    start = time.perf_counter()
    child = subprocess.run(
        [sys.executable, __file__, "--child", workload, "--records", str(records)],
        check=True,
        capture_output=True,
        text=True,
    )
    return {"wall_s": time.perf_counter() - start, **json.loads(child.stdout.splitlines()[-1])}


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
    results: dict[str, Any] = {}
    for workload in WORKLOADS:
        runs = [measure(workload, arguments.records) for _ in range(arguments.runs)]
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        results[workload] = {
            "records_per_s": round(arguments.records / middle["wall_s"]),
            "cpu_s_per_million": round(middle["cpu_s"] * 1e6 / arguments.records, 2),
            "peak_rss_mb": round(middle["peak_rss_mb"]),
        }
        floor = results["floor"]["records_per_s"]
        results[workload]["of_floor"] = round(results[workload]["records_per_s"] / floor, 2)
        print(f"{workload:13}", results[workload], flush=True)
    report = {
        "records": arguments.records,
        "runs": arguments.runs,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "workloads": results,
        "decoder": decoder_speed(arguments.records // 5, arguments.runs),
        "start": start_overhead(2 * arguments.runs),
    }
    print(json.dumps({name: report[name] for name in ("decoder", "start")}, indent=2))
    (HERE / "results.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
