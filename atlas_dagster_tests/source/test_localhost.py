"""A CHECK that fails because localhost is the container."""

from pathlib import Path
from typing import Any

import docker
import pytest

from atlas_dagster.config.masking import Masker
from atlas_dagster.config.renewable_config import FileConfigStore, RenewableConfig
from atlas_dagster.errors import CheckFailedError
from atlas_dagster.listener import SILENT
from atlas_dagster.runners.base import EnginePlace, Runner
from atlas_dagster.runners.docker.runner import DockerRunner
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.runners.process_tags import CONNECTION_LABEL
from atlas_dagster.source.connector import Connector
from atlas_dagster.source.localhost import advise
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN


@pytest.mark.parametrize(
    "value",
    [
        "localhost",
        "LocalHost",
        " localhost ",
        "127.0.0.1",
        "127.1.2.3:5432",
        "::1",
        "[::1]:5432",
        "localhost:8080/path",
        "http://localhost",
        "https://user:word@localhost:9200/?q=1",
        "jdbc:postgresql://localhost:5432/x",
        "jdbc:mysql://one,localhost:3306/x",
        "jdbc:oracle:thin:@localhost:1521:xe",
        "jdbc:sqlserver://localhost;databaseName=x",
        "(DESCRIPTION=(ADDRESS=(HOST=localhost)(PORT=1521)))",
        "host=localhost port=5432",
        "mongodb+srv://u:p@127.0.0.1/?tls=true",
    ],
)
def test_values_that_say_localhost(value: str) -> None:
    assert advise({"host": value}, network="bridge", engine="here") == (
        "localhost in 'host' is the connector's own container; "
        "write host.docker.internal for this machine, or set executor: {network: host}"
    )


@pytest.mark.parametrize(
    "value",
    [
        "",
        "localhost.example.com",
        "mylocalhost",
        "db.localhost.internal",
        "host.docker.internal",
        "1127.0.0.1",
        "10.127.0.0.1",
        "fe80::1",
        "a note about localhost",
        "https://example.com/localhost",
        5432,
        None,
        True,
    ],
)
def test_values_that_do_not(value: Any) -> None:
    assert advise({"host": value}, network="bridge", engine="here") is None


@pytest.mark.parametrize(
    ("network", "engine", "said"),
    [
        ("host", "here", None),
        ("container:db", "here", None),
        ("bridge", "here", "write host.docker.internal for this machine"),
        ("backend", "here", "or set executor: {network: host}"),
        ("none", "here", "has no network; to reach this machine, set executor: {network: host}"),
        ("host", "elsewhere", "is the machine of the Docker engine, which is not this one"),
        ("bridge", "elsewhere", "write the name or address of the source's machine"),
        ("host", "virtual machine", "write host.docker.internal for this machine"),
        ("bridge", "virtual machine", "write host.docker.internal for this machine"),
        ("none", "virtual machine", "and set executor: {network: bridge}"),
        ("container:db", "virtual machine", None),
    ],
)
def test_networks(network: str, engine: EnginePlace, said: str | None) -> None:
    given = advise({"host": "localhost"}, network=network, engine=engine)
    assert given is None if said is None else said in (given or "")


def test_fields_are_named_by_their_path() -> None:
    config = {"db": {"hosts": ["a", "localhost"]}, "url": "http://u:word@localhost", "port": 1}
    given = advise(config, network="bridge", engine="here") or ""
    assert given.startswith("localhost in 'db.hosts' and 'url' is")
    assert "word" not in given


def test_behind_a_tunnel_localhost_is_the_bastion() -> None:
    tunnel = {"tunnel_method": "SSH_KEY_AUTH", "tunnel_host": "bastion"}
    config: dict[str, Any] = {"host": "localhost", "tunnel_method": tunnel}
    assert advise(config, network="bridge", engine="here") is None
    tunnel["tunnel_host"] = "localhost"
    given = advise(config, network="bridge", engine="here") or ""
    assert "'tunnel_method.tunnel_host'" in given
    config["tunnel_method"] = {"tunnel_method": "NO_TUNNEL"}
    assert "'host'" in (advise(config, network="bridge", engine="here") or "")


@pytest.mark.docker
def test_a_check_that_fails(docker_client: docker.DockerClient, tmp_path: Path) -> None:
    secret = "jdbc:postgresql://ann:hunter22@localhost:5432/x"

    def check(network: str, **config: Any) -> str:
        runner: Runner = DockerRunner(
            STANDIN, client=docker_client, executor=ExecutorConfig(network=network)
        )
        masker = Masker([secret])
        connector = Connector(
            runner,
            name="source-standin",
            config=RenewableConfig(
                {"fail_check": True, **config},
                schema={},
                masker=masker,
                connection="localhost_test",
                store=FileConfigStore(tmp_path),
                listener=SILENT,
            ),
            masker=masker,
            labels={CONNECTION_LABEL: "localhost_test"},
        )
        with pytest.raises(CheckFailedError) as failure:
            connector.check()
        return str(failure.value)

    assert check("none", url=secret) == (
        "CHECK of source-standin failed: bad password; localhost in 'url' is the connector's own "
        "container, which has no network; to reach this machine, set executor: {network: host}."
    )
    assert check("host", url=secret) == "CHECK of source-standin failed: bad password"
    assert check("none", url="elsewhere") == "CHECK of source-standin failed: bad password"
