"""The envelope: the description of one commit, stored before the commit takes effect.

Data files are staged first. The envelope lists them beside the connector's state and a sequence
number, the ``seq``. Then each table takes its files and the ``seq`` in one transaction. So the
``seq`` of a table identifies the envelope, and with it the state, that belongs to its rows.
"""

import secrets
import time
from functools import cached_property
from typing import Literal

import msgspec
from msgspec import Raw, Struct

from atlas_dagster.format_versions import version_of
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState

#: Version 2 added ``cursor_field``, ``wiped_at`` and ``covers``.
VERSION = 2
#: Replaces the state in a reference.
_NO_STATE = Raw(b"null")
WriteMode = Literal["append", "overwrite", "append_dedup"]
#: The reason for a commit: a sync, or a state edit by the user, which has no rows.
Action = Literal["sync", "refresh", "clear", "reset", "set", "accept"]


class StagedFile(Struct, frozen=True):
    """A data file that is written, but not part of its table yet.

    ``path`` is relative to the table; ``size`` is in bytes; ``stats`` are Delta's file statistics.
    """

    path: str
    size: int
    rows: int
    stats: str


class StreamCommit(Struct, frozen=True):
    """One stream's part of a commit.

    ``replaces``: older rows of the table are removed; if the commit is ``unpublished``, when the
    stream is complete. ``primary_key``: the fields by which the table has one row per value; empty
    if it may have more. ``unpublished``: the rows are not in the table yet, because the stream is
    read from the beginning and incomplete. ``continues``: the unpublished or unmerged rows of
    earlier commits belong to this one; otherwise they are dropped. ``full_refresh``: the stream was
    read in full, so an incremental read cannot continue from its state. ``started_by_run``: the
    root run that started the read. ``data_seq``: the ``seq`` of the commit that last changed the
    rows, if it is an earlier one. ``cursor_field``: the cursor of the state; None if unknown.
    ``wiped_at``: when Dagster last wiped the asset before this commit was planned.
    """

    stream: StreamDescriptor
    table: tuple[str, ...]
    generation_id: int
    replaces: bool
    files: tuple[StagedFile, ...] = ()
    primary_key: tuple[tuple[str, ...], ...] = ()
    unpublished: bool = msgspec.field(default=False, name="held")
    continues: bool = False
    full_refresh: bool = False
    started_by_run: str | None = msgspec.field(default=None, name="begun_by")
    data_seq: int | None = msgspec.field(default=None, name="rows_of")
    cursor_field: tuple[str, ...] | None = None
    wiped_at: float | None = None

    def following(self, last: "Envelope | None") -> "StreamCommit":
        """Return this commit after ``last``, whose ``data_seq`` it keeps if it changes no rows."""
        if last is None:
            return self
        changes = self.files or self.replaces or last.commit_of(self.stream).unpublished
        if changes and not self.unpublished:
            return self
        return msgspec.structs.replace(self, data_seq=last.data_seq(self.stream))

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


class Envelope(Struct, frozen=True, dict=True):
    """One commit. ``state`` is the content of a state file; times are in epoch seconds.

    ``covers``: the streams that a shared state covers; empty if unknown. ``wipes_until``: only in
    version 1, which did not store ``wiped_at``; wipes until then were before the commit.
    """

    seq: int
    sync_id: int
    connection: str
    streams: tuple[StreamCommit, ...]
    state: Raw
    prepared_at: float
    run_id: str | None = None
    action: Action = "sync"
    covers: tuple[StreamDescriptor, ...] = ()
    wipes_until: float | None = None
    version: int = VERSION

    @cached_property
    def connection_state(self) -> ConnectionState:
        """The parsed ``state``."""
        return ConnectionState.from_file(self.state)

    def commit_of(self, stream: StreamDescriptor) -> StreamCommit:
        return next(commit for commit in self.streams if commit.stream == stream)

    def data_seq(self, stream: StreamDescriptor) -> int:
        """Return the ``seq`` of the last commit that changed the stream's rows."""
        return self.commit_of(stream).data_seq or self.seq

    def has_heeded(self, wiped_at: float | None, stream: StreamDescriptor) -> bool:
        """Return whether the commit was planned after the asset's wipe at ``wiped_at``, if any."""
        if wiped_at is None:
            return True
        if self.wipes_until is not None and self.commit_of(stream).wiped_at is None:
            return wiped_at <= self.wipes_until
        return self.commit_of(stream).wiped_at == wiped_at

    def commit_to(self, table: tuple[str, ...]) -> StreamCommit:
        return next(commit for commit in self.streams if commit.table == table)

    def without_files(self) -> "Envelope":
        """Return the envelope as events store it; only the destination needs the files."""
        bare = tuple(msgspec.structs.replace(commit, files=()) for commit in self.streams)
        return msgspec.structs.replace(self, streams=bare)

    def reference(self) -> "Envelope":
        """Return the envelope without its state, to look it up by."""
        return msgspec.structs.replace(self, state=_NO_STATE)

    @property
    def is_reference(self) -> bool:
        return bytes(self.state) == bytes(_NO_STATE)

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, content: bytes | str) -> "Envelope":
        """Read an envelope of any version so far.

        Raises:
            ConfigError: a newer Atlas wrote it.
            msgspec.MsgspecError: it is not a valid envelope.
        """
        version = version_of(content, known=VERSION, what="The stored state of a connection")
        envelope = msgspec.json.decode(content, type=cls)
        if version == 1:
            envelope = msgspec.structs.replace(envelope, wipes_until=envelope.prepared_at)
        return msgspec.structs.replace(envelope, version=VERSION)


def next_seq(last: int) -> int:
    """Return a sequence number after ``last`` that no other process draws.

    It is random, so that a stale process that started from the same ``last`` gets another one.
    """
    return last + 1 + secrets.randbelow(2**32)


def now() -> float:
    """Return epoch seconds."""
    return time.time()
