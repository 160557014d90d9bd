"""The containers that Atlas makes for a project, as the Docker engine knows them."""

import time

from docker import DockerClient
from docker.models.containers import Container

from atlas_dagster_tests.e2e.project import Project


def containers_of(
    client: DockerClient, project: Project, connection: str | None = None
) -> list[Container]:
    """The project's containers, running or dead."""
    filters = {"label": _labels(project, connection)}
    return client.containers.list(all=True, filters=filters, ignore_removed=True)


def containers_since(
    client: DockerClient, project: Project, connection: str, since: float
) -> list[str]:
    """Names of the containers made since then, also of those that are gone again."""
    filters = {"event": "create", "label": _labels(project, connection)}
    made = client.events(since=since, until=time.time(), filters=filters, decode=True)
    return [event["Actor"]["Attributes"]["name"] for event in made]


def _labels(project: Project, connection: str | None) -> list[str]:
    labels = [f"atlas.deployment={project.deployment}"]
    return labels if connection is None else [*labels, f"atlas.connection={connection}"]
