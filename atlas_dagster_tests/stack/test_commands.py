"""`docker compose run atlas …` beside a daemon that looks after runs."""

import pytest

from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN
from atlas_dagster_tests.e2e.project import APPEND
from atlas_dagster_tests.e2e.web_server import wait_until
from atlas_dagster_tests.stack.compose import Stack
from atlas_dagster_tests.stack.web import Web

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


def test_a_sync_is_left_alone_however_long_it_takes(stack: Stack, web: Web) -> None:
    """The daemon asks every 30 seconds for the container of each run."""
    config = {"count": 350, "rate": 10}
    stack.declare("commanded", image=STANDIN, config=config, streams=APPEND)
    stack.atlas("discover", "commanded")
    said = stack.atlas("sync", "commanded")
    assert "350" in said
    assert stack.ids("commanded") == [*range(1, 351)]
    assert stack.connectors("commanded") == []


def test_what_a_killed_command_leaves_is_removed(stack: Stack, web: Web) -> None:
    """Its process was one of another host, as far as other containers can tell."""
    config = {"count": 10_000, "rate": 10}
    stack.declare("abandoned", image=STANDIN, config=config, streams=APPEND)
    stack.atlas("discover", "abandoned")
    arguments = ["read", "abandoned", "--stream", "events", "--format", "jsonl"]
    command = stack.compose("run", "-d", "atlas", *arguments).split()[-1]
    wait_until("the connector runs", lambda: stack.connectors("abandoned"), seconds=120)
    assert "No connectors" in stack.atlas("reap")
    assert stack.connectors("abandoned")
    stack.client.containers.get(command).remove(force=True)
    stack.atlas("reap")
    assert stack.connectors("abandoned") == []
