"""Recorded READs of any size, the same bytes for the same arguments.

    python3 benchmarks/recording.py dirty 1000000 recording.jsonl

``clean`` is two streams of the shape source-faker sends, one after the other, a STATE every 10,000
records and the statuses a CDK source prints; about 450 bytes a record. The others differ from it as
``RECORDINGS`` says. Needs nothing but Python: an image builds its recording with this file.
"""

import json
import random
import sys
from collections.abc import Callable, Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

_EMITTED_AT = 1_760_000_000_000
_STATE_EVERY = 10_000
_TIMESTAMP = {"type": "string", "format": "date-time", "airbyte_type": "timestamp_with_timezone"}
_TEXT = {"type": "string"}
_INTEGER = {"type": "integer"}
_NUMBER = {"type": "number"}
_ADDRESS = ("street_number", "street_name", "city", "state", "province", "postal_code", "country")
_DATE = "2026-01-01T00:00:00+00:00"

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
_WIDE_TYPES = (_TEXT, _INTEGER, _NUMBER, _TIMESTAMP)
WIDE = {
    "id": _INTEGER,
    "updated_at": _TIMESTAMP,
    **{f"column_{n}": _WIDE_TYPES[n % 4] for n in range(498)},
}
NESTED = {
    "id": _INTEGER,
    "updated_at": _TIMESTAMP,
    "customer": {"type": "object"},
    "lines": {"type": "array"},
}
TINY = {"id": _INTEGER, "updated_at": _TIMESTAMP}


def _users(choose: random.Random, count: int) -> Iterator[str]:
    pick = choose.choice
    words = [f"{pick('BCDFGLMNPRST')}{pick('aeiou')}{n:x}ton" for n in range(2000)]
    for number in range(1, count + 1):
        word, other = pick(words), pick(words)
        yield (
            f'{{"id":{number},"created_at":"20{number % 25:02}-07-{number % 28 + 1:02}T04:23:58+00:00",'
            f'"updated_at":"{_DATE}","name":"{word}","title":"Mrs.",'
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
            f'"updated_at":"{_DATE}","added_to_cart_at":"{day}T13:58:34+00:00",'
            f'"purchased_at":{bought}}}'
        )


def _wide(choose: random.Random, count: int) -> Iterator[str]:
    values = ('"value %d"', "%d", "%d.25", f'"{_DATE}"')
    fields = ",".join(f'"column_{n}":{values[n % 4]}' for n in range(498))
    numbers = fields.count("%d")
    for number in range(1, count + 1):
        data = fields % tuple(choose.choices(range(10_000), k=numbers))
        yield f'{{"id":{number},"updated_at":"{_DATE}",{data}}}'


def _nested(choose: random.Random, count: int) -> Iterator[str]:
    for number in range(1, count + 1):
        lines = ",".join(
            f'{{"sku":"sku-{number % 997}-{n}","amount":{n + 1},"price":{{"currency":"CHF","net":'
            f'{number % 500}.5,"taxes":[{{"kind":"vat","rate":7.7}},null]}},"tags":["new","a\\"b"]}}'
            for n in range(15)
        )
        yield (
            f'{{"id":{number},"updated_at":"{_DATE}","customer":{{"id":{choose.randrange(5000)},'
            f'"contact":{{"emails":["c{number}@example.com"],"address":{{"geo":{{"lat":46.5,"lon":'
            f'{number % 180}.25}},"lines":["Street {number % 1400}",null]}}}}}},"lines":[{lines}]}}'
        )


def _tiny(choose: random.Random, count: int) -> Iterator[str]:
    for number in range(1, count + 1):
        yield f'{{"id":{number},"updated_at":"{_DATE}"}}'


class Stream(NamedTuple):
    name: str
    properties: dict[str, Any]
    rows: Callable[[random.Random, int], Iterator[str]]


class Recording(NamedTuple):
    streams: tuple[Stream, ...]
    #: One record in so many breaks its schema, in a way of its own.
    broken_every: int = 0
    states: bool = True
    #: One message of each stream in turn, instead of stream after stream.
    interleaved: bool = False
    #: Big records are fewer: one for so many of the clean recording, about as many bytes.
    share: int = 1


