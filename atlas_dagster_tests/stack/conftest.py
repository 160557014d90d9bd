"""One stack for all tests of this folder: its image takes minutes to build."""

import os
from collections.abc import Iterator

import docker
import pytest

from atlas_dagster_tests.conftest import STACK_PREFIX
from atlas_dagster_tests.stack.compose import Stack
from atlas_dagster_tests.stack.web import Web


@pytest.fixture(scope="package")
def stack(
    tmp_path_factory: pytest.TempPathFactory, docker_client: docker.DockerClient
) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack").resolve()
    stack = Stack(folder, f"{STACK_PREFIX}{os.getpid()}", docker_client)
    try:
        stack.up()
        yield stack
    finally:
        stack.down()
    assert stack.left_over() == []


@pytest.fixture(scope="package")
def web(stack: Stack) -> Web:
    return Web(stack.url)
