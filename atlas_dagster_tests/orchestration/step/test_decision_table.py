"""What the next run does, whatever became of the event log, the tables or the run before.

The rows of docs/state.md, driven through Dagster; its event log in SQLite and in Postgres.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import dagster as dg
import pytest
from deltalake import write_deltalake
from pyarrow import table as arrow_table

from atlas_dagster.destinations.delta.destination import DeltaDestination
from atlas_dagster.destinations.delta.table import LakeTable
from atlas_dagster.destinations.delta.writer import DedupWriter
from atlas_dagster.sync import commits
from atlas_dagster_tests.destinations.stores import Database
from atlas_dagster_tests.orchestration.connections import declare_shop
from atlas_dagster_tests.orchestration.recovery_cases import (
    APPEND,
    EITHER,
    EVENTS,
    KEY,
    Crash,
    Shop,
    die,
)

pytestmark = pytest.mark.slow

# The event log, the table and what died between them


@EITHER
def test_event_log_and_table_agree(shop: Shop) -> None:
    assert shop.run().success
    shop.source.last = 5
    ran = shop.run()
    assert (ran.success, ran.warnings) == (True, [])
    assert shop.source.started_from == [None, 3]
    assert shop.ids() == [1, 2, 3, 4, 5]


@EITHER
@pytest.mark.parametrize("moment", ["add", "reload"])
def test_death_between_prepare_and_materialization(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Before the table took the commit, and after."""
    shop.run()
    shop.source.last = 5
    with monkeypatch.context() as patch:
        patch.setattr(LakeTable, moment, die)
        assert not shop.run().success
    shop.source.last = 6
    ran = shop.run()
    assert (ran.success, ran.warnings) == (True, [])
    assert shop.source.started_from == [None, 3, 3 if moment == "add" else 5]
    assert shop.ids() == [1, 2, 3, 4, 5, 6]
    commits = [e.seq for e, _ in shop.open_state_admin().store.history(("shop", "events"), 10)]
    assert len(commits) == (2 if moment == "add" else 3)
    assert commits == sorted(commits, reverse=True)


