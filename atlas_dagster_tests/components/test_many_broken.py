"""Many broken connections load as fast as many good ones, and their neighbours work."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner, Result
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster.components.core.decl import YamlDecl

from atlas_dagster.interfaces import cli
from atlas_dagster_tests.components.connections_project import Project, importable
from atlas_dagster_tests.interfaces.cli.conftest import NUMBERS_SOURCE

#: Nothing here takes more than a few seconds; drawing the tree of components took for ever.
pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]

TYPE = "type: atlas_dagster.AirbyteConnection\n"
FAKER = "connector: source-faker"


def declared(*attributes: str) -> Callable[[Project, str], None]:
    return lambda project, name: project.declare(name, *attributes)


def written(content: bytes) -> Callable[[Project, str], None]:
    def write(project: Project, name: str) -> None:
        project.write(name, "")
        (project.connections / name / "defs.yaml").write_bytes(content)

    return write


def discovered(*attributes: str) -> Callable[[Project, str], None]:
    """Its streams are known from a time when it was in order."""

    def write(project: Project, name: str) -> None:
        project.declare(name, *attributes)
        project.discover(name, {"count": 1})

    return write


def python(content: str) -> Callable[[Project, str], None]:
    def write(project: Project, name: str) -> None:
        (project.connections / name).mkdir()
        (project.connections / name / "defs.py").write_text(content.replace("NAME", name))

    return write


#: Makes a connection of that name, broken; and what is said of it.
KINDS: dict[str, tuple[Callable[[Project, str], None], str]] = {
    "misspelt field": (declared("conector: source-faker"), "no field 'conector'"),
    "misspelt field of a stream": (
        declared(FAKER, "streams: [{name: users, sync_mod: incremental}]"),
        "no field 'sync_mod'",
    ),
    "wrong type": (declared(FAKER, "version: 3.8"), "must be text"),
    "no connector": (declared("config: {}"), "exactly one of connector"),
    "unknown connector": (declared("connector: source-fakr"), "no connector"),
    "bad cron": (declared(FAKER, 'schedule: "61 * * * *"'), "61 * * * *"),
    "unknown template variable": (
        declared('connector: "{{ nowhere }}"'),
        "line 3: field 'connector': 'nowhere' not found in scope",
    ),
    "missing variable of a template": (
        declared("connector: \"{{ env('NOT_SET_ANYWHERE') }}\""),
        "NOT_SET_ANYWHERE",
    ),
    "bad YAML": (written(f"{TYPE}attributes: [\n".encode()), "not valid YAML"),
    "empty file": (written(b""), "the file is empty"),
    "not UTF-8": (
        written(f"{TYPE}attributes:\n  connector: caf\xe9\n".encode("latin-1")),
        "line 3: the file is not UTF-8 (byte 0xe9); save it as UTF-8.",
    ),
    "unknown component type": (
        written(b"type: atlas_dagster.Conection\nattributes: {}\n"),
        "no attribute `Conection`",
    ),
    "unknown package": (written(b"type: nowhere.Connection\nattributes: {}\n"), "not found"),
    "no file": (
        lambda project, name: (project.connections / name).mkdir(),
        "has no defs.yaml",
    ),
    "Python that raises": (python("1 / 0"), "ZeroDivisionError"),
    "asset without its resource": (
        python(
            "import dagster as dg\n"
            "@dg.asset(name='NAME', required_resource_keys={'nowhere'})\n"
            "def asset(): ...\n"
        ),
        "resource with key 'nowhere'",
    ),
    "asset of another folder": (
        python("import dagster as dg\n@dg.asset(key=['good', 'events'])\ndef asset(): ...\n"),
        "good defines the asset good/events, too",
    ),
    "name of another connection": (
        declared("name: good", f"command: [{sys.executable}]", "config: {}"),
        "good",
    ),
    "unknown stream": (
        discovered(FAKER, "config: {count: 1}", "streams: [{name: user}]"),
        "did you mean users?",
    ),
    "misspelt config field": (
        discovered(FAKER, "config: {cuont: 1}"),
        "did you mean 'count'?",
    ),
}
#: Of definitions in Python beside the connections; doctor looks at connections.
ONLY_THE_SERVERS = {"asset without its resource", "asset of another folder"}
#: How often a component is loaded, at most: once each time the definitions are built (twice where
#: they do not fit together) or listed, and all that again for the reload.
LOADS = 8


def make_all(project: Project, count: int, kinds: Collection[str] = KINDS) -> None:
    for index, kind in enumerate(kinds):
        make, _ = KINDS[kind]
        for number in range(count):
            make(project, f"z{index}_{number}")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """With one healthy connection, ``good``, whose stream is known."""
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    for name in ("ATLAS_LAKE", "ATLAS_DESTINATION", "ATLAS_DEPLOYMENT"):
        monkeypatch.delenv(name, raising=False)
    with importable(tmp_path, monkeypatch) as project:
        command = json.dumps([sys.executable, "source.py"])
        project.declare("good", f"command: {command}", "config: {count: 1}")
        (project.connections / "good" / "source.py").write_text(NUMBERS_SOURCE)
        project.discover("good", {"count": 1}, [{"name": "events", "json_schema": {}}])
        yield project


def atlas(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each folder's component was loaded."""
    counted: Counter[str] = Counter()
    load = YamlDecl._load_component

    def count(decl: YamlDecl) -> Any:
        counted[Path(str(decl.loc.get_display_key(Path("/")))).parts[-1]] += 1
        return load(decl)

    monkeypatch.setattr(YamlDecl, "_load_component", count)
    return counted


