"""Look up connectors by name or category."""

from atlas_dagster.errors import ConfigError, UnknownConnectorError
from atlas_dagster.registry.catalogue import connectors_by_name
from atlas_dagster.registry.connector_info import ConnectorCategory, ConnectorInfo
from atlas_dagster.registry.search import describe_unknown_connector


def list_connectors(category: ConnectorCategory | str | None = None) -> list[ConnectorInfo]:
    """Return all connectors, or those of one category, sorted by name.

    Raises:
        ConfigError: the category does not exist.
    """
    known = list(connectors_by_name().values())
    if category is None:
        return known
    try:
        wanted = ConnectorCategory(category)
    except ValueError:
        raise ConfigError(
            f'There is no category "{category}"; choose one of {", ".join(ConnectorCategory)}.'
        ) from None
    return [info for info in known if wanted in info.categories]


def get_connector_info(name: str) -> ConnectorInfo:
    """Return the connector ``name``, such as ``source-faker``, at the version in the list.

    Raises:
        UnknownConnectorError: no connector has this name. The message suggests similar ones.
    """
    info = connectors_by_name().get(name)
    if info is None:
        raise UnknownConnectorError(describe_unknown_connector(name))
    return info


def get_connector_image(name: str) -> str:
    """Return the image with its version: ``airbyte/source-faker:7.2.1``.

    Raises:
        UnknownConnectorError: no connector has this name. The message suggests similar ones.
    """
    return get_connector_info(name).docker_image
