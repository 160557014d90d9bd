"""SPEC, CHECK, DISCOVER and pulls over HTTP, of real connectors."""

import pytest

from atlas_dagster_tests.conftest import SOURCE_FAKER_IMAGE as FAKER
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN
from atlas_dagster_tests.interfaces.http.live_server import Client

pytestmark = pytest.mark.docker


def test_spec(client: Client) -> None:
    answer = client.get("/connectors/source-faker/spec").json()
    assert (answer["connector_name"], answer["docker_image"]) == ("source-faker", FAKER)
    assert "count" in answer["connectionSpecification"]["properties"]


def test_the_name_of_an_image_may_have_slashes(client: Client) -> None:
    answer = client.get(f"/connectors/{STANDIN}/spec").json()
    assert (answer["connector_name"], answer["docker_image"]) == (STANDIN, STANDIN)


def test_check(client: Client) -> None:
    assert client.ask("/check", "source-faker", config={"count": 5}).json() == {
        "status": "succeeded",
        "message": "Connection successful",
        "connector_name": "source-faker",
        "success": True,
        "warnings": [],
    }


def test_a_check_that_fails_is_an_answer(client: Client) -> None:
    answer = client.ask("/check", config={"fail_check": True})
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "failed",
        "message": "bad password",
        "connector_name": STANDIN,
        "success": False,
        "warnings": [],
    }


def test_discover(client: Client) -> None:
    answer = client.ask("/discover", config={"count": 5}).json()
    (stream,) = answer["streams"]
    assert answer["total_streams"] == 1
    assert stream.pop("json_schema")["properties"]["id"] == {"type": "integer"}
    assert stream == {
        "name": "events",
        "namespace": None,
        "supported_sync_modes": ["full_refresh", "incremental"],
        "source_defined_cursor": True,
        "default_cursor_field": ["id"],
        "primary_key": [["id"]],
    }


def test_a_pull_that_fails_is_none(client: Client) -> None:
    """No registry has this image, though the engine does."""
    answer = client.post(f"/connectors/{STANDIN}/pull")
    assert answer.status_code in (422, 503)
    assert f"The image {STANDIN} cannot be pulled" in answer.json()["detail"]
