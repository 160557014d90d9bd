#!/usr/bin/env python3
"""A source connector whose every record follows from its config, for comparing tables row by row.

It has a journal of the positions 1 to ``until``, read in two streams: ``appended`` (each position
once) and ``deduped`` (accounts; a position changes one of them, mostly one that was there before).
Beside it are lists to be read in full: ``overwritten``, which is another one for each ``until``,
and ``snapshots``, which always is the same.

It goes on after the position of any STATE it has sent, and sends one after every few records,
``kind`` STREAM or GLOBAL. In a GLOBAL one are the streams of the journal only; ``overwritten`` has
its own beside it, ``snapshots`` then has none.

As long as the file ``deaths_file`` has fewer bytes than ``deaths``, a READ adds one and dies
somewhere: with an error that may pass, with nothing but exit code 1, or of SIGKILL.
"""

import argparse
import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

POSITIONS_PER_STATE = 25
LISTED_ROWS = 100
FIRST_EMITTED_AT = 1_700_000_000_000

COLUMNS: dict[str, dict[str, Any]] = {
    "appended": {
        "position": {"type": "integer"},
        "amount": {"type": "number"},
        "note": {"type": "string"},
        "tags": {"type": "array"},
    },
    "deduped": {
        "account": {"type": "integer"},
        "hour": {"type": "integer"},
        "balance": {"type": "integer"},
        "position": {"type": "integer"},
    },
    "overwritten": {"row": {"type": "integer"}, "rate": {"type": "number"}},
    "snapshots": {"row": {"type": "integer"}, "rate": {"type": "number"}},
}
JOURNAL = ("appended", "deduped")
INCREMENTAL = {
    "supported_sync_modes": ["full_refresh", "incremental"],
    "source_defined_cursor": True,
    "is_resumable": True,
}
FULL = {"supported_sync_modes": ["full_refresh"], "is_resumable": True}
COMPLETE = "__ab_full_refresh_sync_complete"
MORE: dict[str, dict[str, Any]] = {
    "appended": {**INCREMENTAL, "default_cursor_field": ["position"]},
    # Several positions share an hour, so that the cursor alone does not decide.
    "deduped": {
        **INCREMENTAL,
        "default_cursor_field": ["hour"],
        "source_defined_primary_key": [["account"]],
    },
    "overwritten": FULL,
    "snapshots": FULL,
}
CATALOG = {
    "streams": [
        {"name": name, "json_schema": {"type": "object", "properties": columns}, **MORE[name]}
        for name, columns in COLUMNS.items()
    ]
}
SPEC = {
    "connectionSpecification": {
        "type": "object",
        "required": ["kind", "seed", "until"],
        "properties": {
            "kind": {"type": "string", "enum": ["STREAM", "GLOBAL"]},
            "seed": {"type": "integer"},
            "until": {"type": "integer"},
            "deaths": {"type": "integer", "default": 0},
            "deaths_file": {"type": "string"},
        },
    }
}


