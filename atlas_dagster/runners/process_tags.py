"""Labels of containers and processes, and a search for processes with them.

A process carries its labels as environment variables, which ``/proc`` shows on Linux. Children
inherit them, so all processes of a connector have them, even those that left its process group and
outlived it. On other systems the search finds nothing.
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
#: Identifies one call of a connector.
_TOKEN = "ATLAS_PROCESS"  # noqa: S105 - no secret
_END_SECONDS = 2.0


def process_tags(labels: Mapping[str, str], token: str) -> dict[str, str]:
    """Return the environment variables for ``labels``: ``atlas.owner`` becomes ``ATLAS_OWNER``."""
    return {_variable(label): value for label, value in labels.items()} | {_TOKEN: token}


def tagged_processes() -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield pid and tags of every living process of this user that has tags of Atlas."""
    for folder in _PROCESSES.glob("[0-9]*"):
        # It has ended, or belongs to another user.
        with suppress(OSError):
            if folder.stat().st_uid == os.geteuid():
                variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                found = dict(v.split("=", 1) for v in variables if v.startswith(_PREFIX))
                if _TOKEN in found:
                    yield int(folder.name), found


def tag_value(found: Mapping[str, str], label: str) -> str:
    """Return the value of ``label`` in a process's tags; empty if it has none."""
    return found.get(_variable(label), "")


def end_all(token: str) -> None:
    """Kill all processes with ``token``, and those that they start meanwhile."""
    deadline = time.monotonic() + _END_SECONDS
    while pids := [pid for pid, found in tagged_processes() if found[_TOKEN] == token]:
        for pid in pids:
            kill(pid)
        if time.monotonic() > deadline:  # the kernel cannot end one now
            return
        time.sleep(0.01)


def kill(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _variable(label: str) -> str:
    return label.upper().replace(".", "_")
