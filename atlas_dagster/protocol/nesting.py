"""JSON that is nested too deeply for parsers.

msgspec and Python's own parser are recursive and fail at about a thousand levels, or at fewer on a
deep stack. The functions here are not recursive, so they have no limit.
"""

import re

import msgspec
from msgspec import Raw

#: Levels that every parser supports, on any stack.
DEEPEST = 500
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|["\[\]{}:,]', re.DOTALL)
_CLOSING = {b"{": b"}", b"[": b"]"}


def split_fields(text: bytes | Raw) -> dict[str, tuple[Raw, int]]:
    """Return the fields of a JSON object, each with its number of levels.

    Inside a field, only brackets and strings are checked.

    Raises:
        ValueError: ``text`` is not a valid object.
    """
    text = bytes(text)
    fields: dict[str, tuple[Raw, int]] = {}
    open_brackets: list[bytes] = []
    name: bytes | None = None
    key: str | None = None
    begin = depth = 0
    end = None
    for token in _TOKEN.finditer(text):
        first = token[0][:1]
        unterminated = token[0] == b'"'
        if unterminated or end is not None or (not open_brackets and first != b"{"):
            raise _invalid_object(token.start())
        if first in _CLOSING:
            open_brackets.append(_CLOSING[first])
            depth = max(depth, len(open_brackets) - 1)
            continue
        at_top = len(open_brackets) == 1
        if first in (b"}", b"]") and open_brackets.pop() != first:
            raise _invalid_object(token.start())
        if not at_top:
            continue
        if first == b'"' and key is None:
            name = token[0]
        elif first == b":" and key is None and name is not None:
            key, begin, depth = msgspec.json.decode(name, type=str), token.end(), 0
        elif first in (b",", b"}"):
            if key is not None:
                fields[key] = Raw(text[begin : token.start()].strip()), depth
            elif first == b"," or fields or name is not None:
                raise _invalid_object(token.start())
            name = key = None
            end = token.end() if first == b"}" else None
        elif first == b":":
            raise _invalid_object(token.start())
    if end is None or text[end:].strip():
        raise _invalid_object(len(text))
    return fields


def levels(text: bytes) -> int:
    """Return the number of levels in the JSON ``text``."""
    depth = deepest = 0
    for token in _TOKEN.finditer(text):
        if token[0] in _CLOSING:
            depth += 1
            deepest = max(deepest, depth)
        elif token[0] in (b"}", b"]"):
            depth -= 1
    return deepest


def _invalid_object(at: int) -> ValueError:
    return ValueError(f"not a valid object (byte {at})")
