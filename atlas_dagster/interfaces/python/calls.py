"""What both adapters do, the one for an event loop and the one without: work in threads."""

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar
from weakref import WeakSet

import pandas as pd
import pyarrow as pa
from msgspec import Struct

from atlas_dagster.errors import ConfigError
from atlas_dagster.interfaces.python.state import GivenState, States
from atlas_dagster.interfaces.python.worker import Feed, Work
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.protocol.state import ConnectionState
from atlas_dagster.reading.ad_hoc import reap_adhoc_once
from atlas_dagster.reading.ad_hoc_source import AdHocSource, read_as, table_schema
from atlas_dagster.records.dataframe import to_pandas
from atlas_dagster.records.types import EXTRA, METADATA_FIELDS

T = TypeVar("T")

_log = logging.getLogger("atlas_dagster.airbyte")
_OWN_COLUMNS = [field.name for field in METADATA_FIELDS]


class Asked(Struct, frozen=True):
    """How to read a table; see :meth:`atlas_dagster.airbyte.SourceConnector.get_data`."""

    table: str
    incremental: bool
    timestamp_column: str | None
    metadata_columns: bool


class Taken(Struct, frozen=True):
    """Rows for the caller, and where ``table`` continues once he has them, if that is known."""

    rows: pd.DataFrame
    table: str
    state: ConnectionState | None
    #: No rows come any more; only the state may have moved.
    is_end: bool = False


class AdapterCalls:
    """Calls of one connector, and where its tables continue."""

    def __init__(self, source: AdHocSource, state: GivenState | None) -> None:
        self.source = source
        self.states = States(state)
        self._is_closed = False
        self._at_work: WeakSet[Work[Any] | Feed[Any]] = WeakSet()

    def check(self) -> Work[None]:
        return self._work(self.source.check)

    def tables(self) -> Work[list[str]]:
        return self._work(self.source.tables, is_known=self.source.is_discovered)

    def schema(self, table: str) -> Work[dict[str, str]]:
        def call() -> dict[str, str]:
            columns = table_schema(self.source.table(table)).columns
            return {column.name: column.type.sql for column in columns}

        return self._work(call, is_known=self.source.is_discovered)

    def data(self, asked: Asked, limit: int | None) -> Work[Taken]:
        if limit is not None and limit < 1:
            raise ConfigError(f"limit is {limit}; write a number of rows above 0.")

        def call() -> Taken:
            stream, before = self._plan(asked)
            page = self.source.page(stream, state=before, limit=limit)
            frames = _Frames(asked)
            rows = frames.frame(page.rows)
            frames.tell()
            if asked.incremental and page.overlap and not page.is_complete:
                _log.warning(
                    "%s said no state within %d rows of '%s', so the next read brings them again; "
                    "raise limit.",
                    self.source.name,
                    len(rows),
                    asked.table,
                )
            return _taken(asked, stream, rows, page.state)

        return self._work(call)

    def batches(self, asked: Asked, batch_size: int) -> "Batches":
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; write a number of rows above 0.")

        def produce(put: Callable[[Taken], None]) -> None:
            reap_adhoc_once()
            stream, before = self._plan(asked)
            frames = _Frames(asked)
            # Half as many: a batch that waits for a state which covers it may become twice as long.
            rows = max(batch_size // 2, 1)
            with self.source.reading(stream, state=before, batch_rows=rows) as reading:
                for _, batch in reading.batches():
                    for start in range(0, batch.num_rows, batch_size):
                        part = pa.Table.from_batches([batch.slice(start, batch_size)])
                        is_last = start + batch_size >= batch.num_rows
                        state = reading.state if is_last else None
                        put(_taken(asked, stream, frames.frame(part), state))
                put(_taken(asked, stream, pd.DataFrame(), reading.state, is_end=True))
            frames.tell()

        feed = Feed(produce, alone=self.source.connection.name)
        self._at_work.add(feed)
        return Batches(feed, self)

    def take(self, taken: Taken) -> pd.DataFrame:
        """For whoever has the rows now: nothing can come between that and their state."""
        if taken.state:
            self.states.set(taken.table, taken.state)
        return taken.rows

    def refuse_if_closed(self) -> None:
        """Raises ConfigError."""
        if self._is_closed:
            raise ConfigError("The adapter is closed; create another one.")

    def close(self) -> None:
        """Stop what is under way, and wait for its end."""
        self._is_closed = True
        for each in list(self._at_work):
            each.close()

    async def aclose(self) -> None:
        """As :meth:`close`, for callers with an event loop."""
        self._is_closed = True
        for each in list(self._at_work):
            await each.aclose()

    def _work(self, call: Callable[[], T], *, is_known: bool = False) -> Work[T]:
        """``is_known``: the connector need not be asked."""
        self.refuse_if_closed()

        def prepared() -> T:
            reap_adhoc_once()
            return call()

        work = Work(prepared, alone=None if is_known else self.source.connection.name)
        self._at_work.add(work)
        return work

    def _plan(self, asked: Asked) -> tuple[ConfiguredStream, ConnectionState]:
        """How to read, and from where."""
        if asked.timestamp_column is not None and not asked.incremental:
            raise ConfigError("timestamp_column is for incremental=True; give both or neither.")
        stream = read_as(
            self.source.table(asked.table),
            incremental=asked.incremental,
            cursor_field=asked.timestamp_column,
        )
        return stream, self.states.of(stream) if asked.incremental else ConnectionState()


class Batches(AsyncIterator[pd.DataFrame], Iterator[pd.DataFrame]):
    """The rows of one table, some at a time; closed or forgotten, it stops its connector."""

    def __init__(self, feed: Feed[Taken], calls: AdapterCalls) -> None:
        self._feed = feed
        self._calls = calls

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> pd.DataFrame:
        self._calls.refuse_if_closed()
        while True:
            taken = next(self._feed)
            rows = self._calls.take(taken)
            if not taken.is_end:
                return rows

    def __aiter__(self) -> "Batches":
        return self

    async def __anext__(self) -> pd.DataFrame:
        self._calls.refuse_if_closed()
        while True:
            taken = await anext(self._feed)
            rows = self._calls.take(taken)
            if not taken.is_end:
                return rows

    def close(self) -> None:
        """Stop, and return when the connector is gone."""
        self._feed.close()

    async def aclose(self) -> None:
        """As :meth:`close`, for callers with an event loop."""
        await self._feed.aclose()


class _Frames:
    """Makes data frames of rows, and remembers what these do not show."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._hidden = 0
        self._rows = 0

    def frame(self, rows: pa.Table) -> pd.DataFrame:
        self._rows += rows.num_rows
        if self._asked.metadata_columns:
            return to_pandas(rows)
        self._hidden += rows.num_rows - rows[EXTRA].null_count
        return to_pandas(rows.drop_columns(_OWN_COLUMNS))

    def tell(self) -> None:
        if self._hidden:
            _log.warning(
                "Of %d rows of '%s', %d have values that no column holds; metadata_columns=True "
                "shows them, in _airbyte_extra.",
                self._rows,
                self._asked.table,
                self._hidden,
            )


def _taken(
    asked: Asked,
    stream: ConfiguredStream,
    rows: pd.DataFrame,
    state: ConnectionState | None,
    *,
    is_end: bool = False,
) -> Taken:
    # What a full refresh says of its state means nothing to the next one.
    return Taken(rows, str(stream.descriptor), state if asked.incremental else None, is_end)
