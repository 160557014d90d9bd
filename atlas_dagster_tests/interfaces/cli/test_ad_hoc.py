"""Connectors without a declaration, from any folder: spec, check, discover, read, pull."""

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from atlas_dagster.interfaces.cli import main
from atlas_dagster.interfaces.cli import output as terminal
from atlas_dagster.interfaces.cli.source import read_config
from atlas_dagster.reading.ad_hoc import DEPLOYMENT, adhoc_connection, is_adhoc
from atlas_dagster_tests.conftest import SOURCE_FAKER_IMAGE, SOURCE_STANDIN_IMAGE

ATLAS = [sys.executable, "-c", "from atlas_dagster.interfaces.cli import main; main()"]


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Outside of any project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    # And of the one that was made while this process had another width.
    monkeypatch.setattr(terminal.console, "width", 200)
    return tmp_path


def atlas(*arguments: str, config: Any = None) -> Result:
    given = [] if config is None else ["--config", json.dumps(config)]
    return CliRunner().invoke(main, [*arguments, *given])


def read(*arguments: str, count: int = 25) -> Result:
    result = atlas("read", SOURCE_STANDIN_IMAGE, *arguments, config={"count": count})
    assert result.exit_code == 0, result.output
    return result


# What a name means


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ("source-faker", "airbyte/source-faker:7.2.1"),
        ("source-faker:6.0.0", "airbyte/source-faker:6.0.0"),
        ("source-faker:latest", "airbyte/source-faker:latest"),
        ("airbyte/source-faker:6.0.0", "airbyte/source-faker:6.0.0"),
        ("my-registry.example:5000/own@sha256:abc", "my-registry.example:5000/own@sha256:abc"),
        ("mine:1.0", "mine:1.0"),
    ],
)
def test_a_name_or_an_image(source: str, meant: str) -> None:
    assert is_adhoc(source)
    connection = adhoc_connection(source, {})
    entry = connection.entry()
    assert (connection.image or (entry and entry.docker_image)) == meant


def test_a_plain_word_is_a_declared_connection() -> None:
    assert not is_adhoc("shop")


def test_each_config_has_renewals_of_its_own() -> None:
    one = adhoc_connection("source-faker", {"a": 1}).name
    assert adhoc_connection("source-faker", {"a": 1}).name == one
    assert adhoc_connection("source-faker", {"a": 2}).name != one
    assert adhoc_connection("airbyte/source-faker:1", {"a": 1}).name != one


def test_an_unknown_name_is_met_with_the_nearest() -> None:
    result = atlas("spec", "source-posgres")
    assert result.exit_code == 3
    assert result.stderr == (
        'Error: There is no connector "source-posgres"; did you mean source-postgres?\n'
    )


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (
            "nothing.json",
            "The config file nothing.json cannot be read (No such file or directory).",
        ),
        ("{secret-1234: [", "The config is neither JSON nor YAML."),
        ("list.yaml", "The config file list.yaml holds no object; write the fields that"),
    ],
)
def test_a_config_that_cannot_be_read(given: str, why: str) -> None:
    Path("list.yaml").write_text("- 1\n")
    result = atlas("check", "source-faker", "--config", given)
    assert result.exit_code == 3
    assert why in result.stderr
    assert "secret-1234" not in result.stderr


def test_configs_are_json_or_yaml() -> None:
    assert read_config('{"a": 1e5, "b": "2024-01-01"}') == {"a": 1e5, "b": "2024-01-01"}
    assert read_config("{a: 1, b: 2024-01-01}") == {"a": 1, "b": "2024-01-01"}
    assert read_config(None) == {}


# A real connector


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
    assert result.stderr.endswith(
        "Error: The config of source-faker: the connector has no config field 'cuont'; "
        "did you mean 'count'?\n"
    )
    failed = atlas("check", SOURCE_STANDIN_IMAGE, config={"fail_check": True})
    assert (failed.exit_code, failed.stdout) == (3, "")
    assert "Error: CHECK of source-standin failed: bad password\n" in failed.stderr
    passed = atlas("check", SOURCE_STANDIN_IMAGE, "--json", config={})
    assert json.loads(passed.stdout) == {"source": SOURCE_STANDIN_IMAGE, "status": "SUCCEEDED"}


@pytest.mark.docker
def test_a_config_from_stdin_or_a_file_with_a_variable(
    somewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOW_MANY", "3")
    Path("config.yaml").write_text('count: "{{ env.HOW_MANY }}"\n')
    counted = ["read", SOURCE_STANDIN_IMAGE, "--stream", "events", "--config"]
    assert len(atlas(*counted, "config.yaml").stdout.splitlines()) == 3
    piped = CliRunner().invoke(main, [*counted, "-"], input='{"count": 2}')
    assert len(piped.stdout.splitlines()) == 2
    monkeypatch.delenv("HOW_MANY")
    result = atlas(*counted, "config.yaml")
    assert result.exit_code == 3
    assert "the environment variable HOW_MANY is not set" in result.stderr


@pytest.mark.docker
def test_streams_are_listed() -> None:
    shown = atlas("discover", SOURCE_STANDIN_IMAGE, config={})
    assert "events" in shown.stdout
    told = json.loads(atlas("discover", SOURCE_STANDIN_IMAGE, "--json", config={}).stdout)
    assert "events" in [stream["name"] for stream in told["streams"]]


@pytest.mark.docker
def test_json_lines_are_the_records_as_the_source_wrote_them() -> None:
    result = read("--stream", "events", "--limit", "5")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["id"] for row in rows] == [1, 2, 3, 4, 5]
    assert "Records: events 5." in result.stderr


