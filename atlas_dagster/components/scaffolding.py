"""``dg scaffold defs atlas_dagster.AirbyteConnection shop --connector source-postgres``."""

import dagster as dg
from pydantic import BaseModel, Field, field_validator

from atlas_dagster.errors import UnknownConnectorError
from atlas_dagster.registry import get_connector_info


class ConnectionParams(BaseModel):
    """What may be said when a connection is scaffolded."""

    connector: str = Field(
        default="source-faker", description="Name of the connector in Airbyte's registry."
    )
    version: str | None = Field(default=None, description="Its version, if not the registry's.")

    @field_validator("connector")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            return get_connector_info(name).name
        except UnknownConnectorError as error:
            raise ValueError(str(error)) from error  # for dg to show


class ConnectionScaffolder(dg.Scaffolder[ConnectionParams]):
    """Writes a connection to fill in."""

    @classmethod
    def get_scaffold_params(cls) -> type[ConnectionParams]:
        return ConnectionParams

    def scaffold(self, request: dg.ScaffoldRequest[ConnectionParams]) -> None:
        asked = request.params
        attributes = {"connector": asked.connector}
        if asked.version is not None:
            attributes["version"] = asked.version
        dg.scaffold_component(request, {**attributes, "config": {}})
