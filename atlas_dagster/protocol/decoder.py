"""Decoder from bytes to messages, without I/O.

Only the byte ``\\n`` ends a line, because U+2028 and others are legal inside JSON strings. The
decoder keeps only the beginning of a line that is longer than :data:`LONGEST_LINE`. The fast path
decodes the envelope, and a tolerant path repairs lines that the fast path refuses. A line that
cannot be repaired is :class:`Unreadable` if it looks like a RECORD, a STATE or an answer, else
noise. Records are returned in batches, because work for each single record is expensive.
"""

import json
import math
import operator
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec
from msgspec import Raw

from atlas_dagster.protocol.messages import Message, Noise, Records, State, Unreadable
from atlas_dagster.protocol.nesting import DEEPEST, split_fields

#: Bytes of the longest line that is decoded. Rows and states are far shorter.
LONGEST_LINE = 64 * 1024 * 1024
#: Bytes at the beginning of a longer line that are kept.
_HEAD = 64 * 1024
_KIND = re.compile(rb'"type"\s*:\s*"(RECORD|STATE)"', re.IGNORECASE)
#: Bytes of a piece that are searched again with the next one. Matches are shorter.
_OVERLAP = 256


class LongLine:
    """Facts about a line whose pieces are not kept."""

    def __init__(self, pieces: Iterable[bytes] = ()) -> None:
        self.head = b""
        self.size = 0
        #: The kind of the first RECORD or STATE in the line, and the number of such messages.
        self.kind: Literal["RECORD", "STATE"] | None = None
        self.messages = 0
        self._overlap = b""
        for piece in pieces:
            self.add(piece)

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        self.head += piece[: _HEAD - len(self.head)]
        searched = self._overlap + piece
        for found in _KIND.finditer(searched):
            if found.end() > len(self._overlap):
                self.messages += 1
                self.kind = self.kind or ("RECORD" if found[1].upper() == b"RECORD" else "STATE")
        self._overlap = searched[-_OVERLAP:]


_BOM = b"\xef\xbb\xbf"
_BLANKS = " \t\r\x00"
_BLANK = re.compile(f"[{_BLANKS}]*")
_DATA_KIND = re.compile(r'"type"\s*:\s*"(RECORD|STATE)"', re.IGNORECASE)
_ANSWER_KIND = re.compile(r'"type"\s*:\s*"(SPEC|CATALOG|CONNECTION_STATUS|CONTROL)"', re.IGNORECASE)
#: A field of an envelope without a ``type``.
_DATA_FIELD = re.compile(r'[{,]\s*"(record|state)"\s*:\s*\{')
_RECORD_DATA = re.compile(r'"data"\s*:')
_STREAM_NAME = re.compile(r'"stream"\s*:\s*("(?:[^"\\]|\\.)*")')
_DESCRIBED_NAME = re.compile(r'"stream_descriptor"\s*:\s*\{[^{}]*?"name"\s*:\s*("(?:[^"\\]|\\.)*")')

_data = operator.attrgetter("data")
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_raw = msgspec.json.Decoder(Raw).decode
_decode_string = msgspec.json.Decoder(str).decode
_decode_number = msgspec.json.Decoder(int | float).decode
_encode = msgspec.json.Encoder().encode

#: Errors of msgspec at a line that is not a valid message.
_REFUSED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
#: Bytes of the longest line that is repaired, because its Python objects need far more memory.
_LONGEST_REPAIRED = 16 * 1024 * 1024
#: Characters that are shown of a line that is too long.
_SHOWN_OF_LONG = 2_000
#: Records with a smaller share of their block are copied out of it.
_LEAST_SHARE = 1 / 4

Decoded = Message | Records | Noise | Unreadable


