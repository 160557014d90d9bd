"""Decoder from bytes to messages, without I/O.

Only the byte ``\\n`` ends a line, because U+2028 and others are legal inside JSON strings. The
decoder keeps only the beginning of a line that is longer than :data:`LONGEST_LINE`. The fast path
decodes the envelope, and a tolerant path takes the lines that it refuses. If that fails, too, the
line is :class:`Unreadable` if it looks like a RECORD, a STATE or an answer, else noise. Records
come in batches, because work for each single record is expensive.
"""

import json
import math
import operator
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import Raw

from atlas_dagster.protocol.long_lines import LONGEST_LINE, LongLine
from atlas_dagster.protocol.messages import Message, Noise, Records, State, Unreadable
from atlas_dagster.protocol.nesting import DEEPEST, shallow_fields

_BOM = b"\xef\xbb\xbf"
_BLANKS = " \t\r\x00"
_BLANK = re.compile(f"[{_BLANKS}]*")
_DATA_KIND = re.compile(r'"type"\s*:\s*"(RECORD|STATE)"', re.IGNORECASE)
_ANSWER_KIND = re.compile(r'"type"\s*:\s*"(SPEC|CATALOG|CONNECTION_STATUS|CONTROL)"', re.IGNORECASE)
#: A field of an envelope that lost its ``type``.
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
#: Bytes of the longest line that is repaired: Python objects need many times its memory.
_LONGEST_REPAIRED = 16 * 1024 * 1024
#: Characters that are shown of a line that is too long.
_SHOWN_OF_LONG = 2_000
#: Records with a smaller share of their block are copied out of it.
_LEAST_SHARE = 1 / 4

Decoded = Message | Records | Noise | Unreadable


#: Finds the end of a message, and accepts raw control characters inside strings. It does not parse
#: integers, because Python refuses those with more than 4,300 digits.
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

        Records of different streams may change places. The order of one stream's records, and of
        all other messages, stays.
        """
        if self._long is not None:
            piece, end, chunk = chunk.partition(b"\n")
            self._long.add(piece)
            if not end:
                return
            yield _too_long(self._long)
            self._long = None
        if b"\n" not in chunk:
            self._hold(chunk)
            return
        block, _, tail = chunk.rpartition(b"\n")
        if self._partial:
            block = b"".join([*self._partial, block])
        self._partial, self._size = [], 0
        self._hold(tail)
        batches: dict[tuple[str, str | None], Records] = {}
        stream: str | None = None
        namespace: str | None = None
        for message in self._messages(block):
            record = message.record if type(message) is Message else None
            if record is None:
                yield from _counted(batches.values(), len(block))
                batches, stream = {}, None
                if type(message) is Message and message.state is not None:
                    _make_text(message.state)
                yield message
                continue
            if record.stream != stream or record.namespace != namespace:
                stream, namespace = record.stream, record.namespace
                key = (stream, namespace)
                append = batches.setdefault(key, Records(stream, namespace)).records.append
            append(record)
        yield from _counted(batches.values(), len(block))

    def flush(self) -> Iterator[Decoded]:
        """Yield the messages of the last line, which has no line end."""
        if self._partial or self._long is not None:
            yield from self.feed(b"\n")

    def _hold(self, piece: bytes) -> None:
        """Keep the beginning of a line until its end."""
        if piece:
            self._partial.append(piece)
            self._size += len(piece)
        if self._size > LONGEST_LINE:
            self._long = LongLine(self._partial)
            self._partial, self._size = [], 0

    def _messages(self, block: bytes) -> Iterable[Decoded]:
        """Return the messages of ``block``, decoded at once if each line is one message."""
        try:
            messages = self._decode_lines(block)
        except _REFUSED:
            return self._line_by_line(block)
        # With several lines per message, or several messages per line, the result must not
        # depend on the cuts of chunks.
        whole = len(messages) == block.count(b"\n") + 1
        return messages if whole else self._line_by_line(block)

    def _line_by_line(self, block: bytes) -> Iterator[Decoded]:
        for line in block.split(b"\n"):
            try:
                yield self._decode(line)
            except _REFUSED:
                yield from self._tolerant(line)

    def _tolerant(self, line: bytes) -> Iterator[Decoded]:
        """Yield the messages of a refused line. Threads of a connector may write several on one."""
        if len(line) > _LONGEST_REPAIRED:
            yield _too_long(LongLine([line]))
            return
        text = line.removeprefix(_BOM).decode("utf-8", _AS_BYTES).rstrip(_BLANKS)
        start, at = 0, _after_blanks(text, 0)
        while at < len(text):
            value = None
            try:
                value, end = _JSON.raw_decode(text, at)
                message = self._exact_or_repaired(text[at:end], value)
            except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors
                if isinstance(error, RecursionError) and (deep := self._deep_record(text[at:])):
                    yield deep
                    return
                whole = isinstance(value, dict) and end == len(text)
                # Keep the indentation, as in stack traces.
                rest = _readable(text[start:].lstrip("\r\x00"))
                why = "nested too deeply" if isinstance(error, RecursionError) else ""
                yield _unreadable_or_noise(rest, whole=whole, why=why)
                return
            yield message
            start, at = end, _after_blanks(text, end)

    def _exact_or_repaired(self, text: str, value: Any) -> Message:
        """Decode a message, repaired if necessary. Bytes of a record's data stay unchanged."""
        try:
            return self._decode(text.encode("utf-8", _AS_BYTES))
        except _REFUSED:
            if not isinstance(value, dict) or not isinstance(value.get("type"), str):
                raise
        repaired = _TOKEN.sub(_strict, text)
        try:
            return self._with_type(repaired.encode("utf-8", _AS_BYTES), value["type"])
        except UnicodeDecodeError:  # invalid UTF-8 outside the data
            return self._with_type(_readable(repaired).encode(), value["type"])

    def _deep_record(self, text: str) -> Message | None:
        """Return the RECORD in ``text``, whose data is nested too deeply for the parser, or None.

        The data stays unchanged. Its deeply nested parts are not checked to be JSON.
        """
        try:
            envelope = _shallow(text.encode("utf-8", _AS_BYTES))
            record = _shallow(envelope["record"])
            data = record["data"]
            for value, levels in shallow_fields(data).values():
                if levels <= DEEPEST:
                    _decode_raw(value)
            plain = envelope | {"record": Raw(_encode(record | {"data": None}))}
            found = self._with_type(_encode(plain), _decode_string(envelope["type"]))
        except (ValueError, KeyError, RecursionError):
            return None
        if found.record is not None:
            found.record.data = data
        return found

    def _with_type(self, message: bytes, kind: str) -> Message:
        kind = kind.upper()
        envelope = _decode_fields(message)
        try:
            return self._decode(_encode(envelope | {"type": kind}))
        except msgspec.MsgspecError:
            return self._decode(_encode(_with_tame_numbers(kind, envelope) | {"type": kind}))


