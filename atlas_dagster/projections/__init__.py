"""What was discovered, synced and committed, as tables to query with SQL.

Projections: written by discovery, syncs and the registry's refresh, never read to decide anything.
Rows may be deleted at any time, and a failure to write them fails nothing.
"""

from atlas_dagster.projections.writer import ProjectionWriter, SyncStats

__all__ = ["ProjectionWriter", "SyncStats"]
