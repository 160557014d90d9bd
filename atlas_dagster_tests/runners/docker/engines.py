"""Engines for tests: the machine's own behind a TCP port, with TLS or without, and a second one."""

import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import docker
import pytest

from atlas_dagster.runners.docker.engine import API_ERRORS

SOCKET = "/var/run/docker.sock"


def needs(*programs: str, root: bool = False) -> None:
    """Skip, or fail where ``ATLAS_REQUIRE`` has docker, without ``programs`` or root's rights."""
    missing = [f"no {program} in PATH" for program in programs if not shutil.which(program)]
    if root and os.geteuid() != 0:
        missing.append("it needs root")
    if missing and "docker" in os.environ.get("ATLAS_REQUIRE", ""):
        pytest.fail(", ".join(missing), pytrace=False)
    if missing:
        pytest.skip(", ".join(missing))


# --- The machine's engine behind a port


@dataclass(frozen=True)
class Certificates:
    """Of a CA, and signed by it a server's for 127.0.0.1 and a client's, as Docker names them."""

    folder: Path

    @classmethod
    def made_in(cls, folder: Path) -> "Certificates":
        needs("openssl")
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]

        def openssl(*arguments: str) -> None:
            subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

        openssl("req", "-x509", *key, "-subj", "/CN=ca", "-keyout", "ca-key.pem", "-out", "ca.pem")
        (folder / "extensions").write_text("subjectAltName=IP:127.0.0.1\n")
        sign = ["-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial"]
        for name, stem in (("server", "server-"), ("client", "")):
            pair = ["-keyout", f"{stem}key.pem", "-out", f"{name}.csr"]
            openssl("req", *key, "-subj", f"/CN={name}", *pair)
            wanted = ["-in", f"{name}.csr", "-extfile", "extensions", "-out", f"{stem}cert.pem"]
            openssl("x509", "-req", *sign, *wanted)
        return cls(folder)

    def server(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.folder / "ca.pem")
        context.load_cert_chain(self.folder / "server-cert.pem", self.folder / "server-key.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        return context


@dataclass
class Port:
    """A port of 127.0.0.1 that is forwarded."""

    number: int
    connections: list[socket.socket] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.number}"

    def cut(self) -> None:
        """Break the connections there are; the engine never notices but by them."""
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def behind_port(context: ssl.SSLContext | None = None) -> Iterator[Port]:
    """The machine's engine behind a port, with TLS if there is a ``context``."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = Port(listener.getsockname()[1])

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(plain: socket.socket) -> None:
        # One thread per direction on one TLS socket: OpenSSL guards it, as Python holds its lock.
        with suppress(OSError), socket.socket(socket.AF_UNIX) as engine:
            engine.connect(SOCKET)
            with context.wrap_socket(plain, server_side=True) if context else plain as client:
                back = threading.Thread(target=pump, args=(engine, client), daemon=True)
                back.start()
                pump(client, engine)
                back.join()

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                port.connections.append(client)
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield port
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


# --- A second engine


@contextmanager
def second_engine(*images: str) -> "Iterator[SecondEngine]":
    """An engine that nobody else uses, with ``images``."""
    needs("dockerd", "containerd", "unshare", root=True)
    engine = SecondEngine()
    try:
        engine.start()
        for image in images:
            engine.load(image)
        yield engine
    finally:
        engine.remove()


class SecondEngine:
    """A dockerd of our own, to be killed at will.

    It has a network namespace of its own: with ``--bridge=none`` it removes docker0 wherever it
    runs, also that of the machine's engine. So it has with mounts, which then end with it.
    """

    def __init__(self) -> None:
        # Not under pytest's folder: too deep for a socket's path.
        self.home = Path(tempfile.mkdtemp(prefix="atlas-dockerd-", dir="/var/tmp"))
        self.host = f"unix://{self.home}/sock"
        # In memory: quick to fill, and gone at once.
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", self.home], check=True)

    def start(self) -> None:
        for left in (self.home / "pid", self._containerd):
            left.unlink(missing_ok=True)
        roots = [f"--{name}={self.home / name}" for name in ("data-root", "exec-root")]
        network = ["--bridge=none", "--iptables=false", "--ip6tables=false"]
        with (self.home / "log").open("ab") as log:
            names = [f"--pidfile={self.home / 'pid'}", f"--host={self.host}"]
            self._process = subprocess.Popen(
                ["unshare", "--net", "--mount", "dockerd", *roots, *network, *names],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 30
        while True:
            with suppress(*API_ERRORS):
                self.client().ping()
                return
            if time.monotonic() > deadline or self._process.poll() is not None:
                pytest.fail(f"no second dockerd:\n{(self.home / 'log').read_text()[-3000:]}")
            time.sleep(0.1)

    def client(self) -> docker.DockerClient:
        return docker.DockerClient(base_url=self.host, timeout=30)

    def load(self, image: str) -> None:
        saved = docker.DockerClient(base_url=f"unix://{SOCKET}").api.get_image(image)
        self.client().images.load(saved)

    def kill(self) -> None:
        """At once, with its containerd; containers go on."""
        containerd = int(self._containerd.read_text())
        self._process.kill()
        os.kill(containerd, signal.SIGKILL)
        self._process.wait()

    def remove(self) -> None:
        if self._process.poll() is not None:
            self.start()  # nobody else can end the containers it left
        for container in self.client().containers.list(all=True):
            container.remove(force=True)
        self.kill()
        subprocess.run(["umount", "--lazy", self.home], check=True)
        self.home.rmdir()

    @property
    def _containerd(self) -> Path:
        return self.home / "exec-root" / "containerd" / "containerd.pid"
