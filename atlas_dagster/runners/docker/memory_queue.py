"""A queue for an engine's memory: connectors start in order of arrival, when there is enough.

The engine itself has the queue. Atlas creates a container with its memory limit as a label, and
starts the container when earlier containers leave enough memory. So the order is the same for all
machines that use the engine. If a process dies while it waits, cleanup removes its container.
"""

from typing import Any

import docker

from atlas_dagster.cancellation import pause
from atlas_dagster.listener import Listener
from atlas_dagster.runners.owner import process_has_ended, split_run_and_process
from atlas_dagster.runners.process_tags import OWNER_LABEL

#: The container's memory limit in bytes.
MEMORY_LABEL = "atlas.memory"
_POLL_SECONDS = 1.0


def wait_for_turn(api: docker.APIClient, container: str, room: int, listener: Listener) -> None:
    """Return when the containers before ``container`` use at most ``room`` bytes of memory.

    The first container never waits. ``listener`` gets one message when the wait begins.
    """
    is_waiting = False
    while (before := _limits_before(api, container)) and sum(before) > room:
        if not is_waiting:
            listener.info(
                "Waiting until other connectors leave enough memory on the Docker engine (before "
                f"this one: {len(before)}); lower executor.memory_limit to run more at once."
            )
            is_waiting = True
        pause(_POLL_SECONDS)


def _limits_before(api: docker.APIClient, container: str) -> list[int]:
    """Return the memory limits of containers that run or were created earlier."""
    filters = {"label": [MEMORY_LABEL], "status": ["created", "running", "paused"]}
    found = api.containers(all=True, filters=filters)
    own_key = next((_order_key(each) for each in found if each["Id"] == container), None)
    return [
        int(each["Labels"][MEMORY_LABEL])
        for each in found
        if each["Id"] != container and _is_before(each, own_key)
    ]


def _is_before(listed: dict[str, Any], own_key: tuple[int, str] | None) -> bool:
    if listed["State"] != "created":
        return True  # it runs already, even if it was created within the same second
    # A container whose owner died while it waited never starts.
    _, process = split_run_and_process(listed["Labels"].get(OWNER_LABEL, ""))
    return (own_key is None or _order_key(listed) < own_key) and not process_has_ended(process)


def _order_key(listed: dict[str, Any]) -> tuple[int, str]:
    return int(listed["Created"]), str(listed["Id"])
