"""One row per key: the statement that brings staged rows into a table."""

from collections.abc import Mapping, Sequence

from atlas_dagster.destinations.postgres_columns import (
    ARRIVAL,
    Column,
    comparable,
    indexed,
    literal,
    quoted,
)
from atlas_dagster.records.types import EXTRA, EXTRACTED_AT


class Merge:
    """Brings the newest staged row of each key into the table.

    Newest by cursor (NULL is older than anything), then by extraction time, then by arrival. A key
    column that is NULL equals only NULL. What a key column does not hold is compared as
    ``_airbyte_extra`` keeps it. Text compares by its bytes, as in every other destination.
    The table holds each key once; :meth:`unduplication` sees to that where it was appended to.

    Args:
        relation: the table, quoted.
        stage: the table of staged rows, quoted.
        columns: the staged columns.
        types: of the table's columns.
        keys: key columns, of ``columns``.
        cursor: of ``columns``, if there is one.
        deleted_at: of ``columns``; where it is given, rows that have it delete their key's row.
        gone: columns of fields that the source no longer has, NULL in new versions of a row.
    """

    def __init__(
        self,
        relation: str,
        stage: str,
        columns: Sequence[Column],
        types: Mapping[str, str],
        *,
        keys: Sequence[Column],
        cursor: Column | None = None,
        deleted_at: Column | None = None,
        gone: Sequence[str] = (),
    ) -> None:
        self._relation = relation
        self._stage = stage
        self._columns = columns
        self._types = types
        self._keys = keys
        self._cursor = cursor
        self._deleted_at = deleted_at
        self._gone = gone

    def null_patterns(self) -> str:
        """Which key columns are NULL together: a row for each combination."""
        nulls = ", ".join(
            f"{key.quoted} IS NULL AS k{number}" for number, key in enumerate(self._keys)
        )
        return f"SELECT DISTINCT {nulls} FROM {self._stage}"

    def statement(self, nulls: Sequence[bool]) -> str:
        """Merges the rows whose key columns are NULL as ``nulls`` says.

        One statement for each pattern, so that every condition on a key can use an index or a
        hash, which IS NOT DISTINCT FROM cannot. The rows it inserts are those it reports.
        """
        names = ", ".join(column.quoted for column in self._columns)
        values = ", ".join(f"s.{column.quoted}" for column in self._columns)
        assignments = ", ".join(
            [f"{column.quoted} = s.{column.quoted}" for column in self._columns]
            + [f"{quoted(name)} = NULL" for name in self._gone]
        )
        same_key = self._same_key(nulls)
        return f"""
            WITH {self._newest(nulls, deleted=False)},
            updated AS (
                UPDATE {self._relation} AS t SET {assignments} FROM newest AS s
                WHERE {same_key} AND ({self._is_newer()})
            )
            INSERT INTO {self._relation} ({names}) SELECT {values} FROM newest AS s
            WHERE NOT EXISTS (SELECT 1 FROM {self._relation} AS t WHERE {same_key})
        """

    def deletion(self, nulls: Sequence[bool]) -> str:
        """Deletes the rows that were deleted in the source; to run before :meth:`statement`."""
        return f"""
            WITH {self._newest(nulls, deleted=True)}
            DELETE FROM {self._relation} AS t USING newest AS s
            WHERE {self._same_key(nulls)} AND ({self._is_newer()})
        """

    def unduplication(self) -> str:
        """Deletes all but the newest row of each key from the table."""
        return f"""
            DELETE FROM {self._relation} AS t USING (
                SELECT ctid AS place, row_number() OVER (
                    PARTITION BY {self._whole_key} ORDER BY {self._newest_first("ctid")}
                ) AS rank FROM {self._relation}
            ) AS r WHERE t.ctid = r.place AND r.rank > 1
        """

    def duplicates(self) -> str:
        """How many rows :meth:`unduplication` would delete, as ``duplicates``."""
        return f"""
            SELECT COALESCE(sum(rows - 1), 0)::bigint AS duplicates FROM (
                SELECT count(*) AS rows FROM {self._relation}
                GROUP BY {self._whole_key} HAVING count(*) > 1
            ) AS repeated
        """

    def index(self, name: str) -> str:
        """An index that finds a key, however long its text is."""
        parts = ", ".join(f"({self._indexed('', key)})" for key in self._keys)
        return f"CREATE INDEX IF NOT EXISTS {quoted(name)} ON {self._relation} ({parts})"

    def _newest(self, nulls: Sequence[bool], *, deleted: bool) -> str:
        """The newest staged row of each key: those ``deleted`` in the source, or the others."""
        moved = ", ".join(
            f"{column.moved(self._types[column.name])} AS {column.quoted}"
            for column in self._columns
        )
        chosen = " AND ".join(
            f"{key.quoted} IS {'' if null else 'NOT '}NULL"
            for key, null in zip(self._keys, nulls, strict=True)
        )
        keys = ", ".join([self._comparable("", key) for key in self._keys] + self._exact("", nulls))
        wanted = ""
        if self._deleted_at is not None:
            wanted = f"WHERE {self._deleted_at.quoted} IS {'NOT ' if deleted else ''}NULL"
        return f"""
            staged AS (SELECT {moved}, {ARRIVAL} FROM {self._stage} WHERE {chosen}),
            ranked AS (
                SELECT DISTINCT ON ({keys}) * FROM staged
                ORDER BY {keys}, {self._newest_first(ARRIVAL)}
            ),
            newest AS MATERIALIZED (SELECT * FROM ranked {wanted})
        """

    @property
    def _whole_key(self) -> str:
        keys = [self._comparable("", key) for key in self._keys]
        return ", ".join(keys + self._exact("", [True] * len(self._keys)))

    def _same_key(self, nulls: Sequence[bool]) -> str:
        conditions = []
        for key, null in zip(self._keys, nulls, strict=True):
            if null:
                conditions.append(f"{self._indexed('t.', key)} IS NULL")
                continue
            parts = {self._indexed, self._comparable}
            conditions += sorted({f"{part('t.', key)} = {part('s.', key)}" for part in parts})
        exact = zip(self._exact("t.", nulls), self._exact("s.", nulls), strict=True)
        conditions += [f"{theirs} = {ours}" for theirs, ours in exact]
        return " AND ".join(conditions)

    def _exact(self, alias: str, nulls: Sequence[bool]) -> list[str]:
        """What ``_airbyte_extra`` keeps of the keys whose columns may not hold them."""
        (extra,) = (column for column in self._columns if column.logical == EXTRA)
        return [
            f"COALESCE({alias}{extra.quoted} -> {literal(key.source)}, 'null')"
            for key, null in zip(self._keys, nulls, strict=True)
            if null or self._types[key.name] == "double precision"
        ]

    def _is_newer(self) -> str:
        later = f"s.{EXTRACTED_AT} >= t.{EXTRACTED_AT}"
        if self._cursor is None:
            return later
        ours, theirs = self._comparable("s.", self._cursor), self._comparable("t.", self._cursor)
        return (
            f"{ours} > {theirs} OR ({theirs} IS NULL AND {ours} IS NOT NULL)"
            f" OR ({ours} IS NOT DISTINCT FROM {theirs} AND {later})"
        )

    def _newest_first(self, arrival: str) -> str:
        order = [f"{EXTRACTED_AT} DESC", f"{arrival} DESC"]
        if self._cursor is not None:
            order.insert(0, f"{self._comparable('', self._cursor)} DESC NULLS LAST")
        return ", ".join(order)

    def _comparable(self, alias: str, column: Column) -> str:
        return comparable(f"{alias}{column.quoted}", self._types[column.name])

    def _indexed(self, alias: str, key: Column) -> str:
        return indexed(f"{alias}{key.quoted}", self._types[key.name], len(self._keys))
