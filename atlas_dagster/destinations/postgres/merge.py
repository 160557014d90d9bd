"""The SQL statements that merge staged rows into a table by key."""

from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from atlas_dagster.destinations.exact_values import DATED, ZONE
from atlas_dagster.destinations.postgres.columns import (
    ARRIVAL,
    Column,
    comparable,
    indexed,
    literal,
    quote,
)
from atlas_dagster.records.types import EXTRA, EXTRACTED_AT

#: Temporary table of staged rows that Atlas compared itself, with the column ``wins``.
DECIDED = "_atlas_settled"
_RESET = "_atlas_reset"
#: Types that hold values exactly; a kept value beside one, from an earlier double, is not a key.
_EXACT = ("bigint", "boolean", "numeric")


class Merge:
    """Statements that merge the newest staged row of each key into the table.

    The newest row has the greatest cursor since the last row without a cursor, which replaces all
    that arrived before it; of equal ones, the one extracted last, then the one that arrived last.
    If a key column cannot hold a value exactly, the value kept in ``_airbyte_extra`` is compared.
    Text compares by its bytes, as in every destination.

    These statements do not compare *odd* cursors: those kept in ``_airbyte_extra``, and dates in
    several text formats. :mod:`~atlas_dagster.destinations.postgres.newest_rows` compares them. The
    table must have each key once; after appends, run :meth:`delete_duplicates` first.

    Args:
        relation: the table, quoted.
        stage: the table of staged rows, quoted.
        columns: the staged columns.
        types: the table's columns, as ``dict[name, Postgres type]``.
        keys: the key columns, a part of ``columns``.
        cursor: the cursor column, if there is one.
        deleted_at: a column; if given, rows with a value in it delete the row of their key.
        gone: columns of fields that the source no longer has; they are NULL in new versions.
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
        self._columns = columns
        self._types = types
        self._keys = keys
        self._gone = gone
        self._extra = next(c.quoted for c in columns if c.logical == EXTRA)
        self.stage = stage
        self.names = ", ".join(column.quoted for column in columns)
        self.cursor = cursor
        self.deleted_at = deleted_at
        self.width = len(keys)
        compared = [*keys, cursor] if cursor else keys
        #: Fields that rows are compared by; and those of them with values in ``_airbyte_extra``.
        self.fields = tuple(dict.fromkeys(column.source for column in compared))
        self.kept: Collection[str] = self.fields
        #: Whether staged rows without a cursor exist, and rows in the table ``DECIDED``.
        self.has_resets = True
        self.has_decided = False

    # Facts

    def describe_stage(self) -> str:
        """Select one row of facts about the staged rows, which the other statements need."""
        wanted = ["count(*) AS rows", *_any_of(self.fields, self._is_kept_in_stage)]
        nulls = " OR ".join(f"{key.quoted} IS NULL" for key in self._keys)
        wanted.append(f"COALESCE(bool_or({nulls}), false) AS null_keys")
        if self.cursor is not None:
            wanted.append(f"COALESCE(bool_or({self.cursor.quoted} IS NULL), false) AS resets")
            wanted.append(f"{self._is_json(self.cursor)} AS is_json")
            if self._is_text(self.cursor):
                wanted.append(f"count(DISTINCT {_form(self.cursor.quoted)}) AS forms")
        return f"SELECT {', '.join(wanted)} FROM {self.stage}"

    def describe_table(self) -> str:
        """Select one row: for each field, whether the table's ``_airbyte_extra`` has values."""
        kept = _any_of(self.fields, lambda field: self._is_kept("", field))
        return f"SELECT {', '.join(kept)} FROM {self._relation}"

    def null_patterns(self) -> str:
        """Select the combinations of key columns that are NULL together, one row for each."""
        nulls = (f"{key.quoted} IS NULL AS k{number}" for number, key in enumerate(self._keys))
        return f"SELECT DISTINCT {', '.join(nulls)} FROM {self.stage}"

    def insert_keyless(self) -> str:
        """Insert the rows without a value in a field of the key: they have no other versions."""
        values = ", ".join(column.cast(self._types[column.name]) for column in self._columns)
        alive = "" if self.deleted_at is None else f" AND NOT ({self._is_set(self.deleted_at)})"
        keyed = " AND ".join(map(self._is_set, self._keys))
        into = f"INSERT INTO {self._relation} ({self.names})"
        return f"{into} SELECT {values} FROM {self.stage} WHERE NOT ({keyed}){alive}"

    # Merge

    def upsert(self, nulls: Sequence[bool]) -> str:
        """Merge the rows whose key columns are NULL as in ``nulls``.

        Each combination has its own statement, because IS NOT DISTINCT FROM can use neither an
        index nor a hash. Return the number of keys as ``found``, and of rows as ``updated`` and
        ``inserted``.
        """
        values = ", ".join(f"s.{column.quoted}" for column in self._columns)
        assignments = ", ".join(
            [f"{column.quoted} = s.{column.quoted}" for column in self._columns]
            + [f"{quote(name)} = NULL" for name in self._gone]
        )
        same_key = self._same_key(nulls)
        return f"""
            WITH {self._newest(nulls, deleted=False)},
            updated AS (
                UPDATE {self._relation} AS t SET {assignments} FROM newest AS s
                WHERE {same_key} AND ({self._is_newer()}) RETURNING 1
            ),
            inserted AS (
                INSERT INTO {self._relation} ({self.names}) SELECT {values} FROM newest AS s
                WHERE NOT EXISTS (SELECT 1 FROM {self._relation} AS t WHERE {same_key})
                RETURNING 1
            )
            SELECT (SELECT count(*) FROM inserted) AS inserted,
                (SELECT count(*) FROM updated) AS updated,
                (SELECT count(*) FROM newest) AS found
        """

    def delete(self, nulls: Sequence[bool]) -> str:
        """Delete the rows that were deleted in the source; run it before :meth:`upsert`."""
        return f"""
            WITH {self._newest(nulls, deleted=True)}
            DELETE FROM {self._relation} AS t USING newest AS s
            WHERE {self._same_key(nulls)} AND ({self._is_newer()})
        """

    def copy_tombstones(self, nulls: Sequence[bool], table: str) -> str:
        """Copy the staged rows that deleted their key to ``table``; run it after :meth:`delete`."""
        return f"""
            WITH {self._newest(nulls, deleted=True)}
            INSERT INTO {table} ({self.names}) SELECT {self.names} FROM {self.stage}
            WHERE {ARRIVAL} IN (
                SELECT {ARRIVAL} FROM newest AS s WHERE NOT EXISTS (
                    SELECT 1 FROM {self._relation} AS t WHERE {self._same_key(nulls)}
                )
            )
        """

    def count_deleted(self, nulls: Sequence[bool]) -> str:
        """Count the staged keys that were deleted in the source as ``found``, and those whose row
        in the table is newer as ``refused``; run it after :meth:`delete`.
        """
        return f"""
            WITH {self._newest(nulls, deleted=True)}
            SELECT count(*) AS found, count(*) FILTER (WHERE EXISTS (
                SELECT 1 FROM {self._relation} AS t WHERE {self._same_key(nulls)}
            )) AS refused FROM newest AS s
        """

    def count_late(self, nulls: Sequence[bool]) -> str:
        """Count the staged rows that lost to a row staged before them, as ``late``."""
        return f"""
            WITH {self._versions(nulls)}
            SELECT count(*) AS late FROM (
                SELECT {ARRIVAL} AS arrival, first_value({ARRIVAL}) OVER (
                    PARTITION BY {self._staged_key(nulls)} ORDER BY {self._newest_first(ARRIVAL)}
                ) AS winner FROM versions
            ) AS found WHERE arrival > winner
        """

    # Odd cursors

    def select_odd_versions(self, nulls: Sequence[bool], *, in_table: bool) -> str:
        """Select all staged versions of the keys with an odd cursor.

        Each has the table's row of its key beside it. ``in_table``: look for odd cursors in the
        table; otherwise in the stage.
        """
        assert self.cursor is not None
        odd = self._is_odd() if in_table else self._is_kept("s.", self.cursor.source)
        if not in_table and (self._is_text(self.cursor) or self._is_json(self.cursor)):
            odd = "true"
        versions = ", ".join(
            f"{alias}.{self.cursor.quoted}::text AS {alias}_cursor, "
            f"({alias}.{self._extra} -> {literal(self.cursor.source)})::text AS {alias}_kept, "
            f"(extract(epoch FROM {alias}.{EXTRACTED_AT}) * 1000000)::bigint AS {alias}_extracted"
            for alias in "st"
        )
        return f"""
            WITH {self._staged(nulls)},
            counted AS (
                SELECT *, dense_rank() OVER (ORDER BY {self._staged_key(nulls)}) AS _atlas_key
                FROM staged
            ),
            found AS MATERIALIZED (
                SELECT _atlas_key AS key, {ARRIVAL} AS arrival, {versions},
                    t.ctid IS NOT NULL AS in_table, {odd} AS odd
                FROM counted AS s LEFT JOIN {self._relation} AS t ON {self._same_key(nulls)}
            )
            SELECT * FROM found WHERE key IN (SELECT key FROM found WHERE odd)
            ORDER BY key, arrival
        """

    # Duplicates in the table

    def select_odd_duplicates(self) -> str:
        """Select the table's rows of repeated keys with an odd cursor, in order of arrival."""
        assert self.cursor is not None
        kept = f"({self._extra} -> {literal(self.cursor.source)})::text"
        odd = "true" if self._is_json(self.cursor) else f"{kept} IS NOT NULL"
        if self._is_text(self.cursor):
            odd = f"{odd} OR {self.cursor.quoted} ~ {literal(DATED)}"
        return f"""
            WITH counted AS (
                SELECT *, ctid AS _atlas_place, count(*) OVER key AS _atlas_rows,
                    dense_rank() OVER (ORDER BY {self._whole_key}) AS _atlas_key
                FROM {self._relation} WHERE {self._has_key}
                WINDOW key AS (PARTITION BY {self._whole_key})
            ),
            found AS MATERIALIZED (
                SELECT _atlas_key AS key, _atlas_place::text AS place,
                    {self.cursor.quoted}::text AS s_cursor, {kept} AS s_kept, {odd} AS odd,
                    (extract(epoch FROM {EXTRACTED_AT}) * 1000000)::bigint AS s_extracted,
                    row_number() OVER (ORDER BY {EXTRACTED_AT}, _atlas_place) AS arrival
                FROM counted WHERE _atlas_rows > 1
            )
            SELECT * FROM found WHERE key IN (SELECT key FROM found WHERE odd)
            ORDER BY key, arrival
        """

    def delete_places(self, places: Sequence[str]) -> str:
        """Delete rows of the table by their ``ctid``."""
        listed = ",".join(f'"{place}"' for place in places)
        return f"DELETE FROM {self._relation} WHERE ctid = ANY('{{{listed}}}'::tid[])"

    def delete_duplicates(self) -> str:
        """Delete all but the newest row of each key from the table."""
        reset = "NULL::bigint"
        if self.cursor is not None:
            reset = f"max(_atlas_came) FILTER (WHERE {self.cursor.quoted} IS NULL) OVER key"
        return f"""
            DELETE FROM {self._relation} AS t USING (
                SELECT _atlas_place AS place, row_number() OVER (
                    PARTITION BY {self._whole_key} ORDER BY
                    COALESCE(_atlas_came < {_RESET}, false), {self._newest_first("_atlas_came")}
                ) AS rank FROM (
                    SELECT *, {reset} AS {_RESET} FROM (
                        SELECT *, ctid AS _atlas_place, row_number() OVER (
                            PARTITION BY {self._whole_key} ORDER BY {EXTRACTED_AT}, ctid
                        ) AS _atlas_came FROM {self._relation} WHERE {self._has_key}
                    ) AS arrived WINDOW key AS (PARTITION BY {self._whole_key})
                ) AS counted
            ) AS r WHERE t.ctid = r.place AND r.rank > 1
        """

    def count_duplicates(self) -> str:
        """Count the rows that :meth:`delete_duplicates` would delete, as ``duplicates``."""
        return f"""
            SELECT COALESCE(sum(rows - 1), 0)::bigint AS duplicates FROM (
                SELECT count(*) AS rows FROM {self._relation} WHERE {self._has_key}
                GROUP BY {self._whole_key} HAVING count(*) > 1
            ) AS repeated
        """

    def create_index(self, name: str) -> str:
        """Create an index over the key, for texts of any length."""
        parts = (f"({self._indexed('', key)})" for key in self._keys)
        return f"CREATE INDEX IF NOT EXISTS {quote(name)} ON {self._relation} ({', '.join(parts)})"

    def _newest(self, nulls: Sequence[bool], *, deleted: bool) -> str:
        """Return CTEs up to ``newest``: each key's newest staged row, ``deleted`` or not."""
        keys = self._staged_key(nulls)
        wanted = ""
        if self.deleted_at is not None:
            wanted = f"WHERE {'' if deleted else 'NOT '}({self._has_value(self.deleted_at)})"
        return f"""
            {self._versions(nulls)},
            ranked AS (
                SELECT DISTINCT ON ({keys}) * FROM versions
                ORDER BY {keys}, {self._newest_first(ARRIVAL)}
            ),
            newest AS MATERIALIZED (SELECT * FROM ranked {wanted})
        """

    def _versions(self, nulls: Sequence[bool]) -> str:
        """Return CTEs up to ``versions``: each key's staged rows since the last reset."""
        staged = self._staged(nulls)
        if not self.has_resets or self.cursor is None:
            return f"{staged}, versions AS (SELECT * FROM staged)"
        return f"""
            {staged},
            counted AS (
                SELECT *, max({ARRIVAL}) FILTER (WHERE {self.cursor.quoted} IS NULL) OVER (
                    PARTITION BY {self._staged_key(nulls)}
                ) AS {_RESET} FROM staged
            ),
            versions AS (SELECT * FROM counted WHERE {_RESET} IS NULL OR {ARRIVAL} >= {_RESET})
        """

    def _staged(self, nulls: Sequence[bool]) -> str:
        """Return the CTE ``staged``: rows with a key and these ``nulls``, cast for the table."""
        moved = ", ".join(
            f"{column.cast(self._types[column.name])} AS {column.quoted}"
            for column in self._columns
        )
        chosen = [
            f"{key.quoted} IS NULL AND {self._is_kept_in_stage(key.source)}"
            if null
            else f"{key.quoted} IS NOT NULL"
            for key, null in zip(self._keys, nulls, strict=True)
        ]
        return (
            f"staged AS (SELECT {moved}, {ARRIVAL} FROM {self.stage} WHERE {' AND '.join(chosen)})"
        )

    def _staged_key(self, nulls: Sequence[bool]) -> str:
        keys = [self._key("", key) for key in self._keys]
        return ", ".join(keys + self._kept_key("", nulls))

    @property
    def _whole_key(self) -> str:
        parts = [self._key("", key) for key in self._keys]
        for key, kept in zip(self._keys, self._kept_key("", [True] * len(self._keys)), strict=True):
            exact = self._types[key.name] in _EXACT
            parts.append(f"CASE WHEN {key.quoted} IS NULL THEN {kept} END" if exact else kept)
        return ", ".join(parts)

    @property
    def _has_key(self) -> str:
        """A condition: a row of the table has a value in each field of the key."""
        return " AND ".join(f"({self._has_value(key)})" for key in self._keys)

    def _same_key(self, nulls: Sequence[bool]) -> str:
        conditions = []
        for key, null in zip(self._keys, nulls, strict=True):
            if null:
                conditions.append(f"{self._indexed('t.', key)} IS NULL")
                continue
            parts = {self._indexed, self._key}
            conditions += sorted({f"{part('t.', key)} = {part('s.', key)}" for part in parts})
        kept = zip(self._kept_key("t.", nulls), self._kept_key("s.", nulls), strict=True)
        conditions += [f"{theirs} = {ours}" for theirs, ours in kept]
        return " AND ".join(conditions)

    def _kept_key(self, alias: str, nulls: Sequence[bool]) -> list[str]:
        """Return the kept values of the key columns that may not hold their values exactly."""
        return [
            f"COALESCE({alias}{self._extra} -> {literal(key.source)}, 'null')"
            for key, null in zip(self._keys, nulls, strict=True)
            if null or (key.source in self.kept and self._types[key.name] not in _EXACT)
        ]

    def _is_kept(self, alias: str, field: str) -> str:
        return f"COALESCE(jsonb_exists({alias}{self._extra}, {literal(field)}), false)"

    def _has_value(self, column: Column) -> str:
        return f"{column.quoted} IS NOT NULL OR {self._is_kept('', column.source)}"

    def _is_kept_in_stage(self, field: str) -> str:
        """Return :meth:`_is_kept` for a staged row, whose JSON is text."""
        text = literal(msgspec.json.encode(field).decode())
        kept = f"jsonb_exists({self._extra}::jsonb, {literal(field)})"
        return f"COALESCE(strpos({self._extra}, {text}) > 0 AND {kept}, false)"

    def _is_set(self, column: Column) -> str:
        return f"({column.quoted} IS NOT NULL OR {self._is_kept_in_stage(column.source)})"

    def _is_newer(self) -> str:
        newer = later = f"s.{EXTRACTED_AT} >= t.{EXTRACTED_AT}"
        if self.cursor is not None:
            ours, theirs = self._comparable("s.", self.cursor), self._comparable("t.", self.cursor)
            newer = (
                f"({ours} > {theirs} OR ({theirs} IS NULL AND {ours} IS NOT NULL)"
                f" OR ({ours} IS NOT DISTINCT FROM {theirs} AND {later}))"
            )
            if self.may_be_odd:
                newer = f"NOT {self._is_odd()} AND {newer}"
            if self.has_resets:
                newer = f"s.{_RESET} IS NOT NULL OR ({newer})"
        if self.has_decided:
            newer = f"s.{ARRIVAL} IN (SELECT arrival FROM {DECIDED} WHERE wins) OR ({newer})"
        return newer

    @property
    def may_be_odd(self) -> bool:
        """Whether the table may have odd cursors."""
        return self.cursor is not None and (
            self.cursor.source in self.kept or self._types[self.cursor.name] in ("jsonb", "text")
        )

    def _is_odd(self) -> str:
        """Return a condition: the cursor of ``s`` or ``t`` is odd."""
        assert self.cursor is not None
        if self._is_json(self.cursor):
            return "true"
        kept = self._is_kept("t.", self.cursor.source)
        if not self._is_text(self.cursor):
            return kept
        forms = (_form(f"{alias}.{self.cursor.quoted}") for alias in "ts")
        return f"({kept} OR COALESCE({' <> '.join(forms)}, false))"

    def _newest_first(self, arrival: str) -> str:
        order = [f"{EXTRACTED_AT} DESC", f"{arrival} DESC"]
        if self.cursor is not None:
            order.insert(0, f"{self._comparable('', self.cursor)} DESC NULLS LAST")
        return ", ".join(order)

    def _comparable(self, alias: str, column: Column) -> str:
        return comparable(f"{alias}{column.quoted}", self._types[column.name])

    def _key(self, alias: str, key: Column) -> str:
        """Return a key column for comparison. JSON compares by value, not by text."""
        return f"{alias}{key.quoted}" if self._is_json(key) else self._comparable(alias, key)

    def _indexed(self, alias: str, key: Column) -> str:
        return indexed(f"{alias}{key.quoted}", self._types[key.name], len(self._keys))

    def _is_json(self, column: Column) -> bool:
        return self._types[column.name] == "jsonb"

    def _is_text(self, column: Column) -> bool:
        return self._types[column.name] == "text"


def _any_of(fields: Sequence[str], condition: Callable[[str], str]) -> list[str]:
    """Return columns ``kept_0``, ``kept_1``, ...: whether any row meets a field's condition."""
    return [
        f"COALESCE(bool_or({condition(field)}), false) AS kept_{number}"
        for number, field in enumerate(fields)
    ]


def _form(text: str) -> str:
    """Return SQL for the format of a date in ``text``; dates of one format compare as text."""
    digits = f"translate({text}, '123456789', '000000000')"
    zone = f"COALESCE(substring({text} FROM {literal(ZONE)}), '')"
    return f"CASE WHEN {text} ~ {literal(DATED)} THEN {digits} || {zone} ELSE '' END"
