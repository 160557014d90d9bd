"""Names of Dagster that are not part of its public API. No other module may import such names.

A comment gives the reason for each name. A new minor version of Dagster may move or change any of
them; atlas_dagster_tests/orchestration/test_dagster_internals.py uses each of them.
"""

from typing import TYPE_CHECKING

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_factories.schema_change_checks import (
    TableSchemaDiff,
)
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from dagster._core.definitions.definitions_load_context import (
    DefinitionsLoadContext,
    DefinitionsLoadType,
)
from dagster._core.definitions.metadata.metadata_set import NamespacedMetadataSet, TableMetadataSet
from dagster._core.execution.backfill import (
    BULK_ACTION_TERMINAL_STATUSES,
    BulkActionsFilter,
    BulkActionStatus,
)
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.objects import StepFailureData
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.in_process import InProcessExecutor
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.defs_state.base import DefsStateStorage
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetKeyTable,
    SqlEventLogStorageTable,
)
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._core.storage.tags import (
    BACKFILL_ID_TAG,
    MAX_RETRIES_TAG,
    PARENT_RUN_ID_TAG,
    RUN_KEY_TAG,
)
from dagster._core.utils import make_new_run_id
from dagster._utils.schedules import (
    get_latest_completed_cron_tick,
    get_next_cron_tick,
    is_valid_cron_string,
    schedule_execution_time_iterator,
)
from dagster.components.core.decl import (
    ComponentDecl,
    ComponentLoaderDecl,
    ComponentRootDecl,
    DefsFolderDecl,
    build_filesystem_component_decl_from_context,
)
from dagster.components.core.defs_module import (
    ComponentLoc,
    ComponentPath,
    ComponentRootLoc,
    ResolvableToComponentLoc,
    find_defs_or_component_yaml,
)
from dagster.components.core.load_defs import get_library_json_enriched_defs
from dagster.components.definitions import LazyDefinitions
from dagster.components.resolved.errors import ResolutionException
from dagster.components.utils.translation import TranslationFn, TranslationFnResolver
from dagster_shared.check import CheckError
from dagster_shared.error import DagsterUnresolvableSymbolError
from dagster_shared.serdes.errors import DeserializationError
from dagster_shared.serdes.objects.models.defs_state_info import DefsStateManagementType
from dagster_shared.utils import safe_is_subclass
from dagster_shared.utils.config import discover_config_file

if TYPE_CHECKING:
    from dagster._core.storage.runs.sql_run_storage import SqlRunStorage as SqlRunStorage

__all__ = [  # noqa: RUF022 - sorted by purpose
    # Pruning keeps the run of each asset's and check's newest event; only SQL finds them all.
    # Events that the serializer cannot read are repaired in these tables.
    "AssetCheckExecutionsTable",
    "AssetKeyTable",
    "SqlEventLogStorage",
    "SqlEventLogStorageTable",
    "SqliteEventLogStorage",  # deletes a run's rows, but not its file
    # Pruning keeps the runs of backfills under way, and runs that other runs refer to.
    "BACKFILL_ID_TAG",
    "BULK_ACTION_TERMINAL_STATUSES",
    "BulkActionStatus",
    "BulkActionsFilter",
    "PARENT_RUN_ID_TAG",
    "RUN_KEY_TAG",
    # A check that is executed without its sync repeats its last result.
    "AssetCheckExecutionRecordStatus",
    # Dagster's errors for an event that it cannot read.
    "CheckError",
    "DeserializationError",
    # Each folder of the project loads by itself: Dagster fails all if one of them fails.
    "ComponentDecl",
    "ComponentLoaderDecl",
    "ComponentLoc",
    "ComponentPath",
    "ComponentRootDecl",
    "ComponentRootLoc",
    "DefsFolderDecl",
    "ResolvableToComponentLoc",
    "build_filesystem_component_decl_from_context",
    "discover_config_file",
    "find_defs_or_component_yaml",
    "get_library_json_enriched_defs",
    "safe_is_subclass",
    "LazyDefinitions",  # what `@definitions` makes: connections that are declared in Python
    # The errors of a declaration, which become one sentence with file and line.
    "DagsterUnresolvableSymbolError",
    "ResolutionException",
    # The cached catalog is read outside of a load, too: its newest version.
    "DefinitionsLoadContext",
    "DefinitionsLoadType",
    "DefsStateManagementType",
    "DefsStateStorage",
    # The field `translation`, as Dagster's own integrations have it.
    "TranslationFn",
    "TranslationFnResolver",
    # The data version of a stream that was not selected but read along.
    "DATA_VERSION_TAG",
    # Metadata with a namespace, and `dagster/column_schema` read back.
    "NamespacedMetadataSet",
    "TableMetadataSet",
    "TableSchemaDiff",  # how the columns of two syncs differ
    # The executor that runs the steps of one connection in the run's own process.
    "ExecutionPlan",
    "InProcessExecutor",
    "PlanOrchestrationContext",
    "RetryMode",
    # `atlas sync`: the run's id is known before it starts, and no step is retried by Dagster.
    "MAX_RETRIES_TAG",
    "StepFailureData",
    "make_new_run_id",
    # Cron expressions mean the same here as in Dagster's schedules.
    "get_latest_completed_cron_tick",
    "get_next_cron_tick",
    "is_valid_cron_string",
    "schedule_execution_time_iterator",
    # Renewed configs are kept in the key-value table of Dagster's database.
    "sql_run_storage",
]


def sql_run_storage(instance: dg.DagsterInstance) -> "SqlRunStorage | None":
    """Return the run storage of ``instance`` if it is an SQL database."""
    # The import takes 0.1 s, and loading definitions does not need it.
    from dagster._core.storage.runs.sql_run_storage import SqlRunStorage

    storage = instance.run_storage
    return storage if isinstance(storage, SqlRunStorage) else None
