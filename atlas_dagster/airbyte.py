"""Airbyte sources in Python, without Dagster and without tables.

The methods are asynchronous, for notebooks and servers; ``adapter.sync`` and ``executor.sync`` have
the same methods for code without an event loop. :mod:`atlas_dagster.errors` has the errors.
"""

from atlas_dagster.interfaces.python.adapter import (
    AirbyteSourceAdapter,
    SourceConnector,
    create_airbyte_adapter,
)
from atlas_dagster.interfaces.python.docker_executor import (
    AirbyteDockerExecutor,
    check_docker_available,
    get_docker_executor,
    pull_image,
)
from atlas_dagster.registry import (
    ConnectorCategory,
    ConnectorInfo,
    get_connector_image,
    get_connector_info,
    list_connectors,
    search_connectors,
)
from atlas_dagster.runners.limits import ExecutorConfig

__all__ = [
    "AirbyteDockerExecutor",
    "AirbyteSourceAdapter",
    "ConnectorCategory",
    "ConnectorInfo",
    "ExecutorConfig",
    "SourceConnector",
    "check_docker_available",
    "create_airbyte_adapter",
    "get_connector_image",
    "get_connector_info",
    "get_docker_executor",
    "list_connectors",
    "pull_image",
    "search_connectors",
]
