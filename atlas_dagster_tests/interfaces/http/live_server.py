"""An HTTP server, in this process or started by the command."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from atlas_dagster.interfaces.http import Settings, create_app
from atlas_dagster.interfaces.http.app import BASE
from atlas_dagster_tests.conftest import (
    SOURCE_CHAOS_IMAGE,
    SOURCE_FAKER_IMAGE,
    SOURCE_STANDIN_IMAGE,
)
from atlas_dagster_tests.interfaces.waiting import until

ALLOWED = frozenset({"source-faker", SOURCE_FAKER_IMAGE, SOURCE_STANDIN_IMAGE, SOURCE_CHAOS_IMAGE})
ATLAS = [sys.executable, "-c", "from atlas_dagster.interfaces.cli import main; main()"]


class Client(httpx.Client):
    """Asks a server for what is under its base path."""

    def __init__(self, port: int, **options: Any) -> None:
        super().__init__(base_url=f"http://127.0.0.1:{port}{BASE}", timeout=300, **options)
        self.port = port

    def ask(self, path: str, connector: str = SOURCE_STANDIN_IMAGE, **body: Any) -> httpx.Response:
        """``config`` and the other fields of the request."""
        return self.post(path, json={"connector_name": connector, **body})

    def read(self, config: Mapping[str, Any], **body: Any) -> httpx.Response:
        """Of source-standin."""
        return self.ask("/read", config=config, stream_name="events", **body)

    def streamed(self, config: Mapping[str, Any], **body: Any) -> tuple[str, bytes, bool]:
        """Content type and content of what source-standin streams, and whether that has an end."""
        asked = {"connector_name": SOURCE_STANDIN_IMAGE, "stream_name": "events", "config": config}
        content = b""
        with self.stream("POST", "/read", json={**asked, **body}) as answer:
            try:
                for piece in answer.iter_bytes():
                    content += piece
            except httpx.RemoteProtocolError:
                return answer.headers["content-type"], content, False
            return answer.headers["content-type"], content, True


@contextmanager
def served(settings: Settings, **options: Any) -> Iterator[Client]:
    """A client of a server in a thread."""
    config = uvicorn.Config(create_app(settings), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started, "the server")
        port = server.servers[0].sockets[0].getsockname()[1]
        with Client(port, **options) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


class ServerProcess:
    """``atlas serve``, of what is ``allowed``: nothing else, or anything where that is empty."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        environment: Mapping[str, str] = {},
        allowed: Collection[str] = ALLOWED,
    ) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self.log = folder / "serve.log"
        allow = [word for name in sorted(allowed) for word in ("--allow", name)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*ATLAS, "serve", "--port", str(self.port), *allow, *options],
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, "XDG_STATE_HOME": str(folder / "state"), **environment},
            )
        self.client = Client(self.port)
        until(self._answers, "the server")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.client.get("/health").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    @property
    def resident(self) -> int:
        """Bytes of memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    @property
    def files(self) -> int:
        """Open ones."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))
