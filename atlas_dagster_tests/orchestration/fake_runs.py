"""Runs of connections whose connector prints what a test says, on any instance."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from atlas_dagster.runners.base import ConnectorCommand, ExitStatus
from atlas_dagster.runners.fake import FakeRunner
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.discovered_catalog import Discovered
from atlas_dagster_tests.orchestration.connections import USERS, declare_shop, define, found
from atlas_dagster_tests.sync.fake_source import line

#: One piece of a READ's output, or its exit code.
Piece = bytes | int | ExitStatus

EVENTS: dict[str, Any] = {
    **USERS,
    "name": "events",
    "json_schema": {"properties": {"id": {"type": "integer"}, "v": {"type": "string"}}},
}


@dataclass
class Result:
    """What a run recorded."""

    result: dg.ExecuteInProcessResult
    instance: dg.DagsterInstance

    @property
    def success(self) -> bool:
        return self.result.success

    def _events(self, kind: dg.DagsterEventType) -> list[dg.DagsterEvent]:
        entries = self.instance.all_logs(self.result.run_id, of_type=kind)
        return [entry.get_dagster_event() for entry in entries]

    @property
    def metadata(self) -> dict[str, dict[str, Any]]:
        """Of each materialization, as plain values, by stream."""
        events = self._events(dg.DagsterEventType.ASSET_MATERIALIZATION)
        made = [event.step_materialization_data.materialization for event in events]
        return {each.asset_key.path[-1]: _plain(each.metadata) for each in made}

    @property
    def observations(self) -> dict[str, dict[str, Any]]:
        """The newest of each asset."""
        events = self._events(dg.DagsterEventType.ASSET_OBSERVATION)
        made = [event.asset_observation_data.asset_observation for event in events]
        return {each.asset_key.path[-1]: _plain(each.metadata) for each in made}

    @property
    def checks(self) -> dict[str, dg.AssetCheckEvaluation]:
        """The evaluations, by ``stream.check``."""
        events = self._events(dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        made = [event.asset_check_evaluation_data for event in events]
        return {f"{each.asset_key.path[-1]}.{each.check_name}": each for each in made}

    @property
    def log(self) -> list[str]:
        return [entry.user_message for entry in self.instance.all_logs(self.result.run_id)]

    @property
    def failure(self) -> str:
        failures = [e.step_failure_data for e in self.result.all_events if e.is_step_failure]
        told = [(f.user_failure_data and f.user_failure_data.description) for f in failures]
        return " ".join(t or "" for t in told)


@dataclass
class FakeRuns:
    """The connection ``shop`` with one stream, unless a test says otherwise."""

    lake: Path
    instance: dg.DagsterInstance
    runner: FakeRunner
    streams: Sequence[Mapping[str, Any]] = (EVENTS,)
    connection: Connection = field(default_factory=declare_shop)
    output: Sequence[Piece] = ()

    def script(self, command: ConnectorCommand) -> Iterator[Piece]:
        if command.verb == "check":
            yield line("CONNECTION_STATUS", connectionStatus={"status": "SUCCEEDED"})
        else:
            yield from self.output

    def select(self, **modes: Any) -> None:
        """Read the first stream so: ``sync_mode="incremental"``."""
        name = self.streams[0]["name"]
        self.connection = declare_shop(streams=[{"name": name, **modes}])

    @property
    def discovered(self) -> Discovered:
        return found(self.connection, self.streams)

    @property
    def definitions(self) -> dg.Definitions:
        return define(self.connection, self.discovered, lake=self.lake)

    def run(
        self,
        *output: Piece,
        only: Collection[str] | None = None,
        more: Sequence[dg.AssetsDefinition] = (),
        **options: Any,
    ) -> Result:
        """Materialize the streams, or ``only`` some, from a READ that prints ``output``."""
        self.output = output
        keys = [dg.AssetKey(list(path)) for path in self.discovered.table_paths.values()]
        keys = [key for key in keys if only is None or key.path[-1] in only]
        defs = dg.Definitions.merge(self.definitions, dg.Definitions(assets=list(more)))
        result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=[*keys, *(key for asset in more for key in asset.keys)],
            run_config={"ops": {f"{self.connection.name}__sync": {"config": options}}},
            raise_on_error=False,
        )
        return Result(result, self.instance)

    def sent(self, option: str) -> bytes | None:
        """The file that the last READ was given."""
        return self.runner.commands[-1].files.get(option)


def _plain(metadata: Mapping[str, dg.MetadataValue[Any]]) -> dict[str, Any]:
    return {key: value.value for key, value in metadata.items()}