#: Finds the end of a message, and accepts raw control characters inside strings. Integers are read
#: as floats, because Python refuses integers with more than 4,300 digits.
_JSON = json.JSONDecoder(strict=False, parse_int=float)
#: Strings, and numbers that JSON does not have.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|NaN|-?Infinity', re.DOTALL)
_SURROGATE = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")
#: The error handler that keeps invalid UTF-8 unchanged.
_AS_BYTES = "surrogateescape"
_NUMBER = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*', re.DOTALL)
_NOTHING = Raw(b"null")
_CONTROL = re.compile(r"[\x00-\x1f]")
_LONE_SURROGATE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\[^u]"
    r"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


def as_text(raw: bytes) -> str:
    """Return ``raw`` with U+FFFD for invalid UTF-8, one for each half of a surrogate pair."""
    return _SURROGATE.sub(b"\xef\xbf\xbd", raw).decode("utf-8", "replace")


class MessageDecoder:
    """Decodes one stdout. Feed chunks, cut anywhere, and call :meth:`flush` at the end."""

    def __init__(self) -> None:
        decoder = msgspec.json.Decoder(Message)
        self._decode = decoder.decode
        self._decode_lines = decoder.decode_lines
        #: The beginning of a line, and its size.
        self._partial: list[bytes] = []
        self._size = 0
        #: The current line, if it is too long to be kept.
        self._long: LongLine | None = None

    def feed(self, chunk: bytes) -> Iterator[Decoded]:
        """Yield every message that ``chunk`` completes.

        Records of one stream and all other messages keep their order. Records of different streams
        may not.
        """
        if self._long is not None:
            piece, end, chunk = chunk.partition(b"\n")
            self._long.add(piece)
            if not end:
                return
            yield _classify_long_line(self._long)
            self._long = None
        if b"\n" not in chunk:
            self._keep_partial(chunk)
            return
        block, _, tail = chunk.rpartition(b"\n")
        if self._partial:
            block = b"".join([*self._partial, block])
        self._partial, self._size = [], 0
        self._keep_partial(tail)
        batches: dict[tuple[str, str | None], Records] = {}
        stream: str | None = None
        namespace: str | None = None
        for message in self._decode_block(block):
            record = message.record if type(message) is Message else None
            if record is None:
                yield from _count_bytes(batches.values(), len(block))
                batches, stream = {}, None
                if type(message) is Message and message.state is not None:
                    _replace_invalid_utf8(message.state)
                yield message
                continue
            if record.stream != stream or record.namespace != namespace:
                stream, namespace = record.stream, record.namespace
                key = (stream, namespace)
                append = batches.setdefault(key, Records(stream, namespace)).records.append
            append(record)
        yield from _count_bytes(batches.values(), len(block))

    def flush(self) -> Iterator[Decoded]:
        """Yield the messages of the last line, which has no line end."""
        if self._partial or self._long is not None:
            yield from self.feed(b"\n")

    def _keep_partial(self, piece: bytes) -> None:
        """Keep the beginning of a line until its end."""
        if piece:
            self._partial.append(piece)
            self._size += len(piece)
        if self._size > LONGEST_LINE:
            self._long = LongLine(self._partial)
            self._partial, self._size = [], 0

    def _decode_block(self, block: bytes) -> Iterable[Decoded]:
        """Return the messages of ``block``, decoded at once if each line is one message."""
        try:
            messages = self._decode_lines(block)
        except _REFUSED:
            return self._decode_by_line(block)
        # If messages span lines, or share them, the result must not depend on the cuts of chunks.
        is_one_each = len(messages) == block.count(b"\n") + 1
        return messages if is_one_each else self._decode_by_line(block)

    def _decode_by_line(self, block: bytes) -> Iterator[Decoded]:
        for line in block.split(b"\n"):
            try:
                yield self._decode(line)
            except _REFUSED:
                yield from self._decode_refused(line)

    def _decode_refused(self, line: bytes) -> Iterator[Decoded]:
        """Yield the messages of a refused line. Threads of a connector may share one line."""
        if len(line) > _LONGEST_REPAIRED:
            yield _classify_long_line(LongLine([line]))
            return
        text = line.removeprefix(_BOM).decode("utf-8", _AS_BYTES).rstrip(_BLANKS)
        start, at = 0, _skip_blanks(text, 0)
        while at < len(text):
            value = None
            try:
                value, end = _JSON.raw_decode(text, at)
                message = self._decode_or_repair(text[at:end], value)
            except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors
                if isinstance(error, RecursionError) and (deep := self._decode_deep(text[at:])):
                    yield deep
                    return
                is_object = isinstance(value, dict) and end == len(text)
                # Keep the indentation, as in stack traces.
                rest = _make_readable(text[start:].lstrip("\r\x00"))
                why = "nested too deeply" if isinstance(error, RecursionError) else ""
                yield _classify(rest, is_object=is_object, why=why)
                return
            yield message
            start, at = end, _skip_blanks(text, end)

    def _decode_or_repair(self, text: str, value: Any) -> Message:
        """Decode a message, repaired if necessary. Bytes of a record's data stay unchanged."""
        try:
            return self._decode(text.encode("utf-8", _AS_BYTES))
        except _REFUSED:
            if not isinstance(value, dict) or not isinstance(value.get("type"), str):
                raise
        repaired = _TOKEN.sub(_make_strict, text)
        try:
            return self._decode_as(repaired.encode("utf-8", _AS_BYTES), value["type"])
        except UnicodeDecodeError:  # invalid UTF-8 outside the data
            return self._decode_as(_make_readable(repaired).encode(), value["type"])

    def _decode_deep(self, text: str) -> Message | None:
        """Decode a RECORD whose data is nested too deeply for the parser; None if it is invalid.

        The data stays unchanged, and its deeply nested parts are not validated.
        """
        try:
            envelope = _split_raw(text.encode("utf-8", _AS_BYTES))
            record = _split_raw(envelope["record"])
            data = record["data"]
            for value, levels in split_fields(data).values():
                if levels <= DEEPEST:
                    _decode_raw(value)
            plain = envelope | {"record": Raw(_encode(record | {"data": None}))}
            found = self._decode_as(_encode(plain), _decode_string(envelope["type"]))
        except (ValueError, KeyError, RecursionError):
            return None
        if found.record is not None:
            found.record.data = data
        return found

    def _decode_as(self, message: bytes, kind: str) -> Message:
        kind = kind.upper()
        envelope = _decode_fields(message)
        try:
            return self._decode(_encode(envelope | {"type": kind}))
        except msgspec.MsgspecError:
            return self._decode(_encode(_remove_huge_numbers(kind, envelope) | {"type": kind}))


