import json
import time
import tracemalloc
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_dagster.protocol.decoder import Decoded, MessageDecoder
from atlas_dagster.protocol.messages import Message, Noise, Records, Unreadable
from atlas_dagster.protocol.state import ConnectionState


def decode(*chunks: bytes) -> list[Decoded]:
    decoder = MessageDecoder()
    return [*(m for chunk in chunks for m in decoder.feed(chunk)), *decoder.flush()]


def rows(decoded: Iterable[Decoded]) -> list[Any]:
    """The data of all records."""
    return [
        json.loads(bytes(each.data))
        for batch in decoded
        if isinstance(batch, Records)
        for each in batch.records
    ]


def record(data: bytes = b"{}") -> bytes:
    return b'{"type":"RECORD","record":{"stream":"s","data":' + data + b',"emitted_at":1}}'


# Cut anywhere

TEXT = st.text('abcé\u2028"\\', max_size=8)
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
JSON = st.recursive(
    VALUES.filter(lambda value: value not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
DATA = st.dictionaries(TEXT, JSON, max_size=4)
#: Lines that are neither messages nor look like one.
GARBAGE = (
    st.binary(max_size=60)
    .map(lambda line: line.replace(b"\n", b""))
    .filter(lambda line: b"RECORD" not in line and b"STATE" not in line)
)


def _encode(data: Any) -> bytes:
    return record(json.dumps(data, ensure_ascii=False).encode())


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(DATA, max_size=6), st.lists(st.integers(0, 2000), max_size=12), st.booleans())
def test_chunks_cut_anywhere(wanted: list[Any], cuts: list[int], ends: bool) -> None:
    stream = b"\n".join(map(_encode, wanted)) + (b"\n" if ends else b"")
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    chunks = [stream[a:b] for a, b in pairwise(places)]
    assert rows(decode(*chunks)) == wanted


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(DATA, st.lists(GARBAGE, max_size=3)), max_size=5))
def test_garbage_never_costs_a_message(pieces: list[tuple[Any, list[bytes]]]) -> None:
    lines = [line for data, garbage in pieces for line in (*garbage, _encode(data))]
    decoded = decode(b"\n".join(lines))
    assert rows(decoded) == [data for data, _ in pieces]
    assert not any(isinstance(m, Unreadable) for m in decoded)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_nothing_crashes(noise: bytes) -> None:
    decode(noise, b'{"type":"RECORD"', noise)


def test_byte_by_byte() -> None:
    stream = record(b'{"a":1}') + b"\r\n\n" + record(b'{"a":2}')
    assert rows(decode(*(bytes([byte]) for byte in stream))) == [{"a": 1}, {"a": 2}]


def test_records_come_in_batches_that_no_other_message_is_passed_by() -> None:
    def of(stream: str, number: int, namespace: str = "null") -> bytes:
        where = f'"stream":"{stream}","namespace":{namespace}'
        return f'{{"type":"RECORD","record":{{{where},"data":{number},"emitted_at":1}}}}'.encode()

    log = b'{"type":"LOG","log":{"level":"INFO","message":""}}'
    lines = [of("a", 1), of("b", 2), of("a", 3), of("a", 4, '"n"'), of("b", 5)]
    decoded = decode(b"\n".join([*lines, log, of("b", 6), b"noise", of("b", 7), of("a", 8)]))
    assert [
        (batch.stream, batch.namespace, rows([batch]))
        if isinstance(batch, Records)
        else type(batch)
        for batch in decoded
    ] == [
        ("a", None, [1, 3]),
        ("b", None, [2, 5]),
        ("a", "n", [4]),
        Message,
        ("b", None, [6]),
        Noise,
        ("b", None, [7]),
        ("a", None, [8]),
    ]


# Nasty lines that can be read

BIG = b"9" * 30


