"""A secret is where the connector reads it, and nowhere else."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import docker
import pytest

from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE
from atlas_dagster_tests.orchestration.real_connectors import RealConnection, metadata

pytestmark = pytest.mark.docker

SECRET = "hunter2-7f3a-correct horse"
TEMPLATE = "{{ env.STANDIN_PASSWORD }}"


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RealConnection:
    monkeypatch.setenv("STANDIN_PASSWORD", SECRET)
    return RealConnection.make(
        tmp_path / "lake",
        "secretive",
        SOURCE_STANDIN_IMAGE,
        config={"count": 20, "rate": 20, "password": TEMPLATE},
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


@contextmanager
def watched(client: docker.DockerClient, connection: str) -> Iterator[list[str]]:
    """What ``docker inspect`` and ``docker top`` say of each container while it runs."""
    seen: list[str] = []
    configs: list[bytes] = []
    over = threading.Event()

    def watch() -> None:
        label = f"atlas.connection={connection}"
        while not over.wait(0.05):
            for container in client.containers.list(filters={"label": label}, ignore_removed=True):
                try:
                    seen.append(json.dumps(client.api.inspect_container(container.id)))
                    seen.append(json.dumps(client.api.top(container.id)))
                    configs.append(b"".join(container.get_archive("/atlas/config.json")[0]))
                except docker.errors.APIError:
                    continue  # it has just ended

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
    assert any(SECRET.encode() in config for config in configs), "the connector was not given it"


def files_with(text: str, folder: Path) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and text.encode() in path.read_bytes()
    ]


def test_a_secret_is_in_no_event_no_log_no_table_and_no_inspection(
    standin: RealConnection, home: Path, docker_client: docker.DockerClient
) -> None:
    with dg.instance_for_test(temp_dir=str(home)) as instance:
        with watched(docker_client, "secretive") as seen:
            result = standin.run_everything(instance)
        assert result.success
        assert metadata(result, "events")["atlas/records_synced"] == 20
        events = "\n".join(str(entry) for entry in instance.all_logs(result.run_id))

    assert SECRET not in events
    # The search does find what is there: the connector's own log line, and an event.
    assert [name for name in files_with("Reading events after id 0", home) if ".out" in name]
    assert files_with("Checkpoint: 20 rows committed.", home)
    assert files_with(SECRET, home) == []
    assert files_with(SECRET, standin.lake) == []
    assert any('"--config", "/atlas/config.json"' in text for text in seen)
    assert [text for text in seen if SECRET in text] == []


def test_the_cached_catalog_knows_nothing_of_it(standin: RealConnection) -> None:
    cached = standin.discovered.encode().decode()

    assert '"airbyte_secret":true' in cached
    assert SECRET not in cached


def test_a_config_refused_in_the_step_does_not_quote_the_secret(
    standin: RealConnection, home: Path
) -> None:
    # The secret lands where the SPEC wants one of three words.
    wrong = standin.changed(behaviour=TEMPLATE)
    with dg.instance_for_test(temp_dir=str(home)) as instance:
        result = wrong.sync(instance, raise_on_error=False)

    (failure,) = [event for event in result.all_events if event.is_step_failure]
    said = failure.step_failure_data.user_failure_data
    assert said is not None
    assert said.description == (
        "Connection 'secretive': config field 'behaviour' must be one of "
        '"steady", "die", "stumble", "hang".'
    )
    assert files_with(SECRET, home) == []


def test_a_missing_variable_is_one_sentence_in_the_step(
    standin: RealConnection, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STANDIN_PASSWORD")
    with dg.instance_for_test(temp_dir=str(home)) as instance:
        result = standin.sync(instance, raise_on_error=False)

    (failure,) = [event for event in result.all_events if event.is_step_failure]
    said = failure.step_failure_data.user_failure_data
    assert said is not None
    assert said.description == (
        "Connection 'secretive': the environment variable STANDIN_PASSWORD is not set; set it "
        "where Dagster's steps run (in the shell or .env beside dagster.yaml), or change config "
        "in defs.yaml."
    )
