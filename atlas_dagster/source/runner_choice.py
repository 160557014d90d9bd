"""Where a connection's connector runs: Docker when it can, a process when it must."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from atlas_dagster.errors import ConfigError, RunnerUnavailableError
from atlas_dagster.registry import (
    ConnectorInfo,
    published_manifest,
    published_version,
)
from atlas_dagster.registry.connector_info import AUTO, LATEST
from atlas_dagster.runners.base import Runner
from atlas_dagster.runners.docker.engine import connect
from atlas_dagster.runners.docker.runner import DockerRunner
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.runners.manifest import (
    CDK_PACKAGE,
    EXECUTABLE,
    IMAGE,
    Cdk,
    Manifest,
    ManifestRunner,
    cdk_for,
)
from atlas_dagster.runners.packages import newest_version
from atlas_dagster.runners.pod import FifoRunner
from atlas_dagster.runners.python import CommandRunner, PythonRunner
from atlas_dagster.runners.virtualenv import install
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.published_limits import published_limits

#: Set in a pod that has the connector beside it: the folder they share.
POD_FOLDER_VARIABLE = "ATLAS_POD_FOLDER"


def choose_runner(
    connection: Connection, defaults: ExecutorConfig, explain: Callable[[str], None]
) -> Runner:
    """The runner for ``connection``, which the caller closes.

    ``explain`` is told which one and why, in one sentence.

    Raises:
        RunnerUnavailableError: neither Docker nor a Python package or manifest is to be had.
        ConfigError: Python was asked for and the connector has neither, a file is not there, or
            Docker cannot be used until someone changes something.
    """
    name = connection.source_name
    executor = executor_of(connection, defaults)
    if connection.command is not None:
        command = CommandRunner(connection.command, directory=connection.folder, executor=executor)
        explain(f"{name} runs as a process, by the command {command.reference}.")
        return command
    entry = connection.entry()
    own = _own_manifest(connection)
    if connection.runner == "kubernetes":
        return _in_pod(connection, own, executor, explain)
    if connection.runner == "python":
        if not _runs_in_python(entry, own):
            raise ConfigError(f"{name} has no Python package; use runner: docker or auto.")
        why = "as its connection asks"
    else:
        try:
            return _in_docker(connection, own, executor, explain)
        except (ConfigError, RunnerUnavailableError) as error:
            if connection.runner == "docker" or not _runs_in_python(entry, own):
                raise
            reason = error.reason if isinstance(error, RunnerUnavailableError) else str(error)
            why = f"because Docker cannot run it: {reason.rstrip('.')}"
            try:
                return _in_python(connection, entry, own, executor, why, explain)
            except RunnerUnavailableError as other:
                raise RunnerUnavailableError(
                    f"{name} can be run in neither way. In Docker: {reason.rstrip('.')}. "
                    f"Without: {other.reason.rstrip('.')}",
                    "see that one of them can be had",
                ) from other
    return _in_python(connection, entry, own, executor, why, explain)


def executor_of(connection: Connection, defaults: ExecutorConfig) -> ExecutorConfig:
    """What the connection's own ``executor`` says, where it says nothing ``defaults``, and where
    these say nothing either, the limits that the connector's publisher gives it.

    Raises:
        UnknownConnectorError: the registry has no such connector.
    """
    said = defaults.overridden_by(connection.executor)
    entry = connection.entry()
    return said if entry is None else published_limits(entry).overridden_by(said)


def _in_python(
    connection: Connection,
    entry: ConnectorInfo | None,
    own: Manifest | None,
    executor: ExecutorConfig,
    why: str,
    explain: Callable[[str], None],
) -> Runner:
    name = connection.source_name
    newest = ""
    if entry is not None and entry.tag == LATEST:
        entry, newest = entry.at(_newest(entry)), ", the newest"
    if entry is not None and entry.pypi_package is not None:
        version = entry.tag
        if connection.version == AUTO:
            version = install(entry.pypi_package, entry.tag, entry.name)
            if version != entry.tag:
                newest = f", the newest release that can be installed ({entry.tag} cannot)"
        package = PythonRunner(entry.pypi_package, version, entry.name, executor=executor)
        explain(
            f"{name} runs from its Python package {entry.pypi_package} {version}{newest}, {why}."
        )
        return package
    if own is not None:
        manifest, cdk = own, _declared_cdk(connection, own)
    else:
        manifest, cdk = _published(entry)
    version = newest_version(CDK_PACKAGE) if cdk.version == LATEST else cdk.version
    cdk_runner = PythonRunner(CDK_PACKAGE, version, EXECUTABLE, executor=executor)
    of = f" of version {entry.tag}{newest}," if entry is not None and newest else ""
    ran = f"the Python package {cdk_runner.reference}, {cdk.why}"
    explain(f"{name} runs from its manifest{of} with {ran}, {why}.")
    return ManifestRunner(manifest, cdk_runner, Cdk(version, cdk.why))


def _newest(entry: ConnectorInfo) -> str:
    """What ``latest`` means without Docker."""
    package = entry.pypi_package
    return newest_version(package) if package is not None else published_version(entry)


def _in_pod(
    connection: Connection,
    own: Manifest | None,
    executor: ExecutorConfig,
    explain: Callable[[str], None],
) -> Runner:
    folder = os.environ.get(POD_FOLDER_VARIABLE)
    if folder is None:
        raise ConfigError(
            f"{connection.source_name} is to run with runner kubernetes, but this process is not "
            "in a pod beside it: let Dagster start each step in a pod of its own (docs/"
            "kubernetes.md), or choose runner docker."
        )
    runner = FifoRunner(Path(folder), image_of(connection), executor)
    where = f"in this step's pod, from the image {runner.reference}"
    return _explained(connection, own, runner, where, explain)


def _in_docker(
    connection: Connection,
    own: Manifest | None,
    executor: ExecutorConfig,
    explain: Callable[[str], None],
) -> Runner:
    image = image_of(connection)
    is_published = connection.image is None
    if is_published and image.endswith(f":{LATEST}") and "pull" not in executor.model_fields_set:
        # As Kubernetes does, for the one that is there may be of another year.
        executor = executor.model_copy(update={"pull": "always"})
    client = connect(executor.docker_host)
    with ExitStack() as undo:
        runner = undo.enter_context(
            DockerRunner(image, client=client, executor=executor, explain=explain)
        )
        runner.ensure_image()
        where = f"in Docker, from the image {runner.described()}"
        chosen = _explained(connection, own, runner, where, explain)
        undo.pop_all()
    return chosen


def _explained(
    connection: Connection,
    own: Manifest | None,
    runner: Runner,
    where: str,
    explain: Callable[[str], None],
) -> Runner:
    """``runner``, which runs the connector's image, or that of the CDK for a manifest."""
    if own is None:
        explain(f"{connection.source_name} runs {where}.")
        return runner
    cdk = _declared_cdk(connection, own)
    explain(f"{connection.source_name} runs {where}, {cdk.why}.")
    return ManifestRunner(own, runner, cdk)


