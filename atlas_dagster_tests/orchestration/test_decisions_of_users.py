"""What runs do about names and versions, a user's word, and readings that were not complete.

More rows of docs/state.md, as in ``test_decision_table``.
"""

import shutil

import dagster as dg
import pytest

from atlas_dagster.destinations.delta.writer import DeltaWriter
from atlas_dagster.orchestration.automation.retries import ROOT_RUN_TAG
from atlas_dagster.orchestration.definitions.translator import StreamProps, stream_spec
from atlas_dagster_tests.orchestration.by_hand import shop
from atlas_dagster_tests.orchestration.decisions import EITHER, KEY, Shop, die

# Names and versions


@EITHER
def test_two_deployments_on_one_lake(it: Shop) -> None:
    it.run()
    it.deployment = "dev"
    with dg.DagsterInstance.ephemeral() as dev:
        refused = it.run(instance=dev).failure
        assert refused == (
            "The tables of connection 'shop' belong to the deployment 'tests', and this one is "
            "'dev': give this one another destination, or, if the other has ended, take them over "
            "with `atlas state adopt shop`."
        )
        assert it.open_state_admin().transfer_ownership() == "dev"
        it.source.last = 4
        assert it.run(instance=dev).success
    it.deployment = "tests"
    assert "belong to the deployment 'dev'" in it.run().failure
    assert it.source.started_from == [None, 3]
    assert it.ids() == [1, 2, 3, 4]


@EITHER
def test_a_lake_without_an_owner_is_taken(it: Shop) -> None:
    it.run()
    shutil.rmtree(it.lake / "_atlas" / "shop" / "owner")
    it.deployment = "renamed"
    assert it.run().success


@EITHER
def test_a_connection_that_is_renamed_starts_anew(it: Shop) -> None:
    it.run()
    streams = it.connection.model_dump()["streams"]
    it.connection = shop(name="store", streams=streams)
    assert it.run().success
    assert it.source.started_from == [None, None]
    assert (it.ids("shop"), it.ids("store")) == ([1, 2, 3], [1, 2, 3])


@EITHER
def test_nothing_downstream_is_stale_while_the_source_brings_nothing(it: Shop) -> None:
    versions = []
    for last in (3, 3, 4):
        it.source.last = last
        it.run()
        event = it.instance.get_latest_materialization_event(it.key)
        assert event is not None
        assert event.asset_materialization is not None
        versions.append((event.asset_materialization.tags or {})["dagster/data_version"])

    assert versions[0] == versions[1] != versions[2]


def translated(props: StreamProps) -> dg.AssetSpec:
    return stream_spec(props).replace_attributes(key=["raw", props.stream_name])


@EITHER
def test_a_stream_that_is_given_another_key_goes_on(it: Shop) -> None:
    """Its events are another asset's; but the table knows its commit, and the lake the state."""
    it.run()
    it.get_asset_spec = translated
    it.source.last = 4

    assert it.run().success
    assert it.run().success

    assert it.key == dg.AssetKey(["raw", "events"])
    assert it.source.started_from == [None, 3, 4]
    assert it.ids() == [1, 2, 3, 4]
    events = it.instance.fetch_materializations(it.key, limit=10).records
    assert len(events) == 2


@EITHER
def test_a_stream_with_another_key_is_wiped_cleared_and_set_like_any(it: Shop) -> None:
    it.get_asset_spec = translated
    it.run()
    it.instance.wipe_assets([it.key])
    assert "was wiped" in it.run().warnings[0]
    open_state_admin = it.open_state_admin()
    names = open_state_admin.find(())
    open_state_admin.apply(lambda upkeep: upkeep.clear(names))
    history = open_state_admin.store.history(("shop", "events"), 10)
    assert history[0][0].action == "clear"
    assert it.run().success
    assert it.source.started_from == [None, None, None]
    assert it.ids() == [1, 2, 3]


@EITHER
def test_a_new_major_version_of_the_connector(it: Shop) -> None:
    it.runner.reference = "airbyte/source-shop:1.9.2@sha256:abc"
    it.run()
    it.runner.reference = "airbyte/source-shop:1.10.0@sha256:abd"
    assert it.run().warnings == []
    it.runner.reference = "airbyte-source-shop==2.0.0"
    (told,) = it.run().warnings
    assert told.startswith(
        "The connector went from version 1.10.0 to 2.0.0 since the last sync. A new major version "
    )
    assert it.run().warnings == []


# A user's word


