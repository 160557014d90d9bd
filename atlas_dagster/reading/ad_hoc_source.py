"""A connector with a config, used without a declaration and without tables. Everything waits.

One table is read at a time, and its state is its own: that of a source which keeps one for all its
streams moves on with what is read of it.
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
from atlas_dagster.source.connection import no_stream
from atlas_dagster.source.connector import Connector
from atlas_dagster.source.connector_ref import ConnectorRef
from atlas_dagster.source.open_connector import open_connector, read_spec
from atlas_dagster.source.run_context import RunContext


class RowPage(Struct, frozen=True):
    """What one READ brought, as far as it was asked for.

    ``rows`` have the columns of the stream's table. ``state`` is where the next READ continues:
    right after them where ``overlap`` is 0, else it brings the last so many again, for the source
    said no state since. ``is_complete``: the source has no more.
    """

    rows: pa.Table
    state: ConnectionState
    overlap: int
    is_complete: bool


class _KeepWarnings(Listener):
    """Passes everything to ``listener``, and keeps the warnings."""

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

    Every method may raise what goes wrong on the way to any answer:
        ConfigError: the config does not fit the SPEC, or cannot be used as it is.
        RunnerUnavailableError: there is nothing to run the connector with.
        ConnectorFailedError: the connector failed; the message is its own.
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
        """Warnings about the config so far."""
        return list(dict.fromkeys(self._listener.warnings))

    @property
    def image(self) -> str:
        """The connector's image, whether or not it runs from it."""
        return ConnectorRef.resolve(self.connection).image

    @property
    def is_discovered(self) -> bool:
        """Whether the streams are known, so that no connector need be asked for them."""
        return self._catalog is not None

    def open(self) -> AbstractContextManager[Connector]:
        """Open the connector with its config; no other call uses that meanwhile."""
        return open_connector(self.connection, self._context)

    def spec(self) -> Spec:
        return read_spec(self.connection, self._context)

    def status(self) -> ConnectionStatus:
        """The connector's answer to CHECK, be it good or bad."""
        with self.open() as connector:
            return connector.status()

    def check(self) -> None:
        """Raises CheckFailedError where the source cannot be reached with this config."""
        with self.open() as connector:
            connector.check()

    def discover(self) -> Catalog:
        """The streams, asked for anew."""
        with self.open() as connector:
            self._catalog = connector.discover()
        return self._catalog

    def catalog(self) -> Catalog:
        """The streams, asked for once."""
        return self._catalog or self.discover()

    def table(self, name: str) -> Stream:
        """The stream called ``name``, or ``namespace.name``. Raises UnknownStreamError."""
        streams = self.catalog().streams
        found = [s for s in streams if s.descriptor.name == name]
        found = found or [s for s in streams if str(s.descriptor) == name]
        if len(found) == 1:
            return found[0]
        if found:
            full = " or ".join(str(stream.descriptor) for stream in found)
            raise UnknownStreamError(f"'{name}' is in several namespaces; write {full}.")
        raise UnknownStreamError(no_stream(name, {s.descriptor.name for s in streams}))

    def tables(self) -> list[str]:
        """Names that :meth:`table` takes, in the source's order."""
        descriptors = [stream.descriptor for stream in self.catalog().streams]
        names = [descriptor.name for descriptor in descriptors]
        return [each.name if names.count(each.name) == 1 else str(each) for each in descriptors]

    @contextmanager
    def reading(
        self,
        stream: ConfiguredStream,
        *,
        state: ConnectionState | None = None,
        limit: int | None = None,
        batch_rows: int | None = None,
    ) -> Iterator[StreamReader]:
        """A READ of ``stream`` that is about to start; see :class:`StreamReader`."""
        options = {} if batch_rows is None else {"batch_rows": batch_rows}
        with self.open() as connector:
            yield StreamReader(connector, [stream], state=state, limit=limit, **options)

    def page(
        self,
        stream: ConfiguredStream,
        *,
        state: ConnectionState,
        limit: int | None = None,
        most_bytes: int | None = None,
    ) -> RowPage:
        """All that is new of ``stream``, or the first ``limit`` rows of it.

        Those end with the last one that a state covers, so that the next page brings the rest;
        where the source says no state in time, they do not. They also end when they take more than
        about ``most_bytes`` in memory.
        """
        batches, size = [], 0
        with (
            self.reading(stream, state=state, limit=limit) as reading,
            closing(reading.batches()) as found,
        ):
            for _, batch in found:
                batches.append(batch)
                size += batch.nbytes
                if most_bytes is not None and size >= most_bytes:
                    break
        rows = pa.Table.from_batches(batches, table_schema(stream.stream).arrow)
        overlap = reading.rows_since_state
        if not reading.is_complete and stream.sync_mode == "incremental" and overlap < len(rows):
            rows, overlap = rows.slice(0, len(rows) - overlap), 0
        return RowPage(rows, reading.state, overlap, reading.is_complete)


def table_schema(stream: Stream) -> TableSchema:
    """The columns that the stream's table has."""
    return TableSchema.from_json_schema(stream.json_schema)


def read_as(
    stream: Stream, *, incremental: bool, cursor_field: str | None = None
) -> ConfiguredStream:
    """How to read one table: all of it, or what is new by its cursor.

    ``cursor_field``: for a source that leaves the choice.

    Raises:
        ConfigError: it cannot be read like that.
    """
    name, own = stream.descriptor, stream.default_cursor_field
    if not incremental:
        if cursor_field is not None:
            raise ConfigError(f"'{name}' has a cursor in incremental reads only; ask for one.")
        whole = "full_refresh" in stream.supported_sync_modes
        return configure(
            stream,
            sync_mode="full_refresh" if whole else "incremental",
            destination_sync_mode="append",
        )
    if cursor_field is not None and stream.source_defined_cursor and own and own != (cursor_field,):
        raise ConfigError(
            f"The source itself says by what it reads '{name}' ({'.'.join(own)}); "
            f"leave {cursor_field} out."
        )
    fields = {column.field for column in table_schema(stream).columns}
    if cursor_field is not None and cursor_field not in fields:
        raise ConfigError(
            f"'{name}' has no field '{cursor_field}' to be its cursor; "
            f"it has {', '.join(sorted(fields))}."
        )
    return configure(
        stream,
        sync_mode="incremental",
        destination_sync_mode="append",
        cursor_field=None if cursor_field is None else (cursor_field,),
    )
