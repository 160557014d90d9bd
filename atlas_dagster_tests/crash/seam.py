"""The steps of a sync that matter to "exactly once", watched from outside.

They are wrapped where a sync meets its destination and Dagster's event log, on the objects
themselves, so it does not matter which classes are behind them.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import dagster as dg

from atlas_dagster.destinations.base import Destination, StreamWriter, TableSnapshot
from atlas_dagster.destinations.delta.writer import DeltaWriter
from atlas_dagster.destinations.envelope import Envelope

Side = Literal["before", "after"]
_EVENTS = {"ASSET_OBSERVATION": "observation", "ASSET_MATERIALIZATION": "materialization"}


class Point(NamedTuple):
    """A moment in a sync: just before or after a step, of one stream where it has any."""

    step: str
    side: Side
    stream: str = ""

    def __str__(self) -> str:
        return f"{self.side} {self.step} {self.stream}".strip()


class Strike(NamedTuple):
    """``action`` happens when ``point`` is passed for the ``nth`` time."""

    point: Point
    nth: int
    action: Callable[[], None]


class Seam:
    """Counts the points that a sync passes, times its steps, and strikes at one of them."""

    def __init__(self, strike: Strike | None) -> None:
        self.passed: Counter[Point] = Counter()
        self.seconds: dict[str, list[float]] = {}
        self.struck = False
        self._strike = strike

    def watch_destination(self, destination: Destination) -> None:
        self._watch(destination, "recover", lambda _: [""])
        self._watch(destination, "prepare", _streams)
        self._watch(destination, "commit", lambda envelope, _: _streams(envelope))
        self._watch(destination, "prune_envelopes", lambda *_: [""])
        self._watch(
            destination,
            "inspect",
            lambda _: [],
            then=lambda snapshot, _: self._watch_snapshot(snapshot),
        )

    def _watch_snapshot(self, snapshot: TableSnapshot) -> None:
        self._watch(
            snapshot,
            "open",
            lambda spec: [spec.path[-1]],
            then=lambda writer, spec: self._watch_writer(writer, spec.path[-1]),
        )

    def _watch_writer(self, writer: StreamWriter, stream: str) -> None:
        def unpublished(envelope: Envelope) -> bool:
            return next(
                commit.unpublished for commit in envelope.streams if commit.table[-1] == stream
            )

        for step in ("write", "stage", "merge_committed"):
            self._watch(writer, step, lambda *_: [stream])
        for called, which in (("table's commit", False), ("table's held commit", True)):
            self._watch(
                writer,
                "commit",
                lambda envelope, which=which: [stream] if unpublished(envelope) is which else [],
                called=called,
            )
        if isinstance(writer, DeltaWriter):
            self._watch(writer.tables, "tidy", lambda: [stream])

    def watch_event_log(self, instance: dg.DagsterInstance) -> None:
        def streams(event: dg.EventLogEntry) -> list[str]:
            happened = event.dagster_event
            key = happened.asset_key if happened else None
            name = key.path[-1] if key else ""
            # The asset of the source is named after the connection.
            return ["source" if name.startswith("source_") else name] if name else []

        for kind, called in _EVENTS.items():
            self._watch(
                instance.event_log_storage,
                "store_event",
                lambda event, kind=kind: streams(event) if _is(event, kind) else [],
                called=called,
            )

    def _watch(
        self,
        owner: object,
        step: str,
        streams_of: Callable[..., Iterable[str]],
        *,
        called: str = "",
        then: Callable[..., None] = lambda *_: None,
    ) -> None:
        original = getattr(owner, step)
        called = called or step

        def watched(*arguments: Any) -> Any:
            streams = list(streams_of(*arguments))
            self._pass(called, "before", streams)
            started = time.perf_counter()
            result = original(*arguments)
            if streams:
                self.seconds.setdefault(called, []).append(time.perf_counter() - started)
            then(result, *arguments)
            self._pass(called, "after", streams)
            return result

        setattr(owner, step, watched)

    def _pass(self, step: str, side: Side, streams: Iterable[str]) -> None:
        for stream in streams:
            point = Point(step, side, stream)
            self.passed[point] += 1
            strike = self._strike
            if strike and strike.point == point and strike.nth == self.passed[point]:
                self.struck = True
                strike.action()


def _streams(envelope: Envelope) -> list[str]:
    return [commit.table[-1] for commit in envelope.streams]


def _is(event: dg.EventLogEntry, kind: str) -> bool:
    return event.dagster_event is not None and event.dagster_event.event_type_value == kind
