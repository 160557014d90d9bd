"""``POST /read``: the rows of one stream, as one answer or as a stream of pieces."""

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import msgspec
from msgspec import Raw, Struct

from atlas_dagster.interfaces.http.models import (
    MOST_PAGE_ROWS,
    PAGE_ROWS,
    READ,
    Format,
    ReadRequest,
)
from atlas_dagster.interfaces.http.problems import ProblemError
from atlas_dagster.interfaces.http.streaming import ARROW, NDJSON, ArrowWriter, JsonLinesWriter
from atlas_dagster.interfaces.python.worker import Stream, Worker
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.protocol.messages import State, StreamDescriptor, StreamState
from atlas_dagster.protocol.state import ConnectionState, is_complete_message
from atlas_dagster.reading.ad_hoc_source import AdHocSource, configure_read, table_schema
from atlas_dagster.records.json_rows import RowEncoder
from atlas_dagster.records.types import EXTRA, METADATA_FIELDS

_FORMATS: dict[str, Format] = {NDJSON: "ndjson", ARROW: "arrow", "application/json": "json"}
_WRITERS: dict[Format, type[JsonLinesWriter] | type[ArrowWriter]] = {
    "ndjson": JsonLinesWriter,
    "arrow": ArrowWriter,
}
#: A STATE message has a type and one of these fields.
_STATE_FIELDS = ("stream", "global", "data")
_STATE_TYPES = ("STREAM", "GLOBAL", "LEGACY")


class _ReadPlan(Struct, frozen=True):
    """The stream, state and columns that a request asks for."""

    stream: ConfiguredStream
    state: ConnectionState
    columns: list[str]


class _ReadEnd(Struct, frozen=True):
    """The result of a read. ``hidden`` counts the rows with values that have no column."""

    rows: int
    hidden: int
    state: ConnectionState
    overlap: int
    is_complete: bool


def choose_format(request: ReadRequest, accept: str) -> Format:
    """Return the format of the request, or the first supported one of its header Accept."""
    if request.format is not None:
        return request.format
    kinds = (kind.partition(";")[0].strip().lower() for kind in accept.split(","))
    return next((_FORMATS[kind] for kind in kinds if kind in _FORMATS), "json")


def read_page(source: AdHocSource, request: ReadRequest, most_bytes: int) -> bytes:
    """Return the answer in JSON, with as many rows as fit into it.

    Raises:
        ProblemError: the request asks for too many rows.
        AtlasError: the read failed.
    """
    limit = request.limit or PAGE_ROWS
    if limit > MOST_PAGE_ROWS:
        raise ProblemError(
            "invalid_request",
            f"A JSON answer has at most {MOST_PAGE_ROWS:,} rows; lower limit, or use the format "
            "ndjson or arrow.",
            field="limit",
        )
    plan = _make_plan(source, request)
    page = source.read_page(plan.stream, state=plan.state, limit=limit, most_bytes=most_bytes)
    encoder = RowEncoder(table_schema(plan.stream.stream), plan.columns)
    rows = page.rows.num_rows
    hidden = rows - page.rows[EXTRA].null_count
    end = _ReadEnd(rows, hidden, page.state, page.overlap, page.is_complete)
    return msgspec.json.encode(
        {
            **_describe_end(request, end, source.warnings),
            "columns": plan.columns,
            "data": Raw(encoder.array(page.rows)),
        }
    )


class RowPieces:
    """All rows as pieces of a response. The first piece has the first rows, or is the end.

    ``stream`` raises the errors of the read.
    """

    def __init__(self, source: AdHocSource, request: ReadRequest, form: Format) -> None:
        self.media_type = _WRITERS[form].media_type
        self.stream: Stream[bytes] = Stream(Worker().submit, self._write(form), iter)
        self._source = source
        self._request = request
        self._writer: JsonLinesWriter | ArrowWriter | None = None

    def failure(self, info: Any) -> bytes:
        """Return the last piece if the read fails after the first piece."""
        assert self._writer is not None
        return self._writer.failure(info)

    def _write(self, form: Format) -> Generator[list[bytes], None, None]:
        request, source = self._request, self._source
        plan = _make_plan(source, request)
        writer = _WRITERS[form](table_schema(plan.stream.stream), plan.columns)
        self._writer = writer
        rows = hidden = 0
        before = plan.state
        with (
            source.open_reader(plan.stream, state=plan.state, limit=request.limit) as reader,
            closing(reader.batches()) as batches,
        ):
            for _, batch in batches:
                rows += batch.num_rows
                hidden += batch.num_rows - batch[EXTRA].null_count
                moved = request.incremental and reader.state is not before
                before = reader.state
                info = {"state": _encode_state(before), "records_count": rows} if moved else None
                yield [writer.rows(batch, info)]
            end = _ReadEnd(rows, hidden, reader.state, reader.rows_since_state, reader.is_complete)
        yield [writer.end(_describe_end(request, end, source.warnings))]


