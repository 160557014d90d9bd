"""One source as data frames, for code with an event loop and for code without.

A connector runs in a thread, so notebooks and servers stay responsive. To stop it, cancel the task,
break the loop or press Ctrl-C. Calls of one source run one after another, because some sources
accept a credential only once.
"""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import closing
from typing import Any, Self, TypeVar
from weakref import WeakSet

import pandas as pd
import pyarrow as pa
from msgspec import Struct

from atlas_dagster.config.templates import variables
from atlas_dagster.errors import ConfigError, MissingVariableError
from atlas_dagster.interfaces.python.state import GivenState, TableStates
from atlas_dagster.interfaces.python.worker import Call, Stream, Worker
from atlas_dagster.listener import LoggingListener
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.protocol.state import ConnectionState
from atlas_dagster.reading.ad_hoc import adhoc_connection, adhoc_context, reap_adhoc_once
from atlas_dagster.reading.ad_hoc_source import AdHocSource, configure_read, table_schema
from atlas_dagster.records.dataframe import to_pandas
from atlas_dagster.records.types import EXTRA, METADATA_FIELDS
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.source.connection import RunnerChoice

T = TypeVar("T")
#: Data frames, and the state of their table after them. The adapter saves the state in the same
#: step that delivers the rows to the caller.
_Delivery = tuple[list[pd.DataFrame], dict[str, ConnectionState]]

_log = logging.getLogger("atlas_dagster.airbyte")
_BATCH_ROWS = 10_000
_METADATA_COLUMNS = [field.name for field in METADATA_FIELDS]


