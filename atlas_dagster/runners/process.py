"""A connector as a child process: in a session of its own, private, limited, and gone afterwards.

It sees none of the secrets in our environment.
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

#: Bytes read at once, and the size asked for each pipe: large, so that both sides wake up less.
PIPE_BYTES = 1024 * 1024

_DIRECTORY_PREFIX = "atlas-dagster-connector-"
_LEFTOVER_SECONDS = 60.0

INHERITED = re.compile(
    r"PATH|HOME|LANG|LC_\w+|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE"
    r"|(?i:(http|https|ftp|all|no)_proxy)"
)

#: Elsewhere the memory of another process cannot be limited.
_CAN_LIMIT = sys.platform == "linux"
#: How Python, C++, Rust, Go, Node and Java say that they were refused memory.
_OUT_OF_MEMORY = re.compile(
    rb"MemoryError|std::bad_alloc|memory allocation of \d+ bytes failed"
    rb"|cannot allocate memory|out ?of ?memory",
    re.IGNORECASE,
)
#: Bytes at the end of each channel in which that is looked for.
_TAIL_BYTES = 64 * 1024


def start_process(
    words: Sequence[str],
    command: ConnectorCommand,
    *,
    executor: ExecutorConfig,
    directory: Path | None = None,
) -> ConnectorProcess:
    """Start the program ``words`` as a connector, with the arguments of ``command``.

    Its files are written to a private directory, which is also its place for temporary files, and
    its working directory unless that is given as ``directory``.

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
    """A child that leads a process group of its own; the group ends when the child does."""

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
        # What a connector wrote before its end fits into the pipes; more comes from a process that
        # left its group and writes on.
        rest = dict.fromkeys(self._tails, PIPE_BYTES)
        while self._pipes.get_map():
            # Asked before looking: what a dead connector wrote is in the pipes by now, and a pipe
            # that is empty yet open then belongs to a process that left the group.
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
                # Nobody reads any more: a connector that still writes must not wait for us.
                self._hang_up()
                with suppress(subprocess.TimeoutExpired):
                    self._child.wait(STOP_GRACE_SECONDS)
        finally:
            self._end_group()
            self._child.wait()
            self._hang_up()
            end_all(self._token)
            self._undo.close()

    def _listen(self, pipe: IO[bytes] | None, channel: Channel) -> None:
        assert pipe is not None  # Popen was asked for both
        if sys.platform == "linux":
            # Refused to a user who already has many large pipes; the small one works too.
            with suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._pipes.register(pipe, selectors.EVENT_READ, channel)

    def _ran_out_of_memory(self) -> bool:
        """Whether its last words say so, on stderr or in an error of the protocol."""
        if _OUT_OF_MEMORY.search(self._tails["stderr"]):
            return True
        lines = self._tails["stdout"].split(b"\n")
        return any(b'"TRACE"' in line and _OUT_OF_MEMORY.search(line) for line in lines)

    def _hang_up(self) -> None:
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
        # Once only: when all of the group is gone, the system may give its number to others.
        if not self._group_ended:
            self._group_ended = True
            self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, number)


def _limit(pid: int, executor: ExecutorConfig) -> None:
    """Have the kernel refuse memory beyond the limit, and write no core: it would hold secrets."""
    if sys.platform == "linux":
        # Writable private memory. The whole address space is no measure: programs map far more
        # than they use.
        for kind, size in (
            (resource.RLIMIT_DATA, executor.memory_bytes),
            (resource.RLIMIT_CORE, 0),
        ):
            with suppress(OSError):  # it has ended already, or a sandbox forbids it
                _, hard = resource.prlimit(pid, kind)
                size = size if hard == resource.RLIM_INFINITY else min(size, hard)
                resource.prlimit(pid, kind, (size, size))


@contextmanager
def _private_directory() -> Iterator[Path]:
    """A directory for one process. Our lock on it ends when we do, even of ``kill -9``."""
    with TemporaryDirectory(prefix=_DIRECTORY_PREFIX, ignore_cleanup_errors=True) as name:
        lock = os.open(name, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(lock)


def remove_leftovers() -> None:
    """Remove the directories of processes that were killed: there are passwords in them."""
    for directory in Path(gettempdir()).glob(f"{_DIRECTORY_PREFIX}*"):
        # Another user's, gone by now, or locked by its living owner.
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
    """The variables of our environment whose names match."""
    return {name: value for name, value in os.environ.items() if names.fullmatch(name)}


@cache
def parent_death_prefix() -> tuple[str, ...]:
    """Words before a command that have Linux kill it when we die, even of ``kill -9``.

    Cached: it takes a process to learn whether this setpriv can (busybox's cannot).
    """
    # The kernel watches the thread that starts the command, not the whole of our process. That
    # is the same to us, as whoever starts a connector also consumes and closes it.
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    if setpriv is None:
        return ()
    words = (setpriv, "--pdeathsig", "KILL", "--")
    tried = subprocess.run([*words, "true"], capture_output=True)
    return words if tried.returncode == 0 else ()
