"""The IO manager: a downstream asset takes a stream as an argument and gets its rows.

Each stream's asset names this IO manager, so the downstream asset need not. The annotation of the
argument decides the type of the rows; polars and DuckDB are imported only if they are needed.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import dagster as dg
import pandas as pd
import pyarrow as pa

from atlas_dagster.destinations.base import Destination, StoresTables, TablePath
from atlas_dagster.errors import ConfigError
from atlas_dagster.orchestration.automation.retries import explain_failure
from atlas_dagster.orchestration.dagster_internals import TableMetadataSet
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.step.metadata import uri_value
from atlas_dagster.records.dataframe import to_pandas
from atlas_dagster.source.connection import Connection

if TYPE_CHECKING:
    import duckdb
    import polars as pl

IO_MANAGER_KEY = "atlas_io"
#: The metadata key of the table's path, for assets whose key differs from it.
TABLE_ENTRY = "atlas/table"

_READABLE = (
    "pandas.DataFrame, polars.DataFrame, polars.LazyFrame, pyarrow.Table, "
    "pyarrow.RecordBatchReader or duckdb.DuckDBPyRelation"
)


class TableIOManager(dg.IOManager):
    """Loads the table of an upstream stream, and stores the result of an asset as a table.

    The default type is ``pandas.DataFrame``. Annotate the argument for another one:
    ``polars.DataFrame``, ``polars.LazyFrame``, ``pyarrow.Table``, ``pyarrow.RecordBatchReader`` or
    ``duckdb.DuckDBPyRelation``. ``AssetIn(metadata={"columns": [...]})`` reads only these columns.

    In pandas, integers are ``Int64`` and booleans ``boolean``, both nullable, timestamps with zone
    are in UTC, dates are ``datetime.date``; the rest is as in ``pandas.read_parquet``. Objects and
    arrays stay JSON text.

    With ``io_manager_key="atlas_io"`` on an asset of your own, the data frame or Arrow data that it
    returns replaces the table named like its key, in the same lake.
    """

    def __init__(self, destination: Callable[[], Destination]) -> None:
        self._destination = destination

    def load_input(self, context: dg.InputContext) -> Any:
        """Load a table. Raises dagster.Failure if it cannot be loaded with this type."""
        with explain_failure():
            load = _choose_loader(context.dagster_type.typing_type, context.asset_key)
            columns = context.definition_metadata.get("columns")
            return load(_Rows(self._destination(), _find_table(context), columns))

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Store a table. Raises dagster.Failure, with one sentence, if that is not possible."""
        with explain_failure():
            key = context.asset_key
            destination = self._destination()
            if not isinstance(destination, StoresTables):
                raise ConfigError(
                    f"Tables in {destination.kind} come from connections only; give "
                    f"{key.to_user_string()} another io_manager_key."
                )
            if context.has_asset_partitions:
                raise ConfigError(
                    f"{key.to_user_string()} is partitioned, and a table here is replaced as a "
                    "whole; give the asset another io_manager_key."
                )
            stored = destination.store(tuple(key.path), _open_reader(obj, key))
            context.add_output_metadata(
                {
                    **TableMetadataSet(row_count=stored.row_count, table_name=".".join(key.path)),
                    "dagster/uri": uri_value(stored.uri),
                }
            )


def common_resources(atlas: AtlasResource) -> dict[str, Any]:
    """Return the resources that the assets of all connections need, by resource key."""
    return {"atlas": atlas, IO_MANAGER_KEY: _io_manager(None)}


def default_resources() -> dict[str, Any]:
    """Return the common resources as the environment configures them.

    The same environment gives the same objects: each connection brings these resources, and
    Dagster merges only identical ones.
    """
    return _make_resources(*map(os.environ.get, AtlasResource.VARIABLES))


@cache
def _make_resources(*_: str | None) -> dict[str, Any]:
    return common_resources(AtlasResource.from_environment())


def io_manager_key(connection: Connection) -> str:
    """Return the key of the IO manager of ``connection``, which depends on its destination."""
    if connection.destination is None:
        return IO_MANAGER_KEY
    # A key is an identifier in Python, so it cannot begin with a digit.
    return f"_{connection.name}__io" if connection.name[0].isdigit() else f"{connection.name}__io"


