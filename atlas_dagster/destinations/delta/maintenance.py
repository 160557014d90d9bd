"""Few big files instead of many small ones, and none that nothing needs.

Neither touches the ``seq`` of a table: an application transaction outlives OPTIMIZE, checkpoints
and the clean-up of the log. Compaction is a commit of the operation OPTIMIZE, without a ``seq``; it
changes no row, so it counts as nobody's write. Deleting files leaves no commit.
"""

from collections.abc import Collection

import pyarrow.fs as pafs
from deltalake import WriterProperties
from deltalake.exceptions import DeltaError

from atlas_dagster.destinations.base import Maintained
from atlas_dagster.destinations.delta.filesystem import reason_of
from atlas_dagster.destinations.delta.table import LakeTable
from atlas_dagster.errors import DestinationError


def maintain(
    table: LakeTable,
    filesystem: pafs.FileSystem,
    folder: str,
    *,
    retain_hours: int,
    keep: Collection[str],
) -> Maintained:
    """Compact ``table``, then delete its files that only versions older than ``retain_hours`` use.

    So go the files that a killed sync left, once they are that old.

    Args:
        folder: the table's, on ``filesystem``.
        keep: files of commits that are prepared and not in the table yet.
    """
    if table.handle is None:
        return Maintained()
    properties = WriterProperties(compression="ZSTD", compression_level=1)
    try:
        metrics = table.handle.optimize.compact(writer_properties=properties)
        # Full, for only that finds what no version knows of. Delta may be asked for less than the
        # table's own week; the caller decides.
        listed = table.handle.vacuum(
            retain_hours, dry_run=True, full=True, enforce_retention_duration=False
        )
    except DeltaError as error:
        raise DestinationError(
            f"{table.uri} refused its maintenance ({reason_of(error)}); its rows are as they were. "
            "If something else writes to the table, let it end, then run the maintenance again."
        ) from error
    # Deleted here, for Delta would take a table that stands in a folder of this one, such as a
    # namespace named like a stream, for files that nobody needs.
    deleted = 0
    for file in listed:
        if "/" in file or file in keep:
            continue
        try:
            filesystem.delete_file(f"{folder}/{file}")
        except FileNotFoundError:
            # Delta lists a file that left the table as long as its log tells of it, deleted or not.
            continue
        deleted += 1
    return Maintained(metrics["numFilesRemoved"], metrics["numFilesAdded"], deleted)
