"""Where a connection runs, what is said about it, and what comes before."""

from pathlib import Path
from typing import Any

import pytest

from atlas_dagster.config.renewable_config import FileConfigStore
from atlas_dagster.errors import ConfigError, MissingVariableError, RunnerUnavailableError
from atlas_dagster.protocol.messages import Spec
from atlas_dagster.registry import PublishedManifest, get_connector_image, get_connector_info
from atlas_dagster.runners.base import Runner
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.source import open_connector as source
from atlas_dagster.source import runner_choice as choose
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.connector_ref import ConnectorRef
from atlas_dagster.source.discovered_catalog import discover
from atlas_dagster.source.open_connector import open_connector
from atlas_dagster.source.run_context import RunContext
from atlas_dagster.source.runner_choice import choose_runner
from atlas_dagster_tests.listening import CallbackListener

MANIFEST = (
    b"{type: DeclarativeSource, version: 6.50.0, spec: {connection_specification: {type: object}}}"
)
BECAUSE = "because Docker cannot run it: No Docker engine answers."


@pytest.fixture
def no_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str | None) -> None:
        raise RunnerUnavailableError("No Docker engine answers", "start Docker")

    monkeypatch.setattr(choose, "connect", refuse)


@pytest.fixture
def pulled(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that has every image."""
    monkeypatch.setattr(choose, "connect", lambda _: None)
    monkeypatch.setattr(choose.DockerRunner, "ensure_image", lambda *_: {"Config": {}})


def chosen(**fields: Any) -> tuple[Runner, str]:
    said: list[str] = []
    runner = choose_runner(
        ConnectorRef.resolve(Connection(name="shop", **fields)),
        ExecutorConfig(),
        CallbackListener(said.append),
    )
    (sentence,) = said
    return runner, sentence


def test_an_engine_is_preferred(pulled: None, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_bytes(MANIFEST)
    runner, said = chosen(manifest="own.yaml", folder=tmp_path)
    image = "airbyte/source-declarative-manifest:6.50.0"
    assert (runner.kind, runner.reference) == ("docker", f"own.yaml ({image})")
    assert said == f"source-shop runs in Docker, from the image {image}, the CDK it is written for."
    for declared in ({"cdk_version": "6.60.0"}, {"version": "6.60.0"}):
        runner, said = chosen(manifest="own.yaml", folder=tmp_path, **declared)
        assert runner.reference == "own.yaml (airbyte/source-declarative-manifest:6.60.0)"
        assert said.endswith(":6.60.0, the CDK that the connection declares.")
    runner, _ = chosen(connector="source-pokeapi", version="1.2.3")
    assert runner.reference == "airbyte/source-pokeapi:1.2.3"


def test_without_an_engine_a_package_is_taken(no_docker: None) -> None:
    runner, said = chosen(connector="source-faker", version="7.2.1")
    assert runner.reference == "airbyte-source-faker==7.2.1"
    assert said == (
        f"source-faker runs from its Python package airbyte-source-faker 7.2.1, {BECAUSE}"
    )


def test_without_an_engine_or_package_the_published_manifest_is_taken(
    no_docker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cdk, ran, why in (
        ("6.48.10", "6.48.10", "the CDK it was published with"),
        (None, "6.50.0", "the CDK it is written for"),
    ):
        published = PublishedManifest(MANIFEST, cdk_version=cdk)
        monkeypatch.setattr(choose, "fetch_manifest", lambda entry, found=published: found)
        runner, said = chosen(connector="source-pokeapi", version="1.2.3")
        assert runner.reference == f"source-pokeapi 1.2.3 (airbyte-cdk=={ran})"
        assert said == (
            f"source-pokeapi runs from its manifest with the Python package airbyte-cdk=={ran}, "
            f"{why}, {BECAUSE}"
        )


def test_latest_is_pulled_unless_the_user_says_otherwise(pulled: None) -> None:
    runner, said = chosen(connector="source-faker", version="latest")
    assert said == "source-faker runs in Docker, from the image airbyte/source-faker:latest."
    assert runner.executor.pull == "always"
    runner, _ = chosen(
        connector="source-faker", version="latest", executor=ExecutorConfig(pull="never")
    )
    assert runner.executor.pull == "never"
    runner, _ = chosen(image="my/own:latest")
    assert runner.executor.pull == "missing"


def test_the_version_behind_latest_is_said(pulled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    image = {"Config": {"Labels": {"io.airbyte.version": "7.2.1"}}, "Id": "sha256:abc"}
    monkeypatch.setattr(choose.DockerRunner, "ensure_image", lambda *_: image)
    runner, said = chosen(connector="source-faker", version="latest")
    assert said == "source-faker runs in Docker, from the image airbyte/source-faker:latest=7.2.1."
    assert runner.identity() == "airbyte/source-faker:latest=7.2.1@sha256:abc"


def test_latest_without_an_engine_is_the_newest_that_is_published(
    no_docker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "newest_version", lambda package: "9.9.0")
    runner, said = chosen(connector="source-faker", version="latest")
    assert runner.reference == "airbyte-source-faker==9.9.0"
    assert said.startswith(
        "source-faker runs from its Python package airbyte-source-faker 9.9.0, the newest, because"
    )
    published = PublishedManifest(MANIFEST)
    monkeypatch.setattr(choose, "fetch_manifest", lambda entry: published)
    monkeypatch.setattr(choose, "fetch_newest_version", lambda entry: "3.2.1")
    runner, said = chosen(connector="source-pokeapi", version="latest")
    assert runner.reference == "source-pokeapi 3.2.1 (airbyte-cdk==6.50.0)"
    assert said.startswith("source-pokeapi runs from its manifest of version 3.2.1, the newest, ")


def test_auto_is_the_newest_that_installs_where_the_lists_does_not(
    no_docker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = get_connector_info("source-faker").tag
    for found, note in (
        (listed, ""),
        ("6.0.0", f", the newest release that can be installed ({listed} cannot)"),
    ):
        monkeypatch.setattr(choose, "install", lambda *_, found=found: found)
        runner, said = chosen(connector="source-faker", version="auto")
        assert runner.reference == f"airbyte-source-faker=={found}"
        assert said == (
            f"source-faker runs from its Python package airbyte-source-faker {found}{note}, "
            f"{BECAUSE}"
        )


def test_auto_in_docker_is_the_lists_version(pulled: None) -> None:
    runner, _ = chosen(connector="source-faker", version="auto")
    assert runner.reference == get_connector_image("source-faker")


def test_latest_of_ones_own_manifest_is_the_newest_cdk(
    no_docker: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_bytes(MANIFEST)
    monkeypatch.setattr(choose, "newest_version", lambda package: "99.0.0")
    for declared in ({"cdk_version": "latest"}, {"version": "latest"}):
        runner, _ = chosen(manifest="own.yaml", folder=tmp_path, **declared)
        assert runner.reference == "own.yaml (airbyte-cdk==99.0.0)"
    runner, _ = chosen(manifest="own.yaml", folder=tmp_path, version="auto")
    assert runner.reference == "own.yaml (airbyte-cdk==6.50.0)"


@pytest.mark.parametrize(
    "fields",
    [
        {"connector": "source-pokeapi"},
        {"image": "my/own:1"},
        {"manifest": "own.yaml", "version": "6.60.0"},
    ],
)
def test_a_cdk_is_declared_for_a_manifest_alone(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"cdk_version.* manifest"):
        Connection(name="shop", cdk_version="6.60.0", **fields)  # type: ignore[arg-type]


def test_a_connector_in_another_language_needs_an_engine(no_docker: None) -> None:
    with pytest.raises(RunnerUnavailableError, match="Docker engine"):
        chosen(connector="source-postgres")
    with pytest.raises(ConfigError, match=r"Python package.*runner: docker"):
        chosen(connector="source-postgres", runner="python")


def test_docker_when_asked_for_has_no_other_way(no_docker: None) -> None:
    with pytest.raises(RunnerUnavailableError, match="Docker engine"):
        chosen(connector="source-faker", runner="docker")


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        chosen(manifest="own.yaml", folder=tmp_path)
    assert str(caught.value) == (
        f"Connection 'shop': the manifest {tmp_path}/own.yaml cannot be read (No such file or "
        "directory); give its path from the connection's folder."
    )


def test_a_missing_variable_comes_before_any_image_or_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def never(*_: object) -> Runner:
        raise AssertionError("a runner was chosen")

    monkeypatch.setattr(source, "choose_runner", never)
    caller = RunContext(
        deployment="tests",
        owner="run:1",
        environ={},
        configs=FileConfigStore(tmp_path),
    )
    connection = Connection(
        name="shop", connector="source-faker", config={"count": "{{ env.SHOP_COUNT }}"}
    )
    with pytest.raises(MissingVariableError, match="SHOP_COUNT is not set"):
        discover(connection, caller, None)
    with (
        pytest.raises(MissingVariableError, match="SHOP_COUNT is not set"),
        open_connector(connection, caller, spec=Spec({})),
    ):
        pass
