"""``POST /read``: rows of one stream, as one answer or as a stream of them."""

from collections.abc import Callable, Generator, Iterator
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
from atlas_dagster.interfaces.http.state import given_state, returned_state
from atlas_dagster.interfaces.http.streaming import (
    ARROW,
    NDJSON,
    ArrowStream,
    JsonLines,
    StreamForm,
)
from atlas_dagster.interfaces.python.worker import Stream, Worker
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.protocol.state import ConnectionState
from atlas_dagster.reading.ad_hoc_source import AdHocSource, read_as, table_schema
from atlas_dagster.records.json_rows import RowEncoder
from atlas_dagster.records.types import EXTRA, METADATA_FIELDS

_FORMATS: dict[str, Format] = {NDJSON: "ndjson", ARROW: "arrow", "application/json": "json"}
_FORMS: dict[Format, type[JsonLines] | type[ArrowStream]] = {
    "ndjson": JsonLines,
    "arrow": ArrowStream,
}


class Plan(Struct, frozen=True):
    """What a request asks for, looked up in the source's catalog."""

    stream: ConfiguredStream
    state: ConnectionState
    columns: list[str]


def format_of(request: ReadRequest, accept: str) -> Format:
    """As the request says, or the first of its header Accept that is known."""
    if request.format is not None:
        return request.format
    kinds = (kind.partition(";")[0].strip().lower() for kind in accept.split(","))
    return next((_FORMATS[kind] for kind in kinds if kind in _FORMATS), "json")


def read_page(source: AdHocSource, request: ReadRequest, most_bytes: int) -> bytes:
    """The answer in JSON: as many rows as fit into it.

    Raises:
        ProblemError: the request asks for more than that.
        AtlasError: the read failed.
    """
    limit = request.limit or PAGE_ROWS
    if limit > MOST_PAGE_ROWS:
        raise ProblemError(
            "invalid_request",
            f"A JSON answer has {MOST_PAGE_ROWS:,} rows at most; lower limit, or take them as a "
            "stream (format ndjson or arrow).",
            field="limit",
        )
    plan = _plan(source, request)
    page = source.page(plan.stream, state=plan.state, limit=limit, most_bytes=most_bytes)
    encoder = RowEncoder(table_schema(plan.stream.stream), plan.columns)
    hidden = page.rows.num_rows - page.rows[EXTRA].null_count
    end = _End(
        request,
        source.warnings,
        page.rows.num_rows,
        page.state,
        page.overlap,
        page.is_complete,
        hidden,
    )
    return msgspec.json.encode(
        {**end.said(), "columns": plan.columns, "data": Raw(encoder.array(page.rows))}
    )


def read_stream(
    source: AdHocSource, request: ReadRequest, form: Format
) -> tuple[Stream[bytes], Callable[[Any], bytes], str]:
    """All rows, piece by piece; what makes the last piece of an error; and the media type.

    The feed raises what the read raises. Its first piece comes with the first rows, or at the end.
    """
    made: list[StreamForm] = []

    def pieces() -> Generator[list[bytes], None, None]:
        plan = _plan(source, request)
        schema = table_schema(plan.stream.stream)
        writer = _FORMS[form](schema, plan.columns)
        made.append(writer)
        rows = hidden = 0
        before = plan.state
        with (
            source.reading(plan.stream, state=plan.state, limit=request.limit) as reading,
            closing(reading.batches()) as batches,
        ):
            for _, batch in batches:
                rows += batch.num_rows
                hidden += batch.num_rows - batch[EXTRA].null_count
                moved = request.incremental and reading.state is not before
                before = reading.state
                said = {"state": returned_state(before), "records_count": rows} if moved else None
                yield [writer.rows(batch, said)]
            overlap, is_complete = reading.rows_since_state, reading.is_complete
            state, odd = reading.state, source.warnings
            end = _End(request, odd, rows, state, overlap, is_complete, hidden)
        yield [writer.last(end.said())]

    def failed(said: Any) -> bytes:
        return made[0].broken(said)

    return Stream(Worker().submit, pieces(), iter), failed, _FORMS[form].media_type


def _plan(source: AdHocSource, request: ReadRequest) -> Plan:
    if request.state and not request.incremental:
        raise ProblemError(
            "invalid_request",
            "A state is for incremental reads; send incremental: true with it, or no state.",
            field="state",
        )
    stream = read_as(
        source.table(request.stream_name),
        incremental=request.incremental,
        cursor_field=request.cursor_field,
    )
    columns = [column.name for column in table_schema(stream.stream).columns]
    if request.metadata_columns:
        columns += [field.name for field in METADATA_FIELDS]
    return Plan(stream, given_state(request.state, stream.descriptor), columns)


class _End(Struct, frozen=True):
    """How a read ended. ``hidden``: rows with values that no column holds."""

    request: ReadRequest
    warnings: list[str]
    rows: int
    state: ConnectionState
    overlap: int
    is_complete: bool
    hidden: int

    def said(self) -> dict[str, Any]:
        return {
            "status": READ,
            "connector_name": self.request.connector_name,
            "stream_name": self.request.stream_name,
            "records_count": self.rows,
            "state": returned_state(self.state) if self.request.incremental else None,
            "has_more": not self.is_complete,
            "message": f"Read {self.rows} records from {self.request.stream_name}",
            "notes": list(self._notes()),
            "warnings": self.warnings,
        }

    def _notes(self) -> Iterator[str]:
        if not self.is_complete and not self.request.incremental:
            yield "There are more records: raise limit, or take them as a stream."
        elif not self.is_complete and self.overlap:
            yield (
                f"The source sent no state for the last {self.overlap:,} of these records, so the "
                "next read with this state brings those again; raise limit."
            )
        elif not self.is_complete:
            yield "There are more records: send the state back."
        if self.hidden and not self.request.metadata_columns:
            yield (
                f"In {self.hidden:,} of these records there are values that no column holds; "
                "metadata_columns shows them, in _airbyte_extra."
            )
