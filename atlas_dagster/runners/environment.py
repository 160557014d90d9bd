"""Virtual environments of packages published on PyPI, one for each package and version.

uv builds an environment once per user and machine, and every run shares it.
"""

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import Distribution, distributions
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout
from platformdirs import user_cache_dir
from uv import find_uv_bin

from atlas_dagster.errors import AtlasError, ConfigError, RunnerUnavailableError
from atlas_dagster.runners.process import INHERITED, dying_with_us, inherited

_log = logging.getLogger(__name__)

_COMPLETE = ".complete"
#: Newer than any Python, so that no package is refused before its own needs are known.
_ANY_PYTHON = "3.99"
#: What uv says is repeated in an error only up to this many characters.
_COMPLAINT_CHARACTERS = 200

#: Longest run of uv: packages without wheels are compiled in it.
_UV_SECONDS = 15 * 60

#: uv gets its own settings too: a company's package index is often named in them.
_INHERITED_BY_UV = re.compile(rf"{INHERITED.pattern}|TMPDIR|NETRC|UV_\w+|XDG_\w+")


class Environment:
    """The environment of ``package`` at one version."""

    def __init__(self, package: str, version: str) -> None:
        """Installs nothing yet.

        Raises:
            ConfigError: ``version`` is not an exact version (``latest``, for example).
        """
        if not re.fullmatch(r"\d[\w.+!-]*", version):
            raise ConfigError(
                f'"{version}" is not a version of {package}; give an exact one, such as 7.2.1.'
            )
        self.reference = f"{package}=={version}"
        self._package = package
        self._title = f"{package} {version}"
        self._root = _root()
        self._environment = self._root / f"{package}-{version}"

    def ensure(self, executable: str) -> Path:
        """The path of the package's command ``executable``, the environment built if need be.

        Of concurrent callers one builds for all.

        Raises:
            ConfigError: no such package, version or command, or no right to install it.
            RunnerUnavailableError: no network, no disk space, or no Python that fits.
        """
        try:
            if not self._is_complete():
                self._root.mkdir(parents=True, exist_ok=True)
                with self._alone():
                    if not self._is_complete():
                        self._build()
        except (OSError, _UvError) as error:
            raise _refusal(str(error), self.reference, self._root) from error
        path = self._environment / "bin" / executable
        if not path.exists():
            raise ConfigError(
                f"{self._title} has no command {executable}; "
                "choose a package that is an Airbyte source."
            )
        return path

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = FileLock(f"{self._environment}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            _log.info("Waiting for another run, which is installing %s", self._title)
            lock.acquire()  # its uv ends in time
        try:
            yield
        finally:
            lock.release()

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
        with bare_package(self.reference, self._root) as package:
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


def _root() -> Path:
    return Path(user_cache_dir("atlas-dagster")) / "connectors"


@cache
def newest_version(package: str) -> str:
    """The newest version of ``package`` on PyPI; asked for once in the life of a process.

    Raises:
        ConfigError: no such package.
        RunnerUnavailableError: PyPI cannot be reached.
    """
    root = _root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with bare_package(package, root) as found:
            return found.version
    except (OSError, _UvError) as error:
        raise _refusal(str(error), package, root) from error


@contextmanager
def bare_package(requirement: str, directory: Path) -> Iterator[Distribution]:
    """A package without what it needs, for any Python."""
    with TemporaryDirectory() as bare:
        to_any = ("--python", sys.executable, "--python-version", _ANY_PYTHON)
        options = ("--no-deps", "--target", bare, *to_any)
        _uv("pip", "install", *options, requirement, directory=directory)
        (package,) = distributions(path=[bare])
        yield package


def _refusal(complaint: str, requirement: str, root: Path) -> AtlasError:
    """The error that says in our words why ``requirement`` cannot be installed."""
    package, title = requirement.partition("==")[0], requirement.replace("==", " ")
    if f"no version of {requirement}" in complaint:
        return ConfigError(f"There is no version {title} on PyPI; choose another one.")
    if f"{package} was not found" in complaint:
        return ConfigError(
            f"There is no package {package} on PyPI; run this connector with Docker."
        )
    if _DISK_FULL.search(complaint):
        return RunnerUnavailableError(
            f"{title} cannot be installed because the disk of {root} is full; free some space."
        )
    if _FORBIDDEN.search(complaint):
        return ConfigError(
            f"{title} cannot be installed because {root} cannot be written; "
            "set XDG_CACHE_HOME to a directory that can."
        )
    if _UNREACHABLE.search(complaint):
        return RunnerUnavailableError(
            f"{title} cannot be downloaded; check the network and, if there is one, the proxy."
        )
    short = len(complaint) <= _COMPLAINT_CHARACTERS
    reason = complaint.rstrip(".") if short else f'"uv pip install {requirement}" says why'
    return RunnerUnavailableError(
        f"{title} cannot be installed here; run it with Docker ({reason})."
    )


class _UvError(Exception):
    """uv failed; the message is what it said, on one line."""


_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")
_FORBIDDEN = re.compile(r"Permission denied|Read-only file system|Not a directory")
_UNREACHABLE = re.compile(
    r"Failed to fetch|Failed to download(?! and build)|Request failed|network was disabled"
)


def _uv(*arguments: str, directory: Path) -> None:
    """Run uv in ``directory``, away from the settings of any project we may be started in."""
    environment = inherited(_INHERITED_BY_UV)
    # Our own Python comes first, so that uv takes it wherever it fits.
    ours = str(Path(sys.base_prefix) / "bin")
    environment["PATH"] = os.pathsep.join([ours, environment.get("PATH", os.defpath)])
    try:
        done = subprocess.run(
            [*dying_with_us(), find_uv_bin(), *arguments, "--quiet", "--color", "never"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=directory,
            env=environment,
            timeout=_UV_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise RunnerUnavailableError(
            f"`uv {' '.join(arguments)}` did not end within {_UV_SECONDS / 60:g} minutes",
            "check the network and the package index, then sync again",
        ) from error
    if done.returncode != 0:
        # Older versions of uv break lines and draw a frame of box characters around them.
        said = re.sub(r"[^!-~]+", " ", done.stderr.decode(errors="replace"))
        raise _UvError(said.strip() or f"uv exited with {done.returncode}")
