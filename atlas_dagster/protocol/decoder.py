"""Bytes in, messages out; no I/O.

Lines end with the byte ``\\n`` only: U+2028 and friends are legal inside JSON strings. Of a line
that is longer than :data:`LONGEST_LINE` only the beginning is kept. The fast path decodes the
envelope; a line it refuses goes to a tolerant one, and only if that fails too is the line noise or,
when it looks like a RECORD, a STATE or an answer, :class:`Unreadable`. Records come out in batches:
nothing that is done with each alone is cheap.
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
#: What is left of an envelope that lost its ``type``.
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

#: What msgspec raises for a line that is not a message as it should be.
_REFUSED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
#: Bytes of a line that is mended where need be: as Python objects it takes many times as many.
_LONGEST_MENDED = 16 * 1024 * 1024
#: Characters of a line that is too long.
_SHOWN_OF_LONG = 2_000
#: Records that are less of their block than this are copied out of it.
_LEAST_SHARE = 1 / 4

Decoded = Message | Records | Noise | Unreadable


#: Finds where a message ends; takes raw control characters inside strings, too. Numbers are not
#: looked at: Python refuses those of more than 4,300 digits.
_JSON = json.JSONDecoder(strict=False, parse_int=float)
#: Every string, and what JSON has no number for.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|NaN|-?Infinity', re.DOTALL)
_SURROGATE = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")
#: How bytes that are no UTF-8 pass through text unchanged.
_AS_BYTES = "surrogateescape"
_NUMBER = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*', re.DOTALL)
_NOTHING = Raw(b"null")
_CONTROL = re.compile(r"[\x00-\x1f]")
_LONE_SURROGATE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\[^u]"
    r"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


def as_text(raw: bytes) -> str:
    """``raw`` with U+FFFD for all that is no UTF-8: one for each half of a surrogate pair."""
    return _SURROGATE.sub(b"\xef\xbf\xbd", raw).decode("utf-8", "replace")


class MessageDecoder:
    """Decodes one stdout. Feed chunks cut anywhere, then :meth:`flush` at the end."""

    def __init__(self) -> None:
        decoder = msgspec.json.Decoder(Message)
        self._decode = decoder.decode
        self._decode_lines = decoder.decode_lines
        #: The beginning of a line, and its size.
        self._partial: list[bytes] = []
        self._size = 0
        #: The line that goes on, where it is too long to be kept.
        self._long: LongLine | None = None

    def feed(self, chunk: bytes) -> Iterator[Decoded]:
        """Yield every message completed by ``chunk``.

        Records of several streams may change places, those of one stream and all else never.
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
        """Yield what the last line, cut off by the end of output, amounts to."""
        if self._partial or self._long is not None:
            yield from self.feed(b"\n")

    def _hold(self, piece: bytes) -> None:
        """Keep the beginning of a line until its end comes."""
        if piece:
            self._partial.append(piece)
            self._size += len(piece)
        if self._size > LONGEST_LINE:
            self._long = LongLine(self._partial)
            self._partial, self._size = [], 0

    def _messages(self, block: bytes) -> Iterable[Decoded]:
        """What the lines of ``block`` hold; all decoded at once where each is one message."""
        try:
            messages = self._decode_lines(block)
        except _REFUSED:
            return self._line_by_line(block)
        # A message over several lines, or several on one, must not depend on where chunks are cut.
        whole = len(messages) == block.count(b"\n") + 1
        return messages if whole else self._line_by_line(block)

    def _line_by_line(self, block: bytes) -> Iterator[Decoded]:
        for line in block.split(b"\n"):
            try:
                yield self._decode(line)
            except _REFUSED:
                yield from self._tolerant(line)

    def _tolerant(self, line: bytes) -> Iterator[Decoded]:
        """What a refused line holds; several messages where threads of a connector collided."""
        if len(line) > _LONGEST_MENDED:
            yield _too_long(LongLine([line]))
            return
        text = line.removeprefix(_BOM).decode("utf-8", _AS_BYTES).rstrip(_BLANKS)
        start, at = 0, _after_blanks(text, 0)
        while at < len(text):
            value = None
            try:
                value, end = _JSON.raw_decode(text, at)
                message = self._exact_or_mended(text[at:end], value)
            except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors
                if isinstance(error, RecursionError) and (deep := self._deep_record(text[at:])):
                    yield deep
                    return
                whole = isinstance(value, dict) and end == len(text)
                # Indented as it came: so are stack traces.
                rest = _readable(text[start:].lstrip("\r\x00"))
                why = "nested too deeply" if isinstance(error, RecursionError) else ""
                yield _unreadable_or_noise(rest, whole=whole, why=why)
                return
            yield message
            start, at = end, _after_blanks(text, end)

    def _exact_or_mended(self, text: str, value: Any) -> Message:
        """The bytes of a record's data stay as they are, even those that are no text."""
        try:
            return self._decode(text.encode("utf-8", _AS_BYTES))
        except _REFUSED:
            if not isinstance(value, dict) or not isinstance(value.get("type"), str):
                raise
        mended = _TOKEN.sub(_strict, text)
        try:
            return self._with_type(mended.encode("utf-8", _AS_BYTES), value["type"])
        except UnicodeDecodeError:  # outside of the data there is text only
            return self._with_type(_readable(mended).encode(), value["type"])

    def _deep_record(self, text: str) -> Message | None:
        """The RECORD that is all of ``text``, though its data nests more deeply than we can follow.

        The data stays as it is; whether what is nested so deeply is JSON, nobody has looked.
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
    """``envelope`` without numbers that nothing can read; those in data and states stay."""
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
    """A number that a double can hold: the nearest."""
    text = token[0]
    if text[:1] == b'"' or abs(float(text)) <= sys.float_info.max:
        return text
    return b"%r" % math.copysign(sys.float_info.max, float(text))


def _make_text(state: State) -> None:
    """Put U+FFFD for all in ``state`` that is no UTF-8: it is stored and handed back as JSON."""
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
    """With their bytes; a few records do not keep a ``block`` of so many bytes in memory."""
    for batch in batches:
        batch.bytes = sum(map(len, map(_data, batch.records)))
        if batch.bytes < block * _LEAST_SHARE:
            for record in batch.records:
                record.data, record.meta = record.data.copy(), record.meta.copy()
        yield batch


def _too_long(line: LongLine) -> Decoded:
    """What a line amounts to that nobody can decode for its length."""
    why = f"{line.size / 1024 / 1024:,.0f} MB long"
    found = _unreadable_or_noise(as_text(line.head), whole=False, why=why)
    text = f"{found.text[:_SHOWN_OF_LONG]}… ({why})"
    if line.kind is None and isinstance(found, Noise):
        return Noise(text)
    kind = found.kind if isinstance(found, Unreadable) else line.kind or "RECORD"
    stream = found.stream if isinstance(found, Unreadable) and line.messages <= 1 else None
    return Unreadable(kind, text, stream, why)


def _unreadable_or_noise(text: str, *, whole: bool, why: str) -> Noise | Unreadable:
    """``whole``: it is one object in good order, so a missing ``type`` was never there."""
    found = _DATA_KIND.search(text) or (None if whole else _DATA_FIELD.search(text))
    if found is not None:
        kind = found[1].upper()
        return Unreadable(kind, text, _stream_name(kind, text), why)
    answer = _ANSWER_KIND.search(text) if text.lstrip().startswith("{") else None
    return Noise(text) if answer is None else Unreadable(answer[1].upper(), text, why=why)


def _stream_name(kind: str, text: str) -> str | None:
    """The one stream that was hit; None where it could be any.

    Text inside a record's data names no stream, and a global state or several messages hit many.
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
    """A token as the strict parser takes it; all else in a message stays as it was written.

    What JSON has no number for becomes text, which a column of numbers then refuses and notes in
    the row's changes.
    """
    text = token[0]
    if text[0] != '"':
        return f'"{text}"'
    text = _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return _LONE_SURROGATE.sub(_surrogate_bytes, text)


def _surrogate_bytes(escape: re.Match[str]) -> str:
    """Half of a surrogate pair is no text, but it has bytes, which go on like any that are none."""
    if not escape[1]:
        return escape[0]
    half = chr(int(escape[1][2:], 16)).encode("utf-8", "surrogatepass")
    return half.decode("utf-8", _AS_BYTES)


def _readable(text: str) -> str:
    return as_text(text.encode("utf-8", _AS_BYTES))
