"""Where a connection's connector runs: Docker when it can, Python when it must."""

from collections.abc import Callable

from atlas_dagster.errors import ConfigError, RunnerUnavailableError
from atlas_dagster.runners.base import Runner
from atlas_dagster.runners.docker import DockerRunner
from atlas_dagster.runners.engine import connect
from atlas_dagster.runners.executor import ExecutorConfig
from atlas_dagster.runners.python import PythonRunner
from atlas_dagster.sync.connection import Connection


def choose_runner(
    connection: Connection, defaults: ExecutorConfig, explain: Callable[[str], None]
) -> Runner:
    """The runner for ``connection``; ``explain`` is told which one and why.

    ``defaults`` hold for what the connection's own ``executor`` does not say.

    Raises:
        RunnerUnavailableError: neither Docker nor a Python package is to be had.
        ConfigError: Python was asked for and the connector has no package, or Docker cannot be
            used until someone changes something.
    """
    entry = connection.entry()
    executor = defaults.overridden_by(connection.executor)
    image = connection.image or (entry.docker_image if entry else "")
    package = entry.pypi_package if entry else None
    if connection.runner == "python":
        if entry is None or package is None:
            raise ConfigError(
                f"{connection.source_name} has no Python package; use runner: docker or auto."
            )
        explain(f"{connection.source_name} runs in Python, as its connection asks.")
        return PythonRunner(package, entry.tag, entry.name, executor=executor)
    try:
        runner = DockerRunner(image, client=connect(), executor=executor)
        runner.ensure_image(explain)
    except (ConfigError, RunnerUnavailableError) as error:
        if connection.runner == "docker" or entry is None or package is None:
            raise
        reason = error.reason if isinstance(error, RunnerUnavailableError) else str(error)
        explain(
            f"{connection.source_name} runs from its Python package {package} {entry.tag}, "
            f"because Docker cannot be used here: {reason.rstrip('.')}."
        )
        return PythonRunner(package, entry.tag, entry.name, executor=executor)
    explain(f"{connection.source_name} runs in Docker, from the image {image}.")
    return runner
