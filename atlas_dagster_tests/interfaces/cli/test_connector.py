"""``atlas spec``, ``check``, ``discover`` and ``pull``."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import pytest
from msgspec import Raw

from atlas_dagster.components import airbyte_connection
from atlas_dagster.errors import RunnerUnavailableError
from atlas_dagster.interfaces.cli.project import ProjectConnection, find_connection
from atlas_dagster.orchestration.definitions.discovery import (
    check_result,
    make_evaluation,
    schema_check_key,
)
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.source import discovered_catalog
from atlas_dagster.source.catalog_diff import CatalogChange
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.discovered_catalog import Discovered, Discovery, NamedTable
from atlas_dagster.source.run_context import RunContext
from atlas_dagster_tests.components.connections_project import Project
from atlas_dagster_tests.conftest import SOURCE_FAKER_IMAGE, SOURCE_STANDIN_IMAGE
from atlas_dagster_tests.interfaces.cli.command import atlas
from atlas_dagster_tests.interfaces.cli.scripted_source import ScriptedSource, line, record, status

pytestmark = pytest.mark.slow


def answer(streams: str) -> Discovered:
    """What a DISCOVER might find."""
    return Discovered(
        connector="source-faker:9",
        config_hash="",
        discovered_at=0.0,
        spec_schema={},
        documentation_url=None,
        streams=(Raw(json.dumps({"name": streams, "json_schema": {}}).encode()),),
        tables=(NamedTable(StreamDescriptor(streams), ("any", "table")),),
    )


GONE = CatalogChange(StreamDescriptor("gone"), "removed", declared=True)


# Declared connections


def test_discover_missing_asks_only_those_not_known(
    shop: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def discover(connection: Connection, *_: object) -> Discovered:
        asked.append(connection.name)
        return answer("things")

    monkeypatch.setattr(airbyte_connection, "discover", discover)
    shop.declare("new", "connector: source-faker")

    first = atlas("discover", "--missing")
    second = atlas("discover", "--missing")

    assert asked == ["new"]
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.stdout == "new offers 1 stream: things\n"
    assert second.stdout == ""


def test_catalogs_may_be_in_dagsters_versioned_storage(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in production: what is discovered there is what is loaded, and what is known next time."""
    (tmp_path / "dagster.yaml").write_text(
        f"""
defs_state_storage:
  module: dagster._core.storage.defs_state.blob_storage_state_storage
  class: UPathDefsStateStorage
  config: {{base_path: {tmp_path / "catalogs"}}}
"""
    )
    monkeypatch.setenv("ATLAS_DEFS_STATE", "VERSIONED_STATE_STORAGE")
    known = []

    def discover(
        _: Connection, __: RunContext, previous: Discovered | None, *___: Any
    ) -> Discovered:
        known.append(str(previous.catalog.streams[0].descriptor) if previous else None)
        return answer(f"things{len(known)}")

    monkeypatch.setattr(airbyte_connection, "discover", discover)
    project.declare("shop", "connector: source-faker")

    results = [
        atlas("discover", "--missing"),
        atlas("discover", "--missing"),
        atlas("discover", "shop"),
    ]

    assert [result.exit_code for result in results] == [0, 0, 0]
    assert "shop offers 1 stream: things2" in results[2].stdout
    assert known == [None, "things1"]
    assert not project.state_path("shop").exists()

    def streams(declared: ProjectConnection) -> list[str]:
        found = declared.discovered
        return [str(s.descriptor) for s in found.catalog.streams] if found else []

    declared = find_connection("shop")
    assert streams(declared) == ["things2"]
    with dg.DagsterInstance.get():
        assert "any/table" in project.descriptions()
    declared.store_catalog(answer("things3"))
    assert streams(declared) == ["things3"]


