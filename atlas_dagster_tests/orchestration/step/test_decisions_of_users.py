"""What runs do about names and versions, a user's word, and readings that were not complete.

More rows of docs/state.md, as in ``test_decision_table``.
"""

import shutil

import dagster as dg
import pytest

from atlas_dagster.destinations.delta.writer import DeltaWriter
from atlas_dagster.orchestration.automation.retries import ROOT_RUN_TAG
from atlas_dagster.orchestration.definitions.translator import StreamProps, stream_spec
from atlas_dagster_tests.orchestration.connections import declare_shop
from atlas_dagster_tests.orchestration.recovery_cases import EITHER, KEY, Shop, die

pytestmark = pytest.mark.slow

# Names and versions


@EITHER
def test_two_deployments_on_one_lake(shop: Shop) -> None:
    shop.run()
    shop.deployment = "dev"
    with dg.DagsterInstance.ephemeral() as dev:
        refused = shop.run(instance=dev).failure
        assert refused == (
            "The tables of connection 'shop' belong to the deployment 'tests', and this one is "
            "'dev': give this one another destination, or, if the other has ended, take them over "
            "with `atlas state adopt shop`."
        )
        assert shop.open_state_admin().transfer_ownership() == "dev"
        shop.source.last = 4
        assert shop.run(instance=dev).success
    shop.deployment = "tests"
    assert "belong to the deployment 'dev'" in shop.run().failure
    assert shop.source.started_from == [None, 3]
    assert shop.ids() == [1, 2, 3, 4]


@EITHER
def test_a_lake_without_an_owner_is_taken(shop: Shop) -> None:
    shop.run()
    shutil.rmtree(shop.lake / "_atlas" / "shop" / "owner")
    shop.deployment = "renamed"
    assert shop.run().success


@EITHER
def test_a_connection_that_is_renamed_starts_anew(shop: Shop) -> None:
    shop.run()
    streams = shop.connection.model_dump()["streams"]
    shop.connection = declare_shop(name="store", streams=streams)
    assert shop.run().success
    assert shop.source.started_from == [None, None]
    assert (shop.ids("shop"), shop.ids("store")) == ([1, 2, 3], [1, 2, 3])


@EITHER
def test_nothing_downstream_is_stale_while_the_source_brings_nothing(shop: Shop) -> None:
    versions = []
    for last in (3, 3, 4):
        shop.source.last = last
        shop.run()
        event = shop.instance.get_latest_materialization_event(shop.key)
        assert event is not None
        assert event.asset_materialization is not None
        versions.append((event.asset_materialization.tags or {})["dagster/data_version"])

    assert versions[0] == versions[1] != versions[2]


def translated(props: StreamProps) -> dg.AssetSpec:
    return stream_spec(props).replace_attributes(key=["raw", props.stream_name])


@EITHER
def test_a_stream_that_is_given_another_key_goes_on(shop: Shop) -> None:
    """Its events are another asset's; but the table knows its commit, and the lake the state."""
    shop.run()
    shop.get_asset_spec = translated
    shop.source.last = 4

    assert shop.run().success
    assert shop.run().success

    assert shop.key == dg.AssetKey(["raw", "events"])
    assert shop.source.started_from == [None, 3, 4]
    assert shop.ids() == [1, 2, 3, 4]
    events = shop.instance.fetch_materializations(shop.key, limit=10).records
    assert len(events) == 2


@EITHER
def test_a_stream_with_another_key_is_wiped_cleared_and_set_like_any(shop: Shop) -> None:
    shop.get_asset_spec = translated
    shop.run()
    shop.instance.wipe_assets([shop.key])
    assert "was wiped" in shop.run().warnings[0]
    open_state_admin = shop.open_state_admin()
    names = open_state_admin.find(())
    open_state_admin.apply(lambda upkeep: upkeep.clear(names))
    history = open_state_admin.store.history(("shop", "events"), 10)
    assert history[0][0].action == "clear"
    assert shop.run().success
    assert shop.source.started_from == [None, None, None]
    assert shop.ids() == [1, 2, 3]


@EITHER
def test_a_new_major_version_of_the_connector(shop: Shop) -> None:
    shop.runner.reference = "airbyte/source-shop:1.9.2@sha256:abc"
    shop.run()
    shop.runner.reference = "airbyte/source-shop:1.10.0@sha256:abd"
    assert shop.run().warnings == []
    shop.runner.reference = "airbyte-source-shop==2.0.0"
    (told,) = shop.run().warnings
    assert told.startswith(
        "The connector went from version 1.10.0 to 2.0.0 since the last sync. A new major version "
    )
    assert shop.run().warnings == []


# A user's word


