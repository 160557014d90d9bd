"""Dagster's own database: its address, and locks in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import sqlalchemy as sa
from filelock import FileLock

#: The number of the lock for catalogs. Nothing else in Dagster's database uses it.
_CATALOGS = 0x61746C6173


def postgres_url(instance: dg.DagsterInstance) -> sa.URL | None:
    """Return the address of Dagster's database; None if it is not Postgres."""
    # Only the storage of dagster-postgres has an address; the package need not be installed.
    address = getattr(instance.run_storage, "postgres_url", None)
    return sa.make_url(address) if isinstance(address, str) else None


@contextmanager
def catalog_lock(instance: dg.DagsterInstance) -> Iterator[None]:
    """Let one process at a time write catalogs, until the block ends or the process dies.

    Dagster stores the newest versions of all catalogs as one value. A writer reads, changes and
    writes it, so two writers at once would lose the versions of one of them.
    """
    url = postgres_url(instance)
    if url is None:
        with FileLock(Path(instance.root_directory) / "catalogs.lock", thread_local=False):
            yield
        return
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as database:
        database.execute(sa.select(sa.func.pg_advisory_xact_lock(_CATALOGS)))
        yield


def try_lock(database: sa.Connection, name: str) -> bool:
    """Lock ``name`` in Postgres until the database session ends. Return whether it was free."""
    lock = sa.text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))")
    return bool(database.scalar(lock.bindparams(name=name)))
