"""Rows of one stream as a response that never holds more than a few batches of them.

JSON lines are rows. What else there is to say is in lines with the one key ``_atlas``: the state
that covers all rows so far, wherever the source says one, and last how the read ended. An Arrow
stream has the same in the metadata of its batches (key ``atlas``), whose last one is without rows.
A read that fails says so in that last piece, and the connection is then broken off, so that whoever
does not look there notices, too.
"""

import asyncio
import io
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pyarrow as pa
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from atlas_dagster.interfaces.http.clients import while_connected
from atlas_dagster.interfaces.http.problems import ClientLeftError, problem_json, problem_of
from atlas_dagster.interfaces.python.worker import Stream
from atlas_dagster.records.json_rows import RowEncoder
from atlas_dagster.records.types import TableSchema

ARROW = "application/vnd.apache.arrow.stream"
NDJSON = "application/x-ndjson"

_log = logging.getLogger("atlas_dagster.http")


class StreamForm(ABC):
    """How rows are written."""

    media_type: str

    @abstractmethod
    def rows(self, batch: pa.RecordBatch, said: Any = None) -> bytes:
        """``batch``, and what there is to say after it."""

    @abstractmethod
    def last(self, said: Any) -> bytes:
        """The last piece, without rows."""

    @abstractmethod
    def broken(self, said: Any) -> bytes:
        """The last piece of a stream that ends before its end."""


class JsonLines(StreamForm):
    media_type = NDJSON

    def __init__(self, schema: TableSchema, columns: Sequence[str]) -> None:
        self._encoder = RowEncoder(schema, columns)

    def rows(self, batch: pa.RecordBatch, said: Any = None) -> bytes:
        lines = self._encoder.lines(batch)
        return lines if said is None else lines + self.last(said)

    def last(self, said: Any) -> bytes:
        return msgspec.json.encode({"_atlas": said}) + b"\n"

    def broken(self, said: Any) -> bytes:
        return self.last(said)


class ArrowStream(StreamForm):
    media_type = ARROW

    def __init__(self, schema: TableSchema, columns: Sequence[str]) -> None:
        self._columns = list(columns)
        self._schema = pa.schema([schema.arrow.field(name) for name in columns])
        self._sink = _Sink()
        self._writer = pa.ipc.new_stream(self._sink, self._schema)

    def rows(self, batch: pa.RecordBatch, said: Any = None) -> bytes:
        metadata = None if said is None else {"atlas": msgspec.json.encode(said)}
        self._writer.write_batch(batch.select(self._columns), custom_metadata=metadata)
        return self._sink.take()

    def last(self, said: Any) -> bytes:
        piece = self.broken(said)
        self._writer.close()
        return piece + self._sink.take()

    def broken(self, said: Any) -> bytes:
        # Without the mark of the end, after which nobody would read on.
        return self.rows(pa.RecordBatch.from_pylist([], self._schema), said)


class _Sink(io.RawIOBase):
    """A file whose content is taken away as it comes."""

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


class RowStream(Response):
    """Sends what ``feed`` brings after ``first``.

    Args:
        first: the first piece.
        feed: the others; an error of it ends the response before its end.
        broken: the last piece for an error, of what there is to say of it.
        held: what is let go of at the end.
        media_type: of it all.
        seconds: how long it may take a client to take it all.
    """

    def __init__(
        self,
        first: bytes,
        feed: Stream[bytes],
        *,
        broken: Callable[[Any], bytes],
        held: AsyncExitStack,
        media_type: str,
        seconds: float,
    ) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.init_headers({"Cache-Control": "no-store"})
        self._first = first
        self._feed = feed
        self._broken = broken
        self._held = held
        self._seconds = seconds

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            try:
                async with asyncio.timeout(self._seconds):
                    await while_connected(receive, self._send(send))
            except ClientLeftError:
                pass
            except TimeoutError:
                _log.warning("A client took more than %g seconds; broken off.", self._seconds)
            finally:
                await self._feed.aclose()

    async def _send(self, send: Send) -> None:
        headers = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **headers})
        piece = self._first
        try:
            while True:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                piece = await anext(self._feed)
        except StopAsyncIteration:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except Exception as error:  # noqa: BLE001 - too late for any other answer
            problem = await asyncio.to_thread(problem_of, error)
            _log.warning("A read failed and was broken off: %s", problem.detail)
            said = {"status": "failed", "problem": problem_json(problem)}
            last = {"body": self._broken(said), "more_body": True}
            await send({"type": "http.response.body", **last})
