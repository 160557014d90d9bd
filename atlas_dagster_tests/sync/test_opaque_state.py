"""The connector's state goes back to it as its bytes; only the wrapper is ours."""

from typing import Any

import pytest
from msgspec import Raw

from atlas_dagster.protocol.state import ConnectionState
from atlas_dagster_tests.sync.fake_source import (
    EAGER,
    Lake,
    global_state,
    incremental,
    records,
    state,
    status,
    upkeep,
)

A, B = incremental("a"), incremental("b")
BOTH = status("a") + status("b")
#: Nothing of it survives a parser: spacing, order, doubled keys, numbers, escapes.
ODD = (
    b'{ "z" : 1.10,"a":12345678901234567890.123456789,"a":1e400 , "__class__":"x","\\u0000":null,'
    b'"n":[ 1 ,-0.0],"s":"\\ud83d\\ude00 \\/ \xc3\xa9","e":{}}'
)


def printed(kind: str, blob: bytes) -> bytes:
    content = {
        "STREAM": b'"stream":{"stream_descriptor":{"name":"a"},"stream_state":%s}' % blob,
        "GLOBAL": b'"global":{"shared_state":%s,"stream_states":[{"stream_descriptor":'
        b'{"name":"a"},"stream_state":%s}]}' % (blob, blob),
        "LEGACY": b'"data":%s' % blob,
    }[kind]
    return b'{"type":"STATE","state":{"type":"%s",%s}}\n' % (kind.encode(), content)


@pytest.mark.parametrize("kind", ["STREAM", "GLOBAL", "LEGACY"])
@pytest.mark.parametrize("keeps", ["event log", "beside the tables", "set by hand"])
def test_it_comes_back_as_it_was(lake: Lake, kind: str, keeps: str) -> None:
    lake.sync([A], records("a", [1]), printed(kind, ODD), status("a"), **EAGER)
    if keeps == "event log":
        lake.lose_envelopes()
    elif keeps == "beside the tables":
        lake.store.envelopes.clear()
    else:
        shown = upkeep(lake, A).resume_points.state.to_file()
        upkeep(lake, A).set(ConnectionState.from_file(Raw(shown)))
    done = lake.sync([A], status("a"))
    sent = done.runner.commands[-1].files["state"]
    assert sent.count(ODD) == (2 if kind == "GLOBAL" else 1)


def test_a_bare_one_is_the_whole_file(lake: Lake) -> None:
    lake.sync([A], records("a", [1]), b'{"type":"STATE","state":{"data":%s}}\n' % ODD)
    assert lake.sync([A]).runner.commands[-1].files["state"] == ODD


@pytest.mark.parametrize("text", [b"\\ud83d", b"\xff", b"\xed\xa0\xbd"], ids=repr)
def test_what_is_no_text_becomes_what_json_can_hold(lake: Lake, text: bytes) -> None:
    lake.sync([A], records("a", [1]), printed("STREAM", b'{"at":"%s!"}' % text), status("a"))
    lake.store.envelopes.clear()
    sent = lake.sync([A], status("a")).file("state")
    assert sent[0]["stream"]["stream_state"] == {"at": "\ufffd!"}


# The replication method is switched, and the streams are refreshed


def one(name: str, id: int) -> bytes:
    return records(name, [id]) + state(name, {"at": id})


def whole(lsn: int, names: str = "ab") -> bytes:
    return global_state({"lsn": lsn}, {name: {"at": lsn} for name in names})


@pytest.mark.parametrize("way", ["at once", "one by one", "one by one, synced between"])
@pytest.mark.parametrize("to", ["GLOBAL", "STREAM"])
def test_stream_by_stream_leads_to_the_same_as_all_at_once(lake: Lake, to: str, way: str) -> None:
    """Regression: it was refused, or states of the old method went to the source."""
    cdc = records("a", [1]) + records("b", [1]) + whole(1) + BOTH
    cursors = one("a", 1) + one("b", 1) + BOTH
    lake.sync([A, B], cursors if to == "GLOBAL" else cdc)
    new: dict[str, bytes] = {
        "GLOBAL": records("a", [1, 2]) + records("b", [1, 2]) + whole(2) + BOTH,
        "STREAM": records("a", [1]) + one("a", 2) + records("b", [1]) + one("b", 2) + BOTH,
    }
    alone = {
        "GLOBAL": records("a", [1, 2]) + whole(2, "a"),
        "STREAM": records("a", [1]) + one("a", 2),
    }
    if way == "at once":
        upkeep(lake, A, B).refresh([A.descriptor, B.descriptor], keep_rows=False)
    else:
        upkeep(lake, A, B).refresh([A.descriptor], keep_rows=False)
        if way != "one by one":
            # Of a STREAM state, a can be read alone; of a GLOBAL one, b is read along.
            lake.sync([A, B], alone[to] + BOTH, selected=["a"])
        upkeep(lake, A, B).refresh([B.descriptor], keep_rows=False)
    done = lake.sync([A, B], new[to] if way != "one by one, synced between" else again(to))
    assert done.failure is None
    old = {"GLOBAL": "stream", "STREAM": "global"}[to]
    sent: list[dict[str, Any]] = done.file("state") or []
    assert not [message for message in sent if old in message]
    assert (lake.ids("a"), lake.ids("b")) == ([1, 2], [1, 2])


def again(to: str) -> bytes:
    """What is left for b once a was read."""
    read = records("b", [1, 2])
    return read + (whole(3) if to == "GLOBAL" else state("b", {"at": 2})) + BOTH
