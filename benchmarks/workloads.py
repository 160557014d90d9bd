"""What one measured process does with a recording that a container plays.

``run.py`` starts it as ``workloads.py <what> <recording> <records> [<Postgres address>]``. The floors
are ``floor``, the container's bytes read and thrown away, and ``floor_parquet``; any other ``what``
is a destination sync mode: a whole sync into new Delta tables, or into that database. A process
imports only what it needs, as that is part of its figures.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measuring import report_and_exit
from recording import catalog_streams, image_name

from atlas_dagster.runners.base import ConnectorCommand
from atlas_dagster.runners.docker.engine import connect
from atlas_dagster.runners.docker.runner import DockerRunner


def _output(runner: DockerRunner) -> Iterator[bytes]:
    command = ConnectorCommand("read", {"config": b"{}"}, {"atlas.connection": "bench"})
    with runner.start(command) as process:
        for channel, content in process.output():
            if channel == "stdout":
                yield content
        assert process.wait().code == 0


def _sync(runner: DockerRunner, recording: str, mode: str, address: str | None, lake: str) -> int:
    from whole_sync import sync

    if address:
        from atlas_dagster.destinations.postgres.destination import PostgresDestination

        return sync(runner, recording, mode, PostgresDestination(address))
    from atlas_dagster.destinations.delta.destination import DeltaDestination

    return sync(runner, recording, mode, DeltaDestination(lake))


def main(what: str, recording: str, records: int, address: str | None = None) -> None:
    runner = DockerRunner(image_name(recording, records), client=connect())
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as folder:
        if what == "floor":
            for _ in _output(runner):
                pass
            rows = records
        elif what == "floor_parquet":
            from floor_parquet import parse_to_parquet

            rows = parse_to_parquet(_output(runner), catalog_streams(recording), Path(folder))
        else:
            rows = _sync(runner, recording, what, address, folder)
    assert rows == records, f"{rows} rows instead of {records}"


if __name__ == "__main__":
    main(*sys.argv[1:3], int(sys.argv[3]), *sys.argv[4:])
    report_and_exit()
