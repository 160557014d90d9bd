"""Fetch the list of connectors from Airbyte's registry, or from a mirror of it.

The fields are those of ``oss_registry.json`` (platform ``ConnectorRegistrySourceDefinition``). It
has no categories, so Atlas takes these from the previous list.
"""

import datetime as dt
import os
from collections.abc import Iterable, Mapping

import msgspec
import requests
from msgspec import Raw, Struct

from atlas_dagster.connector_versions import release
from atlas_dagster.errors import ConfigError, TransientError
from atlas_dagster.registry.catalogue import (
    Listing,
    clear_cache,
    listing,
    refreshed_path,
    shipped_listing,
    store_catalogue,
)
from atlas_dagster.registry.connector_info import (
    BreakingChange,
    ConnectorCategory,
    ConnectorInfo,
)

#: Airbyte's registry. The environment variable ATLAS_REGISTRY_URL names a mirror.
REGISTRY_URL = "https://connectors.airbyte.com/files"
#: The longest pause in a response.
_TIMEOUT_SECONDS = 30.0
_PATH = "registries/v0/oss_registry.json"
#: A download with a smaller share of the known connectors is broken.
_LEAST_SHARE = 0.5
_CATEGORY_OF_KIND = {"database": ConnectorCategory.DATABASE, "file": ConnectorCategory.STORAGE}
_KINDS = ("api", "database", "file")


def registry_url() -> str:
    """Return the address of the registry, without a slash at the end."""
    return (os.environ.get("ATLAS_REGISTRY_URL") or REGISTRY_URL).rstrip("/")


def get(path: str, etag: str | None = None) -> requests.Response:
    """Return the response to a GET of ``path``, with any status; 304 if ``etag`` is still current.

    Raises:
        requests.RequestException: there is no response, or an incomplete one.
    """
    headers = {} if etag is None else {"If-None-Match": etag}
    return requests.get(f"{registry_url()}/{path}", headers=headers, timeout=_TIMEOUT_SECONDS)


def get_file(path: str) -> bytes | None:
    """Fetch a file; None if it does not exist. Raises requests.RequestException."""
    response = get(path)
    if response.status_code == requests.codes.not_found:
        return None
    response.raise_for_status()
    return response.content


class Upgrade(Struct, frozen=True):
    """A connector whose version changed. ``breaking`` are its breaking changes, oldest first."""

    before: ConnectorInfo
    now: ConnectorInfo
    breaking: tuple[BreakingChange, ...]


class Refreshed(Struct, frozen=True):
    """The result of a refresh. ``unreadable``: the number of entries that could not be read."""

    listing: Listing
    added: tuple[ConnectorInfo, ...] = ()
    removed: tuple[ConnectorInfo, ...] = ()
    upgrades: tuple[Upgrade, ...] = ()
    unreadable: int = 0


def refresh_registry() -> Refreshed:
    """Fetch the list of connectors from Airbyte's registry, and store it.

    If this fails, the previous list stays in use.

    Raises:
        TransientError: the registry cannot be reached, or its answer is broken.
        ConfigError: there is no registry at that address, or the list cannot be stored.
    """
    clear_cache()
    before, source = listing(), registry_url()
    known = before.etag if before.source == source else None
    try:
        response = get(_PATH, known)
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if response.status_code == requests.codes.not_modified:
            refreshed = Refreshed(msgspec.structs.replace(before, date=now))
        elif response.status_code == requests.codes.not_found:
            raise ConfigError(
                f"There is no registry at {source}/{_PATH}; correct or unset ATLAS_REGISTRY_URL."
            )
        else:
            response.raise_for_status()
            etag = response.headers.get("ETag")
            refreshed = _compare(before, _decode(response.content, before), now, source, etag)
    except requests.RequestException as error:
        raise TransientError(
            f"The registry cannot be fetched from {source}; check the network. The list of "
            f"{before.date[:10]} stays in use."
        ) from error
    try:
        store_catalogue(refreshed.listing)
    except OSError as error:
        raise ConfigError(
            f"The list of connectors cannot be stored in {refreshed_path().parent} "
            f"({error.strerror}); set XDG_CACHE_HOME to a directory that can be written."
        ) from error
    return refreshed


class _Found(Struct):
    connectors: dict[str, ConnectorInfo]
    #: Names of connectors that are no longer published.
    withdrawn: set[str]
    unreadable: int = 0


def _decode(content: bytes, before: Listing) -> _Found:
    """Decode the registry. Raises TransientError if it is broken."""
    try:
        document = msgspec.json.decode(content, type=_Document)
    except msgspec.MsgspecError as error:
        raise _broken(before, str(error)) from error
    categories = {
        info.name: info.category for info in (*shipped_listing().connectors, *before.connectors)
    }
    found = _Found({}, set())
    for raw in document.sources:
        try:
            entry = msgspec.json.decode(raw, type=_Entry, strict=False)
        except msgspec.MsgspecError:
            found.unreadable += 1
            continue
        if entry.tombstone:
            found.withdrawn.add(entry.name)
        else:
            found.connectors[entry.name] = entry.info(categories.get(entry.name))
    if len(found.connectors) < _LEAST_SHARE * len(before.connectors):
        raise _broken(before, f"it has {len(found.connectors)} connectors that can be read")
    return found


