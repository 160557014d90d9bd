"""The connectors that exist, and where they are published."""

from atlas_dagster.registry.connector_info import (
    BreakingChange,
    ConnectorCategory,
    ConnectorInfo,
    image_name,
)
from atlas_dagster.registry.connectors import (
    get_connector_image,
    get_connector_info,
    list_connectors,
)
from atlas_dagster.registry.manifests import (
    PublishedManifest,
    fetch_manifest,
    fetch_newest_version,
)
from atlas_dagster.registry.refresh import Refreshed, Upgrade, refresh_registry
from atlas_dagster.registry.search import FoundConnectors, search_connectors

__all__ = [
    "BreakingChange",
    "ConnectorCategory",
    "ConnectorInfo",
    "FoundConnectors",
    "PublishedManifest",
    "Refreshed",
    "Upgrade",
    "fetch_manifest",
    "fetch_newest_version",
    "get_connector_image",
    "get_connector_info",
    "image_name",
    "list_connectors",
    "refresh_registry",
    "search_connectors",
]
