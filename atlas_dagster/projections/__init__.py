"""The history of discoveries, syncs and commits as tables for SQL.

DISCOVER, syncs and the refresh of the registry write these tables. Atlas never reads them: rows may
be deleted at any time, and a failed write does not fail a sync.
"""

from atlas_dagster.projections.writer import ProjectionWriter, SyncStats

__all__ = ["ProjectionWriter", "SyncStats"]
