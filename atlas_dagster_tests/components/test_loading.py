"""A folder of connections: a broken one says why in one sentence, and its neighbours load."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap

from atlas_dagster_tests.components.connections_project import Project, importable

pytestmark = pytest.mark.dagster

BROKEN = "This connection could not be loaded. "
FIELDS = (
    "name, connector, image, manifest, command, version, cdk_version, config, validate, streams, "
    "schedule, discovery, maintenance, runner, executor, destination, translation, defs_state"
)
HEALTHY = "connector: source-faker"
HEALTHY_ASSETS = {"good/source_faker", "good/users", "good/orders"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """With one healthy connection, ``good``."""
    with importable(tmp_path, monkeypatch) as project:
        project.declare("good", HEALTHY, "config: {count: 1}")
        project.discover("good", {"count": 1})
        yield project


def only_broken(project: Project) -> str:
    """What the one broken connection says, and that the healthy one is whole."""
    described = project.descriptions()
    assert set(described) >= HEALTHY_ASSETS
    ((_, description),) = [item for item in described.items() if item[0] not in HEALTHY_ASSETS]
    assert description.startswith(BROKEN), description
    sentence = description.removeprefix(BROKEN)
    assert "Traceback" not in sentence
    assert "\n" not in sentence
    assert str(project.root) not in sentence
    # What the code server sends to the web server: it lists the components, too.
    RepositorySnap.from_def(project.definitions().get_repository_def())
    return sentence


WRONG_FIELDS = {
    "unknown field": (
        [HEALTHY, "colour: red"],
        f"shop/defs.yaml, line 4: there is no field 'colour'; the fields are {FIELDS}.",
    ),
    "misspelt field": (
        ["conector: source-faker"],
        "shop/defs.yaml, line 3: there is no field 'conector'; did you mean 'connector'?",
    ),
    "misspelt field of a stream": (
        [HEALTHY, "streams:", "  - name: users", "    sync_mod: incremental"],
        # The line is the one Dagster knows: where the list starts.
        "shop/defs.yaml, line 4: there is no field 'sync_mod'; did you mean 'sync_mode'?",
    ),
    "unknown mode of a stream": (
        [HEALTHY, "streams: [{name: users, sync_mode: incrementl}]"],
        "shop/defs.yaml, line 4: field 'streams.0.sync_mode': "
        "input should be 'full_refresh' or 'incremental'.",
    ),
    "stream without a name": (
        [HEALTHY, "streams: [{sync_mode: incremental}]"],
        "shop/defs.yaml, line 4: the field 'name' is missing.",
    ),
    "version as a number": (
        [HEALTHY, "version: 3.8"],
        "shop/defs.yaml, line 4: field 'version' must be text; put it in quotes.",
    ),
    "stream name as a number": (
        [HEALTHY, "streams: [{name: 2024}]"],
        "shop/defs.yaml, line 4: field 'streams.0.name' must be text; put it in quotes.",
    ),
    "config as a list": (
        [HEALTHY, "config: [count]"],
        "shop/defs.yaml, line 4: field 'config': input should be an object.",
    ),
    "unknown runner": (
        [HEALTHY, "runner: dokcer"],
        "shop/defs.yaml: field 'runner': input should be 'auto', 'docker', 'python' or "
        "'kubernetes'.",
    ),
    "no connector": (
        ["config: {}"],
        "shop/defs.yaml: give exactly one of connector (a registry name), image (a Docker "
        "image), manifest (the file of a declarative manifest) and command (your own program).",
    ),
    "both connector and image": (
        [HEALTHY, "image: my/own:1"],
        "shop/defs.yaml: give exactly one of connector (a registry name), image (a Docker "
        "image), manifest (the file of a declarative manifest) and command (your own program).",
    ),
    "image with a version": (
        ["image: my/own:1", 'version: "1"'],
        "shop/defs.yaml: version goes with connector; for an image, write it as the tag.",
    ),
    "connector and command": (
        [HEALTHY, "command: [python3, my_source.py]"],
        "shop/defs.yaml: give exactly one of connector (a registry name), image (a Docker "
        "image), manifest (the file of a declarative manifest) and command (your own program).",
    ),
    "image in Python": (
        ["image: my/own:1", "runner: python"],
        "shop/defs.yaml: an image cannot run with runner python; use connector.",
    ),
    "command in Docker": (
        ["command: [python3, my_source.py]", "runner: docker"],
        "shop/defs.yaml: a command cannot run with runner docker; build an image of it.",
    ),
    "command with a version": (
        ["command: [my-source]", 'version: "1"'],
        "shop/defs.yaml: version goes with connector; remove it for a command.",
    ),
    "command without words": (
        ["command: []"],
        "shop/defs.yaml: the command is empty; give a program and its arguments.",
    ),
    "unknown connector": (
        ["connector: source-fakr"],
        'There is no connector "source-fakr"; did you mean source-faker?',
    ),
    "bad cron of the maintenance": (
        [HEALTHY, "maintenance: {schedule: weekly}"],
        "shop/defs.yaml, line 4: field 'maintenance.schedule': the schedule 'weekly' is not a "
        'valid cron expression; write five fields, such as "*/15 * * * *".',
    ),
    "no time to retain": (
        [HEALTHY, 'maintenance: {schedule: "0 3 * * 0", retain_hours: 0}'],
        "shop/defs.yaml, line 4: field 'maintenance.retain_hours': "
        "use at least 1 hour, because running queries may read old files.",
    ),
    "misspelt field of the maintenance": (
        [HEALTHY, 'maintenance: {schedule: "0 3 * * 0", retain_hour: 24}'],
        "shop/defs.yaml, line 4: there is no field 'retain_hour'; did you mean 'retain_hours'?",
    ),
    "misspelt field of the schedule": (
        [HEALTHY, 'schedule: {cron: "@daily", timzone: Europe/Rome}'],
        "shop/defs.yaml, line 4: there is no field 'timzone'; did you mean 'timezone'?",
    ),
    "schedule without a cron expression": (
        [HEALTHY, "schedule: {timezone: Europe/Rome}"],
        "shop/defs.yaml, line 4: the field 'cron' is missing.",
    ),
    "bad time zone of the discovery": (
        [HEALTHY, 'discovery: {schedule: {cron: "@daily", timezone: Mars}}'],
        "shop/defs.yaml, line 4: field 'discovery.schedule': there is no time zone 'Mars'; write "
        "a name such as Europe/Rome.",
    ),
    "unknown policy": (
        [HEALTHY, "discovery: {schema_changes: propagate_fully}"],
        "shop/defs.yaml, line 4: field 'discovery.schema_changes': input should be 'ignore', "
        "'propagate_columns' or 'propagate_all'.",
    ),
    "bad cron": (
        [HEALTHY, 'schedule: "61 * * * *"'],
        "The schedule '61 * * * *' is not a valid cron expression; "
        'write five fields, such as "*/15 * * * *".',
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("attributes", "sentence"), WRONG_FIELDS.values(), ids=WRONG_FIELDS)
def test_a_wrong_field(project: Project, attributes: list[str], sentence: str) -> None:
    project.declare("shop", *attributes)

    assert only_broken(project) == sentence


WRONG_FILES = {
    "bad YAML": (
        "type: atlas_dagster.AirbyteConnection\nattributes:\n  connector: [a\n  config: {}\n",
        "shop/defs.yaml, line 4: this is not valid YAML (expected ',' or ']', but got ':').",
    ),
    "a tab": (
        "type: atlas_dagster.AirbyteConnection\nattributes:\n\tconnector: a\n",
        "shop/defs.yaml, line 3: this is not valid YAML "
        "(found character '\\t' that cannot start any token).",
    ),
    "empty": ("", "shop/defs.yaml: the file is empty; give it a type and attributes."),
    "no type": (
        f"attributes: {{{HEALTHY}}}\n",
        "shop/defs.yaml, line 1: the field 'type' is missing.",
    ),
    "misspelt attributes": (
        f"type: atlas_dagster.AirbyteConnection\natributes: {{{HEALTHY}}}\n",
        "shop/defs.yaml, line 2: there is no field 'atributes'; did you mean 'attributes'?",
    ),
    "misspelt type": (
        "type: atlas_dagster.AirbyteConection\nattributes: {}\n",
        "shop/defs.yaml: Module `atlas_dagster` has no attribute `AirbyteConection`; "
        "check the type and that its package is installed.",
    ),
    "type of a package that is not there": (
        "type: atlas_dagstr.AirbyteConnection\nattributes: {}\n",
        "shop/defs.yaml: Module `atlas_dagstr` not found; "
        "check the type and that its package is installed.",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("content", "sentence"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_wrong_file(project: Project, content: str, sentence: str) -> None:
    project.write("shop", content)

    assert only_broken(project) == sentence


@pytest.mark.slow
@pytest.mark.parametrize("name", ["my-shop", "my shop", "my.shop", "Üshop", "🛒"])
def test_a_folder_name_that_cannot_be_a_key(project: Project, name: str) -> None:
    project.declare(name, HEALTHY)

    assert f"{name}/defs.yaml: the connection name '{name}' is not valid" in only_broken(project)


def test_placeholders_of_names_that_look_alike_stay_apart(project: Project) -> None:
    for name in ("a-b", "a.b", "a_b"):
        project.declare(name, "connector: source-nowhere-to-be-found")

    described = project.descriptions()

    broken = sorted(key for key in described if key.endswith("/broken"))
    assert len(broken) == 3
    assert broken[0] == "a_b/broken"
    assert described["a_b/broken"].startswith(f"{BROKEN}There is no connector")


@pytest.mark.slow
def test_a_folder_without_a_file(project: Project) -> None:
    (project.connections / "shop").mkdir()

    problem = "The folder shop has no defs.yaml; add one, or remove the folder."
    assert only_broken(project) == problem


WRONG_FOR_THE_SOURCE = {
    "unknown stream": (
        [HEALTHY, "config: {count: 1}", "streams: [{name: user}]"],
        "The connector has no stream 'user'; did you mean users?",
    ),
    "a namespace that has no such stream": (
        [HEALTHY, "config: {count: 1}", "streams: [{name: users, namespace: sales}]"],
        "Stream 'users' is not in the namespace 'sales'; the source has it in none.",
    ),
    "one of the streams unknown": (
        [HEALTHY, "config: {count: 1}", "streams: [{name: user}, {name: orders}]"],
        "The connector has no stream 'user'; did you mean users?",
    ),
    "a mode that the stream has not": (
        [
            HEALTHY,
            "config: {count: 1}",
            "streams: [{name: users, sync_mode: incremental}, {name: orders}]",
        ],
        "Stream 'users' does not support sync_mode incremental; it supports full_refresh.",
    ),
    "bad cron": (
        [HEALTHY, "config: {count: 1}", 'schedule: "61 * * * *"'],
        "The schedule '61 * * * *' is not a valid cron expression; write five fields, such as "
        '"*/15 * * * *".',
    ),
    "bad time zone": (
        [HEALTHY, "config: {count: 1}", 'schedule: {cron: "@daily", timezone: Europe/Berln}'],
        "There is no time zone 'Europe/Berln'; did you mean Europe/Berlin?",
    ),
    "unknown connector": (
        ["connector: source-fakr", "config: {count: 1}"],
        'There is no connector "source-fakr"; did you mean source-faker?',
    ),
    "misspelt config field": (
        [HEALTHY, "config: {cuont: 1}"],
        "Connection 'shop': the connector has no config field 'cuont'; did you mean 'count'?",
    ),
    "wrong type of a config field": (
        [HEALTHY, "config: {count: many}"],
        "Connection 'shop': config field 'count' must be of type integer, not string.",
    ),
    "missing config field": (
        [HEALTHY, "config: {}"],
        "Connection 'shop': config field 'count' is missing; the connector requires it.",
    ),
    "secret of the wrong type": (
        [HEALTHY, "config: {count: 1, password: 12345}"],
        "Connection 'shop': config field 'password' must be of type string, not integer.",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attributes", "sentence"), WRONG_FOR_THE_SOURCE.values(), ids=WRONG_FOR_THE_SOURCE
)
def test_what_does_not_suit_the_discovered_source_is_said_on_the_streams_known_before(
    project: Project, attributes: list[str], sentence: str
) -> None:
    project.discover("shop", {"count": 1})
    project.declare("shop", *attributes)

    defs = project.definitions()
    specs = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}

    shop = {key: spec for key, spec in specs.items() if key not in HEALTHY_ASSETS}
    streams = [spec.key for key, spec in shop.items() if key in ("shop/users", "shop/orders")]
    assert len(shop) == len(streams) + 1
    for spec in shop.values():
        assert spec.tags["atlas/status"] == "broken"
        assert spec.description is not None
        assert f"**The current declaration cannot be synced.** {sentence}" in spec.description
        assert "last discovery" in spec.description
    if streams:
        result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
            asset_selection=streams, raise_on_error=False
        )
        assert failure_sentences(result) == [sentence]


def failure_sentences(result: dg.ExecuteInProcessResult) -> list[str]:
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    return [
        str(failure.user_failure_data and failure.user_failure_data.description)
        for failure in failures
    ]


def test_a_missing_variable_fails_in_the_step_only(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHOP_PASSWORD", raising=False)
    config = {"count": 1, "password": "{{ env.SHOP_PASSWORD }}"}
    project.discover("shop", config)
    project.declare(
        "shop",
        HEALTHY,
        "runner: python",
        'config: {count: 1, password: "{{ env.SHOP_PASSWORD }}"}',
    )
    assert {"shop/users", "good/users"} <= set(project.descriptions())

    job = project.definitions().resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(
            instance=instance,
            asset_selection=[dg.AssetKey(["shop", "users"])],
            raise_on_error=False,
        )

    (failure,) = [event for event in result.all_events if event.is_step_failure]
    said = failure.step_failure_data.user_failure_data
    assert said is not None
    assert said.description == (
        "Connection 'shop': the environment variable SHOP_PASSWORD is not set; set it where "
        "Dagster's steps run (in the shell or .env beside dagster.yaml), or change config in "
        "defs.yaml."
    )


def test_a_name_may_begin_with_a_digit(project: Project) -> None:
    project.discover("2024_shop", {"count": 1})
    project.declare(
        "2024_shop",
        HEALTHY,
        "config: {count: 1}",
        'destination: "postgresql://loader@db/warehouse"',
        "schedule: '@daily'",
        "maintenance: {schedule: '@daily'}",
    )
    write_python(project, REPORT.replace("CONNECTION", "2024_shop"))

    assert {"2024_shop/users", "report"} <= set(project.descriptions())
    RepositorySnap.from_def(project.definitions().get_repository_def())


def test_a_broken_connections_asset_fails_with_its_sentence(project: Project) -> None:
    project.declare("shop", "connector: source-fakr")

    result = (
        project.definitions()
        .resolve_implicit_global_asset_job_def()
        .execute_in_process(asset_selection=[dg.AssetKey(["shop", "broken"])], raise_on_error=False)
    )

    (failure,) = [event for event in result.all_events if event.is_step_failure]
    said = failure.step_failure_data.user_failure_data
    assert said is not None
    assert said.description == 'There is no connector "source-fakr"; did you mean source-faker?'


# Definitions in Python, beside the connections

REPORT = """
import dagster as dg
import pandas as pd

