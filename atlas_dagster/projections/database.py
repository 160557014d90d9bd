"""The database of the SQL tables: a schema in Postgres, or a SQLite file. Opening migrates it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from filelock import FileLock
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from atlas_dagster.format_versions import refuse_newer
from atlas_dagster.projections.tables import SCHEMA

#: The newest revision in ``migrations/versions``. If the tables already have this revision, Atlas
#: does not import Alembic, which is slow.
HEAD = "0001"
VERSION_TABLE = "alembic_version"

#: Timeout in milliseconds, because the tables must not delay a sync.
_TIMEOUT_MS = 5000


def engine(url: sa.URL) -> sa.Engine:
    """Return an engine. For Postgres, it keeps one connection open, because opening is slow."""
    if url.get_backend_name() == "postgresql":
        options = f"-c statement_timeout={_TIMEOUT_MS} -c lock_timeout={_TIMEOUT_MS}"
        arguments = {"connect_timeout": _TIMEOUT_MS // 1000, "options": options}
        created = sa.create_engine(url, pool_size=1, pool_pre_ping=True, connect_args=arguments)
        return created.execution_options(schema_translate_map={None: SCHEMA})
    return sa.create_engine(url, poolclass=NullPool, connect_args={"timeout": _TIMEOUT_MS / 1000})


def migrate(database: sa.Engine) -> None:
    """Create the tables, or migrate those of an older Atlas.

    If several processes call this at once, one migrates and the others wait.

    Raises:
        SQLAlchemyError: the database cannot be reached, or refuses permission.
        ConfigError: a newer Atlas made the tables.
        OSError: the file's folder cannot be written.
    """
    found = _find_revision(database)
    if found == HEAD:
        return
    refuse_newer(int(found or 0), known=int(HEAD), what="The schema of these SQL tables")
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "atlas_dagster:projections/migrations")
    config.set_main_option("path_separator", "os")
    with _locked(database), database.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def schema_of(database: sa.Engine) -> str | None:
    return SCHEMA if database.dialect.name == "postgresql" else None


def _find_revision(database: sa.Engine) -> str | None:
    table = sa.table(VERSION_TABLE, sa.column("version_num"), schema=schema_of(database))
    try:
        with database.connect() as connection:
            found: str | None = connection.scalar(sa.select(table.c.version_num))
            return found
    except SQLAlchemyError:
        return None  # no table yet, or an error that the migration will also raise


@contextmanager
def _locked(database: sa.Engine) -> Iterator[None]:
    if database.dialect.name == "postgresql":
        yield  # the migration itself locks the database
        return
    path = Path(database.url.database or "")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=60):
        yield
