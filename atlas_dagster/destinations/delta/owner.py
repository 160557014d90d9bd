"""Which deployment the tables of a connection belong to.

Kept as the name of an empty Delta table, for making one is atomic on every store: of two that come
at the same time, one is refused.
"""

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.exceptions import DeltaError, TableNotFoundError

from atlas_dagster.destinations.delta.filesystem import unusable

_SCHEMA = Schema.from_arrow(pa.schema([("deployment", pa.string())]))


def claim_ownership(uri: str, deployment: str) -> str:
    """Write ``deployment`` down unless there is an owner; who it is.

    Raises:
        ConfigError: the store does not let us look.
        TransientError: the store does not answer.
    """
    try:
        return _owner(DeltaTable(uri))
    except TableNotFoundError:
        pass
    except OSError as error:
        raise unusable(uri, error) from error
    # Tried once: told that another was faster, Delta would make the table a second time.
    once = CommitProperties(max_commit_retries=0)
    try:
        return _owner(
            DeltaTable.create(uri, _SCHEMA, mode="error", name=deployment, commit_properties=once)
        )
    except DeltaError:
        return _owner(DeltaTable(uri))  # another was faster


def transfer_ownership(uri: str, deployment: str) -> None:
    """Make ``deployment`` the owner, and no other one."""
    if claim_ownership(uri, deployment) != deployment:
        DeltaTable(uri).alter.set_table_name(deployment)


def _owner(table: DeltaTable) -> str:
    return str(table.metadata().name)