@pytest.mark.parametrize(
    ("line", "data"),
    [
        pytest.param(b"\xef\xbb\xbf" + record(b'{"a":1}'), {"a": 1}, id="BOM"),
        pytest.param(record(b'{"a":1}') + b"\r", {"a": 1}, id="CRLF"),
        pytest.param(b" \t" + record(b'{"a":1}') + b"\x00\x00", {"a": 1}, id="NUL"),
        pytest.param(record('{"a":"\u2028\u0085\x0b"}'.encode()), None, id="line separators"),
        pytest.param(record(b'{"a":NaN}'), {"a": "NaN"}, id="NaN"),
        pytest.param(record(b'{"a":[-Infinity]}'), {"a": ["-Infinity"]}, id="infinity"),
        pytest.param(record(b'{"a":' + BIG + b"}"), {"a": int(BIG)}, id="30 digits"),
        pytest.param(record(b'{"a":' + BIG + b',"b":NaN}'), {"a": int(BIG), "b": "NaN"}, id="both"),
        pytest.param(record(b'{"a":1e400,"b":NaN}'), {"a": float("inf"), "b": "NaN"}, id="1e400"),
        pytest.param(record(b'{"a":"x\x01y"}'), {"a": "x\x01y"}, id="control character"),
        pytest.param(record(b'{"a":1,"a":2}'), {"a": 2}, id="key twice"),
        pytest.param(record(b"{}"), {}, id="no fields"),
        pytest.param(record().replace(b"RECORD", b"record"), {}, id="lower case"),
        pytest.param(record().replace(b'"stream"', b'"new":[{}],"stream"'), {}, id="unknown field"),
        pytest.param(record().replace(b":1}", b":1.5}"), {}, id="fraction of a millisecond"),
    ],
)  # fmt: skip
def test_lines_that_can_be_read(line: bytes, data: Any) -> None:
    data = {"a": "\u2028\u0085\x0b"} if data is None else data
    assert rows(decode(line + b"\n")) == [data]
    assert rows(decode(line + b"\n" + record(b'{"next":1}'))) == [data, {"next": 1}]


MANY = b"1" * 400
TOO_MANY = b"1" * 5000
#: A time, a count or an estimate that none is.
ABSURD = [
    *(
        b"1e400",
        b"-1e400",
        b"NaN",
        b"Infinity",
        b"-5",
        b"1e308",
        b'"soon"',
        b"true",
        b"{}",
        b"null",
    ),
    *(MANY, b"-" + MANY, TOO_MANY, b"1e" + TOO_MANY),
]
absurd = pytest.mark.parametrize("number", ABSURD, ids=lambda number: number[:8].decode())


@absurd
def test_a_record_counts_whatever_its_time(number: bytes) -> None:
    data = b'{"a":%s,"b":1e400}' % TOO_MANY
    (batch,) = decode(record(data).replace(b":1}", b":%s}" % number))
    assert isinstance(batch, Records)
    (found,) = batch.records
    assert bytes(found.data) == data
    assert found.emitted_at in (None, -5, 1e308, int(MANY), -int(MANY))


@absurd
def test_a_state_counts_whatever_its_count(number: bytes) -> None:
    state = b'{"stream_descriptor":{"name":"s"},"stream_state":{"a":%s}}' % TOO_MANY
    stats = b'{"recordCount":%s}' % number
    line = b'{"type":"STATE","state":{"type":"STREAM","stream":%s,"sourceStats":%s}}'
    (message,) = decode(line % (state, stats))
    assert isinstance(message, Message)
    assert message.state is not None
    assert message.state.stream is not None
    assert bytes(message.state.stream.stream_state) == b'{"a":%s}' % TOO_MANY
    assert message.state.sourceStats is not None
    assert message.state.sourceStats.count is None


@absurd
def test_a_status_counts_whatever_its_reason(number: bytes) -> None:
    reason = b'{"type":"RATE_LIMITED","rate_limited":{"quota_reset":%s}}' % number
    status = b'{"stream_descriptor":{"name":"s"},"status":"COMPLETE","reasons":[%s]}' % reason
    line = b'{"type":"TRACE","trace":{"type":"STREAM_STATUS","emitted_at":%s,"stream_status":%s}}'
    (message,) = decode(line % (number, status))
    assert isinstance(message, Message)
    assert message.trace is not None
    assert message.trace.stream_status is not None
    (found,) = message.trace.stream_status.reasons or ()
    assert found.rate_limited is not None
    assert found.rate_limited.quota_reset is None


