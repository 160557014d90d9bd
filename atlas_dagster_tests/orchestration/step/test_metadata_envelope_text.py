"""Envelopes in events, from short to far too long."""

import json
import random

import msgspec
import pytest
from msgspec import Raw

from atlas_dagster.destinations.envelope import Envelope, StagedFile, StreamCommit
from atlas_dagster.orchestration.step.metadata import (
    LONGEST_COMPRESSED,
    LONGEST_PLAIN,
    from_text,
    to_text,
)
from atlas_dagster.orchestration.step.summary import shown_state
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState

S = StreamDescriptor("s")


def envelope(blob: bytes) -> Envelope:
    state = ConnectionState("STREAM", {S: Raw(blob)})
    commit = StreamCommit(S, ("c", "s"), 0, False, (StagedFile("p.parquet", 1, 1, "{}"),))
    return Envelope(7, 1, "c", (commit,), Raw(state.to_file()), prepared_at=1.5)


def text_of(length: int) -> bytes:
    letters = random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=length)
    return f'"{"".join(letters)}"'.encode()


@pytest.mark.parametrize("blob", [b'{"id": 1.10, "big": 123456789012345678901234567890}', b"{}"])
def test_a_short_state_is_stored_byte_for_byte(blob: bytes) -> None:
    text = to_text(envelope(blob))
    assert blob.decode() in text
    assert from_text(text) == envelope(blob).without_files()


def test_a_long_state_is_compressed_and_comes_back() -> None:
    whole = envelope(text_of(LONGEST_PLAIN))
    text = to_text(whole)
    assert len(text) < len(whole.encode())
    assert from_text(text) == whole.without_files()


@pytest.mark.slow
def test_of_a_state_that_stays_too_long_only_the_reference_is_stored() -> None:
    whole = envelope(text_of(2 * LONGEST_COMPRESSED))
    text = to_text(whole)
    assert len(text) < 1000
    found = from_text(text)
    assert found.is_reference
    assert found == whole.without_files().reference()
    assert not whole.is_reference


@pytest.mark.parametrize("text", ["", "{}", "zlib:", "zlib:~~~", "zlib:abc"])
def test_rubbish_is_refused(text: str) -> None:
    with pytest.raises(msgspec.MsgspecError):
        from_text(text)


def test_people_are_shown_short_states_and_the_size_of_long_ones() -> None:
    assert shown_state(None) == "none"
    assert shown_state(Raw(b'{"id": 1}')) == {"id": 1}
    for text in ('{"id": 1e400}', '{"id": %s}' % ("1" * 4000), *map(nested, (101, 500, 2000))):
        assert shown_state(Raw(text.encode())) in (text, {"id": int("1" * 4000)})
    assert shown_state(Raw(text_of(50_000))) == "49 KB, not shown"
    assert shown_state(Raw(nested(100).encode())) == json.loads(nested(100))


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels
