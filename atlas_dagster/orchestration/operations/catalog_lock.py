"""One writer at a time of the catalogs in Dagster's versioned storage.

Dagster keeps the newest versions of all of them as one value in its database, which each writer
reads, changes and writes back. Of two at once, as when several connections are discovered in one
run, one would be lost.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import sqlalchemy as sa
from filelock import FileLock

from atlas_dagster.orchestration.step.projections import postgres_url

#: Of a Postgres advisory lock; any number that nobody else takes in Dagster's database.
_KEY = 0x61746C6173


@contextmanager
def catalog_lock(instance: dg.DagsterInstance) -> Iterator[None]:
    """Held until the block is left, or its process dies."""
    url = postgres_url(instance)
    if url is None:
        with FileLock(Path(instance.root_directory) / "catalogs.lock", thread_local=False):
            yield
        return
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as database:
        database.execute(sa.select(sa.func.pg_advisory_xact_lock(_KEY)))
        yield
