"""Pools: CHECK, DISCOVER and READ of one connection never run at the same time."""

import time

import dagster as dg

from atlas_dagster.listener import Listener
from atlas_dagster.orchestration.operations.cleanup import end_dead_runs
from atlas_dagster.source.connection import Connection

#: The prefix of the names of all pools; the connection's name follows.
POOL_PREFIX = "airbyte_"
_LOOK_SECONDS = 1.0


def pool(connection: Connection) -> str:
    """Return the name of the connection's pool."""
    return f"{POOL_PREFIX}{connection.name}"


def find_holding_runs(instance: dg.DagsterInstance, pool: str) -> list[str]:
    """Return the ids of the runs that hold all slots of ``pool``; empty if a slot is free."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return []
    known = storage.get_concurrency_info(pool)
    if known.active_slot_count < known.slot_count:
        return []
    return sorted({slot.run_id for slot in known.claimed_slots})


def wait_for_turn(instance: dg.DagsterInstance, connection: Connection, listener: Listener) -> None:
    """Wait until no other run of the connection is under way.

    Dagster would wait without a message, and for ever if the other run was killed.
    """
    announced: list[str] = []
    while True:
        end_dead_runs(instance)
        runs = find_holding_runs(instance, pool(connection))
        if not runs:
            return
        if runs != announced:
            listener.info(
                f"Another run of {connection.name} is under way ({', '.join(runs)}); this one "
                "starts when it has ended. Press Ctrl-C to stop waiting."
            )
            announced = runs
        time.sleep(_LOOK_SECONDS)
