"""A connector called by files and heard through FIFOs: as a process here, and in a container."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from atlas_dagster.errors import RunnerUnavailableError
from atlas_dagster.runners import pod as fifo
from atlas_dagster.runners.base import ConnectorCommand, ConnectorProcess, ExitStatus, Verb
from atlas_dagster.runners.pod import AGENT, FifoRunner
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN

#: Plays what its config says, as Python.
CONNECTOR = """
import json, sys
exec(json.load(open(sys.argv[sys.argv.index("--config") + 1]))["script"])
"""


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[FifoRunner]:
    """Beside an agent, which is a process of this machine."""
    (tmp_path / "connector.py").write_text(CONNECTOR)
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "ATLAS_FOLDER": str(tmp_path),
        "AIRBYTE_ENTRYPOINT": f'{sys.executable} "{tmp_path}/connector.py"',
    }
    agent = subprocess.Popen(["sh", "-c", AGENT], env=environment)
    runner = FifoRunner(tmp_path, "my/source:1")
    try:
        yield runner
        runner.finish()
        assert agent.wait(10) == 0
    finally:
        agent.kill()
        agent.wait()


def start(runner: FifoRunner, script: str, verb: Verb = "read") -> ConnectorProcess:
    config = json.dumps({"script": script}).encode()
    return runner.start(ConnectorCommand(verb, {"config": config}, environment={"MARK": "a b=c"}))


def heard(process: ConnectorProcess) -> dict[str, bytes]:
    said = {"stdout": b"", "stderr": b"", "idle": b""}
    for channel, piece in process.output():
        said[channel] += piece
    return said


@pytest.mark.slow
def test_calls_one_after_the_other(runner: FifoRunner, tmp_path: Path) -> None:
    for number in (1, 2):
        script = f"import os; print(sys.argv[1], os.environ['MARK']); sys.exit({number})"
        with start(runner, script, "check") as process:
            assert heard(process)["stdout"] == b"check a b=c\n"
            assert process.wait() == ExitStatus(number)
        assert [path.name for path in tmp_path.iterdir()] == ["connector.py"]  # no config


@pytest.mark.slow
def test_both_channels_and_much_of_them(runner: FifoRunner) -> None:
    script = "sys.stdout.write('x' * 5_000_000); sys.stderr.write('y' * 3_000_000)"
    with start(runner, script) as process:
        said = heard(process)
        assert (len(said["stdout"]), len(said["stderr"])) == (5_000_000, 3_000_000)
        assert process.wait() == ExitStatus(0)


@pytest.mark.slow
def test_silence_is_told(runner: FifoRunner) -> None:
    with start(runner, "import time; time.sleep(2.5)") as process:
        assert [channel for channel, _ in process.output()].count("idle") >= 2


@pytest.mark.slow
def test_who_is_stopped_may_say_goodbye(runner: FifoRunner, tmp_path: Path) -> None:
    goodbye = tmp_path / "goodbye"
    script = f"""
import pathlib, signal, time
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(goodbye)!r}).touch(), sys.exit(0)))
print("ready", flush=True)
time.sleep(60)
"""
    with start(runner, script) as process:
        assert next(process.output()) == ("stdout", b"ready\n")
    assert goodbye.exists()
    with start(runner, "print('again')") as process:  # the agent goes on
        assert heard(process)["stdout"] == b"again\n"


@pytest.mark.slow
def test_a_child_that_holds_stdout_is_not_waited_for(runner: FifoRunner) -> None:
    script = """
import subprocess
subprocess.Popen(["sleep", "30"], start_new_session=True)
print("done")
"""
    began = time.monotonic()
    with start(runner, script) as process:
        assert heard(process)["stdout"] == b"done\n"
        assert process.wait() == ExitStatus(0)
    assert time.monotonic() - began < 20


@pytest.mark.slow
def test_a_container_that_is_killed_counts_as_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fifo, "_EXIT_SECONDS", 0.5)
    monkeypatch.setattr(fifo, "STOP_GRACE_SECONDS", 0.5)
    environment = {
        "PATH": "/usr/bin:/bin",
        "ATLAS_FOLDER": str(tmp_path),
        "AIRBYTE_ENTRYPOINT": "sh -c 'echo begun; kill -9 0' #",
    }
    with (
        subprocess.Popen(["setsid", "sh", "-c", AGENT], env=environment),
        FifoRunner(tmp_path, "my/source:1").start(ConnectorCommand("read")) as process,
    ):
        assert heard(process)["stdout"] == b"begun\n"
        assert process.wait() == ExitStatus(137)


@pytest.mark.slow
def test_an_image_that_is_no_connector_says_so(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "ATLAS_FOLDER": str(tmp_path)}
    with subprocess.Popen(["sh", "-c", AGENT], env=environment):
        runner = FifoRunner(tmp_path, "my/source:1")
        with runner.start(ConnectorCommand("spec")) as process:
            assert b"this image is no Airbyte connector" in heard(process)["stderr"]
            assert process.wait().code != 0
        runner.finish()


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(RunnerUnavailableError, match=r"my/source:1 cannot be called: .*free space"):
        FifoRunner(tmp_path / "away", "my/source:1").start(ConnectorCommand("spec"))


@pytest.mark.docker
def test_a_real_image(docker_client: docker.DockerClient, tmp_path: Path) -> None:
    """As in a pod: the connector's container and ours share nothing but a folder and a user."""
    tmp_path.chmod(0o777)
    entrypoint = docker_client.images.get(STANDIN).attrs["Config"]["Entrypoint"]
    container = docker_client.containers.run(
        STANDIN,
        entrypoint=["sh", "-c", AGENT],
        environment={"ATLAS_FOLDER": str(tmp_path), "AIRBYTE_ENTRYPOINT": " ".join(entrypoint)},
        volumes={str(tmp_path): {"bind": str(tmp_path)}},
        network_mode="none",
        user="0",
        detach=True,
    )
    try:
        runner = FifoRunner(tmp_path, STANDIN)
        config = json.dumps({"count": 20_000}).encode()
        catalog = json.dumps({"streams": [{"stream": {"name": "events"}}]}).encode()
        files = {"config": config, "catalog": catalog}
        with runner.start(ConnectorCommand("read", files)) as process:
            said = heard(process)
            assert process.wait() == ExitStatus(0)
        assert said["stdout"].count(b'"RECORD"') == 20_000
        runner.finish()
        assert container.wait(timeout=10)["StatusCode"] == 0
    finally:
        container.remove(force=True)


@pytest.mark.slow
def test_a_container_that_starts_late_is_waited_for(tmp_path: Path) -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "ATLAS_FOLDER": str(tmp_path),
        "AIRBYTE_ENTRYPOINT": "echo late #",
    }
    with subprocess.Popen(["sh", "-c", f"sleep 1.5\n{AGENT}"], env=environment):
        runner = FifoRunner(tmp_path, "my/source:1")
        began = time.monotonic()
        with runner.start(ConnectorCommand("spec")) as process:
            assert time.monotonic() - began > 1.4  # none of it is the connector's own time
            assert heard(process)["stdout"] == b"late\n"
        runner.finish()


@pytest.mark.slow
def test_a_container_that_never_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fifo, "_AGENT_SECONDS", 0.3)
    with pytest.raises(RunnerUnavailableError, match=r"my/source:1 .*0\.3 sec"):
        FifoRunner(tmp_path, "my/source:1").start(ConnectorCommand("spec", {"config": b"{}"}))
    assert [*tmp_path.iterdir()] == []  # no config
