"""Typed columns of a stream's JSON schema.

The rules are those of Airbyte's destinations (``JsonSchemaToAirbyteType``): ``required`` is ignored
and every column is nullable. Columns start wide, because a Delta table cannot widen one later.

``number`` is a double if the table's format has no decimals of any length; those of Delta cannot
hold both 1e300 and 1e-20. Numbers that a double cannot hold exactly, integers over 64 bits and
other values that do not fit are kept as the source wrote them in ``_airbyte_extra`` (see
:mod:`atlas_dagster.records.issues`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any
from urllib.parse import unquote

import msgspec
import pyarrow as pa
from msgspec import Struct

from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.records.names import assign

RAW_ID = "_airbyte_raw_id"
EXTRACTED_AT = "_airbyte_extracted_at"
META = "_airbyte_meta"
GENERATION_ID = "_airbyte_generation_id"
#: One JSON object with undeclared fields and with values that do not fit into their column.
EXTRA = "_airbyte_extra"

_UTC_TIMESTAMP = pa.timestamp("us", tz="UTC")

METADATA_FIELDS = (
    pa.field(RAW_ID, pa.string()),
    pa.field(EXTRACTED_AT, _UTC_TIMESTAMP),
    pa.field(META, pa.string()),
    pa.field(GENERATION_ID, pa.int64()),
    pa.field(EXTRA, pa.string()),
)
#: Keys of a column's metadata: its field and its type.
SOURCE_NAME_KEY = "airbyte.field"
TYPE_KEY = "airbyte.type"


class ColumnType(Enum):
    """Airbyte's types. Times, unions and structured values are stored as text.

    ``DECIMAL`` is an exact number: text here, ``numeric`` in Postgres. ``TEXT`` is a union without
    objects and arrays: strings without quotes, numbers as written.
    """

    STRING = "string"
    BOOLEAN = "boolean"
    INTEGER = "integer"
    NUMBER = "number"
    DECIMAL = "decimal"
    DATE = "date"
    TIMESTAMP = "timestamp_with_timezone"
    LOCAL_TIMESTAMP = "timestamp_without_timezone"
    TIME = "time"
    TEXT = "text"
    OBJECT = "object"
    ARRAY = "array"
    UNKNOWN = "json"

    @property
    def arrow(self) -> pa.DataType:
        return _ARROW.get(self, pa.string())

    @property
    def sql(self) -> str:
        """The type's name in SQL, for people. ``JSON`` is text, as the source wrote it."""
        return _SQL[self]

    @property
    def is_json(self) -> bool:
        return self in (ColumnType.OBJECT, ColumnType.ARRAY, ColumnType.UNKNOWN)


_ARROW = {
    ColumnType.BOOLEAN: pa.bool_(),
    ColumnType.INTEGER: pa.int64(),
    ColumnType.NUMBER: pa.float64(),
    ColumnType.DATE: pa.date32(),
    ColumnType.TIMESTAMP: _UTC_TIMESTAMP,
    ColumnType.LOCAL_TIMESTAMP: pa.timestamp("us"),
}

_SQL = {
    ColumnType.STRING: "VARCHAR",
    ColumnType.BOOLEAN: "BOOLEAN",
    ColumnType.INTEGER: "INTEGER",
    ColumnType.NUMBER: "DOUBLE",
    ColumnType.DECIMAL: "DECIMAL",
    ColumnType.DATE: "DATE",
    ColumnType.TIMESTAMP: "TIMESTAMP WITH TIME ZONE",
    ColumnType.LOCAL_TIMESTAMP: "TIMESTAMP",
    ColumnType.TIME: "TIME",
    ColumnType.TEXT: "VARCHAR",
    ColumnType.OBJECT: "JSON",
    ColumnType.ARRAY: "JSON",
    ColumnType.UNKNOWN: "JSON",
}

_WELL_KNOWN = {
    "String": ColumnType.STRING,
    "BinaryData": ColumnType.STRING,
    "Boolean": ColumnType.BOOLEAN,
    "Integer": ColumnType.INTEGER,
    "Number": ColumnType.NUMBER,
    "Date": ColumnType.DATE,
    "TimestampWithTimezone": ColumnType.TIMESTAMP,
    "TimestampWithoutTimezone": ColumnType.LOCAL_TIMESTAMP,
    "TimeWithTimezone": ColumnType.TIME,
    "TimeWithoutTimezone": ColumnType.TIME,
}


#: A reference to a definition that Airbyte publishes.
_WELL_KNOWN_REFERENCE = re.compile(r"(?:^|/)WellKnownTypes\.json#/definitions/(\w+)$")
#: Levels of references and unions that are followed.
_DEEPEST = 16


