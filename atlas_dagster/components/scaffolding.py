"""``dg scaffold defs atlas_dagster.AirbyteConnection shop --connector source-postgres``."""

import dagster as dg
from pydantic import BaseModel, Field

from atlas_dagster.registry import get_connector_info


class ConnectionParams(BaseModel):
    """What may be said when a connection is scaffolded."""

    connector: str = Field(
        default="source-faker", description="Name of the connector in Airbyte's registry."
    )
    version: str | None = Field(default=None, description="Its version, if not the registry's.")


class ConnectionScaffolder(dg.Scaffolder[ConnectionParams]):
    """Writes a connection to fill in."""

    @classmethod
    def get_scaffold_params(cls) -> type[ConnectionParams]:
        return ConnectionParams

    def scaffold(self, request: dg.ScaffoldRequest[ConnectionParams]) -> None:
        """Raises UnknownConnectorError, with the nearest names."""
        asked = request.params
        attributes = {"connector": get_connector_info(asked.connector).name}
        if asked.version is not None:
            attributes["version"] = asked.version
        dg.scaffold_component(request, {**attributes, "config": {}})
