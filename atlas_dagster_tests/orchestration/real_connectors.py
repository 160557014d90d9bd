"""Real connectors in containers: synced through Dagster, and run by hand to compare with."""

import datetime as dt
import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dagster as dg
import docker
from deltalake import DeltaTable

from atlas_dagster.config.renewable_config import FileConfigStore
from atlas_dagster.orchestration.definitions.connection_check import check_key
from atlas_dagster.protocol.catalog import configured_catalog_json
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.discovered_catalog import Discovered, discover
from atlas_dagster.source.run_context import RunContext
from atlas_dagster_tests.orchestration.connections import define

Row = dict[str, Any]
OWN = "_airbyte_"


def discover_really(connection: Connection) -> Discovered:
    with TemporaryDirectory() as folder:
        caller = RunContext(
            deployment="tests",
            owner="command:nowhere:1",
            environ=os.environ,
            configs=FileConfigStore(Path(folder)),
        )
        return discover(connection, caller, None)


@dataclass
class RealConnection:
    """A connection to a real connector, its lake, and what DISCOVER found."""

    connection: Connection
    lake: Path
    discovered: Discovered

    @classmethod
    def make(cls, lake: Path, name: str, image: str, **fields: Any) -> "RealConnection":
        connection = Connection(name=name, image=image, **fields)
        return cls(connection, lake, discover_really(connection))

    def changed(self, **config: Any) -> "RealConnection":
        """The same connection with another config."""
        connection = self.connection.model_copy(
            update={"config": {**self.connection.config, **config}}
        )
        return RealConnection(connection, self.lake, self.discovered)

    def definitions(self) -> dg.Definitions:
        return define(self.connection, self.discovered, lake=self.lake)

    def sync(
        self, instance: dg.DagsterInstance, *streams: str, raise_on_error: bool = True
    ) -> dg.ExecuteInProcessResult:
        """Materialize some streams, or all."""
        paths = self.discovered.table_paths
        names = {str(name): dg.AssetKey(list(path)) for name, path in paths.items()}
        return (
            self.definitions()
            .resolve_implicit_global_asset_job_def()
            .execute_in_process(
                instance=instance,
                asset_selection=[names[stream] for stream in streams or names],
                raise_on_error=raise_on_error,
            )
        )

    def run_everything(self, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
        """CHECK on the source asset, then all streams and their checks."""
        keys = {dg.AssetKey(list(path)) for path in self.discovered.table_paths.values()}
        job = self.definitions().resolve_implicit_global_asset_job_def()
        graph = self.definitions().resolve_asset_graph()
        checks = {key for key in graph.asset_check_keys if key.asset_key in keys}
        with_check = job.get_subset(
            asset_selection=keys, asset_check_selection={check_key(self.connection), *checks}
        )
        return with_check.execute_in_process(instance=instance, raise_on_error=False)

    def table(self, stream: str) -> DeltaTable:
        return DeltaTable(str(self.lake / self.connection.name / stream))

    def rows(self, stream: str) -> list[Row]:
        """The table's rows in order of their ids, Airbyte's own columns left out."""
        rows = self.table(stream).to_pyarrow_table().to_pylist()
        plain = [{k: v for k, v in row.items() if not k.startswith(OWN)} for row in rows]
        return sorted(plain, key=lambda row: row["id"])

    def emitted(self) -> dict[str, list[Row]]:
        """What the connector prints when run by hand with the same config and catalog."""
        catalog = configured_catalog_json(
            self.connection.configured(self.discovered.catalog), sync_id=1
        )
        assert self.connection.image is not None
        config = json.dumps(self.connection.config).encode()
        records: dict[str, list[Row]] = {}
        for message in _docker_run(self.connection.image, {"config": config, "catalog": catalog}):
            if message["type"] == "RECORD":
                record = message["record"]
                records.setdefault(record["stream"], []).append(record["data"])
        return {stream: sorted(rows, key=lambda row: row["id"]) for stream, rows in records.items()}


def metadata(result: dg.ExecuteInProcessResult, stream: str) -> dict[str, Any]:
    """What the materialization of ``stream`` carries, as plain values."""
    (found,) = [
        event.materialization
        for event in result.get_asset_materialization_events()
        if event.materialization.asset_key.path[-1] == stream
    ]
    return {key: value.value for key, value in found.metadata.items()}


def materialized(result: dg.ExecuteInProcessResult) -> list[str]:
    return sorted(
        event.materialization.asset_key.to_user_string()
        for event in result.get_asset_materialization_events()
    )


def difference(rows: Sequence[Row], records: Sequence[Row], *, ignore: str = "") -> list[str]:
    """Where table rows and the connector's records differ, in words; both in order of ids."""
    if len(rows) != len(records):
        return [f"{len(rows)} rows, {len(records)} records"]
    found = []
    for row, record in zip(rows, records, strict=True):
        unknown = set(record) - set(row)
        found += [f"id {record['id']}: no column {field}" for field in unknown]
        found += [
            f"id {record['id']}: {field} is {cell!r}, was {record.get(field)!r}"
            for field, cell in row.items()
            if field != ignore and not _same(cell, record.get(field))
        ]
    return found


def _same(cell: Any, value: Any) -> bool:
    if isinstance(cell, dt.datetime):
        moment = dt.datetime.fromisoformat(value)
        return moment == cell if moment.tzinfo else moment == cell.replace(tzinfo=None)
    if isinstance(value, dict | list):
        return bool(json.loads(cell) == value)
    return bool(cell == value)


def _docker_run(image: str, files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    options = [part for name in files for part in (f"--{name}", f"/tmp/{name}.json")]
    create = ["docker", "create", "--network", "none", image, "read", *options]
    container = subprocess.run(create, check=True, capture_output=True, text=True).stdout.strip()
    try:
        with TemporaryDirectory() as folder:
            for name, content in files.items():
                file = Path(folder, f"{name}.json")
                file.write_bytes(content)
                file.chmod(0o644)
                copy = ["docker", "cp", str(file), f"{container}:/tmp/"]
                subprocess.run(copy, check=True, capture_output=True)
        ran = subprocess.run(["docker", "start", "-a", container], check=True, capture_output=True)
    finally:
        subprocess.run(["docker", "rm", "-f", container], check=True, capture_output=True)
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith(b"{")]


@contextmanager
def verbs_run(client: docker.DockerClient, connection: str) -> Iterator[Counter[str]]:
    """Counts, once the block is left, what connectors of ``connection`` were started for."""
    verbs: Counter[str] = Counter()
    since = time.time()
    yield verbs
    filters = {"event": "start", "label": f"atlas.connection={connection}"}
    for event in client.events(since=since, until=time.time(), filters=filters, decode=True):
        verbs[event["Actor"]["Attributes"]["atlas.verb"]] += 1