@dg.asset(ins={"users": dg.AssetIn(["CONNECTION", "users"])})
def report(users: pd.DataFrame) -> None:
    ...
"""


def write_python(project: Project, content: str) -> None:
    (project.connections / "reports").mkdir()
    (project.connections / "reports" / "defs.py").write_text(content)


def test_an_asset_takes_the_stream_of_another_folder(project: Project) -> None:
    write_python(project, REPORT.replace("CONNECTION", "good"))

    graph = project.definitions().resolve_asset_graph()

    users = dg.AssetKey(["good", "users"])
    assert graph.get(dg.AssetKey("report")).parent_keys == {users}
    assert graph.get(users).is_materializable


@pytest.mark.parametrize("connector", ["source-faker", "source-fakr"], ids=["new", "broken"])
@pytest.mark.slow
def test_what_it_takes_may_not_be_there_yet(project: Project, connector: str) -> None:
    """The connection is not discovered, or broken; the last rows it synced are still there."""
    project.declare("shop", f"connector: {connector}")
    write_python(project, REPORT.replace("CONNECTION", "shop"))

    defs = project.definitions()
    dg.Definitions.validate_loadable(defs)
    graph = defs.resolve_asset_graph()

    users = graph.get(dg.AssetKey(["shop", "users"]))
    assert users.is_external
    assert users.io_manager_key == "atlas_io"
    assert {"good/users", "report"} <= set(project.descriptions())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'; check the type"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
@pytest.mark.slow
def test_python_that_cannot_be_loaded(project: Project, content: str, sentence: str) -> None:
    write_python(project, content)

    assert only_broken(project).startswith(f"reports: {sentence}")


def test_python_is_no_connection(project: Project) -> None:
    write_python(project, REPORT)

    tree = project.tree()
    found = {part.name: tree.connections(part) for part in tree.parts()}
    assert {name: len(connections) for name, connections in found.items()} == {
        "good": 1,
        "reports": 0,
    }
