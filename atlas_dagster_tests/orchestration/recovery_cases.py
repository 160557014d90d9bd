"""A connection whose runs find what became of its tables, of the event log or of the run before."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from deltalake import DeltaTable

from atlas_dagster.listener import SILENT
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.definitions.translator import (
    ConnectionAssets,
    GetAssetSpec,
    stream_spec,
)
from atlas_dagster.orchestration.operations.state_admin import StateAdmin
from atlas_dagster.runners.base import ConnectorCommand
from atlas_dagster.runners.fake import FakeRunner
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.discovered_catalog import Discovered
from atlas_dagster_tests.orchestration.connections import USERS, declare_shop, define, found

EVENTS = {**USERS, "name": "events", "is_resumable": True}
VISITS = {**EVENTS, "name": "visits"}
KEY = dg.AssetKey(["shop", "events"])
APPEND = {"sync_mode": "incremental", "destination_sync_mode": "append"}

#: Every row of the table, whichever database the event log is in.
EITHER = pytest.mark.parametrize(
    "instance", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)


class Crash(BaseException):
    """In place of a kill: nothing of ours catches it."""


def die(*_: object, **__: object) -> None:
    raise Crash


class Source:
    """A source of numbers: each read sends those after its state, and a state after each.

    ``kind``: of its states. ``miscounts``: they tell one record more than there was.
    """

    def __init__(self) -> None:
        self.last = 3
        self.dies_after: int | None = None
        self.kind = "STREAM"
        self.miscounts = False
        #: Streams in which nothing happens: their part of the state stays as it is.
        self.quiet: set[str] = set()
        self.started_from: list[Any] = []

    def __call__(self, command: ConnectorCommand) -> Iterator[bytes | int]:
        if command.verb == "check":
            yield _line("CONNECTION_STATUS", connectionStatus={"status": "SUCCEEDED"})
            return
        names = [each["stream"]["name"] for each in json.loads(command.files["catalog"])["streams"]]
        at = {name: self._state(command, name) for name in names}
        self.started_from += at.values()
        for id in range(min((at[name] or 0) for name in names) + 1, self.last + 1):
            if self.dies_after is not None and id > self.dies_after:
                yield 1
                return
            sending = [name for name in names if id > (at[name] or 0) and name not in self.quiet]
            for name in sending:
                record = {"stream": name, "data": {"id": id}, "emitted_at": id}
                yield _line("RECORD", record=record)
                if self.kind == "STREAM":
                    yield self._line_of_state(_part(name, id), 1)
            if self.kind == "GLOBAL":
                parts = [
                    _part(name, (at[name] or 0) if name in self.quiet else id) for name in names
                ]
                whole = {"shared_state": {"at": id}, "stream_states": parts}
                yield self._line_of_state(whole, len(sending))
        for name in names:
            status = {"stream_descriptor": {"name": name}, "status": "COMPLETE"}
            yield _line(
                "TRACE", trace={"type": "STREAM_STATUS", "emitted_at": 1, "stream_status": status}
            )

    def _line_of_state(self, content: Any, records: int) -> bytes:
        counts = {"recordCount": records + self.miscounts}
        state = {"type": self.kind, self.kind.lower(): content, "sourceStats": counts}
        return _line("STATE", state=state)

    def _state(self, command: ConnectorCommand, stream: str) -> int | None:
        for each in json.loads(command.files.get("state", b"[]")):
            parts = each["global"]["stream_states"] if "global" in each else [each["stream"]]
            for part in parts:
                if part["stream_descriptor"]["name"] == stream:
                    return int(part["stream_state"]["at"])
        return None


def _part(stream: str, id: int) -> dict[str, Any]:
    return {"stream_descriptor": {"name": stream}, "stream_state": {"at": id}}


def _line(kind: str, **content: Any) -> bytes:
    return json.dumps({"type": kind, **content}).encode() + b"\n"


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


class Shop:
    """The connection ``shop`` of one stream, unless a test says otherwise, and its tables."""

    def __init__(self, lake: Path, instance: dg.DagsterInstance, runner: FakeRunner) -> None:
        self.lake = lake
        self.instance = instance
        self.runner = runner
        self.source = Source()
        self.runner.script = self.source
        self.deployment = "tests"
        self.offered: Sequence[dict[str, Any]] = [EVENTS]
        #: Of a database, where the tables are to be there.
        self.address: str | None = None
        self.connection: Connection = declare_shop(streams=[{"name": "events", **APPEND}])
        self.get_asset_spec: GetAssetSpec = stream_spec

    def have_two_streams(self) -> None:
        self.offered = [EVENTS, VISITS]
        self.connection = declare_shop(
            streams=[{"name": stream["name"], **APPEND} for stream in self.offered]
        )

    @property
    def discovered(self) -> Discovered:
        return found(self.connection, self.offered)

    @property
    def atlas(self) -> AtlasResource:
        return AtlasResource(destination=self.address or str(self.lake), deployment=self.deployment)

    def run(
        self,
        refresh: str | None = None,
        *,
        again: Ran | None = None,
        instance: dg.DagsterInstance | None = None,
        tags: dict[str, str] | None = None,
    ) -> Ran:
        """Materialize the streams; ``again``: as the button does that tries a run again."""
        instance = instance or self.instance
        keys = self.defined.keys
        job = self._definitions().resolve_implicit_global_asset_job_def()
        job = job.get_subset(asset_selection=set(keys))
        config = {"ops": {f"{self.connection.name}__sync": {"config": {"refresh": refresh}}}}
        run = instance.create_run_for_job(
            job,
            run_config=config if refresh else None,
            root_run_id=again and again.run_id,
            parent_run_id=again and again.run_id,
            asset_selection=frozenset(keys),
            tags=tags,
        )
        result = execute_run(InMemoryJob(job), run, instance)
        return Ran(result, instance)

    @property
    def key(self) -> dg.AssetKey:
        """Of its only stream."""
        (key,) = self.defined.keys
        return key

    @property
    def defined(self) -> ConnectionAssets:
        return ConnectionAssets.of(self.connection, self.discovered, self.get_asset_spec)

    def _definitions(self) -> dg.Definitions:
        made = define(
            self.connection, self.discovered, lake=self.lake, get_asset_spec=self.get_asset_spec
        )
        return dg.Definitions(
            assets=made.assets,
            resources={**(made.resources or {}), "atlas": self.atlas},
            executor=dg.in_process_executor,
        )

    def open_state_admin(self) -> StateAdmin:
        return StateAdmin(
            self.defined,
            atlas=self.atlas,
            instance=self.instance,
            listener=SILENT,
        )

    def table(self, connection: str = "shop", stream: str = "events") -> DeltaTable:
        return DeltaTable(str(self.lake / connection / stream))

    def ids(self, connection: str = "shop", stream: str = "events") -> list[int]:
        destination = self.atlas.open_destination(self.connection)
        rows = destination.read((connection, stream), ["id"]).read_all()
        return sorted(rows.column("id").to_pylist())

    def lose_envelopes(self) -> None:
        for envelope in self.lake.glob("_atlas/shop/*.json"):
            envelope.unlink()
