"""The whole of docker-compose.yml on a real engine, used as its users would."""

import errno
import json
import re
import socket
import time
from pathlib import Path

import pytest
import requests
import yaml
from playwright.sync_api import expect

from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN
from atlas_dagster_tests.e2e.browser import launched, materialize_button, node, opened_page
from atlas_dagster_tests.e2e.project import APPEND
from atlas_dagster_tests.e2e.web_server import wait_until
from atlas_dagster_tests.orchestration.step.otlp_receiver import receiving
from atlas_dagster_tests.stack.compose import ANSWERING, SERVICES, Stack
from atlas_dagster_tests.stack.web import Web

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

COUNT = 240
SECRET = "hunter2-of-the-stack"


#: Synced slowly; services that are restarted meanwhile, by the name of the connection.
RESTARTED = {
    "slow_ui": ("code", "webserver", "daemon"),
    "slow_db": ("postgres",),
    "slow_engine": ("docker",),
}


@pytest.fixture(scope="module", autouse=True)
def slow_connections(stack: Stack, web: Web) -> None:
    """With the streams of all known."""
    stack.secret("SLOW_PASSWORD", SECRET)
    for connection in RESTARTED:
        config = {"count": COUNT, "rate": 12, "password": "{{ env.SLOW_PASSWORD }}"}
        stack.declare(connection, image=STANDIN, config=config, streams=APPEND)
    web.reload()
    web.materialize(*(f"{connection}/discover" for connection in RESTARTED), seconds=180)
    web.reload()


def test_a_connection_added_later_needs_no_new_image(stack: Stack, web: Web) -> None:
    stack.declare(
        "faker",
        connector="source-faker",
        config={"count": 100, "seed": 1, "parallelism": 1},
        streams=[{"name": "users"}, {"name": "products"}],
    )
    said = stack.atlas("discover", "faker")
    assert "faker offers 3 streams" in said
    web.reload()
    web.materialize("faker/users", "faker/products", seconds=180)
    assert stack.query("faker/users", "SELECT count(*) AS n FROM rows") == [{"n": 100}]


