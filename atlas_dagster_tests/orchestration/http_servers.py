"""What connectors of the tests read over HTTP, on this machine."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from ssl import SSLContext
from typing import Any
from urllib.parse import parse_qs, urlsplit

API_KEY = "hunter2-5d1c-api key"


def book(id: int, day: int) -> dict[str, Any]:
    return {
        "id": id,
        "title": f"Book {id}",
        "price": id + 0.25,
        "updated_at": f"2024-01-{day:02}T00:00:00Z",
    }


@dataclass
class BooksApi:
    """The API that ``connectors/source-books`` reads: pages of books changed since a moment."""

    books: list[dict[str, Any]] = field(default_factory=list)
    authors: list[dict[str, Any]] = field(default_factory=list)
    #: How many requests to answer with 429 before the next good one.
    refusals: int = 0
    #: Paths with their queries, those refused included.
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str, key: str | None) -> tuple[int, Any]:
        self.asked.append(path)
        if key != API_KEY:
            return 401, {"error": "unknown key"}
        if self.refusals:
            self.refusals -= 1
            return 429, {"error": "too many requests"}
        parts = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path == "/authors":
            return 200, {"data": self.authors}
        news = [book for book in self.books if book["updated_at"] >= query["since"]]
        offset, limit = int(query.get("offset", 0)), int(query["limit"])
        return 200, {"data": news[offset : offset + limit]}


@contextmanager
def serving(api: BooksApi) -> Iterator[BooksApi]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content = api.answer(self.path, self.headers.get("X-Api-Key"))
            body = json.dumps(content).encode()
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with _running(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        api.url = f"http://127.0.0.1:{server.server_port}"
        yield api


@contextmanager
def sharing(folder: Path, tls: SSLContext | None = None) -> Iterator[ThreadingHTTPServer]:
    """The files of ``folder``, served on a free port of this machine."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    with _running(server):
        yield server


@contextmanager
def _running(server: ThreadingHTTPServer) -> Iterator[ThreadingHTTPServer]:
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
