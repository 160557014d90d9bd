"""The ``atlas`` command: what it says, and the exit codes scripts rely on."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import pytest
from click.testing import CliRunner, Result
from dagster._core.test_utils import create_run_for_test
from deltalake import DeltaTable, write_deltalake
from msgspec import Raw
from pyarrow import RecordBatch, table
from rich.console import Console

from atlas_dagster.components import airbyte_connection
from atlas_dagster.destinations.base import TableSpec
from atlas_dagster.destinations.envelope import Envelope, StreamCommit
from atlas_dagster.errors import RunnerUnavailableError
from atlas_dagster.interfaces import cli
from atlas_dagster.interfaces.cli import declared
from atlas_dagster.interfaces.cli.declared import ProjectConnection, find_declared
from atlas_dagster.interfaces.cli.sync import Outcome, print_summary
from atlas_dagster.orchestration.definitions.discovery import (
    check_result,
    evaluation,
    schema_check_key,
)
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.records.types import TableSchema
from atlas_dagster.source.catalog_diff import CatalogChange
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.discovered_catalog import Discovered, Discovery, NamedTable
from atlas_dagster.source.open import Caller
from atlas_dagster_tests.components.connections_project import Project, importable
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE

STANDIN = (
    f"image: {SOURCE_STANDIN_IMAGE}",
    "streams: [{name: events, sync_mode: incremental, destination_sync_mode: append}]",
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project without connections, where the command works."""
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.delenv("ATLAS_LAKE", raising=False)
    monkeypatch.delenv("ATLAS_DESTINATION", raising=False)
    with importable(tmp_path, monkeypatch) as project:
        yield project


@pytest.fixture
def shop(project: Project) -> Project:
    """With a connection ``shop`` whose streams are known."""
    project.declare("shop", "connector: source-faker", "runner: python", "config: {count: 1}")
    project.discover("shop", {"count": 1})
    return project


def atlas(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments)


def words(text: str) -> str:
    """The text without the line breaks that come from the width of the terminal."""
    return " ".join(text.split())


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


# What is wrong, in one sentence


@pytest.mark.parametrize("command", ["sync", "check", "discover"])
def test_an_unknown_connection_is_met_with_the_nearest(shop: Project, command: str) -> None:
    result = atlas(command, "shpo")

    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr == (
        f"Error: There is no connection 'shpo' in {shop.package}/connections; "
        "did you mean 'shop'?\n"
    )


def test_an_unknown_connection_like_no_other_is_met_with_all(shop: Project) -> None:
    assert atlas("sync", "zzz").stderr == (
        f"Error: There is no connection 'zzz' in {shop.package}/connections; there are: shop.\n"
    )


def test_an_unknown_stream_is_met_with_all(shop: Project) -> None:
    result = atlas("sync", "shop", "--stream", "customers")

    assert result.exit_code == 3
    assert result.stderr == (
        "Error: Connection 'shop' has no stream 'customers'; it has users, orders.\n"
    )


def test_streams_must_be_known(project: Project) -> None:
    project.declare("new", "connector: source-faker")

    result = atlas("sync", "new")

    assert result.exit_code == 3
    assert result.stderr == (
        "Error: The streams of 'new' are not known yet; run: atlas discover new\n"
    )


@pytest.mark.parametrize("command", ["sync", "check", "discover"])
def test_a_wrong_declaration_is_one_sentence(project: Project, command: str) -> None:
    project.declare("shop", "connector: source-faker", "image: my/own:1")
    project.discover("shop", {})

    result = atlas(command, "shop")

    assert result.exit_code == 3
    assert result.stderr.endswith(
        ": shop/defs.yaml: give exactly one of connector (a registry name), image (a Docker "
        "image), manifest (a declarative manifest's file) and command (a program of your own).\n"
    )
    assert isinstance(result.exception, SystemExit)


def test_outside_a_project_it_says_where_to_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)

    result = atlas("sync", "shop")

    assert result.exit_code == 3
    assert words(result.stderr) == (
        "Error: There is no dagster.yaml here or above; "
        "run atlas in the project, or set DAGSTER_HOME."
    )