def _split_raw(text: bytes | Raw) -> dict[str, Raw]:
    return {field: value for field, (value, _) in split_fields(text).items()}


def _remove_huge_numbers(kind: str, envelope: dict[str, Raw]) -> dict[str, Any]:
    """Return ``envelope`` without numbers that no parser reads, except in data and states."""
    field = kind.lower()
    content = envelope.get(field)
    if content is None:
        return envelope
    if kind == "RECORD":
        fields = _decode_fields(content)
        if not _is_number(fields.get("emitted_at", _NOTHING)):
            return envelope | {field: fields | {"emitted_at": None}}
    elif kind in ("SPEC", "CONTROL"):
        return envelope | {field: Raw(_NUMBER.sub(_make_finite, bytes(content)))}
    return envelope


def _is_number(text: Raw) -> bool:
    try:
        _decode_number(text)
    except msgspec.MsgspecError:
        return False
    return True


def _make_finite(token: re.Match[bytes]) -> bytes:
    """Return the nearest number that fits into a double."""
    text = token[0]
    if text[:1] == b'"' or abs(float(text)) <= sys.float_info.max:
        return text
    return b"%r" % math.copysign(sys.float_info.max, float(text))


def _replace_invalid_utf8(state: State) -> None:
    """Replace invalid UTF-8 in ``state`` by U+FFFD, because it is stored and sent back as JSON."""
    each = [*([state.stream] if state.stream else ())]
    if state.global_ is not None:
        each += state.global_.stream_states
        state.global_.shared_state = _to_utf8(state.global_.shared_state)
    for stream in each:
        stream.stream_state = _to_utf8(stream.stream_state)
    state.data = _to_utf8(state.data)


