"""A whole sync of a recording, as ``workloads.py`` measures it: what Dagster would run, without Dagster."""

from typing import Any

from recording import RECORDINGS, catalog_streams

from atlas_dagster.destinations.base import Destination
from atlas_dagster.protocol.catalog import Catalog, configure
from atlas_dagster.runners.base import Runner
from atlas_dagster.source.connector import Connector
from atlas_dagster.sync.plan import make_plan
from atlas_dagster.sync.resume import RunRef, Target
from atlas_dagster.sync.session import SyncSession


class _NothingRemembered:
    def last_logged(self, tables: Any, committed: Any) -> dict[Any, Any]:
        return {}

    def find(self, table: Any, seq: int) -> None:
        return None


def sync(runner: Runner, recording: str, mode: str, destination: Destination) -> int:
    """Parse, type, stage, commit with state, merge for append_dedup; the tables' rows."""
    labels = {"atlas.connection": "bench"}
    connector = Connector(runner, name="bench", labels=labels)
    # Without STATE nothing is incremental.
    incremental = mode != "overwrite" and RECORDINGS[recording].states
    streams = [
        configure(
            stream,
            sync_mode="incremental" if incremental else "full_refresh",
            destination_sync_mode=mode,  # type: ignore[arg-type]
        )
        for stream in Catalog.from_json(catalog_streams(recording)).streams
    ]
    names = [stream.descriptor for stream in streams]
    target = Target(
        "bench",
        {stream.descriptor: stream for stream in streams},
        {name: ("bench", name.name) for name in names},
        destination,
        _NothingRemembered(),
    )
    plan = make_plan(target, names, RunRef(), warn=print)
    for _ in SyncSession(plan, connector=connector, destination=destination).run():
        pass
    return sum(
        destination.inspect(each.table.path).open(each.table).describe().row_count
        for each in plan.streams
    )