@pytest.mark.browser
def test_a_stream_is_materialized_in_the_browser(
    stack: Stack, web: Web, chromium: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with opened_page(chromium, tmp_path_factory.mktemp("chromium")) as page:
        page.goto(f"{stack.url}/assets/faker/products")
        materialize_button(page).click()
        run = launched(page)
        assert web.wait(run, seconds=180) == "SUCCESS"
        page.goto(f"{stack.url}/locations/atlas_dagster/asset-groups/faker/lineage")
        for stream in ("users", "products"):
            expect(node(page, stream)).to_contain_text("Materialized")


@pytest.mark.parametrize("connection", RESTARTED)
def test_services_restarted_in_a_sync_cost_no_row(stack: Stack, web: Web, connection: str) -> None:
    run = web.launch(f"{connection}/events")
    wait_until("the connector runs", lambda: stack.connectors(connection), seconds=120)
    stack.compose("restart", *RESTARTED[connection])
    stack.wait_healthy(*ANSWERING)
    ended = web.wait(run, seconds=180)
    wait_until("no connector is left", lambda: not stack.connectors(connection), seconds=120)
    if ended != "SUCCESS":
        web.materialize(f"{connection}/events", seconds=180)
    assert stack.ids(connection) == [*range(1, COUNT + 1)]


def test_the_services_start_in_any_order(stack: Stack, web: Web) -> None:
    """As the engine starts them when the host comes back, which heeds no depends_on."""
    services = ("code", "webserver", "daemon", "postgres")
    stack.compose("stop", *services)
    for service in services:
        if service == "postgres":
            time.sleep(15)
        stack.containers(service)[0].start()
    stack.wait_healthy(*ANSWERING)

    def is_loaded() -> bool:
        try:
            return web.is_loaded()
        except AssertionError:  # not yet
            return False

    wait_until("the location is loaded", is_loaded, seconds=120, every=1)
    started = time.time()
    tick = lambda: web.sensor("atlas_reaper")["ticks"][0]  # noqa: E731
    wait_until("a sensor ticks", lambda: tick()["timestamp"] > started, seconds=180, every=1)
    assert tick()["status"] != "FAILURE"
    web.materialize("faker/users", seconds=180)


def test_a_run_that_is_terminated_stops_its_connector(stack: Stack, web: Web) -> None:
    config = {"count": COUNT, "rate": 4}
    stack.declare("slow_stopped", image=STANDIN, config=config, streams=APPEND)
    stack.atlas("discover", "slow_stopped")
    web.reload()
    run = web.launch("slow_stopped/events")
    wait_until("rows", lambda: stack.connectors("slow_stopped"), seconds=120)
    web.terminate(run)
    assert web.wait(run, seconds=60) == "CANCELED"
    assert stack.connectors("slow_stopped") == []


def test_a_run_pushes_its_metrics(stack: Stack, web: Web) -> None:
    """Its receiver is named in a file, like a secret."""
    network = stack.client.networks.get(stack.name)
    gateway = network.attrs["IPAM"]["Config"][0]["Gateway"]
    with receiving("0.0.0.0") as receiver:
        stack.secret("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{gateway}:{receiver.port}")
        try:
            web.materialize("faker/users", seconds=180)
        finally:
            stack.forget("OTEL_EXPORTER_OTLP_ENDPOINT")
    faker = {"connection": "faker"}
    assert receiver.counts("atlas.sync.records") == [(faker, 100)]
    assert receiver.counts("atlas.sync.runs") == [(faker | {"outcome": "success"}, 1)]


def test_each_service_is_healthy_and_has_no_more_than_it_needs(stack: Stack) -> None:
    stack.wait_healthy(*SERVICES)
    inspected = {service: stack.containers(service)[0].attrs for service in SERVICES}
    sockets, engines, secrets, roots, powerful = set(), set(), set(), set(), set()
    for service, attrs in inspected.items():
        sources = [mount["Source"] for mount in attrs["Mounts"]]
        variables = dict(v.split("=", 1) for v in attrs["Config"]["Env"])
        if any(source.endswith("docker.sock") for source in sources):
            sockets.add(service)
        if any(mount.get("Name") == f"{stack.name}_engine" for mount in attrs["Mounts"]):
            engines.add(service)
        if any("secrets" in source for source in sources) or SECRET in json.dumps(attrs):
            secrets.add(service)
        if attrs["Config"]["User"].split(":")[0] in ("", "root", "0"):
            roots.add(service)
        if attrs["HostConfig"]["CapDrop"] != ["ALL"] or attrs["HostConfig"]["CapAdd"]:
            powerful.add(service)
        assert attrs["HostConfig"]["SecurityOpt"] == ["no-new-privileges:true"]
        assert attrs["HostConfig"]["Memory"] > 0
        assert attrs["HostConfig"]["LogConfig"]["Config"]["max-size"]
        if service == "api":
            assert not {"ATLAS_PG_PASSWORD", "ATLAS_SECRET_KEY", "ATLAS_TOKEN"} & set(variables)
        if service == "code":
            assert "DOCKER_HOST" not in variables
            assert "ATLAS_SECRET_KEY" not in variables
    assert sockets == {"docker"}
    assert engines == {"docker", "webserver", "daemon", "api"}
    assert inspected["docker"]["HostConfig"]["NetworkMode"] == "none"
    assert secrets == set()
    assert roots == {"docker", "postgres"}
    assert powerful == {"postgres"}


LISTENING = """
for file in ("/proc/net/tcp", "/proc/net/tcp6"):
    for line in open(file).readlines()[1:]:
        _, local, _, state, *_ = line.split()
        address, port = local.rsplit(":", 1)
        if state == "0A" and address != "0B00007F":  # Docker's own resolver
            print(int(port, 16))
"""


def test_the_engine_and_the_code_are_at_no_port(stack: Stack) -> None:
    """Connectors, and whoever is on this machine, reach every port of a container."""
    ports = {"code": [], "daemon": [], "webserver": ["3000"], "api": ["8000"]}
    for service, expected in ports.items():
        assert stack.compose("exec", "-T", service, "python", "-c", LISTENING).split() == expected
    for service in SERVICES:
        networks = stack.containers(service)[0].attrs["NetworkSettings"]["Networks"].values()
        for address in filter(None, (network["IPAddress"] for network in networks)):
            with socket.socket() as probe:
                assert probe.connect_ex((address, 2375)) == errno.ECONNREFUSED, service


def test_up_makes_every_volume(stack: Stack) -> None:
    """Compose v2 makes those of services it starts; the engine makes plain ones for a run."""
    described = yaml.safe_load((stack.folder / "docker-compose.yml").read_text())
    started = [each for each in described["services"].values() if "profiles" not in each]
    mounted = {volume.split(":")[0] for each in started for volume in each["volumes"]}
    assert set(described["volumes"]) <= mounted


def test_the_http_door_is_for_those_with_the_token(stack: Stack) -> None:
    asked = {"connector_name": "source-faker", "config": {"count": 5}}
    assert requests.post(f"{stack.api}/check", json=asked, timeout=60).status_code == 401
    token = {"Authorization": f"Bearer {stack.token}"}
    answer = requests.post(f"{stack.api}/check", json=asked, headers=token, timeout=180)
    assert answer.json()["success"], answer.text


def test_the_command_line_has_the_catalogs_and_the_secrets(stack: Stack, web: Web) -> None:
    assert "Storage" not in stack.atlas("discover", "--missing")
    said = stack.atlas("check", "slow_ui")
    assert "slow_ui reached its source" in said
    assert SECRET not in said


ASK = """
import http.client, socket, sys
connection = http.client.HTTPConnection("localhost")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.settimeout(10)
connection.sock.connect("/run/atlas/docker.sock")
connection.request(*sys.argv[1:])
print(connection.getresponse().status)
"""


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/_ping", 200),
        ("GET", "/v1.41/containers/json?all=1", 200),
        ("GET", "/v1.41/images/no-such-image/json", 404),
        ("POST", "/v1.41/containers/nobody/stop", 404),
        ("POST", "/v1.41/containers/nobody/exec", 403),
        ("POST", "/v1.41/build", 403),
        ("GET", "/v1.41/containers/nobody/logs", 403),
        ("POST", "/v1.41/containers/nobody/update", 403),
        ("GET", "/v1.41/volumes", 403),
        ("POST", "/v1.41/volumes/create", 403),
        ("GET", "/v1.41/secrets", 403),
        ("POST", "/v1.41/images/some/push", 403),
        ("DELETE", "/v1.41/images/some", 403),
        ("POST", "/v1.41/containers/prune", 403),
        ("GET", "/v1.41/containers/../volumes", 403),
        ("GET", "/v1.41/swarm", 403),
    ],
)
def test_the_proxy_passes_what_atlas_asks_for_only(
    stack: Stack, method: str, path: str, status: int
) -> None:
    said = stack.compose("exec", "-T", "webserver", "python", "-c", ASK, method, path)
    assert said.split() == [str(status)]


