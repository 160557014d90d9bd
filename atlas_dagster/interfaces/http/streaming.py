"""Responses that stream rows, in JSON lines or Arrow, with a few batches in memory at a time.

A JSON line is a row, or an object with the single key ``_atlas``: a state that covers all rows so
far, or in the last line the result of the read. An Arrow stream has the same in the metadata of its
batches (key ``atlas``); its last batch has no rows. If the read fails, the last piece says so. Then
the server breaks off the connection, so that clients that ignore that piece fail, too.
"""

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import msgspec
import pyarrow as pa
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from atlas_dagster.interfaces.http.problems import ClientLeftError, make_problem, problem_json
from atlas_dagster.interfaces.python.worker import Stream
from atlas_dagster.records.json_rows import RowEncoder
from atlas_dagster.records.types import TableSchema

ARROW = "application/vnd.apache.arrow.stream"
NDJSON = "application/x-ndjson"

T = TypeVar("T")
_log = logging.getLogger("atlas_dagster.http")


class JsonLinesWriter:
    """Writes rows as JSON lines. ``info`` is a state, or the result of the read."""

    media_type = NDJSON

    def __init__(self, schema: TableSchema, columns: Sequence[str]) -> None:
        self._encoder = RowEncoder(schema, columns)

    def rows(self, batch: pa.RecordBatch, info: Any = None) -> bytes:
        """Return ``batch``, followed by ``info``."""
        lines = self._encoder.lines(batch)
        return lines if info is None else lines + self.end(info)

    def end(self, info: Any) -> bytes:
        """Return the last piece."""
        return msgspec.json.encode({"_atlas": info}) + b"\n"

    def failure(self, info: Any) -> bytes:
        """Return the last piece of a stream that fails."""
        return self.end(info)


class ArrowWriter:
    """Writes rows as an Arrow IPC stream; see :class:`JsonLinesWriter`."""

    media_type = ARROW

    def __init__(self, schema: TableSchema, columns: Sequence[str]) -> None:
        self._columns = list(columns)
        self._schema = pa.schema([schema.arrow.field(name) for name in columns])
        self._sink = _Sink()
        self._writer = pa.ipc.new_stream(self._sink, self._schema)

    def rows(self, batch: pa.RecordBatch, info: Any = None) -> bytes:
        metadata = None if info is None else {"atlas": msgspec.json.encode(info)}
        self._writer.write_batch(batch.select(self._columns), custom_metadata=metadata)
        return self._sink.take()

    def end(self, info: Any) -> bytes:
        piece = self.failure(info)
        self._writer.close()
        return piece + self._sink.take()

    def failure(self, info: Any) -> bytes:
        # Arrow's end-of-stream marker is left out, so that readers notice the failure.
        return self.rows(pa.RecordBatch.from_pylist([], self._schema), info)


class _Sink(io.RawIOBase):
    """A file that keeps the written bytes in memory until :meth:`take` returns them."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        self._size += len(self._parts[-1])
        return len(self._parts[-1])

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


class _BrokenOffError(Exception):
    """The read failed after the response had begun."""


class RowResponse(StreamingResponse):
    """A response with the ``first`` piece and all others.

    Args:
        failure: makes the last piece if the others fail.
        resources: closed at the end, also if the client disconnects.
        seconds: the time limit of the whole response.
    """

    def __init__(
        self,
        first: bytes,
        others: Stream[bytes],
        *,
        media_type: str,
        failure: Callable[[Any], bytes],
        resources: AsyncExitStack,
        seconds: float,
    ) -> None:
        content = _stream_pieces(first, others, failure)
        super().__init__(content, media_type=media_type, headers={"Cache-Control": "no-store"})
        self._resources = resources
        self._seconds = seconds

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        async with self._resources:
            try:
                async with asyncio.timeout(self._seconds):
                    # Starlette's own handling of a disconnect would cancel the clean-up, too.
                    await while_connected(receive, self.stream_response(send))
            except (ClientLeftError, _BrokenOffError):
                return  # the response has no end, so the server closes the connection
            except TimeoutError:
                _log.warning("Closed a response that took more than %g seconds.", self._seconds)


async def _stream_pieces(
    first: bytes, others: Stream[bytes], failure: Callable[[Any], bytes]
) -> AsyncIterator[bytes]:
    yield first
    try:
        async for piece in others:
            yield piece
    except Exception as error:
        problem = await asyncio.to_thread(make_problem, error)
        _log.warning("A read failed and was broken off: %s", problem.detail)
        yield failure({"status": "failed", "problem": problem_json(problem)})
        raise _BrokenOffError from error


async def while_connected(receive: Receive, answer: Coroutine[Any, Any, T]) -> T:
    """Return the result of ``answer``; if the client disconnects, cancel it and wait for its end.

    Raises:
        ClientLeftError: the client has disconnected.
    """
    answer_task = asyncio.ensure_future(answer)
    disconnect_task = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({answer_task, disconnect_task}, return_when=asyncio.FIRST_COMPLETED)
        if not answer_task.done():
            raise ClientLeftError
        return answer_task.result()
    finally:
        answer_task.cancel()
        disconnect_task.cancel()
        await asyncio.gather(answer_task, disconnect_task, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    """Return when the client disconnects. The body of the request must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
