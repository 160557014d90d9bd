"""Records per second, CPU and memory from a container's stdout to committed tables.

    make bench                                      # 1,000,000 records, everything
    make bench ARGS="--records 10000000 --only append,overwrite,append_dedup"
    make bench ARGS="--records 20000 --runs 1 --results /tmp/results.json"   # does it work?
    .venv/bin/python benchmarks/table.py            # the README's tables

Each workload runs in a process of its own, on a recorded READ (``recording.py``) that a container
plays. Beside it run, on the same recording: ``floor``, the same container read and thrown away;
``floor_parquet``, its bytes parsed by polars and written as zstd Parquet, nothing else; PyAirbyte,
once. The runs of all these take turns, so that a busy moment does not fall on one of them only.

Figures are medians: records a second of the whole process, start-up and container with it; CPU
seconds and peak memory of that process alone. ``of_x`` is Atlas divided by x. All goes into
``results.json``, under its number of records, and leaves there what was not measured this time.
The images of the recordings stay: 450 bytes a record in ``docker images atlas-bench/*``.
Needs Docker, the base image of ``make images``, Postgres for ``postgres`` and ``state``, and PyPI
for PyAirbyte.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import dedup
import engine
import environments
import load
import overhead
import postgres
import pyairbyte
import state
import tick
from measuring import Figures, per_record, ratios, run
from recording import RECORDINGS, image_name

HERE = Path(__file__).parent
BASE = "atlas-test/base:bookworm"
WORKLOADS_PY = str(HERE / "workloads.py")
FLOORS = ("floor", "floor_parquet")
#: What a process does (``workloads.py``, or "pyairbyte" and the mode), and with which recording.
Job = tuple[str, str]


class Workload(NamedTuple):
    mode: str
    recording: str
    beside: tuple[str, ...] = FLOORS

    def jobs(self) -> dict[str, Job]:
        """Its own, as ``atlas``, and those beside it."""
        known = {
            "append": ("append", "clean"),
            "pyairbyte": (f"pyairbyte {self.mode}", self.recording),
            **{floor: (floor, self.recording) for floor in FLOORS},
        }
        own = {"atlas": (self.mode, self.recording)}
        return own | {name: known[name] for name in self.beside}


WORKLOADS = {
    "append": Workload("append", "clean", (*FLOORS, "pyairbyte")),
    "overwrite": Workload("overwrite", "clean", (*FLOORS, "pyairbyte")),
    "append_dedup": Workload("append_dedup", "clean", (*FLOORS, "pyairbyte")),
    "dirty": Workload("append", "dirty", ("append",)),
    "stateless": Workload("append", "stateless", ("append",)),
    "interleaved": Workload("append", "interleaved", ("append",)),
    "wide": Workload("append", "wide"),
    "nested": Workload("append", "nested"),
    "tiny": Workload("append", "tiny"),
}
SHAPES = ("wide", "nested", "tiny")
PARTS = (
    *(*WORKLOADS, "pyairbyte", "postgres", "dedup", "decoder"),
    *("start", "load", "state", "overhead", "tick"),
)


def build_image(recording: str, records: int) -> None:
    """An image that prints the recording, whatever it is asked; Docker knows if it is there."""
    dockerfile = (
        f"FROM {BASE}\nCOPY recording.py /\n"
        f"RUN python3 /recording.py {recording} {records} /recording.jsonl\n"
        'ENTRYPOINT ["sh", "-c", "exec cat /recording.jsonl"]\n'
    )
    command = ["docker", "build", "--quiet", "--network=none", "--file=-"]
    command += ["--tag", image_name(recording, records), str(HERE)]
    # The classic builder: the only one in Debian's docker.io.
    environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
    quiet = subprocess.DEVNULL
    subprocess.run(command, check=True, input=dockerfile, text=True, stdout=quiet, env=environment)


def size(recording: str, records: int) -> int:
    return max(records // RECORDINGS[recording].share, 1)


def measure(names: list[str], records: int, runs: int, *, rival: bool) -> dict[str, Any]:
    """The chosen workloads with what stands beside them, by name."""
    jobs = list(dict.fromkeys(job for name in names for job in WORKLOADS[name].jobs().values()))
    for recording in dict.fromkeys(recording for _, recording in jobs):
        build_image(recording, size(recording, records))
    samples: dict[Job, list[Figures]] = {}
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as folder:
        python = _rival(Path(folder), records) if rival else None
        for turn in range(runs):
            for what, recording in jobs:
                program, _, mode = what.partition(" ")
                if program == "pyairbyte":
                    if python is None or turn:
                        continue
                    command = pyairbyte.command(python, Path(folder), mode, records)
                else:
                    count = str(size(recording, records))
                    # The floors need libraries that Atlas does not.
                    ours = sys.executable if program.startswith("floor") else environments.atlas()
                    command = [str(ours), WORKLOADS_PY, what, recording, count]
                figures = run(command)
                print(f"{what}, {recording}: {figures}", flush=True)
                samples.setdefault((what, recording), []).append(figures)
    found = {job: per_record(each, size(job[1], records)) for job, each in samples.items()}
    return {name: _compared(WORKLOADS[name], found) for name in names}


def _compared(workload: Workload, found: dict[Job, Figures]) -> dict[str, Figures]:
    figures = {name: found[job] for name, job in workload.jobs().items() if job in found}
    atlas = figures["atlas"]
    beside = [name for name in figures if name != "atlas"]
    return figures | {f"of_{name}": ratios(atlas, figures[name]) for name in beside}


def _rival(folder: Path, records: int) -> Path | None:
    """PyAirbyte's Python, its connector in ``folder``; None, and the reason printed, if not to be had."""
    try:
        python = pyairbyte.environment()
    except subprocess.CalledProcessError as error:
        print("PyAirbyte is left out, its environment cannot be made:", error.stderr.strip())
        return None
    pyairbyte.write_source(folder, image_name("clean", records))
    return python


