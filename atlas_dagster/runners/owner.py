"""Processes of this machine as owners of connectors: who they are, and whether they have ended."""

import os
import re
import socket
from pathlib import Path
from typing import Literal, get_args

Kind = Literal["command", "request"]
_KINDS = get_args(Kind)
#: How Docker names the host that a container is, where nobody does.
_CONTAINER = re.compile("[0-9a-f]{12}")


def this_process(kind: Kind = "command") -> str:
    """The owner of what this process starts itself."""
    return identify(os.getpid(), kind)


def identify(pid: int, kind: Kind = "command") -> str:
    """``<kind>:<host>:<pid>:<start>``; the start tells two processes with one pid apart."""
    return f"{kind}:{socket.gethostname()}:{pid}:{_start(pid)}"


def process_has_ended(owner: str) -> bool:
    """Whether ``owner``, as made by :func:`this_process`, has ended; False if it is another's."""
    kind, _, name = owner.partition(":")
    host, _, process = name.partition(":")
    pid, _, start = process.partition(":")
    if kind not in _KINDS or host != socket.gethostname() or not pid.isdigit():
        return False
    if not _is_alive(int(pid)):
        return True
    # A start is unknown where there is no /proc; then the pid has to do.
    now = _start(int(pid))
    return bool(start and now) and start != now


def container_of(owner: str) -> str | None:
    """The id of the container that the process ``owner`` is in, as far as its host tells."""
    kind, _, name = owner.partition(":")
    host = name.partition(":")[0]
    return host if kind in _KINDS and _CONTAINER.fullmatch(host) else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _start(pid: int) -> str:
    """When the process started, in clock ticks since boot; empty where there is no /proc."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The name in parentheses may hold anything; the start is field 22 (proc(5)).
    return status.rpartition(")")[2].split()[19]