class Death:
    """Ends the connector after some records; never, where it is to live."""

    def __init__(self, config: dict[str, Any], records: int) -> None:
        self._left = -1
        if not config.get("deaths"):
            return
        file = Path(config["deaths_file"])
        died = file.stat().st_size if file.exists() else 0
        if died < config["deaths"]:
            with file.open("ab") as log:
                log.write(b".")
            chance = random.Random(f"{config['seed']} {died}")
            self._left = chance.randint(0, records)
            self._way = chance.choice(["error", "exit", "kill"])

    def after(self, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What of ``lines`` is still said."""
        if self._left < 0:
            return lines
        if self._left >= len(lines):
            self._left -= len(lines)
            return lines
        say(lines[: self._left])
        if self._way == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._way == "error":
            error = {"message": "the line went dead", "failure_type": "transient_error"}
            say([trace("error", error)])
        sys.exit(1)


def say(lines: list[dict[str, Any]]) -> None:
    sys.stdout.write("".join(json.dumps(line) + "\n" for line in lines))
    sys.stdout.flush()


def trace(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    said = {"type": kind.upper(), "emitted_at": float(FIRST_EMITTED_AT), kind: body}
    return {"type": "TRACE", "trace": said}


def status(stream: str, word: str) -> dict[str, Any]:
    return trace("stream_status", {"stream_descriptor": {"name": stream}, "status": word})


def record(stream: str, data: dict[str, Any], at: int) -> dict[str, Any]:
    # Some share their time, too: then the order of arrival decides.
    emitted_at = FIRST_EMITTED_AT + at // 3 * 1000
    return {
        "type": "RECORD",
        "record": {"stream": stream, "data": data, "emitted_at": emitted_at},
    }


def stream_state(stream: str, blob: dict[str, Any]) -> dict[str, Any]:
    return {"stream_descriptor": {"name": stream}, "stream_state": blob}


def state(kind: str, content: dict[str, Any], records: int) -> dict[str, Any]:
    counts = {"recordCount": float(records)}
    return {
        "type": "STATE",
        "state": {"type": kind, kind.lower(): content, "sourceStats": counts},
    }


def appended(seed: int, position: int) -> dict[str, Any]:
    chance = random.Random(f"{seed} {position}")
    return {
        "position": position,
        "amount": round(chance.uniform(-1000, 1000), 2),
        "note": chance.choice(["", "Zahlung für März", 'a\tb\\n"c"', "Ω≈ç√", "plain"]),
        "tags": [chance.randint(0, 9) for _ in range(chance.randint(0, 3))],
    }


def deduped(seed: int, position: int) -> dict[str, Any]:
    chance = random.Random(f"{seed} {position} account")
    return {
        "account": chance.randint(1, 20 + position // 5),
        "hour": position // 10,
        "balance": chance.randint(-(10**12), 10**12),
        "position": position,
    }


def listed(seed: int, until: int, row: int) -> dict[str, Any]:
    return {"row": row, "rate": random.Random(f"{seed} {until} {row}").randint(0, 10**6) / 8}


def read(config: dict[str, Any], catalog: dict[str, Any], states: list[dict[str, Any]]) -> None:
    kind, seed, until = config["kind"], config["seed"], config["until"]
    asked = [item["stream"]["name"] for item in catalog["streams"]]
    at = dict.fromkeys(COLUMNS, 0) | positions(states)
    left = {name: range(at[name] + 1, LISTED_ROWS + 1) for name in COLUMNS}
    left |= {name: range(at[name] + 1, until + 1) for name in JOURNAL}
    rows = {
        "appended": [appended(seed, n) for n in left["appended"]],
        "deduped": [deduped(seed, n) for n in left["deduped"]],
        "overwritten": [listed(seed, until, n) for n in left["overwritten"]],
        "snapshots": [listed(seed, 0, n) for n in left["snapshots"]],
    }
    rows = {name: rows[name] for name in asked}
    alone = [name for name in asked if kind == "STREAM" or name == "overwritten"]
    death = Death(config, sum(map(len, rows.values())))
    say([status(name, "STARTED") for name in asked])
    first = 0
    while any(first < len(of) for of in rows.values()):
        pieces = {name: of[first : first + POSITIONS_PER_STATE] for name, of in rows.items()}
        first += POSITIONS_PER_STATE
        for name, piece in pieces.items():
            lines = [record(name, data, at[name] + n) for n, data in enumerate(piece, start=1)]
            at[name] += len(piece)
            if piece and name in alone:
                own = stream_state(name, {"position": at[name]})
                lines.append(state("STREAM", own, len(piece)))
            say(death.after(lines))
        if kind == "GLOBAL":
            shared = {
                "shared_state": {"lsn": max(at[name] for name in JOURNAL)},
                "stream_states": [
                    stream_state(name, {"position": at[name]}) for name in asked if name in JOURNAL
                ],
            }
            counted = sum(len(piece) for name, piece in pieces.items() if name not in alone)
            say(death.after([state(kind, shared, counted)]))
    for name in asked:
        if name in alone and name not in JOURNAL:
            say([state("STREAM", stream_state(name, {COMPLETE: True}), 0)])
        say(death.after([status(name, "COMPLETE")]))


def positions(states: list[dict[str, Any]]) -> dict[str, int]:
    """The position that each stream's state stands at."""
    found = []
    for each in states:
        found += each["global"]["stream_states"] if "global" in each else [each["stream"]]
    return {
        each["stream_descriptor"]["name"]: LISTED_ROWS
        if COMPLETE in each["stream_state"]
        else each["stream_state"]["position"]
        for each in found
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="source-ledger")
    parser.add_argument("verb", choices=["spec", "check", "discover", "read"])
    for option in ("config", "catalog", "state"):
        parser.add_argument(f"--{option}", type=Path)
    arguments = parser.parse_args()

    def load(option: str, default: Any) -> Any:
        path = getattr(arguments, option)
        return json.loads(path.read_bytes()) if path else default

    match arguments.verb:
        case "spec":
            say([{"type": "SPEC", "spec": SPEC}])
        case "check":
            say([{"type": "CONNECTION_STATUS", "connectionStatus": {"status": "SUCCEEDED"}}])
        case "discover":
            say([{"type": "CATALOG", "catalog": CATALOG}])
        case "read":
            read(load("config", {}), load("catalog", {"streams": []}), load("state", []))


if __name__ == "__main__":
    main()
