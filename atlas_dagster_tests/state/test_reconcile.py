import pytest
from msgspec import Raw

from atlas_dagster.errors import DestinationError
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.state.envelope import Envelope, StagedFile, StreamCommit, next_seq
from atlas_dagster.state.reconcile import Remembered, Resumption, reconcile

S = StreamDescriptor("s")


def envelope(seq: int, generation: int = 3) -> Envelope:
    commit = StreamCommit(S, ("c", "s"), generation, replaces=False)
    return Envelope(seq, 1, "c", (commit,), Raw(b"[]"), prepared_at=float(seq))


def nothing(seq: int) -> Envelope | None:
    return None


def never(seq: int) -> Envelope | None:
    raise AssertionError("the stored envelopes need not be asked")


def test_a_stream_never_synced() -> None:
    assert reconcile(S, Remembered(), None, never) == Resumption()


def test_memory_and_table_agree() -> None:
    last = envelope(50)
    assert reconcile(S, Remembered(last), 50, never) == Resumption(3, last)


@pytest.mark.parametrize("last", [None, 40, 60])
def test_the_table_is_right_and_the_lake_knows_why(last: int | None) -> None:
    """The event was never written; or it was of a commit that somebody undid."""
    remembered = Remembered(None if last is None else envelope(last))
    assert reconcile(S, remembered, 50, envelope) == Resumption(
        3, envelope(50), unrecorded=envelope(50)
    )


def test_a_commit_that_nobody_remembers() -> None:
    with pytest.raises(DestinationError, match="stream 's' holds commit 50, which neither"):
        reconcile(S, Remembered(envelope(40)), 50, nothing)


def test_a_table_that_is_gone() -> None:
    found = reconcile(S, Remembered(envelope(50)), None, never)
    assert (found.generation_id, found.envelope, found.replaces) == (4, None, False)
    assert "is gone" in (found.notice or "")


@pytest.mark.parametrize("remembered", [True, False])
def test_wiped_after_the_commit(remembered: bool) -> None:
    last = envelope(50) if remembered else None
    found = reconcile(S, Remembered(last, wiped_at=50.5), 50, envelope)
    assert (found.generation_id, found.envelope, found.replaces) == (4, None, True)
    assert not found.unrecorded
    assert "was wiped" in (found.notice or "")


def test_wiped_before_the_commit() -> None:
    assert reconcile(S, Remembered(envelope(50), wiped_at=49.5), 50, never) == Resumption(
        3, envelope(50)
    )


def test_wiped_and_gone() -> None:
    found = reconcile(S, Remembered(None, wiped_at=1.0), None, never)
    assert found == Resumption()


# Envelopes


def test_an_envelope_survives_its_file() -> None:
    file = StagedFile("part.parquet", 10, 2, '{"numRecords":2}')
    commit = StreamCommit(StreamDescriptor("s", "n"), ("c", "n", "s"), 1, True, (file,))
    state = b'[{"type":"STREAM","stream":{"stream_descriptor":{"name":"s"},"stream_state":1.10}}]'
    whole = Envelope(7, 1, "c", (commit,), Raw(state), 1.5, run_id="r")
    again = Envelope.decode(whole.encode())
    assert again.encode() == whole.encode()
    assert again.commit_of(StreamDescriptor("s", "n")) == commit
    assert again.commit_to(("c", "n", "s")).rows == 2
    assert bytes(again.connection_state.streams[S]) == b"1.10"
    assert whole.without_files().streams[0].files == ()


def test_no_two_attempts_share_a_number() -> None:
    drawn = {next_seq(5) for _ in range(50)}
    assert len(drawn) == 50
    assert min(drawn) > 5
    assert max(drawn) <= 5 + 2**32


def test_a_state_the_event_only_refers_to_is_looked_up_beside_the_data() -> None:
    assert reconcile(S, Remembered(envelope(50).reference()), 50, envelope) == Resumption(
        3, envelope(50)
    )
    with pytest.raises(DestinationError, match="holds commit 50"):
        reconcile(S, Remembered(envelope(50).reference()), 50, nothing)
