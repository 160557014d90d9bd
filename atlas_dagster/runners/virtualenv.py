"""Virtual environments of packages published on PyPI, one for each package and version.

uv builds an environment once per user and machine, and every run shares it.
"""

import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from atlas_dagster.errors import ConfigError, RunnerUnavailableError
from atlas_dagster.runners.packages import (
    UninstallableError,
    UvError,
    environments_folder,
    explain,
    find_declared_python,
    find_lowest_minor,
    open_bare_package,
    run_uv,
)
from atlas_dagster.runners.process import INHERITED, parent_death_prefix, select_environment

_log = logging.getLogger(__name__)

_COMPLETE = ".complete"
_VERSION = re.compile(r"\d[\w.+!-]*")
#: Seconds that the import of a connector may take.
_IMPORT_SECONDS = 300
#: A program that imports a command as its script does. Arguments: package, command.
_IMPORT = """
import sys
from importlib.metadata import distribution
for point in distribution(sys.argv[1]).entry_points:
    if (point.group, point.name) == ("console_scripts", sys.argv[2]):
        point.load()
"""


class Environment:
    """The environment of ``package`` at one version."""

    def __init__(self, package: str, version: str) -> None:
        """Describe the environment without building it.

        Raises:
            ConfigError: ``version`` is not an exact version (``latest``, for example).
        """
        if not _VERSION.fullmatch(version):
            raise ConfigError(
                f'"{version}" is not a version of {package}; give an exact one, such as 7.2.1.'
            )
        self.reference = f"{package}=={version}"
        self._package = package
        self._title = f"{package} {version}"
        self._root = environments_folder()
        self._environment = self._root / f"{package}-{version}"

    def ensure(self, executable: str) -> Path:
        """Build the environment if necessary, and return the path of the command ``executable``.

        If several processes call this at once, one builds and the others wait.

        Raises:
            UninstallableError: a dependency of this release does not exist.
            ConfigError: no such package, version or command, no right to install it, or the command
                cannot be imported.
            RunnerUnavailableError: no network, no disk space, or no Python that fits.
        """
        try:
            if not self.is_complete():
                self._root.mkdir(parents=True, exist_ok=True)
                with self._locked():
                    if not self.is_complete():
                        self._build(executable)
        except (OSError, UvError) as error:
            raise explain(error, self.reference, self._root, self._choose_python()) from error
        path = self._environment / "bin" / executable
        if not path.exists():
            raise ConfigError(
                f"{self._title} has no command {executable}; "
                "choose a package that is an Airbyte source."
            )
        return path

    def is_complete(self) -> bool:
        """Return whether the environment is built, so that a start needs no network."""
        # The interpreter is a link, and its target may have been removed since.
        return (self._environment / _COMPLETE).exists() and self._interpreter.exists()

    @property
    def _interpreter(self) -> Path:
        return self._environment / "bin" / "python"

    def _choose_python(self) -> str:
        return str(self._interpreter) if self._interpreter.exists() else sys.executable

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(f"{self._environment}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            _log.info("Waiting for another run that installs %s", self._title)
            lock.acquire()  # the other run's uv has a time limit
        try:
            yield
        finally:
            lock.release()

    def _build(self, executable: str) -> None:
        """Build in place, because scripts contain the path of their environment.

        Many packages crash with a Python that they declare (dataclasses became stricter in 3.11).
        So this imports the command, and after a crash builds once more with a lower Python.
        """
        _log.info("Installing %s in %s", self._title, self._environment)
        declared = self._declared_python()
        self._create(declared)
        self._install()
        crash = self._find_crash(executable)
        if crash is not None:
            used = self._find_minor()
            lower = self._install_on_lower_python(declared, used)
            last_crash = self._find_crash(executable) if lower else crash
            if last_crash is not None:
                raise self._import_error(last_crash, declared, used, lower)
        (self._environment / _COMPLETE).touch()

    def _declared_python(self) -> str:
        """Return the Python that the package declares.

        uv respects only the lower bound, and would compile dependencies that have no wheels for a
        newer Python, which takes minutes.
        """
        with open_bare_package(self.reference, self._root) as package:
            return find_declared_python(package)

    def _create(self, declared: str) -> None:
        """Create the environment with the Python of Atlas if it fits, or else one that uv finds."""
        running = f"{sys.version_info.major}.{sys.version_info.minor}"
        try:
            self._create_with(declared or running)
        except UvError as error:
            if error.is_about_disk:
                raise
            lowest = find_lowest_minor(declared)
            how = "" if lowest is None else f" (`uv python install 3.{lowest}`)"
            raise RunnerUnavailableError(
                f"{self._title} does not run on Python {running} (it needs {declared}) and no "
                f"fitting Python could be found or downloaded; install one{how} or run it with "
                "Docker."
            ) from error

    def _install_on_lower_python(self, declared: str, used: int) -> int | None:
        """Install with the lowest available Python in ``declared``. Return its minor version.

        Returns None, and does not change the environment, if there is none below 3.``used``.
        """
        lowest = find_lowest_minor(declared)
        if lowest is None:
            return None
        present = [(minor, ("--no-python-downloads",)) for minor in range(lowest, used)]
        for minor, options in [*present, (lowest, ())] if present else ():
            try:
                self._create_with(f"{declared},==3.{minor}.*", *options)
            except UvError as error:
                if error.is_about_disk:
                    raise
                continue
            _log.info("Installing %s again, for Python 3.%s", self._title, minor)
            self._install()
            return minor
        return None

    def _create_with(self, python: str, *options: str) -> None:
        run_uv(
            *("venv", "--clear", "--no-project", "--python-preference", "system"),
            *("--python", python, *options, str(self._environment)),
            directory=self._root,
        )

    def _install(self) -> None:
        # Connectors import thousands of modules: without bytecode, each start takes twice as long.
        options = ("--compile-bytecode", "--python", str(self._environment))
        run_uv("pip", "install", *options, self.reference, directory=self._root)

    def _find_crash(self, executable: str) -> str | None:
        """Import ``executable``. Return the last line of the traceback, or None without a crash."""
        command = [str(self._interpreter), "-c", _IMPORT, self._package, executable]
        try:
            done = subprocess.run(
                [*parent_death_prefix(), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=self._environment,
                env=select_environment(INHERITED),
                timeout=_IMPORT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return None  # a slow import is not a crash
        if done.returncode == 0:
            return None
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {done.returncode}"

    def _find_minor(self) -> int:
        config = (self._environment / "pyvenv.cfg").read_text()
        found = re.search(r"^version_info = 3\.(\d+)", config, re.MULTILINE)
        return int(found[1]) if found else sys.version_info.minor

    def _import_error(self, crash: str, declared: str, used: int, lower: int | None) -> ConfigError:
        lowest = find_lowest_minor(declared)
        title, python = self._title, f"3.{used if lower is None else lower}"
        if lower is not None or lowest is None or lowest >= used:
            return ConfigError(
                f"{title} crashes when it is imported on Python {python} ({crash}); choose another "
                "version or run it with Docker."
            )
        return ConfigError(
            f"{title} crashes when it is imported on Python {python} ({crash}). It needs "
            f"Python {declared}, and no lower one was found or downloaded; install Python "
            f"3.{lowest} (`uv python install 3.{lowest}`), or run it with Docker."
        )


def install(package: str, version: str, executable: str) -> str:
    """Install a release, or the newest that can be installed. Return the installed version.

    A file stores which release replaces ``version``, so that later runs need no network.

    Raises:
        ConfigError: no release can be installed.
        RunnerUnavailableError: no network, no disk space, or no Python that fits.
    """
    kept = environments_folder() / f"{package}-{version}.instead"
    if kept.exists():
        instead = kept.read_text().strip()
        if _VERSION.fullmatch(instead) and Environment(package, instead).is_complete():
            return instead
    try:
        Environment(package, version).ensure(executable)
    except UninstallableError as error:
        if error.instead is None:
            raise
        Environment(package, error.instead).ensure(executable)
        kept.write_text(error.instead)
        return error.instead
    return version
