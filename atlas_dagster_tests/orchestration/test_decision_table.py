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

from atlas_dagster.destinations.delta.dedup_writer import DedupWriter
from atlas_dagster.destinations.delta.destination import DeltaDestination
from atlas_dagster.destinations.delta.table import LakeTable
from atlas_dagster.sync import commits
from atlas_dagster_tests.destinations.stores import Database
from atlas_dagster_tests.orchestration.by_hand import shop
from atlas_dagster_tests.orchestration.decisions import (
    APPEND,
    EITHER,
    EVENTS,
    KEY,
    Crash,
    Shop,
    die,
)

# The event log, the table and what died between them


@EITHER
def test_event_log_and_table_agree(it: Shop) -> None:
    assert it.run().success
    it.source.last = 5
    ran = it.run()
    assert (ran.success, ran.warnings) == (True, [])
    assert it.source.started_from == [None, 3]
    assert it.ids() == [1, 2, 3, 4, 5]


@EITHER
@pytest.mark.parametrize("moment", ["add", "reload"])
def test_death_between_prepare_and_materialization(
    it: Shop, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Before the table took the commit, and after."""
    it.run()
    it.source.last = 5
    with monkeypatch.context() as patch:
        patch.setattr(LakeTable, moment, die)
        assert not it.run().success
    it.source.last = 6
    ran = it.run()
    assert (ran.success, ran.warnings) == (True, [])
    assert it.source.started_from == [None, 3, 3 if moment == "add" else 5]
    assert it.ids() == [1, 2, 3, 4, 5, 6]
    commits = [e.seq for e, _ in it.open_state_admin().store.history(("shop", "events"), 10)]
    assert len(commits) == (2 if moment == "add" else 3)
    assert commits == sorted(commits, reverse=True)


@EITHER
def test_a_stale_process_comes_back_to_life(it: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had prepared its commit before; what it still does is refused."""
    it.run()
    it.source.last = 5
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
        assert not it.run().success
    assert it.run().success
    with pytest.raises(Exception, match="if another sync of this connection is running"):
        stale[0]()
    assert it.run().success
    assert it.ids() == [1, 2, 3, 4, 5]


@EITHER
def test_death_between_two_tables_of_one_commit(it: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    it.have_two_streams()
    it.source.kind = "GLOBAL"
    it.run()
    it.source.last = 5

    def commit_half(self: DeltaDestination, envelope: Any, writers: Sequence[Any]) -> None:
        self.prepare(envelope)
        writers[0].commit(envelope)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(DeltaDestination, "commit", commit_half)
        assert not it.run().success
    it.source.last = 6
    ran = it.run()
    assert (ran.success, ran.warnings) == (True, [])
    assert it.source.started_from == [None, None, 3, 3, 5, 5]
    assert it.ids() == it.ids(stream="visits") == [1, 2, 3, 4, 5, 6]


@EITHER
def test_death_before_the_rows_of_a_key_are_merged(
    it: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    it.connection = shop(streams=[{"name": "events", "sync_mode": "incremental"}])
    it.run()
    it.source.last = 5
    with monkeypatch.context() as patch:
        patch.setattr(DedupWriter, "merge_committed", die)
        assert not it.run().success
    assert it.ids() == [1, 2, 3]
    ran = it.run()
    assert (ran.success, ran.warnings) == (True, [])
    assert it.source.started_from == [None, 3, 5]
    assert it.ids() == [1, 2, 3, 4, 5]


@EITHER
def test_the_asset_was_wiped(it: Shop, instance: dg.DagsterInstance) -> None:
    it.run()
    instance.wipe_assets([KEY])
    ran = it.run()
    assert "was wiped in Dagster" in ran.warnings[0]
    assert it.source.started_from == [None, None]
    assert it.ids() == [1, 2, 3]


@EITHER
def test_the_asset_was_wiped_while_a_sync_ran(
    it: Shop, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the run's own last commit, so that no comparison of times could tell."""
    it.run()
    it.source.last = 4
    commit = DeltaDestination.commit

    def wipe_first(*args: Any) -> None:
        instance.wipe_assets([KEY])
        commit(*args)

    with monkeypatch.context() as patch:
        patch.setattr(DeltaDestination, "commit", wipe_first)
        assert it.run().success
    it.source.last = 5
    assert "was wiped in Dagster" in it.run().warnings[0]
    assert it.run().warnings == []
    assert it.source.started_from == [None, 3, None, 5]
    assert it.ids() == [1, 2, 3, 4, 5]


@EITHER
def test_the_clocks_of_the_web_server_and_of_runs_differ(
    it: Shop, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(commits, "now", lambda: time.time() + 86_400)
        it.run()
    instance.wipe_assets([KEY])
    assert "was wiped in Dagster" in it.run().warnings[0]
    it.source.last = 4
    assert it.run().warnings == []
    assert it.source.started_from == [None, None, 3]
    assert it.ids() == [1, 2, 3, 4]


@EITHER
def test_either_place_is_enough_for_a_stream_that_was_quiet(it: Shop) -> None:
    """Its shared state is of an older commit than that of the others."""
    it.have_two_streams()
    it.source.kind = "GLOBAL"
    it.run()
    it.source.quiet = {"visits"}
    for it.source.last in (4, 5):
        assert it.run().success
    it.lose_envelopes()
    it.source.quiet, it.source.last = set(), 6
    assert it.run().warnings == []
    assert it.ids() == it.ids(stream="visits") == [1, 2, 3, 4, 5, 6]


@EITHER
def test_a_newer_atlas_wrote_the_state(it: Shop) -> None:
    it.run()
    for envelope in it.lake.glob("_atlas/shop/*.json"):
        envelope.write_text(json.dumps(json.loads(envelope.read_text()) | {"version": 99}))
    assert "was written by a newer Atlas (format 99" in it.run().failure
    assert it.ids() == [1, 2, 3]


@EITHER
def test_the_cursor_was_changed(it: Shop) -> None:
    it.offered = [EVENTS | {"source_defined_cursor": False}]
    it.connection = shop(streams=[{"name": "events", **APPEND, "cursor_field": "id"}])
    it.run()
    it.connection = shop(streams=[{"name": "events", **APPEND, "cursor_field": "name"}])
    assert "has cursor_field 'name', but its stored state is of 'id'" in it.run().failure
    assert it.run("remove").success
    assert it.source.started_from == [None, None]
    assert it.ids() == [1, 2, 3]


@EITHER
def test_the_run_was_deleted(it: Shop, instance: dg.DagsterInstance) -> None:
    instance.delete_run(it.run().run_id)
    it.source.last = 4
    assert it.run().warnings == []
    assert it.source.started_from == [None, 3]
    assert it.ids() == [1, 2, 3, 4]


@EITHER
@pytest.mark.parametrize("deleted", [False, True])
def test_somebody_else_reported_a_materialization(
    it: Shop, instance: dg.DagsterInstance, deleted: bool
) -> None:
    ran = it.run()
    instance.report_runless_asset_event(dg.AssetMaterialization(KEY, metadata={"rows": 1}))
    if deleted:
        instance.delete_run(ran.run_id)
    it.source.last = 4
    assert it.run().warnings == []
    assert it.source.started_from == [None, 3]
    assert it.ids() == [1, 2, 3, 4]


@EITHER
def test_a_new_instance_on_an_old_lake(it: Shop, instance: dg.DagsterInstance) -> None:
    """As an event log that was lost: nothing of the stream is left in it."""
    with dg.DagsterInstance.ephemeral() as old:
        it.run(instance=old)
    it.source.last = 4
    assert it.run(instance=instance).warnings == []
    assert it.source.started_from == [None, 3]
    assert it.ids() == [1, 2, 3, 4]
    assert len(it.open_state_admin().store.history(("shop", "events"), 10)) == 2


@EITHER
def test_what_is_kept_beside_the_tables_was_lost(it: Shop) -> None:
    it.run()
    it.lose_envelopes()
    it.source.last = 4
    assert it.run().warnings == []
    assert it.source.started_from == [None, 3]
    assert it.ids() == [1, 2, 3, 4]


@EITHER
def test_neither_remembers(it: Shop, instance: dg.DagsterInstance) -> None:
    instance.delete_run(it.run().run_id)
    instance.wipe_assets([KEY])
    it.lose_envelopes()
    assert "so it is not known where to continue" in it.run().failure
    assert it.ids() == [1, 2, 3]
    assert it.run("remove").success
    assert it.run().warnings == []
    assert it.source.started_from == [None, None, 3]
    assert it.ids() == [1, 2, 3]


# Somebody else's hands on the table


@EITHER
def test_the_table_was_dropped(it: Shop) -> None:
    it.run()
    shutil.rmtree(it.lake / "shop" / "events")
    assert "is gone; it is read again" in it.run().warnings[0]
    assert it.ids() == [1, 2, 3]


@EITHER
@pytest.mark.parametrize("way_out", ["refresh", "accept"])
def test_rows_were_changed_by_someone_else(it: Shop, way_out: str) -> None:
    it.run()
    it.table().delete("id = 2")

    ran = it.run()

    assert "changed by someone else (version 1, DELETE at 20" in ran.failure
    assert it.ids() == [1, 3]
    if way_out == "refresh":
        assert it.run("remove").success
        assert it.ids() == [1, 2, 3]
    else:
        open_state_admin = it.open_state_admin()
        assert (
            len(open_state_admin.apply(lambda upkeep: upkeep.accept(open_state_admin.find(()))))
            == 1
        )
        it.source.last = 4
        assert it.run().success
        assert it.ids() == [1, 3, 4]


@EITHER
def test_no_row_was_changed_by_someone_else(it: Shop) -> None:
    it.run()
    it.source.last = 4
    it.run()
    there = it.table()
    there.optimize.compact()
    there.vacuum(0, enforce_retention_duration=False, dry_run=False)
    there.alter.set_table_properties({"delta.logRetentionDuration": "interval 1 days"})
    there.create_checkpoint()
    it.source.last = 5
    assert it.run().warnings == []
    assert it.ids() == [1, 2, 3, 4, 5]


@EITHER
def test_another_table_stands_in_its_place(it: Shop) -> None:
    it.run()
    shutil.rmtree(it.lake / "shop" / "events")
    write_deltalake(str(it.lake / "shop" / "events"), arrow_table({"id": [7]}))
    assert "is a table that Atlas did not make for connection 'shop'" in it.run().failure
    assert it.ids() == [7]


@EITHER
@pytest.mark.postgres
def test_rows_in_postgres_were_changed_by_someone_else(
    it: Shop, postgres_url: dict[str, Any]
) -> None:
    """Nobody can tell; a table that was dropped is noticed."""
    with closing(Database(postgres_url)) as database:
        it.address = database.address
        it.run()
        database.do("DELETE FROM shop.events WHERE id = 2")
        it.source.last = 4
        assert it.run().warnings == []
        assert it.ids() == [1, 3, 4]
        database.do("DROP TABLE shop.events")
        assert "is gone; it is read again" in it.run().warnings[0]
        assert it.ids() == [1, 2, 3, 4]


# The source


@EITHER
@pytest.mark.parametrize("kinds", [("STREAM", "GLOBAL"), ("GLOBAL", "STREAM")], ids="-".join)
def test_all_streams_went_over_to_another_kind_of_state(it: Shop, kinds: tuple[str, str]) -> None:
    it.have_two_streams()
    for kind, last in zip((*kinds, kinds[1]), (3, 4, 5), strict=True):
        it.source.kind, it.source.last = kind, last
        assert it.run().warnings == []
    assert it.source.started_from == [None, None, 3, 3, 4, 4]
    assert it.ids() == it.ids(stream="visits") == [1, 2, 3, 4, 5]


@EITHER
def test_a_stream_was_left_behind_by_another_kind_of_state(it: Shop) -> None:
    it.have_two_streams()
    it.source.kind = "GLOBAL"
    it.run()
    it.source.kind, it.source.last = "STREAM", 4
    it.offered = it.offered[:1]
    it.connection = shop(streams=[{"name": "events", **APPEND}])
    assert it.run().success
    it.have_two_streams()
    ran = it.run()
    assert "is of all streams together (GLOBAL)" in ran.failure
    assert "`atlas refresh shop --stream visits`. Finished and kept: events." in ran.failure
    open_state_admin = it.open_state_admin()
    open_state_admin.apply(
        lambda upkeep: upkeep.refresh(open_state_admin.find(["visits"]), keep_rows=False)
    )
    assert it.run().success
    assert it.ids() == it.ids(stream="visits") == [1, 2, 3, 4]


@EITHER
def test_a_state_counts_other_records_than_came(it: Shop) -> None:
    it.run()
    it.source.last, it.source.miscounts = 4, True
    assert (
        "events: its state says that 2 records came before it, but 1 did; nothing after the last "
        "agreement is kept."
    ) in it.run().failure
    assert it.ids() == [1, 2, 3]
    it.source.miscounts = False
    assert it.run().success
    assert it.source.started_from == [None, 3, 3]
    assert it.ids() == [1, 2, 3, 4]
