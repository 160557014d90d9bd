"""A source connector that behaves, or misbehaves, on command.

It has one stream, ``events`` (``id`` counts from 1, ``at`` is one second later per id, ``note``),
and speaks the Airbyte protocol with nothing but the standard library. The config key ``behaviour``
picks what READ does:

``steady``
    ``count`` records, ``rate`` per second (0: as fast as it can), a STATE after every tenth and at
    the end, with its record count; continues after the id of the state it is given.
``die``
    The same up to half of ``count``, no STATE for the odd ones at the end, then a transient error
    and exit code 1.
``stumble``
    Dies like that where it is given no state, and is steady where it is.
``hang``
    100 records, a STATE, then silence for ever; ``ignore_sigterm`` makes it deaf to SIGTERM too.

``fail_check`` makes CHECK answer FAILED.
"""

import argparse
import json
import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

RECORDS_PER_STATE = 10
HANG_AFTER = 100
FIRST_AT = datetime(2024, 1, 1, tzinfo=UTC)
EVENTS = {"name": "events"}

SPEC = {
    "protocol_version": "0.2.0",
    "documentationUrl": "https://docs.airbyte.com/integrations/sources/",
    "connectionSpecification": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Stand-in",
        "type": "object",
        "required": [],
        "additionalProperties": True,
        "properties": {
            "behaviour": {
                "type": "string",
                "enum": ["steady", "die", "stumble", "hang"],
                "default": "steady",
            },
            "count": {"type": "integer", "minimum": 0, "default": 100},
            "rate": {
                "type": "number",
                "minimum": 0,
                "default": 0,
                "description": "Records per second; 0 is no limit.",
            },
            "password": {"type": "string", "airbyte_secret": True},
            "fail_check": {"type": "boolean", "default": False},
            "ignore_sigterm": {"type": "boolean", "default": False},
        },
    },
}

CATALOG = {
    "streams": [
        {
            **EVENTS,
            "json_schema": {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "type": "object",
                "properties": {
                    "id": {"type": "integer"},
                    "at": {
                        "type": "string",
                        "format": "date-time",
                        "airbyte_type": "timestamp_with_timezone",
                    },
                    "note": {"type": "string"},
                },
            },
            "supported_sync_modes": ["full_refresh", "incremental"],
            "source_defined_cursor": True,
            "default_cursor_field": ["id"],
            "source_defined_primary_key": [["id"]],
            "is_resumable": True,
        }
    ]
}


def emit(kind: str, key: str, body: dict[str, Any]) -> None:
    print(json.dumps({"type": kind, key: body}), flush=True)


def emit_trace(kind: str, body: dict[str, Any]) -> None:
    emit("TRACE", "trace", {"type": kind.upper(), "emitted_at": time.time() * 1000, kind: body})


def emit_status(status: str) -> None:
    emit_trace("stream_status", {"stream_descriptor": EVENTS, "status": status})


def emit_record(number: int) -> None:
    data = {
        "id": number,
        "at": (FIRST_AT + timedelta(seconds=number)).isoformat(),
        "note": f"event {number}",
    }
    emitted_at = int(time.time() * 1000)
    emit("RECORD", "record", {"stream": "events", "data": data, "emitted_at": emitted_at})


def emit_state(last: int, records: int) -> None:
    stream = {"stream_descriptor": EVENTS, "stream_state": {"id": last}}
    counts = {"recordCount": float(records)}
    emit("STATE", "state", {"type": "STREAM", "stream": stream, "sourceStats": counts})


def emit_events(after: int, until: int, rate: float, *, final_state: bool) -> None:
    """Records with the ids from ``after + 1`` to ``until``, and their STATEs."""
    started = time.monotonic()
    last_in_state = after
    for number in range(after + 1, until + 1):
        if rate:
            due = started + (number - after) / rate
            time.sleep(max(0.0, due - time.monotonic()))
        emit_record(number)
        if number == after + 1:
            emit_status("RUNNING")
        if number - last_in_state == RECORDS_PER_STATE:
            emit_state(number, RECORDS_PER_STATE)
            last_in_state = number
    last = max(after, until)
    if final_state and (last > last_in_state or last == after):
        emit_state(last, last - last_in_state)


def read(config: dict[str, Any], catalog: dict[str, Any], states: list[dict[str, Any]]) -> int:
    if not any(item["stream"]["name"] == "events" for item in catalog["streams"]):
        return 0
    after = 0
    for state in states:
        if state["stream"]["stream_descriptor"]["name"] == "events":
            after = (state["stream"].get("stream_state") or {}).get("id", 0)
    count, rate = config.get("count", 100), config.get("rate", 0)
    emit("LOG", "log", {"level": "INFO", "message": f"Reading events after id {after}"})
    emit_status("STARTED")
    behaviour = config.get("behaviour", "steady")
    if behaviour == "stumble":
        behaviour = "steady" if after else "die"
    match behaviour:
        case "steady":
            emit_events(after, count, rate, final_state=True)
            emit_status("COMPLETE")
            return 0
        case "die":
            emit_events(after, count // 2, rate, final_state=False)
            message = "upstream went away"
            emit_trace("error", {"message": message, "failure_type": "transient_error"})
            return 1
        case "hang":
            if config.get("ignore_sigterm"):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            for number in range(after + 1, after + HANG_AFTER + 1):
                emit_record(number)
            emit_state(after + HANG_AFTER, HANG_AFTER)
            while True:
                time.sleep(60)
        case unknown:
            message = f"there is no behaviour {unknown!r}"
            emit_trace("error", {"message": message, "failure_type": "config_error"})
            return 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="source-standin")
    parser.add_argument("verb", choices=["spec", "check", "discover", "read"])
    for option in ("config", "catalog", "state"):
        parser.add_argument(f"--{option}", type=Path)
    arguments = parser.parse_args()

    def load(option: str, default: Any) -> Any:
        path = getattr(arguments, option)
        return json.loads(path.read_bytes()) if path else default

    match arguments.verb:
        case "spec":
            emit("SPEC", "spec", SPEC)
        case "check" if load("config", {}).get("fail_check"):
            failed = {"status": "FAILED", "message": "bad password"}
            emit("CONNECTION_STATUS", "connectionStatus", failed)
        case "check":
            emit("CONNECTION_STATUS", "connectionStatus", {"status": "SUCCEEDED"})
        case "discover":
            emit("CATALOG", "catalog", CATALOG)
        case "read":
            return read(load("config", {}), load("catalog", {"streams": []}), load("state", []))
    return 0


if __name__ == "__main__":
    sys.exit(main())
