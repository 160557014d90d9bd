"""Where a source is: what its config says in plain words, and never more."""

from typing import Any

import pytest

from atlas_dagster.source.uri import find_source_uri

SPEC = {
    "properties": {
        "password": {"airbyte_secret": True},
        "token_url": {"airbyte_secret": True},
        "credentials": {"properties": {"host": {"airbyte_secret": True}}},
    }
}


@pytest.mark.parametrize(
    ("source", "config", "uri"),
    [
        (
            "source-postgres",
            {"host": "db", "port": 5432, "database": "shop", "username": "me", "password": "x"},
            "postgres://db:5432/shop",
        ),
        ("source-mysql", {"host": "db.example.com"}, "mysql://db.example.com"),
        ("source-mysql", {"host": "::1", "port": 3306}, "mysql://[::1]:3306"),
        (
            "source-file",
            {"url": "https://example.com/a.csv?sig=abc#x"},
            "https://example.com/a.csv",
        ),
        ("source-file", {"url": "https://me:pw@example.com/a.csv"}, "https://example.com/a.csv"),
        (
            "source-mongodb-v2",
            {"database_config": {"connection_string": "mongodb+srv://me:pw@c.example.net/?w=1"}},
            "mongodb+srv://c.example.net",
        ),
        ("source-s3", {"bucket": "b", "provider": {"endpoint": ""}}, "s3://b"),
        ("source-jira", {"domain": "a.atlassian.net"}, "https://a.atlassian.net"),
        ("source-sftp", {"host": "me@files.example.com"}, "sftp://files.example.com"),
    ],
)
def test_an_address_that_anybody_may_see(source: str, config: dict[str, Any], uri: str) -> None:
    assert find_source_uri(source, config, SPEC) == uri


@pytest.mark.parametrize(
    "config",
    [
        {"count": 1000},
        {},
        {"host": "{{ env.DB_HOST }}", "port": 5432},
        {"url": "https://{{ env.HOST }}/a"},
        {"url": "https://me:p/w@example.com/a"},  # where does the password end?
        {"url": "https://me:p?w@example.com/a"},
        {"host": "hunter22", "password": "hunter22"},
        {"credentials": {"host": "hunter22"}},
        {"domain": "one word"},
        {"host": True},
        {"host": ["a", "b"]},
    ],
)
def test_no_address_where_none_is_plain(config: dict[str, Any]) -> None:
    assert find_source_uri("source-x", config, SPEC) is None
