"""A connector with a config, used without a declaration and without tables. All calls block.

Each READ reads one table, and returns a state of its own. If the source keeps one state for all
streams, the state advances for this table only.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager

import msgspec
import pyarrow as pa
from msgspec import Struct

from atlas_dagster.errors import ConfigError, UnknownStreamError
from atlas_dagster.listener import Listener, Work
from atlas_dagster.protocol.catalog import Catalog, ConfiguredStream, Stream, configure
from atlas_dagster.protocol.messages import ConnectionStatus, Spec
from atlas_dagster.protocol.state import ConnectionState
from atlas_dagster.reading.ad_hoc import AdHocConnection
from atlas_dagster.reading.reader import StreamReader
from atlas_dagster.records.types import TableSchema
from atlas_dagster.source.connection import describe_missing_stream
from atlas_dagster.source.connector import Connector
from atlas_dagster.source.connector_ref import ConnectorRef
from atlas_dagster.source.open_connector import open_connector, read_spec
from atlas_dagster.source.run_context import RunContext


class RowPage(Struct, frozen=True):
    """The requested rows of one READ.

    ``rows`` have the columns of the stream's table. The next READ continues from ``state``, and
    repeats the last ``overlap`` rows, because the source sent no state after them.
    ``is_complete``: the source has no more rows.
    """

    rows: pa.Table
    state: ConnectionState
    overlap: int
    is_complete: bool


class _KeepWarnings(Listener):
    """Passes all events to ``listener``, and keeps the warnings."""

    def __init__(self, listener: Listener) -> None:
        self.warnings: list[str] = []
        self._listener = listener

    def info(self, text: str) -> None:
        self._listener.info(text)

    def connector(self, level: str, text: str) -> None:
        self._listener.connector(level, text)

    def progress(self, work: Work, done: int, total: float | None) -> None:
        self._listener.progress(work, done, total)

    def warning(self, text: str) -> None:
        self.warnings.append(text)
        self._listener.warning(text)


class AdHocSource:
    """One connector with one config.

    Raises, from every method that calls the connector:
        ConfigError: the config does not fit the SPEC, or a variable is missing.
        RunnerUnavailableError: nothing can run the connector.
        ConnectorFailedError: the connector failed; the message is the connector's own.
    """

    def __init__(
        self, connection: AdHocConnection, context: RunContext, catalog: Catalog | None = None
    ) -> None:
        self.connection = connection
        self._listener = _KeepWarnings(context.listener)
        self._context = msgspec.structs.replace(context, listener=self._listener)
        self._catalog = catalog

    @property
    def name(self) -> str:
        return self.connection.source_name

    @property
    def warnings(self) -> list[str]:
        """The warnings so far, without repetitions."""
        return list(dict.fromkeys(self._listener.warnings))

    @property
    def image(self) -> str:
        """The connector's image, even if the connector does not run in Docker."""
        return ConnectorRef.resolve(self.connection).image

    @property
    def is_discovered(self) -> bool:
        """True if the streams are known, so that :meth:`catalog` does not run the connector."""
        return self._catalog is not None

    def open(self) -> AbstractContextManager[Connector]:
        """Open the connector, and lock its config against other calls."""
        return open_connector(self.connection, self._context)

    def spec(self) -> Spec:
        return read_spec(self.connection, self._context)

    def status(self) -> ConnectionStatus:
        """Return the connector's answer to CHECK, also if it is FAILED."""
        with self.open() as connector:
            return connector.status()

    def check(self) -> None:
        """Run CHECK. Raises CheckFailedError if the connector cannot reach its source."""
        with self.open() as connector:
            connector.check()

    def discover(self) -> Catalog:
        """Run DISCOVER, and return the streams."""
        with self.open() as connector:
            self._catalog = connector.discover()
        return self._catalog

    def catalog(self) -> Catalog:
        """Return the streams; only the first call runs DISCOVER."""
        return self._catalog or self.discover()

    def find_table(self, name: str) -> Stream:
        """Return the stream called ``name`` or ``namespace.name``. Raises UnknownStreamError."""
        streams = self.catalog().streams
        found = [s for s in streams if s.descriptor.name == name]
        found = found or [s for s in streams if str(s.descriptor) == name]
        if len(found) == 1:
            return found[0]
        if found:
            full = " or ".join(str(stream.descriptor) for stream in found)
            raise UnknownStreamError(f"'{name}' is in several namespaces; write {full}.")
        raise UnknownStreamError(
            describe_missing_stream(name, {s.descriptor.name for s in streams})
        )

    def table_names(self) -> list[str]:
        """Return the names for :meth:`find_table`, in the source's order."""
        descriptors = [stream.descriptor for stream in self.catalog().streams]
        names = [descriptor.name for descriptor in descriptors]
        return [each.name if names.count(each.name) == 1 else str(each) for each in descriptors]

    @contextmanager
    def open_reader(
        self,
        stream: ConfiguredStream,
        *,
        state: ConnectionState | None = None,
        limit: int | None = None,
        batch_rows: int | None = None,
    ) -> Iterator[StreamReader]:
        """Open the connector, and yield a reader of ``stream``."""
        options = {} if batch_rows is None else {"batch_rows": batch_rows}
        with self.open() as connector:
            yield StreamReader(connector, [stream], state=state, limit=limit, **options)

    def read_page(
        self,
        stream: ConfiguredStream,
        *,
        state: ConnectionState,
        limit: int | None = None,
        most_bytes: int | None = None,
    ) -> RowPage:
        """Read all new rows of ``stream``, or the first ``limit`` rows.

        A page ends with the last row that a state covers, so that the next page continues after it.
        If the source sends no state in time, the page ends with an uncovered row. A page also ends
        after about ``most_bytes`` in memory.
        """
        batches, size = [], 0
        with (
            self.open_reader(stream, state=state, limit=limit) as reader,
            closing(reader.batches()) as found,
        ):
            for _, batch in found:
                batches.append(batch)
                size += batch.nbytes
                if most_bytes is not None and size >= most_bytes:
                    break
        rows = pa.Table.from_batches(batches, table_schema(stream.stream).arrow)
        overlap = reader.rows_since_state
        if not reader.is_complete and stream.sync_mode == "incremental" and overlap < len(rows):
            rows, overlap = rows.slice(0, len(rows) - overlap), 0
        return RowPage(rows, reader.state, overlap, reader.is_complete)


