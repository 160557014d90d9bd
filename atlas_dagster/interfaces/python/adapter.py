"""The Python door: one source as data frames, for code with an event loop and without.

Connectors run in threads, so that notebooks and servers stay awake; a task that is cancelled, a
loop that is left and Ctrl-C stop the connector. Of one source, one call runs at a time: some hold
credentials that can be used only once.
"""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import pandas as pd

from atlas_dagster.config.templates import variables
from atlas_dagster.errors import MissingVariableError
from atlas_dagster.interfaces.python.calls import AdapterCalls, Asked
from atlas_dagster.interfaces.python.state import GivenState
from atlas_dagster.reading.ad_hoc import adhoc_caller, adhoc_connection
from atlas_dagster.reading.ad_hoc_source import AdHocSource
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.source.connection import RunnerChoice
from atlas_dagster.source.invocation import Log

_log = logging.getLogger("atlas_dagster.airbyte")
#: What connectors say. Quiet unless a program asks for it: errors come as exceptions anyway.
_connectors = logging.getLogger("atlas_dagster.connectors")
_connectors.addHandler(logging.NullHandler())
_LEVELS = {
    "TRACE": logging.DEBUG,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "ERROR": logging.ERROR,
    "FATAL": logging.CRITICAL,
}
_BATCH_ROWS = 10_000


