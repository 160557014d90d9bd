"""Errors as Dagster shows them."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from atlas_dagster.errors import AtlasError


@contextmanager
def explained_failure() -> Iterator[None]:
    """Turn an error Atlas raises on purpose into a Failure with its one sentence.

    Dagster itself never retries it: what may be retried, and when, is for Atlas to say.
    """
    try:
        yield
    except AtlasError as error:
        raise dg.Failure(
            description=str(error),
            metadata={"atlas/failure_type": error.failure_type},
            allow_retries=False,
        ) from None
