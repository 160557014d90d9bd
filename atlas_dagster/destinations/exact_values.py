"""Order and identity of values as the source wrote them.

Columns hold most values exactly. For the others, ``_airbyte_extra`` has the JSON that the source
wrote, and ``_airbyte_meta`` has a note. So rows are compared by column and kept JSON:

- Keys are equal if their columns are equal and their kept JSON has the same value: numbers by
  value, objects by members, text by characters.
- Cursors are compared as numbers, as instants (also text that begins with a date), or else by
  bytes. A cursor that is NULL, missing or unreadable has no order.
"""

import json
import re
from typing import Any

import msgspec

from atlas_dagster.records.temporal import instant
from atlas_dagster.records.types import ColumnType

_NUMBER = re.compile(r"([+-]?)(\d*)\.?(\d*)(?:[eE]([+-]?\d+))?", re.ASCII)
#: Regular expressions, in the syntax of Python, Arrow and Postgres: text that begins with a date,
#: and its time zone.
DATED = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"
ZONE = r"^.{11}.*([+-][0-9:]+)$"
_DATED = re.compile(DATED)
#: Numbers with a longer exponent have no order; no source sends them.
_EXPONENT_DIGITS = 18
_MOMENTS = (ColumnType.DATE, ColumnType.TIMESTAMP, ColumnType.LOCAL_TIMESTAMP)
_NUMBERS = (ColumnType.INTEGER, ColumnType.NUMBER, ColumnType.DECIMAL)
#: Prefixes that order the types of values in one column.
_BOOLEAN, _NUMERIC, _INSTANT, _TEXT, _OTHER = (bytes([rank]) for rank in range(5))


def order_of(kind: ColumnType, text: str | None, kept: str | bytes | None = None) -> bytes | None:
    """Return bytes that sort like the cursor's value; None if it has no order.

    Args:
        kind: the type of its column.
        text: the value of the column, as text.
        kept: the JSON that the source wrote, if the column does not hold it exactly.
    """
    if kind.is_json:
        return _order_of_json(kept or text)
    if kept is not None:
        text = _text_of(kept)
    if text is None:
        return None
    if kind in _MOMENTS:
        return _order_of_instant(text)
    if kind in _NUMBERS:
        return _order_of_number(text)
    if kind is ColumnType.BOOLEAN:
        return _BOOLEAN + text.encode() if text in ("true", "false") else None
    return _order_of_text(text, dated=kind is not ColumnType.TIME)


def _order_of_json(raw: str | bytes | None) -> bytes | None:
    if raw is None:
        return None
    value = _parsed(raw)
    if isinstance(value, bool):
        return _BOOLEAN + str(value).lower().encode()
    if isinstance(value, _Number):
        return _order_of_number(value)
    if isinstance(value, str):
        return _order_of_text(value, dated=True)
    return None if value is None else _OTHER + identity_of(raw).encode()


def _order_of_text(text: str, *, dated: bool) -> bytes:
    moment = _order_of_instant(text) if dated and _DATED.match(text) else None
    return moment or _TEXT + text.encode("utf-8", "surrogatepass")


def _order_of_instant(text: str) -> bytes | None:
    found = instant(text)
    if found is None:
        return None
    seconds, digits = found
    return _INSTANT + (seconds + 2**63).to_bytes(8, "big") + digits.encode()


def _order_of_number(text: str) -> bytes | None:
    parts = _parts_of_number(text)
    if parts is None:
        return None
    sign, point, digits = parts
    if not digits:
        return _NUMERIC + b"\1"
    size = (point + 2**63).to_bytes(8, "big") + digits.encode()
    if sign == "-":
        return _NUMERIC + b"\0" + bytes(255 - byte for byte in size) + b"\xff"
    return _NUMERIC + b"\2" + size


def _parts_of_number(text: str) -> tuple[str, int, str] | None:
    """Return sign, exponent and digits of ``0.digits * 10 ** exponent``; None if not a number."""
    found = _NUMBER.fullmatch(text)
    if found is None or not (found[2] or found[3]):
        return None
    if len((found[4] or "").lstrip("+-0")) > _EXPONENT_DIGITS:
        return None
    digits = (found[2] + found[3]).lstrip("0")
    zeros = len(found[2] + found[3]) - len(digits)
    return found[1], len(found[2]) - zeros + int(found[4] or 0), digits.rstrip("0")


class _Number(str):
    """A JSON number as it was written."""


def _parsed(raw: str | bytes) -> Any:
    """Return the value of some JSON; its text if it is nested too deep."""
    text = raw if isinstance(raw, str) else raw.decode("utf-8", "surrogateescape")
    try:
        return json.loads(text, parse_int=_Number, parse_float=_Number, strict=False)
    except (ValueError, RecursionError):
        return text


def _text_of(raw: str | bytes) -> str:
    """Return the value of a JSON string; other JSON as it is."""
    value = _parsed(raw)
    if isinstance(value, dict) and value.keys() == {"base64"}:
        value = _parsed(msgspec.json.decode(raw, type=dict[str, bytes])["base64"])
    return value if isinstance(value, str) else (raw if isinstance(raw, str) else raw.decode())


def identity_of(raw: str | bytes) -> str:
    """Return JSON in a canonical form: equal values have equal text."""
    return json.dumps(_canonical(_parsed(raw)), sort_keys=True, separators=(",", ":"))


def _canonical(value: Any) -> Any:
    if isinstance(value, _Number):
        sign, point, digits = _parts_of_number(value) or ("", 0, str(value))
        return [f"{'-' if sign == '-' and digits else ''}{digits}", point if digits else 0]
    if isinstance(value, dict):
        return {key: _canonical(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return ["", *map(_canonical, value)]
    return value
