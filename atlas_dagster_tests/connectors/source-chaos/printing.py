"""Scenarios of what is printed: lines, values, words, streams."""

import sys
from typing import Any

from emitters import (
    EMITTED_AT,
    MEGABYTE,
    complete,
    line,
    log,
    raw_record,
    record,
    say,
    scenario,
    state,
    status,
    trace,
    typed_state,
)

# Lines


@scenario("read")
def text_between_messages() -> None:
    """Prints plain text on lines of its own and behind messages."""
    say(b"Picked up JAVA_OPTS\n\n", record(1).rstrip(), b" sent one\n")
    say(b"[12:00] {still} alive\n", state(1, count=1), complete(), b"bye\n")


@scenario("read")
def text_on_the_line_of_a_record() -> None:
    """Prints a log line without its end, then a record."""
    say(record(1), state(1), b"INFO reading", record(2), state(2), complete())


@scenario("read")
def json_that_is_no_message() -> None:
    """Prints JSON of other kinds."""
    say(b'{"level": "INFO", "msg": "hello"}\n[1, 2]\n123\n"text"\nnull\n{}\n{"type": null}\n')
    say(record(1), state(1), complete())


@scenario("read")
def half_a_record_at_the_end() -> None:
    """Ends with exit code 0 in the middle of a record."""
    say(record(1), state(1), record(2)[:-20])


@scenario("read")
def no_newline_at_the_end() -> None:
    """Leaves out the newline after its last message."""
    say(status("STARTED"), record(1), state(1), complete().rstrip())


@scenario("read")
def two_messages_on_one_line() -> None:
    """Forgets the newline between messages, as colliding threads do."""
    say(record(1).rstrip(), record(2).rstrip(), b" ", state(2, count=2), complete())


@scenario("read")
def long_line(megabytes: int = 30) -> None:
    """Sends one record of many megabytes."""
    say(record(1, "x" * (megabytes * MEGABYTE)), state(1), complete())


@scenario("read")
def carriage_returns() -> None:
    """Ends its lines as Windows does."""
    say(*(each.replace(b"\n", b"\r\n") for each in (record(1), b"text\n", state(1), complete())))


@scenario("read")
def byte_order_mark() -> None:
    """Begins with a byte order mark."""
    say(b"\xef\xbb\xbf", record(1), state(1), complete())


@scenario("read")
def nul_bytes() -> None:
    """Puts NUL bytes around a line and a NUL character into a string."""
    say(b"\0\0", record(1, "x\0y").rstrip(), b"\0\n\0\n", state(1), complete())


# Values


@scenario("read")
def invalid_utf8() -> None:
    """Prints Latin-1 as if it were UTF-8."""
    say(record(1, "caf?").replace(b"?", b"\xe9"), log("na?ve").replace(b"?", b"\xef"))
    say(state(1), complete())


@scenario("read")
def unicode_line_separators() -> None:
    """Has U+2028 and U+0085 unescaped inside a string."""
    say(raw_record('{"id":1,"v":"x\u2028y\u0085z"}'), state(1), complete())


@scenario("read")
def nan_and_infinity() -> None:
    """Sends numbers that JSON does not have."""
    say(raw_record('{"id":1,"v":null,"n":NaN,"o":{"x":-Infinity}}'), state(1), complete())


@scenario("read")
def integer_of_30_digits() -> None:
    """Sends an integer that no 64 bits hold."""
    big = "9" * 30
    say(raw_record(f'{{"id":{big},"n":{big},"o":{{"x":{big}}}}}'), state(1), complete())


@scenario("read")
def deep_nesting(depth: int = 2000) -> None:
    """Nests a value deeper than parsers go."""
    say(record(1), state(1))
    say(raw_record(f'{{"id":2,"o":{{"x":{"[" * depth}{"]" * depth}}}}}'), state(2), complete())


@scenario("read")
def lone_surrogate() -> None:
    """Sends half of a surrogate pair."""
    say(record(1, "x\ud800y"), log("x\ud800y"), state(1), complete())


