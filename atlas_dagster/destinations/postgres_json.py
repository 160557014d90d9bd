"""JSON texts that jsonb refuses, made into some that it takes."""

from atlas_dagster.destinations.postgres_columns import ARRIVAL, Column
from atlas_dagster.destinations.postgres_connection import Database
from atlas_dagster.records.changes import Misfit
from atlas_dagster.records.types import EXTRA, META

#: Within a JSON text: the character that jsonb refuses, beside an escaped backslash, which is kept.
_NUL_ESCAPE = r"(\\\\)|\\u0000"
#: What can become jsonb of a text: itself, else without that character, else nothing.
_MEND_FUNCTION = f"""
    CREATE OR REPLACE FUNCTION pg_temp._atlas_json(value text) RETURNS text
    LANGUAGE plpgsql AS $$
    DECLARE cleaned text;
    BEGIN
        BEGIN
            PERFORM value::jsonb;
            RETURN value;
        EXCEPTION WHEN OTHERS THEN
            cleaned := regexp_replace(value, '{_NUL_ESCAPE}', '\\1', 'g');
        END;
        BEGIN
            PERFORM cleaned::jsonb;
            RETURN cleaned;
        EXCEPTION WHEN OTHERS THEN
            RETURN NULL;
        END;
    END $$
"""
#: ... and what to note of it, as one entry of ``changes``; ``$1`` is the field.
_CHANGE = (
    "jsonb_build_object('field', $1::text, "
    f"'change', CASE WHEN m.mended IS NULL THEN '{Misfit.TYPE.value[0]}' "
    f"ELSE '{Misfit.MENDED.value[0]}' END, 'reason', '{Misfit.TYPE.value[1]}')"
)


def mend_json(database: Database, table: str, columns: tuple[Column, ...]) -> None:
    """Make every JSON text in ``table`` one that jsonb takes, and note it in ``_airbyte_meta``.

    Where nothing can be made of it, ``_airbyte_extra`` keeps it, as text. The server decides,
    value by value, so this is only for when it has refused one.

    Args:
        table: staged rows, quoted.
    """
    database.run(_MEND_FUNCTION)
    of = {column.logical: column for column in columns if column.is_json}
    meta, extra = of.pop(META), of.pop(EXTRA)
    database.run(f"UPDATE {table} SET {meta.quoted} = pg_temp._atlas_json({meta.quoted})")
    noted = (
        f"{meta.quoted} = jsonb_set(s.{meta.quoted}::jsonb, '{{changes}}', "
        f"s.{meta.quoted}::jsonb -> 'changes' || {_CHANGE})::text"
    )
    kept = "jsonb_build_object($1::text, m.original)"
    mended = f"{noted}, {extra.quoted} = COALESCE(m.mended, {kept}::text)"
    _mend(database, table, extra, mended)
    held = f"COALESCE(s.{extra.quoted}::jsonb, '{{}}')"
    for column in of.values():
        mended = (
            f"{noted}, {column.quoted} = m.mended, {extra.quoted} = CASE "
            f"WHEN m.mended IS NULL THEN ({kept} || {held})::text ELSE s.{extra.quoted} END"
        )
        _mend(database, table, column, mended)


def _mend(database: Database, table: str, column: Column, assignments: str) -> None:
    database.run(
        f"UPDATE {table} AS s SET {assignments} FROM ("
        f"SELECT {ARRIVAL} AS row, {column.quoted} AS original, "
        f"pg_temp._atlas_json({column.quoted}) AS mended FROM {table}"
        f") AS m WHERE m.row = s.{ARRIVAL} AND m.mended IS DISTINCT FROM m.original",
        column.source.replace("\0", ""),
    )
