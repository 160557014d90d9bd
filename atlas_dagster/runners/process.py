"""A connector as a child process: in its own session, with private files and limits.

The child does not get the secrets in the environment of Atlas, and leaves no process behind.
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
    CONNECTOR_ENV,
    IDLE_SECONDS,
    STOP_GRACE_SECONDS,
    Channel,
    ConnectorCommand,
    ConnectorProcess,
    ExitStatus,
    Output,
    file_name,
)
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.runners.process_tags import kill_all, process_tags

#: Bytes of one read, and the size of each pipe: large, so that both sides wake up less often.
PIPE_BYTES = 1024 * 1024

_DIRECTORY_PREFIX = "atlas-dagster-connector-"
_LEFTOVER_SECONDS = 60.0

INHERITED = re.compile(
    r"PATH|HOME|LANG|LC_\w+|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE"
    r"|(?i:(http|https|ftp|all|no)_proxy)"
)

#: Only Linux can limit the memory of another process.
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

    A private directory has its files and its temporary files. This is also the working directory,
    unless ``directory`` is given.

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
                env=select_environment(INHERITED)
                | CONNECTOR_ENV
                | dict(command.environment)
                | process_tags(command.labels, token)
                | {"TMPDIR": str(private)},
                start_new_session=True,
            )
        except OSError as error:
            name = Path(words[0]).name
            raise RunnerUnavailableError(f"{name} cannot be started: {error}.") from error
        _set_limits(child.pid, executor)
        return _ChildProcess(child, token, undo.pop_all())


class _ChildProcess(ConnectorProcess):
    """A child that leads its own process group, which ends with the child."""

    def __init__(self, child: subprocess.Popen[bytes], token: str, undo: ExitStack) -> None:
        self._child = child
        self._token = token
        self._undo = undo
        self._group_ended = False
        self._tails: dict[Channel, bytes] = {"stdout": b"", "stderr": b""}
        self._pipes = selectors.DefaultSelector()
        self._open_pipe(child.stdout, "stdout")
        self._open_pipe(child.stderr, "stderr")

    def output(self) -> Iterator[Output]:
        # The last output of a connector fits into the pipes. More output is from a process that
        # left the group.
        rest = dict.fromkeys(self._tails, PIPE_BYTES)
        while self._pipes.get_map():
            # Check this before the pipes. If the connector is dead, they have all its output, and
            # a pipe that is empty but open belongs to a process that left the group.
            has_ended = self._has_ended()
            ready = self._pipes.select(0 if has_ended else IDLE_SECONDS)
            for key, _ in ready:
                channel: Channel = key.data
                chunk = os.read(key.fd, PIPE_BYTES)
                if has_ended:
                    rest[channel] -= len(chunk)
                if not chunk or rest[channel] <= 0:
                    self._pipes.unregister(key.fileobj)
                if chunk:
                    self._tails[channel] = (self._tails[channel] + chunk)[-_TAIL_BYTES:]
                    yield channel, chunk
            if not ready:
                if has_ended:
                    return
                yield "idle", b""
        while not self._has_ended():
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
            if not self._has_ended():
                self._signal_group(signal.SIGTERM)
                # Otherwise a connector that still writes would wait for a reader.
                self._close_pipes()
                with suppress(subprocess.TimeoutExpired):
                    self._child.wait(STOP_GRACE_SECONDS)
        finally:
            self._end_group()
            self._child.wait()
            self._close_pipes()
            kill_all(self._token)
            self._undo.close()

    def _open_pipe(self, pipe: IO[bytes] | None, channel: Channel) -> None:
        assert pipe is not None  # Popen opened both
        if sys.platform == "linux":
            # The kernel refuses this if the user has many large pipes; a small pipe works, too.
            with suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._pipes.register(pipe, selectors.EVENT_READ, channel)

    def _ran_out_of_memory(self) -> bool:
        """Return whether its last output, on stderr or as a TRACE, is an out-of-memory error."""
        if _OUT_OF_MEMORY.search(self._tails["stderr"]):
            return True
        lines = self._tails["stdout"].split(b"\n")
        return any(b'"TRACE"' in line and _OUT_OF_MEMORY.search(line) for line in lines)

    def _close_pipes(self) -> None:
        self._pipes.close()
        for pipe in (self._child.stdout, self._child.stderr):
            if pipe is not None:
                pipe.close()

    def _has_ended(self) -> bool:
        if self._child.poll() is None:
            return False
        self._end_group()
        return True

    def _end_group(self) -> None:
        # Only once, because the system may reuse the number of an ended group.
        if not self._group_ended:
            self._group_ended = True
            self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, number)


def _set_limits(pid: int, executor: ExecutorConfig) -> None:
    """Limit the memory, and forbid core dumps, which would contain secrets."""
    if sys.platform == "linux":
        # RLIMIT_DATA limits writable private memory; programs map far more address space.
        for kind, size in (
            (resource.RLIMIT_DATA, executor.memory_bytes),
            (resource.RLIMIT_CORE, 0),
        ):
            with suppress(OSError):  # the process has ended, or a sandbox forbids this
                _, hard = resource.prlimit(pid, kind)
                size = size if hard == resource.RLIM_INFINITY else min(size, hard)
                resource.prlimit(pid, kind, (size, size))


@contextmanager
def _private_directory() -> Iterator[Path]:
    """Yield a directory for one process, locked until Atlas ends, even after ``kill -9``."""
    with TemporaryDirectory(prefix=_DIRECTORY_PREFIX, ignore_cleanup_errors=True) as name:
        lock = os.open(name, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(lock)


def remove_leftovers() -> None:
    """Remove the directories of killed processes, because they contain passwords."""
    for directory in Path(gettempdir()).glob(f"{_DIRECTORY_PREFIX}*"):
        # OSError: another user owns it, it is gone, or its owner is alive and holds the lock.
        with suppress(OSError), ExitStack() as undo:
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            undo.callback(os.close, lock)
            status = os.fstat(lock)
            # A new directory may not be locked yet.
            is_old = time.time() - status.st_mtime > _LEFTOVER_SECONDS
            if is_old and status.st_uid == os.geteuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory)


def select_environment(names: re.Pattern[str]) -> dict[str, str]:
    """Return the environment variables whose names match."""
    return {name: value for name, value in os.environ.items() if names.fullmatch(name)}


@cache
def parent_death_prefix() -> tuple[str, ...]:
    """Return the start of a command line that makes Linux kill the command when Atlas dies.

    Cached, because a test run shows whether setpriv supports this (that of busybox does not).
    """
    # The kernel watches the thread that starts the command, not the whole process. The same
    # thread reads and closes the connector, so this makes no difference.
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    if setpriv is None:
        return ()
    words = (setpriv, "--pdeathsig", "KILL", "--")
    tried = subprocess.run([*words, "true"], capture_output=True)
    return words if tried.returncode == 0 else ()