def descriptions_at_the_server(defs: dg.Definitions) -> dict[str, str]:
    """What a code server sends to the web server: assets, and the list of components."""
    snap = RepositorySnap.from_def(defs.get_repository_def())
    return {node.asset_key.to_user_string(): node.description or "" for node in snap.asset_nodes}


def said_by_the_server(project: Project) -> list[str]:
    """After it has loaded, and again after it has reloaded."""
    tree = project.tree()
    for defs in (tree.build_defs(), tree.reload_with_state(["AirbyteConnection[good]"])):
        described = descriptions_at_the_server(defs)
        assert described.keys() >= {"good/events"}
    return list(described.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_server_loads_and_reloads_two_of_a_kind(
    project: Project, loads: Counter[str], kind: str
) -> None:
    make_all(project, 2, [kind])
    see_them_all_said(project, 2, [kind])
    assert max(loads.values()) <= LOADS


@pytest.mark.parametrize("kind", ["misspelt field", "bad YAML", "asset without its resource"])
def test_the_server_loads_and_reloads_fifty_of_a_kind(
    project: Project, loads: Counter[str], kind: str
) -> None:
    make_all(project, 50, [kind])
    see_them_all_said(project, 50, [kind])
    assert max(loads.values()) <= LOADS


def test_the_server_loads_and_reloads_five_of_every_kind(
    project: Project, loads: Counter[str]
) -> None:
    make_all(project, 5)
    see_them_all_said(project, 5)
    assert max(loads.values()) <= LOADS


def see_them_all_said(project: Project, count: int, kinds: Collection[str] = KINDS) -> None:
    said = said_by_the_server(project)
    for kind in kinds:
        assert sum(KINDS[kind][1] in each for each in said) >= count, kind


@pytest.mark.parametrize("count", [2, 5, 50])
def test_doctor_and_sync_beside_many_of_every_kind(
    project: Project, loads: Counter[str], count: int
) -> None:
    assert atlas("discover", "good").exit_code == 0
    make_all(project, count)
    loads.clear()

    found = [finding["message"] for finding in json.loads(atlas("doctor", "--json").stdout)]

    for kind, (_, sentence) in KINDS.items():
        if kind not in ONLY_THE_SERVERS:
            assert sum(sentence in each for each in found) >= count, kind
    assert max(loads.values()) == 1
    synced = atlas("sync", "good", "--json")
    assert synced.exit_code == 0, synced.output
    assert json.loads(synced.stdout)["streams"][0]["records"] == 3