def io_resources(connection: Connection) -> dict[str, Any]:
    """Return the resources that only ``connection`` needs.

    Their config does not have the destination, because Dagster would show its address.
    """
    if connection.destination is None:
        return {}
    return {io_manager_key(connection): _io_manager(connection)}


def _io_manager(connection: Connection | None) -> dg.IOManagerDefinition:
    @dg.io_manager(required_resource_keys={"atlas"}, description=TableIOManager.__doc__)
    def build(context: dg.InitResourceContext) -> TableIOManager:
        atlas: AtlasResource = context.resources.atlas
        return TableIOManager(lambda: atlas.open_destination(connection))

    return build


class _Rows:
    """A table that is read again for each Arrow stream."""

    def __init__(
        self, destination: Destination, table: TablePath, columns: Sequence[str] | None
    ) -> None:
        self.columns = columns
        self.read = partial(destination.read, table)

    def reader(self) -> pa.RecordBatchReader:
        return self.read(self.columns)

    def table(self) -> pa.Table:
        return self.reader().read_all()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.reader().__arrow_c_stream__(requested_schema)


def _find_table(context: dg.InputContext) -> TablePath:
    """Return the path of the upstream asset's table."""
    upstream = context.upstream_output
    entry = upstream.definition_metadata.get(TABLE_ENTRY) if upstream else None
    return tuple(entry.split("/")) if isinstance(entry, str) else tuple(context.asset_key.path)


def _choose_loader(annotation: Any, key: dg.AssetKey) -> Callable[[_Rows], Any]:
    # Types are compared by name, because polars and DuckDB are optional.
    name = getattr(annotation, "__name__", "Any")
    package = getattr(annotation, "__module__", "").partition(".")[0].removeprefix("_")
    match package, name:
        case (_, "Any") | ("pandas", "DataFrame"):
            return _to_pandas
        case "pyarrow", "Table":
            return _Rows.table
        case "pyarrow", "RecordBatchReader":
            return _Rows.reader
        case "polars", "DataFrame":
            return _to_polars
        case "polars", "LazyFrame":
            return _to_lazy_polars
        case "duckdb", "DuckDBPyRelation":
            return _to_duckdb
    raise ConfigError(
        f"{key.to_user_string()} cannot be loaded as {package}.{name}; annotate the argument as "
        f"{_READABLE}."
    )


def _to_pandas(rows: _Rows) -> pd.DataFrame:
    return to_pandas(rows.reader())


def _to_polars(rows: _Rows) -> "pl.DataFrame":
    import polars as pl

    return pl.DataFrame(rows)


def _to_lazy_polars(rows: _Rows) -> "pl.LazyFrame":
    """Return a frame that reads only the columns that its query needs, batch by batch."""
    import polars as pl
    from polars.io.plugins import register_io_source

    def batches(
        columns: list[str] | None, predicate: "pl.Expr | None", n_rows: int | None, _: int | None
    ) -> Iterator["pl.DataFrame"]:
        remaining = n_rows
        for batch in rows.read(columns or rows.columns):
            frame = pl.DataFrame(batch if remaining is None else batch.slice(0, remaining))
            yield frame if predicate is None else frame.filter(predicate)
            if remaining is not None:
                remaining -= batch.num_rows
                if remaining <= 0:
                    return

    schema = pl.DataFrame(rows.reader().schema.empty_table()).schema
    return register_io_source(batches, schema=schema)


def _to_duckdb(rows: _Rows) -> "duckdb.DuckDBPyRelation":
    """Return a relation on DuckDB's default connection, so that it can be joined with others."""
    import duckdb

    return duckdb.from_arrow(rows)


def _open_reader(obj: Any, key: dg.AssetKey) -> pa.RecordBatchReader:
    if isinstance(obj, pd.DataFrame):
        # An index without a name only numbers the rows.
        frame = obj.reset_index(drop=not any(obj.index.names))
        try:
            obj = pa.Table.from_pandas(frame)
        except pa.ArrowException as error:
            why = ": ".join(map(str, error.args))
            raise ConfigError(f"{key.to_user_string()} cannot be stored: {why}") from error
    if not hasattr(obj, "__arrow_c_stream__"):
        raise ConfigError(
            f"{key.to_user_string()} returned a {type(obj).__name__}, not a table; return a "
            "pandas or polars DataFrame or Arrow data, or give the asset another io_manager_key."
        )
    return pa.RecordBatchReader.from_stream(obj)