@scenario("read")
def duplicate_keys() -> None:
    """Repeats a key within an object."""
    say(raw_record('{"id":1,"v":"first","v":"last"}'), state(1), complete())


@scenario("read")
def empty_data() -> None:
    """Sends a record without any field."""
    say(record(1, data={}), state(1, count=1), complete())


@scenario("read")
def data_that_is_no_object() -> None:
    """Sends a list where the row should be."""
    say(record(1, data=[1, 2]), state(1, count=1), complete())


@scenario("read")
def emitted_at_in_seconds() -> None:
    """Counts the time of extraction in seconds, not milliseconds."""
    say(record(1, emitted_at=EMITTED_AT // 1000), state(1), complete())


@scenario("read")
def emitted_at_fractional() -> None:
    """Sends fractions of a millisecond."""
    say(record(1, emitted_at=EMITTED_AT + 0.25), state(1), complete())


@scenario("read")
def out_of_order_cursors() -> None:
    """Sends the versions of a row in any order; ``n`` is the cursor."""
    rows = ((1, 2, "old"), (1, 3, "new"), (1, 1, "oldest"), (2, 5, "tie"), (2, 5, "later"))
    say(*(record(id, data={"id": id, "n": n, "v": v}) for id, n, v in rows))
    say(state(5, count=5), complete())


@scenario("read")
def file_records() -> None:
    """Refers to files, in the old way and the new."""
    told = {"file_url": "/staging/x.csv", "bytes": 5, "file_relative_path": "x.csv"}
    new = {"staging_file_url": "/staging/y.csv", "file_size_bytes": 5}
    say(record(1, file=told), record(2, file_reference=new), state(2, count=2), complete())


# Words the protocol does not know


@scenario("read")
def unknown_message_types() -> None:
    """Prints messages of a later protocol."""
    say(line("HEARTBEAT", heartbeat={"at": 1}), record(1), line("DESTINATION_CATALOG"), state(1))
    say(trace("WEATHER", weather={"rain": True}), line("CONTROL", control={"type": "REBOOT"}))
    say(complete())


@scenario("read")
def unknown_fields() -> None:
    """Adds fields of its own to everything."""
    say(record(1, partition_id="p", weight=[1]), typed_state("STREAM", stream=at_1(), id=7))
    say(status("COMPLETE", mood="good"))


def at_1() -> dict[str, Any]:
    return {"stream_descriptor": {"name": "a", "kind": "table"}, "stream_state": {"at": 1}, "x": 1}


@scenario("read")
def unknown_words() -> None:
    """Writes types in lower case and statuses and levels of its own."""
    say(record(1).replace(b"RECORD", b"record"), log("careful", "WARNING"))
    say(status("PAUSED"), status("RUNNING", reasons=[{"type": "LUNCH"}]), state(1), complete())


@scenario("read")
def unknown_state_type() -> None:
    """Sends a state of a type from the future."""
    say(record(1), state(1), record(2), typed_state("PARTITION", partition={"at": 2}), complete())


@scenario("read")
def coloured_log_lines() -> None:
    """Colours its log for a terminal, on all channels."""
    coloured = "\x1b[1;31mcareful\x1b[0m\x1b[K"
    say(log(coloured), coloured.encode() + b"\n", record(1), state(1), complete())
    print(coloured, file=sys.stderr)


# Streams


@scenario("read")
def unconfigured_stream() -> None:
    """Sends a stream that is not in the catalog."""
    say(record(7, stream="x"), record(1), state(7, stream="x"), complete("x"))
    say(record(8, stream="x"), state(1, count=1), complete())


@scenario("read")
def null_and_empty_namespaces() -> None:
    """Uses null, an absent field and "" for no namespace, in turn."""
    say(record(1), record(2, namespace=None), record(3, namespace=""))
    say(state(3, count=3, namespace=""), complete(namespace=None))


@scenario("read")
def same_name_in_two_namespaces() -> None:
    """Has a stream of the same name in the namespaces n and m."""
    for number, space in enumerate("nm", start=1):
        say(record(number, namespace=space), state(number, namespace=space))
    say(complete(namespace="n"), complete(namespace="m"))
