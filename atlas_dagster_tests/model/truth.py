"""What a source holds, what it sends of that, and what its tables must show.

The rule of which version of a row is the newest stands here once more, in its plainest form
(:func:`newest`), for the tables to be compared with.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from atlas_dagster.protocol.catalog import CDC_DELETED_AT, ConfiguredStream, Stream, configure
from atlas_dagster.runners.base import ConnectorCommand
from atlas_dagster_tests.model.values import MISSING, Cursor, CursorKind, Key, KeyKind

StateType = Literal["STREAM", "GLOBAL", "LEGACY"]
Mode = Literal["append", "append_dedup", "overwrite"]
#: Fields that every record has: its number, its key and its cursor.
REVISION, KEY, CURSOR = "rev", "key", "cur"


@dataclass(frozen=True)
class Version:
    """One record: the state of one row at one time."""

    revision: int
    key: Key
    cursor: Cursor
    payload: tuple[tuple[str, bytes], ...]
    deleted: bool = False

    @property
    def fields(self) -> dict[str, bytes]:
        """The record's JSON values, without those that are missing."""
        found = dict(self.payload)
        found |= {REVISION: b"%d" % self.revision, KEY: self.key.raw, CURSOR: self.cursor.raw}
        found[CDC_DELETED_AT] = b'"2024-01-01T00:00:00Z"' if self.deleted else b"null"
        return {name: raw for name, raw in found.items() if raw != MISSING}

    def line(self, stream: str, emitted_at: int) -> bytes:
        data = b",".join(
            json.dumps(name).encode() + b":" + raw for name, raw in self.fields.items()
        )
        return b'{"type":"RECORD","record":{"stream":"%s","emitted_at":%d,"data":{%s}}}\n' % (
            stream.encode(),
            emitted_at,
            data,
        )

    def rank(self, cursor_field: str) -> int | None:
        return self.revision if cursor_field == REVISION else self.cursor.rank


def newest(versions: Iterable[Version], cursor_field: str) -> Version | None:
    """The newest of ``versions`` of one key, which are in order of arrival."""
    found: Version | None = None
    for version in versions:
        rank, best = version.rank(cursor_field), found.rank(cursor_field) if found else None
        if rank is None or best is None or rank >= best:
            found = version
    return found


@dataclass
class StreamTruth:
    """One stream: all versions of its rows in the order in which they were made.

    ``kept``: the versions whose rows the table is built of, in order of arrival, up to ``position``
    in the source's log. ``reached``: how far a sync that did not end well may have come.
    ``replacing``: the old rows stay only until the stream has been read again.
    """

    name: str
    mode: Mode
    key: KeyKind
    cursor: CursorKind
    hard_deletes: bool = False
    cursor_field: str = CURSOR
    properties: dict[str, Any] = field(default_factory=dict)
    log: list[Version] = field(default_factory=list)
    kept: list[Version] = field(default_factory=list)
    position: int = 0
    reached: int = 0
    replacing: bool = False

    def configured(self) -> ConfiguredStream:
        """The stream as it is discovered and declared now."""
        properties = {
            **self.properties,
            REVISION: {"type": "integer"},
            KEY: self.key.schema,
            CURSOR: self.cursor.schema,
            CDC_DELETED_AT: {"type": ["null", "string"], "format": "date-time"},
        }
        offered = {
            "name": self.name,
            "json_schema": {"type": "object", "properties": properties},
            "supported_sync_modes": ["full_refresh", "incremental"],
            "source_defined_cursor": False,
        }
        return configure(
            Stream.from_raw(json.dumps(offered).encode()),
            sync_mode="full_refresh" if self.mode == "overwrite" else "incremental",
            destination_sync_mode=self.mode,
            cursor_field=(self.cursor_field,),
            primary_key=((KEY,),),
            hard_deletes=self.hard_deletes and self.mode == "append_dedup",
        )

    def restart(self, *, keep_rows: bool) -> None:
        """The next sync reads from the beginning."""
        self.position = self.reached = 0
        if not keep_rows:
            self.kept = []
            self.replacing = True

    def settle(self, position: int) -> None:
        """Learn that the next sync goes on from ``position``."""
        assert self.position <= position <= self.reached, (
            f"{self.name} goes on from {position}; it was committed between {self.position} and "
            f"{self.reached}"
        )
        self.kept += self.log[self.position : position]
        self.position = self.reached = position

    def complete(self, position: int, until: int) -> None:
        """A sync from ``position`` to ``until`` was complete."""
        if self.mode == "overwrite":
            self.kept, self.position, self.reached = [], 0, 0
            self.kept = self.log[:until]
            return
        self.settle(position)
        self.kept += self.log[position:until]
        self.position = self.reached = until
        self.replacing = False

    def expected(self) -> Counter[int]:
        """The revisions that the table shows once its stream is complete, and how often."""
        if self.mode != "append_dedup":
            return Counter(version.revision for version in self.kept)
        apart = [version for version in self.kept if version.key.identity is None]
        groups: dict[str, list[Version]] = {}
        for version in self.kept:
            if version.key.identity is not None:
                groups.setdefault(version.key.identity, []).append(version)
        found = (newest(versions, self.cursor_field) for versions in groups.values())
        shown = [*apart, *filter(None, found)]
        return Counter(v.revision for v in shown if not (self.hard_deletes and v.deleted))

    def compact(self) -> None:
        """Keep what the table shows only, for it is all that is left of the past."""
        shown = self.expected()
        kept = []
        for version in reversed(self.kept):  # one that was sent again may show once only
            if shown[version.revision] > 0:
                shown[version.revision] -= 1
                kept.append(version)
        self.kept = kept[::-1]


