"""Bytes in, messages out; no I/O.

Lines end with the byte ``\\n`` only: U+2028 and friends are legal inside JSON strings. There is no
limit on the length of a line. The fast path decodes the envelope; a line it refuses goes to a
tolerant one, and only if that fails too is the line noise or, when it looks like a RECORD or STATE,
:class:`Unreadable`.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from atlas_dagster.protocol.messages import Message, Noise, Unreadable

_BOM = b"\xef\xbb\xbf"
_BLANK = " \t\r\x00"
_DATA_KIND = re.compile(r'"type"\s*:\s*"(RECORD|STATE)"')
_STREAM_NAME = re.compile(r'"(?:stream|name)"\s*:\s*"((?:[^"\\]|\\.)*)"')
_LOGGED_CHARACTERS = 2000

Decoded = Message | Noise | Unreadable


def _finite(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else text


#: Takes raw control characters inside strings, too. What JSON has no number for (NaN, infinities)
#: stays as text, which a column of numbers then refuses and notes in the row's changes.
_JSON = json.JSONDecoder(strict=False, parse_float=_finite, parse_constant=str)


class MessageDecoder:
    """Decodes one stdout. Feed chunks cut anywhere, then :meth:`flush` at the end."""

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(Message).decode
        self._partial: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[Decoded]:
        """Yield every message completed by ``chunk``."""
        if b"\n" not in chunk:
            self._partial.append(chunk)
            return
        lines = chunk.split(b"\n")
        if self._partial:
            lines[0] = b"".join([*self._partial, lines[0]])
        tail = lines.pop()
        self._partial = [tail] if tail else []
        decode = self._decode
        for line in lines:
            try:
                yield decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                yield from self._tolerant(line)

    def flush(self) -> Iterator[Decoded]:
        """Yield what the last line, cut off by the end of output, amounts to."""
        rest, self._partial = b"".join(self._partial), []
        if rest:
            yield from self.feed(rest + b"\n")

    def _tolerant(self, line: bytes) -> Iterator[Decoded]:
        """What a refused line holds; several messages where threads of a connector collided."""
        text = line.removeprefix(_BOM).decode("utf-8", "replace").strip(_BLANK)
        while text:
            try:
                value, end = _JSON.raw_decode(text)
                message = self._exact_or_mended(text[:end], value)
            except (ValueError, RecursionError):  # msgspec's own errors are ValueErrors
                yield _unreadable_or_noise(text)
                return
            yield message
            text = text[end:].strip(_BLANK)

    def _exact_or_mended(self, text: str, value: Any) -> Message:
        try:
            return self._decode(text.encode())
        except msgspec.MsgspecError:
            if not isinstance(value, dict) or not isinstance(value.get("type"), str):
                raise
            return self._decode(_reencode(value | {"type": value["type"].upper()}))


def _unreadable_or_noise(text: str) -> Decoded:
    kind = _DATA_KIND.search(text)
    if kind is None:
        return Noise(text[:_LOGGED_CHARACTERS])
    name = _STREAM_NAME.search(text)
    return Unreadable(kind[1], text[:_LOGGED_CHARACTERS], None if name is None else name[1])


def _reencode(value: Any) -> bytes:
    """JSON that the strict parser takes, with "?" for lone surrogates.

    Integers of any size survive, which is why this is not ``orjson``.
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