_BOTH = (Stream("users", USERS, _users), Stream("purchases", PURCHASES, _purchases))
_MANY = tuple(s._replace(name=f"{s.name}_{n}") for n in range(25) for s in _BOTH)
RECORDINGS = {
    "clean": Recording(_BOTH),
    "dirty": Recording(_BOTH, broken_every=50),
    "stateless": Recording(_BOTH, states=False),
    "interleaved": Recording(_MANY, interleaved=True),
    "wide": Recording((Stream("wide", WIDE, _wide),), share=25),
    "nested": Recording((Stream("nested", NESTED, _nested),), share=4),
    "tiny": Recording((Stream("tiny", TINY, _tiny),)),
}


def image_name(name: str, records: int) -> str:
    """Of the image that plays it."""
    return f"atlas-bench/source-{name}:{records}"


def catalog_streams(name: str) -> list[dict[str, Any]]:
    return [
        {
            "name": stream.name,
            "json_schema": {"type": "object", "properties": stream.properties},
            "supported_sync_modes": ["full_refresh", "incremental"],
            "source_defined_cursor": True,
            "default_cursor_field": ["updated_at"],
            "source_defined_primary_key": [["id"]],
        }
        for stream in RECORDINGS[name].streams
    ]


def write_recording(path: Path, name: str, records: int) -> None:
    """Write ``records`` records, as many of each stream, to ``path``."""
    recording = RECORDINGS[name]
    each, more = divmod(records, len(recording.streams))
    streams = [
        _messages(recording, stream, random.Random(seed), each + (seed < more))
        for seed, stream in enumerate(recording.streams)
    ]
    turns = chain.from_iterable(zip_longest(*streams))
    with path.open("w", buffering=1 << 20, encoding="utf-8") as out:
        out.writelines(filter(None, turns) if recording.interleaved else chain(*streams))


def _messages(
    recording: Recording, stream: Stream, choose: random.Random, count: int
) -> Iterator[str]:
    name, every = stream.name, recording.broken_every
    yield _status(name, "STARTED")
    for number, row in enumerate(stream.rows(choose, count), 1):
        data = _broken(row, number // every) if every and number % every == 0 else row
        yield (
            f'{{"type":"RECORD","record":{{"stream":"{name}","data":{data},'
            f'"emitted_at":{_EMITTED_AT + number // 50}}}}}\n'
        )
        if recording.states and (number % _STATE_EVERY == 0 or number == count):
            yield _state(name, number, (number - 1) % _STATE_EVERY + 1)
    yield _status(name, "COMPLETE")


def _broken(row: str, kind: int) -> str:
    data = json.loads(row)
    integer, text = ("age", "name") if "age" in data else ("product_id", "added_to_cart_at")
    ways: tuple[dict[str, Any], ...] = (
        {integer: "forty-two"},
        {integer: 2**63 + kind},
        {integer: 41.5},
        {text: {"a": [1, 2, {"b": None}]}},
        {"created_at": "0000-00-00 00:00:00"},
        {"undeclared": {"z": 1}},
    )
    return json.dumps(data | ways[kind % len(ways)], ensure_ascii=False, separators=(",", ":"))


def _state(name: str, position: int, since: int) -> str:
    stream = {"stream_descriptor": {"name": name}, "stream_state": {"position": position}}
    state = {"type": "STREAM", "stream": stream, "sourceStats": {"recordCount": float(since)}}
    return json.dumps({"type": "STATE", "state": state}) + "\n"


def _status(name: str, status: str) -> str:
    stream_status = {"stream_descriptor": {"name": name}, "status": status}
    trace = {"type": "STREAM_STATUS", "emitted_at": _EMITTED_AT, "stream_status": stream_status}
    return json.dumps({"type": "TRACE", "trace": trace}) + "\n"


if __name__ == "__main__":
    write_recording(Path(sys.argv[3]), sys.argv[1], int(sys.argv[2]))
