"""Manifests that Airbyte publishes, fetched once for each version and kept."""

import io
import os
import re
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import requests
from platformdirs import user_cache_dir

from atlas_dagster.errors import ConfigError, RunnerUnavailableError
from atlas_dagster.registry.info import ConnectorInfo

#: Where Airbyte publishes; the environment variable ATLAS_REGISTRY_URL names a mirror.
REGISTRY_URL = "https://connectors.airbyte.com/files"
_TIMEOUT_SECONDS = 30.0
_MANIFEST = "manifest.yaml"
_COMPONENTS = "components.py"
#: The components come packed (PyAirbyte ``_executors/util.py``).
_PACKED_COMPONENTS = "components.zip"


@dataclass(frozen=True, slots=True)
class PublishedManifest:
    """A manifest as it was published; ``components`` is the Python code it needs, if any."""

    manifest: bytes
    components: bytes | None


def published_manifest(entry: ConnectorInfo) -> PublishedManifest:
    """The manifest of ``entry`` at its version.

    Raises:
        ConfigError: this version has no manifest, or the cache cannot be written.
        RunnerUnavailableError: the registry cannot be reached.
    """
    if not re.fullmatch(r"\d[\w.+-]*", entry.tag):
        raise ConfigError(
            f'"{entry.tag}" is not a version of {entry.name}; give an exact one, such as 1.2.3.'
        )
    kept = Path(user_cache_dir("atlas-dagster")) / "manifests" / f"{entry.name}-{entry.tag}"
    if not kept.exists():
        try:
            _keep(_fetch(entry), kept)
        except OSError as error:
            raise ConfigError(
                f"The manifest of {entry.name} {entry.tag} cannot be kept in {kept.parent} "
                f"({error.strerror}); set XDG_CACHE_HOME to a directory that can be written."
            ) from error
    components = kept / _COMPONENTS
    return PublishedManifest(
        (kept / _MANIFEST).read_bytes(),
        components.read_bytes() if components.exists() else None,
    )


def _keep(published: PublishedManifest, folder: Path) -> None:
    """Both files appear at once; whoever comes second finds the first one's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as unfinished:
        complete = Path(unfinished) / folder.name
        complete.mkdir()
        (complete / _MANIFEST).write_bytes(published.manifest)
        if published.components is not None:
            (complete / _COMPONENTS).write_bytes(published.components)
        try:
            complete.rename(folder)
        except OSError:
            if not folder.exists():
                raise


def _fetch(entry: ConnectorInfo) -> PublishedManifest:
    title = f"{entry.name} {entry.tag}"
    root = os.environ.get("ATLAS_REGISTRY_URL") or REGISTRY_URL
    address = f"{root.rstrip('/')}/metadata/{entry.image}/{entry.tag}"
    try:
        manifest = _get(f"{address}/{_MANIFEST}")
        packed = None if manifest is None else _get(f"{address}/{_PACKED_COMPONENTS}")
    except requests.RequestException as error:
        raise RunnerUnavailableError(
            f"The manifest of {title} cannot be fetched from {root}",
            "check the network, run it with Docker, or give a copy of the manifest as manifest "
            "instead of connector",
        ) from error
    if manifest is None:
        raise ConfigError(
            f"There is no manifest of {title} at {root}; choose another version or run it "
            "with Docker."
        )
    try:
        return PublishedManifest(manifest, _unpacked(packed))
    except (zipfile.BadZipFile, KeyError) as error:
        raise RunnerUnavailableError(
            f"The components of {title} at {root} cannot be unpacked ({error})",
            "try again later, or run it with Docker",
        ) from error


def _get(address: str) -> bytes | None:
    """None where there is no such file."""
    answer = requests.get(address, timeout=_TIMEOUT_SECONDS)
    if answer.status_code == requests.codes.not_found:
        return None
    answer.raise_for_status()
    return answer.content


def _unpacked(packed: bytes | None) -> bytes | None:
    if packed is None:
        return None
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        return archive.read(_COMPONENTS)