def _to_utf8(blob: Raw) -> Raw:
    try:
        str(blob, "utf-8")
    except UnicodeDecodeError:
        return Raw(as_text(bytes(blob)).encode())
    return blob


def _count_bytes(batches: Iterable[Records], block: int) -> Iterator[Records]:
    """Count the bytes of ``batches``; copy small ones, so that they do not keep ``block`` bytes."""
    for batch in batches:
        batch.bytes = sum(map(len, map(_data, batch.records)))
        if batch.bytes < block * _LEAST_SHARE:
            for record in batch.records:
                record.data, record.meta = record.data.copy(), record.meta.copy()
        yield batch


def _classify_long_line(line: LongLine) -> Decoded:
    """Return the result for a line that is too long to be decoded."""
    why = f"{line.size / 1024 / 1024:,.0f} MB long"
    found = _classify(as_text(line.head), is_object=False, why=why)
    text = f"{found.text[:_SHOWN_OF_LONG]}… ({why})"
    if line.kind is None and isinstance(found, Noise):
        return Noise(text)
    kind = found.kind if isinstance(found, Unreadable) else line.kind or "RECORD"
    stream = found.stream if isinstance(found, Unreadable) and line.messages <= 1 else None
    return Unreadable(kind, text, stream, why)


def _classify(text: str, *, is_object: bool, why: str) -> Noise | Unreadable:
    """Classify a text. ``is_object``: the text is one valid object without a ``type``."""
    found = _DATA_KIND.search(text) or (None if is_object else _DATA_FIELD.search(text))
    if found is not None:
        kind = found[1].upper()
        return Unreadable(kind, text, _find_stream(kind, text), why)
    answer = _ANSWER_KIND.search(text) if text.lstrip().startswith("{") else None
    return Noise(text) if answer is None else Unreadable(answer[1].upper(), text, why=why)


def _find_stream(kind: str, text: str) -> str | None:
    """Return the stream of an unreadable message; None if it may be of several streams.

    The data of a record is not searched. A global state belongs to many streams.
    """
    if kind == "RECORD":
        data = _RECORD_DATA.search(text)
        names = _STREAM_NAME.findall(text, 0, data.start() if data else len(text))
    else:
        names = [] if "global" in text.lower() else _DESCRIBED_NAME.findall(text)
    messages = max(len(_DATA_KIND.findall(text)), len(_DATA_FIELD.findall(text)))
    if messages > 1 or len(names) != 1:
        return None
    try:
        return str(json.loads(names[0], strict=False))
    except ValueError:
        return None


def _skip_blanks(text: str, at: int) -> int:
    blanks = _BLANK.match(text, at)
    return at if blanks is None else blanks.end()


def _make_strict(token: re.Match[str]) -> str:
    """Return a token in a form that the strict parser accepts.

    Numbers that JSON does not have become text. A column of numbers stores null instead of such a
    text, and the row's changes note that.
    """
    text = token[0]
    if text[0] != '"':
        return f'"{text}"'
    text = _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return _LONE_SURROGATE.sub(_encode_surrogate, text)


def _encode_surrogate(escape: re.Match[str]) -> str:
    """Return the bytes of half a surrogate pair, which pass through like other invalid UTF-8."""
    if not escape[1]:
        return escape[0]
    half = chr(int(escape[1][2:], 16)).encode("utf-8", "surrogatepass")
    return half.decode("utf-8", _AS_BYTES)


def _make_readable(text: str) -> str:
    return as_text(text.encode("utf-8", _AS_BYTES))
