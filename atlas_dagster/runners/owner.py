"""Processes as owners of connectors: identify them, and find out whether they have ended.

A host name and a pid do not identify a process: containers on the host's network, containers with
the same ``hostname`` and cloned machines share names, but have their own pids. So on Linux, an
owner also contains its place: the boot of the machine, and the namespace of the pid.

This module imports only the standard library, so that its tests can run it inside any container.
"""

import hashlib
import os
import re
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, Self, get_args

Kind = Literal["command", "request"]
_KINDS = get_args(Kind)
#: The host name that Docker gives a container by default.
_CONTAINER = re.compile("[0-9a-f]{12}|[0-9a-f]{64}")
#: Docker, Podman and containerd mount this file from a folder that is named by the container's id.
_HOSTNAME_FILE = re.compile(r"/([0-9a-f]{64})/\S*hostname /etc/hostname ")
#: The layer that a container writes to.
_WRITABLE_LAYER = re.compile(r"^\d+ \d+ \S+ \S+ / .*[ ,]upperdir=([^\s,]+)", re.MULTILINE)
#: The pid namespace of the machine itself (``PROC_PID_INIT_INO`` of the kernel).
_MACHINES_NAMESPACE = "4026531836"


class _Place(NamedTuple):
    """The boot of a machine and the pid namespace in which a pid is valid.

    ``home`` identifies the machine or the container, also after restarts; empty if unknown. ``ipc``
    is a namespace that changes when the container restarts, but not when a program in the container
    creates another pid namespace.
    """

    boot: str
    pids: str
    ipc: str
    home: str

    @classmethod
    def parse(cls, text: str) -> Self | None:
        parts = text.split("/")
        return cls(*parts) if len(parts) == len(cls._fields) else None

    def __str__(self) -> str:
        return "/".join(self)

    def shares_pids_with(self, other: Self) -> bool:
        return (self.boot, self.pids) == (other.boot, other.pids)

    def has_replaced(self, earlier: Self) -> bool:
        """Return whether this is the machine or container of ``earlier`` after a restart."""
        restarted = (self.boot, self.ipc) != (earlier.boot, earlier.ipc)
        return bool(self.home) and self.home == earlier.home and restarted

    @property
    def container(self) -> str:
        return self.home.partition(".")[0]


def this_process(kind: Kind = "command") -> str:
    """Return the owner of connectors that this process starts."""
    return identify(os.getpid(), kind)


def identify(pid: int, kind: Kind = "command") -> str:
    """Return ``<kind>:<host>:<pid>:<start>[:<place>]`` of a process in this process's namespace.

    The start time distinguishes processes that had the same pid. Without /proc there is no place.
    """
    place = _this_place()
    owner = f"{kind}:{socket.gethostname()}:{pid}:{_find_start_time(pid)}"
    return owner if place is None else f"{owner}:{place}"


def process_has_ended(owner: str) -> bool:
    """Return whether ``owner``, made by :func:`this_process`, has certainly ended.

    False for a process on another machine or in another container, which cannot be seen from here.
    Owners of older versions have no place, so their host name decides.
    """
    kind, host, pid, start, place = _split_owner(owner)
    if kind not in _KINDS or not pid.isdigit():
        return False
    here = _this_place()
    if place is None:
        if host != socket.gethostname():
            return False
    elif here is None:
        return False
    elif not here.shares_pids_with(place):
        return here.has_replaced(place)
    if not _is_alive(int(pid)):
        return True
    # Without /proc there is no start time, so the pid alone decides.
    now = _find_start_time(int(pid))
    return bool(start and now) and start != now


def split_run_and_process(owner: str) -> tuple[str | None, str]:
    """Return the id of ``owner``'s Dagster run, if any, and its process."""
    kind, _, rest = owner.partition(":")
    if kind != "run":
        return None, owner
    run_id, _, process = rest.partition(":")
    return run_id, process


def find_container(owner: str) -> str | None:
    """Return the id of the container of the process ``owner``, if it is known."""
    kind, host, _, _, place = _split_owner(owner)
    name = (place.container if place is not None else "") or host
    return name if kind in _KINDS and _CONTAINER.fullmatch(name) else None


def this_container() -> str:
    """Return the id or name of this process's container, or else the host name."""
    return find_container(this_process()) or socket.gethostname()


def _split_owner(owner: str) -> tuple[str, str, str, str, _Place | None]:
    """Return kind, host, pid, start and place; empty or None if missing."""
    parts = [*owner.split(":", 4), "", "", "", ""]
    kind, host, pid, start, place = parts[:5]
    return kind, host, pid, start, _Place.parse(place)


@cache
def _this_place() -> _Place | None:
    """Return the place of this process; None without /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pids, ipc = (_find_namespace(kind) for kind in ("pid", "ipc"))
    except OSError:
        return None
    home = _machine_id() if pids == _MACHINES_NAMESPACE else _container_id()
    return _Place(boot, pids, ipc, home)


def _find_namespace(kind: str) -> str:
    """Return the number of this process's namespace, which no other current namespace has."""
    return Path(f"/proc/self/ns/{kind}").readlink().name.partition("[")[2].rstrip("]")


def _machine_id() -> str:
    """Return a hash that identifies this machine, also after restarts; empty if it has no id.

    A clone may have the same id, but not the same network cards.
    """
    try:
        identity = Path("/etc/machine-id").read_text().strip()
    except OSError:
        return ""
    cards = []
    for device in sorted(Path("/sys/class/net").glob("*/device")):
        with suppress(OSError):
            cards.append((device.parent / "address").read_text().strip())
    if not identity:
        return ""
    return "m" + hashlib.sha256("\n".join([identity, *cards]).encode()).hexdigest()[:16]


def _container_id() -> str:
    """Return ``<id>.<layer>`` of this process's container; empty outside of a container.

    Containers in one network share the file with the id, but not the layer that they write to.
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return ""
    name, layer = _HOSTNAME_FILE.search(mounts), _WRITABLE_LAYER.search(mounts)
    if name is None or layer is None:
        return ""
    return f"{name[1]}.{hashlib.sha256(layer[1].encode()).hexdigest()[:8]}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _find_start_time(pid: int) -> str:
    """Return when the process started, in clock ticks since boot; empty without /proc."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The name in parentheses may contain anything. The start is field 22 (proc(5)).
    return status.rpartition(")")[2].split()[19]
