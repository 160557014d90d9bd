"""The page of a materialization in Dagster's UI."""

import json

import dagster as dg
import pytest

from atlas_dagster.orchestration.step import reporter as reporting
from atlas_dagster.orchestration.step.summary import (
    escape,
    format_code,
    format_value,
    join_bounded,
)
from atlas_dagster.sync import progress
from atlas_dagster_tests.orchestration.fake_runs import EVENTS, FakeRuns
from atlas_dagster_tests.sync.fake_source import error, line, record, records, state, status

pytestmark = [pytest.mark.slow, pytest.mark.dagster]

DONE = status("events")
INTEGER = {"type": "integer"}


def test_what_was_read_and_from_where_to_where(runs: FakeRuns) -> None:
    runs.run(records("events", [1, 2]), state("events", {"at": 2}), DONE)
    ran = runs.run(records("events", [3]), state("events", {"at": 3}), DONE)

    told = ran.metadata["events"]["atlas/summary"]
    assert told.startswith("**1 record** in ")
    assert "incremental | append_dedup. The table has 3 rows." in told
    assert r'Cursor: \{"at": 2\} → \{"at": 3\}' in told


def test_a_sync_of_nothing_says_so(runs: FakeRuns) -> None:
    runs.run(records("events", [1]), state("events", {"at": 1}), DONE)
    found = runs.run(state("events", {"at": 1}), DONE).metadata["events"]
    assert found["atlas/summary"] == (
        '**Nothing new**, incremental | append_dedup. The table has 1 row.\n\nCursor: \\{"at": 1\\}'
    )
    assert "atlas/preview" not in found
    assert found["atlas/records_synced"] == 0


def test_warnings_and_changed_values_are_told(runs: FakeRuns) -> None:
    bad = line("RECORD", record={"stream": "events", "data": {"id": "x_y"}, "emitted_at": 1})
    ran = runs.run(record("events", 1), bad, bad, state("events", {}), record("events", 2), DONE)
    told = ran.metadata["events"]["atlas/summary"]
    assert "**Warning:** 1 records came after the stream's last state" in told
    assert "- `` id ``: 2 NULLED" in told


def test_the_last_rows_are_shown_cut_and_without_secrets(runs: FakeRuns) -> None:
    runs.connection = runs.connection.model_copy(
        update={"config": {"host": "db", "password": "hunter22"}}
    )
    long = [record("events", id, "x" * 100) for id in range(9)]
    ran = runs.run(*long, record("events", 10, "my hunter22!"), record("events", 11), DONE)
    shown = ran.metadata["events"]["atlas/preview"]
    rows = [dict(row.data) for row in shown.records]
    assert [row["id"] for row in rows] == ["6", "7", "8", "10", "11"]
    assert [row["v"] for row in rows] == [*["x" * 31 + "…"] * 3, "my **********!", None]
    assert [column.name for column in shown.schema.columns] == ["id", "v"]


@pytest.mark.parametrize(
    "name", ["__class__", "__enum__", "__set__", "__frozenset__", "__mapping_items__"]
)
def test_a_field_with_a_name_of_dagsters_serializer(runs: FakeRuns, name: str) -> None:
    """Regression: no later sync could read the event."""
    runs.streams = [{**EVENTS, "json_schema": {"properties": {"id": INTEGER, name: INTEGER}}}]
    for number in (1, 2):
        data = {name: "no integer", "id": number}
        sent = line("RECORD", record={"stream": "events", "data": data, "emitted_at": 1})
        ran = runs.run(sent, state("events", {name: number}), status("events"))
        assert ran.success
        assert name in str(ran.metadata["events"]["atlas/preview"])
        assert name in str(ran.metadata["events"]["atlas/cursor_after"])