@pytest.mark.parametrize("service", ["code", "webserver", "daemon"])
def test_logs_are_lines_of_json(stack: Stack, service: str) -> None:
    """Mostly: warnings of Python, tracebacks and compose's own words are not."""
    lines = stack.compose("logs", "--no-log-prefix", "--no-color", service).splitlines()
    told = [json.loads(line) for line in lines if line.startswith("{")]
    assert told
    assert {"event", "level", "timestamp"} <= set.intersection(*map(set, told))
    assert [line for line in lines if re.search(r" - dagster[\w.]* - [A-Z]+ - ", line)] == []


def test_a_secret_is_nowhere_but_in_its_file(stack: Stack, tmp_path: Path) -> None:
    """After everything above has used it."""
    dump = stack.compose("exec", "-T", "postgres", "pg_dump", "-U", "atlas", "atlas")
    assert "slow_ui" in dump
    texts = {"database": dump, "logs": stack.compose("logs")}
    for container in stack.all_containers():
        texts[container.name] = json.dumps(container.attrs)
    for path in stack.volume("data").rglob("*"):
        if path.is_file():
            texts[str(path)] = path.read_bytes().decode(errors="replace")
    image = stack.client.images.get(stack.settings["ATLAS_IMAGE"])
    texts["image"] = json.dumps([image.attrs, image.history()])
    assert [name for name, text in texts.items() if SECRET in text] == []
