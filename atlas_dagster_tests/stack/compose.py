"""The stack of docker-compose.yml, brought up beside whatever else runs on this machine."""

import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker
import pyarrow as pa
import pytest
import yaml
from cryptography.fernet import Fernet
from deltalake import DeltaTable, QueryBuilder

from atlas_dagster_tests.conftest import HAPROXY_IMAGE, POSTGRES_IMAGE

REPOSITORY = Path(__file__).parents[2]
BASE_IMAGE = os.environ.get("ATLAS_TEST_BASE") or "atlas-test/base:bookworm"
#: Where the machine keeps the certificates it trusts; a proxy's own may be among them.
CERTIFICATES = Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")
_COPIED = (
    *("docker-compose.yml", ".dockerignore", "deploy", "workspace.yaml", "dagster.yaml"),
    *("pyproject.toml", "requirements.txt", "README.md", "atlas_dagster"),
)
#: What is running after `up`.
SERVICES = ("postgres", "docker", "code", "webserver", "api", "daemon")
#: Those whose health shows within seconds. The daemon's is asked once a minute; a run that starts
#: shows it sooner.
ANSWERING = SERVICES[:-1]


def compose_program() -> list[str]:
    """Of either kind. Skips, or fails where ``ATLAS_REQUIRE`` has docker, if there is none."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if plugin.returncode == 0:
        return ["docker", "compose"]
    if "docker" in os.environ.get("ATLAS_REQUIRE", ""):
        pytest.fail("no docker compose", pytrace=False)
    pytest.skip("no docker compose")


class Stack:
    """A checkout of the project in ``folder`` and its stack, called ``name``."""

    def __init__(self, folder: Path, name: str, client: docker.DockerClient) -> None:
        self.folder = folder
        self.name = name
        self.client = client
        self._program = compose_program()
        for part in _COPIED:
            source = REPOSITORY / part
            if source.is_file():
                shutil.copy(source, folder)
            else:
                ignored = shutil.ignore_patterns("__pycache__", ".local_defs_state", "connections")
                shutil.copytree(source, folder / part, ignore=ignored)
        self.connections.mkdir()
        shutil.copy(REPOSITORY / "atlas_dagster/connections/__init__.py", self.connections)
        if CERTIFICATES.exists():
            shutil.copy(CERTIFICATES, folder / "ca.crt")
        self.token = "hunter2-token-of-the-stack"
        (folder / "deploy" / "api_token").write_text(self.token + "\n")
        self.port, self.api_port = _free_port(), _free_port()
        self.settings = {
            "ATLAS_STACK": name,
            "ATLAS_IMAGE": f"atlas-test/{name}",
            "ATLAS_BASE_IMAGE": BASE_IMAGE,
            "ATLAS_BUILD_NETWORK": "host",
            "ATLAS_DEPLOYMENT": name,
            "ATLAS_POSTGRES_IMAGE": POSTGRES_IMAGE,
            "ATLAS_DOCKER_PROXY_IMAGE": HAPROXY_IMAGE,
            "ATLAS_PG_PASSWORD": "stack-pg-secret",
            "ATLAS_PG_PORT": str(_free_port()),
            "ATLAS_PORT": str(self.port),
            "ATLAS_API_PORT": str(self.api_port),
            "ATLAS_SECRET_KEY": Fernet.generate_key().decode(),
        }
        lines = [f"{key}={value}\n" for key, value in self.settings.items()]
        (folder / ".env").write_text("".join(lines))

    @property
    def connections(self) -> Path:
        return self.folder / "atlas_dagster" / "connections"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.api_port}/atlas-intelligence/docker"

    def declare(self, connection: str, **attributes: Any) -> None:
        folder = self.connections / connection
        folder.mkdir()
        declaration = {"type": "atlas_dagster.AirbyteConnection", "attributes": attributes}
        (folder / "defs.yaml").write_text(yaml.safe_dump(declaration, sort_keys=False))

    def secret(self, variable: str, value: str) -> None:
        (self.folder / "deploy" / "secrets" / variable).write_text(value + "\n")

    def forget(self, variable: str) -> None:
        (self.folder / "deploy" / "secrets" / variable).unlink()

    def compose(self, *words: str, seconds: float = 300) -> str:
        """Run a compose command; what it printed."""
        return self._run([*self._compose, *words], seconds)

    def atlas(self, *words: str, seconds: float = 300) -> str:
        """Run an ``atlas`` command in a container of its own; what it printed."""
        return self.compose("run", "--rm", "-T", "atlas", *words, seconds=seconds)

    def follow(self, commands: str) -> str:
        """Do in the checkout what the docs say, to this stack; what was printed."""
        for documented, here in {
            "docker compose": shlex.join(self._compose),
            "atlas_lake": f"{self.name}_lake",
            "atlas_postgres": f"{self.name}_postgres",
            "debian:stable": BASE_IMAGE,
        }.items():
            commands = commands.replace(documented, here)
        return self._run(["bash", "-euc", commands], seconds=900)

    @property
    def _compose(self) -> list[str]:
        return [*self._program, "-p", self.name, "--profile", "api"]

    def _run(self, command: Sequence[str], seconds: float) -> str:
        # The classic builder: all that Debian's docker.io has.
        environment = {**os.environ, "DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0"}
        for name in [name for name in environment if name.startswith("ATLAS_")]:
            del environment[name]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, f"{command} failed:\n{done.stdout[-6000:]}"
        return done.stdout

    def up(self) -> None:
        self.compose("build", "code", seconds=900)
        self.compose("up", "-d", "--no-build")
        self.wait_healthy(*ANSWERING)

    def wait_healthy(self, *services: str, seconds: float = 180) -> None:
        """Until each has passed its health check, or runs where it has none."""
        deadline = time.monotonic() + seconds
        for service in services:
            while (health := self.health(service)) not in ("healthy", "running"):
                logs = self.compose("logs", "--tail=60", service)
                assert time.monotonic() < deadline, f"{service} is {health}:\n{logs}"
                time.sleep(1)

    def health(self, service: str) -> str:
        (container,) = self.containers(service)
        state = container.attrs["State"]
        return str(state.get("Health", {}).get("Status") or state["Status"])

    def containers(self, service: str) -> Sequence[Any]:
        labels = [f"com.docker.compose.project={self.name}"]
        labels.append(f"com.docker.compose.service={service}")
        return list(self.client.containers.list(all=True, filters={"label": labels}))

    def volume(self, name: str) -> Path:
        """Where the engine keeps it, on this machine."""
        return Path(self.client.volumes.get(f"{self.name}_{name}").attrs["Mountpoint"])

    def query(self, table: str, sql: str) -> list[dict[str, Any]]:
        """Rows of ``SELECT … FROM rows``."""
        delta = DeltaTable(str(self.volume("lake") / table))
        rows: list[dict[str, Any]] = pa.table(
            QueryBuilder().register("rows", delta).execute(sql)
        ).to_pylist()
        return rows

    def ids(self, connection: str) -> list[int]:
        """Of the rows of its ``events``, sorted, duplicates and all."""
        rows = self.query(f"{connection}/events", "SELECT id FROM rows ORDER BY id")
        return [row["id"] for row in rows]

    def connectors(self, connection: str) -> list[Any]:
        """Those of its reads that are running."""
        labels = [f"atlas.connection={connection}", "atlas.verb=read"]
        found = self.client.containers.list(filters={"label": labels}, ignore_removed=True)
        return [each for each in found if self.is_ours(each)]

    def down(self) -> None:
        """Take it down with all that it made, and the image."""
        # First, for what compose does not know holds the network and the volumes.
        for container in self.all_containers():
            with suppress(docker.errors.APIError):  # being removed already
                container.remove(force=True)
        self.compose("down", "--volumes", "--remove-orphans")
        self.client.images.remove(self.settings["ATLAS_IMAGE"], force=True)

    def left_over(self) -> list[str]:
        """Names of what the stack has on the engine."""
        found = [container.name for container in self.all_containers()]
        found += [v.name for v in self.client.volumes.list() if v.name.startswith(f"{self.name}_")]
        return found + [n.name for n in self.client.networks.list(names=[self.name])]

    def all_containers(self) -> list[Any]:
        """Services, runs, and the connectors that these started."""
        containers = self.client.containers.list(all=True, ignore_removed=True)
        return [each for each in containers if self.is_ours(each)]

    def is_ours(self, container: Any) -> bool:
        labels = container.labels
        return (
            labels.get("com.docker.compose.project") == self.name
            or labels.get("atlas.deployment", "").startswith(f"{self.name} ")
            or container.attrs["Config"]["Image"] == self.settings["ATLAS_IMAGE"]
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
