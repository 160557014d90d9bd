from pathlib import Path

import pytest

from atlas_dagster.runners.base import Runner
from atlas_dagster.runners.docker.runner import DockerRunner
from atlas_dagster_tests.chaos.chaotic import Chaos, script
from atlas_dagster_tests.conftest import SOURCE_CHAOS_IMAGE


@pytest.fixture(params=[pytest.param("docker", marks=pytest.mark.docker), "python"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """source-chaos in a container, and as a process."""
    if request.param == "python":
        return script()
    return DockerRunner(SOURCE_CHAOS_IMAGE, client=request.getfixturevalue("docker_client"))


@pytest.fixture
def chaos(runner: Runner, tmp_path: Path) -> Chaos:
    return Chaos(runner, tmp_path)