def test_discover_without_names_asks_all(shop: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(airbyte_connection, "discover", lambda *_: answer("[things]"))

    result = atlas("discover")

    assert result.exit_code == 0
    offered, *changes = result.stdout.splitlines()
    assert offered == "shop offers 1 stream: [things]"
    assert [change.split()[:2] for change in changes] == [
        ["applied", "[things]:"],
        ["applied", "users:"],
        ["applied", "orders:"],
    ]


def test_discover_takes_changes_and_clears_the_warning(
    shop: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a discovery on a schedule left for somebody to look at."""
    monkeypatch.setattr(airbyte_connection, "discover", lambda *_: answer("things"))
    with dg.DagsterInstance.get() as instance:
        pending = Discovery(msgspec.structs.replace(answer("things"), pending=(GONE,)))
        warning = make_evaluation(find_connection("shop").connection, check_result(pending))
        instance.report_runless_asset_event(warning)
        key = schema_check_key(find_connection("shop").connection)
        assert latest(instance, key) == "FAILED"

        assert atlas("discover", "shop").exit_code == 0

        assert latest(instance, key) == "SUCCEEDED"


def latest(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> str:
    record = instance.get_latest_asset_check_evaluation_record(key)
    assert record is not None
    return str(record.status.value)


def test_a_dry_run_of_discover_stores_nothing(
    shop: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = shop.state_path("shop").read_bytes()
    monkeypatch.setattr(discovered_catalog, "discover", lambda *_: answer("things"))

    result = atlas("discover", "--dry-run", "shop")

    assert result.exit_code == 0
    offered, *changes = result.stdout.splitlines()
    assert offered == "shop offers 1 stream: things"
    assert [change.split()[:3] for change in changes] == [
        ["would", "apply", "things:"],
        ["would", "apply", "users:"],
        ["would", "apply", "orders:"],
    ]
    assert shop.state_path("shop").read_bytes() == before


def test_what_the_declaration_stands_against_is_not_taken(
    shop: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = msgspec.structs.replace(answer("users"), pending=(GONE,))
    monkeypatch.setattr(airbyte_connection, "discover", lambda *_: kept)

    result = atlas("discover", "shop")

    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("  cannot apply gone:")


@pytest.mark.parametrize("options", [[], ["--missing"]])
def test_discover_goes_on_after_a_failure_and_ends_with_the_gravest(
    project: Project, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    def discover(connection: Connection, *_: object) -> Discovered:
        if connection.name == "b_down":
            raise RunnerUnavailableError("No engine at [/var/run/docker.sock].")
        return answer("things")

    monkeypatch.setattr(airbyte_connection, "discover", discover)
    project.declare("a_broken", "conector: source-faker")
    project.declare("b_down", "connector: source-faker")
    project.declare("c_well", "connector: source-faker")

    result = atlas("discover", *options)

    assert result.exit_code == 3
    broken, down = result.stderr.splitlines()
    assert broken.startswith("a_broken: ")
    assert "'conector'" in broken
    assert down == "b_down: No engine at [/var/run/docker.sock]."
    assert result.stdout == "c_well offers 1 stream: things\n"


@pytest.mark.parametrize(
    "verb", [["spec"], ["check"], ["discover"], ["discover", "--dry-run"], ["read"]]
)
def test_logs_shows_the_connectors_log(project: Project, verb: list[str]) -> None:
    source = ScriptedSource(project, "users")
    source.answers("read", record("users", 1), status("users", "COMPLETE"))
    quiet, loud = atlas(*verb, "own"), atlas(*verb, "own", "--logs")
    assert (quiet.exit_code, loud.exit_code) == (0, 0), loud.stderr
    assert "INFO  a line of the log" in loud.stderr
    assert "a line of the log" not in quiet.output


def test_a_discover_that_fails_names_the_option(project: Project) -> None:
    source = ScriptedSource(project, "users")
    error = line("LOG", log={"level": "ERROR", "message": "no licence"})
    source.answers("discover", error, exit_code=1)
    result = atlas("discover", "own")
    assert result.exit_code == 1
    assert "source-own ended with exit code 1: no licence" in result.stderr
    assert "--logs" in result.stderr


def test_what_is_odd_about_a_config_is_told_on_stderr(project: Project) -> None:
    source = ScriptedSource(project, "users")
    schema = {"properties": {"count": {"type": "integer", "default": 7}}}
    source.answers("spec", line("SPEC", spec={"connectionSpecification": schema}))
    declared = (source.folder / "defs.yaml").read_text()
    odd, wrong = declared + "  config: {xyzzy: 1}\n", declared + "  config: {cuont: 1}\n"

    (source.folder / "defs.yaml").write_text(odd)
    checked, discovered = atlas("check", "own"), atlas("discover", "own")
    (source.folder / "defs.yaml").write_text(wrong)
    refused = atlas("check", "own")
    (source.folder / "defs.yaml").write_text(wrong + "  validate: off\n")
    passed = atlas("check", "own")

    for result in (checked, discovered):
        assert result.exit_code == 0
        assert result.stderr.startswith("Warning: Connection 'own'")
        assert "'xyzzy'" in result.stderr
        assert "xyzzy" not in result.stdout
    assert (refused.exit_code, passed.exit_code) == (3, 0)
    assert "'count'" in refused.stderr


# Connectors without a declaration


@pytest.mark.docker
def test_spec_for_people_and_machines() -> None:
    shown = atlas("spec", SOURCE_FAKER_IMAGE)
    assert shown.exit_code == 0
    assert "How many users should be generated" in shown.stdout
    told = json.loads(atlas("spec", SOURCE_FAKER_IMAGE, "--json").stdout)
    assert told["connectionSpecification"]["properties"]["count"]["type"] == "integer"


@pytest.mark.docker
def test_check_says_what_is_wrong_with_a_config() -> None:
    result = atlas("check", SOURCE_FAKER_IMAGE, config={"cuont": 1})
    assert result.exit_code == 3
    assert "'cuont'" in result.stderr
    assert "'count'" in result.stderr
    failed = atlas("check", SOURCE_STANDIN_IMAGE, config={"fail_check": True})
    assert (failed.exit_code, failed.stdout) == (3, "")
    assert "bad password" in failed.stderr
    passed = atlas("check", SOURCE_STANDIN_IMAGE, "--json", config={})
    assert json.loads(passed.stdout) == {"source": SOURCE_STANDIN_IMAGE, "status": "SUCCEEDED"}


@pytest.mark.docker
def test_streams_are_listed() -> None:
    shown = atlas("discover", SOURCE_STANDIN_IMAGE, config={})
    assert "events" in shown.stdout
    told = json.loads(atlas("discover", SOURCE_STANDIN_IMAGE, "--json", config={}).stdout)
    assert "events" in [stream["name"] for stream in told["streams"]]


@pytest.mark.docker
def test_pull_has_everything_ready() -> None:
    result = atlas("pull", SOURCE_FAKER_IMAGE, "source-posgres", "--json")
    assert result.exit_code == 3
    ready, unknown = json.loads(result.stdout)
    assert ready["runner"] == "docker"
    assert ready["ready"].startswith(f"{SOURCE_FAKER_IMAGE}@sha256:")
    assert '"source-posgres"' in unknown["error"]