def image_of(connection: Connection) -> str:
    """The image that ``connection``'s connector is published as, or that runs its manifest.

    Raises:
        ConfigError: its manifest cannot be read.
        UnknownConnectorError: the registry has no such connector.
    """
    own = _own_manifest(connection)
    if own is not None:
        return f"{IMAGE}:{_declared_cdk(connection, own).version}"
    entry = connection.entry()
    return connection.image or (entry.docker_image if entry else "")


def _runs_in_python(entry: ConnectorInfo | None, own: Manifest | None) -> bool:
    if entry is None:
        return own is not None
    return entry.pypi_package is not None or entry.language == "manifest-only"


def _declared_cdk(connection: Connection, own: Manifest) -> Cdk:
    """The CDK for a manifest of the user's own."""
    declared = connection.cdk_version or connection.version
    return cdk_for(own, declared=None if declared == AUTO else declared, published=None)


def _own_manifest(connection: Connection) -> Manifest | None:
    if connection.manifest is None:
        return None
    path = connection.folder / connection.manifest
    components = path.with_name("components.py")
    try:
        return Manifest(
            connection.manifest,
            path.read_bytes(),
            components.read_bytes() if components.exists() else None,
        )
    except OSError as error:
        raise ConfigError(
            f"Connection '{connection.name}': the manifest {path} cannot be read "
            f"({error.strerror}); give its path from the connection's folder."
        ) from error


def _published(entry: ConnectorInfo | None) -> tuple[Manifest, Cdk]:
    assert entry is not None  # a connection without a manifest of its own that runs in Python
    found = published_manifest(entry)
    manifest = Manifest(f"{entry.name} {entry.tag}", found.manifest, found.components)
    return manifest, cdk_for(manifest, declared=None, published=found.cdk_version)
