"""Which connectors exist, and where each is published."""

from atlas_dagster.registry.entries import ConnectorEntry, entries, resolve

__all__ = ["ConnectorEntry", "entries", "resolve"]