@EITHER
def test_a_run_refreshes_once_however_often_it_is_tried(it: Shop) -> None:
    it.run()
    it.source.dies_after = 2
    first = it.run("retain")
    assert not first.success
    assert it.ids() == [1, 1, 2, 2, 3]
    it.source.dies_after = None

    second = it.run("retain", again=first)
    assert second.success
    assert it.source.started_from == [None, None, 2]
    assert it.ids() == [1, 1, 2, 2, 3, 3]
    assert second.warnings == [
        f"This run tries run {first.run_id} again, whose refresh of events has begun already: they "
        "continue where they are. To read them from the beginning once more, start a new run with "
        "refresh."
    ]

    # Executed once more, though it succeeded, it is a run like any other.
    assert it.run("retain", again=second).success
    assert it.ids() == [1, 1, 1, 2, 2, 2, 3, 3, 3]


@EITHER
def test_a_refresh_asked_for_outlives_its_run(it: Shop) -> None:
    """The schedule's next run knows nothing of the option, and goes on with it."""
    it.run()
    it.source.dies_after = 1
    assert not it.run("remove").success
    assert it.ids() == [1, 2, 3]
    it.source.dies_after, it.source.last = None, 2
    (told,) = it.run().warnings
    assert told == (
        "Stream 'events' goes on where the try before ended; all its rows are shown at once when "
        "it is complete."
    )
    assert it.source.started_from == [None, None, 1]
    assert it.ids() == [1, 2]


@EITHER
def test_what_a_user_does_is_in_the_event_log(it: Shop) -> None:
    it.run()
    open_state_admin = it.open_state_admin()
    names = open_state_admin.find(())
    open_state_admin.apply(lambda upkeep: upkeep.reset(names))
    open_state_admin.apply(lambda upkeep: upkeep.clear(names))
    assert it.ids() == []
    history = open_state_admin.store.history(("shop", "events"), 10)
    assert [envelope.action for envelope, _ in history] == ["clear", "reset", "sync"]
    assert [cursor for _, cursor in history] == ["none", "none", {"at": 3}]
    it.lose_envelopes()
    # The event alone is enough.
    assert it.run().success
    assert it.source.started_from == [None, None]
    assert it.ids() == [1, 2, 3]


# A full refresh that dies


@pytest.fixture
def snapshots(it: Shop) -> Shop:
    """The stream is read in full each time, and added to what there is."""
    it.connection = shop(
        streams=[{"name": "events", "sync_mode": "full_refresh", "destination_sync_mode": "append"}]
    )
    return it


@EITHER
def test_a_run_that_is_tried_again_goes_on_with_a_full_refresh(snapshots: Shop) -> None:
    it = snapshots
    it.run()
    it.source.dies_after = 2
    first = it.run()
    assert it.ids() == [1, 2, 3]
    it.source.dies_after = None
    second = it.run(again=first)
    assert "goes on where the try before ended" in second.warnings[0]
    assert it.source.started_from == [None, None, 2]
    assert it.ids() == [1, 1, 2, 2, 3, 3]
    told = [
        event.asset_observation.description
        for event in it.instance.fetch_observations(KEY, limit=2).records
        if event.asset_observation
    ]
    assert told == [
        "Checkpoint: 1 rows committed.",
        "Checkpoint: 2 rows committed, shown once the stream is complete.",
    ]


@EITHER
def test_so_does_a_later_try_of_the_schedule(snapshots: Shop) -> None:
    it = snapshots
    it.source.dies_after = 2
    first = it.run()
    it.source.dies_after = None
    assert it.run(tags={ROOT_RUN_TAG: first.run_id}).success
    assert it.source.started_from == [None, 2]
    assert it.ids() == [1, 2, 3]


@EITHER
def test_another_run_begins_a_full_refresh_anew(snapshots: Shop) -> None:
    it = snapshots
    it.source.dies_after = 2
    it.run()
    it.source.dies_after = None
    ran = it.run()
    assert (ran.success, ran.warnings) == (True, [])
    assert it.source.started_from == [None, None]
    assert it.ids() == [1, 2, 3]


@EITHER
def test_a_full_refresh_that_was_complete_is_not_read_again(
    snapshots: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run died when the rows were in the table, and before Dagster was told."""
    it = snapshots
    with monkeypatch.context() as patch:
        patch.setattr(DeltaWriter, "merge_committed", die)
        first = it.run()
    assert not first.success
    second = it.run(again=first)
    assert second.success
    assert it.source.started_from == [None]
    assert it.ids() == [1, 2, 3]
    made = it.instance.get_latest_materialization_event(KEY)
    assert made is not None
    assert made.asset_materialization is not None
    told = made.asset_materialization.metadata["atlas/summary"].value
    assert "It was complete when this run failed, so it was not read again." in str(told)
    # Executed once more, though it succeeded, it is a run like any other.
    assert it.run(again=second).success
    assert it.ids() == [1, 1, 2, 2, 3, 3]