def _make_plan(source: AdHocSource, request: ReadRequest) -> _ReadPlan:
    if request.state and not request.incremental:
        raise _make_state_problem(
            "A state is for incremental reads; send incremental: true with it, or no state."
        )
    stream = configure_read(
        source.find_table(request.stream_name),
        incremental=request.incremental,
        cursor_field=request.cursor_field,
    )
    columns = [column.name for column in table_schema(stream.stream).columns]
    if request.metadata_columns:
        columns += [field.name for field in METADATA_FIELDS]
    return _ReadPlan(stream, _decode_state(request.state, stream.descriptor), columns)


def _describe_end(request: ReadRequest, end: _ReadEnd, warnings: list[str]) -> dict[str, Any]:
    return {
        "status": READ,
        "connector_name": request.connector_name,
        "stream_name": request.stream_name,
        "records_count": end.rows,
        "state": _encode_state(end.state) if request.incremental else None,
        "has_more": not end.is_complete,
        "message": f"Read {end.rows} records from {request.stream_name}",
        "notes": list(_list_notes(request, end)),
        "warnings": warnings,
    }


def _list_notes(request: ReadRequest, end: _ReadEnd) -> Iterator[str]:
    if not end.is_complete and not request.incremental:
        yield "There are more records: raise limit, or use the format ndjson or arrow."
    elif not end.is_complete and end.overlap:
        yield (
            f"The source sent no state for the last {end.overlap:,} of these records, so the next "
            "read with this state returns them again; raise limit."
        )
    elif not end.is_complete:
        yield "There are more records: send the state back."
    if end.hidden and not request.metadata_columns:
        yield (
            f"{end.hidden:,} of these records have values without a column; set metadata_columns "
            "to see them in _airbyte_extra."
        )


# States


def _decode_state(value: Any, stream: StreamDescriptor) -> ConnectionState:
    """Return a request's state: STATE messages, one of them, or the object of ``stream``.

    Raises:
        ProblemError: it is not a valid state.
    """
    if not value:
        return ConnectionState()
    if isinstance(value, dict) and not _is_message(value):
        blob = Raw(msgspec.json.encode(value))
        return ConnectionState().apply(State(type="STREAM", stream=StreamState(stream, blob)))
    messages = value if isinstance(value, list) else [value]
    try:
        states = msgspec.json.decode(msgspec.json.encode(messages), type=list[State])
    except msgspec.MsgspecError:
        states = []
    if not states or not all(map(is_complete_message, states)):
        raise _make_state_problem(
            "The state is not valid; send the state of an earlier answer, or only the object of "
            "this stream in it."
        )
    state = ConnectionState()
    for each in states:
        state = state.apply(each)
    if state.type == "STREAM" and state.streams and stream not in state.streams:
        others = ", ".join(map(str, state.streams))
        raise _make_state_problem(
            f"The state is of {others}, not of {stream}; send the state of {stream}."
        )
    return state


def _encode_state(state: ConnectionState) -> list[Any] | None:
    """Return a state in a format of :func:`_decode_state`; None if there is none yet."""
    if not state:
        return None
    # The state is not decoded, so that it stays as the source wrote it.
    content = Raw(state.to_file())
    # A source that predates state types writes one object; others write a list of messages.
    return [{"data": content}] if state.bare else msgspec.json.decode(content, type=list[Raw])


def _is_message(value: dict[str, Any]) -> bool:
    return value.get("type") in _STATE_TYPES and any(field in value for field in _STATE_FIELDS)


def _make_state_problem(detail: str) -> ProblemError:
    return ProblemError("invalid_request", detail, field="state")
