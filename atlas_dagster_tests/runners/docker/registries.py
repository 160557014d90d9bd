"""Image registries for tests, on this machine's loopback, which Docker trusts without TLS."""

import hashlib
import io
import json
import random
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker

from atlas_dagster_tests.runners.docker.engines import needs

USER, PASSWORD = "ann", "secret"
#: The password's bcrypt, the only kind this registry takes.
_HTPASSWD = "ann:$2y$04$jsD0HqUvwfEnCfqC4Pcvke6LiDDYMjZawkQwU/g9uOgFeQnRX9oqO\n"


class Registry:
    """Debian's docker-registry, for users with a password only."""

    def __init__(self, folder: Path) -> None:
        needs("docker-registry")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.name = f"127.0.0.1:{port}"
        (folder / "htpasswd").write_text(_HTPASSWD)
        settings = {
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
            "http": {"addr": self.name},
            "auth": {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}},
        }
        (folder / "registry.yml").write_text(json.dumps(settings))
        with (folder / "log").open("ab") as log:
            command = ["docker-registry", "serve", str(folder / "registry.yml")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.05)
        raise AssertionError((folder / "log").read_text())

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def push(self, client: docker.DockerClient, repository: str, tag: str) -> str:
        """A small image with data that does not compress; gone from the engine afterwards."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            entry = tarfile.TarInfo("data")
            entry.size = 3_000_000
            archive.addfile(entry, io.BytesIO(random.Random(1).randbytes(entry.size)))
        name = f"{self.name}/{repository}"
        client.api.import_image_from_data(packed.getvalue(), repository=name, tag=tag)
        user = {"username": USER, "password": PASSWORD}
        for line in client.api.push(name, tag, stream=True, decode=True, auth_config=user):
            assert "error" not in line, line
        client.images.remove(f"{name}:{tag}")
        return f"{name}:{tag}"


_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def error(code: str, message: str) -> dict[str, Any]:
    return {"errors": [{"code": code, "message": message}]}


def foreign() -> dict[str, Any]:
    """What a registry answers for an image that is there for a mainframe only."""
    platform = {"architecture": "s390x", "os": "linux"}
    only = {"mediaType": _MANIFEST, "size": 1, "digest": f"sha256:{'0' * 64}", "platform": platform}
    return {"schemaVersion": 2, "mediaType": _LIST, "manifests": [only]}


def two_layers() -> dict[str, Any]:
    """What a registry answers for an image whose layers are then asked for."""
    types = ["container.image.v1+json", *["image.rootfs.diff.tar.gzip"] * 2]
    config, *layers = (
        {
            "mediaType": f"application/vnd.docker.{kind}",
            "size": 9,
            "digest": f"sha256:{n}" + "0" * 63,
        }
        for n, kind in enumerate(types)
    )
    return {"schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": layers}


@contextmanager
def answering(
    status: int,
    body: dict[str, Any],
    *,
    blobs: tuple[int, dict[str, Any]] = (404, {}),
    before_blob: Callable[[], None] = lambda: None,
) -> Iterator[str]:
    """A registry that has one answer about every image, and one about every layer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = (status, body) if "/manifests/" in self.path else (200, {})
            if "/blobs/" in self.path:
                before_blob()
            code, content = blobs if "/blobs/" in self.path else answer
            text = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", content.get("mediaType", "application/json"))
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Docker-Content-Digest", f"sha256:{hashlib.sha256(text).hexdigest()}")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(text)

        do_HEAD = do_GET

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
