"""``atlas doctor``: checks for problems that would stop a sync."""

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Self

import dagster as dg
import docker
from msgspec import Struct

from atlas_dagster.config.templates import variables
from atlas_dagster.errors import AtlasError
from atlas_dagster.files import cache_folder
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.registry.catalogue import listing
from atlas_dagster.runners.docker.engine import API_ERRORS, connect, describe_error
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.connector_ref import ConnectorRef
from atlas_dagster.source.discovered_catalog import Discovered
from atlas_dagster.wording import plural

_GIGABYTE = 10**9
_LITTLE, _TOO_LITTLE = 10 * _GIGABYTE, 1 * _GIGABYTE


class Finding(Struct, frozen=True):
    """The result of one check. ``message`` says what was found, and how to fix a problem."""

    about: str
    verdict: Literal["ok", "warning", "error"]
    message: str


class Subject(Struct, frozen=True):
    """A declared connection: its connector, or the problem of its declaration."""

    name: str
    ref: ConnectorRef | None
    discovered: Discovered | None = None
    problem: str | None = None


def examine(
    instance: dg.DagsterInstance, atlas: AtlasResource, subjects: Sequence[Subject]
) -> Iterator[Finding]:
    """Check versions, storage, disks, engines and connections. Pulls, runs and writes nothing."""
    yield Finding(
        "Versions",
        "ok",
        f"atlas-dagster {version('atlas-dagster')}, dagster {version('dagster')}, "
        f"Python {platform.python_version()}, connectors of {listing().date[:10]}",
    )
    yield _storage(instance)
    yield from _disks(instance, atlas)
    with _Engines(atlas.executor_defaults()) as engines:
        yield from engines.findings(subjects)
        for subject in subjects:
            yield from _connection(subject, atlas, engines)


class _Engines:
    """The Docker engines of connections. Each is connected to once."""

    def __init__(self, defaults: ExecutorConfig) -> None:
        self._defaults = defaults
        self._found: dict[str | None, docker.DockerClient | AtlasError] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for found in self._found.values():
            if not isinstance(found, AtlasError):
                found.close()

    def of(self, connection: Connection | None) -> docker.DockerClient | AtlasError:
        host = self._host(connection)
        if host not in self._found:
            try:
                self._found[host] = connect(host)
            except AtlasError as error:
                self._found[host] = error
        return self._found[host]

    def findings(self, subjects: Sequence[Subject]) -> Iterator[Finding]:
        users: dict[str | None, list[ConnectorRef]] = {self._host(None): []}
        for ref in (subject.ref for subject in subjects if subject.ref is not None):
            if ref.connection.command is None and ref.connection.runner != "python":
                users.setdefault(self._host(ref.connection), []).append(ref)
        for host, refs in users.items():
            about = f"Docker at {host}" if host else "Docker"
            found = self.of(refs[0].connection if refs else None)
            if isinstance(found, AtlasError):
                needed = [
                    ref.connection.name
                    for ref in refs
                    if ref.needs_docker or ref.connection.runner == "docker"
                ]
                why = f" {', '.join(needed)} cannot run without it." if needed else ""
                yield Finding(about, "error" if needed else "warning", f"{found}{why}")
            else:
                yield _engine(about, found)

    def _host(self, connection: Connection | None) -> str | None:
        own = None if connection is None else connection.executor
        return self._defaults.overridden_by(own).docker_host


def _storage(instance: dg.DagsterInstance) -> Finding:
    name = type(instance.event_log_storage).__name__
    try:
        runs = instance.get_runs_count()
    except Exception as error:  # noqa: BLE001 - each storage has exceptions of its own
        first = str(error).strip().splitlines()[0]
        message = f"{name} cannot be read ({first}); see storage in dagster.yaml."
        return Finding("Dagster's storage", "error", message)
    return Finding("Dagster's storage", "ok", f"{name}, {runs} runs")


def _disks(instance: dg.DagsterInstance, atlas: AtlasResource) -> Iterator[Finding]:
    places = {"Dagster's files": instance.root_directory, "cache": str(cache_folder())}
    if "://" not in atlas.address():
        places["lake"] = atlas.address()
    disks: dict[int, Path] = {}
    names_by_disk: dict[int, list[str]] = {}
    for what, place in places.items():
        path = Path(place).absolute()
        while not path.exists():
            path = path.parent
        disks[path.stat().st_dev] = path
        names_by_disk.setdefault(path.stat().st_dev, []).append(f"{what} ({path})")
    for disk, names in names_by_disk.items():
        total, _, free = shutil.disk_usage(disks[disk])
        text = f"{free / _GIGABYTE:,.0f} of {total / _GIGABYTE:,.0f} GB free for {', '.join(names)}"
        if free < _LITTLE:
            verdict: Literal["warning", "error"] = "error" if free < _TOO_LITTLE else "warning"
            yield Finding("Disk", verdict, f"{text}; free some.")
        else:
            yield Finding("Disk", "ok", text)


def _engine(about: str, client: docker.DockerClient) -> Finding:
    try:
        facts = client.info()
    except API_ERRORS as error:
        return Finding(about, "error", f"The engine does not answer ({describe_error(error)}).")
    memory = facts.get("MemTotal", 0) / _GIGABYTE
    return Finding(
        about,
        "ok",
        f"{facts.get('ServerVersion')} on {facts.get('OperatingSystem')}, "
        f"{facts.get('Architecture')}, {facts.get('NCPU')} CPUs, {memory:,.0f} GB of memory",
    )


def _connection(subject: Subject, atlas: AtlasResource, engines: _Engines) -> Iterator[Finding]:
    about, ref = f"Connection {subject.name}", subject.ref
    if ref is None:
        yield Finding(about, "error", subject.problem or "It cannot be loaded.")
        return
    connection, image = ref.connection, ref.image
    problems = False
    named = variables(connection.config) | variables(atlas.address(connection))
    missing = sorted(named - set(os.environ))
    if missing:
        problems = True
        text = f"{', '.join(missing)} is not set; set it in the environment or in .env."
        yield Finding(about, "error", text)
    client = engines.of(connection)
    if image and not isinstance(client, AtlasError) and connection.runner != "python":
        try:
            client.images.get(image)
        except docker.errors.NotFound:
            problems = True
            text = f"{image} is not pulled yet; to pull it now, run: atlas pull {subject.name}"
            yield Finding(about, "warning", text)
        except API_ERRORS as error:
            yield Finding(
                about, "warning", f"The engine cannot look up {image} ({describe_error(error)})."
            )
    if subject.discovered is None:
        text = f"Its streams are not known yet; run: atlas discover {subject.name}"
        yield Finding(about, "warning", text)
        return
    if missing:
        return
    try:
        with closing(atlas.open_destination(connection)) as destination:
            for table in subject.discovered.tables[:1]:
                destination.inspect(table.path)
    except Exception as error:  # noqa: BLE001 - each store has exceptions of its own
        yield Finding(about, "error", f"Its destination cannot be opened: {error}")
        return
    if not problems:
        streams = plural(len(connection.configured(subject.discovered.catalog)), "stream")
        yield Finding(about, "ok", f"{streams}, into {destination.kind}")
