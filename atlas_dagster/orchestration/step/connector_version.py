"""A new major version of a connector: allowed, and said."""

import re
from collections.abc import Collection, Iterator, Sequence

from atlas_dagster.connector_versions import release
from atlas_dagster.registry import BreakingChange, ConnectorInfo

_VERSION = re.compile(r"[:=]v?(\d+\.\d[\w.+-]*)")


def major_change(
    before: Collection[str], now: str, docs_url: str | None, published: ConnectorInfo | None
) -> Iterator[str]:
    """A sentence for each connector in ``before`` whose major version is not that of ``now``.

    Both are what a runner's ``identity`` returns; one without a version is never compared.
    ``published`` is what the registry says of it, where it is from there.
    """
    found = version_of(now)
    for other in sorted(before):
        was = version_of(other)
        if was and found and release(was)[:1] != release(found)[:1]:
            breaking = published.breaking_changes_between(was, found) if published else ()
            moved = f"The connector went from version {was} to {found} since the last sync."
            if breaking:
                yield f"{moved} {_describe(breaking)}"
                continue
            notes = f" ({docs_url})" if docs_url else ""
            yield (
                f"{moved} "
                "A new major version may change streams, keys or states: read its migration notes"
                f"{notes}; where they ask for it, refresh the streams."
            )


def version_of(identity: str) -> str | None:
    """The version in what a runner's ``identity`` returns, if it tells one."""
    # The runner of a manifest comes in brackets, and has a version of its own.
    found = _VERSION.search(identity.partition(" (")[0])
    return found and found[1]


def _describe(breaking: Sequence[BreakingChange]) -> str:
    changes = " ".join(change.describe() for change in breaking)
    streams = sorted({stream for change in breaking for stream in change.streams})
    which = f"the streams {', '.join(streams)}" if streams else "the streams that the guide names"
    return f"{changes} Where the guide asks for it, refresh {which}."