@absurd
def test_an_estimate_may_be_absurd(number: bytes) -> None:
    estimate = b'{"type":"SYNC","row_estimate":%s,"byte_estimate":%s}' % (number, number)
    line = b'{"type":"TRACE","trace":{"type":"ESTIMATE","emitted_at":%s,"estimate":%s}}'
    (message,) = decode(line % (number, estimate))
    assert isinstance(message, Message)
    assert message.trace is not None
    assert message.trace.estimate is not None
    assert message.trace.estimate.rows is None


@absurd
def test_a_config_and_a_spec_may_have_any_number(number: bytes) -> None:
    config = b'{"connectorConfig":{"config":{"a":%s,"b":"%s"}}' % (number, MANY)
    control = b'{"type":"CONNECTOR_CONFIG","emitted_at":%s,%s}' % (number, config[1:])
    spec = b'{"connectionSpecification":{"maximum":%s}}' % number
    messages = decode(
        b'{"type":"CONTROL","control":%s}\n{"type":"SPEC","spec":%s}\n' % (control, spec)
    )
    first, second = messages
    assert isinstance(first, Message)
    assert isinstance(second, Message)
    assert first.control is not None
    assert first.control.connectorConfig is not None
    assert first.control.connectorConfig.config["b"] == MANY.decode()
    assert second.spec is not None
    for value in (first.control.connectorConfig.config["a"], second.spec.connectionSpecification):
        json.dumps(value, allow_nan=False)


def test_a_lone_surrogate() -> None:
    (message,) = decode(record(b'{"a":"\\ud800\xff"}'))
    assert isinstance(message, Records)
    # Its own bytes, and those beside it, so that nothing in a record is changed unseen.
    assert bytes(message.records[0].data) == b'{"a":"\xed\xa0\x80\xff"}'
    (message,) = decode(b'{"type":"LOG","log":{"level":"INFO","message":"a\\ud800b"}}')
    assert isinstance(message, Message)
    assert message.log is not None
    assert message.log.message == "a\ufffdb"


@pytest.mark.parametrize("time", [b"null", b'"2024-01-01"', b"1.5"])
def test_an_error_counts_whatever_its_time(time: bytes) -> None:
    trace = b'{"type":"ERROR","emitted_at":' + time + b',"error":{"message":"x"}}'
    (message,) = decode(b'{"type":"TRACE","trace":' + trace + b"}")
    assert isinstance(message, Message)
    assert message.trace is not None
    assert message.trace.error is not None


def test_invalid_utf8() -> None:
    (message,) = decode(b'{"type":"LOG","log":{"level":"WARNING","message":"caf\xe9"}}')
    assert isinstance(message, Message)
    assert message.log is not None
    assert (message.log.level, message.log.message) == ("WARNING", "caf\ufffd")


@pytest.mark.parametrize(
    ("blob", "kept"),
    [
        (b'{"at":"caf\xe9"}', '{"at":"caf\ufffd"}'),
        (b'{"at":"\\ud800"}', '{"at":"\ufffd"}'),
        (b'{"at":"\\ud83d\\ude00"}', '{"at":"\\ud83d\\ude00"}'),
    ],
)
def test_a_state_is_text(blob: bytes, kept: str) -> None:
    """It is stored as JSON, and a connector is given JSON."""
    stream = b'{"stream_descriptor":{"name":"s"},"stream_state":%s}' % blob
    for content in (
        b'"type":"STREAM","stream":%s' % stream,
        b'"type":"GLOBAL","global":{"shared_state":%s,"stream_states":[%s]}' % (blob, stream),
        b'"type":"LEGACY","data":%s' % blob,
    ):
        (message,) = decode(b'{"type":"STATE","state":{%s}}' % content)
        assert isinstance(message, Message)
        assert message.state is not None
        text = ConnectionState().apply(message.state).to_file().decode()
        assert text.count(kept) == content.count(blob)


def test_several_messages_on_one_line() -> None:
    line = record(b'{"a":1}') + record(b'{"a":2}') + b" " + record(b'{"a":3}') + b"\r"
    assert rows(decode(line)) == [{"a": 1}, {"a": 2}, {"a": 3}]
    first, rest = decode(record(b'{"a":1}') + record(b'{"a":2}')[:40])
    assert rows([first]) == [{"a": 1}]
    assert isinstance(rest, Unreadable)


