"""Lets many connections sync every minute on the stack of docker-compose.yml, for a long time.

    make soak CONNECTIONS=20 MINUTES=30

Each connection's source has more rows each minute. In the end the rows are compared with the
sources', and a table says what the stack took of the machine at the beginning, in the middle and
at the end. If a row was lost, is there twice, or a container is left, the exit code is 1.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import docker

from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN
from atlas_dagster_tests.e2e.project import APPEND
from atlas_dagster_tests.e2e.web_server import WebServer, wait_until
from atlas_dagster_tests.soak.measuring import measure, runs
from atlas_dagster_tests.stack.compose import SERVICES, Stack

ROWS_PER_MINUTE = 1000
#: Held by every run that reads it when it starts, so the sources grow without a new declaration.
ROWS = "SOAK_ROWS"
UNDER_WAY = {"QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING"}
_SAMPLE_SECONDS = 30
_END_SECONDS = 900


def declare(stack: Stack, names: Sequence[str], *, schedule: str | None) -> None:
    for name in names:
        file = stack.connections / name / "defs.yaml"
        if file.exists():
            file.unlink()
            file.parent.rmdir()
        timing = {"schedule": schedule} if schedule else {}
        config = {"count": f"{{{{ env.{ROWS} }}}}"}
        stack.declare(name, image=STANDIN, config=config, streams=APPEND, **timing)


def soak(stack: Stack, names: Sequence[str], minutes: float) -> list[dict[str, float]]:
    """Measurements, in order of time. In the end all runs have ended, and all rows are read."""
    web = WebServer(stack.url)
    samples = []
    began = time.monotonic()
    while (passed := time.monotonic() - began) < minutes * 60:
        stack.secret(ROWS, str(rows_at(passed / 60)))
        samples.append(measure(stack))
        print(f"{passed / 60:5.1f} min  runs: {dict(runs(stack))}", flush=True)
        time.sleep(_SAMPLE_SECONDS)
    declare(stack, names, schedule=None)
    web.reload()
    ended = lambda: not UNDER_WAY & set(runs(stack))  # noqa: E731
    wait_until("all runs have ended", ended, seconds=_END_SECONDS, every=3)
    stack.secret(ROWS, str(rows_at(minutes)))
    web.materialize(*(f"{name}/events" for name in names), seconds=_END_SECONDS)
    time.sleep(5)  # the engine may still be removing the last one's container
    samples.append(measure(stack))
    return samples


def rows_at(minute: float) -> int:
    """Of each source."""
    return int(1 + minute) * ROWS_PER_MINUTE


def compared(stack: Stack, name: str, expected: int) -> tuple[int, int, int]:
    """Of a connection: its rows, those lost, and those that are there twice."""
    ids = stack.ids(name)
    lost = set(range(1, expected + 1)) - set(ids)
    return len(ids), len(lost), len(ids) - len(set(ids))


def table(samples: Sequence[dict[str, float]]) -> str:
    lines = [f"{'':36}{'first':>10}{'middle':>10}{'last':>10}{'most':>10}"]
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        shown = (values[0], values[len(values) // 2], values[-1], max(values))
        lines.append(f"{name:36}" + "".join(f"{value:10.1f}" for value in shown))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--connections", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=30)
    arguments = parser.parse_args()
    names = [f"soak_{number:02}" for number in range(arguments.connections)]
    folder = Path(tempfile.mkdtemp(prefix="atlas-soak-"))
    stack = Stack(folder, f"atlas_soak_{os.getpid()}", docker.from_env(timeout=120))
    stack.secret(ROWS, str(ROWS_PER_MINUTE))
    declare(stack, names, schedule="* * * * *")
    try:
        stack.up()
        stack.atlas("discover", seconds=900)
        WebServer(stack.url).reload()
        stack.wait_healthy(*SERVICES)
        samples = soak(stack, names, arguments.minutes)
        done = runs(stack)
        results = {name: compared(stack, name, rows_at(arguments.minutes)) for name in names}
    finally:
        stack.down()
        shutil.rmtree(folder)
    rows, lost, twice = (sum(column) for column in zip(*results.values(), strict=True))
    total = done.get("SUCCESS", 0)
    grown = samples[-1]["event_logs, MB"] - samples[0]["event_logs, MB"]
    print(table(samples))
    print(f"\nruns: {dict(done)}; {grown * 1024 / max(total, 1):.0f} KB of event log for each")
    left = int(samples[-1]["containers of runs and connectors"]) + len(stack.left_over())
    failed = sum(done.values()) - total
    print(
        f"connections={len(names)} rows={rows} lost={lost} "
        f"duplicated={twice} failed_runs={failed} left_over={left}"
    )
    return 1 if lost or twice or left or failed else 0


if __name__ == "__main__":
    sys.exit(main())
