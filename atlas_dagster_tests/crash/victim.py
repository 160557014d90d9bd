"""Processes forked from one that has imported everything, and one sync in such a process.

Nothing but imports may have happened before the fork: neither Delta's nor Arrow's threads survive
one. So whatever looks at tables or event logs does it in a process of its own, too.
"""

import faulthandler
import functools
import multiprocessing
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg

from atlas_dagster.listener import SILENT
from atlas_dagster.orchestration.automation import retries
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.definitions.translator import ConnectionAssets, stream_spec
from atlas_dagster.orchestration.operations.state_admin import StateAdmin
from atlas_dagster.orchestration.step import sync_step as orchestration
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.discovered_catalog import Discovered
from atlas_dagster.sync.session import SyncSession
from atlas_dagster_tests.crash.seam import Point, Seam, Strike
from atlas_dagster_tests.orchestration.connections import define

_processes = multiprocessing.get_context("fork")
Result = TypeVar("Result")


class KilledError(Exception):
    """The process was ended by SIGKILL."""


def forked(
    log: Path, function: Callable[..., Result], *arguments: Any, kill_after: float | None = None
) -> Result:
    """What ``function`` returns in a process of its own, which prints to ``log``.

    Raises:
        KilledError: it was killed: by itself, or by us after ``kill_after`` seconds.
        RuntimeError: with the traceback, where it failed in another way.
    """
    receiver, sender = _processes.Pipe(duplex=False)
    process = _processes.Process(target=_child, args=(sender, log, function, arguments))
    process.start()
    sender.close()
    try:
        if not receiver.poll(kill_after):
            process.kill()
        failed, result = receiver.recv()
    except EOFError:
        process.join()
        if process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"a child ended with {process.exitcode}; see {log}") from None
        raise KilledError from None
    finally:
        receiver.close()
    process.join()
    if failed:
        raise RuntimeError(result)
    return result  # type: ignore[no-any-return]


def _child(
    sender: Any, log: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    faulthandler.enable()
    try:
        answer = (False, function(*arguments))
    except BaseException:  # noqa: BLE001 - told to the parent
        answer = (True, traceback.format_exc())
    sender.send(answer)
    os._exit(0)


@dataclass
class Outcome:
    """How a sync ended; ``failure`` is its one sentence, ``duration`` in seconds."""

    failure: str | None = None
    struck: bool = False
    passed: Counter[Point] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    duration: float = 0.0


def sync(
    home: Path,
    lake: Path,
    connection: Connection,
    discovered: Discovered,
    root: str,
    strike: Strike | None,
) -> Outcome:
    """Materialize all streams of ``connection``, with a commit at every STATE.

    Tries of one ``root`` are one run to Atlas, as those of a schedule are.
    """
    started = time.monotonic()
    seam = Seam(strike)
    patch(seam)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        bury(instance)
        seam.watch_event_log(instance)
        job = define(connection, discovered, lake=lake).resolve_implicit_global_asset_job_def()
        keys = [dg.AssetKey(list(path)) for path in discovered.table_paths.values()]
        ran = job.execute_in_process(
            instance=instance,
            asset_selection=keys,
            raise_on_error=False,
            tags={retries.ROOT_RUN_TAG: root},
        )
    failures = [event.step_failure_data for event in ran.all_events if event.is_step_failure]
    told = [failure.error_display_string for failure in failures if failure]
    failure = None if ran.success else "\n".join(told) or "the run failed"
    return Outcome(failure, seam.struck, seam.passed, seam.seconds, time.monotonic() - started)


def refresh(
    home: Path, lake: Path, connection: Connection, discovered: Discovered, streams: list[str]
) -> None:
    """Ask for ``streams`` to be read again from the beginning, as the command does."""
    with dg.DagsterInstance.from_config(str(home)) as instance:
        bury(instance)
        open_state_admin = StateAdmin(
            ConnectionAssets.of(connection, discovered, stream_spec),
            atlas=AtlasResource(destination=str(lake)),
            instance=instance,
            listener=SILENT,
        )
        open_state_admin.apply(
            lambda upkeep: upkeep.refresh(open_state_admin.find(streams), keep_rows=False)
        )


def patch(seam: Seam) -> None:
    """Make the sync in this process hurry, and ``seam`` watch it."""
    orchestration.SyncSession = functools.partial(SyncSession, commit_seconds=0.0)  # type: ignore[assignment, misc]
    orchestration._SETTLE_SECONDS = 0.0  # we know that the dead are dead
    retries._FIRST_SECONDS = 0.0
    original = AtlasResource.open_destination

    def open_destination(self: AtlasResource, connection: Connection) -> Any:
        destination = original(self, connection)
        seam.watch_destination(destination)
        return destination

    AtlasResource.open_destination = open_destination  # type: ignore[method-assign]


def bury(instance: dg.DagsterInstance) -> None:
    """Do what Dagster's run monitoring does for runs whose process is gone."""
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        instance.report_run_failed(run)
