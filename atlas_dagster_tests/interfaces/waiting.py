"""Waiting for what comes soon, on a busy machine too."""

import time
from collections.abc import Callable

import docker

from atlas_dagster.runners.process_tags import CONNECTION_LABEL, tag_value, tagged_processes

PATIENCE = 60.0


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.1)


def at_work(client: docker.DockerClient | None, connection: str) -> int:
    """Containers of ``connection``, dead ones too, or its processes where there is no client."""
    if client is None:
        return sum(
            tag_value(marks, CONNECTION_LABEL) == connection for _, marks in tagged_processes()
        )
    filters = {"label": f"{CONNECTION_LABEL}={connection}"}
    return len(client.api.containers(all=True, filters=filters))
