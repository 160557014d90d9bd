"""What the next run does, whatever became of the tables, the event log or the run before.

The rows of docs/state.md, driven through Dagster; its event log in SQLite and in Postgres.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from by_hand import USERS, define, found, shop
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from deltalake import DeltaTable, QueryBuilder
from postgres_instance import postgres_instance
from pyarrow import table as arrow_table

from atlas_dagster.destinations.delta import DeltaDestination
from atlas_dagster.destinations.delta_table import LakeTable
from atlas_dagster.orchestration import sync
from atlas_dagster.orchestration.resource import AtlasResource
from atlas_dagster.orchestration.upkeep import StateDesk
from atlas_dagster.runners.base import ConnectorCommand
from atlas_dagster.runners.fake import FakeRunner
from atlas_dagster.sync import source as sync_source
from atlas_dagster.sync.connection import Connection
from atlas_dagster.sync.discovered import Discovered

EVENTS = {**USERS, "name": "events"}
KEY = dg.AssetKey(["shop", "events"])
APPEND = {"sync_mode": "incremental", "destination_sync_mode": "append"}


class Crash(BaseException):
    """In place of a kill: nothing of ours catches it."""


class Source:
    """A source of numbers: each read sends those after its state, and a state after each."""

    def __init__(self) -> None:
        self.last = 3
        self.dies_after: int | None = None
        self.started_from: list[Any] = []

    def __call__(self, command: ConnectorCommand) -> Iterator[bytes | int]:
        if command.verb == "check":
            yield _line("CONNECTION_STATUS", connectionStatus={"status": "SUCCEEDED"})
            return
        for stream in json.loads(command.files["catalog"])["streams"]:
            name = stream["stream"]["name"]
            at = self._state(command, name)
            self.started_from.append(at)
            for id in range((at or 0) + 1, self.last + 1):
                if self.dies_after is not None and id > self.dies_after:
                    yield 1
                    return
                yield _line("RECORD", record={"stream": name, "data": {"id": id}, "emitted_at": id})
                blob = {"stream_descriptor": {"name": name}, "stream_state": {"at": id}}
                yield _line("STATE", state={"type": "STREAM", "stream": blob})
            status = {"stream_descriptor": {"name": name}, "status": "COMPLETE"}
            yield _line(
                "TRACE", trace={"type": "STREAM_STATUS", "emitted_at": 1, "stream_status": status}
            )

    def _state(self, command: ConnectorCommand, stream: str) -> int | None:
        for each in json.loads(command.files.get("state", b"[]")):
            if each["stream"]["stream_descriptor"]["name"] == stream:
                return int(each["stream"]["stream_state"]["at"])
        return None


def _line(kind: str, **content: Any) -> bytes:
    return json.dumps({"type": kind, **content}).encode() + b"\n"


class Shop:
    """The connection ``shop``, its source and its lake."""

    def __init__(self, lake: Path, instance: dg.DagsterInstance, runner: FakeRunner) -> None:
        self.lake = lake
        self.instance = instance
        self.runner = runner
        self.source = Source()
        self.runner.script = self.source
        self.deployment = "tests"
        self.connection: Connection = shop(streams=[{"name": "events", **APPEND}])

    @property
    def discovered(self) -> Discovered:
        return found(self.connection, [EVENTS])

    @property
    def atlas(self) -> AtlasResource:
        return AtlasResource(destination=str(self.lake), deployment=self.deployment)

    def run(
        self,
        refresh: str | None = None,
        *,
        again: "Ran | None" = None,
        instance: dg.DagsterInstance | None = None,
    ) -> "Ran":
        """Materialize the stream; ``again``: as the button does that tries a run again."""
        instance = instance or self.instance
        job = self._definitions().resolve_implicit_global_asset_job_def()
        job = job.get_subset(asset_selection={self.key})
        config = {"ops": {f"{self.connection.name}__sync": {"config": {"refresh": refresh}}}}
        run = instance.create_run_for_job(
            job,
            run_config=config if refresh else None,
            root_run_id=again and again.run_id,
            parent_run_id=again and again.run_id,
            asset_selection=frozenset([self.key]),
        )
        result = execute_run(InMemoryJob(job), run, instance)
        return Ran(result, instance)

    @property
    def key(self) -> dg.AssetKey:
        return dg.AssetKey([self.connection.name, "events"])

    def _definitions(self) -> dg.Definitions:
        made = define(self.connection, self.discovered, lake=self.lake)
        return dg.Definitions(
            assets=made.assets,
            resources={**(made.resources or {}), "atlas": self.atlas},
            executor=dg.in_process_executor,
        )

    def desk(self) -> StateDesk:
        return StateDesk(
            self.connection,
            self.discovered,
            atlas=self.atlas,
            instance=self.instance,
            explain=lambda _: None,
        )

    def table(self, connection: str = "shop") -> DeltaTable:
        return DeltaTable(str(self.lake / connection / "events"))

    def ids(self, connection: str = "shop") -> list[int]:
        query = QueryBuilder().register("t", self.table(connection))
        rows = query.execute("SELECT id FROM t").read_all()
        return sorted(row["id"] for row in arrow_table(rows).to_pylist())


class Ran:
    """What a run did and said."""

    def __init__(self, result: dg.JobExecutionResult, instance: dg.DagsterInstance) -> None:
        self.success = result.success
        self.run_id = result.run_id
        logs = instance.all_logs(result.run_id)
        self.warnings = [log.user_message for log in logs if log.level == 30]
        failures = [e.step_failure_data for e in result.all_events if e.is_step_failure]
        self.failure = "".join(
            str(f.user_failure_data and f.user_failure_data.description) for f in failures
        )


# Where the event log decides; elsewhere one of them is enough.
EITHER = pytest.mark.parametrize(
    "instance", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)


@pytest.fixture
def instance(request: pytest.FixtureRequest) -> Iterator[dg.DagsterInstance]:
    if getattr(request, "param", "sqlite") == "postgres":
        with postgres_instance(request.getfixturevalue("postgres_url")) as instance:
            yield instance
    else:
        with dg.instance_for_test() as instance:
            yield instance


@pytest.fixture
def it(tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Shop:
    runner = FakeRunner(lambda _: [])
    monkeypatch.setattr(sync_source, "choose_runner", lambda *_: runner)
    monkeypatch.setattr(sync, "reap_ended", lambda *_: [])
    return Shop(tmp_path / "lake", instance, runner)


def die(*_: object, **__: object) -> None:
    raise Crash


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
    commits = [e.seq for e, _ in it.desk().store.history(("shop", "events"), 10)]
    assert len(commits) == (2 if moment == "add" else 3)
    assert commits == sorted(commits, reverse=True)


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
def test_the_asset_was_wiped(it: Shop, instance: dg.DagsterInstance) -> None:
    it.run()
    instance.wipe_assets([KEY])
    ran = it.run()
    assert "was wiped in Dagster" in ran.warnings[0]
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


def test_a_new_instance_on_an_old_lake(it: Shop) -> None:
    it.run()
    it.source.last = 4
    with dg.DagsterInstance.ephemeral() as new:
        assert it.run(instance=new).warnings == []
    assert it.source.started_from == [None, 3]
    assert it.ids() == [1, 2, 3, 4]


@EITHER
def test_neither_remembers(it: Shop, instance: dg.DagsterInstance) -> None:
    instance.delete_run(it.run().run_id)
    for envelope in it.lake.glob("_atlas/shop/*.json"):
        envelope.unlink()
    with dg.DagsterInstance.ephemeral() as new:
        assert "so it is not known where to continue" in it.run(instance=new).failure
    assert it.ids() == [1, 2, 3]


# Somebody else's hands on the table


@EITHER
def test_the_table_was_dropped(it: Shop) -> None:
    it.run()
    shutil.rmtree(it.lake / "shop" / "events")
    assert "is gone; it is read again" in it.run().warnings[0]
    assert it.ids() == [1, 2, 3]


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
        desk = it.desk()
        assert len(desk.apply(lambda upkeep: upkeep.accept(desk.find(())))) == 1
        it.source.last = 4
        assert it.run().success
        assert it.ids() == [1, 3, 4]


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
        assert it.desk().adopt() == "dev"
        it.source.last = 4
        assert it.run(instance=dev).success
    it.deployment = "tests"
    assert "belong to the deployment 'dev'" in it.run().failure
    assert it.source.started_from == [None, 3]
    assert it.ids() == [1, 2, 3, 4]


def test_a_lake_without_an_owner_is_taken(it: Shop) -> None:
    it.run()
    shutil.rmtree(it.lake / "_atlas" / "shop" / "owner")
    it.deployment = "renamed"
    assert it.run().success


def test_a_connection_that_is_renamed_starts_anew(it: Shop) -> None:
    it.run()
    it.connection = shop(name="store", streams=[{"name": "events", **APPEND}])
    assert it.run().success
    assert it.source.started_from == [None, None]
    assert (it.ids("shop"), it.ids("store")) == ([1, 2, 3], [1, 2, 3])


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

    assert it.run("retain", again=first).success
    assert it.source.started_from == [None, None, 2]
    assert it.ids() == [1, 1, 2, 2, 3, 3]


def test_a_refresh_asked_for_outlives_its_run(it: Shop) -> None:
    """The schedule's next run knows nothing of the option."""
    it.run()
    it.source.dies_after = 1
    assert not it.run("remove").success
    assert it.ids() == [1, 2, 3]
    it.source.dies_after, it.source.last = None, 2
    assert "goes on where the try before ended" in it.run().warnings[0]
    assert it.source.started_from == [None, None, 1]
    assert it.ids() == [1, 2]


@EITHER
def test_what_a_user_does_is_in_the_event_log(it: Shop) -> None:
    it.run()
    desk = it.desk()
    names = desk.find(())
    desk.apply(lambda upkeep: upkeep.reset(names))
    desk.apply(lambda upkeep: upkeep.clear(names))
    assert it.ids() == []
    history = desk.store.history(("shop", "events"), 10)
    assert [envelope.action for envelope, _ in history] == ["clear", "reset", "sync"]
    assert [cursor for _, cursor in history] == ["none", "none", {"at": 3}]
    for envelope in it.lake.glob("_atlas/shop/*.json"):
        envelope.unlink()
    # The event alone is enough.
    assert it.run().success
    assert it.source.started_from == [None, None]
    assert it.ids() == [1, 2, 3]
