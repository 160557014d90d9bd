"""Bytes in, messages out; no I/O.

Lines end with the byte ``\\n`` only: U+2028 and friends are legal inside JSON strings. There is no
limit on the length of a line. The fast path decodes the envelope; a line it refuses goes to a
tolerant one, and only if that fails too is the line noise or, when it looks like a RECORD or STATE,
:class:`Unreadable`.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from atlas_dagster.protocol.messages import Message, Noise, Unreadable

_BOM = b"\xef\xbb\xbf"
_DATA_KIND = re.compile(rb'"type"\s*:\s*"(RECORD|STATE)"')
_STREAM_NAME = re.compile(rb'"(?:stream|name)"\s*:\s*"((?:[^"\\]|\\.)*)"')
_LOGGED_CHARACTERS = 2000

Decoded = Message | Noise | Unreadable


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
                decoded = self._tolerant(line)
                if decoded is not None:
                    yield decoded

    def flush(self) -> Iterator[Decoded]:
        """Yield what the last line, cut off by the end of output, amounts to."""
        rest, self._partial = b"".join(self._partial), []
        if rest:
            yield from self.feed(rest + b"\n")

    def _tolerant(self, line: bytes) -> Decoded | None:
        line = line.removeprefix(_BOM).strip(b" \t\r\x00")
        if not line:
            return None
        try:
            value = json.loads(line.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return self._unreadable_or_noise(line)
        if not isinstance(value, dict) or not isinstance(value.get("type"), str):
            return Noise(_printable(line))
        value["type"] = value["type"].upper()
        try:
            return msgspec.json.decode(_reencode(value), type=Message)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return self._unreadable_or_noise(line)

    def _unreadable_or_noise(self, line: bytes) -> Decoded:
        kind = _DATA_KIND.search(line)
        if kind is None:
            return Noise(_printable(line))
        name = _STREAM_NAME.search(line)
        stream = None if name is None else name.group(1).decode("utf-8", "replace")
        return Unreadable(kind.group(1).decode(), _printable(line), stream)


def _reencode(value: Any) -> bytes:
    """JSON that the strict parser takes: NaN and the infinities become null, lone surrogates U+FFFD.

    Integers of any size survive, which is why this is not ``orjson``.
    """
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value


def _printable(line: bytes) -> str:
    return line[:_LOGGED_CHARACTERS].decode("utf-8", "replace")
