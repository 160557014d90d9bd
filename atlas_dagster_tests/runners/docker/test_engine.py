"""Finding the engine: addresses, contexts, TLS, and what is said when there is none."""

import hashlib
import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import docker
import pytest
import requests

from atlas_dagster.errors import AtlasError, ConfigError, RunnerUnavailableError
from atlas_dagster.runners.base import ConnectorCommand, ExitStatus
from atlas_dagster.runners.docker.engine import connect, locate_engine
from atlas_dagster.runners.docker.runner import DockerRunner
from atlas_dagster.runners.process_tags import CONNECTION_LABEL
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN
from atlas_dagster_tests.runners.docker.engines import SOCKET, Certificates, behind_port

CATALOG = {"streams": [{"stream": {"name": "events"}}]}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of the Docker CLI, and nothing said by the environment."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.made_in(tmp_path_factory.mktemp("certificates"))


def make_context(
    folder: Path, name: str, host: str, tls: dict[str, Path] | None = None, **endpoint: Any
) -> None:
    """As ``docker context create`` writes it."""
    key = hashlib.sha256(name.encode()).hexdigest()
    meta = folder / "contexts" / "meta" / key / "meta.json"
    meta.parent.mkdir(parents=True)
    endpoints = {"docker": {"Host": host, "SkipTLSVerify": False, **endpoint}}
    meta.write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": endpoints}))
    for file, source in (tls or {}).items():
        copy = folder / "contexts" / "tls" / key / "docker" / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())


def refusal(kind: type[AtlasError]) -> str:
    with pytest.raises(kind) as failure:
        connect()
    assert "\n" not in str(failure.value)
    return str(failure.value)


# --- No engine


