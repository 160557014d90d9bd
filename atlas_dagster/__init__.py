"""Run Airbyte source connectors straight from Dagster."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlas_dagster.components.airbyte_connection import AirbyteConnection
    from atlas_dagster.components.loading import build_airbyte_assets, load_from_defs_folder
    from atlas_dagster.orchestration.definitions.resource import AtlasResource
    from atlas_dagster.orchestration.definitions.translator import StreamProps
    from atlas_dagster.orchestration.step.run_config import SyncConfig

__all__ = [
    "AirbyteConnection",
    "AtlasResource",
    "StreamProps",
    "SyncConfig",
    "build_airbyte_assets",
    "load_from_defs_folder",
]

_MODULES = {
    "AirbyteConnection": "components.airbyte_connection",
    "AtlasResource": "orchestration.definitions.resource",
    "StreamProps": "orchestration.definitions.translator",
    "SyncConfig": "orchestration.step.run_config",
    "build_airbyte_assets": "components.loading",
    "load_from_defs_folder": "components.loading",
}


def __getattr__(name: str) -> Any:
    # Lazy: the engine and most of the command line work without importing Dagster.
    if name in _MODULES:
        return getattr(import_module(f"atlas_dagster.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # `dg` looks for component types here.
    return [*globals(), *__all__]
