"""Manifests from the registry: fetched once, kept, and explained when they cannot be had."""

import io
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from atlas_dagster.errors import AtlasError, ConfigError, RunnerUnavailableError
from atlas_dagster.registry import PublishedManifest, get_connector_info, published_manifest

BASE = "/metadata/airbyte/source-pokeapi/1.2.3"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "atlas-dagster" / "manifests"


class Registry:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    registry = Registry()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            registry.asked.append(self.path)
            content = registry.files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("ATLAS_REGISTRY_URL", f"http://127.0.0.1:{server.server_port}/")
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield registry
        server.shutdown()
        thread.join()


def fetch(version: str = "1.2.3") -> PublishedManifest:
    return published_manifest(get_connector_info("source-pokeapi").at(version))


def packed(name: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, "import os")
    return content.getvalue()


def refusal(call: Callable[[], object] = fetch) -> AtlasError:
    with pytest.raises(AtlasError) as caught:
        call()
    return caught.value


def test_a_manifest_is_fetched_once(registry: Registry, cache: Path) -> None:
    registry.files[f"{BASE}/manifest.yaml"] = b"type: x"

    assert fetch() == fetch() == PublishedManifest(b"type: x", None)
    assert registry.asked == [f"{BASE}/manifest.yaml", f"{BASE}/components.zip"]
    assert [path.name for path in cache.iterdir()] == ["source-pokeapi-1.2.3"]


def test_its_components_come_with_it(registry: Registry) -> None:
    registry.files[f"{BASE}/manifest.yaml"] = b"type: x"
    registry.files[f"{BASE}/components.zip"] = packed("components.py")

    assert fetch() == fetch() == PublishedManifest(b"type: x", b"import os")
    assert len(registry.asked) == 2


def test_components_that_cannot_be_unpacked_leave_nothing(registry: Registry, cache: Path) -> None:
    registry.files[f"{BASE}/manifest.yaml"] = b"type: x"
    for broken in (packed("other.py"), b"no archive"):
        registry.files[f"{BASE}/components.zip"] = broken
        error = refusal()
        assert isinstance(error, RunnerUnavailableError)
        assert "The components of source-pokeapi 1.2.3" in str(error)
    assert not cache.exists()


def test_there_is_no_such_version(registry: Registry) -> None:
    error = refusal()
    assert isinstance(error, ConfigError)
    assert str(error).startswith("There is no manifest of source-pokeapi 1.2.3 at http://")
    assert str(error).endswith("; choose another version or run it with Docker.")


def test_the_registry_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATLAS_REGISTRY_URL", "http://127.0.0.1:9")
    error = refusal()
    assert isinstance(error, RunnerUnavailableError)
    assert str(error) == (
        "The manifest of source-pokeapi 1.2.3 cannot be fetched from http://127.0.0.1:9; "
        "check the network, run it with Docker, or give a copy of the manifest as manifest "
        "instead of connector."
    )


@pytest.mark.parametrize("version", ["latest", "../1.0", "1.0/.."])
def test_an_inexact_version(version: str) -> None:
    assert "is not a version of source-pokeapi" in str(refusal(lambda: fetch(version)))


def test_a_cache_that_cannot_be_written(registry: Registry, cache: Path) -> None:
    registry.files[f"{BASE}/manifest.yaml"] = b"type: x"
    cache.parent.write_text("a file where a folder should be")
    error = refusal()
    assert isinstance(error, ConfigError)
    assert "; set XDG_CACHE_HOME to a directory that can be written." in str(error)
