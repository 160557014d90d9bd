"""Looking connectors up."""

from atlas_dagster.errors import ConfigError, UnknownConnectorError
from atlas_dagster.registry.catalogue import connectors_by_name
from atlas_dagster.registry.connector_info import ConnectorCategory, ConnectorInfo
from atlas_dagster.registry.search import unknown_connector


def list_connectors(category: ConnectorCategory | str | None = None) -> list[ConnectorInfo]:
    """All connectors, or those of one category (some are in several), sorted by name.

    Raises:
        ConfigError: there is no such category.
    """
    known = list(connectors_by_name().values())
    if category is None:
        return known
    try:
        wanted = ConnectorCategory(category)
    except ValueError:
        raise ConfigError(
            f'There is no category "{category}"; there are {", ".join(ConnectorCategory)}.'
        ) from None
    return [info for info in known if wanted in info.categories]


def get_connector_info(name: str) -> ConnectorInfo:
    """The connector called ``name``, such as ``source-faker``, at the registry's own version.

    Raises:
        UnknownConnectorError: no connector has exactly this name; the message offers the nearest.
    """
    info = connectors_by_name().get(name)
    if info is None:
        raise UnknownConnectorError(unknown_connector(name))
    return info


def get_connector_image(name: str) -> str:
    """Its image, pinned: ``airbyte/source-faker:7.2.1``.

    Raises:
        UnknownConnectorError: no connector has exactly this name; the message offers the nearest.
    """
    return get_connector_info(name).docker_image
