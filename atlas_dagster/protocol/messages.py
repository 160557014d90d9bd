"""The messages a source prints, as typed envelopes around raw JSON.

Only the envelope is decoded: record data, state blobs and schemas stay :class:`msgspec.Raw`, byte
for byte as the connector wrote them. Unknown fields are ignored and unknown enum values kept as
text, because nearly every object of the protocol is open (airbyte_protocol.yaml,
``additionalProperties: true``).
"""

from typing import Any

import msgspec
from msgspec import Raw, Struct

#: Default of a raw field: nothing was sent. Compare with :func:`present`, which also knows null.
ABSENT = Raw(b"")


def present(blob: Raw | None) -> Raw | None:
    """``blob``, or None where nothing or a JSON null was sent."""
    return None if blob is None or bytes(blob).strip() in (b"", b"null") else blob


def amount(number: Raw) -> int | float | None:
    """The number of something, or a moment; None where ``number`` can be neither.

    What a source says beside its rows must not end a READ, however absurd it is: negative, NaN,
    text, or of hundreds of digits.
    """
    try:
        found = _decode_number(number)
    except msgspec.MsgspecError:
        return None
    return found if 0 <= found < _MOST else None


_decode_number = msgspec.json.Decoder(int | float).decode
_MOST = 2**63


class StreamDescriptor(Struct, frozen=True):
    """What identifies a stream. A missing, null or empty namespace are the same thing."""

    name: str
    namespace: str | None = None

    def __post_init__(self) -> None:
        if self.namespace == "":
            msgspec.structs.force_setattr(self, "namespace", None)

    def __str__(self) -> str:
        return f"{self.namespace}.{self.name}" if self.namespace else self.name


class Record(Struct, gc=False):
    """``data`` is one row's JSON object; ``emitted_at`` is epoch milliseconds, None if missing or
    no number."""

    stream: str
    data: Raw
    emitted_at: int | float | None = None
    namespace: str | None = None
    meta: Raw = ABSENT


class Records(Struct):
    """RECORD messages of one stream, in order; nothing but records came between them.

    ``bytes`` are those of their ``data``.
    """

    stream: str
    namespace: str | None
    records: list[Record] = []
    bytes: int = 0


class Stats(Struct):
    """Records of the stream since its previous STATE; a double on the wire."""

    raw_count: Raw = msgspec.field(default=ABSENT, name="recordCount")

    @property
    def count(self) -> int | None:
        found = amount(self.raw_count)
        return None if found is None else int(found)


class StreamState(Struct):
    """State of one stream; a ``null`` or absent blob means: start this stream over."""

    stream_descriptor: StreamDescriptor
    stream_state: Raw = ABSENT


class GlobalState(Struct):
    """State of the whole connection: it replaces everything stored before."""

    stream_states: list[StreamState] = []
    shared_state: Raw = ABSENT


class State(Struct):
    """A checkpoint. A missing ``type`` means LEGACY."""

    type: str | None = None
    stream: StreamState | None = None
    global_: GlobalState | None = msgspec.field(default=None, name="global")
    data: Raw = ABSENT
    sourceStats: Stats | None = None  # noqa: N815


class Log(Struct):
    level: str | None = "INFO"
    message: str | None = ""
    stack_trace: str | None = None


class TraceError(Struct):
    message: str | None = ""
    internal_message: str | None = None
    stack_trace: str | None = None
    failure_type: str | None = None
    stream_descriptor: StreamDescriptor | None = None


class RateLimited(Struct):
    raw_reset: Raw = msgspec.field(default=ABSENT, name="quota_reset")

    @property
    def quota_reset(self) -> int | float | None:
        """Epoch milliseconds."""
        return amount(self.raw_reset)


class StatusReason(Struct):
    type: str = ""
    rate_limited: RateLimited | None = None


class StreamStatus(Struct):
    """``status`` is STARTED, RUNNING, COMPLETE or INCOMPLETE."""

    stream_descriptor: StreamDescriptor
    status: str
    reasons: list[StatusReason] | None = None


class Estimate(Struct):
    name: str | None = None
    type: str = "STREAM"
    namespace: str | None = None
    raw_rows: Raw = msgspec.field(default=ABSENT, name="row_estimate")

    @property
    def rows(self) -> int | float | None:
        return amount(self.raw_rows)


class Trace(Struct):
    """Its ``emitted_at`` is not decoded: an error counts whatever its time looks like."""

    type: str
    error: TraceError | None = None
    stream_status: StreamStatus | None = None
    estimate: Estimate | None = None


class ConnectionStatus(Struct):
    """The answer to CHECK. FAILED normally comes with exit code 0."""

    status: str
    message: str | None = None


class Spec(Struct):
    """The answer to SPEC; ``connectionSpecification`` is a JSON schema of the config.

    What comes after ``documentationUrl`` is only handed on.
    """

    connectionSpecification: dict[str, Any]  # noqa: N815
    documentationUrl: str | None = None  # noqa: N815
    changelogUrl: Any = None  # noqa: N815
    protocol_version: Any = None
    supportsIncremental: Any = None  # noqa: N815
    advanced_auth: Any = None


class CatalogMessage(Struct):
    """The answer to DISCOVER, each stream still raw."""

    streams: list[Raw]


class ConnectorConfig(Struct):
    config: dict[str, Any] = {}


class Control(Struct):
    type: str
    connectorConfig: ConnectorConfig | None = None  # noqa: N815


class Message(Struct):
    """One line of a source's stdout; the field named by ``type`` is set.

    A RECORD never leaves the decoder as one: it is in a :class:`Records`.
    """

    type: str
    record: Record | None = None
    state: State | None = None
    log: Log | None = None
    trace: Trace | None = None
    connectionStatus: ConnectionStatus | None = None  # noqa: N815
    spec: Spec | None = None
    catalog: CatalogMessage | None = None
    control: Control | None = None


class Noise(Struct, frozen=True):
    """A line that is no message: text for the log."""

    text: str


class Unreadable(Struct, frozen=True):
    """A line that is a RECORD or STATE but cannot be read; it must not be skipped silently.

    Or an answer, or a CONTROL, whose ``text`` may then hold new secrets. ``stream`` is the stream's
    name where it could be made out, ``why`` what is wrong where it is not the JSON.
    """

    kind: str
    text: str
    stream: str | None = None
    why: str = ""

    @property
    def is_data(self) -> bool:
        return self.kind in ("RECORD", "STATE")
