"""The values that a play's sources send: written as JSON, with what they mean beside them.

A cursor's ``rank`` is its place in the exact order; None where it has none (null, missing, not
readable as its type). A key's ``identity`` is equal for equal keys; None where there is no key.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: In place of a value: the record lacks the field.
MISSING = b""


@dataclass(frozen=True)
class Cursor:
    raw: bytes
    rank: int | None


@dataclass(frozen=True)
class Key:
    raw: bytes
    identity: str | None

    @property
    def is_other_json(self) -> bool:
        """Whether it is neither text nor missing."""
        return self.identity is not None and not self.raw.startswith(b'"')


@dataclass(frozen=True)
class CursorKind:
    """A declared type, the values of it, and the exact order of these."""

    schema: Any
    values: tuple[Cursor, ...]


@dataclass(frozen=True)
class KeyKind:
    schema: Any
    values: tuple[Key, ...]


def _cursors(schema: Any, *ordered: Sequence[str], unreadable: Sequence[str] = ()) -> CursorKind:
    """``ordered``: the spellings of each value, from the smallest to the greatest."""
    values = [
        Cursor(text.encode(), rank) for rank, spellings in enumerate(ordered) for text in spellings
    ]
    values += [Cursor(text.encode(), None) for text in ("null", *unreadable)]
    return CursorKind(schema, (*values, Cursor(MISSING, None)))


def _keys(schema: Any, *equal: Sequence[str | bytes]) -> KeyKind:
    """``equal``: the spellings of each key."""
    values = [
        Key(text if isinstance(text, bytes) else text.encode(), str(number))
        for number, spellings in enumerate(equal)
        for text in spellings
    ]
    return KeyKind(schema, (*values, Key(b"null", None), Key(MISSING, None)))


_INSTANTS = (
    ['"2024-01-01T10:00:00+05:00"', '"2024-01-01T05:00:00Z"'],
    ['"2024-01-01T06:00:00Z"', '"2024-01-01T08:00:00+02:00"'],
    ['"2024-01-01T06:00:00.000000001Z"', '"2024-01-01T07:00:00.000000001+01:00"'],
    ['"2024-01-01T06:00:00.000000002Z"'],
    ['"2024-01-01T06:00:00.000001Z"'],
    ['"2024-02-01T00:00:00Z"'],
)

UNION = {"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}]}

CURSORS = {
    "integer": _cursors(
        {"type": ["null", "integer"]},
        ["-9223372036854775809"],
        ["-1"],
        ["0", "0.0"],
        ["9"],
        ["10", "10.0"],
        ["9007199254740992"],
        ["9007199254740993"],
        ["9223372036854775807"],
        ["9223372036854775808"],
        ["18446744073709551616"],
        unreadable=['"x"', "{}", "true"],
    ),
    "number": _cursors(
        {"type": ["null", "number"]},
        ["-1.5"],
        ["0", "0.0", "-0.0"],
        ["0.123456789012345678"],
        ["0.123456789012345679"],
        ["1", "1.0", "1e0"],
        ["9"],
        ["10"],
        ["12345678901234567"],
        ["12345678901234568"],
        ["1e300"],
        ["1e400"],
        unreadable=['"x"', "[1]"],
    ),
    "integer or number": _cursors(
        {"type": ["null", "integer", "number"]}, ["9"], ["9.5"], ["10"], ["100000000000000000000"]
    ),
    "integer or text": _cursors(
        UNION,
        ["9"],
        ["10"],
        ["100000000000000000000"],
    ),
    "text": _cursors({"type": ["null", "string"]}, ['""'], ['"10"'], ['"9"'], ['"a"'], ['"é"']),
    "text of instants": _cursors({"type": "string"}, *_INSTANTS),
    "timestamp": _cursors(
        {"type": ["null", "string"], "format": "date-time"},
        *_INSTANTS,
        ['"9999-12-31T23:59:59Z"'],
        ['"10000-01-01T00:00:00Z"'],
        unreadable=['"soon"', "5", "{}"],
    ),
    "local timestamp": _cursors(
        {
            "type": "string",
            "format": "date-time",
            "airbyte_type": "timestamp_without_timezone",
        },
        ['"2024-01-01T05:00:00"'],
        ['"2024-01-01T05:00:00.000000001"'],
        ['"2024-01-01T05:00:00.000001"'],
        ['"2024-01-02T00:00:00"'],
        unreadable=['"soon"'],
    ),
    "date": _cursors(
        {"type": ["null", "string"], "format": "date"},
        ['"2024-01-01"'],
        ['"2024-01-02"'],
        ['"2024-01-03"'],
        unreadable=['"soon"', "7"],
    ),
}

KEYS = {
    "integer": _keys(
        {"type": ["null", "integer"]},
        ["1", "1.0"],
        ["2"],
        ["9223372036854775808"],
        ["18446744073709551616"],
    ),
    "number": _keys(
        {"type": ["null", "number"]},
        ["1", "1.0", "1e0"],
        ["2.5"],
        ["12345678901234567"],
        ["12345678901234568"],
    ),
    "text": _keys(
        {"type": ["null", "string"]},
        ['"a"'],
        ['"A"'],
        ['"a\\u0000"'],
        ['"\\ud800"'],
        [b'"\xff"'],
        [b'"\xfe"'],
        ["1"],
        ['"1"'],
        ["true"],
        ['"true"'],
        ['{"a": 1}'],
        ['"{\\"a\\": 1}"'],
        ['""'],
    ),
    "integer or text": _keys(UNION, ["1"], ['"1"'], ["2"], ['"b"']),
    "object": _keys(
        {"type": ["null", "object"]},
        ['{"a": 1, "b": 2}', '{"b": 2, "a": 1}'],
        ['{"a": 1}'],
        ['{"a": 2}'],
    ),
    "timestamp": _keys(
        {"type": "string", "format": "date-time"},
        ['"2024-01-01T06:00:00Z"', '"2024-01-01T07:00:00+01:00"'],
        ['"2024-01-01T06:00:00.000000001Z"'],
        ['"2024-01-01T06:00:00.000000002Z"'],
    ),
    "date": _keys(
        {"type": "string", "format": "date"},
        ['"2024-01-01"'],
        ['"2024-01-02"'],
        ['"2024-01-02T05:00:00"'],
    ),
}

#: Names that fields take and give back: odd characters, case, words of serializers and of ours.
FIELDS = (
    "v",
    "V",
    "order id",
    "order_id",
    "n",
    "n_string",
    "__class__",
    "Ünï",
    'a"b',
    "a.b",
    "x" * 70,
    "_airbyte_meta",
    "",
)

TYPES: dict[str, Any] = {
    "integer": {"type": ["null", "integer"]},
    "number": {"type": "number"},
    "string": {"type": ["null", "string"]},
    "boolean": {"type": "boolean"},
    "timestamp": {"type": "string", "format": "date-time"},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time"},
    "object": {"type": "object"},
    "array": {"type": "array", "items": {}},
    "union": {"type": ["integer", "string"]},
    "untyped": {},
}

#: What a payload field holds, whatever its type says.
PAYLOADS = (
    MISSING,
    b"null",
    b"1",
    b'"1"',
    b"true",
    b'"text"',
    b"1.5",
    b'{"a":[1,"b"]}',
    b"[1,2]",
    b'"2024-01-01"',
    b'"2024-01-01T00:00:00.123456789+05:00"',
    b'"12:34:56"',
    b"9223372036854775808",
    b"0.1234567890123456789",
    b"1e400",
    b'"a\\u0000b"',
    b'"\\ud800"',
    b'"\xff"',
)