def test_nothing_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    assert refusal(RunnerUnavailableError) == (
        f"There is no Docker engine here: unix://{tmp_path}/none.sock does not exist; "
        "install or start Docker, or point DOCKER_HOST or a Docker context at an engine."
    )


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for sockets, whose paths must be short."""
    path = Path(f"/tmp/atlas-engine-{os.getpid()}")
    path.mkdir()
    yield path
    subprocess.run(["rm", "-r", path], check=True)


def test_nobody_listens_at_the_socket(monkeypatch: pytest.MonkeyPatch, short: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(short / "down.sock"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{short}/down.sock")
    assert refusal(RunnerUnavailableError).startswith(
        f"The Docker engine is down: unix://{short}/down.sock exists but does not answer; start"
    )


@pytest.mark.slow
def test_no_permission(monkeypatch: pytest.MonkeyPatch, short: Path) -> None:
    """Tried as another user, as root may use every socket."""
    program = (
        "import os\n"
        "from atlas_dagster.runners.docker.engine import connect\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "connect()"
    )
    environ = {**os.environ, "DOCKER_HOST": f"unix://{short}/closed.sock", "HOME": "/"}
    with socket.socket(socket.AF_UNIX) as closed:
        closed.bind(str(short / "closed.sock"))
        closed.listen()
        (short / "closed.sock").chmod(0)
        ended = subprocess.run(
            [sys.executable, "-c", program], env=environ, capture_output=True, text=True
        )
    last = ended.stderr.splitlines()[-1]
    assert "ConfigError: The user with id " in last
    assert "has no permission to use the Docker engine" in last
    assert "sudo usermod -aG docker" in last


def test_nobody_listens_at_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    assert refusal(RunnerUnavailableError) == (
        "No Docker engine answers at tcp://127.0.0.1:1 (Connection refused); "
        "start Docker, or point DOCKER_HOST or a Docker context at an engine."
    )


def test_ssh_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://ann@build:2222")
    said = refusal(ConfigError)
    assert "`ssh -nNT -L /tmp/docker.sock:/var/run/docker.sock -p 2222 ann@build`" in said
    assert "set DOCKER_HOST=unix:///tmp/docker.sock" in said


@pytest.mark.parametrize("host", ["ftp://x", "tcp://", "nonsense::"])
def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(AtlasError, match=re.escape(host)):
        connect()


# --- Contexts


@pytest.mark.docker
def test_contexts_in_the_order_of_the_docker_cli(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    make_context(folder, "good", f"unix://{SOCKET}")
    make_context(folder, "bad", "tcp://127.0.0.1:1")
    monkeypatch.setenv("DOCKER_CONTEXT", "good")
    assert connect().ping()  # and there is no config.json
    (folder / "config.json").write_text(json.dumps({"currentContext": "bad"}))
    assert connect().ping()
    monkeypatch.delenv("DOCKER_CONTEXT")
    assert "tcp://127.0.0.1:1" in refusal(RunnerUnavailableError)
    monkeypatch.setenv("DOCKER_CONTEXT", "default")
    assert connect().ping()
    monkeypatch.setenv("DOCKER_CONTEXT", "bad")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{SOCKET}")
    assert connect().ping()


def test_a_context_that_does_not_exist(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("DOCKER_CONTEXT", "nowhere")
    assert refusal(ConfigError).startswith(f"There is no Docker context 'nowhere' in {folder}; ")


def test_a_context_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    make_context(folder, "torn", "unix:///x")
    next(folder.glob("contexts/meta/*/meta.json")).write_text("{")
    monkeypatch.setenv("DOCKER_CONTEXT", "torn")
    assert "'torn'" in refusal(ConfigError)


# --- TLS and TCP


def run_through(client: docker.DockerClient) -> None:
    """A READ of many megabytes with a consumer that pauses, silence, and nothing left open."""
    runner = DockerRunner(STANDIN, client=client)
    files = {"catalog": json.dumps(CATALOG).encode()}

    def start(config: dict[str, Any]) -> Any:
        given = {"config": json.dumps(config).encode(), **files}
        return runner.start(ConnectorCommand("read", given, {CONNECTION_LABEL: "engine_test"}))

    size, paused, before = 0, False, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with start({"count": 60_000}) as process:
        for channel, piece in process.output():
            assert channel != "stderr", piece
            size += len(piece)
            if size > 1_000_000 and not paused:
                paused = True
                time.sleep(1)
        assert process.wait() == ExitStatus(0)
    assert size > 10_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024
    started = time.monotonic()
    with start({"behaviour": "hang"}) as process:
        assert next(channel for channel, _ in process.output() if channel == "idle") == "idle"
    assert time.monotonic() - started < 8


@pytest.mark.docker
def test_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    with behind_port() as port:
        monkeypatch.setenv("DOCKER_HOST", port.address)
        client = connect()
        assert locate_engine(client) == "here"
        run_through(client)


@pytest.mark.docker
def test_the_place_of_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect()
    assert locate_engine(client) == "here"
    monkeypatch.setattr(socket, "gethostname", lambda: "another")  # its socket is forwarded
    assert locate_engine(client) == "elsewhere"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert locate_engine(client) == "virtual machine"


@pytest.mark.docker
def test_a_lost_engine_is_noticed_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_dagster.runners.docker.runner._CHECK_AFTER", 1)
    with behind_port() as port:
        runner = DockerRunner(STANDIN, client=docker.DockerClient(port.address))
        files = {"config": b'{"behaviour": "hang"}', "catalog": json.dumps(CATALOG).encode()}
        command = ConnectorCommand("read", files, {CONNECTION_LABEL: "engine_test"})
        with runner.start(command) as process:
            output = process.output()
            while next(output)[0] != "idle":
                pass
            inspect = runner._client.api.inspect_container
            lost = requests.ConnectionError("No route to host")
            monkeypatch.setattr(runner._client.api, "inspect_container", Mock(side_effect=lost))
            with pytest.raises(RunnerUnavailableError, match="No route to host"):
                next(output)
            monkeypatch.setattr(runner._client.api, "inspect_container", inspect)


@pytest.mark.docker
@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_tls(
    monkeypatch: pytest.MonkeyPatch,
    certificates: Certificates,
    folder: Path,
) -> None:
    # The CA of the machine's proxy, say, which must not replace the engine's own.
    (folder / "other.pem").write_text("")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(folder / "other.pem"))
    with behind_port(certificates.server()) as port:
        address = port.address
        monkeypatch.setenv("DOCKER_HOST", address)
        monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
        monkeypatch.setenv("DOCKER_CERT_PATH", str(certificates.folder))
        run_through(connect())
        for name in ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
            monkeypatch.delenv(name)
        tls = {name: certificates.folder / name for name in ("ca.pem", "cert.pem", "key.pem")}
        make_context(folder, "far", address, tls)
        monkeypatch.setenv("DOCKER_CONTEXT", "far")
        assert connect().ping()
        make_context(folder, "trusting", address, tls, SkipTLSVerify=True)
        monkeypatch.setenv("DOCKER_CONTEXT", "trusting")
        assert connect().ping()


@pytest.mark.docker
def test_tls_trouble(
    monkeypatch: pytest.MonkeyPatch, certificates: Certificates, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    other = tmp_path / "other"
    other.mkdir()
    with behind_port(certificates.server()) as port:
        monkeypatch.setenv("DOCKER_HOST", port.address)
        monkeypatch.setenv("DOCKER_CERT_PATH", str(Certificates.made_in(other).folder))
        said = refusal(ConfigError)
        assert "There is no TLS connection to the Docker engine at tcp://127.0.0.1" in said
        assert "certificate" in said
        (other / "ca.pem").write_bytes((certificates.folder / "ca.pem").read_bytes())
        said = refusal(ConfigError)  # the engine does not trust our certificate
        assert "There is no TLS connection" in said
        (other / "key.pem").unlink()
        assert "Path to a certificate and key files must be provided" in refusal(ConfigError)
    with behind_port() as port:
        monkeypatch.setenv("DOCKER_HOST", port.address)
        monkeypatch.setenv("DOCKER_CERT_PATH", str(certificates.folder))
        assert "There is no TLS connection" in refusal(ConfigError)


@pytest.mark.docker
def test_no_connection_is_left_open(docker_client: docker.DockerClient) -> None:
    runner = DockerRunner(STANDIN, client=connect())

    def spec() -> int:
        with runner.start(ConnectorCommand("spec", {}, {CONNECTION_LABEL: "engine_test"})) as run:
            for _ in run.output():
                pass
        return len(list(Path("/proc/self/fd").iterdir()))

    # docker-py keeps up to 25 idle connections to a unix socket, one per address asked for.
    counts = [spec() for _ in range(8)]
    assert max(counts[4:]) - max(counts[:5]) <= 2
