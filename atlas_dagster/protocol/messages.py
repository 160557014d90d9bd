"""Messages of a source, as typed envelopes around raw JSON.

Only the envelope is decoded: record data, state blobs and schemas stay :class:`msgspec.Raw`, byte
for byte. Unknown fields are ignored, and unknown enum values stay text, because nearly all objects
of the protocol are open (airbyte_protocol.yaml, ``additionalProperties: true``).
"""

from typing import Any

import msgspec
from msgspec import Raw, Struct

#: The default of a raw field that was not sent. :func:`present` also recognizes null.
ABSENT = Raw(b"")


def present(blob: Raw | None) -> Raw | None:
    """Return ``blob``, or None if it is absent or a JSON null."""
    return None if blob is None or bytes(blob).strip() in (b"", b"null") else blob


def parse_number(number: Raw) -> int | float | None:
    """Return a count or a time; None if ``number`` is not valid.

    Invalid numbers outside of rows (negative, NaN, text, hundreds of digits) must not end a READ.
    """
    try:
        found = _decode_number(number)
    except msgspec.MsgspecError:
        return None
    return found if 0 <= found < _MOST else None


_decode_number = msgspec.json.Decoder(int | float).decode
_MOST = 2**63


class StreamDescriptor(Struct, frozen=True):
    """The identity of a stream. Missing, null and empty namespaces are equal."""

    name: str
    namespace: str | None = None

    def __post_init__(self) -> None:
        if self.namespace == "":
            msgspec.structs.force_setattr(self, "namespace", None)

    def __str__(self) -> str:
        return f"{self.namespace}.{self.name}" if self.namespace else self.name


class Record(Struct, gc=False):
    """One row. ``data`` is its JSON object; ``emitted_at`` is epoch milliseconds, None if missing
    or not a number."""

    stream: str
    data: Raw
    emitted_at: int | float | None = None
    namespace: str | None = None
    meta: Raw = ABSENT


class Records(Struct):
    """Consecutive RECORD messages of one stream.

    ``bytes`` is the size of their ``data``.
    """

    stream: str
    namespace: str | None
    records: list[Record] = []
    bytes: int = 0


class Stats(Struct):
    """The number of records since the previous STATE; a double in the protocol."""

    raw_count: Raw = msgspec.field(default=ABSENT, name="recordCount")

    @property
    def count(self) -> int | None:
        found = parse_number(self.raw_count)
        return None if found is None else int(found)


class StreamState(Struct):
    """The state of one stream. With a null or absent blob, the stream starts from the beginning."""

    stream_descriptor: StreamDescriptor
    stream_state: Raw = ABSENT


class GlobalState(Struct):
    """The state of the whole connection, which replaces all previous states."""

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
        return parse_number(self.raw_reset)


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
        return parse_number(self.raw_rows)


class Trace(Struct):
    """A TRACE. ``emitted_at`` is not decoded, so that an invalid time does not lose an error."""

    type: str
    error: TraceError | None = None
    stream_status: StreamStatus | None = None
    estimate: Estimate | None = None


class ConnectionStatus(Struct):
    """The answer to CHECK. The exit code of FAILED is normally 0."""

    status: str
    message: str | None = None


class Spec(Struct):
    """The answer to SPEC; ``connectionSpecification`` is the JSON schema of the config.

    Atlas only passes on the fields after ``documentationUrl``.
    """

    connectionSpecification: dict[str, Any]  # noqa: N815
    documentationUrl: str | None = None  # noqa: N815
    changelogUrl: Any = None  # noqa: N815
    protocol_version: Any = None
    supportsIncremental: Any = None  # noqa: N815
    advanced_auth: Any = None


class CatalogMessage(Struct):
    """The answer to DISCOVER. The streams are not decoded."""

    streams: list[Raw]


class ConnectorConfig(Struct):
    config: dict[str, Any] = {}


class Control(Struct):
    type: str
    connectorConfig: ConnectorConfig | None = None  # noqa: N815


class Message(Struct):
    """One line of a source's stdout. The field that ``type`` names is set.

    The decoder collects RECORD messages in :class:`Records` instead.
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
    """A line that is not a message: text for the log."""

    text: str


class Unreadable(Struct, frozen=True):
    """A message that cannot be read, and must not be skipped silently.

    ``kind`` is RECORD, STATE, CONTROL or the type of an answer. ``text`` may contain new secrets if
    ``kind`` is CONTROL. ``stream`` is the stream's name, if known. ``why`` is the reason; empty for
    invalid JSON.
    """

    kind: str
    text: str
    stream: str | None = None
    why: str = ""

    @property
    def is_data(self) -> bool:
        return self.kind in ("RECORD", "STATE")
