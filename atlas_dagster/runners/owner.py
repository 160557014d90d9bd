"""Processes as owners of connectors: how they are identified, and whether they have ended.

A host name and a pid do not identify a process: containers on the host's network, containers with
one ``hostname`` and cloned machines have the same names and count their own pids. So where Linux
tells, an owner names the place of its process, too: the boot of the machine and the namespace that
the pid belongs to.
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
#: How Docker names the host that a container is, where nobody does.
_CONTAINER = re.compile("[0-9a-f]{12}|[0-9a-f]{64}")
#: The file that Docker, Podman and containerd mount into a container, from a folder with its id.
_HOSTNAME_FILE = re.compile(r"/([0-9a-f]{64})/\S*hostname /etc/hostname ")
#: The layer of an image that a container writes to.
_WRITABLE_LAYER = re.compile(r"^\d+ \d+ \S+ \S+ / .*[ ,]upperdir=([^\s,]+)", re.MULTILINE)
#: The machine's own namespace of pids (``PROC_PID_INIT_INO`` of the kernel).
_MACHINES_NAMESPACE = "4026531836"


class _Place(NamedTuple):
    """Where a pid counts: the boot of the machine, and the namespace of the pids.

    ``home`` outlasts restarts: it stands for the machine or the container, and is empty where
    neither can be made out. ``ipc`` is a namespace that a container gets anew when it restarts,
    and that whoever makes just another namespace of pids in it keeps.
    """

    boot: str
    pids: str
    ipc: str
    home: str

    @classmethod
    def parsed(cls, text: str) -> Self | None:
        parts = text.split("/")
        return cls(*parts) if len(parts) == len(cls._fields) else None

    def __str__(self) -> str:
        return "/".join(self)

    def has_pids_of(self, other: Self) -> bool:
        return (self.boot, self.pids) == (other.boot, other.pids)

    def has_replaced(self, earlier: Self) -> bool:
        """Whether this is the same machine or container, restarted since ``earlier``."""
        restarted = (self.boot, self.ipc) != (earlier.boot, earlier.ipc)
        return bool(self.home) and self.home == earlier.home and restarted

    @property
    def container(self) -> str:
        return self.home.partition(".")[0]


def this_process(kind: Kind = "command") -> str:
    """The owner of what this process starts itself."""
    return identify(os.getpid(), kind)


def identify(pid: int, kind: Kind = "command") -> str:
    """``<kind>:<host>:<pid>:<start>[:<place>]`` of a process in our own namespace.

    The start tells two processes with one pid apart. There is no place where there is no /proc.
    """
    place = _here()
    owner = f"{kind}:{socket.gethostname()}:{pid}:{_start(pid)}"
    return owner if place is None else f"{owner}:{place}"


def process_has_ended(owner: str) -> bool:
    """Whether ``owner``, as made by :func:`this_process`, has certainly ended.

    False if it cannot be seen from here: a process on another machine or in another container.
    Owners of older versions have no place; their host has to do.
    """
    kind, host, pid, start, place = _parts(owner)
    if kind not in _KINDS or not pid.isdigit():
        return False
    here = _here()
    if place is None:
        if host != socket.gethostname():
            return False
    elif here is None:
        return False
    elif not here.has_pids_of(place):
        return here.has_replaced(place)
    if not _is_alive(int(pid)):
        return True
    # A start is unknown where there is no /proc; then the pid has to do.
    now = _start(int(pid))
    return bool(start and now) and start != now


def run_and_process(owner: str) -> tuple[str | None, str]:
    """The id of ``owner``'s Dagster run, if it has one, and its process."""
    kind, _, rest = owner.partition(":")
    if kind != "run":
        return None, owner
    run_id, _, process = rest.partition(":")
    return run_id, process


def container_of(owner: str) -> str | None:
    """The id of the container that the process ``owner`` is in, as far as it is known."""
    kind, host, _, _, place = _parts(owner)
    name = (place.container if place is not None else "") or host
    return name if kind in _KINDS and _CONTAINER.fullmatch(name) else None


def this_container() -> str:
    """What the engine beside us knows our container by, if this process is in one."""
    return container_of(this_process()) or socket.gethostname()


def _parts(owner: str) -> tuple[str, str, str, str, _Place | None]:
    """Kind, host, pid, start and place; empty or None where there is none."""
    parts = [*owner.split(":", 4), "", "", "", ""]
    kind, host, pid, start, place = parts[:5]
    return kind, host, pid, start, _Place.parsed(place)


@cache
def _here() -> _Place | None:
    """The place of this process; None where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pids, ipc = (_namespace(kind) for kind in ("pid", "ipc"))
    except OSError:
        return None
    return _Place(boot, pids, ipc, _machine() if pids == _MACHINES_NAMESPACE else _container())


def _namespace(kind: str) -> str:
    """The number of the namespace that this process is in; no two at a time have the same."""
    return Path(f"/proc/self/ns/{kind}").readlink().name.partition("[")[2].rstrip("]")


def _machine() -> str:
    """A hash that stands for this machine, over its restarts; empty where it has no id.

    A clone may have the same id, yet not the same network cards.
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


def _container() -> str:
    """``<id>.<layer>`` of the container that this process is in; empty where it has none.

    Containers that share a network share the file with the id, but never the layer they write to.
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


def _start(pid: int) -> str:
    """When the process started, in clock ticks since boot; empty where there is no /proc."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The name in parentheses may hold anything; the start is field 22 (proc(5)).
    return status.rpartition(")")[2].split()[19]
