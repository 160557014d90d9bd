"""Packages on PyPI: find, resolve and install them with uv, and explain its failures."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import Distribution, distributions
from pathlib import Path
from tempfile import TemporaryDirectory

from uv import find_uv_bin

from atlas_dagster.errors import AtlasError, ConfigError, RunnerUnavailableError
from atlas_dagster.files import cache_folder
from atlas_dagster.runners.process import INHERITED, parent_death_prefix, select_environment

#: A version above every Python, so that uv does not refuse a package before its metadata is read.
_ANY_PYTHON = "3.99"
#: Characters of uv's output that an error repeats.
_MOST_CHARACTERS = 200
#: The time limit of uv, which may have to compile packages.
_UV_SECONDS = 15 * 60
#: uv also gets the variables of its settings, which often have a company's package index.
_INHERITED_BY_UV = re.compile(rf"{INHERITED.pattern}|TMPDIR|NETRC|UV_\w+|XDG_\w+")

_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")
_FORBIDDEN = re.compile(r"Permission denied|Read-only file system|Not a directory")
_UNREACHABLE = re.compile(
    r"Failed to fetch|Failed to download(?! and build)|Request failed|network was disabled"
)
#: The first step of uv's explanation. The later steps are conclusions from the first.
_FIRST_CAUSE = re.compile(r"[Bb]ecause (.+?),? (?:we can conclude|and because you require)")
_LOWEST_PYTHON = re.compile(r"(?:>=|~=|==|>)\s*3\.(\d+)")
_FAILED_BUILD = re.compile(r"Failed to (?:download and )?build `([^`]+)`")


class UninstallableError(ConfigError):
    """The published release cannot be installed; a retry cannot help.

    ``cause`` is the first reason. ``instead`` is the newest release that can be installed, or None.
    """

    def __init__(self, requirement: str, cause: str, instead: str | None) -> None:
        self.cause = cause
        self.instead = instead
        advice = "run it with Docker"
        if instead:
            advice = f"set version: {instead} (version: auto chooses it), or {advice}"
        super().__init__(f"{_title(requirement)} cannot be installed, because {cause}; {advice}.")


class UvError(Exception):
    """uv failed. The message is the output on one line; ``lines`` has the lines of the output."""

    def __init__(self, output: str) -> None:
        # Older versions of uv break lines and draw a frame of box characters around them.
        super().__init__(re.sub(r"[^!-~]+", " ", output).strip())
        self.lines = [line for line in output.splitlines() if line.strip()]

    @property
    def is_about_disk(self) -> bool:
        """True if the disk is full or not writable."""
        return bool(_DISK_FULL.search(str(self)) or _FORBIDDEN.search(str(self)))


def environments_folder() -> Path:
    """Return the folder of all environments, in the user's cache."""
    return cache_folder() / "connectors"


@cache
def newest_version(package: str) -> str:
    """Return the newest version of ``package`` on PyPI. Each process requests it once.

    Raises:
        ConfigError: no such package.
        RunnerUnavailableError: PyPI cannot be reached.
    """
    root = environments_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with open_bare_package(package, root) as found:
            return found.version
    except (OSError, UvError) as error:
        raise explain(error, package, root) from error


def check_release(package: str, version: str) -> None:
    """Check that a release and its dependencies are on PyPI. Installs nothing.

    Raises:
        UninstallableError: a dependency does not exist.
        ConfigError: no such package or version.
        RunnerUnavailableError: PyPI cannot be reached.
    """
    root, requirement = environments_folder(), f"{package}=={version}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with open_bare_package(requirement, root, retries=False) as package_alone:
            lowest = find_lowest_minor(find_declared_python(package_alone)) or 0
        # If the Python of Atlas is too old, the environment gets a newer Python.
        minor = max(sys.version_info.minor, lowest)
        _compile(requirement, root, "--python-version", f"3.{minor}")
    except (OSError, UvError) as error:
        raise explain(error, requirement, root) from error


@contextmanager
def open_bare_package(
    requirement: str, directory: Path, *, retries: bool = True
) -> Iterator[Distribution]:
    """Install the package without its dependencies, for any Python, and remove it at the end."""
    with TemporaryDirectory() as folder:
        for_any_python = ("--python", sys.executable, "--python-version", _ANY_PYTHON)
        options = ("--no-deps", "--target", folder, *for_any_python)
        run_uv("pip", "install", *options, requirement, directory=directory, retries=retries)
        (package,) = distributions(path=[folder])
        yield package


