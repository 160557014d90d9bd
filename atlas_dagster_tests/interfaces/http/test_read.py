"""Rows over HTTP: pages that continue, JSON lines, Arrow."""

import json
from typing import Any

import pyarrow as pa
import pytest

from atlas_dagster_tests.interfaces.http.live_server import Client

pytestmark = pytest.mark.docker
NDJSON, ARROW = "application/x-ndjson", "application/vnd.apache.arrow.stream"


def ids(answer: dict[str, Any]) -> list[int]:
    return [row["id"] for row in answer["data"]]


def lines(content: bytes) -> tuple[list[int], list[Any]]:
    """The ids of rows, and what was said besides."""
    found = [json.loads(line) for line in content.splitlines()]
    said = [line["_atlas"] for line in found if "_atlas" in line]
    return [line["id"] for line in found if "_atlas" not in line], said


# Pages


def test_a_page_has_all_there_is(client: Client) -> None:
    answer = client.read({"count": 3})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "status": "success",
        "connector_name": "atlas-test/source-standin:2",
        "stream_name": "events",
        "records_count": 3,
        "columns": ["id", "at", "note"],
        "data": [
            {"id": number, "at": f"2024-01-01T00:00:0{number}Z", "note": f"event {number}"}
            for number in (1, 2, 3)
        ],
        "state": None,
        "has_more": False,
        "message": "Read 3 records from events",
        "notes": [],
        "warnings": [],
    }


def test_a_page_of_a_full_read_is_as_long_as_it_may_be(client: Client) -> None:
    answer = client.read({"count": 50}, limit=7).json()
    assert (ids(answer), answer["has_more"]) == ([1, 2, 3, 4, 5, 6, 7], True)
    assert answer["message"] == "Read 7 records from events"
    assert "limit" in answer["notes"][0]


def test_the_state_sent_back_goes_on_with_the_next_row(client: Client) -> None:
    pages, state = [], None
    while True:
        answer = client.read({"count": 35}, incremental=True, limit=15, state=state).json()
        pages.append(ids(answer))
        state = answer["state"]
        if not answer["has_more"]:
            break
    assert [number for page in pages for number in page] == list(range(1, 36))
    assert len(pages) == 4
    assert client.read({"count": 35}, incremental=True, state=state).json()["data"] == []


def test_a_bare_object_is_the_state_of_the_stream(client: Client) -> None:
    answer = client.read({"count": 35}, incremental=True, state={"id": 33}).json()
    assert ids(answer) == [34, 35]
    (message,) = answer["state"]
    assert message["stream"] == {
        "stream_descriptor": {"name": "events"},
        "stream_state": {"id": 35},
    }
    answer = client.read({"count": 36}, incremental=True, state=message).json()
    assert ids(answer) == [36]


def test_a_source_that_says_no_state_in_time_repeats_itself_and_says_so(client: Client) -> None:
    answer = client.read({"count": 35}, incremental=True, limit=3, state={"id": 20}).json()
    assert ids(answer) == [21, 22, 23]
    assert answer["state"][0]["stream"]["stream_state"] == {"id": 20}
    assert "limit" in answer["notes"][0]


def test_airbytes_own_columns_come_when_asked_for(client: Client) -> None:
    answer = client.read({"count": 1}, metadata_columns=True).json()
    assert answer["columns"][-1] == "_airbyte_extra"
    assert answer["data"][0]["_airbyte_meta"] == {"sync_id": 0, "changes": []}


def test_values_that_no_column_holds_are_counted(client: Client) -> None:
    body = {"config": {"scenario": "integer-of-30-digits"}, "stream_name": "a"}
    answer = client.ask("/read", "atlas-test/source-chaos:1", **body).json()
    assert "_airbyte_extra" in answer["notes"][0]