def test_a_wide_table_is_shown_in_part(runs: FakeRuns) -> None:
    fields = {f"f{number}": {"type": "string"} for number in range(300)}
    runs.streams = [
        {**EVENTS, "json_schema": {"properties": {"id": {"type": "integer"}, **fields}}}
    ]
    data = {name: name * 1000 for name in fields}
    row = line("RECORD", record={"stream": "events", "data": {"id": 1, **data}, "emitted_at": 1})
    found = runs.run(row, DONE).metadata["events"]
    (shown,) = found["atlas/preview"].records
    assert len(shown.data) == 6
    assert len(json.dumps(dict(shown.data))) < 1000


def test_numbers_of_a_run_are_of_all_its_attempts(
    runs: FakeRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = iter(
        [
            [records("events", [1, 2]), state("events", {"at": 2}), records("events", [3]), _GONE],
            [records("events", [3]), state("events", {"at": 3}), DONE],
        ]
    )
    script = runs.script
    monkeypatch.setattr("atlas_dagster.orchestration.step.sync_step.time.sleep", lambda _: None)

    def next_attempt(command: object) -> object:
        if getattr(command, "verb", "") == "read":
            runs.output = next(attempts)
        return script(command)  # type: ignore[arg-type]

    runs.runner.script = next_attempt  # type: ignore[assignment]
    ran = runs.run()

    assert ran.success
    found = ran.metadata["events"]
    assert (found["atlas/records_synced"], found["atlas/checkpoints"]) == (3, 2)
    assert (found["atlas/cursor_before"], found["atlas/cursor_after"]) == ("none", {"at": 3})
    assert found["dagster/row_count"] == 3
    assert ran.checks["events.records"].description == "3 records read."


_GONE = error("gone", "transient_error") + b""


def test_it_links_the_connectors_docs_and_the_table(runs: FakeRuns) -> None:
    found = runs.run(records("events", [1]), DONE).metadata["events"]
    assert found["atlas/docs"] == "https://docs.example.com/shop"
    assert found["dagster/uri"] == (runs.lake / "shop" / "events").as_uri()


def test_people_read_the_summary_first_and_the_envelope_last(runs: FakeRuns) -> None:
    keys = list(runs.run(records("events", [1]), state("events", {}), DONE).metadata["events"])
    assert keys[:2] == ["atlas/summary", "atlas/preview"]
    assert keys[-1] == "atlas/envelope"


def test_no_more_paragraphs_than_the_page_shows() -> None:
    assert join_bounded(["a", "b"]) == "a\n\nb"
    assert (
        join_bounded(["a" * 500, "b" * 490, "c" * 100]) == "a" * 500 + "\n\n" + "b" * 490 + "\n\n…"
    )
    assert len(join_bounded(["a" * 2000])) < 1000


def test_text_stays_text_in_markdown() -> None:
    assert escape("a_b *c* [d](e)") == r"a\_b \*c\* \[d\](e)"
    assert format_code("a`b") == "`` a'b ``"
    assert format_value(None, str) is None


# While it runs


class Clock:
    """Each look at it takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now


def test_progress_is_told_in_the_event_log_ever_more_rarely(
    runs: FakeRuns, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    for module in (progress, reporting):
        monkeypatch.setattr(module, "time", clock)
    ran = runs.run(*(record("events", id) for id in range(1000)), DONE)

    told = [message for message in ran.log if message.startswith("Records so far")]
    printed = [text for text in capfd.readouterr().out.splitlines() if "Records so far" in text]
    assert 4 <= len(told) <= 8
    assert len(printed) > 5 * len(told)
    assert "a second" in told[0]


def test_commits_are_observed_as_before(runs: FakeRuns) -> None:
    ran = runs.run(records("events", [1]), state("events", {"at": 1}), DONE)
    envelope = ran.observations["events"]["atlas/envelope"]
    # A link in the UI, so that a page of commits stays short.
    assert len(envelope) == 1000
    assert json.loads(envelope)["connection"] == "shop"
    assert isinstance(dg.MetadataValue.json(envelope), dg.JsonMetadataValue)
