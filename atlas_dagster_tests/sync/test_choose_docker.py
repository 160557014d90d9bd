"""Docker when it can, Python when it must, and the reason said."""

import pytest

from atlas_dagster.errors import ConfigError
from atlas_dagster.runners.executor import ExecutorConfig
from atlas_dagster.sync.choose import choose_runner
from atlas_dagster.sync.connection import Connection

ABSENT = {"name": "x", "connector": "source-faker", "version": "0.0.1"}


@pytest.mark.docker
def test_an_image_that_cannot_be_had() -> None:
    executor, told = ExecutorConfig(pull="never"), list[str]()
    runner = choose_runner(Connection(**ABSENT), executor, told.append)
    assert runner.kind == "python"
    assert told == [
        "source-faker runs from its Python package airbyte-source-faker 0.0.1, because Docker "
        "cannot run it: The image airbyte/source-faker:0.0.1 is not on the Docker engine and "
        "executor.pull is never; run `docker pull airbyte/source-faker:0.0.1`, or set "
        "executor.pull to missing."
    ]
    with pytest.raises(ConfigError, match=r"executor\.pull is never"):
        choose_runner(Connection(**ABSENT, runner="docker"), executor, told.append)


def test_a_context_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("DOCKER_CONTEXT", "nowhere")
    told: list[str] = []
    runner = choose_runner(Connection(**ABSENT), ExecutorConfig(), told.append)
    assert runner.kind == "python"
    assert "because Docker cannot run it: There is no Docker context 'nowhere'" in told[0]
    with pytest.raises(ConfigError, match="There is no Docker context 'nowhere'"):
        choose_runner(Connection(**ABSENT, runner="docker"), ExecutorConfig(), told.append)
