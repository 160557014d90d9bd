"""Manifests from the registry: fetched once, kept, and explained when they cannot be had."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from atlas_dagster.errors import AtlasError, ConfigError, RunnerUnavailableError
from atlas_dagster.registry import (
    PublishedManifest,
    fetch_manifest,
    fetch_newest_version,
    get_connector_info,
)
from atlas_dagster_tests.registry.live_registry import LiveRegistry

BASE = "/metadata/airbyte/source-pokeapi/1.2.3"


@pytest.fixture
def manifests(cache: Path) -> Path:
    return cache / "manifests"


def fetch(version: str = "1.2.3") -> PublishedManifest:
    return fetch_manifest(get_connector_info("source-pokeapi").at(version))


def packed(name: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, "import os")
    return content.getvalue()


def refusal(call: Callable[[], object] = fetch) -> AtlasError:
    with pytest.raises(AtlasError) as caught:
        call()
    return caught.value


def test_a_manifest_is_fetched_once(registry: LiveRegistry, manifests: Path) -> None:
    registry.files[f"{BASE}/manifest.yaml"] = b"type: x"

    assert fetch() == fetch() == PublishedManifest(b"type: x")
    files = ("manifest.yaml", "components.zip", "metadata.yaml")
    assert registry.asked == [f"{BASE}/{file}" for file in files]
    assert [path.name for path in manifests.iterdir()] == ["source-pokeapi-1.2.3"]


def test_its_components_come_with_it(registry: LiveRegistry) -> None:
    registry.files[f"{BASE}/manifest.yaml"] = b"type: x"
    registry.files[f"{BASE}/components.zip"] = packed("components.py")

    assert fetch() == fetch() == PublishedManifest(b"type: x", b"import os")
    assert len(registry.asked) == 3


def test_the_cdk_it_was_published_with_comes_from_its_metadata(registry: LiveRegistry) -> None:
    registry.files[f"{BASE}/manifest.yaml"] = b"type: x"
    image = "docker.io/airbyte/source-declarative-manifest:6.48.10@sha256:09947fb3"
    metadata = {"data": {"connectorBuildOptions": {"baseImage": image}}}
    registry.files[f"{BASE}/metadata.yaml"] = yaml.safe_dump(metadata).encode()

    assert fetch() == fetch() == PublishedManifest(b"type: x", None, "6.48.10")
    assert registry.asked.count(f"{BASE}/metadata.yaml") == 1


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "[",
        "data: {}",
        "data: {connectorBuildOptions: []}",
        "data: {connectorBuildOptions: {baseImage: 'airbyte/python-connector-base:3.0.0'}}",
        "data: {connectorBuildOptions: {baseImage: 'airbyte/source-declarative-manifest:dev'}}",
    ],
)
def test_metadata_that_names_no_cdk(registry: LiveRegistry, metadata: str) -> None:
    registry.files[f"{BASE}/manifest.yaml"] = b"type: x"
    registry.files[f"{BASE}/metadata.yaml"] = metadata.encode()
    assert fetch() == fetch() == PublishedManifest(b"type: x")


def test_a_manifest_that_an_older_atlas_kept(registry: LiveRegistry, manifests: Path) -> None:
    kept = manifests / "source-pokeapi-1.2.3"
    kept.mkdir(parents=True)
    (kept / "manifest.yaml").write_bytes(b"type: x")
    assert fetch() == PublishedManifest(b"type: x")
    assert registry.asked == []


def test_components_that_cannot_be_unpacked_leave_nothing(
    registry: LiveRegistry, manifests: Path
) -> None:
    registry.files[f"{BASE}/manifest.yaml"] = b"type: x"
    for broken in (packed("other.py"), b"no archive"):
        registry.files[f"{BASE}/components.zip"] = broken
        error = refusal()
        assert isinstance(error, RunnerUnavailableError)
        assert "The components of source-pokeapi 1.2.3" in str(error)
    assert not manifests.exists()


def test_there_is_no_such_version(registry: LiveRegistry) -> None:
    error = refusal()
    assert isinstance(error, ConfigError)
    assert str(error).startswith("There is no manifest of source-pokeapi 1.2.3 at http://")
    assert str(error).endswith("; choose another version or run it with Docker.")


def test_the_registry_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATLAS_REGISTRY_URL", "http://127.0.0.1:9")
    error = refusal()
    assert isinstance(error, RunnerUnavailableError)
    assert "source-pokeapi 1.2.3 cannot be fetched from http://127.0.0.1:9;" in str(error)


@pytest.mark.parametrize("version", ["latest", "../1.0", "1.0/.."])
def test_an_inexact_version(version: str) -> None:
    assert "is not a version of source-pokeapi" in str(refusal(lambda: fetch(version)))


def test_a_cache_that_cannot_be_written(registry: LiveRegistry, manifests: Path) -> None:
    registry.files[f"{BASE}/manifest.yaml"] = b"type: x"
    manifests.parent.parent.mkdir()
    manifests.parent.write_text("a file where a folder should be")
    error = refusal()
    assert isinstance(error, ConfigError)
    assert "; set XDG_CACHE_HOME to a directory that can be written." in str(error)


def newest() -> str:
    return fetch_newest_version(get_connector_info("source-pokeapi"))


def test_the_newest_version_is_looked_up(registry: LiveRegistry) -> None:
    address = "/metadata/airbyte/source-pokeapi/latest/oss.json"
    registry.files[address] = json.dumps({"dockerImageTag": "9.8.7", "name": "PokeAPI"}).encode()
    assert newest() == "9.8.7"
    registry.files[address] = b"<html>"
    assert isinstance(refusal(newest), RunnerUnavailableError)


def test_there_is_no_newest_version(
    registry: LiveRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert str(refusal(newest)) == (
        f"There is no source-pokeapi at {registry.url}; name a version instead of latest."
    )
    monkeypatch.setenv("ATLAS_REGISTRY_URL", "http://127.0.0.1:9")
    error = refusal(newest)
    assert isinstance(error, RunnerUnavailableError)
    assert "source-pokeapi cannot be fetched from http://127.0.0.1:9;" in str(error)
