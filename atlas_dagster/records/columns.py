"""Assign fields to the columns of a table, for the life of the table.

The metadata of each column has the name and the type of its field. A field that comes back gets its
column again. No other field gets that name, even if the first field is gone.
"""

from collections.abc import Collection, Mapping

import msgspec
import pyarrow as pa
from msgspec import Struct

from atlas_dagster.records.names import assign
from atlas_dagster.records.types import (
    METADATA_FIELDS,
    SOURCE_NAME_KEY,
    TYPE_KEY,
    Column,
    ColumnType,
    TableSchema,
)

_TYPES = {kind.value: kind for kind in ColumnType}
_TEXT = pa.string()
#: The type of a column by its Arrow type. Text columns have several types.
_BY_ARROW = {kind.arrow: kind for kind in ColumnType if kind.arrow != _TEXT}


class TableColumns(Struct, frozen=True):
    """The columns of a table.

    Args:
        names: of all columns, also of those without a field.
        typed: column names by field and type, in the table's order.
        untyped: text columns by field, from versions that did not record the type.
        fixed: names of columns that do not change even when all rows are replaced.
        widens: whether columns of integers and of doubles can become decimals in place.
    """

    names: frozenset[str] = frozenset()
    typed: Mapping[tuple[str, ColumnType], str] = {}
    untyped: Mapping[str, str] = {}
    fixed: frozenset[str] = frozenset()
    widens: bool = False

    @classmethod
    def of(
        cls,
        schema: pa.Schema | None,
        *,
        names: Collection[str] = (),
        fixed: Collection[str] = (),
        widens: bool = False,
    ) -> "TableColumns":
        """Return the columns of ``schema``, and others with known ``names`` only."""
        typed: dict[tuple[str, ColumnType], str] = {}
        untyped: dict[str, str] = {}
        for column in schema or ():
            metadata = column.metadata or {}
            name = metadata.get(SOURCE_NAME_KEY.encode())
            if name is None:
                continue
            recorded = _TYPES.get(metadata.get(TYPE_KEY.encode(), b"").decode())
            kind = recorded or _BY_ARROW.get(column.type)
            if kind is not None:
                typed[name.decode(), kind] = column.name
            elif column.type == _TEXT:
                untyped[name.decode()] = column.name
        return cls(
            names=frozenset([*(schema.names if schema is not None else ()), *names]),
            typed=typed,
            untyped=untyped,
            fixed=frozenset(fixed),
            widens=widens,
        )

    def __or__(self, other: "TableColumns") -> "TableColumns":
        """Return these columns and ``other``, which takes precedence."""
        return TableColumns(
            names=self.names | other.names,
            typed={**self.typed, **other.typed},
            untyped={**self.untyped, **other.untyped},
            fixed=self.fixed | other.fixed,
            widens=self.widens or other.widens,
        )

    @property
    def of_fields(self) -> frozenset[str]:
        """The names of columns with a field."""
        return frozenset([*self.typed.values(), *self.untyped.values()])

    @property
    def fields(self) -> frozenset[str]:
        return frozenset([*(field for field, _ in self.typed), *self.untyped])

    def find(self, wanted: Column) -> Column | None:
        """Return ``wanted`` as in the table; None if it has no column for that field and type."""
        field, kind = wanted.field, wanted.type
        if (field, kind) in self.typed:
            return _as(wanted, self.typed[field, kind], kind)
        json = ColumnType.UNKNOWN
        if wanted.was_json and (field, json) in self.typed:
            return _as(wanted, self.typed[field, json], json)
        if kind is ColumnType.DECIMAL and (field, ColumnType.NUMBER) in self.typed:
            name = self.typed[field, ColumnType.NUMBER]
            if name in self.fixed:
                return _as(wanted, name, ColumnType.NUMBER)
            return _as(wanted, name, kind) if self.widens else None
        if field in self.untyped and (wanted.was_json or kind.arrow == _TEXT):
            # A union's text stays JSON there: otherwise one value could be written with quotes
            # and without.
            return _as(wanted, self.untyped[field], json if wanted.was_json else kind)
        return None

    def first_of(self, field: str) -> str | None:
        """Return the name of the first column for ``field``, if any."""
        if field in self.untyped:
            return self.untyped[field]
        return next((name for (of, _), name in self.typed.items() if of == field), None)


def fit(schema: TableSchema, table: TableColumns, *, replaces: bool) -> TableSchema:
    """Return ``schema`` with the column names of ``table``.

    A field whose type changed gets a new column, named after its first column and the type. If the
    sync ``replaces`` all rows, it keeps its column, which then changes its type.
    """
    placed: dict[str, Column] = {}
    renewed: dict[str, str] = {}
    for column in schema.columns:
        found = table.find(column) or _widened(column, table)
        first = table.first_of(column.field)
        if found is not None:
            placed[column.field] = found
        elif first is not None:
            renewed[column.field] = first
    own = [field.name for field in METADATA_FIELDS]
    taken = {*own, *(table.fixed if replaces else table.names)}
    taken |= {column.name for column in placed.values()}
    new = [c.field for c in schema.columns if c.field not in placed and c.field not in renewed]
    names = assign(new, reserved=[*taken, *renewed.values()])
    taken |= {*names.values()}
    lower = {name.lower() for name in taken}
    for column in schema.columns:
        if column.field in renewed:
            name = renewed[column.field]
            if name.lower() in lower:
                is_number = column.type is ColumnType.DECIMAL  # a number in the source
                kind = ColumnType.NUMBER if is_number else column.type
                suffixed = f"{name}_{kind.value}"
                name = assign([suffixed], reserved=lower)[suffixed]
            names[column.field] = name
            lower.add(name.lower())
    return TableSchema(
        tuple(
            placed.get(column.field) or _as(column, names[column.field], column.type)
            for column in schema.columns
        )
    )


def _widened(column: Column, table: TableColumns) -> Column | None:
    """Return a decimal in its former integer column, if that column can become a decimal."""
    name = table.typed.get((column.field, ColumnType.INTEGER))
    if not table.widens or column.type is not ColumnType.DECIMAL or name in (None, *table.fixed):
        return None
    return _as(column, str(name), ColumnType.DECIMAL)


def _as(column: Column, name: str, kind: ColumnType) -> Column:
    return msgspec.structs.replace(column, name=name, type=kind)