class Source:
    """A connector over ``streams``, which a sync talks to; it notes what it was asked."""

    def __init__(
        self,
        streams: Mapping[str, StreamTruth],
        state_type: StateType,
        *,
        chunk: int,
        clock: Iterator[int],
        selected: Collection[str],
    ) -> None:
        self._streams = streams
        self._state_type = state_type
        self._chunk = chunk
        self._clock = clock
        #: Where each stream was asked to go on from, and how far it was sent.
        self.given: dict[str, int] = dict.fromkeys(selected, 0)
        self.until = {name: len(streams[name].log) for name in selected}
        self.sent: dict[str, int] = {}

    @property
    def has_news(self) -> bool:
        """Whether each stream sent a record, so that each has a commit of its own."""
        return all(self.sent.get(name, 0) > self.given[name] for name in self.given)

    def __call__(self, command: ConnectorCommand) -> Iterator[bytes]:
        catalog = json.loads(command.files["catalog"])
        asked = [entry["stream"]["name"] for entry in catalog["streams"]]
        whole = [s["stream"]["name"] for s in catalog["streams"] if s["sync_mode"] != "incremental"]
        stored = json.loads(command.files.get("state") or "[]")
        self.given = dict.fromkeys(asked, 0) | {
            name: at for name, at in self.positions(stored).items() if name in asked
        }
        self.given |= dict.fromkeys(whole, 0)
        self.sent = dict(self.given)
        for name in asked:
            log = self._streams[name].log[: self.until[name]]
            place = self.given[name]
            while place < len(log):
                part = log[place : place + self._chunk]
                yield b"".join(v.line(name, next(self._clock)) for v in part)
                place += len(part)
                self.sent[name] = place
                if name not in whole:
                    yield self._state(name, len(part))
            if place == self.given[name] and name not in whole:
                yield self._state(name, 0)
            yield _line(
                "TRACE",
                trace={
                    "type": "STREAM_STATUS",
                    "emitted_at": 1.0,
                    "stream_status": {"stream_descriptor": {"name": name}, "status": "COMPLETE"},
                },
            )

    def positions(self, stored: Any) -> dict[str, int]:
        if isinstance(stored, dict):  # a LEGACY state without a type
            return {name: int(at) for name, at in stored.items()}
        found: dict[str, int] = {}
        for message in stored:
            entries = [message["stream"]] if message["type"] == "STREAM" else []
            if message["type"] == "GLOBAL":
                entries = message["global"]["stream_states"]
            for entry in entries:
                found[entry["stream_descriptor"]["name"]] = entry["stream_state"]["at"]
        return found

    def _state(self, name: str, count: int) -> bytes:
        at = {n: p for n, p in self.sent.items() if self._streams[n].mode != "overwrite"}
        stats = {"sourceStats": {"recordCount": float(count)}}
        entries = [
            {"stream_descriptor": {"name": n}, "stream_state": {"at": p}} for n, p in at.items()
        ]
        match self._state_type:
            case "STREAM":
                (entry,) = (e for e in entries if e["stream_descriptor"]["name"] == name)
                return _line("STATE", state={"type": "STREAM", "stream": entry, **stats})
            case "GLOBAL":
                shared = {"shared_state": {"lsn": sum(at.values())}, "stream_states": entries}
                return _line("STATE", state={"type": "GLOBAL", "global": shared, **stats})
            case "LEGACY":
                return _line("STATE", state={"data": at, **stats})


def _line(kind: str, **content: Any) -> bytes:
    return json.dumps({"type": kind, **content}).encode() + b"\n"
