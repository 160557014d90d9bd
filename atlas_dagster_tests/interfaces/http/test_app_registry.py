"""The routes that run no connector."""

import pytest

from atlas_dagster.registry import list_connectors
from atlas_dagster_tests.interfaces.http.live_server import Client


@pytest.mark.docker
def test_health(registry_client: Client) -> None:
    assert registry_client.get("/health").json() == {
        "docker_available": True,
        "status": "healthy",
        "message": "Docker is ready for Airbyte connector execution",
        "total_connectors": len(list_connectors()),
        "execution_mode": "docker",
    }


def test_health_without_docker(registry_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    answer = registry_client.get("/health")
    assert answer.status_code == 200
    health = answer.json()
    assert (health["docker_available"], health["status"]) == (False, "degraded")
    assert "/no/such/socket" in health["message"]


def test_all_connectors(registry_client: Client) -> None:
    answer = registry_client.get("/connectors").json()
    assert answer["total_connectors"] == len(answer["connectors"]) == len(list_connectors())
    faker = next(c for c in answer["connectors"] if c["name"] == "source-faker")
    assert faker["display_name"] == "Sample Data"
    assert faker["docker_image"].startswith("airbyte/source-faker:")


def test_connectors_of_a_category(registry_client: Client) -> None:
    answer = registry_client.get("/connectors", params={"category": "crm"}).json()
    assert all("crm" in connector["categories"] for connector in answer["connectors"])
    names = {connector["name"] for connector in answer["connectors"]}
    assert {"source-hubspot", "source-intercom", "source-zendesk-support"} <= names
    categories = registry_client.get("/categories").json()
    (crm,) = (each for each in categories["categories"] if each["id"] == "crm")
    assert (crm["name"], crm["count"]) == ("CRM", answer["total_connectors"])
    assert categories["total_connectors"] == len(list_connectors())


def test_connectors_are_found_in_spite_of_typos(registry_client: Client) -> None:
    answer = registry_client.get("/connectors", params={"search": "postgress"}).json()
    assert answer["connectors"][0]["name"] == "source-postgres"
    assert "source-postgres" in answer["message"]
    both = registry_client.get("/connectors", params={"search": "postgress", "category": "crm"})
    assert both.json()["connectors"] == []


def test_that_there_is_no_such_connector_is_said(registry_client: Client) -> None:
    answer = registry_client.get("/connectors", params={"search": "neo4j"}).json()
    assert answer["connectors"][0]["name"] == "source-mongodb-v2"
    assert "Neo4j" in answer["message"]
    for params in ({"search": "postgres"}, {"category": "crm"}, {}):
        assert registry_client.get("/connectors", params=params).json()["message"] is None


def test_a_category_that_is_none_is_said(registry_client: Client) -> None:
    answer = registry_client.get("/connectors", params={"category": "databases"})
    assert answer.status_code == 422
    assert (answer.json()["code"], answer.json()["field"]) == ("invalid_request", "category")
    assert "'database'" in answer.json()["detail"]


def test_only_what_may_run_is_listed(client: Client) -> None:
    answer = client.get("/connectors").json()
    assert [connector["name"] for connector in answer["connectors"]] == ["source-faker"]
    assert client.get("/health").json()["total_connectors"] == 1
    assert client.get("/categories").json()["total_connectors"] == 1