def table_schema(stream: Stream) -> TableSchema:
    """Return the columns of the stream's table."""
    return TableSchema.from_json_schema(stream.json_schema)


def configure_read(
    stream: Stream, *, incremental: bool, cursor_field: str | None = None
) -> ConfiguredStream:
    """Configure the READ of one table: all rows, or only new ones by a cursor.

    ``cursor_field``: the cursor, if the source does not define its own.

    Raises:
        ConfigError: the stream does not support this READ.
    """
    name, own = stream.descriptor, stream.default_cursor_field
    if not incremental:
        if cursor_field is not None:
            raise ConfigError(f"'{name}' has a cursor only in incremental reads; set incremental.")
        is_supported = "full_refresh" in stream.supported_sync_modes
        return configure(
            stream,
            sync_mode="full_refresh" if is_supported else "incremental",
            destination_sync_mode="append",
        )
    if cursor_field is not None and stream.source_defined_cursor and own and own != (cursor_field,):
        raise ConfigError(
            f"The source defines the cursor of '{name}' itself ({'.'.join(own)}); "
            f"leave {cursor_field} out."
        )
    fields = {column.field for column in table_schema(stream).columns}
    if cursor_field is not None and cursor_field not in fields:
        raise ConfigError(
            f"'{name}' has no field '{cursor_field}' for its cursor; "
            f"it has {', '.join(sorted(fields))}."
        )
    return configure(
        stream,
        sync_mode="incremental",
        destination_sync_mode="append",
        cursor_field=None if cursor_field is None else (cursor_field,),
    )