def _broken(before: Listing, why: str) -> TransientError:
    return TransientError(
        f"The registry that {registry_url()} sent is broken ({why}); try again later. The list of "
        f"{before.date[:10]} stays in use."
    )


def _compare(before: Listing, found: _Found, now: str, source: str, etag: str | None) -> Refreshed:
    """Compare two lists. Connectors only in the previous list, such as enterprise ones, stay."""
    known = {info.name: info for info in before.connectors}
    kept = {name: info for name, info in known.items() if name not in found.withdrawn}
    connectors = kept | found.connectors
    upgrades = [
        Upgrade(known[name], info, info.breaking_changes_between(known[name].tag, info.tag))
        for name, info in sorted(found.connectors.items())
        if name in known and known[name].tag != info.tag
    ]
    return Refreshed(
        Listing(now, tuple(connectors[name] for name in sorted(connectors)), source, etag),
        added=tuple(info for name, info in sorted(found.connectors.items()) if name not in known),
        removed=tuple(info for name, info in sorted(known.items()) if name in found.withdrawn),
        upgrades=tuple(upgrades),
        unreadable=found.unreadable,
    )


# --- The registry's JSON. Nearly all objects are open, and most fields may be absent or null.


class _Document(Struct):
    sources: list[Raw]


class _Impact(Struct, rename="camel"):
    scope_type: str | None = None
    impacted_scopes: list[str] | None = None


class _Breaking(Struct, rename="camel"):
    message: str
    migration_documentation_url: str | None = None
    scoped_impact: list[_Impact] | None = None

    def change(self, version: str) -> BreakingChange:
        impacts = [i for i in self.scoped_impact or () if i.scope_type == "stream"]
        return BreakingChange(
            version,
            " ".join(self.message.split()),
            self.migration_documentation_url,
            tuple(scope for impact in impacts for scope in impact.impacted_scopes or ()),
        )


class _Releases(Struct, rename="camel"):
    breaking_changes: dict[str, _Breaking] | None = None


class _Hosts(Struct):
    hosts: list[str] | None = None


class _Limits(Struct):
    memory_limit: str | None = None
    cpu_limit: str | None = None


class _Job(Struct, rename="camel"):
    job_type: str | None = None
    resource_requirements: _Limits | None = None


class _Resources(Struct, rename="camel"):
    default: _Limits | None = None
    job_specific: list[_Job] | None = None

    def sync_limit(self, limit: str) -> str | None:
        jobs = [
            job.resource_requirements for job in self.job_specific or () if job.job_type == "sync"
        ]
        given = [getattr(limits, limit) for limits in (*jobs, self.default) if limits is not None]
        return next(filter(None, given), None)


class _PyPi(Struct, rename="camel"):
    enabled: bool = False
    package_name: str | None = None


class _RemoteRegistries(Struct):
    pypi: _PyPi | None = None


class _Entry(Struct, rename="camel"):
    name_: str = msgspec.field(name="name")
    docker_repository: str
    docker_image_tag: str
    source_definition_id: str
    documentation_url: str
    source_type: str | None = None
    support_level: str | None = None
    tombstone: bool | None = None
    language: str | None = None
    tags: list[str] | None = None
    allowed_hosts: _Hosts | None = None
    max_seconds_between_messages: float | None = None
    releases: _Releases | None = None
    resource_requirements: _Resources | None = None
    remote_registries: _RemoteRegistries | None = None

    @property
    def name(self) -> str:
        return self.docker_repository.rpartition("/")[2]

    def info(self, category: ConnectorCategory | None) -> ConnectorInfo:
        """Return the connector. Without a ``category``, its kind decides."""
        kind = self.source_type if self.source_type in _KINDS else "api"
        resources = self.resource_requirements or _Resources()
        breaking = (self.releases and self.releases.breaking_changes) or {}
        pypi = self.remote_registries and self.remote_registries.pypi
        return ConnectorInfo(
            name=self.name,
            title=self.name_,
            image=self.docker_repository,
            tag=self.docker_image_tag,
            category=category or _CATEGORY_OF_KIND.get(kind, ConnectorCategory.OTHER),
            kind=kind,
            support_level=self.support_level or "community",
            docs_url=self.documentation_url,
            definition_id=self.source_definition_id,
            language=self.language or _find_tag("language:", self.tags or ()),
            pypi_package=pypi.package_name if pypi and pypi.enabled else None,
            breaking_changes=tuple(_sort_changes(breaking)),
            allowed_hosts=tuple((self.allowed_hosts and self.allowed_hosts.hosts) or ()),
            memory_limit=resources.sync_limit("memory_limit"),
            cpu_limit=_parse_cpus(resources.sync_limit("cpu_limit")),
            max_seconds_between_messages=self.max_seconds_between_messages,
        )


def _sort_changes(breaking: Mapping[str, _Breaking]) -> Iterable[BreakingChange]:
    return (breaking[version].change(version) for version in sorted(breaking, key=release))


def _find_tag(prefix: str, tags: Iterable[str]) -> str:
    """Return ``python`` for the tag ``language:python``; empty without such a tag."""
    return next((tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix)), "")


def _parse_cpus(text: str | None) -> float | None:
    """Parse CPUs as in Kubernetes: ``2``, ``0.5``, ``500m``. Return None if invalid."""
    try:
        number = float((text or "").removesuffix("m"))
    except ValueError:
        return None
    return number / 1000 if text and text.endswith("m") else number
