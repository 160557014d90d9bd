"""Plays: a source that changes at random, syncs that die or meet, hands of others, and one rule.

After each step the tables are compared with what :mod:`~atlas_dagster_tests.model.truth` says.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from msgspec import Raw

from atlas_dagster.destinations.delta.destination import DeltaDestination
from atlas_dagster.destinations.delta.filesystem import Store
from atlas_dagster.destinations.delta.parquet_stage import ParquetStage
from atlas_dagster.destinations.delta.table import LakeTable
from atlas_dagster.destinations.delta.writer import DeltaWriter
from atlas_dagster.destinations.postgres.connection import Database
from atlas_dagster.errors import AtlasError
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState
from atlas_dagster_tests.model.connection import Connection, Killed, descriptors
from atlas_dagster_tests.model.tables import read_rows, revisions
from atlas_dagster_tests.model.truth import (
    CURSOR,
    REVISION,
    Mode,
    StreamTruth,
)
from atlas_dagster_tests.model.values import (
    CURSORS,
    FIELDS,
    KEYS,
    TYPES,
    UNION,
)
from atlas_dagster_tests.sync.fake_source import Lake, Warehouse

_STREAMS = ("a", "b")
#: Where a process may die: before or after the nth call of any of these.
_DELTA_STEPS = (
    (DeltaDestination, "prepare"),
    (DeltaDestination, "prune_envelopes"),
    (DeltaWriter, "commit"),
    (LakeTable, "add"),
    (LakeTable, "reload"),
    (LakeTable, "widen"),
    (LakeTable, "clear"),
    (ParquetStage, "take_files"),
    (Store, "put"),
)
_POSTGRES_STEPS = ((Database, "run"), (Database, "copy"))


class Play(Connection):
    """What happens to a connection of one or two streams; subclasses say where its tables are."""

    # --- The beginning

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        draw = data.draw
        self.state_type = draw(
            st.sampled_from(("STREAM", "STREAM", "GLOBAL", "LEGACY")), "state type"
        )
        names = _STREAMS[: draw(st.integers(1, 2), "streams")]
        self.streams = {}
        for name in names:
            mode: Mode = draw(
                st.sampled_from(("append_dedup", "append_dedup", "append", "overwrite")), "mode"
            )
            self.streams[name] = StreamTruth(
                name,
                mode,
                KEYS[draw(st.sampled_from(sorted(KEYS)), "key")],
                CURSORS[draw(st.sampled_from(sorted(CURSORS)), "cursor")],
                hard_deletes=mode == "append_dedup" and draw(st.booleans(), "hard deletes"),
            )
        self.lake = self.open_lake()

    # --- The source changes

    @rule(data=st.data(), count=st.integers(1, 6))
    def write(self, data: st.DataObject, count: int) -> None:
        """New versions of rows."""
        for _ in range(count):
            stream = self.draw_stream(data)
            key = data.draw(st.sampled_from(stream.key.values))
            cursor = data.draw(st.sampled_from(stream.cursor.values))
            deleted = data.draw(st.integers(0, 4)) == 0
            if stream.hard_deletes:
                # Behind a deletion nothing older comes: a table keeps no trace of it for long.
                before = [v for v in stream.log if v.key.identity == key.identity and v.deleted]
                ranks = [v.cursor.rank for v in before if v.cursor.rank is not None]
                if ranks and cursor.rank is not None and cursor.rank < max(ranks):
                    continue
            stream.log.append(self.version(data, stream, key, cursor, deleted=deleted))

    @rule(data=st.data())
    def change_fields(self, data: st.DataObject) -> None:
        """Fields come, go, are renamed and change type."""
        stream = self.draw_stream(data)
        for _ in range(data.draw(st.integers(1, 3))):
            if stream.properties and data.draw(st.booleans()):
                gone = data.draw(st.sampled_from(sorted(stream.properties)))
                del stream.properties[gone]
            name = data.draw(st.sampled_from(FIELDS))
            stream.properties[name] = TYPES[data.draw(st.sampled_from(sorted(TYPES)))]

    # --- Syncs

    @rule(data=st.data())
    def sync(self, data: st.DataObject) -> None:
        """A sync that nothing disturbs."""
        self.sync_whole(data.draw(st.integers(1, 3)))

    @rule(data=st.data(), nth=st.integers(1, 40), after=st.booleans())
    def die(self, data: st.DataObject, nth: int, after: bool) -> None:
        """A sync dies at any step, and a new process looks at what it left."""
        session, source = self.prepare(self.lake, data.draw(st.integers(1, 3)))
        try:
            with self.dying(nth, after=after):
                for event in session.run():
                    self.lake.store.note(event)
        except Killed:
            self.maybe(source)
            dead, self.lake = self.lake, self.open_lake()
            self.close_lake(dead)  # as the system closes what a process leaves open
        except AtlasError as failure:
            raise AssertionError(f"a sync failed: {failure}") from failure
        else:
            self.completed(source)
        self.look_at_tables()

    @rule(data=st.data())
    def race(self, data: st.DataObject) -> None:
        """Two processes sync at once; whoever is refused, nothing is lost or twice."""
        other = self.open_lake()
        other.store, other.runs = self.lake.store, self.lake.runs + 1
        sessions = []
        for lake in (self.lake, other):
            session, source = self.prepare(lake, data.draw(st.integers(1, 3)))
            sessions.append((lake, session.run(), source))
        running = list(sessions)
        while running:
            turn = data.draw(st.integers(0, len(running) - 1)) if len(running) > 1 else 0
            lake, events, source = running[turn]
            try:
                lake.store.note(next(events))
            except (StopIteration, AtlasError):
                running.pop(turn)
        self.lake.runs += 2
        for _, _, source in sessions:
            self.maybe(source)
        self.look_at_tables()
        self.close_lake(other)
        self.close_lake(self.lake)
        self.lake = self.open_lake()

    # --- What users do

    @rule(data=st.data(), keep_rows=st.booleans())
    def refresh(self, data: st.DataObject, keep_rows: bool) -> None:
        chosen = self.draw_chosen(data)
        keep_rows = keep_rows and not any(s.replacing or s.mode == "overwrite" for s in chosen)
        self.settle()
        self.edit().refresh(descriptors(chosen), keep_rows=keep_rows)
        for stream in chosen:
            if self.synced(stream):
                stream.compact()
                stream.restart(keep_rows=keep_rows)

    @rule(data=st.data())
    def clear(self, data: st.DataObject) -> None:
        chosen = self.draw_chosen(data)
        self.settle()
        synced = [stream for stream in chosen if self.synced(stream)]
        self.edit().clear(descriptors(chosen))
        for stream in synced:
            stream.restart(keep_rows=False)
            stream.replacing = False
        self.look_at_tables()

    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        chosen = self.draw_chosen(data)
        if any(stream.replacing or stream.mode == "overwrite" for stream in chosen):
            return
        self.settle()
        self.edit().reset(descriptors(chosen))
        for stream in chosen:
            if self.synced(stream):
                stream.compact()
                stream.restart(keep_rows=True)

    @rule(data=st.data())
    def wipe(self, data: st.DataObject) -> None:
        """Wiped in Dagster: read again from the beginning."""
        chosen = self.draw_chosen(data)
        for stream in chosen:
            if self.synced(stream):
                self.lake.store.wipe(StreamDescriptor(stream.name))
                stream.restart(keep_rows=False)

    @precondition(lambda self: self.state_type == "STREAM")
    @rule(data=st.data())
    def set_state(self, data: st.DataObject) -> None:
        """Have a stream go on from an earlier position."""
        stream = self.draw_stream(data)
        if stream.mode == "overwrite" or stream.replacing:
            return
        self.settle()
        position = data.draw(st.integers(0, len(stream.log)))
        blob = Raw(json.dumps({"at": position}).encode())
        self.edit().set(ConnectionState("STREAM", {StreamDescriptor(stream.name): blob}))
        stream.compact()
        stream.position = stream.reached = position

    @rule(data=st.data())
    def declare_cursor(self, data: st.DataObject) -> None:
        """Another cursor_field stops the stream until it is refreshed."""
        stream = self.draw_stream(data)
        if stream.mode == "overwrite":
            return
        stream.cursor_field = REVISION if stream.cursor_field == CURSOR else CURSOR
        if not self.synced(stream) or stream.replacing:
            self.reread(stream)
            return
        self.stop(stream)

    @rule(data=st.data())
    def declare_mode(self, data: st.DataObject) -> None:
        """From append to append_dedup and back: the rows stay."""
        stream = self.draw_stream(data)
        if stream.mode == "overwrite" or stream.replacing or stream.hard_deletes:
            return
        if UNION in (stream.key.schema, stream.cursor.schema):
            return  # rows are compared by JSON, and kept as text where they are not compared
        if stream.key is KEYS["text"] and any(v.key.is_other_json for v in stream.log):
            return  # text keys of appended rows are compared by their column: 1 is "1" there
        self.sync_whole(2)
        stream.compact()
        stream.mode = "append" if stream.mode == "append_dedup" else "append_dedup"
        stream.log.append(self.version(data, stream))
        self.sync_whole(2)

    # --- Others' hands

    @precondition(lambda self: not isinstance(self.lake, Warehouse))
    @rule(data=st.data())
    def others_delete(self, data: st.DataObject) -> None:
        """Rows that somebody else deleted stop the stream."""
        stream = self.draw_stream(data)
        if stream.replacing or stream.mode == "overwrite":
            return
        if not revisions(read_rows(self.lake, stream.name)):
            return
        self.lake.table(stream.name).delete("rev > 0")
        self.stop(stream)

    @rule(data=st.data())
    def drop_table(self, data: st.DataObject) -> None:
        chosen = self.draw_chosen(data)
        if any(read_rows(self.lake, stream.name) is None for stream in chosen):
            return
        for stream in chosen:
            self.lake.drop(stream.name)
            stream.restart(keep_rows=False)

    @precondition(lambda self: not self.lost_envelopes)
    @rule()
    def lose_event_log(self) -> None:
        self.lake.store.envelopes.clear()
        self.lost_event_log = True

    @precondition(lambda self: self.state_type == "STREAM" and not self.lost_event_log)
    @rule()
    def lose_envelopes(self) -> None:
        if self.all_recorded() and any(map(self.synced, self.streams.values())):
            self.lake.lose_envelopes()
            self.lost_envelopes = True

    @precondition(lambda self: not isinstance(self.lake, Warehouse))
    @rule(vacuum=st.booleans())
    def others_maintain(self, vacuum: bool) -> None:
        for name in self.streams:
            if read_rows(self.lake, name) is not None:
                table = self.lake.table(name)
                table.optimize.compact()
                if vacuum:
                    table.vacuum(24, dry_run=False, enforce_retention_duration=False)

    @precondition(lambda self: not isinstance(self.lake, Warehouse))
    @rule()
    def maintain(self) -> None:
        destination = self.lake.destination
        assert isinstance(destination, DeltaDestination)
        for name in self.streams:
            if read_rows(self.lake, name) is not None:
                destination.maintain(("c", name), retain_hours=1)

    # --- The end

    def teardown(self) -> None:
        if not hasattr(self, "lake"):
            return
        try:
            self.sync_whole(2)
            self.sync_whole(2)
        finally:
            self.close_lake(self.lake)


class DeltaPlay(Play):
    """Tables in a folder in memory."""

    steps = _DELTA_STEPS

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self._root = tempfile.mkdtemp(dir=memory if memory.is_dir() else None)

    def open_lake(self) -> Lake:
        lake = Lake(Path(self._root))
        if hasattr(self, "lake"):
            lake.store, lake.runs = self.lake.store, self.lake.runs
        return lake

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            shutil.rmtree(self._root, ignore_errors=True)


class PostgresPlay(Play):
    """Tables in a database; ``server`` says where it is."""

    steps = _POSTGRES_STEPS
    server: dict[str, Any]

    def open_lake(self) -> Lake:
        if not hasattr(self, "lake"):
            return Warehouse(self.server)
        assert isinstance(self.lake, Warehouse)
        return Warehouse.again(self.lake, self.server)

    def close_lake(self, lake: Lake) -> None:
        assert isinstance(lake, Warehouse)
        lake.close()
