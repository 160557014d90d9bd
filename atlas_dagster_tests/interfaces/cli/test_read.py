"""``atlas read`` of connectors without a declaration, and of declared connections."""

import csv
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import docker
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from atlas_dagster.reading.ad_hoc import DEPLOYMENT
from atlas_dagster_tests.components.connections_project import Project
from atlas_dagster_tests.conftest import SOURCE_FAKER_IMAGE, SOURCE_STANDIN_IMAGE
from atlas_dagster_tests.interfaces.cli.command import ATLAS, atlas
from atlas_dagster_tests.interfaces.cli.conftest import STANDIN

pytestmark = pytest.mark.docker


def read(*arguments: str, count: int = 25) -> Result:
    result = atlas("read", SOURCE_STANDIN_IMAGE, *arguments, config={"count": count})
    assert result.exit_code == 0, result.output
    return result


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
    assert "3 streams" in refused.stderr
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
    assert "state.json" in result.stderr


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
    assert "'evnts'" in unknown.stderr
    assert [json.loads(line)["id"] for line in piped.stdout.splitlines()] == [1, 2, 3]
    assert filed.exit_code == 0, filed.stderr
    # Where the command was given, not where the project is.
    assert len((below / "rows.jsonl").read_text().splitlines()) == 25
    assert not (project.root / "lake").exists()
