"""Compaction of small files, and deletion of files that no version of a table needs.

Neither changes the ``seq`` of a table: an application transaction survives OPTIMIZE, checkpoints
and log clean-up. Compaction is a commit of the operation OPTIMIZE, without a ``seq``. It changes no
row, so it is not an external change. Deleting files makes no commit.
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

    This also deletes files of killed syncs, once they are that old.

    Args:
        folder: the table's folder, on ``filesystem``.
        keep: files of commits that are prepared and not in the table yet.
    """
    if table.handle is None:
        return Maintained()
    properties = WriterProperties(compression="ZSTD", compression_level=1)
    try:
        metrics = table.handle.optimize.compact(writer_properties=properties)
        # Only a full vacuum finds files that no version lists. The caller's retention may be
        # shorter than the table's own (a week by default).
        listed = table.handle.vacuum(
            retain_hours, dry_run=True, full=True, enforce_retention_duration=False
        )
    except DeltaError as error:
        raise DestinationError(
            f"Maintenance of {table.uri} failed ({reason_of(error)}); its rows are unchanged. Run "
            "it again once no other program writes to the table."
        ) from error
    # Not deleted by Delta: it would also delete another table in a subfolder of this one, such as
    # in a namespace with the name of this stream.
    deleted = 0
    for file in listed:
        if "/" in file or file in keep:
            continue
        try:
            filesystem.delete_file(f"{folder}/{file}")
        except FileNotFoundError:
            # Delta lists a removed file while its log mentions it, even if it is already deleted.
            continue
        deleted += 1
    return Maintained(metrics["numFilesRemoved"], metrics["numFilesAdded"], deleted)
