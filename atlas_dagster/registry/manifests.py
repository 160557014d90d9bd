"""Manifests that Airbyte publishes, fetched once for each version and kept."""

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
#: The components come packed (PyAirbyte ``_executors/util.py``).
_PACKED_COMPONENTS = "components.zip"
#: Kept beside them; empty where the metadata names none.
_CDK_VERSION = "cdk_version"
#: The image that a manifest is published in is the CDK's, at one version.
_CDK_IMAGE = re.compile(r"(?:.*/)?source-declarative-manifest:(\d[\w.+-]*)(?:@.*)?")


@dataclass(frozen=True, slots=True)
class PublishedManifest:
    """A manifest as it was published.

    ``components`` is the Python code it needs, if any. ``cdk_version`` is the CDK it was published
    with, by its metadata; None where that names none.
    """

    manifest: bytes
    components: bytes | None = None
    cdk_version: str | None = None


def published_manifest(info: ConnectorInfo) -> PublishedManifest:
    """The manifest of ``info`` at its version.

    Raises:
        ConfigError: this version has no manifest, or the cache cannot be written.
        RunnerUnavailableError: the registry cannot be reached.
    """
    if not re.fullmatch(r"\d[\w.+-]*", info.tag):
        raise ConfigError(
            f'"{info.tag}" is not a version of {info.name}; give an exact one, such as 1.2.3.'
        )
    kept = cache_folder() / "manifests" / f"{info.name}-{info.tag}"
    if not kept.exists():
        try:
            _keep(_fetch(info), kept)
        except OSError as error:
            raise ConfigError(
                f"The manifest of {info.name} {info.tag} cannot be kept in {kept.parent} "
                f"({error.strerror}); set XDG_CACHE_HOME to a directory that can be written."
            ) from error
    components, cdk = kept / _COMPONENTS, kept / _CDK_VERSION
    return PublishedManifest(
        (kept / _MANIFEST).read_bytes(),
        components.read_bytes() if components.exists() else None,
        (cdk.read_text() or None) if cdk.exists() else None,
    )


def published_version(info: ConnectorInfo) -> str:
    """The version that is the newest in Airbyte's registry at the moment.

    Raises:
        ConfigError: the registry has no such connector.
        RunnerUnavailableError: the registry cannot be reached.
    """
    newest = info.at(LATEST)
    root = registry_url()
    try:
        found = get_file(f"{_address(newest)}/{_DEFINITION}")
    except requests.RequestException as error:
        raise RunnerUnavailableError(
            f"The newest version of {info.name} cannot be looked up at {root}",
            "check the network, or name a version instead of latest",
        ) from error
    if found is None:
        raise ConfigError(f"There is no {info.name} at {root}; name a version instead of latest.")
    try:
        return msgspec.json.decode(found, type=_Definition).dockerImageTag
    except msgspec.MsgspecError as error:
        raise RunnerUnavailableError(
            f"What {root} says of {info.name} cannot be read ({error})",
            "try again later, or name a version instead of latest",
        ) from error


class _Definition(Struct):
    dockerImageTag: str  # noqa: N815 - as on the wire


def _keep(published: PublishedManifest, folder: Path) -> None:
    """All files appear at once; whoever comes second finds the first one's."""
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
            "check the network, run it with Docker, or give a copy of the manifest as manifest "
            "instead of connector",
        ) from error
    if manifest is None:
        raise ConfigError(
            f"There is no manifest of {title} at {root}; choose another version or run it "
            "with Docker."
        )
    try:
        return PublishedManifest(manifest, _unpacked(packed), _published_with(metadata))
    except (zipfile.BadZipFile, KeyError) as error:
        raise RunnerUnavailableError(
            f"The components of {title} at {root} cannot be unpacked ({error})",
            "try again later, or run it with Docker",
        ) from error


def _published_with(metadata: bytes | None) -> str | None:
    """The CDK's version in ``data.connectorBuildOptions.baseImage``."""
    try:
        found = yaml.safe_load(metadata or b"")
        image = found["data"]["connectorBuildOptions"]["baseImage"]
    except (yaml.YAMLError, KeyError, TypeError):
        return None
    named = _CDK_IMAGE.fullmatch(str(image))
    return named[1] if named else None


def _address(info: ConnectorInfo) -> str:
    return f"metadata/{info.image}/{info.tag}"


def _unpacked(packed: bytes | None) -> bytes | None:
    if packed is None:
        return None
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        return archive.read(_COMPONENTS)
