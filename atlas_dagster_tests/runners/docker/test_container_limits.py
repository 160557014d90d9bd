"""What a container may take and do, seen from inside, and how its end is understood."""

import hashlib
import io
import json
import resource
import struct
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import docker
import pytest

from atlas_dagster.errors import ConfigError, RunnerUnavailableError
from atlas_dagster.runners.base import ConnectorCommand, ConnectorProcess, ExitStatus
from atlas_dagster.runners.docker.runner import DockerRunner
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.runners.process_tags import CONNECTION_LABEL
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN
from atlas_dagster_tests.runners.docker.engines import behind_port

pytestmark = pytest.mark.docker

LABELS = {CONNECTION_LABEL: "limits_test"}
SPEC = ConnectorCommand("spec", {}, LABELS)


@contextmanager
def image_running(client: docker.DockerClient, program: str, **config: Any) -> Iterator[str]:
    """The image of a connector that is one Python program."""
    name = f"atlas-test/limits:{time.monotonic_ns()}"
    arguments = {"host_config": client.api.create_host_config(network_mode="none")}
    container = client.api.create_container(STANDIN, ["spec"], **arguments)
    changes = [f"ENTRYPOINT {json.dumps(['python3', '-c', program])}"]
    changes += [f"ENV {key}={value}" for key, value in config.items()]
    client.api.commit(container, *name.split(":"), changes=changes)
    client.api.remove_container(container)
    try:
        yield name
    finally:
        client.images.remove(name, force=True)


def consume(process: ConnectorProcess) -> dict[str, bytes]:
    printed = {"stdout": b"", "stderr": b"", "idle": b""}
    for channel, piece in process.output():
        printed[channel] += piece
    return printed


def end(
    client: docker.DockerClient, program: str, memory: str = "64m", **config: Any
) -> ExitStatus:
    executor = ExecutorConfig(memory_limit=memory)
    with image_running(client, program, **config) as image:
        runner = DockerRunner(image, client=client, executor=executor)
        with runner.start(SPEC) as process:
            consume(process)
            return process.wait()


# --- Limits


#: Prints the limits of its own control group: their files in version 2, and in version 1.
LOOK = """
import pathlib
for new, *old in (
    ("memory.max", "memory/memory.limit_in_bytes"),
    ("cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),
    ("pids.max", "pids/pids.max"),
):
    root = pathlib.Path("/sys/fs/cgroup")
    files = [root / new] if (root / new).exists() else [root / name for name in old]
    print(*(file.read_text().strip() for file in files))
for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith(("CapBnd", "CapEff", "NoNewPrivs")):
        print(line.split()[1])
"""


def test_the_limits_hold_inside(docker_client: docker.DockerClient) -> None:
    executor = ExecutorConfig(memory_limit="96m", cpu_limit=0.5, pids_limit=77, cap_add=["NET_RAW"])
    with image_running(docker_client, LOOK) as image:
        runner = DockerRunner(image, client=docker_client, executor=executor)
        with runner.start(SPEC) as process:
            lines = consume(process)["stdout"].decode().split("\n")
    memory, cpu, pids, effective, bounding, no_new_privileges = lines[:6]
    quota, period = map(int, cpu.split())
    assert int(memory) == 96 * 1024**2
    assert quota / period == 0.5
    assert pids == "77"
    net_raw = 1 << 13  # linux/capability.h
    assert int(bounding, 16) == net_raw
    assert int(effective, 16) in (0, net_raw)  # none for a user other than root
    assert no_new_privileges == "1"


def test_more_cpus_than_there_are(docker_client: docker.DockerClient) -> None:
    runner = DockerRunner(STANDIN, client=docker_client, executor=ExecutorConfig(cpu_limit=512))
    with runner.start(SPEC) as process:
        assert b"SPEC" in consume(process)["stdout"]


@pytest.mark.parametrize(
    ("executor", "said"),
    [
        (
            ExecutorConfig(network="no-such-net"),
            "The Docker engine has no network 'no-such-net'; create it with "
            "`docker network create no-such-net`, or correct executor.network.",
        ),
        (
            ExecutorConfig(cap_add=["FLY"]),
            "Docker refuses executor.cap_add (invalid CapAdd: unknown",
        ),
    ],
)
def test_what_docker_refuses(
    docker_client: docker.DockerClient, executor: ExecutorConfig, said: str
) -> None:
    runner = DockerRunner(STANDIN, client=docker_client, executor=executor)
    with pytest.raises(ConfigError) as failure:
        runner.start(SPEC)
    assert str(failure.value).startswith(said)
    assert not docker_client.containers.list(
        all=True, filters={"label": f"{CONNECTION_LABEL}=limits_test"}
    )


# --- Ends

HOARD = "hoard = [bytearray(1 << 20) for _ in range(500)]"


def test_out_of_memory(docker_client: docker.DockerClient) -> None:
    assert end(docker_client, HOARD) == ExitStatus(137, oom_killed=True)


