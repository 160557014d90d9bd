"""What disturbed syncs leave behind. Called in a child only."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import docker

from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.operations.cleanup import reap_ended
from atlas_dagster.runners.process_tags import DEPLOYMENT_LABEL, tag_value, tagged_processes
from atlas_dagster_tests.crash.victim import bury


@dataclass
class Leftovers:
    """``files`` were never in a table: maintenance removes them. ``envelopes``: all there are."""

    containers: int
    processes: int
    files: int
    envelopes: int


def leftovers(home: Path, lake: Path) -> Leftovers:
    """What is left once the reaper has been, as its sensor would be."""
    atlas = AtlasResource(destination=str(lake))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        bury(instance)
        reap_ended(instance, atlas)
    deployment = atlas.deployment_label()
    return Leftovers(
        containers=_containers(deployment),
        processes=sum(
            tag_value(found, DEPLOYMENT_LABEL) == deployment for _, found in tagged_processes()
        ),
        files=sum(map(_untracked, (log.parent for log in lake.rglob("_delta_log")))),
        envelopes=sum(1 for _ in lake.glob("_atlas/*/*.json")),
    )


def _containers(deployment: str) -> int:
    try:
        with closing(docker.from_env(timeout=60)) as client:
            label = f"{DEPLOYMENT_LABEL}={deployment}"
            return len(client.api.containers(all=True, filters={"label": label}))
    except docker.errors.DockerException:
        return 0


def _untracked(table: Path) -> int:
    """Data files that no version of the table has ever had."""
    written = {path.name for path in table.glob("*.parquet")}
    known = set()
    for line in (line for log in table.glob("_delta_log/*.json") for line in log.open()):
        known |= {name for name in written if name in line}
    return len(written - known)
