"""Run Airbyte source connectors straight from Dagster."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlas_dagster.components.airbyte_connection import AirbyteConnection

__all__ = ["AirbyteConnection"]


def __getattr__(name: str) -> Any:
    # Lazy: the engine and most of the command line work without importing Dagster.
    if name == "AirbyteConnection":
        from atlas_dagster.components.airbyte_connection import AirbyteConnection

        return AirbyteConnection
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