def test_many_messages_on_one_line_take_time_in_proportion() -> None:
    def seconds(count: int) -> float:
        start = time.process_time()
        assert len(rows(decode(record(b'{"a":"%s"}' % (b"x" * 500)) * count))) == count
        return time.process_time() - start

    seconds(100)
    assert seconds(8000) < 8 * 4 * seconds(1000)


def test_a_line_of_five_megabytes() -> None:
    data = b'{"a":"' + b"x" * 5_000_000 + b'"}'
    stream = record(data) + b"\n" + record(b'{"a":1}')
    chunks = [stream[at : at + 65536] for at in range(0, len(stream), 65536)]
    first, second = rows(decode(*chunks))
    assert (len(first["a"]), second) == (5_000_000, {"a": 1})


def test_what_is_raw_stays_as_written() -> None:
    blob = b'{"z" : 1.10, "a": [1e400, 12345678901234567890], "n":null}'
    line = (
        b'{"type":"STATE","state":{"type":"STREAM","stream":{"stream_descriptor":{"name":"s"},'
        b'"stream_state":' + blob + b"}}}"
    )
    for printed in (line, b"\xef\xbb\xbf" + line, line + line):
        message = decode(printed)[0]
        assert isinstance(message, Message)
        assert message.state is not None
        assert message.state.stream is not None
        assert bytes(message.state.stream.stream_state) == blob


@pytest.mark.slow
@pytest.mark.parametrize("levels", [500, 990, 1000, 1010, 100_000])
def test_data_may_nest_as_deeply_as_it_likes(levels: int) -> None:
    data = b'{"a" : ' + b"[" * levels + b"]" * levels + b',"b":{"c":"]}"}}'
    line = record(data).replace(b"RECORD", b"Record")
    for printed in (line, line + b"\n" + record()):
        batch = decode(printed)[0]
        assert isinstance(batch, Records)
        assert batch.stream == "s"
        assert bytes(batch.records[0].data) == data


# Lines that are too long


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of more than 1,000 bytes are too long."""
    monkeypatch.setattr("atlas_dagster.protocol.decoder.LONGEST_LINE", 1000)


def pieces(line: bytes, size: int) -> list[bytes]:
    return [line[at : at + size] for at in range(0, len(line), size)]


LONG = record(b'{"v":"' + b"x" * 3000 + b'"}')


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 7, 100, 999])
@pytest.mark.parametrize(
    ("line", "kind", "stream"),
    [
        (LONG, "RECORD", "s"),
        (
            b'{"record":' + LONG.partition(b'"record":')[2][:-1] + b',"type":"RECORD"}',
            "RECORD",
            "s",
        ),
        (LONG + record(), "RECORD", None),
        (b"x" * 3000 + record(), "RECORD", "s"),
        (b"x" * 70_000 + record(), "RECORD", None),
        (b'{"type":"STATE","state":{"data":"' + b"x" * 3000 + b'"}}', "STATE", None),
        (b'{"type":"CATALOG","catalog":{"streams":["' + b"x" * 3000 + b'"]}}', "CATALOG", None),
        (b"x" * 3000, None, None),
    ],
)
@pytest.mark.usefixtures("short")
def test_a_line_that_is_too_long(
    line: bytes, kind: str | None, stream: str | None, size: int
) -> None:
    before, after = record(b'{"a":1}') + b"\n", record(b'{"a":2}')
    found = decode(*pieces(before + line + b"\n" + after, size))
    assert rows(found) == [{"a": 1}, {"a": 2}]
    (long,) = [each for each in found if not isinstance(each, Records)]
    if kind is None:
        assert isinstance(long, Noise)
    else:
        assert isinstance(long, Unreadable)
        assert (long.kind, long.stream, long.why) == (kind, stream, "0 MB long")
    assert isinstance(long, Noise | Unreadable)
    assert len(long.text) < 2_100
    (at_the_end,) = decode(*pieces(line, size))
    assert at_the_end == long


def test_a_line_without_end_takes_no_memory() -> None:
    decoder = MessageDecoder()
    tracemalloc.start()
    try:
        for _ in range(300):
            assert list(decoder.feed(bytes(1024 * 1024))) == []
        (noise,) = decoder.flush()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(noise, Noise)
    assert noise.text.endswith("… (300 MB long)")
    assert peak < 70 * 1024 * 1024


def test_a_large_line_is_not_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python objects it would take many times as many bytes."""
    monkeypatch.setattr("atlas_dagster.protocol.decoder._LONGEST_REPAIRED", 1000)
    (found,) = decode(record(b'{"a":NaN,"b":"' + b"x" * 1000 + b'"}'))
    assert isinstance(found, Unreadable)
    assert (found.kind, found.stream) == ("RECORD", "s")
    assert len(rows(decode(LONG))) == 1


