"""A recorded READ of any size, the same bytes for the same arguments.

Two streams of the shape source-faker sends, one after the other, a STATE every 10,000 records and the
statuses a CDK source prints; about 450 bytes a record.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_EMITTED_AT = 1_760_000_000_000
_STATE_EVERY = 10_000
_TIMESTAMP = {"type": "string", "format": "date-time", "airbyte_type": "timestamp_with_timezone"}
_TEXT = {"type": "string"}
_INTEGER = {"type": "integer"}
_ADDRESS = ("street_number", "street_name", "city", "state", "province", "postal_code", "country")

USERS = {
    "id": _INTEGER,
    "created_at": _TIMESTAMP,
    "updated_at": _TIMESTAMP,
    **dict.fromkeys(("name", "title", "email", "telephone", "gender", "language"), _TEXT),
    **dict.fromkeys(
        ("academic_degree", "nationality", "occupation", "height", "blood_type"), _TEXT
    ),
    "age": _INTEGER,
    "weight": _INTEGER,
    "address": {"type": "object", "properties": dict.fromkeys(_ADDRESS, _TEXT)},
}
PURCHASES = {
    **dict.fromkeys(("id", "user_id", "product_id"), _INTEGER),
    **dict.fromkeys(("created_at", "updated_at", "added_to_cart_at"), _TIMESTAMP),
    **dict.fromkeys(("purchased_at", "returned_at"), _TIMESTAMP),
}


def catalog_streams() -> list[dict[str, Any]]:
    return [_stream("users", USERS), _stream("purchases", PURCHASES)]


def write_recording(path: Path, records: int, *, seed: int = 1) -> None:
    """Write ``records`` records, half of them users, to ``path``."""
    choose = random.Random(seed)
    words = [
        f"{choose.choice('BCDFGLMNPRST')}{choose.choice('aeiou')}{n:x}ton" for n in range(2000)
    ]
    half = records // 2
    with path.open("w", buffering=1 << 20) as out:
        for name, count in (("users", half), ("purchases", records - half)):
            out.write(_status(name, "STARTED"))
            rows = _users(choose, words, count) if name == "users" else _purchases(choose, count)
            for number, data in enumerate(rows, 1):
                out.write(
                    f'{{"type":"RECORD","record":{{"stream":"{name}","data":{data},'
                    f'"emitted_at":{_EMITTED_AT + number // 50}}}}}\n'
                )
                if number % _STATE_EVERY == 0 or number == count:
                    out.write(_state(name, number, (number - 1) % _STATE_EVERY + 1))
            out.write(_status(name, "COMPLETE"))


def _users(choose: random.Random, words: list[str], count: int) -> Iterator[str]:
    pick = choose.choice
    for number in range(1, count + 1):
        word, other = pick(words), pick(words)
        yield (
            f'{{"id":{number},"created_at":"20{number % 25:02}-07-{number % 28 + 1:02}T04:23:58+00:00",'
            f'"updated_at":"2026-01-01T00:00:00+00:00","name":"{word}","title":"Mrs.",'
            f'"age":{16 + number % 50},"email":"{other.lower()}+{number}@example.com",'
            f'"telephone":"1-{number % 800 + 200}-555-{number % 9000 + 1000}","gender":"Other",'
            f'"language":"Español","academic_degree":"Master","nationality":"{other}ian",'
            f'"occupation":"{word} {other}","height":"1.{number % 50 + 50}","blood_type":"AB+",'
            f'"weight":{38 + number % 52},"address":{{"street_number":"{number % 1400}",'
            f'"street_name":"{other}","city":"{word} Falls","state":"{other}","province":"{word}",'
            f'"postal_code":"{number % 90000 + 10000}","country":"CH"}}}}'
        )


def _purchases(choose: random.Random, count: int) -> Iterator[str]:
    for number in range(1, count + 1):
        day = f"2021-{number % 12 + 1:02}-{number % 28 + 1:02}"
        bought = f'"{day}T21:37:30+00:00"' if choose.random() < 0.7 else "null"
        yield (
            f'{{"id":{number},"product_id":{number % 100 + 1},"user_id":{number % 5000 + 1},'
            f'"created_at":"{day}T13:58:34.{number % 1000000:06}",'
            f'"updated_at":"2026-01-01T00:00:00+00:00","added_to_cart_at":"{day}T13:58:34+00:00",'
            f'"purchased_at":{bought}}}'
        )


def _stream(name: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "json_schema": {"type": "object", "properties": properties},
        "supported_sync_modes": ["full_refresh", "incremental"],
        "source_defined_cursor": True,
        "default_cursor_field": ["updated_at"],
        "source_defined_primary_key": [["id"]],
    }


def _state(name: str, position: int, since: int) -> str:
    stream = {"stream_descriptor": {"name": name}, "stream_state": {"position": position}}
    state = {"type": "STREAM", "stream": stream, "sourceStats": {"recordCount": float(since)}}
    return json.dumps({"type": "STATE", "state": state}) + "\n"


def _status(name: str, status: str) -> str:
    stream_status = {"stream_descriptor": {"name": name}, "status": status}
    trace = {"type": "STREAM_STATUS", "emitted_at": _EMITTED_AT, "stream_status": stream_status}
    return json.dumps({"type": "TRACE", "trace": trace}) + "\n"