@pytest.mark.docker
def test_a_table_for_people() -> None:
    shown = read("--stream", "events", "--format", "table").stdout
    assert shown.splitlines()[0] == "events"
    assert "_airbyte_raw_id" not in shown
    assert sum(line.strip().startswith("20 ") for line in shown.splitlines()) == 1
    assert not any(line.strip().startswith("21 ") for line in shown.splitlines())


@pytest.mark.docker
def test_files_have_the_columns_of_a_table(somewhere: Path) -> None:
    read("--stream", "events", "--output", "rows.parquet")
    rows = pq.read_table("rows.parquet")
    assert sorted(rows["id"].to_pylist()) == list(range(1, 26))
    assert "_airbyte_extracted_at" in rows.column_names
    read("--stream", "events", "--output", "rows.csv")
    with Path("rows.csv").open() as file:
        assert [int(row["id"]) for row in csv.DictReader(file)] == list(range(1, 26))
    assert sorted(path.name for path in somewhere.iterdir()) == [
        "rows.csv",
        "rows.parquet",
        "state",
    ]


@pytest.mark.docker
def test_several_streams_go_into_a_folder(somewhere: Path) -> None:
    refused = atlas("read", SOURCE_FAKER_IMAGE, "--format", "jsonl", config={"count": 3})
    assert refused.exit_code == 3
    assert "The source has 3 streams, and jsonl holds one" in refused.stderr
    result = atlas(
        "read", SOURCE_FAKER_IMAGE, "--output", "out/", "--format", "parquet", config={"count": 3}
    )
    assert result.exit_code == 0, result.stderr
    names = ["products.parquet", "purchases.parquet", "users.parquet"]
    assert sorted(path.name for path in Path("out").iterdir()) == names
    assert pq.read_table("out/users.parquet").num_rows == 3


@pytest.mark.docker
def test_a_read_that_fails_leaves_no_file(somewhere: Path) -> None:
    result = atlas(
        *("read", SOURCE_STANDIN_IMAGE, "--stream", "events", "--output", "rows.jsonl"),
        config={"count": 40, "behaviour": "die"},
    )
    assert result.exit_code == 4
    assert "upstream went away" in result.stderr
    assert [path.name for path in somewhere.iterdir()] == ["state"]


@pytest.mark.docker
def test_a_state_file_makes_it_incremental() -> None:
    def ids(count: int) -> list[int]:
        result = read("--stream", "events", "--state", "state.json", count=count)
        return [json.loads(line)["id"] for line in result.stdout.splitlines()]

    assert ids(10) == list(range(1, 11))
    assert ids(10) == []
    assert ids(13) == [11, 12, 13]
    Path("state.json").write_text("nonsense")
    result = atlas("read", SOURCE_STANDIN_IMAGE, "--state", "state.json", config={})
    assert result.exit_code == 3
    assert "remove the file to read from the beginning" in result.stderr


@pytest.mark.docker
def test_a_reader_that_has_enough_stops_the_connector(docker_client: docker.DockerClient) -> None:
    command = [*ATLAS, "read", SOURCE_FAKER_IMAGE, "--stream", "users", "--format", "jsonl"]
    with subprocess.Popen(
        [*command, "--config", '{"count": 2000000}'], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["id"] == 1
        process.stdout.close()
        assert process.wait(timeout=120) == 141
    assert _adhoc(docker_client) == []


@pytest.mark.docker
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_what_a_killed_read_leaves_behind_the_next_one_removes(
    docker_client: docker.DockerClient, sign: signal.Signals
) -> None:
    command = [*ATLAS, "read", SOURCE_FAKER_IMAGE, "--stream", "users", "--format", "jsonl"]
    with subprocess.Popen(
        [*command, "--config", '{"count": 2000000}'], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(sign)
        process.stdout.read()
        process.wait(timeout=120)
    if sign is signal.SIGKILL:
        assert len(_adhoc(docker_client)) == 1
    read("--stream", "events", "--limit", "1")
    deadline = time.monotonic() + 60
    while _adhoc(docker_client) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert _adhoc(docker_client) == []


def _adhoc(client: docker.DockerClient) -> list[Any]:
    labels = {"label": f"atlas.deployment={DEPLOYMENT}"}
    return client.containers.list(all=True, filters=labels, ignore_removed=True)


@pytest.mark.docker
def test_pull_has_everything_ready() -> None:
    result = atlas("pull", SOURCE_FAKER_IMAGE, "source-posgres", "--json")
    assert result.exit_code == 3
    ready, unknown = json.loads(result.stdout)
    assert ready["runner"] == "docker"
    assert ready["ready"].startswith(f"{SOURCE_FAKER_IMAGE}@sha256:")
    assert unknown["error"].startswith('There is no connector "source-posgres"')


def test_the_http_server_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "atlas_dagster.interfaces.http", None)
    result = atlas("serve")
    assert result.exit_code == 3
    assert "install it: pip install 'atlas-dagster[http]'" in result.stderr
