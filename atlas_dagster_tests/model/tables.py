"""What a table shows, as the records that its rows were made of.

Nothing is lost on the way into a table: whatever a record held is in a column of its field or, as
the source wrote it, in ``_airbyte_extra``. So each record can be put together again.
"""

import base64
import datetime as dt
import json
from collections import Counter
from decimal import Decimal
from typing import Any

import pyarrow as pa

from atlas_dagster.records.types import EXTRA, SOURCE_NAME_KEY
from atlas_dagster_tests.model.truth import REVISION, Version
from atlas_dagster_tests.sync.fake_source import Lake, Warehouse

Row = dict[str, Any]


def read_rows(lake: Lake, stream: str) -> list[Row] | None:
    """The rows of a table, with the values of each field; None where there is no table."""
    if ("c", stream) not in _present(lake, stream):
        return None
    if isinstance(lake, Warehouse):
        fields = _fields_in_postgres(lake, stream)
        relation = lake.ask(
            f"SELECT table_name FROM c._atlas_state WHERE path = 'c.{stream}'"
        ).to_pylist()[0]["table_name"]
        table = lake.ask(f'SELECT * FROM c."{relation}"')
    else:
        table = lake.read((stream,), "*")
        fields = {f.name: _source_name(f) for f in lake.table(stream).schema().to_arrow()}
    rows = []
    for found in table.to_pylist():
        values: Row = {}
        for column, value in found.items():
            field = fields.get(column)
            if field is not None and value is not None:
                values.setdefault(field, []).append(value)
        extra = json.loads(found[EXTRA], parse_float=Decimal) if found[EXTRA] else {}
        rows.append(
            {
                **values,
                **_kept(extra),
            }
        )
    return rows


def _kept(extra: Row) -> Row:
    return {name: [_Extra(value)] for name, value in extra.items() if value is not None}


def revisions(rows: list[Row] | None) -> Counter[int]:
    return Counter(int(row[REVISION][0]) for row in rows or ())


def differences(row: Row, version: Version) -> list[str]:
    """The fields of ``version`` that ``row`` does not hold as they were sent."""
    wanted = {name: raw for name, raw in version.fields.items() if raw != b"null"}
    wrong = [
        f"{name}: {raw!r} became {row.get(name)}"
        for name, raw in wanted.items()
        if not any(_agrees(raw, stored) for stored in row.get(name, ()))
    ]
    wrong += [f"{name}: came from nowhere, {row[name]}" for name in row.keys() - wanted.keys()]
    return wrong


class _Extra:
    """A value that ``_airbyte_extra`` keeps as the source wrote it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"extra {self.value!r}"


def _agrees(raw: bytes, stored: Any) -> bool:
    if isinstance(stored, _Extra):
        value = stored.value
        if isinstance(value, dict) and value.keys() == {"base64"}:
            return base64.b64decode(value["base64"]) in (raw, _unescaped(raw))
        return value == _parsed(raw)
    sent = _parsed(raw)
    match stored:
        case bool():
            return sent is stored
        case int() | float() | Decimal():
            return _number(sent) == (Decimal(repr(stored)) if stored == stored else None)
        case dt.datetime():
            return _instant(sent) == stored.replace(tzinfo=None)
        case dt.date():
            return str(sent) == stored.isoformat()
        case str():
            return sent == stored or _text(raw) == stored or _number_text(stored, sent)
    return False


def _parsed(raw: bytes) -> Any:
    text = raw.decode("utf-8", "surrogateescape")
    try:
        return json.loads(text, parse_float=Decimal)
    except ValueError:
        return text


def _unescaped(raw: bytes) -> bytes:
    """JSON without escapes, where half a surrogate pair is no UTF-8."""
    try:
        return json.dumps(json.loads(raw), ensure_ascii=False).encode("utf-8", "surrogatepass")
    except ValueError:
        return raw


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _number(sent: Any) -> Decimal | None:
    if isinstance(sent, bool) or not isinstance(sent, int | Decimal | str):
        return None
    try:
        return Decimal(sent)
    except ArithmeticError:
        return None


def _number_text(stored: str, sent: Any) -> bool:
    """Numbers, and JSON that Postgres spells anew."""
    try:
        return bool(json.loads(stored, parse_float=Decimal) == sent)
    except ValueError:
        number = _number(stored)
        return number is not None and number == _number(sent)


def _instant(sent: Any) -> dt.datetime | None:
    if not isinstance(sent, str):
        return None
    try:
        found = dt.datetime.fromisoformat(sent)
    except ValueError:
        return None
    return (found.astimezone(dt.UTC) if found.tzinfo else found).replace(tzinfo=None)


def _source_name(field: pa.Field) -> str | None:
    name = (field.metadata or {}).get(SOURCE_NAME_KEY.encode())
    return None if name is None else str(name.decode())


def _fields_in_postgres(lake: Warehouse, stream: str) -> dict[str, str | None]:
    found = lake.ask(f"SELECT fields FROM c._atlas_state WHERE path = 'c.{stream}'").to_pylist()
    schema = pa.ipc.read_schema(pa.py_buffer(found[0]["fields"]))
    return {field.name: _source_name(field) for field in schema}


def _present(lake: Lake, stream: str) -> set[tuple[str, str]]:
    if isinstance(lake, Warehouse):
        there = lake.ask("SELECT 1 WHERE to_regclass('c._atlas_state') IS NOT NULL").num_rows
        shown = there and lake.ask(
            f"SELECT 1 FROM c._atlas_state WHERE path = 'c.{stream}' "
            "AND fields IS NOT NULL AND to_regclass(relation::text) IS NOT NULL"
        )
        return {("c", stream)} if there and shown.num_rows else set()
    return {("c", stream)} if (lake.root / "c" / stream / "_delta_log").exists() else set()