def test_a_child_out_of_memory(docker_client: docker.DockerClient) -> None:
    program = (
        "import subprocess, sys; "
        f"subprocess.run([sys.executable, '-c', {HOARD!r}]); print('{{}}'); sys.exit(5)"
    )
    assert end(docker_client, program) == ExitStatus(5, oom_killed=True)


@pytest.mark.parametrize(
    ("environment", "oom_killed"), [({}, False), ({"JAVA_HOME": "/usr/lib/jvm"}, True)]
)
def test_a_full_heap(
    docker_client: docker.DockerClient, environment: dict[str, str], oom_killed: bool
) -> None:
    status = end(docker_client, "print('{}'); exit(3)", **environment)
    assert status == ExitStatus(3, oom_killed=oom_killed)


@pytest.mark.parametrize(("how", "code"), [("kill", 137), ("stop", 143), ("remove", None)])
def test_someone_else_ends_it(
    docker_client: docker.DockerClient, how: str, code: int | None
) -> None:
    config = json.dumps({"count": 10**6, "rate": 1000}).encode()
    catalog = json.dumps({"streams": [{"stream": {"name": "events"}}]}).encode()
    command = ConnectorCommand("read", {"config": config, "catalog": catalog}, LABELS)
    runner = DockerRunner(STANDIN, client=docker_client)
    with runner.start(command) as process:
        output = process.output()
        while b"RECORD" not in next(output)[1]:
            pass
        filters = {"label": f"{CONNECTION_LABEL}=limits_test"}
        [container] = docker_client.containers.list(filters=filters)
        {"kill": container.kill, "stop": container.stop}.get(
            how, lambda: container.remove(force=True)
        )()
        for _ in output:
            pass
        if code is not None:
            assert process.wait() == ExitStatus(code)
            return
        with pytest.raises(RunnerUnavailableError) as failure:
            process.wait()
    assert f"removed the container of {STANDIN} while it ran;" in str(failure.value)


def test_a_connection_that_ends_before_the_container(docker_client: docker.DockerClient) -> None:
    program = "import time; print('{}', flush=True); time.sleep(2.5)"
    with image_running(docker_client, program) as image, behind_port() as port:
        client = docker.DockerClient(port.address)
        with DockerRunner(image, client=client).start(SPEC) as process:
            output = process.output()
            assert next(piece for channel, piece in output if channel == "stdout") == b"{}\n"
            port.cut()
            assert {channel for channel, _ in output} == {"idle"}
            assert process.wait() == ExitStatus(0, cut_off=True)


# --- Another architecture


def elf(machine: int, code: bytes = bytes(64)) -> bytes:
    """A program for a machine; one that another machine would run holds nothing."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    header += struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, 0x1000, 0x1000, 0x1000)
    return header + code


#: Ends with 127, as a shell does that cannot run a program: exit(127) for x86-64.
SHELL = elf(62, b"\xbf\x7f\0\0\0\xb8\x3c\0\0\0\x0f\x05")


@pytest.mark.parametrize(
    ("program", "shell"), [(elf(22), False), (elf(22), True), (SHELL, False)], ids=["", "sh", "127"]
)
def test_an_image_of_another_architecture(
    docker_client: docker.DockerClient, program: bytes, shell: bool
) -> None:
    if program is SHELL and docker_client.version()["Arch"] != "amd64":
        pytest.skip("written for x86-64")
    name = f"atlas-test/foreign:{int(shell)}{len(program)}"
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        for path in ("connector", *["bin/sh"] * shell):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(program), 0o755
            archive.addfile(entry, io.BytesIO(program))
    config = {
        "architecture": "s390x",
        "os": "linux",
        "config": {"Entrypoint": ["/connector"]},
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"],
        },
    }
    docker_client.images.load(saved(name, config, layer.getvalue()))
    try:
        with DockerRunner(name, client=docker_client).start(SPEC) as process:
            consume(process)
            with pytest.raises(ConfigError) as failure:
                process.wait()
    finally:
        docker_client.images.remove(name)
    architecture = docker_client.version()["Arch"]
    assert str(failure.value) == (
        f"The image {name} (built for s390x) does not run on this Docker engine ({architecture}); "
        f"choose an image for {architecture}, or let the engine's machine emulate s390x "
        "(QEMU and binfmt)."
    )


def saved(name: str, config: dict[str, Any], layer: bytes) -> bytes:
    """An image as ``docker save`` writes it."""
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files = {
        "config.json": json.dumps(config).encode(),
        "layer.tar": layer,
        "manifest.json": json.dumps(manifest).encode(),
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, data in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


# --- Memory of our own


def test_much_on_stderr_stays_flat(docker_client: docker.DockerClient) -> None:
    program = "import os\nfor _ in range(200): os.write(2, b'x' * (1 << 20))"
    with image_running(docker_client, program) as image:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with DockerRunner(image, client=docker_client).start(SPEC) as process:
            assert sum(len(piece) for _, piece in process.output()) == 200 << 20
            assert process.wait() == ExitStatus(0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30 * 1024
