"""Which connectors exist, and where each is published."""

from atlas_dagster.registry.entries import ConnectorEntry, entries, resolve
from atlas_dagster.registry.manifests import PublishedManifest, published_manifest

__all__ = ["ConnectorEntry", "PublishedManifest", "entries", "published_manifest", "resolve"]
