"""What the doctor says of a machine and of connections, before anything runs."""

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import dagster as dg
import docker
import pytest

from atlas_dagster.errors import RunnerUnavailableError
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.operations import doctor as checkup
from atlas_dagster.orchestration.operations.doctor import Finding, Subject, examine
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.connector_ref import ConnectorRef
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE
from atlas_dagster_tests.orchestration.connections import USERS, found

_Usage = namedtuple("_Usage", "total used free")


@pytest.fixture
def no_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(host: str | None) -> None:
        raise RunnerUnavailableError(f"No Docker engine answers at {host}", "start Docker")

    monkeypatch.setattr(checkup, "connect", refuse)


def connection(name: str = "shop", **fields: Any) -> Connection:
    return Connection(name=name, **{"connector": "source-faker", **fields})


def subject(name: str = "shop", **fields: Any) -> Subject:
    declared = connection(name, **fields)
    return Subject(name, ConnectorRef.resolve(declared), found(declared, [USERS]))


def examined(lake: Path, *subjects: Subject) -> list[Finding]:
    with dg.DagsterInstance.ephemeral() as instance:
        return list(examine(instance, AtlasResource(destination=str(lake)), subjects))


def bad(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(each.about, each.verdict, each.message) for each in findings if each.verdict != "ok"]


def test_without_docker_what_runs_in_python_is_well(no_docker: None, tmp_path: Path) -> None:
    findings = examined(tmp_path, subject())
    assert bad(findings) == [
        ("Docker", "warning", "No Docker engine answers at None; start Docker.")
    ]
    assert findings[-1] == Finding("Connection shop", "ok", "1 stream, into deltalake")
    assert [each.about for each in findings[:3]] == ["Versions", "Dagster's storage", "Disk"]


def test_without_docker_the_others_are_named(no_docker: None, tmp_path: Path) -> None:
    others = (
        subject("java", connector="source-postgres"),
        subject("image", connector=None, image="my/own:1"),
        subject("asked", runner="docker"),
        subject("python"),
        subject("command", connector=None, command=["true"]),
    )
    (finding,) = bad(examined(tmp_path, *others))
    assert finding[:2] == ("Docker", "error")
    assert finding[2].endswith("start Docker. java, image, asked cannot run without it.")


def test_each_engine_is_looked_at(no_docker: None, tmp_path: Path) -> None:
    away = subject(
        "away", connector="source-postgres", executor={"docker_host": "tcp://127.0.0.1:9"}
    )
    (own, other) = bad(examined(tmp_path, subject(), away))
    assert own[:2] == ("Docker", "warning")
    assert other[:2] == ("Docker at tcp://127.0.0.1:9", "error")


def test_missing_variables_are_named(
    no_docker: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_KNOWN", "x")
    config = {"a": "{{ env.SHOP_KNOWN }}", "b": ["{{ env.SHOP_B }}"]}
    place = "postgresql://loader:{{ env.SHOP_A }}@127.0.0.1:9/warehouse"
    findings = bad(examined(tmp_path, subject(config=config, destination=place)))
    assert findings[1:] == [
        (
            "Connection shop",
            "error",
            "SHOP_A, SHOP_B is not set; set it in the environment or in .env.",
        )
    ]


def test_a_destination_that_does_not_answer(no_docker: None, tmp_path: Path) -> None:
    place = "postgresql://loader:hunter2@127.0.0.1:9/warehouse"
    _, (about, verdict, message) = bad(examined(tmp_path, subject(destination=place)))
    assert (about, verdict) == ("Connection shop", "error")
    assert message.startswith("Its destination cannot be opened: ")
    assert "hunter2" not in message


def test_a_declaration_that_cannot_be_loaded(no_docker: None, tmp_path: Path) -> None:
    broken = Subject("shop", None, problem="shop/defs.yaml: there is no field 'conector'.")
    assert bad(examined(tmp_path, broken))[1:] == [("Connection shop", "error", broken.problem)]


def test_streams_that_are_not_known_yet(no_docker: None, tmp_path: Path) -> None:
    new = Subject("shop", ConnectorRef.resolve(connection()))
    assert bad(examined(tmp_path, new))[1:] == [
        ("Connection shop", "warning", "Its streams are not known yet; run: atlas discover shop")
    ]


@pytest.mark.parametrize(
    ("free", "verdict"), [(50 * 10**9, "ok"), (5 * 10**9, "warning"), (10**8, "error")]
)
def test_a_disk_that_fills_up(
    no_docker: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(10**11, 10**11 - free, free))
    disks = {each.verdict for each in examined(tmp_path) if each.about == "Disk"}
    assert disks == {verdict}


@pytest.mark.docker
def test_images_that_are_not_there_yet(tmp_path: Path, docker_client: docker.DockerClient) -> None:
    there = subject("there", connector=None, image=SOURCE_STANDIN_IMAGE)
    gone = subject("gone", connector="source-postgres", version="0.0.1")
    findings = examined(tmp_path, there, gone)
    assert bad(findings) == [
        (
            "Connection gone",
            "warning",
            "airbyte/source-postgres:0.0.1 is not pulled yet; to pull it now, run: atlas pull gone",
        )
    ]
    (engine,) = [each for each in findings if each.about == "Docker"]
    assert docker_client.version()["Version"] in engine.message
