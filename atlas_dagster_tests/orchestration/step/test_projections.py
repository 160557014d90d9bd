"""What discovery, syncs and a user's words about state leave in the books; and without them."""

import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from atlas_dagster.orchestration.step.projections import make_projection_writer
from atlas_dagster.projections import tables
from atlas_dagster.projections.database import engine
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster_tests.orchestration.recovery_cases import EITHER, KEY, Shop

pytestmark = pytest.mark.slow

EVENTS = StreamDescriptor("events")


def rows(of: dg.DagsterInstance, table: sa.Table) -> list[dict[str, Any]]:
    found = engine(make_projection_writer(of, pytest.fail)._url)
    with found.connect() as connection:
        listed = [dict(row) for row in connection.execute(sa.select(table)).mappings()]
    found.dispose()
    return listed


def stats(shop: Shop) -> list[tuple[str, int | None, str | None]]:
    return [
        (row["status"], row["records"], row["error"])
        for row in rows(shop.instance, tables.sync_stats)
    ]


@EITHER
def test_syncs_and_states_are_written_down(shop: Shop) -> None:
    first = shop.run()
    shop.source.last = 5
    second = shop.run()
    found = rows(shop.instance, tables.sync_stats)
    assert [(row["status"], row["records"], row["run_id"]) for row in found] == [
        ("succeeded", 3, first.run_id),
        ("succeeded", 2, second.run_id),
    ]
    assert {row["connection"] for row in found} == {"shop"}
    (state,) = rows(shop.instance, tables.state)
    assert state["state"] == {"at": 5}
    assert state["run_id"] == second.run_id
    assert (first.warnings, second.warnings) == ([], [])


def test_a_stream_that_failed_says_why(shop: Shop) -> None:
    shop.source.dies_after = 2
    assert not shop.run().success
    (found,) = stats(shop)
    assert (found[0], found[1]) == ("failed", None)
    assert "exit code 1" in str(found[2])
    # What was committed before counts all the same.
    assert [row["state"] for row in rows(shop.instance, tables.state)] == [{"at": 2}]


def test_what_fails_before_a_record_comes_is_noted_for_each_stream(shop: Shop) -> None:
    shop.run()
    shop.deployment = "other"
    assert not shop.run().success
    assert [status for status, _, _ in stats(shop)] == ["succeeded", "failed"]
    assert "belong to the deployment" in str(stats(shop)[1][2])


def test_a_users_word_about_state_is_written_down(shop: Shop) -> None:
    shop.run()
    shop.open_state_admin().apply(lambda upkeep: upkeep.reset([EVENTS]))
    (state,) = rows(shop.instance, tables.state)
    assert (state["action"], state["state"]) == ("reset", None)


def test_they_are_never_read_to_decide(shop: Shop) -> None:
    shop.run()
    found = engine(make_projection_writer(shop.instance, pytest.fail)._url)
    with found.begin() as connection:
        connection.execute(sa.update(tables.state).values(state={"at": 1}, seq=1))
        connection.execute(sa.delete(tables.sync_stats))
    shop.source.last = 4
    assert shop.run().success
    assert shop.ids() == [1, 2, 3, 4]


def test_a_sync_does_without_them_and_says_so_once(shop: Shop) -> None:
    place = Path(shop.instance.root_directory) / "pipeline.db"
    place.mkdir()
    ran = shop.run()
    assert ran.success
    assert shop.ids() == [1, 2, 3]
    (warning,) = ran.warnings
    assert f"sqlite:///{place} cannot be written" in warning
    shutil.rmtree(place)
    assert shop.run().warnings == []
    assert shop.instance.get_latest_materialization_event(KEY) is not None