@EITHER
def test_a_run_refreshes_once_however_often_it_is_tried(shop: Shop) -> None:
    shop.run()
    shop.source.dies_after = 2
    first = shop.run("retain")
    assert not first.success
    assert shop.ids() == [1, 1, 2, 2, 3]
    shop.source.dies_after = None

    second = shop.run("retain", again=first)
    assert second.success
    assert shop.source.started_from == [None, None, 2]
    assert shop.ids() == [1, 1, 2, 2, 3, 3]
    assert second.warnings == [
        f"This run retries run {first.run_id}, which has already begun the refresh of events; the "
        "refresh continues. To read the streams from the beginning once more, start a new run with "
        "refresh."
    ]

    # Executed once more, though it succeeded, it is a run like any other.
    assert shop.run("retain", again=second).success
    assert shop.ids() == [1, 1, 1, 2, 2, 2, 3, 3, 3]


@EITHER
def test_a_refresh_asked_for_outlives_its_run(shop: Shop) -> None:
    """The schedule's next run knows nothing of the option, and goes on with it."""
    shop.run()
    shop.source.dies_after = 1
    assert not shop.run("remove").success
    assert shop.ids() == [1, 2, 3]
    shop.source.dies_after, shop.source.last = None, 2
    (told,) = shop.run().warnings
    assert told.startswith("Stream 'events' continues where the last attempt ended")
    assert shop.source.started_from == [None, None, 1]
    assert shop.ids() == [1, 2]


@EITHER
def test_what_a_user_does_is_in_the_event_log(shop: Shop) -> None:
    shop.run()
    open_state_admin = shop.open_state_admin()
    names = open_state_admin.find(())
    open_state_admin.apply(lambda upkeep: upkeep.reset(names))
    open_state_admin.apply(lambda upkeep: upkeep.clear(names))
    assert shop.ids() == []
    history = open_state_admin.store.history(("shop", "events"), 10)
    assert [envelope.action for envelope, _ in history] == ["clear", "reset", "sync"]
    assert [cursor for _, cursor in history] == ["none", "none", {"at": 3}]
    shop.lose_envelopes()
    # The event alone is enough.
    assert shop.run().success
    assert shop.source.started_from == [None, None]
    assert shop.ids() == [1, 2, 3]


# A full refresh that dies


@pytest.fixture
def snapshots(shop: Shop) -> Shop:
    """The stream is read in full each time, and added to what there is."""
    shop.connection = declare_shop(
        streams=[{"name": "events", "sync_mode": "full_refresh", "destination_sync_mode": "append"}]
    )
    return shop


@EITHER
def test_a_run_that_is_tried_again_goes_on_with_a_full_refresh(snapshots: Shop) -> None:
    shop = snapshots
    shop.run()
    shop.source.dies_after = 2
    first = shop.run()
    assert shop.ids() == [1, 2, 3]
    shop.source.dies_after = None
    second = shop.run(again=first)
    assert "continues where the last attempt ended" in second.warnings[0]
    assert shop.source.started_from == [None, None, 2]
    assert shop.ids() == [1, 1, 2, 2, 3, 3]
    told = [
        event.asset_observation.description
        for event in shop.instance.fetch_observations(KEY, limit=2).records
        if event.asset_observation
    ]
    assert told == [
        "Checkpoint: 1 rows committed.",
        "Checkpoint: 2 rows committed, published when the stream is complete.",
    ]


@EITHER
def test_so_does_a_later_try_of_the_schedule(snapshots: Shop) -> None:
    shop = snapshots
    shop.source.dies_after = 2
    first = shop.run()
    shop.source.dies_after = None
    assert shop.run(tags={ROOT_RUN_TAG: first.run_id}).success
    assert shop.source.started_from == [None, 2]
    assert shop.ids() == [1, 2, 3]


@EITHER
def test_another_run_begins_a_full_refresh_anew(snapshots: Shop) -> None:
    shop = snapshots
    shop.source.dies_after = 2
    shop.run()
    shop.source.dies_after = None
    ran = shop.run()
    assert (ran.success, ran.warnings) == (True, [])
    assert shop.source.started_from == [None, None]
    assert shop.ids() == [1, 2, 3]


@EITHER
def test_a_full_refresh_that_was_complete_is_not_read_again(
    snapshots: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run died when the rows were in the table, and before Dagster was told."""
    shop = snapshots
    with monkeypatch.context() as patch:
        patch.setattr(DeltaWriter, "merge_committed", die)
        first = shop.run()
    assert not first.success
    second = shop.run(again=first)
    assert second.success
    assert shop.source.started_from == [None]
    assert shop.ids() == [1, 2, 3]
    made = shop.instance.get_latest_materialization_event(KEY)
    assert made is not None
    assert made.asset_materialization is not None
    told = made.asset_materialization.metadata["atlas/summary"].value
    assert "It was complete when this run failed, so it was not read again." in str(told)
    # Executed once more, though it succeeded, it is a run like any other.
    assert shop.run(again=second).success
    assert shop.ids() == [1, 1, 2, 2, 3, 3]
