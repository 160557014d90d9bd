"""Names and types of columns and tables in Postgres, and their SQL."""

import hashlib
from collections.abc import Collection, Sequence

import pyarrow as pa
from msgspec import Struct

from atlas_dagster.destinations.base import TablePath
from atlas_dagster.records.names import assign
from atlas_dagster.records.types import EXTRA, META, SOURCE_NAME_KEY, ColumnType, TableSchema

#: Column of staged rows only: a row's number in order of arrival.
ARRIVAL = "_atlas_arrival"
#: Reserved column names: those of Postgres's system columns, and ``ARRIVAL``.
_TAKEN_COLUMNS = ("tableoid", "xmin", "xmax", "cmin", "cmax", "ctid", ARRIVAL)
_TAKEN_SCHEMAS = ("information_schema", "pg_catalog", "pg_toast", "pg_temp")
#: Postgres's limit for one table.
MOST_COLUMNS = 1600
#: Most bytes of an index entry, over all key columns; a third of a page.
_INDEXED_BYTES = 2400


class Column(Struct, frozen=True):
    """A column, called ``name`` in Postgres and ``logical`` in the stream's table schema."""

    name: str
    logical: str
    type: str
    #: The stream's field, with its Arrow type; None for Airbyte's metadata columns.
    field: pa.Field | None

    @property
    def quoted(self) -> str:
        return quote(self.name)

    @property
    def source(self) -> str:
        """The field's name in the source; "" for Airbyte's metadata columns."""
        metadata = {} if self.field is None else self.field.metadata
        return str(metadata.get(SOURCE_NAME_KEY.encode(), b"").decode())

    @property
    def is_json(self) -> bool:
        return self.type == "jsonb"

    @property
    def staged_type(self) -> str:
        """The type in the stage: text for JSON and decimals, so that no value is refused."""
        return "text" if self.type in ("jsonb", "numeric") else self.type

    def as_decimal(self) -> str:
        """Return SQL for the exact decimals of a column of integers or doubles: the kept value, or
        the column's. Doubles are cast through text, because a direct cast keeps only 15 digits."""
        extra, key = quote(EXTRA), literal(self.source)
        return (
            f"CASE WHEN jsonb_typeof({extra} -> {key}) = 'number' "
            f"THEN ({extra} ->> {key})::numeric ELSE {self.quoted}::text::numeric END"
        )

    def cast(self, target_type: str) -> str:
        """Return SQL that casts the staged value to a target column of ``target_type``."""
        if self.type == "numeric":
            return f"{self.quoted}::numeric"
        if target_type != "jsonb":
            return self.quoted
        return f"{self.quoted}::jsonb" if self.is_json else f"to_jsonb({self.quoted})"


def columns_of(schema: TableSchema) -> tuple[Column, ...]:
    """Return all columns of a table, in the order of ``schema.arrow``."""
    names = assign(schema.arrow.names, reserved=_TAKEN_COLUMNS)
    types = dict.fromkeys((META, EXTRA), "jsonb")
    types |= {column.name: "jsonb" for column in schema.columns if column.type.is_json}
    types |= {c.name: "numeric" for c in schema.columns if c.type is ColumnType.DECIMAL}
    columns = []
    for field in schema.arrow:
        known = SOURCE_NAME_KEY.encode() in (field.metadata or {})
        name = names[field.name]
        columns.append(
            Column(
                name=name,
                logical=field.name,
                type=types.get(field.name) or _type(field.type),
                field=field.with_name(name) if known else None,
            )
        )
    return tuple(columns)


def _type(arrow: pa.DataType) -> str:
    """Return the Postgres type, spelled as ``format_type`` does."""
    if pa.types.is_timestamp(arrow):
        return f"timestamp {'without' if arrow.tz is None else 'with'} time zone"
    if pa.types.is_decimal(arrow):
        return f"numeric({arrow.precision},{arrow.scale})"
    return {
        pa.int64(): "bigint",
        pa.float64(): "double precision",
        pa.bool_(): "boolean",
        pa.date32(): "date",
    }.get(arrow, "text")


def schema_name(connection: str) -> str:
    if connection.startswith("pg_"):  # reserved by Postgres
        connection = f"_{connection}"
    return assign([connection], reserved=_TAKEN_SCHEMAS)[connection]


def table_name(path: TablePath, taken: Collection[str]) -> str:
    """Return ``stream`` or ``namespace__stream``, shortened to Postgres's limit.

    ``taken``: names of other tables, which the name must differ from.
    """
    joined = "__".join(path[1:])
    if joined.startswith("_atlas_"):
        joined = f"_{joined}"
    return assign([joined], reserved=taken)[joined]


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def select_readable(name: str, type_: str) -> str:
    """Return SQL that selects the column ``name`` for readers: decimals as nearest doubles."""
    column = quote(name)
    if not type_.startswith("numeric"):
        return column
    size = f"abs({column})"
    return (
        f"CASE WHEN {size} >= 1e308 THEN sign({column})::double precision * 'infinity' "
        f"WHEN {size} < 1e-307 THEN 0 ELSE {column}::double precision END AS {column}"
    )


def literal(text: str) -> str:
    """Return ``text`` as an SQL literal, without U+0000, which Postgres text cannot hold."""
    return "'" + text.replace("\0", "").replace("'", "''") + "'"


def quote_all(names: Sequence[str]) -> str:
    return ", ".join(map(quote, names))


def index_name(table: str, keys: Collection[str]) -> str:
    """Return the name of the index over ``keys``; each key has its own index."""
    identity = "\0".join((table, *keys)).encode()
    return f"_atlas_key_{hashlib.sha1(identity, usedforsecurity=False).hexdigest()[:16]}"


def comparable(column: str, type_: str) -> str:
    """Return SQL for ``column`` that compares as in every destination: text by its bytes."""
    if type_ == "jsonb":
        return f'{column}::text COLLATE "C"'
    return f'{column} COLLATE "C"' if type_ == "text" else column


def indexed(column: str, type_: str, keys: int) -> str:
    """Return SQL for the part of key ``column`` that an index over ``keys`` columns holds."""
    if type_ == "jsonb":
        return f"jsonb_hash({column})"
    if type_ != "text":
        return column
    # A character has at most four bytes.
    return f"left({column}::text, {_INDEXED_BYTES // 4 // keys})"