def keep(path: Path, value: Any, *keys: str) -> None:
    """Put ``value`` into the results at ``path``, in place of what is under ``keys``."""
    results = json.loads(path.read_text()) if path.exists() else {}
    place = results
    for key in keys[:-1]:
        place = place.setdefault(key, {})
    place[keys[-1]] = value
    path.write_text(json.dumps(results, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default=",".join(PARTS), help=",".join(PARTS))
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    chosen = parser.parse_args()
    only = chosen.only.split(",")
    if unknown := set(only) - set(PARTS):
        parser.error(f"--only takes {', '.join(PARTS)}, not {', '.join(unknown)}")
    records, runs, results = chosen.records, chosen.runs, chosen.results
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    keep(results, machine, "machine")
    keep(results, datetime.date.today().isoformat(), "date")
    keep(results, runs, "runs")
    keep(results, pyairbyte.VERSION, "pyairbyte")
    names = [name for name in WORKLOADS if name in only]
    rival = "pyairbyte" in only and any("pyairbyte" in WORKLOADS[name].beside for name in names)
    for name, figures in measure(names, records, runs, rival=rival).items():
        if name in SHAPES:
            count = size(WORKLOADS[name].recording, records)
            keep(results, {"records": count, **figures}, "shapes", name)
        else:
            keep(results, figures, "sizes", str(records), "workloads", name)
    if "postgres" in only:
        build_image("clean", records)
        keep(results, postgres.measure(records, runs), "postgres", str(records))
    if "dedup" in only:
        keep(results, dedup.measure(records), "dedup", str(records))
    if "decoder" in only:
        keep(results, engine.decoder_speed(records // 5, runs), "decoder")
    if "start" in only:
        keep(results, engine.start_overhead(2 * runs), "start")
    if "load" in only:
        keep(results, load.measure(runs), "load")
    if "state" in only:
        keep(results, state.measure(runs), "state")
    if "overhead" in only:
        keep(results, overhead.measure(2 * runs), "overhead")
    if "tick" in only:
        keep(results, tick.measure(10_000, 10 * runs), "tick")


if __name__ == "__main__":
    main()
