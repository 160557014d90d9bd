"""What scenarios are made of: a registry, and the messages of the protocol, each a line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEGABYTE = 1_000_000
EMITTED_AT = 1_700_000_000_000

#: The files we were given, by option.
files: dict[str, Path] = {}

Play = Callable[..., int | None]
#: Verb and function of each. A function prints, and may return an exit code.
SCENARIOS: dict[str, tuple[str, Play]] = {}


def scenario(verb: str) -> Callable[[Play], Play]:
    def register(play: Play) -> Play:
        SCENARIOS[play.__name__.replace("_", "-")] = (verb, play)
        return play

    return register


def line(kind: str, **content: Any) -> bytes:
    return json.dumps({"type": kind, **content}).encode() + b"\n"


def record(id: int, v: str | None = None, *, stream: str = "a", **envelope: Any) -> bytes:
    """``envelope`` adds to the message or replaces a part of it, such as ``data``."""
    content = {"stream": stream, "data": {"id": id, "v": v}, "emitted_at": EMITTED_AT + id}
    return line("RECORD", record=content | envelope)


def raw_record(data: str) -> bytes:
    """A record whose data is exactly ``data``, be it JSON or not."""
    text = f'{{"type":"RECORD","record":{{"stream":"a","data":{data},"emitted_at":{EMITTED_AT}}}}}'
    return text.encode() + b"\n"


def state(at: int, *, stream: str = "a", count: float | None = None, **name: Any) -> bytes:
    """``name`` adds to the stream's descriptor: its ``namespace``."""
    content = {"stream_descriptor": {"name": stream, **name}, "stream_state": {"at": at}}
    return typed_state("STREAM", count, stream=content)


def global_state(at: int, *, count: float | None = None) -> bytes:
    each = [
        {"stream_descriptor": {"name": name}, "stream_state": {"at": at}} for name in ("a", "b")
    ]
    return typed_state("GLOBAL", count, **{"global": {"shared_state": {}, "stream_states": each}})


def typed_state(kind: str | None, count: float | None = None, **content: Any) -> bytes:
    typed = {} if kind is None else {"type": kind}
    counted = {} if count is None else {"sourceStats": {"recordCount": count}}
    return line("STATE", state=typed | content | counted)


def trace(kind: str, **content: Any) -> bytes:
    return line("TRACE", trace={"type": kind, "emitted_at": EMITTED_AT + 0.5, **content})


def status(word: str, stream: str = "a", *, name: Any = (), **content: Any) -> bytes:
    body = {"stream_descriptor": {"name": stream, **dict(name)}, "status": word}
    return trace("STREAM_STATUS", stream_status=body | content)


def complete(stream: str = "a", **name: Any) -> bytes:
    return status("COMPLETE", stream, name=name)


def error(message: str, kind: str, stream: str | None = None, **content: Any) -> bytes:
    named = {} if stream is None else {"stream_descriptor": {"name": stream}}
    return trace("ERROR", error={"message": message, "failure_type": kind} | named | content)


def log(message: str, level: str = "INFO") -> bytes:
    return line("LOG", log={"level": level, "message": message})


def connection_status(word: str, message: str) -> bytes:
    return line("CONNECTION_STATUS", connectionStatus={"status": word, "message": message})


def say(*pieces: bytes) -> None:
    """Print, whatever it is."""
    sys.stdout.buffer.write(b"".join(pieces))
    sys.stdout.buffer.flush()


def catalog(*names: str, columns: dict[str, Any]) -> bytes:
    shared = {
        "json_schema": {"type": "object", "properties": columns},
        "supported_sync_modes": ["full_refresh", "incremental"],
        "source_defined_cursor": True,
        "default_cursor_field": ["id"],
        "source_defined_primary_key": [["id"]],
    }
    return line("CATALOG", catalog={"streams": [{"name": name, **shared} for name in names]})
