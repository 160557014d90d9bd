"""Connectors published on PyPI, each in a virtual environment of its own.

uv builds an environment once per user and machine, and every run shares it. A connector is a child
process in a session of its own; it sees none of the secrets in our environment.
"""

import fcntl
import logging
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import IO

from filelock import FileLock
from platformdirs import user_cache_dir
from uv import find_uv_bin

from atlas_dagster.errors import AtlasError, ConfigError, RunnerUnavailableError
from atlas_dagster.runners.base import (
    IDLE_SECONDS,
    STOP_GRACE_SECONDS,
    Channel,
    ConnectorCommand,
    ConnectorProcess,
    ExitStatus,
    Output,
    Runner,
)
from atlas_dagster.runners.executor import ExecutorConfig

#: Bytes read at once, and the size asked for each pipe: large, so that both sides wake up less.
PIPE_BYTES = 1024 * 1024

_log = logging.getLogger(__name__)

_OPTIONS = ("config", "catalog", "state")
_COMPLETE = ".complete"
_DIRECTORY_PREFIX = "atlas-dagster-connector-"
_LEFTOVER_SECONDS = 60.0
#: Newer than any Python, so that no package is refused before its own needs are known.
_ANY_PYTHON = "3.99"
#: What uv says is repeated in an error only up to this many characters.
_COMPLAINT_CHARACTERS = 200

_INHERITED = re.compile(
    r"PATH|HOME|LANG|LC_\w+|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE"
    r"|(?i:(http|https|ftp|all|no)_proxy)"
)
_OURS = {"DEPLOYMENT_MODE": "OSS", "USE_STREAM_CAPABLE_STATE": "true"}
#: uv gets its own settings too: a company's package index is often named in them.
_INHERITED_BY_UV = re.compile(rf"{_INHERITED.pattern}|TMPDIR|NETRC|UV_\w+|XDG_\w+")


class PythonRunner(Runner):
    """Runs the command ``executable`` of a PyPI package at one version.

    The executor's limits are not applied: memory can only be limited here by address space, which
    breaks programs that map more than they use.
    """

    kind = "python"

    def __init__(
        self,
        package: str,
        version: str,
        executable: str,
        *,
        executor: ExecutorConfig | None = None,
    ) -> None:
        """Installs nothing yet.

        Raises:
            ConfigError: ``version`` is not an exact version (``latest``, for example).
        """
        if not re.fullmatch(r"\d[\w.+!-]*", version):
            raise ConfigError(
                f'"{version}" is not a version of {package}; give an exact one, such as 7.2.1.'
            )
        self.reference = f"{package}=={version}"
        self.executor = executor or ExecutorConfig()
        self._package = package
        self._title = f"{package} {version}"
        self._root = Path(user_cache_dir("atlas-dagster")) / "connectors"
        self._environment = self._root / f"{package}-{version}"
        self._executable = self._environment / "bin" / executable

    def start(self, command: ConnectorCommand) -> ConnectorProcess:
        """Start ``command``; the first time this builds the environment, see :meth:`ensure`."""
        self.ensure()
        return start_process([str(self._executable), command.verb], command.files)

    def ensure(self) -> None:
        """Build the environment unless it is there. Of concurrent callers one builds for all.

        Raises:
            ConfigError: no such package, version or command, or no right to install it.
            RunnerUnavailableError: no network, no disk space, or no Python that fits.
        """
        try:
            if not self._is_complete():
                self._root.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{self._environment}.lock"):
                    if not self._is_complete():
                        self._build()
        except (OSError, _UvError) as error:
            raise self._refusal(str(error)) from error
        if not self._executable.exists():
            raise ConfigError(
                f"{self._title} has no command {self._executable.name}; "
                "choose a package that is an Airbyte source."
            )

    def _is_complete(self) -> bool:
        # The interpreter is a link, and the Python it leads to may have been removed since.
        interpreter = self._environment / "bin" / "python"
        return (self._environment / _COMPLETE).exists() and interpreter.exists()

    def _build(self) -> None:
        """Build in place, as scripts hold the path of their environment; the marker comes last."""
        _log.info("Installing %s in %s", self._title, self._environment)
        if self._environment.exists():
            shutil.rmtree(self._environment)
        self._create(self._required_python())
        # Connectors import thousands of modules: without bytecode each start takes twice as long.
        self._install("--compile-bytecode", "--python", str(self._environment))
        (self._environment / _COMPLETE).touch()

    def _required_python(self) -> str:
        """The versions of Python the package declares, such as ``>=3.10,<3.13``; empty if none.

        uv heeds only the lower bound of this, and would spend minutes compiling dependencies that
        have no wheels for a newer Python. So the bare package is looked at first.
        """
        with TemporaryDirectory() as bare:
            to_any = ("--python", sys.executable, "--python-version", _ANY_PYTHON)
            self._install("--no-deps", "--target", bare, *to_any)
            (package,) = distributions(path=[bare])
            return "".join(package.metadata.get_all("Requires-Python", []))

    def _create(self, required: str) -> None:
        """Make the environment with our own Python if it fits, else one uv can find or fetch."""
        running = f"{sys.version_info.major}.{sys.version_info.minor}"
        options = ("--no-project", "--python-preference", "system", "--python", required or running)
        try:
            _uv("venv", *options, str(self._environment), directory=self._root)
        except _UvError as error:
            if _DISK_FULL.search(str(error)) or _FORBIDDEN.search(str(error)):
                raise
            raise RunnerUnavailableError(
                f"{self._title} does not run on Python {running} (it needs {required}) and no "
                "fitting Python could be found or fetched; install one or run it with Docker."
            ) from error

    def _install(self, *options: str) -> None:
        _uv("pip", "install", *options, self.reference, directory=self._root)

    def _refusal(self, complaint: str) -> AtlasError:
        """The error that says in our words why the environment could not be built."""
        if f"no version of {self.reference}" in complaint:
            return ConfigError(f"There is no version {self._title} on PyPI; choose another one.")
        if f"{self._package} was not found" in complaint:
            return ConfigError(
                f"There is no package {self._package} on PyPI; run this connector with Docker."
            )
        if _DISK_FULL.search(complaint):
            return RunnerUnavailableError(
                f"{self._title} cannot be installed because the disk of {self._root} is full; "
                "free some space."
            )
        if _FORBIDDEN.search(complaint):
            return ConfigError(
                f"{self._title} cannot be installed because {self._root} cannot be written; "
                "set XDG_CACHE_HOME to a directory that can."
            )
        if _UNREACHABLE.search(complaint):
            return RunnerUnavailableError(
                f"{self._title} cannot be downloaded; "
                "check the network and, if there is one, the proxy."
            )
        short = len(complaint) <= _COMPLAINT_CHARACTERS
        reason = complaint.rstrip(".") if short else f'"uv pip install {self.reference}" says why'
        return RunnerUnavailableError(
            f"{self._title} cannot be installed here; run it with Docker ({reason})."
        )


