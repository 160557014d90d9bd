"""Write the SQL tables."""

import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import sqlalchemy as sa
from msgspec import Raw, Struct

from atlas_dagster.destinations.base import TablePath
from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.projections import tables
from atlas_dagster.projections.database import engine, migrate
from atlas_dagster.protocol.catalog import Catalog
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.registry.catalogue import Listing

Write = Callable[[sa.Connection], None]


class SyncStats(Struct, frozen=True):
    """The result of one stream in one sync. ``error`` has no secrets. Unknown values are None."""

    stream: StreamDescriptor
    status: Literal["succeeded", "failed"]
    records: int | None = None
    bytes: int | None = None
    seconds: float | None = None
    checkpoints: int | None = None
    error: str | None = None


class ProjectionWriter:
    """Writes the SQL tables of one deployment into the database at ``url``.

    No method raises: after a failure, ``warn`` gets one sentence, and nothing more is written. The
    database is opened at the first write.
    """

    def __init__(self, url: sa.URL, warn: Callable[[str], None]) -> None:
        self.where = url.render_as_string(hide_password=True)
        self._url = url
        self._warn = warn
        self._engine: sa.Engine | None = None
        self._is_closed = False

    def write_catalog(
        self,
        connection: str,
        catalog: Catalog,
        *,
        paths: Mapping[StreamDescriptor, TablePath],
        connector: str,
        at: float,
    ) -> None:
        """Replace the streams of ``connection``."""
        table = tables.catalogs
        rows = [
            {
                **_stream_key(connection, stream.descriptor),
                "table_path": "/".join(paths.get(stream.descriptor, ())),
                "json_schema": stream.json_schema,
                "primary_key": [list(path) for path in stream.source_defined_primary_key],
                "cursor_field": list(stream.default_cursor_field),
                "supported_sync_modes": list(stream.supported_sync_modes),
                "connector": connector,
                "discovered_at": _to_datetime(at),
            }
            for stream in catalog.streams
        ]

        def write(database: sa.Connection) -> None:
            database.execute(sa.delete(table).where(table.c.connection == connection))
            if rows:
                database.execute(sa.insert(table), rows)

        self._write(write)

    def write_states(self, envelope: Envelope, mask: Callable[[str], str] = str) -> None:
        """Write the states of a commit's streams. ``mask`` hides secrets."""
        state = envelope.connection_state
        rows = []
        for commit in envelope.streams:
            blob = state.blob_of(commit.stream)
            row = {
                **_stream_key(envelope.connection, commit.stream),
                "state": _to_sql_json(blob, mask),
                "state_type": state.type,
                "generation_id": commit.generation_id,
                "seq": envelope.seq,
                "action": envelope.action,
                "run_id": envelope.run_id,
                "committed_at": _to_datetime(envelope.prepared_at),
            }
            rows.append(row)
        self._write(lambda database: _replace(database, tables.state, rows))

    def write_stats(
        self,
        connection: str,
        stats: Sequence[SyncStats],
        *,
        run_id: str | None,
        connector: str | None,
    ) -> None:
        """Write the results of ``stats``, which are of one sync."""
        at = dt.datetime.now(dt.UTC)
        rows = [
            {
                "connection": connection,
                "stream_namespace": each.stream.namespace or "",
                "stream_name": each.stream.name,
                "run_id": run_id,
                "status": each.status,
                "records": each.records,
                "bytes": each.bytes,
                "seconds": each.seconds,
                "checkpoints": each.checkpoints,
                "error": each.error,
                "connector": connector,
                "finished_at": at,
            }
            for each in stats
        ]
        if rows:
            self._write(lambda database: _insert(database, tables.sync_stats, rows))

    def write_registry(self, listing: Listing) -> None:
        """Write all connectors, unless this list was written already."""
        table = tables.connector_registry
        rows = [
            {
                "name": info.name,
                "title": info.title,
                "docker_image": info.docker_image,
                "version": info.tag,
                "category": info.category.value,
                "kind": info.kind,
                "language": info.language,
                "support_level": info.support_level,
                "pypi_package": info.pypi_package,
                "docs_url": info.docs_url,
                "definition_id": info.definition_id,
                "listed_on": listing.date,
            }
            for info in listing.connectors
        ]

        def write(database: sa.Connection) -> None:
            if database.scalar(sa.select(sa.func.min(table.c.listed_on))) == listing.date:
                return
            if database.dialect.name == "postgresql":
                # Two writers at once would insert the same keys.
                lock = sa.text(f"LOCK TABLE {tables.SCHEMA}.{table.name} IN EXCLUSIVE MODE")
                database.execute(lock)
            database.execute(sa.delete(table))
            database.execute(sa.insert(table), rows)

        self._write(write)

    def _write(self, write: Write) -> None:
        if self._is_closed:
            return
        try:
            if self._engine is None:
                found = engine(self._url)
                migrate(found)
                self._engine = found
            with self._engine.begin() as database:
                write(database)
        except Exception as error:  # noqa: BLE001 - no error may fail the sync
            self._is_closed = True
            reason = str(getattr(error, "orig", None) or error).strip().splitlines() or [""]
            self._warn(
                f"The SQL tables in {self.where} cannot be written ({reason[0]}). The sync "
                "continues without them."
            )


def _replace(database: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert ``rows``, and replace rows with the same key."""
    for row in rows:
        key = [column == row[column.name] for column in table.primary_key.columns]
        database.execute(sa.delete(table).where(*key))
    _insert(database, table, rows)


def _insert(database: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    database.execute(sa.insert(table), list(rows))


def _stream_key(connection: str, stream: StreamDescriptor) -> dict[str, str]:
    return {
        "connection": connection,
        "stream_namespace": stream.namespace or "",
        "stream_name": stream.name,
    }


def _to_sql_json(blob: Raw | None, mask: Callable[[str], str]) -> Any:
    """Return a state as a value for SQL; numbers may lose digits."""
    if blob is None:
        return None
    # jsonb in Postgres cannot store U+0000.
    text = mask(bytes(blob).decode(errors="replace")).replace("\\u0000", "")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _to_datetime(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)
