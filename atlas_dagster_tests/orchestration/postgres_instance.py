"""A Dagster instance whose event log is a Postgres database of its own."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any
from uuid import uuid4

import dagster as dg
import psycopg2


@contextmanager
def postgres_instance(server: Mapping[str, Any]) -> Iterator[dg.DagsterInstance]:
    """``server`` is the fixture ``postgres_url``."""
    settings = new_database(server)
    with dg.instance_for_test(
        overrides={"storage": {"postgres": {"postgres_db": settings}}}
    ) as instance:
        yield instance


def new_database(server: Mapping[str, Any]) -> dict[str, Any]:
    """A database of its own on ``server``, as Dagster's ``postgres_db``."""
    database = f"dagster_{uuid4().hex}"
    connection = psycopg2.connect(
        host=server["hostname"],
        port=server["port"],
        user=server["username"],
        password=server["password"],
        dbname=server["db_name"],
    )
    with closing(connection):
        connection.autocommit = True
        connection.cursor().execute(f"CREATE DATABASE {database}")
    # Without the scheme, SQLAlchemy 2.1 would want psycopg 3.
    return {**server, "db_name": database, "scheme": "postgresql+psycopg2"}
