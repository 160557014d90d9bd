"""The projections of a deployment: where they are, and what a sync writes into them.

They are beside Dagster's event log: in its Postgres, in a separate schema, or in a file in its
folder. Each deployment has exactly one such place before its first sync.
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


def books_of(instance: dg.DagsterInstance, warn: Callable[[str], None]) -> ProjectionWriter:
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
    writer = books_of(instance, warn)
    writer.write_catalog(
        connection.name,
        found.catalog,
        paths=found.table_paths,
        connector=found.connector,
        at=found.discovered_at,
    )
    writer.write_registry(listing())


class SyncProjection:
    """The projection of one try of a sync. ``connector`` is None until it is open."""

    def __init__(self, books: ProjectionWriter, connection: str, run_id: str | None) -> None:
        self.connector: Connector | None = None
        self._books = books
        self._connection = connection
        self._run_id = run_id
        self._with_note: set[StreamDescriptor] = set()

    def committed(self, envelope: Envelope) -> None:
        self._books.write_states(envelope, str if self.connector is None else self.connector.mask)

    def ended(self, event: StreamFinished | StreamFailed) -> None:
        if isinstance(event, StreamFailed):
            # Without a reason, the connector's error follows.
            if event.reason is not None:
                self._note([SyncStats(event.plan.descriptor, "failed", error=event.reason)])
            return
        stats = SyncStats(
            event.plan.descriptor,
            "succeeded",
            records=event.records,
            bytes=event.bytes,
            seconds=event.seconds,
            checkpoints=event.checkpoints,
        )
        self._note([stats])

    def failed(self, streams: Collection[StreamDescriptor], error: BaseException) -> None:
        """Record ``error`` for those of ``streams`` that have no result yet.

        Only errors of Atlas surely hold no secret; of others just the class is recorded.
        """
        why = str(error) if isinstance(error, AtlasError) else type(error).__name__
        left = [name for name in streams if name not in self._with_note]
        self._note([SyncStats(name, "failed", error=why) for name in left])

    def _note(self, stats: list[SyncStats]) -> None:
        self._with_note.update(each.stream for each in stats)
        connector = None if self.connector is None else self.connector.runner.identity()
        self._books.write_stats(self._connection, stats, run_id=self._run_id, connector=connector)