def test_help_works_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)

    result = atlas("--help")

    assert result.exit_code == 0
    assert [verb for verb in ("discover", "check", "sync") if f"\n  {verb} " in result.stdout] == [
        "discover",
        "check",
        "sync",
    ]


# discover


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

    def discover(_: Connection, __: Caller, previous: Discovered | None, *___: Any) -> Discovered:
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

    declared = find_declared("shop")
    assert streams(declared) == ["things2"]
    with dg.DagsterInstance.get():
        assert "any/table" in project.descriptions()
    declared.keep(answer("things3"))
    assert streams(declared) == ["things3"]


def test_secrets_are_files_for_every_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ | {"ATLAS_SECRETS": str(tmp_path / "secrets")})

    result = atlas("serve")

    assert result.exit_code == 3
    assert "(ATLAS_SECRETS) cannot be read" in words(result.stderr)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "SHOP_PASSWORD").write_text("pa55\n")
    atlas("connectors", "nothing like that")
    assert os.environ["SHOP_PASSWORD"] == "pa55"


def test_discover_without_names_asks_all(shop: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(airbyte_connection, "discover", lambda *_: answer("[things]"))

    result = atlas("discover")

    assert result.exit_code == 0
    assert result.stdout == (
        "shop offers 1 stream: [things]\n"
        "  took [things]: new stream\n"
        "  took users: stream is gone\n"
        "  took orders: stream is gone\n"
    )


def test_discover_takes_changes_and_clears_the_warning(
    shop: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a discovery on a schedule left for somebody to look at."""
    monkeypatch.setattr(airbyte_connection, "discover", lambda *_: answer("things"))
    with dg.DagsterInstance.get() as instance:
        pending = Discovery(msgspec.structs.replace(answer("things"), pending=(GONE,)))
        warning = evaluation(find_declared("shop").connection, check_result(pending))
        instance.report_runless_asset_event(warning)
        key = schema_check_key(find_declared("shop").connection)
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
    monkeypatch.setattr(declared, "discover", lambda *_: answer("things"))

    result = atlas("discover", "--dry-run", "shop")

    assert result.exit_code == 0
    assert result.stdout == (
        "shop offers 1 stream: things\n"
        "  would take things: new stream\n"
        "  would take users: stream is gone\n"
        "  would take orders: stream is gone\n"
    )
    assert shop.state_path("shop").read_bytes() == before


def test_what_the_declaration_stands_against_is_not_taken(
    shop: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = msgspec.structs.replace(answer("users"), pending=(GONE,))
    monkeypatch.setattr(airbyte_connection, "discover", lambda *_: kept)

    result = atlas("discover", "shop")

    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == (
        "  cannot take gone: stream is gone: the connection declares otherwise"
    )


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
    assert result.stderr == (
        "a_broken: a_broken/defs.yaml, line 3: there is no field 'conector'; "
        "did you mean 'connector'?\n"
        "b_down: No engine at [/var/run/docker.sock].\n"
    )
    assert result.stdout == "c_well offers 1 stream: things\n"


# sync


def test_a_failed_sync_ends_with_the_steps_sentence(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHOP_COUNT", raising=False)
    config = {"count": "{{ env.SHOP_COUNT }}"}
    project.declare(
        "shop", "connector: source-faker", "runner: python", f"config: {json.dumps(config)}"
    )
    project.discover("shop", config)

    result = atlas("sync", "shop", "--stream", "users")

    assert result.exit_code == 3
    assert result.stderr == (
        "Error: Connection 'shop': the environment variable SHOP_COUNT is not set; set it where "
        "Dagster's steps run (in the shell or .env beside dagster.yaml), or change config in "
        "defs.yaml.\nMore: docs/troubleshooting.md#a-variable-is-not-set\n"
    )
    assert result.stdout == ""


@pytest.mark.docker
def test_discover_check_and_two_syncs_of_a_real_connector(project: Project) -> None:
    project.declare("standin", *STANDIN, "config: {count: 25}")

    discovered, checked = atlas("discover", "standin"), atlas("check", "standin")
    first, second = atlas("sync", "standin"), atlas("sync", "standin", "--stream", "events")

    assert [run.exit_code for run in (discovered, checked, first, second)] == [0, 0, 0, 0]
    runs = f"source-standin runs in Docker, from the image {SOURCE_STANDIN_IMAGE}."
    assert discovered.stdout == f"{runs}\nstandin offers 1 stream: events\n"
    assert checked.stdout == f"{runs}\nstandin reached its source.\n"
    assert re.search(r"events +25 +25 +[\d.]+ +\{\"id\": 25\}", first.stdout)
    assert "lake/standin/events" in first.stdout
    assert "sync standin  once more" in first.stdout
    assert re.search(r"events +0 +25 +[\d.]+ +\{\"id\": 25\}", second.stdout)
    assert "no row was written" in second.stdout
    rows = DeltaTable(str(project.root / "lake/standin/events")).to_pyarrow_table()
    assert sorted(rows["id"].to_pylist()) == list(range(1, 26))
    with dg.DagsterInstance.get() as instance:
        assert instance.get_runs_count() == 2


@pytest.mark.docker
def test_a_connector_that_fails_is_told_in_its_own_words(project: Project) -> None:
    project.declare("standin", *STANDIN, "config: {count: 40, behaviour: die}")
    project.declare("locked", *STANDIN, "config: {fail_check: true}")
    assert atlas("discover").exit_code == 0

    died, locked, checked = (
        atlas("sync", "standin"),
        atlas("sync", "locked"),
        atlas("check", "locked"),
    )

    assert [run.exit_code for run in (died, locked, checked)] == [4, 3, 3]
    sentence, log = died.stderr.splitlines()
    assert sentence == "Error: The stream did not complete. source-standin: upstream went away"
    assert "Reading events after id" in Path(log.removeprefix("The connector's log: ")).read_text()
    assert locked.stderr.startswith("Error: CHECK of source-standin failed: bad password\n")
    assert checked.stderr == (
        "Error: CHECK of source-standin failed: bad password\n"
        "More: docs/troubleshooting.md#check-failed\n"
        "With --logs, the connector's own log is shown.\n"
    )


def test_the_summary_shows_rows_as_they_are(
    shop: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = shop.root / "lake" / "shop" / "users"
    said = ["[/quote] well", "[bold]loud", "[null]"]
    write_deltalake(str(uri), table({"id": [1, 2, 3], "said": said}))
    outcome = Outcome(
        {
            ("shop", "users"): {
                "atlas/records_synced": dg.MetadataValue.int(3),
                "dagster/row_count": dg.MetadataValue.int(1234),
                "atlas/duration_seconds": dg.MetadataValue.float(1.25),
                "atlas/cursor_after": dg.MetadataValue.json([None, "[/x]"]),
            }
        }
    )

    print_summary(Console(width=120), find_declared("shop"), outcome)

    shown = capsys.readouterr().out
    assert re.search(r"users +3 +1,234 +1\.2 +\[null, \"\[/x\]\"\]", shown)
    assert [text for text in said if text in shown] == said
    assert "SELECT * FROM delta_scan('lake/shop/users')" in shown


@pytest.mark.postgres
def test_the_summary_of_tables_in_postgres(
    shop: Project,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    postgres_url: dict[str, Any],
) -> None:
    place = f"{postgres_url['hostname']}:{postgres_url['port']}/{postgres_url['db_name']}"
    monkeypatch.setenv("ATLAS_DESTINATION", f"postgresql://atlas:hunter22@{place}")
    connection = find_declared("shop").connection
    destination = AtlasResource.from_environment().open_destination(connection)
    spec = TableSpec(
        ("shop", "users"),
        TableSchema.from_json_schema({"properties": {"id": {"type": "integer"}}}),
        "append",
    )
    with closing(destination):
        writer = destination.open("shop", spec)
        writer.write(RecordBatch.from_pylist([{"id": 41}], spec.schema.arrow))
        commit = StreamCommit(StreamDescriptor("users"), spec.path, 0, False, writer.stage())
        destination.commit(Envelope(1, 1, "shop", (commit,), Raw(b"[]"), 1.0), [writer])
    done = {
        "atlas/records_synced": dg.MetadataValue.int(1),
        "dagster/row_count": dg.MetadataValue.int(1),
        "atlas/duration_seconds": dg.MetadataValue.float(1.25),
        "atlas/cursor_after": dg.MetadataValue.text("none"),
    }

    print_summary(Console(width=120), find_declared("shop"), Outcome({("shop", "users"): done}))

    shown = capsys.readouterr().out
    assert f"postgresql://{place}/shop/users\n" in shown
    assert re.search(r"^ *id *$\n^.*\n^ *41 *$", shown, re.MULTILINE)
    assert 'SELECT * FROM "shop"."users"' in shown
    assert "hunter22" not in shown


# The engine without Dagster


@pytest.mark.parametrize(
    "module",
    [
        "atlas_dagster",
        "atlas_dagster.sync.session",
        "atlas_dagster.sync.plan",
        "atlas_dagster.source.open",
        "atlas_dagster.destinations.factory",
        "atlas_dagster.runners.docker.runner",
        "atlas_dagster.runners.python",
        "atlas_dagster.registry",
        "atlas_dagster.sync.resume",
    ],
)
def test_the_engine_does_not_import_dagster(module: str) -> None:
    loaded = "{name.partition('.')[0] for name in sys.modules}"
    program = f"import sys, {module}\nprint('dagster' in {loaded})"

    ran = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )

    assert ran.stdout == "False\n"


# read, pull, doctor, reap, prune


@pytest.mark.docker
def test_a_declared_connection_is_read_without_its_tables(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.declare("standin", *STANDIN, "config: {count: 25}")
    below = project.connections / "standin"

    unknown = atlas("read", "standin", "--stream", "evnts")
    piped = atlas("read", "standin", "--limit", "3")
    monkeypatch.chdir(below)
    filed = atlas("read", "standin", "--output", "rows.jsonl")

    assert unknown.exit_code == 3
    assert "has no stream 'evnts'; it has events." in unknown.stderr
    assert [json.loads(line)["id"] for line in piped.stdout.splitlines()] == [1, 2, 3]
    assert filed.exit_code == 0, filed.stderr
    # Where the command was given, not where the project is.
    assert len((below / "rows.jsonl").read_text().splitlines()) == 25
    assert not (project.root / "lake").exists()


@pytest.mark.docker
def test_what_a_project_needs_is_fetched_and_examined(project: Project) -> None:
    project.declare("standin", *STANDIN)
    (ready,) = json.loads(atlas("pull", "--json").stdout)
    assert ready["source"] == "standin"
    assert ready["ready"].startswith(f"{SOURCE_STANDIN_IMAGE}@sha256:")

    examined = atlas("doctor", "--json")
    assert examined.exit_code == 0
    findings = {each["about"]: each for each in json.loads(examined.stdout)}
    assert findings["Docker"]["verdict"] == "ok"
    assert findings["Connection standin"]["verdict"] == "warning"

    project.declare("broken", "conector: source-faker")
    examined = atlas("doctor")
    assert examined.exit_code == 1
    assert "there is no field 'conector'" in examined.stdout
    reaped = atlas("reap", "--json")
    assert reaped.exit_code == 0, reaped.stderr
    assert json.loads(reaped.stdout)["ended_runs"] == []


def test_old_runs_are_pruned(project: Project) -> None:
    with dg.DagsterInstance.get() as instance:
        for _ in range(2):
            create_run_for_test(instance, status=dg.DagsterRunStatus.SUCCESS)
        with instance.run_storage.connect() as database:  # type: ignore[attr-defined]
            database.exec_driver_sql(
                "UPDATE runs SET update_timestamp = '2020-01-01 00:00:00' WHERE id = 1"
            )

    pruned = atlas("prune", "--days", "30")
    again = atlas("prune", "--days", "30", "--json")

    assert pruned.stdout == (
        "Deleted 1 run that ended more than 30 days ago, with its events and compute logs.\n"
    )
    assert json.loads(again.stdout) == {"deleted": 0}
    with dg.DagsterInstance.get() as instance:
        assert instance.get_runs_count() == 1
    assert atlas("prune").exit_code == atlas("prune", "--days", "0").exit_code == 2


def test_a_declared_connection_has_its_own_config(shop: Project) -> None:
    result = atlas("check", "shop", "--config", "{}")
    assert result.exit_code == 3
    assert "'shop' is a declared connection, which has its own config" in result.stderr
