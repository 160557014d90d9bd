"""Connections that are declared well: what they become, and how their catalog is refreshed."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import msgspec
import pytest

from atlas_dagster.components import airbyte_connection
from atlas_dagster.components.airbyte_connection import AirbyteConnection
from atlas_dagster.config.renewable_config import FileConfigStore
from atlas_dagster.errors import ConnectorFailedError
from atlas_dagster.runners.docker.runner import DockerRunner
from atlas_dagster.runners.python import PythonRunner
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.discovered_catalog import Discovered, config_hash
from atlas_dagster.source.run_context import RunContext
from atlas_dagster_tests.components.connections_project import STREAMS, Project, importable


@pytest.fixture
def caller(tmp_path: Path) -> RunContext:
    return RunContext(
        deployment="tests",
        owner="run:1",
        environ={},
        configs=FileConfigStore(tmp_path / "renewals"),
    )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    with importable(tmp_path, monkeypatch) as project:
        yield project


def load(project: Project, name: str) -> AirbyteConnection:
    (found,) = project.tree().connections(project.connections / name)
    return found


def test_several_connections_load_beside_each_other(project: Project) -> None:
    for name in ("one", "two", "three"):
        project.declare(name, "connector: source-faker", "config: {count: 1}")
        project.discover(name, {"count": 1})

    streams = {key for key in project.descriptions() if "source_faker" not in key}
    assert streams == {
        f"{name}/{s}" for name in ("one", "two", "three") for s in ("users", "orders")
    }


def test_syncs_look_at_an_old_catalog_unless_they_must_not(project: Project) -> None:
    project.declare("shop", "connector: source-faker")
    look = load(project, "shop").catalog_update(project.connections)
    assert look is not None
    assert look.policy == "propagate_columns"
    project.declare("quiet", "connector: source-faker", "discovery: {look: never}")
    assert load(project, "quiet").catalog_update(project.connections) is None


def test_a_look_is_kept_as_what_was_discovered(project: Project) -> None:
    project.declare("shop", "connector: source-faker")
    project.discover("shop", {})
    component = load(project, "shop")
    known, look = component.stored_catalog(project.root), component.catalog_update(project.root)
    assert known is not None
    assert look is not None
    look.store(msgspec.structs.replace(known, discovered_at=5.0))
    again = component.stored_catalog(project.root)
    assert again is not None
    assert again.discovered_at == 5.0


def test_a_new_connection_is_an_asset_that_discovers(project: Project) -> None:
    project.declare("new", "connector: source-faker")

    described = project.descriptions()

    assert set(described) == {"new/discover"}
    assert described["new/discover"].startswith("The streams of new are not known yet.")


def test_loading_starts_no_connector(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object) -> None:
        raise AssertionError("a connector was started")

    monkeypatch.setattr(DockerRunner, "start", started)
    monkeypatch.setattr(PythonRunner, "start", started)
    # `dagster dev` is where Dagster's own components refresh their state.
    monkeypatch.setenv("DAGSTER_IS_DEV_CLI", "1")
    project.declare("known", "connector: source-faker", "config: {count: 1}")
    project.discover("known", {"count": 1})
    project.declare("new", "connector: source-faker")

    assert {"known/users", "new/discover"} <= set(project.descriptions())


@pytest.mark.parametrize("version", ["3.8.1", '"3.10"', '"1e5"', '"7"'])
def test_a_version_stays_as_it_is_written(project: Project, version: str) -> None:
    project.declare("shop", "connector: source-faker", f"version: {version}")

    assert load(project, "shop").connection.version == version.strip('"')


def test_config_stays_as_it_is_written(project: Project) -> None:
    project.declare(
        "shop",
        "connector: source-faker",
        'config: {a: "1e5", b: "0x1F", c: "None", d: "{{ env.NOT_SET }}", e: 1, f: "{{ 1 + 1 }}"}',
    )

    assert load(project, "shop").connection.config == {
        "a": "1e5",
        "b": "0x1F",
        "c": "None",
        "d": "{{ env.NOT_SET }}",
        "e": 1,
        "f": "{{ 1 + 1 }}",
    }


@pytest.mark.parametrize(("word", "checks"), [("off", False), ("on", True), ('"off"', False)])
def test_a_config_need_not_be_validated(project: Project, word: str, checks: bool) -> None:
    project.declare("shop", "connector: source-faker", "config: {cuont: 1}", f"validate: {word}")
    project.discover("shop", {"cuont": 1})

    assert load(project, "shop").connection.validate_config is checks
    described = "\n".join(project.descriptions().values())
    assert ("did you mean 'count'?" in described) is checks


@pytest.mark.parametrize(
    "declared", ["manifest: own/manifest.yaml", "command: [python3, my_source.py]"]
)
def test_a_connector_of_ones_own_is_named_after_its_folder(project: Project, declared: str) -> None:
    project.declare("shop", declared)

    connection = load(project, "shop").connection

    assert connection.source_name == "source-shop"
    assert connection.folder == project.connections / "shop"
    assert connection.entry() is None


def test_a_schedule_becomes_a_sensor(project: Project) -> None:
    project.declare("shop", "connector: source-faker", "config: {count: 1}", 'schedule: "@daily"')
    project.discover("shop", {"count": 1})

    (sensor,) = (s for s in project.definitions().sensors or [] if s.name == "shop__schedule")
    assert isinstance(sensor, dg.SensorDefinition)
    assert sensor.metadata["atlas/cron"].value == "@daily"
    assert sensor.metadata["atlas/timezone"].value == "UTC"


@pytest.mark.parametrize(
    ("config", "is_stale"),
    [
        ("{count: 1, schema: sales}", True),
        ("{count: 1, schema: public, since: 2024-01-01}", False),
        ("{count: 1, schema: public}", False),
        ("{schema: public, count: 1, password: other}", False),
    ],
)
def test_the_source_is_stale_where_discover_depends_on_what_has_changed(
    project: Project, config: str, is_stale: bool
) -> None:
    """Its streams do not say so."""
    project.discover("shop", {"count": 1, "schema": "public", "password": "{{ env.P }}"})
    found = json.loads(project.state_path("shop").read_bytes())
    schema = found["spec_schema"]
    schema["properties"] |= {
        "schema": {"type": "string"},
        "since": {"type": "string", "format": "date"},
    }
    found["config_hash"] = config_hash({"count": 1, "schema": "public"}, schema)
    project.state_path("shop").write_text(json.dumps(found))
    project.declare("shop", "connector: source-faker", f"config: {config}")

    specs = {s.key.to_user_string(): s for s in project.definitions().resolve_all_asset_specs()}
    assert (specs["shop/source_faker"].tags.get("atlas/discovery") == "stale") == is_stale
    assert "atlas/discovery" not in specs["shop/users"].tags
    description = specs["shop/users"].description
    assert description is not None
    assert "config has changed" not in description


def test_the_check_of_schema_changes_stores_nothing(
    project: Project, monkeypatch: pytest.MonkeyPatch, caller: RunContext
) -> None:
    project.declare("shop", "connector: source-faker", "config: {count: 1}")
    project.discover("shop", {"count": 1})
    before = project.state_path("shop").read_bytes()
    asked = []

    def answer(
        connection: Connection, caller: RunContext, previous: Discovered | None, policy: str | None
    ) -> Discovered:
        asked.append(policy)
        return project.found("shop", {"count": 1}, [*STREAMS, {"name": "new", "json_schema": {}}])

    monkeypatch.setattr(airbyte_connection, "discover", answer)
    (part,) = [p for p in project.tree().parts() if p.name == "shop"]
    (component,) = project.tree().connections(part)
    component.compare_catalog(project.root, caller)

    assert asked == ["ignore"]
    assert project.state_path("shop").read_bytes() == before


def test_a_refresh_is_told_what_was_known_and_stored_for_the_next_load(
    project: Project, monkeypatch: pytest.MonkeyPatch, caller: RunContext
) -> None:
    project.declare("shop", "connector: source-faker", "config: {count: 1}")
    project.discover("shop", {"count": 1})
    before = Discovered.decode(project.state_path("shop").read_bytes())
    told = []

    def answer(
        connection: Connection, caller: RunContext, previous: Discovered | None, policy: str | None
    ) -> Discovered:
        told.append((connection.name, caller, previous, policy))
        assert previous is not None
        new = previous.encode().replace(b"source-faker:1", b"source-faker:2")
        return Discovered.decode(new)

    monkeypatch.setattr(airbyte_connection, "discover", answer)
    load(project, "shop").refresh_catalog(project.root, caller, "ignore")

    assert told == [("shop", caller, before, "ignore")]
    after = Discovered.decode(project.state_path("shop").read_bytes())
    assert (before.connector, after.connector) == ("source-faker:1", "source-faker:2")


@pytest.mark.slow
def test_so_is_one_that_dagster_itself_asks_for(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.declare("shop", "connector: source-faker", "config: {count: 1}")
    project.discover("shop", {"count": 1})
    before = Discovered.decode(project.state_path("shop").read_bytes())
    told = []

    def answer(_: Connection, __: RunContext, previous: Discovered | None) -> Discovered:
        told.append(previous)
        return before

    monkeypatch.setattr(airbyte_connection, "discover", answer)
    with dg.instance_for_test():
        asyncio.run(load(project, "shop").refresh_state(project.root))

    assert told == [before]


def test_a_refresh_that_fails_leaves_what_was_known(
    project: Project, monkeypatch: pytest.MonkeyPatch, caller: RunContext
) -> None:
    project.declare("shop", "connector: source-faker", "config: {count: 1}")
    project.discover("shop", {"count": 1})
    before = project.state_path("shop").read_bytes()

    def fail(*_: object) -> Discovered:
        raise ConnectorFailedError("source-faker: no route to host")

    monkeypatch.setattr(airbyte_connection, "discover", fail)
    with pytest.raises(ConnectorFailedError, match="no route to host"):
        load(project, "shop").refresh_catalog(project.root, caller)

    assert project.state_path("shop").read_bytes() == before
    assert [path.name for path in project.state_path("shop").parent.iterdir()] == ["state"]
    assert "shop/users" in project.descriptions()


@pytest.mark.slow
def test_a_catalog_that_cannot_be_read_is_mended_by_discovering_again(
    project: Project, monkeypatch: pytest.MonkeyPatch, caller: RunContext
) -> None:
    project.declare("shop", "connector: source-faker", "config: {count: 1}")
    project.discover("shop", {"count": 1})
    good = Discovered.decode(project.state_path("shop").read_bytes())
    project.state_path("shop").write_bytes(b"{}")
    (described,) = project.descriptions().items()
    assert described[0] == "shop/broken"
    assert "The cached catalog cannot be read" in described[1]
    assert described[1].endswith("discover again.")

    monkeypatch.setattr(airbyte_connection, "discover", lambda *_: good)
    load(project, "shop").refresh_catalog(project.root, caller)

    assert "shop/users" in project.descriptions()
