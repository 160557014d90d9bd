import msgspec
import pytest
from msgspec import Raw

from atlas_dagster.destinations.envelope import Envelope, StagedFile, StreamCommit, next_seq
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.sync.resume import LoggedState, ResumePoint, reconcile

S = StreamDescriptor("s")


def envelope(seq: int, generation: int = 3, wiped_at: float | None = None) -> Envelope:
    commit = StreamCommit(S, ("c", "s"), generation, replaces=False, wiped_at=wiped_at)
    return Envelope(seq, 1, "c", (commit,), Raw(b"[]"), prepared_at=float(seq))


def nothing(seq: int) -> Envelope | None:
    return None


def never(seq: int) -> Envelope | None:
    raise AssertionError("the stored envelopes need not be asked")


def test_a_stream_never_synced() -> None:
    assert reconcile(S, LoggedState(), None, never) == ResumePoint()


def test_memory_and_table_agree() -> None:
    last = envelope(50)
    assert reconcile(S, LoggedState(last), 50, never) == ResumePoint(3, last)


@pytest.mark.parametrize("last", [None, 40, 60])
def test_the_table_is_right_and_the_lake_knows_why(last: int | None) -> None:
    """The event was never written; or it was of a commit that somebody undid."""
    last_logged = LoggedState(None if last is None else envelope(last))
    assert reconcile(S, last_logged, 50, envelope) == ResumePoint(
        3, envelope(50), unrecorded=envelope(50)
    )


def test_a_commit_that_nobody_remembers() -> None:
    found = reconcile(S, LoggedState(envelope(40)), 50, nothing)
    assert (found.generation_id, found.envelope) == (3, None)
    assert "stream 's' holds commit 50" in str(found.problem)


def test_a_table_that_is_gone() -> None:
    found = reconcile(S, LoggedState(envelope(50)), None, never)
    assert (found.generation_id, found.envelope, found.replaces) == (4, None, False)
    assert "is gone" in (found.notice or "")


@pytest.mark.parametrize("last_logged", [True, False])
def test_wiped_after_the_commit(last_logged: bool) -> None:
    last = envelope(50) if last_logged else None
    found = reconcile(S, LoggedState(last, wiped_at=50.5), 50, envelope)
    assert (found.generation_id, found.envelope, found.replaces) == (4, None, True)
    assert not found.unrecorded
    assert "was wiped" in (found.notice or "")


@pytest.mark.parametrize("wiped_at", [49.5, 4e9], ids=["clocks agree", "clocks differ"])
def test_wiped_before_the_commit_was_planned(wiped_at: float) -> None:
    last = envelope(50, wiped_at=wiped_at)
    found = reconcile(S, LoggedState(last, wiped_at), 50, never)
    assert found == ResumePoint(3, last, wiped_at=wiped_at)


@pytest.mark.parametrize("wiped_at", [49.5, 4e9], ids=["before the commit", "after it"])
@pytest.mark.parametrize("before", [None, 20.0])
def test_wiped_while_the_sync_was_running(wiped_at: float, before: float | None) -> None:
    """Regression: the time of the wipe was compared with the time of the commit."""
    found = reconcile(S, LoggedState(envelope(50, wiped_at=before), wiped_at), 50, never)
    assert found.restarts == "was wiped in Dagster"
    assert (found.envelope, found.replaces, found.wiped_at) == (None, True, wiped_at)


@pytest.mark.parametrize(("wiped_at", "heeded"), [(49.5, True), (50.5, False)])
def test_an_envelope_of_version_1_says_nothing_of_wipes(wiped_at: float, heeded: bool) -> None:
    last = msgspec.structs.replace(envelope(50), wipes_until=50.0)
    found = reconcile(S, LoggedState(last, wiped_at), 50, never)
    assert (found.envelope is not None) == heeded


def test_wiped_and_gone() -> None:
    found = reconcile(S, LoggedState(None, wiped_at=1.0), None, never)
    assert found == ResumePoint(wiped_at=1.0)


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
    assert reconcile(S, LoggedState(envelope(50).reference()), 50, envelope) == ResumePoint(
        3, envelope(50)
    )
    found = reconcile(S, LoggedState(envelope(50).reference()), 50, nothing)
    assert "holds commit 50" in str(found.problem)
