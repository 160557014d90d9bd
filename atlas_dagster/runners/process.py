"""A connector as a child process: in its own session, with private files and limits.

It does not get the secrets in our environment, and leaves no process behind.
"""

import fcntl
import os
import re
import resource
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import IO

from atlas_dagster.errors import RunnerUnavailableError
from atlas_dagster.files import write_private
from atlas_dagster.runners.base import (
    IDLE_SECONDS,
    STOP_GRACE_SECONDS,
    Channel,
    ConnectorCommand,
    ConnectorProcess,
    ExitStatus,
    Output,
    file_name,
)
from atlas_dagster.runners.connector_env import CONNECTOR_ENV
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.runners.process_tags import end_all, process_tags

#: Bytes of one read, and the size of each pipe. Large, so that both sides wake up less often.
PIPE_BYTES = 1024 * 1024

_DIRECTORY_PREFIX = "atlas-dagster-connector-"
_LEFTOVER_SECONDS = 60.0

INHERITED = re.compile(
    r"PATH|HOME|LANG|LC_\w+|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE"
    r"|(?i:(http|https|ftp|all|no)_proxy)"
)

#: Other systems cannot limit the memory of another process.
_CAN_LIMIT = sys.platform == "linux"
#: Messages of Python, C++, Rust, Go, Node and Java when they run out of memory.
_OUT_OF_MEMORY = re.compile(
    rb"MemoryError|std::bad_alloc|memory allocation of \d+ bytes failed"
    rb"|cannot allocate memory|out ?of ?memory",
    re.IGNORECASE,
)
#: Bytes at the end of each channel that are searched for these messages.
_TAIL_BYTES = 64 * 1024


def start_process(
    words: Sequence[str],
    command: ConnectorCommand,
    *,
    executor: ExecutorConfig,
    directory: Path | None = None,
) -> ConnectorProcess:
    """Start the program ``words`` as a connector, with the arguments of ``command``.

    A private directory holds its files and its temporary files. It is also the working directory,
    unless ``directory`` names another one.

    Raises:
        RunnerUnavailableError: the files cannot be written or the program cannot be started.
    """
    token = secrets.token_hex(8)
    with ExitStack() as undo:
        try:
            remove_leftovers()
            private = undo.enter_context(_private_directory())
            for option, content in command.files.items():
                write_private(private / file_name(option), content)
            child = subprocess.Popen(
                [*parent_death_prefix(), *words, *command.arguments(str(private))],
                bufsize=0,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=directory or private,
                env=inherited(INHERITED)
                | CONNECTOR_ENV
                | dict(command.environment)
                | process_tags(command.labels, token)
                | {"TMPDIR": str(private)},
                start_new_session=True,
            )
        except OSError as error:
            name = Path(words[0]).name
            raise RunnerUnavailableError(f"{name} cannot be started: {error}.") from error
        _limit(child.pid, executor)
        return _ChildProcess(child, token, undo.pop_all())