def column_type(schema: Any, root: Any = None) -> ColumnType:
    """Return the column type of a property's JSON schema. ``root`` is the stream's schema."""
    kinds = _types(resolve(schema, root), root, _DEEPEST)
    if len(kinds) == 1:
        return kinds.pop()
    if kinds == {ColumnType.INTEGER, ColumnType.NUMBER}:
        return ColumnType.NUMBER
    if not kinds or any(kind.is_json for kind in kinds):
        return ColumnType.UNKNOWN
    return ColumnType.TEXT


def _types(schema: Any, root: Any, depth: int) -> set[ColumnType]:
    """Return the types that values of ``schema`` may have, without null."""
    if not isinstance(schema, dict) or not depth:
        return {ColumnType.UNKNOWN}
    declared = schema.get("type")
    if declared is not None:
        kinds = declared if isinstance(declared, list) else [declared]
        return {_type(kind, schema) for kind in kinds if kind != "null"}
    reference = _WELL_KNOWN_REFERENCE.search(str(schema.get("$ref", "")))
    if reference is not None or "$ref" in schema:
        return {_WELL_KNOWN.get(reference[1] if reference else "", ColumnType.UNKNOWN)}
    for keyword in ("oneOf", "anyOf"):
        options = schema.get(keyword)
        if isinstance(options, list):
            return set[ColumnType]().union(
                *(_types(resolve(option, root), root, depth - 1) for option in options)
            )
    parts = schema.get("allOf")
    if isinstance(parts, list):
        resolved = [resolve(part, root) for part in parts]
        merged = {k: v for part in resolved if isinstance(part, dict) for k, v in part.items()}
        return _types(merged, root, depth - 1)
    return {ColumnType.OBJECT}


def _type(kind: Any, schema: Mapping[str, Any]) -> ColumnType:
    airbyte_type = schema.get("airbyte_type")
    match kind:
        case "string":
            return _string_type(schema.get("format"), airbyte_type)
        case "boolean":
            return ColumnType.BOOLEAN
        case "integer" | "int":
            return ColumnType.INTEGER
        case "number":
            return ColumnType.INTEGER if airbyte_type == "integer" else ColumnType.NUMBER
        case "array":
            return ColumnType.ARRAY
        case "object":
            return ColumnType.OBJECT
        case _:
            return ColumnType.UNKNOWN


def resolve(schema: Any, root: Any) -> Any:
    """Return ``schema`` with references to ``root`` resolved. Keys beside one take precedence."""
    for _ in range(_DEEPEST):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str) or not reference.startswith("#"):
            return schema
        found = root
        for key in reference.removeprefix("#").split("/")[1:]:
            key = unquote(key).replace("~1", "/").replace("~0", "~")
            found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            return schema
        schema = found | {key: value for key, value in schema.items() if key != "$ref"}
    return schema


def was_json(schema: Any) -> bool:
    """Whether versions that did not record types stored values of ``schema`` as JSON text."""
    if not isinstance(schema, dict):
        return True
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return reference.rsplit("/", 1)[-1] not in _WELL_KNOWN
    declared = schema.get("type")
    if declared is not None:
        kinds = declared if isinstance(declared, list) else [declared]
        return len([kind for kind in kinds if kind != "null"]) != 1
    for keyword in ("oneOf", "anyOf", "allOf"):
        options = schema.get(keyword)
        if isinstance(options, list):
            real = [option for option in options if option != {"type": "null"}]
            return len(real) != 1 or was_json(real[0])
    return False


def _string_type(format_: Any, airbyte_type: Any) -> ColumnType:
    match format_:
        case "date":
            return ColumnType.DATE
        case "date-time":
            if airbyte_type == "timestamp_without_timezone":
                return ColumnType.LOCAL_TIMESTAMP
            return ColumnType.TIMESTAMP
        case "time":
            return ColumnType.TIME
        case _:
            return ColumnType.STRING


class Column(Struct, frozen=True):
    """The column ``name`` of the record's field ``field``.

    ``path``: the keys of a field inside objects; else empty. ``nullable``: whether the source
    allows it to be missing or null. ``was_json``: whether older versions stored it as JSON text,
    though it has another type. ``is_union``: whether its values have several types, but not object
    or array.
    """

    field: str
    name: str
    type: ColumnType
    description: str | None = None
    path: tuple[str, ...] = ()
    nullable: bool = True
    was_json: bool = False
    is_union: bool = False

    @property
    def arrow(self) -> pa.Field:
        metadata = {SOURCE_NAME_KEY: self.field, TYPE_KEY: self.type.value}
        return pa.field(self.name, self.type.arrow, metadata=metadata)