# Lines that cannot be read

DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "kind", "stream"),
    [
        pytest.param(record(b'{"a":1}')[:-4], "RECORD", "s", id="half a line"),
        pytest.param(b'{"type": "STATE", "state": {"type": "GLO', "STATE", None, id="half a state"),
        pytest.param(b"INFO " + record(), "RECORD", "s", id="text before it"),
        pytest.param(b'{"record":{"stream":"s","data":{"a', "RECORD", "s", id="before its type"),
        pytest.param(b'{"a":1}{"record":{"stream":"s","da', "RECORD", "s", id="after an object"),
        pytest.param(b'{"state":{"type":"STREAM","str', "STATE", None, id="state before its type"),
        pytest.param(record()[:-4].lower(), "RECORD", "s", id="half in lower case"),
        pytest.param(
            b'{"type":"RECORD","record":{"data":{"name":"orders","stream":"orders"},"stre',
            "RECORD",
            None,
            id="data first",
        ),
        pytest.param(record()[:-4] + record()[:-4], "RECORD", None, id="two halves"),
        pytest.param(
            b'{"type":"RECORD","record":{"stream":"caf\\u00e9","da', "RECORD", "café", id="escapes"
        ),
        pytest.param(
            b'{"type":"STATE","state":{"type":"STREAM","stream":{"stream_descriptor":'
            b'{"namespace":"n","name":"s"},"stream_state":{"name":"orders"',
            "STATE",
            "s",
            id="state of a stream",
        ),
        pytest.param(
            b'{"type":"STATE","state":{"type":"GLOBAL","global":{"stream_states":['
            b'{"stream_descriptor":{"name":"s"}',
            "STATE",
            None,
            id="state of all",
        ),
        pytest.param(record().replace(b'"s"', b"5"), "RECORD", None, id="wrong type"),
        pytest.param(b'{"type":"RECORD","record":{"data":{}}}', "RECORD", None, id="no stream"),
        pytest.param(record(b'{"a":' + DEEP[:-1] + b"}"), "RECORD", "s", id="deep and in disorder"),
        pytest.param(record(b'{"a":' + DEEP + b',"b":tru}'), "RECORD", "s", id="deep and no JSON"),
        pytest.param(
            b'{"type":"STATE","state":{"type":"STREAM","stream":{"stream_descriptor":'
            b'{"name":"s"},"stream_state":' + DEEP + b"}}}",
            "STATE",
            "s",
            id="deep state",
        ),
    ],
)
def test_data_that_cannot_be_read_is_told(line: bytes, kind: str, stream: str | None) -> None:
    (found,) = decode(line)
    assert isinstance(found, Unreadable)
    assert (found.kind, found.stream) == (kind, stream)
    after = decode(line + b"\n" + record(b'{"a":1}'))
    assert rows(after) == [{"a": 1}]


@pytest.mark.parametrize(
    "line",
    [
        b"Starting",
        b"123",
        b"[1, 2]",
        b'"text"',
        b'{"level": "INFO"}',
        b'{"state": {"code": "NY"}}',
        b'"state": {',
        b'{"type": 5}',
        b"{",
        b"\xff",
    ],
)
def test_noise(line: bytes) -> None:
    assert decode(line) == [Noise(line.decode("utf-8", "replace"))]


@pytest.mark.parametrize("line", [b"", b"\r", b"  \t", b"\x00", b"\xef\xbb\xbf"])
def test_blank_lines_say_nothing(line: bytes) -> None:
    assert decode(line + b"\n") == []
