"""What a sync tells whoever drives it, the moment it is durable."""

from msgspec import Raw, Struct

from atlas_dagster.destinations.base import TableInfo
from atlas_dagster.state.envelope import Envelope
from atlas_dagster.sync.stream_plan import StreamPlan


class Checkpoint(Struct, frozen=True):
    """A commit is durable; its streams may not be complete yet."""

    envelope: Envelope
    plans: tuple[StreamPlan, ...]


class StreamFinished(Struct, frozen=True):
    """A stream is complete and all its rows are durable.

    ``bytes`` are those of the records' JSON; ``seconds`` since the sync began. ``envelope`` is the
    stream's last commit: an older sync's where this one brought nothing new.
    """

    plan: StreamPlan
    records: int
    bytes: int
    seconds: float
    checkpoints: int
    cursor_before: Raw | None
    cursor_after: Raw | None
    envelope: Envelope | None
    table: TableInfo
    warnings: tuple[str, ...]


SyncEvent = Checkpoint | StreamFinished
