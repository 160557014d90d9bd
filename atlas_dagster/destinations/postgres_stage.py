"""Rows that wait in a temporary table for the commit that makes them part of their table."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from atlas_dagster.destinations.postgres_columns import ARRIVAL, Column, quoted
from atlas_dagster.destinations.postgres_connection import Database, ValueRefusedError
from atlas_dagster.records.coerce import Misfit
from atlas_dagster.records.types import META

#: Within a JSON text: what jsonb refuses (U+0000, half a surrogate pair), beside what it does not
#: (an escaped backslash, a whole pair), which is kept.
_REFUSED_ESCAPES = (
    r"(\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|\\u0000|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
#: What can become jsonb of a text: itself, else without those escapes, else nothing.
_MEND_FUNCTION = f"""
    CREATE OR REPLACE FUNCTION pg_temp._atlas_json(value text) RETURNS text
    LANGUAGE plpgsql AS $$
    DECLARE cleaned text;
    BEGIN
        BEGIN
            PERFORM value::jsonb;
            RETURN value;
        EXCEPTION WHEN OTHERS THEN
            cleaned := regexp_replace(value, '{_REFUSED_ESCAPES}', '\\1', 'g');
        END;
        BEGIN
            PERFORM cleaned::jsonb;
            RETURN cleaned;
        EXCEPTION WHEN OTHERS THEN
            RETURN NULL;
        END;
    END $$
"""
_NULLED, _TRUNCATED = "NULLED", "TRUNCATED"


class TemporaryStage:
    """Stages batches in a temporary table, which the server drops with the connection.

    Temporary tables are not logged, so rows are written to the log once, by the commit.
    """

    def __init__(self, database: Database, name: str, columns: tuple[Column, ...]) -> None:
        self._database = database
        self._columns = columns
        self._exists = False
        self.name = name
        self.rows = 0

    @property
    def table(self) -> str:
        return quoted(self.name)

    def write(self, batch: pa.RecordBatch) -> None:
        if not self._exists:
            columns = [f"{column.quoted} {column.staged_type}" for column in self._columns]
            self._database.run(
                f"CREATE TEMPORARY TABLE {self.table} ({', '.join(columns)}, {ARRIVAL} bigint)"
            )
            self._exists = True
        batch = batch.rename_columns([column.name for column in self._columns])
        arrivals = pa.array(np.arange(self.rows, self.rows + batch.num_rows))
        try:
            self._database.copy(batch.append_column(ARRIVAL, arrivals), self.name)
        except ValueRefusedError:
            batch = self._without_nuls(batch)
            self._database.copy(batch.append_column(ARRIVAL, arrivals), self.name)
        self.rows += batch.num_rows

    def rewind(self, rows: int) -> None:
        """Keep the first ``rows`` rows only."""
        if rows < self.rows:
            self._database.run(f"DELETE FROM {self.table} WHERE {ARRIVAL} >= {rows}")
            self.rows = rows

    def clear(self) -> None:
        """Begin anew; part of the commit's transaction."""
        if self._exists:
            self._database.run(f"TRUNCATE {self.table}")
        self.rows = 0

    def drop(self) -> None:
        if self._exists:
            self._database.run(f"DROP TABLE IF EXISTS {self.table}")
        self._exists, self.rows = False, 0

    def mend_json(self) -> None:
        """Make every JSON text one that jsonb takes; what changes is noted in ``_airbyte_meta``.

        The server decides, value by value, so this is only for when it has refused one.
        """
        self._database.run(_MEND_FUNCTION)
        meta = quoted(META)
        mended = f"(SELECT {ARRIVAL} AS row, pg_temp._atlas_json(%s) AS value FROM {self.table})"
        for column in sorted(self._columns, key=lambda column: column.logical != META):
            if not column.is_json:
                continue
            change = (
                f"jsonb_build_object('field', '{column.logical}', 'change', "
                f"CASE WHEN m.value IS NULL THEN '{_NULLED}' ELSE '{_TRUNCATED}' END, "
                f"'reason', '{Misfit.TYPE}')"
            )
            noted = (
                f", {meta} = jsonb_set(s.{meta}::jsonb, '{{changes}}', "
                f"s.{meta}::jsonb -> 'changes' || {change})::text"
            )
            self._database.run(
                f"UPDATE {self.table} AS s SET {column.quoted} = m.value"
                f"{'' if column.logical == META else noted} "
                f"FROM {mended % column.quoted} AS m "
                f"WHERE m.row = s.{ARRIVAL} AND m.value IS DISTINCT FROM s.{column.quoted}"
            )

    def _without_nuls(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Without U+0000, the one character that Postgres text cannot hold; noted as changes."""
        for index, column in enumerate(self._columns):
            values = batch.column(index)
            if values.type != pa.string():
                continue
            found = pc.fill_null(pc.match_substring(values, "\0"), False)
            if not pc.any(found, min_count=0).as_py():
                continue
            kept = pc.replace_substring(values, "\0", "")
            batch = batch.set_column(index, batch.schema.field(index), kept)
            place = batch.schema.get_field_index(META)
            noted = _with_change(batch.column(place), column.logical)
            metas = pc.if_else(found, noted, batch.column(place))
            batch = batch.set_column(place, batch.schema.field(place), metas)
        return batch


def _with_change(metas: pa.Array, field: str) -> pa.Array:
    """``_airbyte_meta`` texts, which end in a list of changes, with one more."""
    change = {"field": field, "change": _TRUNCATED, "reason": Misfit.TYPE}
    opened = pc.utf8_slice_codeunits(metas, 0, -len("]}"))
    comma = pc.if_else(pc.ends_with(opened, "["), "", ",")
    added = pa.scalar(json.dumps(change, separators=(",", ":")) + "]}")
    return pc.binary_join_element_wise(opened, comma, added, "")
