"""What a stack takes of its machine. As root, on the machine of the engine."""

import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import psycopg2

from atlas_dagster_tests.stack.compose import SERVICES, Stack

MB = 1024 * 1024
#: By relation, in bytes; the sum is that of all of Dagster's tables.
_SIZES = """
SELECT 'event_logs', pg_total_relation_size('event_logs')
UNION ALL SELECT 'database', pg_database_size(current_database())
UNION ALL SELECT 'connections', count(*) FROM pg_stat_activity WHERE datname = current_database()
"""


def measure(stack: Stack) -> dict[str, float]:
    """Numbers by name: MB of memory and files, counts of the rest."""
    found: dict[str, float] = {}
    for service in SERVICES:
        (container,) = stack.containers(service)
        stats = container.stats(stream=False)
        found[f"{service}: memory, MB"] = _used(stats["memory_stats"]) / MB
        pids = [int(process[1]) for process in container.top()["Processes"]]
        found[f"{service}: open files"] = sum(map(_open_files, pids))
        found[f"{service}: log, MB"] = Path(container.attrs["LogPath"]).stat().st_size / MB
    for volume in ("lake", "data", "postgres"):
        found[f"volume {volume}, MB"] = _files(stack.volume(volume)) / MB
    for name, value in query(stack, _SIZES):
        found["database: connections" if name == "connections" else f"{name}, MB"] = (
            value if name == "connections" else value / MB
        )
    found["containers of runs and connectors"] = len(stack.all_containers()) - len(SERVICES)
    return found


def runs(stack: Stack) -> Mapping[str, int]:
    """How many there are, by status."""
    return dict(query(stack, "SELECT status, count(*) FROM runs GROUP BY status"))


def query(stack: Stack, sql: str) -> list[tuple[str, int]]:
    """Of the stack's database."""
    database = psycopg2.connect(
        host="127.0.0.1",
        port=int(stack.settings["ATLAS_PG_PORT"]),
        user="atlas",
        password=stack.settings["ATLAS_PG_PASSWORD"],
        dbname="atlas",
    )
    with closing(database), database.cursor() as cursor:
        cursor.execute(sql)
        return [(str(name), int(value)) for name, value in cursor.fetchall()]


def _used(memory: Mapping[str, object]) -> int:
    """As `docker stats` counts it: without files that may be dropped at once."""
    details = memory["stats"]
    assert isinstance(details, dict)
    usage = memory["usage"]
    assert isinstance(usage, int)
    return usage - int(details.get("inactive_file", details.get("total_inactive_file", 0)))


def _open_files(pid: int) -> int:
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # it has just ended
        return 0


def _files(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(parent, name).lstat().st_size
            except OSError:  # it has just been removed
                continue
    return total
