"""Labels of containers and processes, and a search for processes with them.

A process has its labels as environment variables, which ``/proc`` shows on Linux. Children inherit
them, so all processes of a connector have labels, even those that left its process group and
outlived it. On other systems, the search finds nothing.
"""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

#: The connection; a label of every container and process that Atlas starts.
CONNECTION_LABEL = "atlas.connection"
#: The deployment.
DEPLOYMENT_LABEL = "atlas.deployment"
#: The owner: a process (``command:…`` or ``request:…``), or ``run:<Dagster run id>:`` and the
#: process of the run's step. Older versions leave out the process.
OWNER_LABEL = "atlas.owner"

_PROCESSES = Path("/proc")
_PREFIX = "ATLAS_"
#: Identifies one call of a connector.
_TOKEN = "ATLAS_PROCESS"  # noqa: S105 - no secret
_END_SECONDS = 2.0


def process_tags(labels: Mapping[str, str], token: str) -> dict[str, str]:
    """Return the environment variables for ``labels``: ``atlas.owner`` becomes ``ATLAS_OWNER``."""
    return {_variable_name(label): value for label, value in labels.items()} | {_TOKEN: token}


def tagged_processes() -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield pid and tags of every process of this user that has tags of Atlas."""
    for folder in _PROCESSES.glob("[0-9]*"):
        # OSError: the process has ended, or belongs to another user.
        with suppress(OSError):
            if folder.stat().st_uid == os.geteuid():
                variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                tags = dict(v.split("=", 1) for v in variables if v.startswith(_PREFIX))
                if _TOKEN in tags:
                    yield int(folder.name), tags


def tag_value(tags: Mapping[str, str], label: str) -> str:
    """Return the value of ``label`` in a process's tags; empty if there is none."""
    return tags.get(_variable_name(label), "")


def kill_all(token: str) -> None:
    """Kill all processes with ``token``, and those that they start meanwhile."""
    deadline = time.monotonic() + _END_SECONDS
    while pids := [pid for pid, tags in tagged_processes() if tags[_TOKEN] == token]:
        for pid in pids:
            kill(pid)
        if time.monotonic() > deadline:  # the kernel cannot end a process now
            return
        time.sleep(0.01)


def kill(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _variable_name(label: str) -> str:
    return label.upper().replace(".", "_")