def find_declared_python(package: Distribution) -> str:
    """Return the declared Python, such as ``>=3.10,<3.13``; empty if there is none."""
    return "".join(package.metadata.get_all("Requires-Python", []))


def find_lowest_minor(declared: str) -> int | None:
    """Return the lowest minor version: 10 for ``>=3.10,<3.13``."""
    found = _LOWEST_PYTHON.search(declared)
    return int(found[1]) if found else None


def explain(
    error: UvError | OSError, requirement: str, root: Path, python: str = sys.executable
) -> AtlasError:
    """Return the error that explains why ``requirement`` cannot be installed for ``python``."""
    output = str(error)
    package, title = requirement.partition("==")[0], _title(requirement)
    if _UNREACHABLE.search(output):
        return RunnerUnavailableError(
            f"{title} cannot be downloaded; check the network, and the proxy if there is one."
        )
    if f"no version of {requirement}" in output:
        return ConfigError(f"There is no version {title} on PyPI; choose another one.")
    if f"{package} was not found" in output:
        return ConfigError(
            f"There is no package {package} on PyPI; run this connector with Docker."
        )
    if _DISK_FULL.search(output):
        return RunnerUnavailableError(
            f"{title} cannot be installed because the disk of {root} is full; free some space."
        )
    if _FORBIDDEN.search(output):
        return ConfigError(
            f"{title} cannot be installed because {root} cannot be written; "
            "set XDG_CACHE_HOME to a folder that can be written."
        )
    if (cause := _find_first_cause(output)) is not None:
        return UninstallableError(requirement, cause, _find_installable(package, root, python))
    if isinstance(error, UvError) and (failed := _FAILED_BUILD.search(output)):
        reason = f"{failed[1]} cannot be built from source: {_cut(_last_line(error))}"
    else:
        reason = _cut(output.rstrip("."))
    return RunnerUnavailableError(
        f"{title} cannot be installed here ({reason}); run it with Docker."
    )


def _find_first_cause(output: str) -> str | None:
    """Return the reason why uv found no solution; None if uv failed for another reason."""
    found = _FIRST_CAUSE.search(output)
    return _cut(found[1]) if found else None


def _find_installable(package: str, root: Path, python: str) -> str | None:
    try:
        compiled = _compile(package, root, "--python", python)
    except UvError:
        return None
    found = re.search(rf"^{re.escape(package)}==(\S+)", compiled, re.MULTILINE)
    return found[1] if found else None


def _compile(requirement: str, root: Path, *python: str) -> str:
    """Return the pins of ``requirement`` and its dependencies, one on each line."""
    options = ("--no-header", "--no-annotate", *python)
    return run_uv("pip", "compile", "-", *options, directory=root, stdin=requirement)


def _title(requirement: str) -> str:
    return requirement.replace("==", " ")


def _last_line(error: UvError) -> str:
    """Return the last line of the build's output, without uv's hints."""
    lines = [line.strip() for line in error.lines if not line.lstrip().startswith("hint:")]
    return lines[-1] if lines else "it gave no reason"


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


def run_uv(*arguments: str, directory: Path, stdin: str = "", retries: bool = True) -> str:
    """Run uv, and return its output.

    Args:
        arguments: the command line.
        directory: the working directory, which must not have settings of another project.
        stdin: the input.
        retries: whether uv repeats failed requests.

    Raises:
        UvError: uv failed.
        RunnerUnavailableError: uv did not end in time.
    """
    environment = select_environment(_INHERITED_BY_UV)
    # The Python of Atlas is first in PATH, so that uv uses it if it fits.
    own_python = str(Path(sys.base_prefix) / "bin")
    if not retries:
        environment.setdefault("UV_HTTP_RETRIES", "0")
    environment["PATH"] = os.pathsep.join([own_python, environment.get("PATH", os.defpath)])
    try:
        done = subprocess.run(
            [*parent_death_prefix(), find_uv_bin(), *arguments, "--quiet", "--color", "never"],
            input=stdin.encode(),
            capture_output=True,
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
        output = done.stderr.decode(errors="replace")
        raise UvError(output if output.strip() else f"uv exited with {done.returncode}")
    return done.stdout.decode(errors="replace")