def start_process(arguments: Sequence[str], files: Mapping[str, bytes]) -> ConnectorProcess:
    """Start any program as a connector.

    ``files`` are written to a private directory, which is also the program's working directory and
    its place for temporary files, and passed as ``--config``, ``--catalog``, ``--state``.

    Raises:
        RunnerUnavailableError: the files cannot be written or the program cannot be started.
    """
    with ExitStack() as undo:
        try:
            _remove_leftovers()
            directory = undo.enter_context(_private_directory())
            words = [*_dying_with_us(), *arguments]
            for option in _OPTIONS:
                if option in files:
                    path = directory / f"{option}.json"
                    words += [f"--{option}", str(path)]
                    _write_private(path, files[option])
            child = subprocess.Popen(
                words,
                bufsize=0,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=directory,
                env=_inherited(_INHERITED) | _OURS | {"TMPDIR": str(directory)},
                start_new_session=True,
            )
        except OSError as error:
            name = Path(arguments[0]).name
            raise RunnerUnavailableError(f"{name} cannot be started: {error}.") from error
        return _PythonProcess(child, undo.pop_all())


class _PythonProcess(ConnectorProcess):
    """A child that leads a process group of its own; the group ends when the child does."""

    def __init__(self, child: subprocess.Popen[bytes], undo: ExitStack) -> None:
        self._child = child
        self._undo = undo
        self._group_ended = False
        self._pipes = selectors.DefaultSelector()
        self._listen(child.stdout, "stdout")
        self._listen(child.stderr, "stderr")

    def output(self) -> Iterator[Output]:
        while self._pipes.get_map():
            # Asked before looking: what a dead connector wrote is in the pipes by now, and a pipe
            # that is empty yet open then belongs to a process that left the group.
            ended = self._ended()
            ready = self._pipes.select(0 if ended else IDLE_SECONDS)
            for key, _ in ready:
                if chunk := os.read(key.fd, PIPE_BYTES):
                    yield key.data, chunk
                else:
                    self._pipes.unregister(key.fileobj)
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
        return ExitStatus(code if code >= 0 else 128 - code)

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
            self._undo.close()

    def _listen(self, pipe: IO[bytes] | None, channel: Channel) -> None:
        assert pipe is not None  # Popen was asked for both
        if sys.platform == "linux":
            # Refused to a user who already has many large pipes; the small one works too.
            with suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._pipes.register(pipe, selectors.EVENT_READ, channel)

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


class _UvError(Exception):
    """uv failed; the message is what it said, on one line."""


_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")
_FORBIDDEN = re.compile(r"Permission denied|Read-only file system|Not a directory")
_UNREACHABLE = re.compile(
    r"Failed to fetch|Failed to download(?! and build)|Request failed|network was disabled"
)


def _uv(*arguments: str, directory: Path) -> None:
    """Run uv in ``directory``, away from the settings of any project we may be started in."""
    environment = _inherited(_INHERITED_BY_UV)
    # Our own Python comes first, so that uv takes it wherever it fits.
    ours = str(Path(sys.base_prefix) / "bin")
    environment["PATH"] = os.pathsep.join([ours, environment.get("PATH", os.defpath)])
    done = subprocess.run(
        [*_dying_with_us(), find_uv_bin(), *arguments, "--quiet", "--color", "never"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=directory,
        env=environment,
    )
    if done.returncode != 0:
        # Older versions of uv break lines and draw a frame of box characters around them.
        said = re.sub(r"[^!-~]+", " ", done.stderr.decode(errors="replace"))
        raise _UvError(said.strip() or f"uv exited with {done.returncode}")


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


def _remove_leftovers() -> None:
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


def _write_private(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _inherited(names: re.Pattern[str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if names.fullmatch(name)}


@cache
def _dying_with_us() -> tuple[str, ...]:
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
