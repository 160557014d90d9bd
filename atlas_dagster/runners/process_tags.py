"""Processes told apart by marks in their environment, where ``/proc`` shows it (Linux).

A child inherits its parent's environment, so whatever a connector starts carries the marks, even
what has left the process group and outlived its parent. Elsewhere nothing is found.
"""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

#: On every container and process that Atlas starts: the connection it is for.
CONNECTION_LABEL = "atlas.connection"
#: The deployment it belongs to.
DEPLOYMENT_LABEL = "atlas.deployment"
#: Its owner: a process (``command:…`` or ``request:…``), or ``run:<Dagster run id>:`` and the
#: process of the run's step. Older versions leave out the process.
OWNER_LABEL = "atlas.owner"

_PROCESSES = Path("/proc")
_PREFIX = "ATLAS_"
#: Of one call of a connector, and of nothing else.
_TOKEN = "ATLAS_PROCESS"  # noqa: S105 - no secret
_END_SECONDS = 2.0


def process_tags(labels: Mapping[str, str], token: str) -> dict[str, str]:
    """The environment variables that mark a process: ``atlas.owner`` becomes ``ATLAS_OWNER``."""
    return {_variable(label): value for label, value in labels.items()} | {_TOKEN: token}


def tagged_processes() -> Iterator[tuple[int, Mapping[str, str]]]:
    """pid and marks of every living process of this user that some Atlas has marked."""
    for folder in _PROCESSES.glob("[0-9]*"):
        # Gone by now, or not ours to look at.
        with suppress(OSError):
            if folder.stat().st_uid == os.geteuid():
                variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                found = dict(v.split("=", 1) for v in variables if v.startswith(_PREFIX))
                if _TOKEN in found:
                    yield int(folder.name), found


def tag_value(found: Mapping[str, str], label: str) -> str:
    """The value of ``label`` among a process's marks; empty if it has none."""
    return found.get(_variable(label), "")


def end_all(token: str) -> None:
    """Kill every process marked with ``token``, those they start meanwhile too."""
    deadline = time.monotonic() + _END_SECONDS
    while pids := [pid for pid, found in tagged_processes() if found[_TOKEN] == token]:
        for pid in pids:
            kill(pid)
        if time.monotonic() > deadline:  # one that the kernel cannot end now
            return
        time.sleep(0.01)


def kill(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _variable(label: str) -> str:
    return label.upper().replace(".", "_")
