"""Pools of connections: CHECK, DISCOVER and READ of one never run at the same time."""

import time

import dagster as dg

from atlas_dagster.listener import Listener
from atlas_dagster.orchestration.operations.cleanup import end_dead_runs
from atlas_dagster.source.connection import Connection

#: Of the pools of connections, with their name behind it.
POOL_PREFIX = "airbyte_"
_LOOK_SECONDS = 1.0


def pool(connection: Connection) -> str:
    """The name of the connection's pool."""
    return f"{POOL_PREFIX}{connection.name}"


def runs_in(instance: dg.DagsterInstance, pool: str) -> list[str]:
    """The ids of the runs that take all slots of ``pool``; empty while one is free."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return []
    known = storage.get_concurrency_info(pool)
    if known.active_slot_count < known.slot_count:
        return []
    return sorted({slot.run_id for slot in known.claimed_slots})


def wait_for_turn(instance: dg.DagsterInstance, connection: Connection, listener: Listener) -> None:
    """Wait until no other run of the connection is under way, and say that this is so.

    Dagster would wait as well, in silence, and for ever where the other one is killed.
    """
    told: list[str] = []
    while True:
        end_dead_runs(instance)
        runs = runs_in(instance, pool(connection))
        if not runs:
            return
        if runs != told:
            listener.info(
                f"Another run of {connection.name} is under way ({', '.join(runs)}); this one "
                "starts when that has ended. Ctrl-C ends the wait."
            )
            told = runs
        time.sleep(_LOOK_SECONDS)