@EITHER
def test_a_stale_process_comes_back_to_life(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had prepared its commit before; what it still does is refused."""
    shop.run()
    shop.source.last = 5
    stale: list[Callable[[], None]] = []

    def freeze(self: DeltaDestination, envelope: Any, writers: Sequence[Any]) -> None:
        self.prepare(envelope)

        def wake() -> None:
            for writer in writers:
                writer.commit(envelope)

        stale.append(wake)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(DeltaDestination, "commit", freeze)
        assert not shop.run().success
    assert shop.run().success
    with pytest.raises(Exception, match="another sync"):
        stale[0]()
    assert shop.run().success
    assert shop.ids() == [1, 2, 3, 4, 5]


@EITHER
def test_death_between_two_tables_of_one_commit(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.have_two_streams()
    shop.source.kind = "GLOBAL"
    shop.run()
    shop.source.last = 5

    def commit_half(self: DeltaDestination, envelope: Any, writers: Sequence[Any]) -> None:
        self.prepare(envelope)
        writers[0].commit(envelope)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(DeltaDestination, "commit", commit_half)
        assert not shop.run().success
    shop.source.last = 6
    ran = shop.run()
    assert (ran.success, ran.warnings) == (True, [])
    assert shop.source.started_from == [None, None, 3, 3, 5, 5]
    assert shop.ids() == shop.ids(stream="visits") == [1, 2, 3, 4, 5, 6]


@EITHER
def test_death_before_the_rows_of_a_key_are_merged(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.connection = declare_shop(streams=[{"name": "events", "sync_mode": "incremental"}])
    shop.run()
    shop.source.last = 5
    with monkeypatch.context() as patch:
        patch.setattr(DedupWriter, "merge_committed", die)
        assert not shop.run().success
    assert shop.ids() == [1, 2, 3]
    ran = shop.run()
    assert (ran.success, ran.warnings) == (True, [])
    assert shop.source.started_from == [None, 3, 5]
    assert shop.ids() == [1, 2, 3, 4, 5]


@EITHER
def test_the_asset_was_wiped(shop: Shop, instance: dg.DagsterInstance) -> None:
    shop.run()
    instance.wipe_assets([KEY])
    ran = shop.run()
    assert "was wiped in Dagster" in ran.warnings[0]
    assert shop.source.started_from == [None, None]
    assert shop.ids() == [1, 2, 3]


@EITHER
def test_the_asset_was_wiped_while_a_sync_ran(
    shop: Shop, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the run's own last commit, so that no comparison of times could tell."""
    shop.run()
    shop.source.last = 4
    commit = DeltaDestination.commit

    def wipe_first(*args: Any) -> None:
        instance.wipe_assets([KEY])
        commit(*args)

    with monkeypatch.context() as patch:
        patch.setattr(DeltaDestination, "commit", wipe_first)
        assert shop.run().success
    shop.source.last = 5
    assert "was wiped in Dagster" in shop.run().warnings[0]
    assert shop.run().warnings == []
    assert shop.source.started_from == [None, 3, None, 5]
    assert shop.ids() == [1, 2, 3, 4, 5]


@EITHER
def test_the_clocks_of_the_web_server_and_of_runs_differ(
    shop: Shop, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(commits, "now", lambda: time.time() + 86_400)
        shop.run()
    instance.wipe_assets([KEY])
    assert "was wiped in Dagster" in shop.run().warnings[0]
    shop.source.last = 4
    assert shop.run().warnings == []
    assert shop.source.started_from == [None, None, 3]
    assert shop.ids() == [1, 2, 3, 4]


@EITHER
def test_either_place_is_enough_for_a_stream_that_was_quiet(shop: Shop) -> None:
    """Its shared state is of an older commit than that of the others."""
    shop.have_two_streams()
    shop.source.kind = "GLOBAL"
    shop.run()
    shop.source.quiet = {"visits"}
    for shop.source.last in (4, 5):
        assert shop.run().success
    shop.lose_envelopes()
    shop.source.quiet, shop.source.last = set(), 6
    assert shop.run().warnings == []
    assert shop.ids() == shop.ids(stream="visits") == [1, 2, 3, 4, 5, 6]


@EITHER
def test_a_newer_atlas_wrote_the_state(shop: Shop) -> None:
    shop.run()
    for envelope in shop.lake.glob("_atlas/shop/*.json"):
        envelope.write_text(json.dumps(json.loads(envelope.read_text()) | {"version": 99}))
    assert "was written by a newer Atlas (format 99" in shop.run().failure
    assert shop.ids() == [1, 2, 3]


@EITHER
def test_the_cursor_was_changed(shop: Shop) -> None:
    shop.offered = [EVENTS | {"source_defined_cursor": False}]
    shop.connection = declare_shop(streams=[{"name": "events", **APPEND, "cursor_field": "id"}])
    shop.run()
    shop.connection = declare_shop(streams=[{"name": "events", **APPEND, "cursor_field": "name"}])
    assert "has cursor_field 'name', but its stored state belongs to 'id'" in shop.run().failure
    assert shop.run("remove").success
    assert shop.source.started_from == [None, None]
    assert shop.ids() == [1, 2, 3]


@EITHER
def test_the_run_was_deleted(shop: Shop, instance: dg.DagsterInstance) -> None:
    instance.delete_run(shop.run().run_id)
    shop.source.last = 4
    assert shop.run().warnings == []
    assert shop.source.started_from == [None, 3]
    assert shop.ids() == [1, 2, 3, 4]


@EITHER
@pytest.mark.parametrize("deleted", [False, True])
def test_somebody_else_reported_a_materialization(
    shop: Shop, instance: dg.DagsterInstance, deleted: bool
) -> None:
    ran = shop.run()
    instance.report_runless_asset_event(dg.AssetMaterialization(KEY, metadata={"rows": 1}))
    if deleted:
        instance.delete_run(ran.run_id)
    shop.source.last = 4
    assert shop.run().warnings == []
    assert shop.source.started_from == [None, 3]
    assert shop.ids() == [1, 2, 3, 4]


@EITHER
def test_a_new_instance_on_an_old_lake(shop: Shop, instance: dg.DagsterInstance) -> None:
    """As an event log that was lost: nothing of the stream is left in it."""
    with dg.DagsterInstance.ephemeral() as old:
        shop.run(instance=old)
    shop.source.last = 4
    assert shop.run(instance=instance).warnings == []
    assert shop.source.started_from == [None, 3]
    assert shop.ids() == [1, 2, 3, 4]
    assert len(shop.open_state_admin().store.history(("shop", "events"), 10)) == 2


@EITHER
def test_what_is_kept_beside_the_tables_was_lost(shop: Shop) -> None:
    shop.run()
    shop.lose_envelopes()
    shop.source.last = 4
    assert shop.run().warnings == []
    assert shop.source.started_from == [None, 3]
    assert shop.ids() == [1, 2, 3, 4]


@EITHER
def test_neither_remembers(shop: Shop, instance: dg.DagsterInstance) -> None:
    instance.delete_run(shop.run().run_id)
    instance.wipe_assets([KEY])
    shop.lose_envelopes()
    assert "neither Dagster's event log nor the _atlas data" in shop.run().failure
    assert shop.ids() == [1, 2, 3]
    assert shop.run("remove").success
    assert shop.run().warnings == []
    assert shop.source.started_from == [None, None, 3]
    assert shop.ids() == [1, 2, 3]


# Somebody else's hands on the table


@EITHER
def test_the_table_was_dropped(shop: Shop) -> None:
    shop.run()
    shutil.rmtree(shop.lake / "shop" / "events")
    assert "is gone; it is read again" in shop.run().warnings[0]
    assert shop.ids() == [1, 2, 3]


@EITHER
@pytest.mark.parametrize("way_out", ["refresh", "accept"])
def test_rows_were_changed_by_someone_else(shop: Shop, way_out: str) -> None:
    shop.run()
    shop.table().delete("id = 2")

    ran = shop.run()

    assert "changed outside of Atlas (version 1, DELETE at 20" in ran.failure
    assert shop.ids() == [1, 3]
    if way_out == "refresh":
        assert shop.run("remove").success
        assert shop.ids() == [1, 2, 3]
    else:
        open_state_admin = shop.open_state_admin()
        assert (
            len(open_state_admin.apply(lambda upkeep: upkeep.accept(open_state_admin.find(()))))
            == 1
        )
        shop.source.last = 4
        assert shop.run().success
        assert shop.ids() == [1, 3, 4]


@EITHER
def test_no_row_was_changed_by_someone_else(shop: Shop) -> None:
    shop.run()
    shop.source.last = 4
    shop.run()
    there = shop.table()
    there.optimize.compact()
    there.vacuum(0, enforce_retention_duration=False, dry_run=False)
    there.alter.set_table_properties({"delta.logRetentionDuration": "interval 1 days"})
    there.create_checkpoint()
    shop.source.last = 5
    assert shop.run().warnings == []
    assert shop.ids() == [1, 2, 3, 4, 5]


@EITHER
def test_another_table_stands_in_its_place(shop: Shop) -> None:
    shop.run()
    shutil.rmtree(shop.lake / "shop" / "events")
    write_deltalake(str(shop.lake / "shop" / "events"), arrow_table({"id": [7]}))
    assert "did not create for connection 'shop'" in shop.run().failure
    assert shop.ids() == [7]


@EITHER
@pytest.mark.postgres
def test_rows_in_postgres_were_changed_by_someone_else(
    shop: Shop, postgres_url: dict[str, Any]
) -> None:
    """Nobody can tell; a table that was dropped is noticed."""
    with closing(Database(postgres_url)) as database:
        shop.address = database.address
        shop.run()
        database.do("DELETE FROM shop.events WHERE id = 2")
        shop.source.last = 4
        assert shop.run().warnings == []
        assert shop.ids() == [1, 3, 4]
        database.do("DROP TABLE shop.events")
        assert "is gone; it is read again" in shop.run().warnings[0]
        assert shop.ids() == [1, 2, 3, 4]


# The source


@EITHER
@pytest.mark.parametrize("kinds", [("STREAM", "GLOBAL"), ("GLOBAL", "STREAM")], ids="-".join)
def test_all_streams_went_over_to_another_kind_of_state(shop: Shop, kinds: tuple[str, str]) -> None:
    shop.have_two_streams()
    for kind, last in zip((*kinds, kinds[1]), (3, 4, 5), strict=True):
        shop.source.kind, shop.source.last = kind, last
        assert shop.run().warnings == []
    assert shop.source.started_from == [None, None, 3, 3, 4, 4]
    assert shop.ids() == shop.ids(stream="visits") == [1, 2, 3, 4, 5]


@EITHER
def test_a_stream_was_left_behind_by_another_kind_of_state(shop: Shop) -> None:
    shop.have_two_streams()
    shop.source.kind = "GLOBAL"
    shop.run()
    shop.source.kind, shop.source.last = "STREAM", 4
    shop.offered = shop.offered[:1]
    shop.connection = declare_shop(streams=[{"name": "events", **APPEND}])
    assert shop.run().success
    shop.have_two_streams()
    ran = shop.run()
    assert "is shared by all streams (GLOBAL)" in ran.failure
    assert "`atlas refresh shop --stream visits`. Finished and kept: events." in ran.failure
    open_state_admin = shop.open_state_admin()
    open_state_admin.apply(
        lambda upkeep: upkeep.refresh(open_state_admin.find(["visits"]), keep_rows=False)
    )
    assert shop.run().success
    assert shop.ids() == shop.ids(stream="visits") == [1, 2, 3, 4]


@EITHER
def test_a_state_counts_other_records_than_came(shop: Shop) -> None:
    shop.run()
    shop.source.last, shop.source.miscounts = 4, True
    assert (
        "events: its state counts 2 records before it, but Atlas received 1" in shop.run().failure
    )
    assert shop.ids() == [1, 2, 3]
    shop.source.miscounts = False
    assert shop.run().success
    assert shop.source.started_from == [None, 3, 3]
    assert shop.ids() == [1, 2, 3, 4]
