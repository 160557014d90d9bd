"""Choose where a connector runs: in Docker if possible, else as a process."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from atlas_dagster.errors import ConfigError, RunnerUnavailableError
from atlas_dagster.listener import Listener
from atlas_dagster.registry import ConnectorInfo, fetch_manifest, fetch_newest_version
from atlas_dagster.registry.connector_info import AUTO, LATEST
from atlas_dagster.runners.base import Runner
from atlas_dagster.runners.docker.engine import connect
from atlas_dagster.runners.docker.runner import DockerRunner
from atlas_dagster.runners.limits import ExecutorConfig, parse_memory
from atlas_dagster.runners.manifest import (
    CDK_PACKAGE,
    EXECUTABLE,
    Cdk,
    Manifest,
    ManifestRunner,
    choose_cdk,
)
from atlas_dagster.runners.packages import newest_version
from atlas_dagster.runners.pod import FifoRunner
from atlas_dagster.runners.python import CommandRunner, PythonRunner
from atlas_dagster.runners.virtualenv import install
from atlas_dagster.source.connector_ref import ConnectorRef

#: The folder that a pod's step shares with its connector; set only in such a pod.
POD_FOLDER_VARIABLE = "ATLAS_POD_FOLDER"


def choose_runner(ref: ConnectorRef, defaults: ExecutorConfig, listener: Listener) -> Runner:
    """Return the runner for ``ref``; the caller closes it.

    ``listener`` gets one sentence with the runner and the reason.

    Raises:
        RunnerUnavailableError: neither Docker nor a Python package or manifest can be used now.
        ConfigError: the connection has ``runner: python`` but the connector has no package, a file
            is missing, or Docker needs a change by the user.
    """
    limits = choose_limits(ref, defaults)
    connection = ref.connection
    if connection.command is not None:
        command = CommandRunner(connection.command, directory=connection.folder, executor=limits)
        listener.info(f"{ref.name} runs as a process, by the command {command.reference}.")
        return command
    if connection.runner == "kubernetes":
        return _use_pod(ref, limits, listener)
    if connection.runner == "python":
        if ref.needs_docker:
            raise ConfigError(f"{ref.name} has no Python package; use runner: docker or auto.")
        return _use_python(ref, limits, "as its connection declares", listener)
    try:
        return _use_docker(ref, limits, listener)
    except (ConfigError, RunnerUnavailableError) as error:
        if connection.runner == "docker" or ref.needs_docker:
            raise
        reason = error.reason if isinstance(error, RunnerUnavailableError) else str(error)
        reason = reason.rstrip(".")
        try:
            return _use_python(ref, limits, f"because Docker cannot run it: {reason}", listener)
        except RunnerUnavailableError as other:
            raise RunnerUnavailableError(
                f"{ref.name} can run neither in Docker nor as a process. In Docker: {reason}. "
                f"As a process: {other.reason.rstrip('.')}",
                "fix one of them",
            ) from other


def choose_limits(ref: ConnectorRef, defaults: ExecutorConfig) -> ExecutorConfig:
    """Return the connection's own limits, or else ``defaults``, or else the publisher's."""
    declared = defaults.overridden_by(ref.connection.executor)
    return declared if ref.info is None else find_published_limits(ref.info).overridden_by(declared)


def find_published_limits(info: ConnectorInfo) -> ExecutorConfig:
    """Return the publisher's limits that are higher than Atlas's defaults.

    As on the platform, ``maxSecondsBetweenMessages`` is the least heartbeat (``HeartbeatMonitor``).
    """
    default = ExecutorConfig()
    limits: dict[str, Any] = {}
    if info.memory_limit is not None and _parse_memory(info.memory_limit) > default.memory_bytes:
        limits["memory_limit"] = info.memory_limit
    if info.cpu_limit is not None and info.cpu_limit > default.cpu_limit:
        limits["cpu_limit"] = info.cpu_limit
    silence = info.max_seconds_between_messages or 0.0
    for name in ("heartbeat_seconds", "silence_seconds"):
        if silence > getattr(default, name):
            limits[name] = silence
    try:
        return ExecutorConfig(**limits)
    except ValidationError:  # the publisher's mistake; use the defaults
        return default


def _parse_memory(text: str) -> int:
    try:
        return parse_memory(text)
    except ValueError:
        return 0


def _use_python(ref: ConnectorRef, limits: ExecutorConfig, why: str, listener: Listener) -> Runner:
    info, newest = ref.info, ""
    if info is not None and info.tag == LATEST:
        info, newest = info.at(_find_newest(info)), ", the newest"
    if info is not None and info.pypi_package is not None:
        version = info.tag
        if ref.connection.version == AUTO:
            version = install(info.pypi_package, info.tag, info.name)
            if version != info.tag:
                newest = f", the newest release that can be installed ({info.tag} cannot)"
        package = PythonRunner(info.pypi_package, version, info.name, executor=limits)
        listener.info(
            f"{ref.name} runs from its Python package {info.pypi_package} {version}{newest}, {why}."
        )
        return package
    manifest, cdk = (ref.manifest, ref.cdk) if info is None else _fetch_published(info)
    # A connector without a package and without a manifest needs Docker.
    assert manifest is not None
    assert cdk is not None
    version = newest_version(CDK_PACKAGE) if cdk.version == LATEST else cdk.version
    cdk_runner = PythonRunner(CDK_PACKAGE, version, EXECUTABLE, executor=limits)
    version_note = f" of version {info.tag}{newest}," if info is not None and newest else ""
    how = f"the Python package {cdk_runner.reference}, {cdk.why}"
    listener.info(f"{ref.name} runs from its manifest{version_note} with {how}, {why}.")
    return ManifestRunner(manifest, cdk_runner, Cdk(version, cdk.why))


def _find_newest(info: ConnectorInfo) -> str:
    """Return the version for ``latest`` without Docker."""
    package = info.pypi_package
    return newest_version(package) if package is not None else fetch_newest_version(info)


def _fetch_published(info: ConnectorInfo) -> tuple[Manifest, Cdk]:
    found = fetch_manifest(info)
    manifest = Manifest(f"{info.name} {info.tag}", found.manifest, found.components)
    return manifest, choose_cdk(manifest, declared=None, published=found.cdk_version)


def _use_pod(ref: ConnectorRef, limits: ExecutorConfig, listener: Listener) -> Runner:
    folder = os.environ.get(POD_FOLDER_VARIABLE)
    if folder is None:
        raise ConfigError(
            f"{ref.name} has the runner kubernetes, but this process does not run in a pod with "
            "it: configure Dagster to start each step in a pod of its own (docs/kubernetes.md), "
            "or choose runner docker."
        )
    runner = FifoRunner(Path(folder), ref.image, limits)
    where = f"in this step's pod, from the image {runner.reference}"
    return _wrap_for_manifest(ref, runner, where, listener)


def _use_docker(ref: ConnectorRef, limits: ExecutorConfig, listener: Listener) -> Runner:
    is_published = ref.connection.image is None
    is_latest = ref.image.endswith(f":{LATEST}")
    if is_published and is_latest and "pull" not in limits.model_fields_set:
        # As in Kubernetes, because the engine's image may be a year old.
        limits = limits.model_copy(update={"pull": "always"})
    client = connect(limits.docker_host)
    with ExitStack() as undo:
        runner = undo.enter_context(
            DockerRunner(ref.image, client=client, executor=limits, listener=listener)
        )
        runner.ensure_image()
        where = f"in Docker, from the image {runner.describe()}"
        wrapped = _wrap_for_manifest(ref, runner, where, listener)
        undo.pop_all()
    return wrapped


def _wrap_for_manifest(ref: ConnectorRef, runner: Runner, where: str, listener: Listener) -> Runner:
    """Return ``runner``, which has the connector's image; for a manifest, wrap the CDK's image."""
    if ref.manifest is None or ref.cdk is None:
        listener.info(f"{ref.name} runs {where}.")
        return runner
    listener.info(f"{ref.name} runs {where}, {ref.cdk.why}.")
    return ManifestRunner(ref.manifest, runner, ref.cdk)
