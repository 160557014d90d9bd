"""A queue on the Docker engine: connectors run at once only as far as there is memory for them."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from atlas_dagster.runners.base import ConnectorCommand, ConnectorProcess
from atlas_dagster.runners.docker.memory_queue import MEMORY_LABEL
from atlas_dagster.runners.docker.runner import DockerRunner
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.runners.owner import identify
from atlas_dagster.runners.process_tags import CONNECTION_LABEL, OWNER_LABEL
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN
from atlas_dagster_tests.listening import CallbackListener
from atlas_dagster_tests.runners.docker.engines import SecondEngine, second_engine

pytestmark = pytest.mark.docker

ENDLESS = ConnectorCommand(
    "read",
    {
        "config": json.dumps({"count": 10**6, "rate": 1}).encode(),
        "catalog": json.dumps({"streams": [{"stream": {"name": "events"}}]}).encode(),
    },
    {CONNECTION_LABEL: "admission"},
)


@pytest.fixture
def engine() -> Iterator[SecondEngine]:
    with second_engine(STANDIN) as engine:
        yield engine


class Start(threading.Thread):
    """Starts a connector that may take a ``share`` of the engine's memory."""

    def __init__(self, engine: SecondEngine, share: float) -> None:
        super().__init__()
        self.told: list[str] = []
        self.process: ConnectorProcess | None = None
        client = engine.client()
        memory = int(client.info()["MemTotal"] * share)
        executor = ExecutorConfig(memory_limit=f"{memory}b", network="none")
        self._runner = DockerRunner(
            STANDIN, client=client, executor=executor, listener=CallbackListener(self.told.append)
        )
        self.start()

    def run(self) -> None:
        self.process = self._runner.start(ENDLESS)

    def ends_within(self, seconds: float) -> bool:
        self.join(seconds)
        return not self.is_alive()


def test_who_does_not_fit_waits_for_those_before(engine: SecondEngine) -> None:
    with ExitStack() as undo:

        def start(share: float) -> Start:
            started = Start(engine, share)
            undo.callback(lambda: started.process and started.process.close())
            undo.callback(started.join)
            return started

        first = start(0.5)
        assert first.ends_within(60)
        assert first.told == []
        big = start(0.7)
        while len(engine.client().api.containers(all=True)) < 2:
            time.sleep(0.05)
        time.sleep(1.1)  # the engine tells the order by the second
        small = start(0.2)  # would fit, but big came before
        assert not big.ends_within(3)
        assert not small.ends_within(1)
        assert big.told == [
            "Waiting until other connectors leave enough memory on the Docker engine (before this "
            "one: 1); lower executor.memory_limit to run more at once."
        ]
        assert first.process is not None
        first.process.close()
        assert big.ends_within(60)
        assert small.ends_within(60)


def test_who_needs_more_than_there_is_runs_alone(engine: SecondEngine) -> None:
    alone = Start(engine, 1.5)
    assert alone.ends_within(60)
    assert alone.process is not None
    alone.process.close()


@pytest.mark.parametrize("run", ["", "run:of-another-instance:"])
def test_one_whose_owner_died_in_the_queue_keeps_no_place(engine: SecondEngine, run: str) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
        labels = {MEMORY_LABEL: str(2**50), OWNER_LABEL: run + identify(owner.pid)}
        container = engine.client().containers.create(STANDIN, network_mode="none", labels=labels)
        time.sleep(1.1)  # the engine tells the order by the second
        waiting = Start(engine, 0.5)
        assert not waiting.ends_within(3)
    assert waiting.ends_within(60)
    assert waiting.process is not None
    waiting.process.close()
    container.remove()
