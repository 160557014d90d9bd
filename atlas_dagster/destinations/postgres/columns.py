"""Names and types in Postgres."""

import hashlib
from collections.abc import Collection, Sequence

import pyarrow as pa
from msgspec import Struct

from atlas_dagster.destinations.base import TablePath
from atlas_dagster.records.names import assign
from atlas_dagster.records.types import EXTRA, META, SOURCE_NAME_KEY, ColumnType, TableSchema

#: Order of arrival; in staged rows only.
ARRIVAL = "_atlas_arrival"
#: What Postgres has in every table already, and ours.
_TAKEN_COLUMNS = ("tableoid", "xmin", "xmax", "cmin", "cmax", "ctid", ARRIVAL)
_TAKEN_SCHEMAS = ("information_schema", "pg_catalog", "pg_toast", "pg_temp")
#: Of one table, in Postgres.
MOST_COLUMNS = 1600
#: Bytes of all key columns together that an index entry can hold; a third of a page.
_INDEXED_BYTES = 2400


class Column(Struct, frozen=True):
    """A column: ``name`` in Postgres, ``logical`` in the stream's table schema."""

    name: str
    logical: str
    type: str
    #: The field it holds, with its Arrow type; None for Airbyte's own columns.
    field: pa.Field | None

    @property
    def quoted(self) -> str:
        return quoted(self.name)

    @property
    def source(self) -> str:
        """The source's name for it; "" for what is not the source's."""
        metadata = {} if self.field is None else self.field.metadata
        return str(metadata.get(SOURCE_NAME_KEY.encode(), b"").decode())

    @property
    def is_json(self) -> bool:
        return self.type == "jsonb"

    @property
    def staged_type(self) -> str:
        """JSON waits as text, which no server refuses, and decimals as they were written."""
        return "text" if self.type in ("jsonb", "numeric") else self.type

    def as_decimal(self) -> str:
        """The decimals of a column of integers or doubles: those kept beside them digit by digit,
        or what the column shows. By way of text, for the cast of a double keeps 15 digits only."""
        extra, key = quoted(EXTRA), literal(self.source)
        return (
            f"CASE WHEN jsonb_typeof({extra} -> {key}) = 'number' "
            f"THEN ({extra} ->> {key})::numeric ELSE {self.quoted}::text::numeric END"
        )

    def moved(self, target_type: str) -> str:
        """The staged value, for a target column of ``target_type``."""
        if self.type == "numeric":
            return f"{self.quoted}::numeric"
        if target_type != "jsonb":
            return self.quoted
        return f"{self.quoted}::jsonb" if self.is_json else f"to_jsonb({self.quoted})"


def columns_of(schema: TableSchema) -> tuple[Column, ...]:
    """All columns of a table, in the order of ``schema.arrow``."""
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
    """The Postgres type, in the words of ``format_type``."""
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
    if connection.startswith("pg_"):  # Postgres keeps those for itself
        connection = f"_{connection}"
    return assign([connection], reserved=_TAKEN_SCHEMAS)[connection]


def table_name(path: TablePath, taken: Collection[str]) -> str:
    """``stream`` or ``namespace__stream``, shortened to what Postgres takes.

    ``taken``: names of other tables, which it must differ from.
    """
    joined = "__".join(path[1:])
    if joined.startswith("_atlas_"):
        joined = f"_{joined}"
    return assign([joined], reserved=taken)[joined]


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def readable(name: str, type_: str) -> str:
    """The column ``name`` as readers get it: decimals as the nearest doubles."""
    column = quoted(name)
    if not type_.startswith("numeric"):
        return column
    size = f"abs({column})"
    return (
        f"CASE WHEN {size} >= 1e308 THEN sign({column})::double precision * 'infinity' "
        f"WHEN {size} < 1e-307 THEN 0 ELSE {column}::double precision END AS {column}"
    )


def literal(text: str) -> str:
    """``text`` as a constant, without the character that Postgres cannot hold."""
    return "'" + text.replace("\0", "").replace("'", "''") + "'"


def listed(names: Sequence[str]) -> str:
    return ", ".join(map(quoted, names))


def index_name(table: str, keys: Collection[str]) -> str:
    """Of the index over ``keys``: another key gets another index."""
    identity = "\0".join((table, *keys)).encode()
    return f"_atlas_key_{hashlib.sha1(identity, usedforsecurity=False).hexdigest()[:16]}"


def comparable(column: str, type_: str) -> str:
    """``column`` so that it compares as in every other destination: text by its bytes."""
    if type_ == "jsonb":
        return f'{column}::text COLLATE "C"'
    return f'{column} COLLATE "C"' if type_ == "text" else column


def indexed(column: str, type_: str, keys: int) -> str:
    """The part of key ``column`` that an index over ``keys`` columns holds."""
    if type_ == "jsonb":
        return f"jsonb_hash({column})"
    if type_ != "text":
        return column
    # Four bytes a character at most.
    return f"left({column}::text, {_INDEXED_BYTES // 4 // keys})"
