"""How many connectors an engine runs at once: as many as it has memory for, in order of arrival.

The engine itself keeps the queue. A container is created first, with a label of the memory it may
take, and started when those before it leave enough. So the order holds for everyone who uses the
engine, from whichever machine, and who dies while waiting leaves no more than the reaper removes.
"""

from collections.abc import Callable
from typing import Any

import docker

from atlas_dagster.cancellation import pause
from atlas_dagster.runners.owner import process_has_ended, run_and_process
from atlas_dagster.runners.process_tags import OWNER_LABEL

#: Bytes that the container may take.
MEMORY_LABEL = "atlas.memory"
_POLL_SECONDS = 1.0


def wait_for_turn(
    api: docker.APIClient, container: str, room: int, explain: Callable[[str], None]
) -> None:
    """Return when those before ``container`` take no more than ``room`` bytes of memory.

    One that nobody is before can always be started. ``explain`` is told, once, of having to wait.
    """
    told = False
    while (before := _before(api, container)) and sum(before) > room:
        if not told:
            explain(
                "Waiting until other connectors leave enough memory on the Docker engine (before "
                f"this one: {len(before)}); lower executor.memory_limit to run more at once."
            )
            told = True
        pause(_POLL_SECONDS)


def _before(api: docker.APIClient, container: str) -> list[int]:
    """The memory of those that run already or were created earlier."""
    filters = {"label": [MEMORY_LABEL], "status": ["created", "running", "paused"]}
    found = api.containers(all=True, filters=filters)
    place = next((_place(each) for each in found if each["Id"] == container), None)
    return [
        int(each["Labels"][MEMORY_LABEL])
        for each in found
        if each["Id"] != container and _is_before(each, place)
    ]


def _is_before(listed: dict[str, Any], place: tuple[int, str] | None) -> bool:
    if listed["State"] != "created":
        return True  # created within the same second, the running one came first
    # One whose owner died while it waited never starts, and maybe nobody is there to remove it.
    _, process = run_and_process(listed["Labels"].get(OWNER_LABEL, ""))
    return (place is None or _place(listed) < place) and not process_has_ended(process)


def _place(listed: dict[str, Any]) -> tuple[int, str]:
    return int(listed["Created"]), str(listed["Id"])
