"""Errors as Dagster shows them."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from atlas_dagster.errors import AtlasError, ConnectorFailedError


@contextmanager
def explained_failure() -> Iterator[None]:
    """Turn an error Atlas raises on purpose into a Failure with its one sentence.

    The connector's stack trace, if there is one, is in the metadata. Dagster itself never retries
    it: what may be retried, and when, is for Atlas to say.
    """
    try:
        yield
    except AtlasError as error:
        metadata: dict[str, dg.RawMetadataValue] = {"atlas/failure_type": error.failure_type}
        if isinstance(error, ConnectorFailedError) and error.stack_trace:
            metadata["atlas/stack_trace"] = text_block(error.stack_trace)
        raise dg.Failure(
            description=str(error),
            metadata=metadata,
            allow_retries=False,
        ) from None


def text_block(text: str) -> dg.MarkdownMetadataValue:
    """``text`` of several lines, as it is."""
    fenced = text.replace("```", "` ` `")
    return dg.MetadataValue.md(f"```\n{fenced}\n```")
