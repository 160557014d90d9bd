"""Errors over HTTP: a code for each, one sentence, and nothing of what was sent."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas_dagster.interfaces.http import Settings
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster_tests.conftest import SOURCE_CHAOS_IMAGE as CHAOS
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN
from atlas_dagster_tests.interfaces.http.live_server import ALLOWED, Client, served

SECRET = "hunter2secret"
DIGEST = f"@sha256:{'0' * 64}"


def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    """What an answer says, once it is as problems are."""
    assert answer.headers["content-type"] == "application/problem+json"
    said: dict[str, Any] = answer.json()
    assert (answer.status_code, said["status"], said["code"]) == (status, status, code)
    assert said["type"] == f"urn:atlas:problem:{code}"
    assert said["title"]
    # A connector's own words are its own.
    assert said["detail"].endswith((".", "?")) or code == "connector_failed"
    assert SECRET not in answer.text
    return said


# What was asked for


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/connectors/source-postgress/spec"),
        ("POST", "/connectors/source-postgress/pull"),
        ("POST", "/check"),
        ("POST", "/discover"),
        ("POST", "/read"),
    ],
)
def test_an_unknown_connector_is_met_with_the_nearest(
    registry_client: Client, method: str, path: str
) -> None:
    body = {"connector_name": "source-postgress", "config": {"password": SECRET}}
    body |= {"stream_name": "users"} if path == "/read" else {}
    answer = registry_client.request(method, path, json=body if method == "POST" else None)
    said = problem(answer, 404, "unknown_connector")
    assert "source-postgres" in said["detail"]
    assert said["suggestions"][0] == "source-postgres"


def test_a_well_known_name_without_a_connector_is_explained(registry_client: Client) -> None:
    said = problem(registry_client.ask("/check", "neo4j"), 404, "unknown_connector")
    assert "Neo4j" in said["detail"]
    assert said["suggestions"]


@pytest.mark.parametrize(
    "name",
    [STANDIN, "evil.example/miner:1", "airbyte/source-faker:7.2.1", f"source-faker:1{DIGEST}"],
)
def test_images_do_not_run_unless_they_are_allowed(registry_client: Client, name: str) -> None:
    problem(registry_client.ask("/check", name), 403, "connector_not_allowed")
    problem(registry_client.get(f"/connectors/{name}/spec"), 403, "connector_not_allowed")


@pytest.mark.parametrize(
    "name",
    [
        "source-postgres",
        "evil.example/miner:1",
        f"{STANDIN}1",
        "",
        # Images, though they begin with a name that is allowed.
        f"source-faker{DIGEST}",
        f"source-faker:1{DIGEST}",
        "source-faker:1:2",
        "source-faker:a b",
        "source-faker:../1",
        "evil.example/source-faker",
        f"{STANDIN}{DIGEST}",
    ],
)
def test_only_what_is_on_the_list_runs(client: Client, name: str) -> None:
    problem(client.ask("/check", name), 403, "connector_not_allowed")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"config": {}}, "connector_name"),
        ({"connector_name": SECRET, "config": SECRET}, "config"),
        ({"connector_name": {"a": SECRET}}, "connector_name"),
        ({"connector_name": "x", "confg": {"password": SECRET}}, "confg"),
        ({"connector_name": "x", "stream_name": "s", "limit": 0}, "limit"),
        ({"connector_name": "x", "stream_name": "s", "format": SECRET}, "format"),
        ({"connector_name": "x", "stream_name": "s", "cursor_field": ""}, "cursor_field"),
    ],
)
def test_a_wrong_request_names_the_field(client: Client, body: dict[str, Any], field: str) -> None:
    answer = client.post("/read", json={"stream_name": "s", **body})
    assert problem(answer, 422, "invalid_request")["field"] == field


def test_all_that_is_wrong_with_a_request_is_said_at_once(client: Client) -> None:
    body = {"connector_name": 1, "config": SECRET, "limit": 0, "confg": {}}
    said = problem(client.post("/read", json=body), 422, "invalid_request")
    fields = {each["field"]: each["detail"] for each in said["errors"]}
    assert set(fields) == {"connector_name", "config", "stream_name", "limit", "confg"}
    assert said["detail"] == fields[said["field"]]
    assert "'stream_name'" in fields["stream_name"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (f'{{"connector_name": "x", "config": {{"password": "{SECRET}"', "application/json"),
        (f'["{SECRET}"]', "application/json"),
        ("", "application/json"),
        (f'{{"connector_name": "{SECRET}"}}', "text/plain"),
        (f'{{"connector_name": "{SECRET}"}}', None),
        (b"\xff\xfe", "application/json"),
    ],
)
def test_what_is_no_json_is_said(client: Client, content: Any, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    problem(client.post("/check", content=content, headers=headers), 422, "invalid_request")


def nested(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


@pytest.mark.parametrize("path", ["/check", "/discover", "/read"])
@pytest.mark.parametrize(
    ("value", "why"),
    [
        (nested(101), "100 levels"),
        (nested(900), "100 levels"),
        (r'"\ud800"', "surrogate"),
        (r'[{"\udfff": 1}]', "surrogate"),
        ("[NaN]", "NaN"),
        ("-1e999", "infinite"),
    ],
)
@pytest.mark.slow
def test_values_that_no_connector_could_be_given(
    client: Client, path: str, value: str, why: str
) -> None:
    names = ["connector_name", "config.x"]
    names += ["stream_name", "cursor_field", "state.x"] if path == "/read" else []
    for name in names:
        field, _, inside = name.partition(".")
        body: dict[str, Any] = {"connector_name": STANDIN, "config": {}}
        body |= {"stream_name": "events"} if path == "/read" else {}
        body |= {field: {inside: "VALUE"} if inside else "VALUE"}
        content = json.dumps(body).replace('"VALUE"', value)
        headers = {"Content-Type": "application/json"}
        said = problem(client.post(path, content=content, headers=headers), 422, "invalid_request")
        assert said["field"] == field
        assert why in said["detail"]


@pytest.mark.parametrize("content", [nested(5000), r'{"\ud800": 1}', "1" * 5000])
def test_bodies_that_cannot_be_read(client: Client, content: str) -> None:
    headers = {"Content-Type": "application/json"}
    problem(client.post("/check", content=content, headers=headers), 422, "invalid_request")


def test_a_path_or_a_method_that_is_none(client: Client) -> None:
    problem(client.get("/nothing"), 404, "not_found")
    answer = client.get("/check")
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


@pytest.mark.docker
@pytest.mark.parametrize(
    ("config", "field"),
    [({"count": SECRET}, "count"), ({"count": -1}, "count"), ({"behaviour": SECRET}, "behaviour")],
)
def test_a_wrong_config_names_the_field(client: Client, config: dict[str, Any], field: str) -> None:
    assert problem(client.ask("/check", config=config), 422, "invalid_config")["field"] == field


@pytest.mark.docker
def test_all_faults_of_a_config_are_listed(client: Client) -> None:
    said = problem(
        client.ask("/check", config={"cuont": 1, "behaviour": SECRET, "rate": -1}),
        422,
        "invalid_config",
    )
    assert [each["field"] for each in said["errors"]] == ["cuont", "behaviour", "rate"]
    assert said["errors"][0]["detail"].endswith("did you mean 'count'?")
    assert all(each["detail"] in said["detail"] for each in said["errors"])


@pytest.mark.docker
def test_what_is_odd_about_a_config_is_told_beside_the_answer(client: Client) -> None:
    config = {"xyzzy": 1, "count": 1}
    for answer in (
        client.ask("/check", config=config),
        client.ask("/discover", config=config),
        client.read(config),
    ):
        (warning,) = answer.json()["warnings"]
        assert "'xyzzy'" in warning
    assert client.read({"count": 1}).json()["warnings"] == []


@pytest.mark.docker
def test_a_config_need_not_be_validated(client: Client) -> None:
    answer = client.ask("/check", config={"cuont": 1}, validate=False)
    assert (answer.status_code, answer.json()["success"]) == (200, True)


def test_variables_of_the_server_stay_in_it(client: Client) -> None:
    answer = client.ask("/check", config={"nested": {"password": ["{{ env.HOME }}"]}})
    assert problem(answer, 422, "invalid_config")["field"] == "nested"


@pytest.mark.docker
def test_an_unknown_stream_is_met_with_the_nearest(client: Client) -> None:
    answer = client.ask("/read", config={}, stream_name="event")
    assert "events" in problem(answer, 404, "unknown_stream")["detail"]


@pytest.mark.docker
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"state": {"id": 1}}, "state"),
        ({"state": [{"type": "STREAM"}], "incremental": True}, "state"),
        ({"state": [{"foo": SECRET}], "incremental": True}, "state"),
        ({"limit": 100_001}, "limit"),
        ({"cursor_field": "id"}, None),
        ({"cursor_field": "at", "incremental": True}, None),
    ],
)
def test_what_cannot_be_read_like_that(
    client: Client, body: dict[str, Any], field: str | None
) -> None:
    said = problem(client.read({}, **body), 422, "invalid_request")
    assert said.get("field") == field


@pytest.mark.docker
def test_a_state_of_another_stream_is_refused(client: Client) -> None:
    state = {
        "type": "STREAM",
        "stream": {"stream_descriptor": {"name": "users"}, "stream_state": {"id": 1}},
    }
    said = problem(client.read({}, incremental=True, state=[state]), 422, "invalid_request")
    assert said["field"] == "state"
    assert "users" in said["detail"]


# What failed


@pytest.mark.docker
def test_a_connector_that_fails_says_why(client: Client) -> None:
    said = problem(client.read({"behaviour": "die"}), 502, "connector_failed")
    assert said["detail"] == "source-standin: upstream went away"
    assert said["failure_type"] == "transient_error"


@pytest.mark.docker
def test_secrets_of_a_connectors_message_are_masked(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    config = {"scenario": "secrets-everywhere", "password": SECRET}
    answer = client.ask("/read", CHAOS, config=config, stream_name="a")
    assert "login with **********" in problem(answer, 502, "connector_failed")["detail"]
    assert "login with **********" in caplog.text
    assert SECRET not in caplog.text


@pytest.fixture(scope="module")
def hasty(_state: Path) -> Iterator[Client]:
    """Of a server that waits for nobody."""
    executor = ExecutorConfig(silence_seconds=1, timeout_seconds=5)
    with served(Settings(allow=ALLOWED, executor=executor)) as client:
        yield client


@pytest.mark.docker
def test_a_connector_that_takes_too_long(hasty: Client) -> None:
    said = problem(hasty.read({"behaviour": "hang"}), 504, "connector_timeout")
    assert "source-standin" in said["detail"]


@pytest.mark.docker
def test_one_that_does_so_in_the_middle_of_a_stream(hasty: Client) -> None:
    _, content, whole = hasty.streamed({"behaviour": "hang"}, format="ndjson")
    last = json.loads(content.splitlines()[-1])["_atlas"]
    assert (whole, last["problem"]["code"]) == (False, "connector_timeout")


def test_without_docker(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    answer = client.ask("/check", config={"count": 5})
    said = problem(answer, 503, "docker_unavailable")
    assert "/no/such/socket" in said["detail"]
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.docker
@pytest.mark.usefixtures("_state")
def test_an_image_that_is_not_to_be_had() -> None:
    name = "127.0.0.1:1/none/source-x:1"
    with served(Settings(allow=frozenset({name}))) as client:
        said = problem(client.ask("/check", name), 503, "connector_unavailable")
    assert name in said["detail"]


def test_what_nobody_thought_of(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr("atlas_dagster.interfaces.http.connectors.adhoc_connection", fail)
    problem(client.ask("/check", config={}), 500, "internal_error")
