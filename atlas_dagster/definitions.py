"""The code location: every connection of ``connections/``, what they share, the reaper."""

import dagster as dg

from atlas_dagster.components.loading import load_connections
from atlas_dagster.orchestration.io_manager import common_resources
from atlas_dagster.orchestration.reaping import reaper_sensor
from atlas_dagster.orchestration.resource import AtlasResource
from atlas_dagster.orchestration.secret_files import load_secret_files

CONNECTIONS = "atlas_dagster.connections"


def common_defs() -> dg.Definitions:
    """What all connections share."""
    return dg.Definitions(
        resources=common_resources(AtlasResource.from_environment()), sensors=[reaper_sensor]
    )


@dg.definitions
def defs() -> dg.Definitions:
    load_secret_files()
    return dg.Definitions.merge(*load_connections(CONNECTIONS), common_defs())
