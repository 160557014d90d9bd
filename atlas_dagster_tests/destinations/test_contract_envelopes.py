"""Envelopes beside the data: stored, found, forgotten."""

from atlas_dagster_tests.destinations.stores import Store, spec


def test_an_envelope_comes_back_as_it_was(store: Store) -> None:
    writer = store.open(spec())
    store.write(writer, [{"id": 1}])
    envelope = store.commit(writer)
    stored = store.destination.envelope("c", envelope.seq)
    assert stored is not None
    assert stored.encode() == envelope.encode()
    assert stored.streams[0].rows == 1
    assert store.destination.envelope("c", 1) is None
    assert store.destination.envelope("other", envelope.seq) is None


def test_forget_removes_what_it_is_told(store: Store) -> None:
    seqs = []
    for _ in range(5):
        store.sync(spec(), [{"id": 1}])
        seqs.append(store.seq)
    store.destination.prune_envelopes("c", [])
    assert store.envelopes() == seqs
    store.destination.prune_envelopes("c", [seqs[0], seqs[2], 7])
    assert store.envelopes() == [seqs[1], seqs[3], seqs[4]]
    store.destination.prune_envelopes("other", [seqs[4]])
    assert store.envelopes() == [seqs[1], seqs[3], seqs[4]]
