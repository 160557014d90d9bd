"""The envelope: what one commit holds, written durably before the commit counts.

Data files are staged first; the envelope lists them beside the connector's state and a sequence
number; then each table takes its files and that number in one transaction. The number a table holds
says which envelope, and so which state, belongs to its rows.
"""

import secrets
import time
from typing import Literal

import msgspec
from msgspec import Raw, Struct

from atlas_dagster.format_versions import version_of
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState

#: 2: ``cursor_field``, ``wiped_at`` and ``covers``.
VERSION = 2
#: In place of a state that is kept elsewhere.
_ELSEWHERE = Raw(b"null")
WriteMode = Literal["append", "overwrite", "append_dedup"]
#: What a commit was made for: a sync's rows, or a user's word about the state, without rows.
Action = Literal["sync", "refresh", "clear", "reset", "set", "accept"]


class StagedFile(Struct, frozen=True):
    """A data file that is written but not yet part of its table.

    ``path`` is relative to the table, ``size`` in bytes, ``stats`` Delta's per-file statistics.
    """

    path: str
    size: int
    rows: int
    stats: str


class StreamCommit(Struct, frozen=True):
    """One stream's part of a commit.

    ``replaces``: older rows of the table go; where this one is ``unpublished``, once the stream is
    complete. ``primary_key``: paths of the key that the table has one row for; none if it may have
    more. ``unpublished``: its rows are not shown yet, for the stream is read from the beginning and
    not complete. ``continues``: what is held, or waits for its merge, from commits before belongs
    to it; otherwise that goes. ``full_refresh``: the stream was read in full, so its state is none
    that an incremental read could go on from. ``started_by_run``: the root run that began that
    reading. ``data_seq``: the ``seq`` of the commit that the rows are of, where this one leaves
    them alone. ``cursor_field``: the cursor that the stream's state is of; None where that is not
    known. ``wiped_at``: when the asset was wiped last, as Dagster keeps it, before this was
    planned.
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
        """This commit as it follows ``last``, whose rows stay where it shows none of its own."""
        if last is None:
            return self
        shows = self.files or self.replaces or last.commit_of(self.stream).unpublished
        if shows and not self.unpublished:
            return self
        return msgspec.structs.replace(self, data_seq=last.data_seq(self.stream))

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


class Envelope(Struct, frozen=True):
    """One commit. ``state`` is a state file's content; times are epoch seconds.

    ``covers``: all streams that a state of several streams covers, none where it is not known.
    ``wipes_until``: of version 1, which did not say which wipe it was planned after; any until then
    counts as that.
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

    @property
    def connection_state(self) -> ConnectionState:
        return ConnectionState.from_file(self.state)

    def commit_of(self, stream: StreamDescriptor) -> StreamCommit:
        return next(commit for commit in self.streams if commit.stream == stream)

    def data_seq(self, stream: StreamDescriptor) -> int:
        """The ``seq`` of the last commit that changed the stream's rows."""
        return self.commit_of(stream).data_seq or self.seq

    def has_heeded(self, wiped_at: float | None, stream: StreamDescriptor) -> bool:
        """Whether ``stream`` was planned after its asset was wiped, if it was, at ``wiped_at``."""
        if wiped_at is None:
            return True
        if self.wipes_until is not None and self.commit_of(stream).wiped_at is None:
            return wiped_at <= self.wipes_until
        return self.commit_of(stream).wiped_at == wiped_at

    def commit_to(self, table: tuple[str, ...]) -> StreamCommit:
        return next(commit for commit in self.streams if commit.table == table)

    def without_files(self) -> "Envelope":
        """The envelope as events carry it: files matter only to the destination."""
        bare = tuple(msgspec.structs.replace(commit, files=()) for commit in self.streams)
        return msgspec.structs.replace(self, streams=bare)

    def reference(self) -> "Envelope":
        """What to look the envelope up by, without its state."""
        return msgspec.structs.replace(self, state=_ELSEWHERE)

    @property
    def is_reference(self) -> bool:
        return bytes(self.state) == bytes(_ELSEWHERE)

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, content: bytes | str) -> "Envelope":
        """Read an envelope of any version so far.

        Raises:
            ConfigError: a newer Atlas wrote it.
            msgspec.MsgspecError: it is no envelope.
        """
        version = version_of(content, known=VERSION, what="The stored state of a connection")
        envelope = msgspec.json.decode(content, type=cls)
        if version == 1:
            envelope = msgspec.structs.replace(envelope, wipes_until=envelope.prepared_at)
        return msgspec.structs.replace(envelope, version=VERSION)


def next_seq(last: int) -> int:
    """A sequence number after ``last`` that no other attempt will ever draw.

    The random part keeps a stale process, which started from the same ``last``, from preparing the
    same number.
    """
    return last + 1 + secrets.randbelow(2**32)


def now() -> float:
    """Epoch seconds."""
    return time.time()