class _ChildProcess(ConnectorProcess):
    """A child that leads its own process group. The group ends with the child."""

    def __init__(self, child: subprocess.Popen[bytes], token: str, undo: ExitStack) -> None:
        self._child = child
        self._token = token
        self._undo = undo
        self._group_ended = False
        self._tails: dict[Channel, bytes] = {"stdout": b"", "stderr": b""}
        self._pipes = selectors.DefaultSelector()
        self._listen(child.stdout, "stdout")
        self._listen(child.stderr, "stderr")

    def output(self) -> Iterator[Output]:
        # The last output of a connector fits into the pipes. A process that left its group may
        # write more.
        rest = dict.fromkeys(self._tails, PIPE_BYTES)
        while self._pipes.get_map():
            # Check this before the pipes: then they contain all output of a dead connector, and
            # one that is empty but open belongs to a process that left the group.
            ended = self._ended()
            ready = self._pipes.select(0 if ended else IDLE_SECONDS)
            for key, _ in ready:
                channel: Channel = key.data
                chunk = os.read(key.fd, PIPE_BYTES)
                if ended:
                    rest[channel] -= len(chunk)
                if not chunk or rest[channel] <= 0:
                    self._pipes.unregister(key.fileobj)
                if chunk:
                    self._tails[channel] = (self._tails[channel] + chunk)[-_TAIL_BYTES:]
                    yield channel, chunk
            if not ready:
                if ended:
                    return
                yield "idle", b""
        while not self._ended():
            try:
                self._child.wait(IDLE_SECONDS)
            except subprocess.TimeoutExpired:
                yield "idle", b""

    def wait(self) -> ExitStatus:
        code = self._child.wait()
        return ExitStatus(
            code if code >= 0 else 128 - code,
            oom_killed=code != 0 and _CAN_LIMIT and self._ran_out_of_memory(),
        )

    def close(self) -> None:
        try:
            if not self._ended():
                self._signal_group(signal.SIGTERM)
                # A connector that still writes must not wait for us to read.
                self._close_pipes()
                with suppress(subprocess.TimeoutExpired):
                    self._child.wait(STOP_GRACE_SECONDS)
        finally:
            self._end_group()
            self._child.wait()
            self._close_pipes()
            end_all(self._token)
            self._undo.close()

    def _listen(self, pipe: IO[bytes] | None, channel: Channel) -> None:
        assert pipe is not None  # Popen opened both
        if sys.platform == "linux":
            # The kernel refuses it to a user with many large pipes; a small one works, too.
            with suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._pipes.register(pipe, selectors.EVENT_READ, channel)

    def _ran_out_of_memory(self) -> bool:
        """Whether the end of its output says so, on stderr or in an error of the protocol."""
        if _OUT_OF_MEMORY.search(self._tails["stderr"]):
            return True
        lines = self._tails["stdout"].split(b"\n")
        return any(b'"TRACE"' in line and _OUT_OF_MEMORY.search(line) for line in lines)

    def _close_pipes(self) -> None:
        self._pipes.close()
        for pipe in (self._child.stdout, self._child.stderr):
            if pipe is not None:
                pipe.close()

    def _ended(self) -> bool:
        if self._child.poll() is None:
            return False
        self._end_group()
        return True

    def _end_group(self) -> None:
        # Only once: when the group is gone, the system may reuse its number.
        if not self._group_ended:
            self._group_ended = True
            self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, number)


def _limit(pid: int, executor: ExecutorConfig) -> None:
    """Limit the memory, and forbid core dumps, which would contain secrets."""
    if sys.platform == "linux":
        # Writable private memory. Programs map far more address space than they use.
        for kind, size in (
            (resource.RLIMIT_DATA, executor.memory_bytes),
            (resource.RLIMIT_CORE, 0),
        ):
            with suppress(OSError):  # it has ended, or a sandbox forbids it
                _, hard = resource.prlimit(pid, kind)
                size = size if hard == resource.RLIM_INFINITY else min(size, hard)
                resource.prlimit(pid, kind, (size, size))


@contextmanager
def _private_directory() -> Iterator[Path]:
    """A directory for one process. Our lock on it ends with our process, even after ``kill -9``."""
    with TemporaryDirectory(prefix=_DIRECTORY_PREFIX, ignore_cleanup_errors=True) as name:
        lock = os.open(name, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(lock)


def remove_leftovers() -> None:
    """Remove the directories of killed processes: they contain passwords."""
    for directory in Path(gettempdir()).glob(f"{_DIRECTORY_PREFIX}*"):
        # It belongs to another user, is gone, or its owner is alive and holds the lock.
        with suppress(OSError), ExitStack() as undo:
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            undo.callback(os.close, lock)
            status = os.fstat(lock)
            # A new one may not be locked yet.
            old = time.time() - status.st_mtime > _LEFTOVER_SECONDS
            if old and status.st_uid == os.geteuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory)


def inherited(names: re.Pattern[str]) -> dict[str, str]:
    """Return the variables of our environment whose names match."""
    return {name: value for name, value in os.environ.items() if names.fullmatch(name)}


@cache
def parent_death_prefix() -> tuple[str, ...]:
    """Return words before a command that make Linux kill it when we die, even after ``kill -9``.

    Cached, because only a process shows whether this setpriv supports it (busybox's does not).
    """
    # The kernel watches the thread that starts the command, not our whole process. The same
    # thread reads and closes the connector, so that makes no difference.
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    if setpriv is None:
        return ()
    words = (setpriv, "--pdeathsig", "KILL", "--")
    tried = subprocess.run([*words, "true"], capture_output=True)
    return words if tried.returncode == 0 else ()
