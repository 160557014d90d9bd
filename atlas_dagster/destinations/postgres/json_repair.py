"""Repair of JSON texts that jsonb refuses."""

import msgspec
from msgspec import Raw

from atlas_dagster.destinations.postgres.columns import ARRIVAL, Column
from atlas_dagster.destinations.postgres.connection import Database
from atlas_dagster.records.issues import IssueKind, ValueChange, as_base64
from atlas_dagster.records.types import EXTRA, META

_decode_extra = msgspec.json.Decoder(dict[str, Raw]).decode

#: In a JSON text: U+0000, which jsonb refuses, or an escaped backslash, which is kept.
_NUL_ESCAPE = r"(\\\\)|\\u0000"
#: Returns a text that jsonb takes: the same text, else the text without U+0000, else NULL.
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
#: The entry of ``changes`` about a repair; ``$1`` is the field.
_CHANGE = (
    "jsonb_build_object('field', $1::text, "
    f"'change', CASE WHEN m.mended IS NULL THEN '{IssueKind.TYPE.value[0]}' "
    f"ELSE '{IssueKind.REPAIRED.value[0]}' END, 'reason', '{IssueKind.TYPE.value[1]}')"
)
#: The entry of ``_airbyte_extra`` with the original bytes.
_KEPT = (
    "jsonb_build_object($1::text, jsonb_build_object('base64', "
    "translate(encode(convert_to(m.original, 'UTF8'), 'base64'), E'\\n', '')))"
)


def repair_json(database: Database, table: str, columns: tuple[Column, ...]) -> None:
    """Repair the JSON texts in ``table`` that jsonb refuses, and note it in ``_airbyte_meta``.

    ``_airbyte_extra`` keeps the source's bytes. The server tests each value, which is slow, so call
    this only after it has refused one.

    Args:
        table: staged rows, quoted.
    """
    database.run(_MEND_FUNCTION)
    of = {column.logical: column for column in columns if column.is_json}
    meta, extra = of.pop(META), of.pop(EXTRA)
    database.run(f"UPDATE {table} SET {meta.quoted} = pg_temp._atlas_json({meta.quoted})")
    _repair_extra(database, table, meta, extra)
    noted = (
        f"{meta.quoted} = jsonb_set(s.{meta.quoted}::jsonb, '{{changes}}', "
        f"s.{meta.quoted}::jsonb -> 'changes' || {_CHANGE})::text"
    )
    for column in of.values():
        database.run(
            f"UPDATE {table} AS s SET {noted}, {column.quoted} = m.mended, {extra.quoted} = "
            f"({_KEPT} || COALESCE(s.{extra.quoted}::jsonb, '{{}}'))::text FROM ("
            f"SELECT {ARRIVAL} AS row, {column.quoted} AS original, "
            f"pg_temp._atlas_json({column.quoted}) AS mended FROM {table}"
            f") AS m WHERE m.row = s.{ARRIVAL} AND m.mended IS DISTINCT FROM m.original",
            column.source.replace("\0", ""),
        )


def _repair_extra(database: Database, table: str, meta: Column, extra: Column) -> None:
    """Replace the fields in ``_airbyte_extra`` that jsonb refuses by their bytes."""
    refused = database.rows(
        f"SELECT {ARRIVAL} AS row, {meta.quoted} AS meta, {extra.quoted} AS extra FROM {table} "
        f"WHERE pg_temp._atlas_json({extra.quoted}) IS DISTINCT FROM {extra.quoted}"
    )
    for found in refused:
        noted = msgspec.json.decode(found["meta"])
        changed = {change["field"] for change in noted["changes"]}
        kept: dict[str, Raw] = {}
        for field, value in _fields(found["extra"]).items():
            name = field.replace("\0", "")
            text = bytes(value).decode()
            (taken,) = database.rows("SELECT pg_temp._atlas_json($1) = $1 AS whole", text)
            kept[name] = value if taken["whole"] else as_base64(value)
            if name in changed or (taken["whole"] and name == field):
                continue
            noted["changes"].append(ValueChange(name, *IssueKind.REPAIRED.value))
        database.run(
            f"UPDATE {table} SET {meta.quoted} = $1, {extra.quoted} = $2 WHERE {ARRIVAL} = $3",
            msgspec.json.encode(noted).decode(),
            msgspec.json.encode(kept).decode(),
            found["row"],
        )


def _fields(extra: str) -> dict[str, Raw]:
    try:
        return _decode_extra(extra)
    except (ValueError, RecursionError):  # msgspec's own errors are ValueErrors
        return {"": Raw(extra.encode())}
