"""Manifests that Airbyte publishes, fetched once for each version and cached."""

import io
import re
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import requests
import yaml
from msgspec import Struct

from atlas_dagster.errors import ConfigError, RunnerUnavailableError
from atlas_dagster.files import atomic_folder, cache_folder
from atlas_dagster.registry.connector_info import LATEST, ConnectorInfo
from atlas_dagster.registry.refresh import get_file, registry_url

_DEFINITION = "oss.json"
_METADATA = "metadata.yaml"
_MANIFEST = "manifest.yaml"
_COMPONENTS = "components.py"
#: The components as a ZIP file (PyAirbyte ``_executors/util.py``).
_PACKED_COMPONENTS = "components.zip"
#: A cached file with the CDK's version; empty if the metadata has none.
_CDK_VERSION = "cdk_version"
#: A manifest's image is the image of the CDK at one version.
_CDK_IMAGE = re.compile(r"(?:.*/)?source-declarative-manifest:(\d[\w.+-]*)(?:@.*)?")


@dataclass(frozen=True, slots=True)
class PublishedManifest:
    """A published manifest.

    ``components`` is the manifest's Python code, if any. ``cdk_version`` is the version of the CDK
    with which it was published; None if unknown.
    """

    manifest: bytes
    components: bytes | None = None
    cdk_version: str | None = None


def fetch_manifest(info: ConnectorInfo) -> PublishedManifest:
    """Return the manifest of ``info`` at its version.

    Raises:
        ConfigError: this version has no manifest, or the cache cannot be written.
        RunnerUnavailableError: the registry cannot be reached.
    """
    if not re.fullmatch(r"\d[\w.+-]*", info.tag):
        raise ConfigError(
            f'"{info.tag}" is not a version of {info.name}; give an exact one, such as 1.2.3.'
        )
    cached = cache_folder() / "manifests" / f"{info.name}-{info.tag}"
    if not cached.exists():
        try:
            _store(_fetch(info), cached)
        except OSError as error:
            raise ConfigError(
                f"The manifest of {info.name} {info.tag} cannot be stored in {cached.parent} "
                f"({error.strerror}); set XDG_CACHE_HOME to a directory that can be written."
            ) from error
    components, cdk = cached / _COMPONENTS, cached / _CDK_VERSION
    return PublishedManifest(
        (cached / _MANIFEST).read_bytes(),
        components.read_bytes() if components.exists() else None,
        (cdk.read_text() or None) if cdk.exists() else None,
    )


def fetch_newest_version(info: ConnectorInfo) -> str:
    """Return the newest version in Airbyte's registry.

    Raises:
        ConfigError: the registry does not have the connector.
        RunnerUnavailableError: the registry cannot be reached.
    """
    newest = info.at(LATEST)
    root = registry_url()
    try:
        found = get_file(f"{_address(newest)}/{_DEFINITION}")
    except requests.RequestException as error:
        raise RunnerUnavailableError(
            f"The newest version of {info.name} cannot be fetched from {root}",
            "check the network, or name a version instead of latest",
        ) from error
    if found is None:
        raise ConfigError(f"There is no {info.name} at {root}; name a version instead of latest.")
    try:
        return msgspec.json.decode(found, type=_Definition).dockerImageTag
    except msgspec.MsgspecError as error:
        raise RunnerUnavailableError(
            f"The description of {info.name} at {root} cannot be read ({error})",
            "try again later, or name a version instead of latest",
        ) from error


class _Definition(Struct):
    dockerImageTag: str  # noqa: N815 - as on the wire


def _store(published: PublishedManifest, folder: Path) -> None:
    """Store all files at once, unless another process has stored them."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), atomic_folder(folder) as complete:
        (complete / _MANIFEST).write_bytes(published.manifest)
        if published.components is not None:
            (complete / _COMPONENTS).write_bytes(published.components)
        (complete / _CDK_VERSION).write_text(published.cdk_version or "")


def _fetch(info: ConnectorInfo) -> PublishedManifest:
    title = f"{info.name} {info.tag}"
    root = registry_url()
    address = _address(info)
    try:
        manifest = get_file(f"{address}/{_MANIFEST}")
        packed = None if manifest is None else get_file(f"{address}/{_PACKED_COMPONENTS}")
        metadata = None if manifest is None else get_file(f"{address}/{_METADATA}")
    except requests.RequestException as error:
        raise RunnerUnavailableError(
            f"The manifest of {title} cannot be fetched from {root}",
            "check the network, run it with Docker, or declare a copy of the manifest as manifest "
            "instead of connector",
        ) from error
    if manifest is None:
        raise ConfigError(
            f"There is no manifest of {title} at {root}; choose another version or run it "
            "with Docker."
        )
    try:
        return PublishedManifest(manifest, _unpack(packed), _find_cdk_version(metadata))
    except (zipfile.BadZipFile, KeyError) as error:
        raise RunnerUnavailableError(
            f"The components of {title} at {root} cannot be unpacked ({error})",
            "try again later, or run it with Docker",
        ) from error


def _find_cdk_version(metadata: bytes | None) -> str | None:
    """Return the CDK's version in ``data.connectorBuildOptions.baseImage``."""
    try:
        found = yaml.safe_load(metadata or b"")
        image = found["data"]["connectorBuildOptions"]["baseImage"]
    except (yaml.YAMLError, KeyError, TypeError):
        return None
    named = _CDK_IMAGE.fullmatch(str(image))
    return named[1] if named else None


def _address(info: ConnectorInfo) -> str:
    return f"metadata/{info.image}/{info.tag}"


def _unpack(packed: bytes | None) -> bytes | None:
    if packed is None:
        return None
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        return archive.read(_COMPONENTS)
