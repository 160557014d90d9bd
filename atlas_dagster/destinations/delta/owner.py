"""The owner of a connection's tables: a deployment.

It is stored as the name of an empty Delta table, because creating a Delta table is atomic on every
store: of two deployments that do so at the same time, one fails.
"""

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.exceptions import DeltaError, TableNotFoundError

from atlas_dagster.destinations.delta.filesystem import unusable

_SCHEMA = Schema.from_arrow(pa.schema([("deployment", pa.string())]))


def claim_ownership(uri: str, deployment: str) -> str:
    """Make ``deployment`` the owner unless there is one; return the owner.

    Raises:
        ConfigError: the store denies access.
        TransientError: the store does not answer.
    """
    try:
        return _owner(DeltaTable(uri))
    except TableNotFoundError:
        pass
    except OSError as error:
        raise unusable(uri, error) from error
    # No retries: after a conflict, Delta would create the table a second time.
    once = CommitProperties(max_commit_retries=0)
    try:
        return _owner(
            DeltaTable.create(uri, _SCHEMA, mode="error", name=deployment, commit_properties=once)
        )
    except DeltaError:
        return _owner(DeltaTable(uri))  # another deployment was faster


def transfer_ownership(uri: str, deployment: str) -> None:
    """Make ``deployment`` the owner, and no other one."""
    if claim_ownership(uri, deployment) != deployment:
        DeltaTable(uri).alter.set_table_name(deployment)


def _owner(table: DeltaTable) -> str:
    return str(table.metadata().name)
