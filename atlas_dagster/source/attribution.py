"""Which streams a message is about, where the message alone does not say it."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

from atlas_dagster.protocol.messages import StreamDescriptor


class StreamNames:
    """The selected streams, found by the names that messages give.

    Some sources leave the namespace out of their messages although their catalog has one.
    """

    def __init__(self, streams: Iterable[StreamDescriptor]) -> None:
        self._by_name: dict[str, list[StreamDescriptor]] = {}
        for stream in streams:
            self._by_name.setdefault(stream.name, []).append(stream)

    def find(self, named: StreamDescriptor) -> StreamDescriptor | None:
        """The stream called ``named``, or the only one of that name; None where there is none."""
        candidates = self._by_name.get(named.name, [])
        if named in candidates:
            return named
        return candidates[0] if named.namespace is None and len(candidates) == 1 else None

    def ambiguous(self, named: StreamDescriptor) -> list[StreamDescriptor]:
        """The streams that ``named``, without a namespace, may mean, where these are several."""
        candidates = self._by_name.get(named.name, [])
        several = named.namespace is None and named not in candidates and len(candidates) > 1
        return candidates if several else []


class Strangers:
    """Streams that were not asked for; the user is told of each once, and of so many only."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def is_new(self, name: str) -> bool:
        name = name[:_NAME_CHARACTERS]
        if name in self._names or len(self._names) >= _MOST_STRANGERS:
            return False
        self._names.add(name)
        return True


_MOST_STRANGERS = 1_000
_NAME_CHARACTERS = 200


def no_namespace(candidates: Iterable[StreamDescriptor]) -> str:
    """Why messages for one of ``candidates`` cannot be used."""
    names = ", ".join(map(str, candidates))
    return (
        f"the source sent messages without a namespace, which may be of any of {names}; "
        "select one of these streams only, or report it to the connector's maintainers"
    )


class CountedStream(Protocol):
    """A stream whose records are counted between states."""

    records_since_state: int
    #: Whether a STREAM state of it came.
    state_seen: bool

    @property
    def full_refresh(self) -> bool: ...


Counted = TypeVar("Counted", bound=CountedStream)


def counted_together(streams: Iterable[Counted], count: float | None) -> list[Counted]:
    """The streams whose records the ``count`` in a state of all streams includes.

    Full refreshes beside it are included by some sources; in others they have states, and counts,
    of their own.
    """
    found = list(streams)
    together = [stream for stream in found if not stream.full_refresh]
    if count is not None and int(count) == records_since_state(together):
        return together
    return [*together, *(each for each in found if each.full_refresh and not each.state_seen)]


def records_since_state(streams: Iterable[CountedStream]) -> int:
    return sum(stream.records_since_state for stream in streams)
