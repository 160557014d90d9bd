"""Changes of a Delta table made outside of Atlas since its last commit.

The ``seq`` of a table survives restores, deletes and overwrites, so it does not prove that the rows
are those of its commit. The Delta log does: it is read backwards to our own last commit, which is
usually its newest file.
"""

import datetime as dt

import msgspec
import pyarrow.fs as pafs
from msgspec import Struct

from atlas_dagster.destinations.delta.table import LakeTable


class _Transaction(Struct, rename="camel"):
    app_id: str


class _DataAction(Struct, rename="camel"):
    data_change: bool = True


class _CommitInfo(Struct, rename="camel"):
    operation: str = "a write"
    timestamp: int | None = None
    user_name: str | None = None
    engine_info: str | None = None


class _Action(Struct, rename="camel"):
    """One line of a commit: https://github.com/delta-io/delta/blob/master/PROTOCOL.md#actions."""

    txn: _Transaction | None = None
    add: _DataAction | None = None
    remove: _DataAction | None = None
    commit_info: _CommitInfo | None = None

    @property
    def changes_data(self) -> bool:
        return any(action is not None and action.data_change for action in (self.add, self.remove))


def find_external_change(table: LakeTable, filesystem: pafs.FileSystem, folder: str) -> str | None:
    """Describe the newest change of rows made outside of Atlas; None if there is none.

    Compaction, vacuum and changes of properties or columns change no row. If the log was cleaned
    up, the result is None.

    Args:
        folder: the table's, on ``filesystem``.
    """
    for version in range(table.version, -1, -1):
        try:
            with filesystem.open_input_file(f"{folder}/_delta_log/{version:020}.json") as log:
                actions = [
                    msgspec.json.decode(line, type=_Action) for line in log.read().splitlines()
                ]
        except FileNotFoundError:
            return None
        if any(action.txn and action.txn.app_id == table.app_id for action in actions):
            return None
        if any(action.changes_data for action in actions):
            infos = (action.commit_info for action in actions if action.commit_info)
            return _describe_change(version, next(infos, _CommitInfo()))
    return None


def _describe_change(version: int, info: _CommitInfo) -> str:
    by = info.user_name or info.engine_info
    at = info.timestamp and dt.datetime.fromtimestamp(info.timestamp / 1000, dt.UTC)
    facts = [info.operation, f"at {at:%Y-%m-%d %H:%M} UTC" if at else "", f"by {by}" if by else ""]
    return f"version {version}, {' '.join(filter(None, facts))}"
