"""Which connectors exist, and where each is published."""

from atlas_dagster.registry.connectors import (
    get_connector_image,
    get_connector_info,
    list_connectors,
)
from atlas_dagster.registry.info import BreakingChange, ConnectorCategory, ConnectorInfo
from atlas_dagster.registry.manifests import PublishedManifest, published_manifest
from atlas_dagster.registry.search import search_connectors

__all__ = [
    "BreakingChange",
    "ConnectorCategory",
    "ConnectorInfo",
    "PublishedManifest",
    "get_connector_image",
    "get_connector_info",
    "list_connectors",
    "published_manifest",
    "search_connectors",
]
