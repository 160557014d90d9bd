import csv
from importlib.resources import files
from pathlib import Path

import pytest
from msgspec.structs import replace

from atlas_dagster.registry import list_connectors, search_connectors
from atlas_dagster.registry.catalogue import shipped_listing
from atlas_dagster.registry.search import describe_unknown_connector


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


def test_in_a_category_its_own_come_first() -> None:
    places = [info.category == "crm" for info in search_connectors("crm")]
    assert places == sorted(places, reverse=True)


def test_what_has_the_name_brings_nothing_that_is_only_like_it() -> None:
    """`marketo` is nearly `marketing`, a category of 87."""
    assert found("marketo") == ["marketo"]
    assert found("stripe") == ["stripe"]
    assert set(found("git")) == {"github", "gitlab", "gitbook"}


@pytest.mark.parametrize(
    ("query", "note"),
    [
        ("neo4j", "Airbyte publishes no connector for Neo4j. Nearest are source-mongodb-v2"),
        ("X", 'There is no connector "X". It is called Twitter there'),
        ("postgress", 'There is no connector "postgress"; did you mean source-postgres?'),
        ("zzzzzzzz", 'There is no connector "zzzzzzzz"; find one'),
        ("postgres", None),
        ("facebook", None),
        ("crm", None),
        ("markting", None),
        ("", None),
    ],
)
def test_that_nothing_has_the_name_is_noted(query: str, note: str | None) -> None:
    said = search_connectors(query).note
    assert said is None if note is None else (said or "").startswith(note)


@pytest.mark.usefixtures("cache")
def test_one_that_is_published_since_is_not_said_to_be_missing(cache: Path) -> None:
    shipped = shipped_listing()
    neo4j = replace(shipped.connectors[0], name="source-neo4j", title="Neo4j")
    cache.mkdir(parents=True)
    listed = replace(shipped, date="2999-01-01", connectors=(*shipped.connectors, neo4j))
    (cache / "connectors.json").write_bytes(listed.encode())
    assert found("neo4j") == ["neo4j"]
    assert search_connectors("neo4j").note is None
    assert describe_unknown_connector("Neo4j") == (
        'There is no connector "Neo4j"; did you mean source-neo4j?'
    )


@pytest.mark.parametrize(
    ("query", "nearest"),
    [("neo4j", ["mongodb-v2", "couchbase"]), ("SQL Server", ["mssql"]), ("X", ["twitter"])],
)
def test_what_has_no_connector_brings_the_nearest(query: str, nearest: list[str]) -> None:
    assert found(query)[: len(nearest)] == nearest


@pytest.mark.parametrize("query", ["", "  ", "?!", "zzzzzzzz"])
def test_nothing_is_found_for_nothing(query: str) -> None:
    assert found(query) == []


@pytest.mark.slow
def test_every_connector_is_found_by_its_name_and_title() -> None:
    unlisted = {row["name"].casefold() for row in _unlisted()}
    for info in list_connectors():
        assert info in search_connectors(info.name)[:2]
        if info.title.casefold() not in unlisted:
            assert info in search_connectors(info.title)[:3], info


@pytest.mark.slow
def test_the_unlisted_have_no_connector_and_their_nearest_exist() -> None:
    names = {info.name for info in list_connectors()}
    titles = {info.title.casefold() for info in list_connectors()}
    rows = _unlisted()
    assert len({row["name"].casefold() for row in rows}) == len(rows)
    for row in rows:
        assert row["name"].casefold() not in titles
        assert set(row["nearest"].split()) <= names
        assert row["nearest"] or row["why"]
        for near in row["nearest"].split() if not row["why"] else ():
            # Else Airbyte has it, under a longer name.
            assert not set(row["name"].casefold().split()) <= set(near.split("-")), row
        assert describe_unknown_connector(row["name"]).count(".") <= 3


def _unlisted() -> list[dict[str, str]]:
    text = (files("atlas_dagster.registry") / "unlisted.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
