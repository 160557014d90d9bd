"""One connection: how it is synced, how its process dies, and how its tables are looked at."""

import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine

from atlas_dagster.config.masking import Masker
from atlas_dagster.errors import AtlasError
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.runners.fake import FakeRunner
from atlas_dagster.source.connector import Connector
from atlas_dagster.sync.session import SyncSession
from atlas_dagster.sync.state_edits import StateEditor
from atlas_dagster_tests.model.tables import differences, read_rows, revisions
from atlas_dagster_tests.model.truth import (
    Source,
    StateType,
    StreamTruth,
    Version,
)
from atlas_dagster_tests.model.values import (
    FIELDS,
    PAYLOADS,
    Cursor,
    Key,
)
from atlas_dagster_tests.sync.fake_source import EAGER, Lake, upkeep


class Killed(BaseException):
    """The process is gone."""


class Connection(RuleBasedStateMachine):
    """The syncs of one connection, and what its tables must show; plays say what happens to it.

    ``steps``: where a process may die, before or after each call of these.
    """

    steps: tuple[tuple[type, str], ...]
    streams: dict[str, StreamTruth]
    lake: Lake

    def __init__(self) -> None:
        super().__init__()
        self.state_type: StateType = "STREAM"
        self.clock = itertools.count(1_700_000_000_000)
        self.revisions, self.edits = itertools.count(1), itertools.count(1)
        self.versions: dict[int, Version] = {}
        # Either is enough to go on from, but one must be left until the next commit of all.
        self.lost_event_log = self.lost_envelopes = False

    def open_lake(self) -> Lake:
        """What a process finds when it starts."""
        raise NotImplementedError

    def close_lake(self, lake: Lake) -> None:
        """What the system does when a process ends."""
        lake.destination.close()

    def version(
        self,
        data: st.DataObject,
        stream: StreamTruth,
        key: Key | None = None,
        cursor: Cursor | None = None,
        *,
        deleted: bool = False,
    ) -> Version:
        payload = {field: data.draw(st.sampled_from(PAYLOADS)) for field in stream.properties}
        if data.draw(st.integers(0, 4)) == 0:
            payload[data.draw(st.sampled_from(FIELDS))] = b'"undeclared"'
        version = Version(
            next(self.revisions),
            key or data.draw(st.sampled_from(stream.key.values)),
            cursor or data.draw(st.sampled_from(stream.cursor.values)),
            tuple(payload.items()),
            deleted,
        )
        self.versions[version.revision] = version
        return version

    def stop(self, stream: StreamTruth) -> None:
        """A sync stops ``stream`` and says that a refresh helps, which it does."""
        try:
            session, _ = self.prepare(self.lake, 2)
            for event in session.run():
                self.lake.store.note(event)
        except AtlasError as failure:
            assert "refresh" in str(failure), failure  # noqa: PT017
        else:
            raise AssertionError(f"{stream.name} was not stopped")
        for other in self.streams.values():
            if other is not stream:
                other.reached = len(other.log)
        self.reread(stream)

    def reread(self, stream: StreamTruth) -> None:
        chosen = [stream] if self.state_type == "STREAM" else list(self.streams.values())
        self.edit().refresh(descriptors(chosen), keep_rows=False)
        for each in chosen:
            each.restart(keep_rows=False)
        self.sync_whole(2)

    def draw_stream(self, data: st.DataObject) -> StreamTruth:
        return self.streams[data.draw(st.sampled_from(sorted(self.streams)))]

    def draw_chosen(self, data: st.DataObject) -> list[StreamTruth]:
        """One stream, or all where they cannot be divided."""
        if self.state_type != "STREAM":
            return list(self.streams.values())
        return [self.draw_stream(data)]

    def prepare(self, lake: Lake, chunk: int) -> tuple[SyncSession, Source]:
        source = Source(
            self.streams, self.state_type, chunk=chunk, clock=self.clock, selected=self.streams
        )
        connector = Connector(FakeRunner(source), name="source-x", masker=Masker(()))
        configured = [stream.configured() for stream in self.streams.values()]
        session, _ = lake.prepare(configured, connector=connector, **EAGER)
        return session, source

    def sync_whole(self, chunk: int) -> None:
        session, source = self.prepare(self.lake, chunk)
        for event in session.run():
            self.lake.store.note(event)
        self.completed(source)
        self.look_at_tables()

    def completed(self, source: Source) -> None:
        self.lake.runs += 1  # the next one is no retry of this
        if source.has_news:
            self.lost_event_log = self.lost_envelopes = False
        for name, given in source.given.items():
            self.streams[name].complete(given, source.until[name])

    def maybe(self, source: Source) -> None:
        """Some of what a sync brought may be committed."""
        for name, stream in self.streams.items():
            if stream.mode == "overwrite":
                stream.reached = -1
            else:
                stream.reached = max(stream.reached, source.until[name])

    def settle(self) -> None:
        """Learn how far syncs that died have come."""
        state = self.edit().resume_points.state
        source = Source(
            self.streams, self.state_type, chunk=1, clock=self.clock, selected=self.streams
        )
        found = source.positions(json.loads(state.to_file())) if state else {}
        for name, stream in self.streams.items():
            if stream.mode != "overwrite" and stream.position != stream.reached:
                stream.settle(found.get(name, 0))

    def edit(self) -> StateEditor:
        """What a user does, in a run of its own."""
        streams = [stream.configured() for stream in self.streams.values()]
        return upkeep(self.lake, *streams, run=f"edit {next(self.edits)}")

    def synced(self, stream: StreamTruth) -> bool:
        """Whether anything of the stream was ever committed."""
        destination = self.lake.destination
        return destination.inspect(("c", stream.name)).seq is not None

    def all_recorded(self) -> bool:
        """Whether the event log knows the last commit of every table."""
        known = self.lake.store.envelopes
        for name in self.streams:
            seq = self.lake.destination.inspect(("c", name)).seq
            last = known.get(StreamDescriptor(name))
            if seq is not None and (last is None or last.seq != seq):
                return False
        return True

    def look_at_tables(self) -> None:
        for name, stream in self.streams.items():
            rows = read_rows(self.lake, name)
            for row in rows or ():
                version = self.versions[int(row["rev"][0])]
                assert not (wrong := differences(row, version)), f"{name}: {wrong}"
            shown = revisions(rows)
            settled = stream.position == stream.reached and not stream.replacing
            if settled and (rows is not None or stream.expected()):
                assert shown == stream.expected(), f"{name} shows {shown}, not {stream.expected()}"
            elif stream.mode == "append_dedup":
                keys = [self.versions[revision].key.identity for revision in shown.elements()]
                twice = [key for key, count in Counter(keys).items() if key and count > 1]
                assert not twice, f"{name} has rows of one key twice: {shown}"

    @contextmanager
    def dying(self, nth: int, *, after: bool) -> Iterator[None]:
        """The process dies in the ``nth`` of its steps."""
        calls = itertools.count(1)
        dead = False

        def dying(original: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal dead
                if dead:
                    raise Killed  # nothing of what would clean up happens either
                is_last = next(calls) == nth
                dead = is_last and not after
                if dead:
                    raise Killed
                result = original(*arguments, **options)
                dead = is_last
                if dead:
                    raise Killed
                return result

            return call

        patches = [
            mock.patch.object(owner, step, dying(getattr(owner, step)))
            for owner, step in self.steps
        ]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()


def descriptors(streams: Collection[StreamTruth]) -> list[StreamDescriptor]:
    return [StreamDescriptor(stream.name) for stream in streams]
