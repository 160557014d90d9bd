"""The database of the books: a schema in Postgres, or a file; brought up to date when opened."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from filelock import FileLock
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from atlas_dagster.format_versions import refuse_newer
from atlas_dagster.projections.tables import SCHEMA

#: The newest revision in ``migrations/versions``; where the tables are of it, Alembic, which takes
#: a while to import, is left alone.
HEAD = "0001"
VERSION_TABLE = "alembic_version"

#: Milliseconds; the books must not hold a sync up.
_PATIENCE = 5000


def engine(url: sa.URL) -> sa.Engine:
    """In Postgres one connection is kept, for a new one costs more than what is written."""
    if url.get_backend_name() == "postgresql":
        options = f"-c statement_timeout={_PATIENCE} -c lock_timeout={_PATIENCE}"
        arguments = {"connect_timeout": _PATIENCE // 1000, "options": options}
        made = sa.create_engine(url, pool_size=1, pool_pre_ping=True, connect_args=arguments)
        return made.execution_options(schema_translate_map={None: SCHEMA})
    return sa.create_engine(url, poolclass=NullPool, connect_args={"timeout": _PATIENCE / 1000})


def bring_up_to_date(books: sa.Engine) -> None:
    """Create the tables, or migrate those of an older Atlas.

    Of several processes that do so at once one does, and the others wait.

    Raises:
        SQLAlchemyError: the database cannot be reached, or gives no right to.
        ConfigError: a newer Atlas made the tables.
        OSError: the file's folder cannot be written.
    """
    found = _revision(books)
    if found == HEAD:
        return
    refuse_newer(int(found or 0), known=int(HEAD), what="The schema of these SQL tables")
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "atlas_dagster:projections/migrations")
    config.set_main_option("path_separator", "os")
    with _alone(books), books.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def schema_of(books: sa.Engine) -> str | None:
    return SCHEMA if books.dialect.name == "postgresql" else None


def _revision(books: sa.Engine) -> str | None:
    table = sa.table(VERSION_TABLE, sa.column("version_num"), schema=schema_of(books))
    try:
        with books.connect() as connection:
            found: str | None = connection.scalar(sa.select(table.c.version_num))
            return found
    except SQLAlchemyError:
        return None  # there is none yet; or the migration says what is wrong


@contextmanager
def _alone(books: sa.Engine) -> Iterator[None]:
    if books.dialect.name == "postgresql":
        yield  # the migration itself takes a lock of the database
        return
    path = Path(books.url.database or "")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=60):
        yield