class SourceConnector(ABC):
    """A source of tables. Every method may raise an :class:`atlas_dagster.errors.AtlasError`."""

    @abstractmethod
    async def test_connection(self) -> bool:
        """Return True if the source can be reached.

        Raises:
            CheckFailedError: it cannot be reached; the message is the connector's own.
        """

    @abstractmethod
    async def list_tables(self) -> list[str]:
        """Return the names of the tables; ``namespace.name`` if several namespaces have a name."""

    @abstractmethod
    async def get_schema(self, table: str) -> dict[str, str]:
        """Return the SQL type of each column: ``{"id": "INTEGER", "name": "VARCHAR"}``.

        Raises:
            UnknownStreamError: the table does not exist; the message suggests the closest name.
        """

    @abstractmethod
    async def get_data(
        self,
        table: str,
        *,
        incremental: bool = False,
        timestamp_column: str | None = None,
        limit: int | None = None,
        metadata_columns: bool = False,
    ) -> pd.DataFrame:
        """Return the rows of ``table``.

        Integers are ``Int64`` and booleans ``boolean``, both nullable. Timestamps with time zone
        are in UTC. Objects and arrays are JSON text.

        Args:
            table: a name from :meth:`list_tables`.
            incremental: return only rows that are new since the adapter's state.
            timestamp_column: the cursor field, if the source does not define it.
            limit: return at most this many rows. An incremental read ends at the last STATE within
                the limit, so that the next call continues with the next row.
            metadata_columns: add Airbyte's own columns. ``_airbyte_extra`` has the values that fit
                no other column.

        Raises:
            UnknownStreamError: the table does not exist.
            ConfigError: the source does not support these arguments.
            ConnectorFailedError: the read failed. The adapter's state has not changed.
        """

    @abstractmethod
    def get_data_stream(
        self,
        table: str,
        *,
        incremental: bool = False,
        timestamp_column: str | None = None,
        batch_size: int = _BATCH_ROWS,
        metadata_columns: bool = False,
    ) -> AsyncIterator[pd.DataFrame]:
        """Iterate over the rows of ``table`` in data frames of at most ``batch_size`` rows.

        The connector waits for the loop's body, so memory stays flat. It stops when the loop ends
        early. An incremental read updates the adapter's state with each data frame. A frame ends
        where the source sends a STATE, if one comes in time. See :meth:`get_data` for the
        arguments.
        """

    @abstractmethod
    async def close(self) -> None:
        """Stop all calls. The adapter cannot be used afterwards."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class ReadRequest(Struct, frozen=True):
    """The options for reading a table; see :meth:`SourceConnector.get_data`."""

    table: str
    incremental: bool
    timestamp_column: str | None
    metadata_columns: bool


class AirbyteSourceAdapter(SourceConnector):
    """An Airbyte source connector; :func:`create_airbyte_adapter` makes one.

    :attr:`sync` has the same methods for code without an event loop.
    """

    def __init__(self, source: AdHocSource, state: GivenState | None = None) -> None:
        self._source = source
        self._states = TableStates(state)
        self._is_closed = False
        self._calls = WeakSet[Call[Any]]()

    @property
    def sync(self) -> "SyncSourceAdapter":
        """The same methods for code without an event loop."""
        return SyncSourceAdapter(self)

    @property
    def state(self) -> dict[str, Any]:
        """The state from which the next incremental read continues, by table, as JSON."""
        return self._states.as_json()

    def save_state(self, path: str | os.PathLike[str] | None = None) -> None:
        """Write :attr:`state` to ``path``, by default the file that the adapter was created with.

        Save the rows first: rows that the file covers are not read again.

        Raises:
            ConfigError: there is no path, or it cannot be written.
        """
        self._states.save(path)

    async def test_connection(self) -> bool:
        await self._submit(self._source.check)
        return True

    async def list_tables(self) -> list[str]:
        return await self._look_up(self._source.table_names)

    async def get_schema(self, table: str) -> dict[str, str]:
        return await self._look_up(lambda: self._read_schema(table))

    async def get_data(
        self,
        table: str,
        *,
        incremental: bool = False,
        timestamp_column: str | None = None,
        limit: int | None = None,
        metadata_columns: bool = False,
    ) -> pd.DataFrame:
        request = ReadRequest(table, incremental, timestamp_column, metadata_columns)
        (rows,) = self._deliver(await self._read(request, limit))
        return rows

    def get_data_stream(
        self,
        table: str,
        *,
        incremental: bool = False,
        timestamp_column: str | None = None,
        batch_size: int = _BATCH_ROWS,
        metadata_columns: bool = False,
    ) -> AsyncIterator[pd.DataFrame]:
        request = ReadRequest(table, incremental, timestamp_column, metadata_columns)
        return self._stream(request, batch_size)

    async def close(self) -> None:
        self._is_closed = True
        for call in list(self._calls):
            await call.aclose()

    aclose = close

    def _submit(self, function: Callable[[], T], *, needs_connector: bool = True) -> Call[T]:
        if self._is_closed:
            raise ConfigError("The adapter is closed; create another one.")

        def prepare_and_call() -> T:
            reap_adhoc_once()
            return function()

        worker = Worker.of(self._source.connection.name) if needs_connector else Worker()
        call = worker.submit(prepare_and_call)
        self._calls.add(call)
        return call

    def _look_up(self, function: Callable[[], T]) -> Call[T]:
        """Submit a call that needs a connector only until the source's catalog is known."""
        return self._submit(function, needs_connector=not self._source.is_discovered)

    def _read(self, request: ReadRequest, limit: int | None) -> Call[_Delivery]:
        if limit is not None and limit < 1:
            raise ConfigError(f"limit is {limit}; write a number of rows above 0.")
        return self._submit(lambda: self._read_page(request, limit))

    def _stream(self, request: ReadRequest, batch_size: int) -> Stream[pd.DataFrame]:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; write a number of rows above 0.")
        return Stream(self._submit, self._read_batches(request, batch_size), self._deliver)

    def _deliver(self, delivery: _Delivery) -> list[pd.DataFrame]:
        frames, states = delivery
        self._states.update(states)
        return frames

    # These run in the worker's thread.

    def _read_schema(self, table: str) -> dict[str, str]:
        columns = table_schema(self._source.find_table(table)).columns
        return {column.name: column.type.sql for column in columns}

    def _read_page(self, request: ReadRequest, limit: int | None) -> _Delivery:
        stream, state = self._plan_read(request)
        page = self._source.read_page(stream, state=state, limit=limit)
        rows = page.rows.num_rows
        _warn_of_hidden_values(request, rows, _count_extra(page.rows))
        if request.incremental and page.overlap and not page.is_complete:
            _log.warning(
                "%s sent no state within %d rows of '%s', so the next read returns them again; "
                "raise limit.",
                self._source.name,
                rows,
                request.table,
            )
        return [_make_frame(request, page.rows)], _next_state(request, stream, page.state)

    def _read_batches(
        self, request: ReadRequest, batch_size: int
    ) -> Generator[_Delivery, None, None]:
        stream, before = self._plan_read(request)
        rows = hidden = 0
        # Half of it, because a batch that waits for its STATE may become twice as long.
        half = max(batch_size // 2, 1)
        with (
            self._source.open_reader(stream, state=before, batch_rows=half) as reader,
            closing(reader.batches()) as batches,
        ):
            for _, batch in batches:
                rows += batch.num_rows
                hidden += _count_extra(batch)
                for start in range(0, batch.num_rows, batch_size):
                    piece = pa.Table.from_batches([batch.slice(start, batch_size)])
                    is_last = start + batch_size >= batch.num_rows
                    state = _next_state(request, stream, reader.state) if is_last else {}
                    yield [_make_frame(request, piece)], state
            yield [], _next_state(request, stream, reader.state)
        _warn_of_hidden_values(request, rows, hidden)

    def _plan_read(self, request: ReadRequest) -> tuple[ConfiguredStream, ConnectionState]:
        """Return the configured stream, and the state to continue from."""
        if request.timestamp_column is not None and not request.incremental:
            raise ConfigError("timestamp_column is for incremental=True; give both or neither.")
        stream = configure_read(
            self._source.find_table(request.table),
            incremental=request.incremental,
            cursor_field=request.timestamp_column,
        )
        return stream, self._states.of(stream) if request.incremental else ConnectionState()


class SyncSourceAdapter:
    """The methods of :class:`SourceConnector` for code without an event loop. Each one waits."""

    def __init__(self, adapter: AirbyteSourceAdapter) -> None:
        self._adapter = adapter

    def test_connection(self) -> bool:
        """See :meth:`SourceConnector.test_connection`."""
        self._adapter._submit(self._adapter._source.check).wait()
        return True

    def list_tables(self) -> list[str]:
        """See :meth:`SourceConnector.list_tables`."""
        return self._adapter._look_up(self._adapter._source.table_names).wait()

    def get_schema(self, table: str) -> dict[str, str]:
        """See :meth:`SourceConnector.get_schema`."""
        return self._adapter._look_up(lambda: self._adapter._read_schema(table)).wait()

    def get_data(
        self,
        table: str,
        *,
        incremental: bool = False,
        timestamp_column: str | None = None,
        limit: int | None = None,
        metadata_columns: bool = False,
    ) -> pd.DataFrame:
        """See :meth:`SourceConnector.get_data`."""
        request = ReadRequest(table, incremental, timestamp_column, metadata_columns)
        (rows,) = self._adapter._deliver(self._adapter._read(request, limit).wait())
        return rows

    def get_data_stream(
        self,
        table: str,
        *,
        incremental: bool = False,
        timestamp_column: str | None = None,
        batch_size: int = _BATCH_ROWS,
        metadata_columns: bool = False,
    ) -> Iterator[pd.DataFrame]:
        """See :meth:`SourceConnector.get_data_stream`."""
        request = ReadRequest(table, incremental, timestamp_column, metadata_columns)
        return self._adapter._stream(request, batch_size)

    def close(self) -> None:
        """See :meth:`SourceConnector.close`."""
        self._adapter._is_closed = True
        for call in list(self._adapter._calls):
            call.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def create_airbyte_adapter(
    connector: str,
    config: Mapping[str, Any] | None = None,
    *,
    runner: RunnerChoice = "auto",
    executor: ExecutorConfig | None = None,
    state: GivenState | None = None,
    validate: bool = True,
) -> AirbyteSourceAdapter:
    """Return an adapter for a source, without contacting the source.

    Args:
        connector: a name from the registry (``source-postgres``, ``source-postgres:3.8.1``,
            ``source-postgres:latest``), or an image (``my/own:1.0``).
        config: the connector's config, as its SPEC describes it. ``{{ env.X }}`` is replaced by
            that environment variable.
        runner: ``docker``, ``python`` (from PyPI, or from the manifest Airbyte publishes), or
            ``auto``: Docker if an engine answers.
        executor: limits of the connector.
        state: the state to continue from: a value of :attr:`AirbyteSourceAdapter.state`, or the
            path of a file, which need not exist yet.
        validate: check ``config`` against the SPEC; otherwise it is passed on as it is.

    Raises:
        UnknownConnectorError: no connector has this name; the message suggests the closest name.
        MissingVariableError: ``config`` refers to a variable that is not set.
        ConfigError: ``state`` is not a valid state.
    """
    connection = adhoc_connection(connector, config or {}, runner, validate=validate)
    missing = sorted(variables(connection.config) - set(os.environ))
    if missing:
        raise MissingVariableError(
            f"{connection.where} refers to the environment variable {', '.join(missing)}, which is "
            "not set; set it, or change the config."
        )
    context = adhoc_context(LoggingListener(_log, connection.source_name), limits=executor)
    return AirbyteSourceAdapter(AdHocSource(connection, context), state)


def _make_frame(request: ReadRequest, rows: pa.Table) -> pd.DataFrame:
    return to_pandas(rows if request.metadata_columns else rows.drop_columns(_METADATA_COLUMNS))


def _next_state(
    request: ReadRequest, stream: ConfiguredStream, state: ConnectionState | None
) -> dict[str, ConnectionState]:
    """Return the state to remember. A full refresh has none."""
    return {str(stream.descriptor): state} if state and request.incremental else {}


def _count_extra(rows: pa.Table | pa.RecordBatch) -> int:
    return int(rows.num_rows - rows[EXTRA].null_count)


def _warn_of_hidden_values(request: ReadRequest, rows: int, hidden: int) -> None:
    if hidden and not request.metadata_columns:
        _log.warning(
            "Of %d rows of '%s', %d have values that do not fit a column; metadata_columns=True "
            "shows them, in _airbyte_extra.",
            rows,
            request.table,
            hidden,
        )