class SourceConnector(ABC):
    """A source of tables. Every method may raise an :class:`atlas_dagster.errors.AtlasError`."""

    @abstractmethod
    async def test_connection(self) -> bool:
        """True where the source can be reached.

        Raises:
            CheckFailedError: it cannot; the message is the connector's own.
        """

    @abstractmethod
    async def list_tables(self) -> list[str]:
        """Names of the tables; ``namespace.name`` where a name is in several namespaces."""

    @abstractmethod
    async def get_schema(self, table: str) -> dict[str, str]:
        """Type of each column, in words of SQL: ``{"id": "INTEGER", "name": "VARCHAR"}``.

        Raises:
            UnknownStreamError: there is no such table; the message offers the nearest.
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
        """The rows of ``table``.

        Integers are ``Int64`` and booleans ``boolean``, both nullable; timestamps with zone are in
        UTC; objects and arrays are JSON text.

        Args:
            table: one of :meth:`list_tables`.
            incremental: only what is new since the last such call, as the adapter's state says.
            timestamp_column: by which the source tells what is new, where it leaves the choice.
            limit: at most so many rows. In an incremental read they end where the source says its
                state, so that the next call goes on with the next row.
            metadata_columns: Airbyte's own columns, too; ``_airbyte_extra`` has what fits no other.

        Raises:
            UnknownStreamError: there is no such table.
            ConfigError: the source cannot read it like that.
            ConnectorFailedError: the read failed; the adapter's state is as it was.
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
        """The rows of ``table`` in data frames of at most ``batch_size`` rows, for ``async for``.

        The connector waits while the loop works, so memory stays flat; leaving the loop stops it.
        In an incremental read the adapter's state moves on with each data frame. A frame ends
        where the source says its state, if it does so in time; see :meth:`get_data` for the rest.
        """

    @abstractmethod
    async def close(self) -> None:
        """Stop what is under way. The adapter cannot be used any more."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class AirbyteSourceAdapter(SourceConnector):
    """An Airbyte source connector; made by :func:`create_airbyte_adapter`.

    :attr:`sync` has the same methods for code without an event loop.
    """

    def __init__(self, source: AdHocSource, state: GivenState | None = None) -> None:
        self._calls = AdapterCalls(source, state)
        self.sync = SyncSourceAdapter(self._calls)

    @property
    def state(self) -> dict[str, Any]:
        """Where each table that was read incrementally continues: by table, as JSON."""
        return self._calls.states.as_json()

    def save_state(self, path: str | os.PathLike[str] | None = None) -> None:
        """Write :attr:`state` to ``path``, by default the one it was given as.

        Once the rows are safe where they go: what is in the file is not read again.

        Raises:
            ConfigError: there is no path, or it cannot be written.
        """
        self._calls.states.save(path)

    async def test_connection(self) -> bool:
        await self._calls.check()
        return True

    async def list_tables(self) -> list[str]:
        return await self._calls.tables()

    async def get_schema(self, table: str) -> dict[str, str]:
        return await self._calls.schema(table)

    async def get_data(
        self,
        table: str,
        *,
        incremental: bool = False,
        timestamp_column: str | None = None,
        limit: int | None = None,
        metadata_columns: bool = False,
    ) -> pd.DataFrame:
        asked = Asked(table, incremental, timestamp_column, metadata_columns)
        return self._calls.take(await self._calls.data(asked, limit))

    def get_data_stream(
        self,
        table: str,
        *,
        incremental: bool = False,
        timestamp_column: str | None = None,
        batch_size: int = _BATCH_ROWS,
        metadata_columns: bool = False,
    ) -> AsyncIterator[pd.DataFrame]:
        asked = Asked(table, incremental, timestamp_column, metadata_columns)
        return self._calls.batches(asked, batch_size)

    async def close(self) -> None:
        await self._calls.aclose()

    aclose = close


class SyncSourceAdapter:
    """The methods of :class:`SourceConnector` for code without an event loop: each one waits."""

    def __init__(self, calls: AdapterCalls) -> None:
        self._calls = calls

    def test_connection(self) -> bool:
        """See :meth:`SourceConnector.test_connection`."""
        self._calls.check().wait()
        return True

    def list_tables(self) -> list[str]:
        """See :meth:`SourceConnector.list_tables`."""
        return self._calls.tables().wait()

    def get_schema(self, table: str) -> dict[str, str]:
        """See :meth:`SourceConnector.get_schema`."""
        return self._calls.schema(table).wait()

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
        asked = Asked(table, incremental, timestamp_column, metadata_columns)
        return self._calls.take(self._calls.data(asked, limit).wait())

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
        asked = Asked(table, incremental, timestamp_column, metadata_columns)
        return self._calls.batches(asked, batch_size)

    def close(self) -> None:
        """See :meth:`SourceConnector.close`."""
        self._calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
    """A source, not asked anything yet.

    Args:
        connector: a name from the registry (``source-postgres``, ``source-postgres:3.8.1``,
            ``source-postgres:latest``), or an image (``my/own:1.0``).
        config: what the connector's SPEC asks for. ``{{ env.X }}`` is replaced by that variable.
        runner: ``docker``, ``python`` (from PyPI, or from the manifest Airbyte publishes), or
            ``auto``: Docker where there is an engine.
        executor: limits of the connector.
        state: where tables continue: what :attr:`AirbyteSourceAdapter.state` was, or the path of a
            file, which need not exist yet.
        validate: whether ``config`` must fit the SPEC; else it goes on as it is written.

    Raises:
        UnknownConnectorError: no connector has this name; the message offers the nearest.
        MissingVariableError: ``config`` refers to a variable that is not set.
        ConfigError: ``state`` is none.
    """
    connection = adhoc_connection(connector, config or {}, runner, validate=validate)
    missing = sorted(variables(connection.config) - set(os.environ))
    if missing:
        raise MissingVariableError(
            f"{connection.where} refers to the environment variable {', '.join(missing)}, which is "
            "not set; set it, or change the config."
        )
    log = log_of(connection.source_name)
    caller = adhoc_caller(_log.info, log, executor=executor, warn=_log.warning)
    return AirbyteSourceAdapter(AdHocSource(connection, caller), state)


def log_of(connector: str) -> Log:
    """Puts what a connector says into the logger ``atlas_dagster.connectors.<connector>``."""
    log = _connectors.getChild(connector)
    return lambda level, text: log.log(_LEVELS.get(level, logging.INFO), "%s", text)
