"""A new major version of a connector: allowed, and said."""

import re
from collections.abc import Collection, Iterator, Sequence

from atlas_dagster.registry import BreakingChange, ConnectorInfo

_VERSION = re.compile(r"[:=]v?((\d+)\.\d[\w.+-]*)")


def major_change(
    before: Collection[str], now: str, docs_url: str | None, published: ConnectorInfo | None
) -> Iterator[str]:
    """A sentence for each connector in ``before`` whose major version is not that of ``now``.

    Both are what a runner's ``identity`` returns; one without a version is never compared.
    ``published`` is what the registry says of it, where it is from there.
    """
    found = _VERSION.search(_own_part(now))
    for other in sorted(before) if found else ():
        was = _VERSION.search(_own_part(other))
        if was and found and was[2] != found[2]:
            breaking = published.breaking_changes_between(was[1], found[1]) if published else ()
            moved = f"The connector went from version {was[1]} to {found[1]} since the last sync."
            if breaking:
                yield f"{moved} {_told(breaking)}"
                continue
            notes = f" ({docs_url})" if docs_url else ""
            yield (
                f"{moved} "
                "A new major version may change streams, keys or states: read its migration notes"
                f"{notes}; where they ask for it, refresh the streams."
            )


def version_of(identity: str) -> str | None:
    """The version in what a runner's ``identity`` returns, if it tells one."""
    found = _VERSION.search(_own_part(identity))
    return found and found[1]


def _told(breaking: Sequence[BreakingChange]) -> str:
    changes = " ".join(change.told() for change in breaking)
    streams = sorted({stream for change in breaking for stream in change.streams})
    which = f"the streams {', '.join(streams)}" if streams else "the streams that the guide names"
    return f"{changes} Where the guide asks for it, refresh {which}."


def _own_part(identity: str) -> str:
    """Without the runner of a manifest, which has a version of its own."""
    return identity.partition(" (")[0]