def test_a_page_of_real_records(client: Client) -> None:
    body = {"config": {"count": 50}, "stream_name": "users", "limit": 2}
    answer = client.ask("/read", "source-faker", **body).json()
    assert (len(answer["data"]), answer["has_more"]) == (2, True)
    assert isinstance(answer["data"][0]["address"], dict)


# Streams


@pytest.mark.parametrize("asked", [{"format": "ndjson"}, {}])
def test_json_lines(client: Client, asked: dict[str, Any]) -> None:
    client.headers["Accept"] = f"text/html, {NDJSON};q=0.9" if not asked else "*/*"
    kind, content, whole = client.streamed({"count": 25}, **asked)
    client.headers["Accept"] = "*/*"
    rows, said = lines(content)
    assert (kind, whole, rows) == (NDJSON, True, list(range(1, 26)))
    (end,) = said
    assert (end["status"], end["records_count"], end["state"]) == ("success", 25, None)


def test_json_lines_say_the_state_of_the_rows_before(client: Client) -> None:
    _, content, _ = client.streamed({"count": 40, "rate": 12}, incremental=True, format="ndjson")
    found = [json.loads(line) for line in content.splitlines()]
    last = 0
    states = 0
    for line in found:
        if "_atlas" not in line:
            last = line["id"]
        else:
            (message,) = line["_atlas"]["state"]
            assert message["stream"]["stream_state"] == {"id": last}
            states += 1
    assert (last, found[-1]["_atlas"]["has_more"]) == (40, False)
    assert states > 2


def test_an_arrow_stream(client: Client) -> None:
    kind, content, _ = client.streamed({"count": 25}, incremental=True, format="arrow")
    assert kind == ARROW
    reader = pa.ipc.open_stream(content)
    batches, said = [], []
    while True:
        try:
            batch, metadata = reader.read_next_batch_with_custom_metadata()
        except StopIteration:
            break
        batches.append(batch)
        if metadata is not None:
            said.append(json.loads(metadata["atlas"]))
    rows = pa.Table.from_batches(batches)
    assert rows["id"].to_pylist() == list(range(1, 26))
    assert rows.schema.field("at").type == pa.timestamp("us", tz="UTC")
    assert said[-1]["status"] == "success"
    assert said[-1]["state"][0]["stream"]["stream_state"] == {"id": 25}


def test_an_empty_arrow_stream_has_its_columns(client: Client) -> None:
    _, content, _ = client.streamed({"count": 0}, format="arrow")
    rows = pa.ipc.open_stream(content).read_all()
    assert (rows.num_rows, rows.column_names) == (0, ["id", "at", "note"])


def test_a_stream_may_have_a_limit(client: Client) -> None:
    _, content, _ = client.streamed({"count": 100_000}, limit=12, format="ndjson")
    rows, (end,) = lines(content)
    assert (len(rows), end["has_more"]) == (12, True)


def test_json_lines_that_fail_say_why_and_break_off(client: Client) -> None:
    config = {"count": 60, "rate": 12, "behaviour": "die"}
    _, content, whole = client.streamed(config, incremental=True, format="ndjson")
    rows, said = lines(content)
    assert not whole
    assert rows == list(range(1, len(rows) + 1))
    assert said[-1]["status"] == "failed"
    assert said[-1]["problem"]["code"] == "connector_failed"
    assert "upstream went away" in said[-1]["problem"]["detail"]


def test_an_arrow_stream_that_fails_has_no_end(client: Client) -> None:
    config = {"count": 60, "rate": 12, "behaviour": "die"}
    _, content, whole = client.streamed(config, incremental=True, format="arrow")
    assert not whole
    assert not content.endswith(b"\xff\xff\xff\xff\x00\x00\x00\x00")


def test_a_stream_that_fails_before_its_first_row_is_a_problem(client: Client) -> None:
    answer = client.read({"behaviour": "die", "count": 0}, format="ndjson")
    assert (answer.status_code, answer.json()["code"]) == (502, "connector_failed")
    answer = client.ask("/read", config={}, stream_name="event", format="arrow")
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_stream")
