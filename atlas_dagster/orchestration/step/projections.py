"""The projections of a deployment, and the writing of discoveries and syncs into them.

They are stored beside Dagster's event log: in a schema of its Postgres database, or in a file in
its folder. So each deployment has exactly one place for them, even before its first sync.
"""

from collections.abc import Callable, Collection
from pathlib import Path

import dagster as dg
import sqlalchemy as sa

from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.errors import AtlasError
from atlas_dagster.orchestration.dagster_database import postgres_url
from atlas_dagster.projections import ProjectionWriter, SyncStats
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.registry.catalogue import listing
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.connector import Connector
from atlas_dagster.source.discovered_catalog import Discovered
from atlas_dagster.sync.events import StreamFailed, StreamFinished

_FILE = "pipeline.db"


def make_projection_writer(
    instance: dg.DagsterInstance, warn: Callable[[str], None]
) -> ProjectionWriter:
    """Return the writer of projections. It calls ``warn`` once if they cannot be written."""
    url = postgres_url(instance)
    if url is None:
        folder = Path(instance.root_directory).absolute()
        url = sa.URL.create("sqlite", database=str(folder / _FILE))
    return ProjectionWriter(url, warn)


def project_discovery(
    instance: dg.DagsterInstance,
    connection: Connection,
    found: Discovered,
    warn: Callable[[str], None],
) -> None:
    """Write what was discovered, and the list of connectors in use."""
    writer = make_projection_writer(instance, warn)
    writer.write_catalog(
        connection.name,
        found.catalog,
        paths=found.table_paths,
        connector=found.connector,
        at=found.discovered_at,
    )
    writer.write_registry(listing())


class SyncProjection:
    """The projection of one attempt of a sync. ``connector`` is None until it is open."""

    def __init__(self, writer: ProjectionWriter, connection: str, run_id: str | None) -> None:
        self.connector: Connector | None = None
        self._writer = writer
        self._connection = connection
        self._run_id = run_id
        self._written: set[StreamDescriptor] = set()

    def record_commit(self, envelope: Envelope) -> None:
        self._writer.write_states(envelope, str if self.connector is None else self.connector.mask)

    def record_result(self, event: StreamFinished | StreamFailed) -> None:
        if isinstance(event, StreamFailed):
            # If it has no reason, record_failure gets the connector's error.
            if event.reason is not None:
                self._write([SyncStats(event.plan.descriptor, "failed", error=event.reason)])
            return
        stats = SyncStats(
            event.plan.descriptor,
            "succeeded",
            records=event.records,
            bytes=event.bytes,
            seconds=event.seconds,
            checkpoints=event.commits,
        )
        self._write([stats])

    def record_failure(self, streams: Collection[StreamDescriptor], error: BaseException) -> None:
        """Record ``error`` for those of ``streams`` that have no result yet.

        Only the messages of AtlasErrors are free of secrets; of other errors, only the class is
        recorded.
        """
        why = str(error) if isinstance(error, AtlasError) else type(error).__name__
        missing = [name for name in streams if name not in self._written]
        self._write([SyncStats(name, "failed", error=why) for name in missing])

    def _write(self, stats: list[SyncStats]) -> None:
        self._written.update(each.stream for each in stats)
        connector = None if self.connector is None else self.connector.runner.identity()
        self._writer.write_stats(self._connection, stats, run_id=self._run_id, connector=connector)