class TableSchema(Struct, frozen=True):
    """The columns of one stream's table, in the source's order.

    Nested fields come after the top-level fields, and Airbyte's metadata comes last.
    """

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, stream: ConfiguredStream, *, decimals: bool = False) -> "TableSchema":
        """Return the columns of a new table for ``stream``.

        A union of texts, numbers and booleans is plain text, unless rows are compared by it: as
        JSON, 1 and "1" stay two values. ``decimals``: whether the store has exact numbers.
        """
        compared = stream.compared_fields
        columns = []
        for column in cls.of_rows(stream).columns:
            if column.is_union and (column.path or (column.field,)) not in compared:
                column = msgspec.structs.replace(column, type=ColumnType.TEXT, was_json=True)
            elif column.type is ColumnType.NUMBER and decimals:
                column = msgspec.structs.replace(column, type=ColumnType.DECIMAL)
            columns.append(column)
        return cls(tuple(columns))

    @classmethod
    def of_rows(cls, stream: ConfiguredStream) -> "TableSchema":
        """Return the columns of rows that are not stored. A number in a union stays a number."""
        return cls.from_json_schema(stream.stream.json_schema, nested=stream.nested_fields)

    @classmethod
    def from_json_schema(
        cls,
        schema: Mapping[str, Any],
        *,
        nested: Iterable[tuple[str, ...]] = (),
        known_names: Mapping[str, str] | None = None,
    ) -> "TableSchema":
        """Derive the columns. For a schema without properties, all fields go to the JSON column.

        ``nested``: paths of fields inside objects that get a column, if ``schema`` allows them.
        ``known_names``: column names of an existing table, by field.
        """
        root = schema
        schema = resolve(schema, root)
        declared = schema.get("properties")
        properties = dict(declared) if isinstance(declared, Mapping) else {}
        paths = {}
        for path in nested:
            if declares(root, path):
                field = ".".join(path)
                while field in properties:  # a dot may be part of a plain name
                    field = f".{field}"
                paths[field] = path
                properties[field] = property_at(root, path)
        listed = schema.get("required")
        required = set(listed) if isinstance(listed, list) else set()
        own = {field.name for field in METADATA_FIELDS}
        known = {k: v for k, v in (known_names or {}).items() if k in properties}
        names = assign(properties, known=known, reserved=own)
        columns = []
        for field, sub in properties.items():
            kind = column_type(sub, root)
            is_union = kind is ColumnType.TEXT
            if is_union:
                kind = ColumnType.UNKNOWN
            columns.append(
                Column(
                    field,
                    names[field],
                    kind,
                    _description(sub),
                    path=paths.get(field, ()),
                    nullable=field not in required or _may_be_null(sub),
                    was_json=kind is not ColumnType.UNKNOWN and was_json(sub),
                    is_union=is_union,
                )
            )
        return cls(tuple(columns))

    @property
    def top_level(self) -> tuple[Column, ...]:
        """The columns of top-level fields."""
        return tuple(column for column in self.columns if not column.path)

    @property
    def arrow(self) -> pa.Schema:
        return pa.schema([*(column.arrow for column in self.columns), *METADATA_FIELDS])

    def column_of(self, *path: str) -> str:
        """Return the name of the column for ``path``. Raises KeyError if there is none."""
        for column in self.columns:
            if (column.path or (column.field,)) == path:
                return column.name
        raise KeyError(path)


def property_at(schema: Any, path: Sequence[str]) -> Any:
    """Return the JSON schema of the field at ``path``; None if an object above lists no fields.

    Raises:
        KeyError: an object above lists only other fields.
    """
    root = schema
    for key in path:
        schema = resolve(schema, root)
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        if not isinstance(properties, Mapping) or not properties:
            return None
        schema = properties[key]
    return schema


def declares(schema: Mapping[str, Any], path: Sequence[str]) -> bool:
    """Whether ``schema`` allows a field at ``path``. A top-level one must be listed."""
    properties = resolve(schema, schema).get("properties")
    if not isinstance(properties, Mapping) or path[0] not in properties:
        return False
    try:
        property_at(schema, path)
    except KeyError:
        return False
    above = column_type(properties[path[0]], schema)
    return len(path) == 1 or above in (ColumnType.OBJECT, ColumnType.UNKNOWN)


def _may_be_null(schema: Any) -> bool:
    """Whether a value may be null, which is true if no type is declared."""
    declared = schema.get("type") if isinstance(schema, dict) else None
    return "null" in declared if isinstance(declared, list) else declared in (None, "null")


def _description(schema: Any) -> str | None:
    text = schema.get("description") if isinstance(schema, dict) else None
    return text if isinstance(text, str) else None
