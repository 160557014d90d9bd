"""What a source prints, from stray text to values that no column holds."""

import datetime as dt
import json

import msgspec
import pytest

from atlas_dagster_tests.chaos.chaotic import MORE, Chaos
from atlas_dagster_tests.sync.fake_source import incremental

FAILED = "a: a RECORD message could not be read"


@pytest.mark.parametrize(
    ("scenario", "rows"),
    [
        ("text-between-messages", [(1, None)]),
        ("json-that-is-no-message", [(1, None)]),
        ("no-newline-at-the-end", [(1, None)]),
        ("two-messages-on-one-line", [(1, None), (2, None)]),
        ("carriage-returns", [(1, None)]),
        ("byte-order-mark", [(1, None)]),
        ("nul-bytes", [(1, "x\0y")]),
        ("unicode-line-separators", [(1, "x\u2028y\u0085z")]),
        ("duplicate-keys", [(1, "last")]),
        ("file-records", [(1, None), (2, None)]),
        ("unknown-message-types", [(1, None)]),
        ("unknown-fields", [(1, None)]),
        ("unknown-words", [(1, None)]),
    ],
)
@pytest.mark.slow
def test_what_can_be_read_is_read(
    chaos: Chaos, scenario: str, rows: list[tuple[int, str | None]]
) -> None:
    done = chaos.sync(scenario)
    assert done.failure is None
    assert list(done.finished) == ["a"]
    assert chaos.lake.rows("a") == rows
    assert chaos.position() == len(rows)
    assert chaos.changes() == [[]] * len(rows)


@pytest.mark.parametrize(
    ("scenario", "reason"),
    [
        ("text-on-the-line-of-a-record", FAILED),
        ("half-a-record-at-the-end", FAILED),
        ("unknown-state-type", "a: a STATE message could not be read"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_read_is_not_skipped(chaos: Chaos, scenario: str, reason: str) -> None:
    """The stream stops there: a state after the lost record would hide it for ever."""
    done = chaos.sync(scenario)
    assert str(done.failure).startswith(f"The stream did not complete. {reason}")
    assert chaos.heard("ERROR")[0].startswith("Unreadable ")
    assert chaos.lake.ids("a") == [1]
    assert chaos.position() == 1
    assert chaos.lake.staged() == set()
    assert chaos.sync("well-behaved").failure is None
    assert chaos.lake.ids("a") == [1, 2, 3]


def test_stray_text_is_in_the_log(chaos: Chaos) -> None:
    chaos.sync("text-between-messages")
    assert chaos.heard("INFO") == [
        "Picked up JAVA_OPTS",
        " sent one",
        "[12:00] {still} alive",
        "bye",
    ]


@pytest.mark.slow
def test_one_record_of_thirty_megabytes(chaos: Chaos) -> None:
    assert chaos.sync("long-line").failure is None
    assert chaos.lake.rows("a", columns="id, length(v)") == [(1, 30_000_000)]


def test_a_level_that_nobody_knows_is_logged(chaos: Chaos) -> None:
    chaos.sync("unknown-words")
    assert chaos.log == [("WARNING", "careful")]


# Values


def test_numbers_that_json_does_not_have(chaos: Chaos) -> None:
    assert chaos.sync("nan-and-infinity").failure is None
    assert chaos.lake.rows("a", columns="id, n, o") == [(1, None, '{"x":"-Infinity"}')]
    assert chaos.changes() == [["n"]]


@pytest.mark.parametrize(
    ("scenario", "value"), [("invalid-utf8", "caf\ufffd"), ("lone-surrogate", "x\ufffdy")]
)
def test_what_is_no_text(chaos: Chaos, scenario: str, value: str) -> None:
    assert chaos.sync(scenario).failure is None
    assert chaos.lake.rows("a") == [(1, value)]
    assert chaos.changes() == [["v"]]


def test_an_integer_of_30_digits(chaos: Chaos) -> None:
    assert chaos.sync("integer-of-30-digits").failure is None
    big = "9" * 30
    [row] = chaos.lake.rows("a", columns="id, n, o, _airbyte_extra")
    assert row == (None, 1e30, f'{{"x":{big}}}', f'{{"id":{big},"n":{big}}}')
    assert chaos.changes() == [["id", "n"]]


def test_a_record_without_fields_is_a_row(chaos: Chaos) -> None:
    done = chaos.sync("empty-data")
    assert done.failure is None
    assert chaos.lake.rows("a") == [(None, None)]
    assert (done.finished["a"].records, chaos.changes()) == (1, [[]])


def test_a_value_that_nests_deeper_than_parsers_go(chaos: Chaos) -> None:
    assert chaos.sync("deep-nesting").failure is None
    [_, (id, value, extra)] = chaos.lake.rows("a", columns="id, o, _airbyte_extra")
    assert (id, value) == (2, None)
    assert json.loads(extra) == {"o": '{"x":' + "[" * 2000 + "]" * 2000 + "}"}
    assert chaos.changes() == [[], ["o"]]
    assert chaos.position() == 2


def test_data_that_is_no_object_is_kept_as_text(chaos: Chaos) -> None:
    assert chaos.sync("data-that-is-no-object").failure is None
    assert chaos.lake.rows("a", columns="id, _airbyte_extra") == [(None, '{"":"[1, 2]"}')]
    assert chaos.changes() == [[""]]


@pytest.mark.parametrize(
    ("scenario", "microseconds"),
    [("emitted-at-in-seconds", 0), ("emitted-at-fractional", 250)],
)
def test_the_time_of_extraction(chaos: Chaos, scenario: str, microseconds: int) -> None:
    assert chaos.sync(scenario).failure is None
    ((extracted_at,),) = chaos.lake.rows("a", columns="_airbyte_extracted_at")
    moment = dt.datetime(2023, 11, 14, 22, 13, 20, microseconds, dt.UTC)
    assert extracted_at.astimezone(dt.UTC) == moment


def test_the_newest_version_of_a_row_wins(chaos: Chaos) -> None:
    stream = msgspec.structs.replace(incremental("a", "append_dedup", **MORE), cursor_field=("n",))
    assert chaos.sync("out-of-order-cursors", stream).failure is None
    assert chaos.lake.rows("a") == [(1, "new"), (2, "later")]


# Streams


def test_a_stream_that_nobody_asked_for(chaos: Chaos) -> None:
    done = chaos.sync("unconfigured-stream")
    assert done.failure is None
    assert list(chaos.lake.versions()) == ["c/a"]
    assert chaos.lake.ids("a") == [1]
    assert chaos.heard("WARN") == ["Ignored messages of stream 'x': it was not requested."]


def test_no_namespace_in_any_spelling(chaos: Chaos) -> None:
    assert chaos.sync("null-and-empty-namespaces").failure is None
    assert (chaos.lake.ids("a"), chaos.position()) == ([1, 2, 3], 3)


def test_one_name_in_two_namespaces(chaos: Chaos) -> None:
    n, m = incremental("a", namespace="n"), incremental("a", namespace="m")
    assert chaos.sync("same-name-in-two-namespaces", n, m).failure is None
    assert (chaos.lake.ids("n", "a"), chaos.lake.ids("m", "a")) == ([1], [2])
    assert (chaos.position(n), chaos.position(m)) == (1, 2)
