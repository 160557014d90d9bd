import csv
from importlib.resources import files

import pytest

from atlas_dagster.registry import list_connectors, search_connectors
from atlas_dagster.registry.search import unknown_connector


def found(query: str) -> list[str]:
    return [info.name.removeprefix("source-") for info in search_connectors(query)]


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("postgres", "postgres"),
        ("POSTGRES", "postgres"),
        ("source-postgres", "postgres"),
        ("airbyte/source-postgres:3.8.1", "postgres"),
        ("Sample Data", "faker"),
        ("s3", "s3"),
        ("file", "file"),
        ("mongo", "mongodb-v2"),
        ("sheets", "google-sheets"),
        ("google analytics", "google-analytics-data-api"),
    ],
)
def test_names_and_titles_are_found(query: str, first: str) -> None:
    assert found(query)[0] == first


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("posgres", "postgres"),
        ("postgresql", "postgres"),
        ("strpe", "stripe"),
        ("hubsopt", "hubspot"),
        ("bigquerry", "bigquery"),
        ("gogle analytics", "google-analytics-data-api"),
        ("sales force", "salesforce"),
        ("shopfy orders", "shopify"),
    ],
)
def test_typos_are_forgiven(query: str, first: str) -> None:
    assert found(query)[0] == first


def test_the_best_come_first_and_none_twice() -> None:
    names = found("facebook")
    assert names == ["facebook-marketing", "facebook-pages"]
    names = found("zendesk")
    assert len(names) == len(set(names))
    assert set(names) == {"zendesk-support", "zendesk-talk", "zendesk-chat", "zendesk-sunshine"}


@pytest.mark.parametrize("query", ["crm", "CRM", "project management", "projct managment"])
def test_a_category_brings_its_connectors(query: str) -> None:
    category = "crm" if "crm" in query.lower() else "project_management"
    listed = {info.name for info in list_connectors(category)}
    assert listed <= {info.name for info in search_connectors(query)}


@pytest.mark.parametrize(
    ("query", "nearest"),
    [("neo4j", ["mongodb-v2", "couchbase"]), ("SQL Server", ["mssql"]), ("X", ["twitter"])],
)
def test_what_has_no_connector_brings_the_nearest(query: str, nearest: list[str]) -> None:
    assert found(query)[: len(nearest)] == nearest


@pytest.mark.parametrize("query", ["", "  ", "?!", "zzzzzzzz"])
def test_nothing_is_found_for_nothing(query: str) -> None:
    assert found(query) == []


def test_every_connector_is_found_by_its_name_and_title() -> None:
    unlisted = {row["name"].casefold() for row in _unlisted()}
    for info in list_connectors():
        assert info in search_connectors(info.name)[:2]
        if info.title.casefold() not in unlisted:
            assert info in search_connectors(info.title)[:3], info


def test_the_unlisted_have_no_connector_and_their_nearest_exist() -> None:
    names = {info.name for info in list_connectors()}
    titles = {info.title.casefold() for info in list_connectors()}
    rows = _unlisted()
    assert len({row["name"].casefold() for row in rows}) == len(rows)
    for row in rows:
        assert row["name"].casefold() not in titles
        assert set(row["nearest"].split()) <= names
        assert row["nearest"] or row["why"]
        assert unknown_connector(row["name"]).count(".") <= 3


def _unlisted() -> list[dict[str, str]]:
    text = (files("atlas_dagster.registry") / "unlisted.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