def _shallow(text: bytes | Raw) -> dict[str, Raw]:
    return {field: value for field, (value, _) in shallow_fields(text).items()}


def _with_tame_numbers(kind: str, envelope: dict[str, Raw]) -> dict[str, Any]:
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
        return envelope | {field: Raw(_NUMBER.sub(_finite, bytes(content)))}
    return envelope


def _is_number(text: Raw) -> bool:
    try:
        _decode_number(text)
    except msgspec.MsgspecError:
        return False
    return True


def _finite(token: re.Match[bytes]) -> bytes:
    """Return the nearest number that fits into a double."""
    text = token[0]
    if text[:1] == b'"' or abs(float(text)) <= sys.float_info.max:
        return text
    return b"%r" % math.copysign(sys.float_info.max, float(text))


def _make_text(state: State) -> None:
    """Replace invalid UTF-8 in ``state`` by U+FFFD, because it is stored and sent back as JSON."""
    each = [*([state.stream] if state.stream else ())]
    if state.global_ is not None:
        each += state.global_.stream_states
        state.global_.shared_state = _utf8(state.global_.shared_state)
    for stream in each:
        stream.stream_state = _utf8(stream.stream_state)
    state.data = _utf8(state.data)


def _utf8(blob: Raw) -> Raw:
    try:
        str(blob, "utf-8")
    except UnicodeDecodeError:
        return Raw(as_text(bytes(blob)).encode())
    return blob


def _counted(batches: Iterable[Records], block: int) -> Iterator[Records]:
    """Count the bytes of ``batches``. Copy few records out of a ``block`` of that many bytes."""
    for batch in batches:
        batch.bytes = sum(map(len, map(_data, batch.records)))
        if batch.bytes < block * _LEAST_SHARE:
            for record in batch.records:
                record.data, record.meta = record.data.copy(), record.meta.copy()
        yield batch


def _too_long(line: LongLine) -> Decoded:
    """Return the result for a line that is too long to be decoded."""
    why = f"{line.size / 1024 / 1024:,.0f} MB long"
    found = _unreadable_or_noise(as_text(line.head), whole=False, why=why)
    text = f"{found.text[:_SHOWN_OF_LONG]}… ({why})"
    if line.kind is None and isinstance(found, Noise):
        return Noise(text)
    kind = found.kind if isinstance(found, Unreadable) else line.kind or "RECORD"
    stream = found.stream if isinstance(found, Unreadable) and line.messages <= 1 else None
    return Unreadable(kind, text, stream, why)


def _unreadable_or_noise(text: str, *, whole: bool, why: str) -> Noise | Unreadable:
    """Classify a text. ``whole``: it is one valid object, so it never had a ``type``."""
    found = _DATA_KIND.search(text) or (None if whole else _DATA_FIELD.search(text))
    if found is not None:
        kind = found[1].upper()
        return Unreadable(kind, text, _stream_name(kind, text), why)
    answer = _ANSWER_KIND.search(text) if text.lstrip().startswith("{") else None
    return Noise(text) if answer is None else Unreadable(answer[1].upper(), text, why=why)


def _stream_name(kind: str, text: str) -> str | None:
    """Return the stream of an unreadable message; None if it is not clear.

    Text in a record's data does not count. A global state or several messages concern many streams.
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


def _after_blanks(text: str, at: int) -> int:
    blanks = _BLANK.match(text, at)
    return at if blanks is None else blanks.end()


def _strict(token: re.Match[str]) -> str:
    """Return a token in a form that the strict parser accepts.

    Numbers that JSON does not have become text. A column of numbers then refuses it, and the row's
    changes note that.
    """
    text = token[0]
    if text[0] != '"':
        return f'"{text}"'
    text = _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return _LONE_SURROGATE.sub(_surrogate_bytes, text)


def _surrogate_bytes(escape: re.Match[str]) -> str:
    """Return the bytes of half a surrogate pair, which pass through like other invalid UTF-8."""
    if not escape[1]:
        return escape[0]
    half = chr(int(escape[1][2:], 16)).encode("utf-8", "surrogatepass")
    return half.decode("utf-8", _AS_BYTES)


def _readable(text: str) -> str:
    return as_text(text.encode("utf-8", _AS_BYTES))
