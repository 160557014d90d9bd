"""Who owns a connector, told apart over pids, namespaces, containers, restarts and machines."""

import io
import os
import socket
import subprocess
import sys
import tarfile
import time
from contextlib import ExitStack
from pathlib import Path

import docker
import pytest

from atlas_dagster.runners import owner
from atlas_dagster.runners.owner import find_container, process_has_ended, this_process
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN

HOST = socket.gethostname()
CONTAINER = "c" * 64
HERE = f"boot1/1/2/{CONTAINER}.layer1"
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> str:
    """In a container, of whose processes none but this one is alive."""
    monkeypatch.setattr(owner, "_this_place", lambda: owner._Place.parse(HERE))
    return HERE


def test_a_process_is_told_from_another_with_its_pid() -> None:
    assert not process_has_ended(this_process())
    assert not process_has_ended(this_process("request"))
    kind, host, pid, start, *place = this_process().split(":")
    if start:
        assert process_has_ended(":".join([kind, host, pid, f"{int(start) - 1}", *place]))
    # As made by older versions, or where there is no /proc.
    assert not process_has_ended(f"{kind}:{host}:{pid}:{start}")
    assert not process_has_ended(f"{kind}:{host}:{pid}")
    assert not process_has_ended(f"{kind}:{host}:{pid}:")


def test_an_ended_process_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        name = owner.identify(process.pid)
        assert not process_has_ended(name)
    assert process_has_ended(name)
    # As made by older versions.
    assert process_has_ended(f"command:{HOST}:{process.pid}:1")
    assert process_has_ended(f"request:{HOST}:{process.pid}")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "command:elsewhere:1:1",
        "run:1",
        "command",
        f"other:{HOST}:1",
        f"command:{HOST}:x:1:{HERE}",
        f"command:{HOST}:x:1:{HERE}:",
    ],
)
def test_of_others_nothing_is_known(name: str) -> None:
    assert not process_has_ended(name)


@pytest.mark.parametrize(
    ("place", "ended"),
    [
        (HERE, True),
        # The number of a namespace that is ours now was another's before.
        (f"boot1/1/9/{'d' * 64}.layer9", True),
        # Alive, maybe, in another container with our host name, or on a cloned machine.
        (f"boot1/8/9/{'d' * 64}.layer9", False),
        (f"boot9/8/9/{'d' * 64}.layer9", False),
        ("boot9/1/2/", False),
        # In a container of the same network, which has the same id for its host.
        (f"boot1/8/9/{CONTAINER}.layer9", False),
        # In another namespace of pids that somebody made in this very container.
        (f"boot1/8/2/{CONTAINER}.layer1", False),
        # Before this container was restarted, alone or with its machine.
        (f"boot1/8/9/{CONTAINER}.layer1", True),
        (f"boot9/1/2/{CONTAINER}.layer1", True),
    ],
)
def test_where_a_pid_counts(here: str, place: str, ended: bool) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert process_has_ended(f"command:{HOST}:{process.pid}:1:{place}") is ended


@pytest.mark.parametrize(
    ("place", "ended"),
    [("boot9/1/2/machine1", True), ("boot9/1/2/clone", False), ("boot9/1/2/", False)],
)
def test_a_machine_that_was_restarted_is_told_from_its_clone(
    monkeypatch: pytest.MonkeyPatch, place: str, ended: bool
) -> None:
    monkeypatch.setattr(owner, "_this_place", lambda: owner._Place.parse("boot1/1/2/machine1"))
    assert process_has_ended(f"command:{HOST}:{os.getpid()}:1:{place}") is ended


def test_the_container_of_a_process(here: str) -> None:
    assert find_container(this_process()) == CONTAINER
    assert find_container("command:0123456789ab:1:1") == "0123456789ab"
    assert find_container("command:0123456789ab:1:1:boot1/1/2/") == "0123456789ab"
    assert find_container("command:host:1:1:boot1/1/2/m0123456789abcdef") is None
    assert find_container("run:0123456789ab:1:1") is None


def test_without_proc_host_and_pid_have_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "_find_start_time", lambda _: "")
    monkeypatch.setattr(owner, "_this_place", lambda: None)
    assert not process_has_ended(f"command:{HOST}:{os.getpid()}:12345")
    assert not process_has_ended(f"command:{HOST}:{os.getpid()}:12345:{HERE}")
    assert this_process() == f"command:{HOST}:{os.getpid()}:"


SAYS_WHO = "from atlas_dagster.runners.owner import *; print(this_process(), flush=True); "


@linux
def test_one_host_name_in_two_namespaces_of_pids() -> None:
    """As containers on the host's network are: neither takes the other for dead."""
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode != 0:
        pytest.skip("namespaces are forbidden here")
    script = f"{SAYS_WHO} print(process_has_ended(input()))"
    with subprocess.Popen(
        [*alone, sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as there:
        assert there.stdin
        assert there.stdout
        name = there.stdout.readline().strip()
        assert name.startswith(f"command:{HOST}:1:")
        assert not process_has_ended(name)
        assert there.communicate(this_process())[0] == "False\n"


class Home:
    """A container that says, each time it starts, who it is and whether another has ended."""

    def __init__(self, client: docker.DockerClient, undo: ExitStack, **options: str) -> None:
        script = (
            "import sys, time; sys.path[:0] = ['/']; from owner import *; "
            "print(this_process(), process_has_ended(open('/other').read()), flush=True); "
            "time.sleep(60)"
        )
        self.container = client.containers.create(
            STANDIN, entrypoint=["python3", "-c", script], **options
        )
        undo.callback(self.container.remove, force=True)
        self._put("owner.py", Path(owner.__file__).read_bytes())
        self._starts = 0

    def start(self, other: str = "") -> tuple[str, str]:
        self._put("other", other.encode())
        self._starts += 1
        self.container.start()
        while len(lines := self.container.logs(stderr=False).decode().splitlines()) < self._starts:
            self.container.reload()
            assert self.container.status == "running"
            time.sleep(0.05)
        name, ended = lines[-1].split()
        return name, ended

    def _put(self, name: str, content: bytes) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        self.container.put_archive("/", buffer.getvalue())


@pytest.mark.docker
@pytest.mark.parametrize(
    "options", [{"network_mode": "host"}, {"network_mode": "none", "hostname": "dagster"}]
)
def test_containers_with_one_host_name(
    docker_client: docker.DockerClient, options: dict[str, str]
) -> None:
    with ExitStack() as undo:
        one, twin = (Home(docker_client, undo, **options) for _ in range(2))
        first, _ = one.start()
        assert find_container(first) == one.container.id
        other, ended = twin.start(first)
        assert ended == "False"
        assert not process_has_ended(first)
        one.container.kill()
        again, ended = one.start(first)
        assert ended == "True"
        assert len({first, again, other}) == 3
