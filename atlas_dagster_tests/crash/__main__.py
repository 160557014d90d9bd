"""Disturbs syncs, lets them finish, and compares every table with that of an undisturbed run.

    make crash KILLS=200 SEED=1

``--by`` says what happens to them: ``kill`` (of the step's process, kill -9, at each named point
and at random times), ``connector`` (it dies instead), ``full-disk`` (at a named point; needs root,
for a small file system) or ``postgres-restart`` (of the tables' server, at a named point).

The last line counts what happened, and what was lost, twice there or left over; if anything was,
the exit code is 1 and the folder with the logs stays.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from atlas_dagster_tests.crash.experiment import (
    ConnectorDeath,
    Disturbance,
    Experiment,
    FullDisk,
    Kill,
    PostgresRestart,
)
from atlas_dagster_tests.crash.laboratory import SETUPS, Place
from atlas_dagster_tests.postgres_server import postgres_server

_BY: dict[str, type[Disturbance]] = {
    "kill": Kill,
    "connector": ConnectorDeath,
    "full-disk": FullDisk,
    "postgres-restart": PostgresRestart,
}
_DISK_SIZE = "32m"


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir()
    options = ["-o", f"size={_DISK_SIZE}"]
    subprocess.run(["mount", "-t", "tmpfs", *options, "atlas-crash", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="crash", description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--by", choices=_BY, default="kill")
    parser.add_argument("--setups", nargs="+", default=["*"], help="such as 'delta_*_process'")
    arguments = parser.parse_args()
    disturbance = _BY[arguments.by](random.Random(arguments.seed))
    setups = [
        setup
        for setup in SETUPS
        if any(fnmatchcase(str(setup), pattern) for pattern in arguments.setups)
        and disturbance.suits(setup)
    ]
    root = Path(tempfile.mkdtemp(prefix="atlas-crash-"))
    print(f"Logs in {root}", flush=True)
    with ExitStack() as stack:
        server = None
        if any(setup.needs_postgres for setup in setups):
            server = stack.enter_context(postgres_server())
        if arguments.by == "full-disk":
            stack.enter_context(small_disk(root / "disturbed"))
        experiment = Experiment(Place(root, server), disturbance, arguments.seed)
        for number, setup in enumerate(setups):
            left = arguments.count - experiment.total
            print(experiment.run(setup, -(-left // (len(setups) - number))), flush=True)
    for point, times in sorted(disturbance.happened.items()):
        print(f"{times:5} {point}")
    if experiment.processes:
        print(f"{experiment.processes} connectors still run")
    print(
        f"{disturbance.called}={experiment.total} lost={experiment.lost} "
        f"duplicated={experiment.duplicated} leaked_containers={experiment.containers}"
    )
    if experiment.lost or experiment.duplicated or experiment.containers or experiment.processes:
        return 1
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
