"""Connectors from PyPI: their environments, and what is said when one cannot be built."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from uv import find_uv_bin

from atlas_dagster.errors import AtlasError, ConfigError, RunnerUnavailableError
from atlas_dagster.runners import packages
from atlas_dagster.runners.base import ConnectorCommand, ConnectorProcess, ExitStatus
from atlas_dagster.runners.packages import UninstallableError, check_release, newest_version
from atlas_dagster.runners.python import CommandRunner, PythonRunner
from atlas_dagster.runners.virtualenv import install
from atlas_dagster_tests.runners.wheels import write_wheel

RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"


def printed(process: ConnectorProcess) -> tuple[bytes, bytes]:
    """All of stdout, all of stderr."""
    joined = {"stdout": b"", "stderr": b"", "idle": b""}
    for channel, data in process.output():
        joined[channel] += data
    return joined["stdout"], joined["stderr"]


PackageMaker = Callable[..., PythonRunner]


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "atlas-dagster" / "connectors"


@pytest.fixture
def package(tmp_path: Path, caches: Path, monkeypatch: pytest.MonkeyPatch) -> PackageMaker:
    """Makes a wheel that needs no network, and its runner."""
    shelf = tmp_path / "wheels"
    shelf.mkdir()
    monkeypatch.setenv("UV_DEFAULT_INDEX", shelf.as_uri())
    monkeypatch.setenv("UV_FIND_LINKS", str(shelf))
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")

    def make(version: str = "1.0.0", **wheel: str) -> PythonRunner:
        write_wheel(shelf, "airbyte-source-tiny", version, **wheel)
        return PythonRunner("airbyte-source-tiny", version, "source-tiny")

    return make


def spec(runner: PythonRunner) -> str:
    with runner.start(ConnectorCommand("spec")) as process:
        out, err = printed(process)
        assert process.wait() == ExitStatus(0), err.decode()
    return out.decode()


def refusal(runner: PythonRunner) -> AtlasError:
    with pytest.raises(AtlasError) as caught:
        runner.ensure()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 500
    return caught.value


@pytest.mark.slow
def test_source_faker_from_pypi() -> None:
    runner = PythonRunner("airbyte-source-faker", "7.2.1", "source-faker")
    assert (runner.kind, runner.reference) == ("python", "airbyte-source-faker==7.2.1")
    assert runner.identity() == runner.reference
    messages = [json.loads(line) for line in spec(runner).splitlines()]
    assert "connectionSpecification" in next(m["spec"] for m in messages if m["type"] == "SPEC")


def test_no_such_version_on_pypi(caches: Path) -> None:
    error = refusal(PythonRunner("airbyte-source-faker", "99.0.0", "source-faker"))
    assert isinstance(error, ConfigError)
    assert str(error) == (
        "There is no version airbyte-source-faker 99.0.0 on PyPI; choose another one."
    )


@pytest.mark.slow
def test_a_built_environment_is_compiled_complete_and_kept(
    package: PackageMaker, caches: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner = package()
    with caplog.at_level("INFO"):
        assert spec(runner) == f"{sys.version.split()[0]} spec\n"
        assert spec(runner).endswith("spec\n")
    assert caplog.text.count("Installing airbyte-source-tiny 1.0.0") == 1
    built = caches / "airbyte-source-tiny-1.0.0"
    assert list(built.glob("lib/*/site-packages/__pycache__/source_tiny.*.pyc"))


@pytest.mark.slow
@pytest.mark.parametrize("missing", [".complete", "bin/python"])
def test_a_broken_environment_is_built_again(
    package: PackageMaker, caches: Path, missing: str
) -> None:
    runner = package()
    runner.ensure()
    built = caches / "airbyte-source-tiny-1.0.0"
    (built / missing).unlink()
    (built / "leftover").touch()
    assert spec(runner).endswith("spec\n")
    assert not (built / "leftover").exists()


@pytest.mark.slow
def test_two_processes_build_once(package: PackageMaker) -> None:
    package()
    script = """
import logging
from atlas_dagster.runners.packages import newest_version
from atlas_dagster.runners.python import PythonRunner
logging.basicConfig(level="INFO")
PythonRunner("airbyte-source-tiny", "1.0.0", "source-tiny").ensure()
"""
    builders = [
        subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [builder.communicate()[1] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], told
    assert "".join(told).count("Installing") == 1


@pytest.mark.slow
def test_uv_sees_none_of_our_secrets(
    package: PackageMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    spy = tmp_path / "uv"
    spy.write_text(f'#!/bin/sh\nenv >> {tmp_path}/seen\nexec {find_uv_bin()} "$@"\n')
    spy.chmod(0o700)
    monkeypatch.setattr(packages, "find_uv_bin", lambda: str(spy))
    package().ensure()
    seen = (tmp_path / "seen").read_text()
    assert "UV_FIND_LINKS" in seen
    assert "hunter2" not in seen


@pytest.mark.slow
@pytest.mark.parametrize("requires", [">=3.1,<3.2", ">=3.99"])
def test_no_python_fits(package: PackageMaker, requires: str) -> None:
    error = refusal(package(requires_python=requires))
    assert isinstance(error, RunnerUnavailableError)
    lowest = requires.partition(",")[0].removeprefix(">=")
    assert str(error) == (
        f"airbyte-source-tiny 1.0.0 does not run on Python {RUNNING} (it needs {requires}) and no "
        f"fitting Python could be found or downloaded; install one (`uv python install {lowest}`) "
        "or run it with Docker."
    )


@pytest.mark.slow
@pytest.mark.parametrize("requires", [f">=3.8,<{RUNNING}", f">{RUNNING}.9999"])
def test_another_python_is_found_where_ours_does_not_fit(
    package: PackageMaker, requires: str
) -> None:
    if subprocess.run([find_uv_bin(), "python", "find", "--quiet", requires]).returncode:
        pytest.skip(f"no Python {requires} on this machine")
    version = spec(package(requires_python=requires)).split()[0]
    assert not version.startswith(f"{RUNNING}.")


def test_no_such_package(package: PackageMaker) -> None:
    error = refusal(PythonRunner("airbyte-source-nothing", "1.0.0", "source-nothing"))
    assert isinstance(error, ConfigError)
    assert str(error) == (
        "There is no package airbyte-source-nothing on PyPI; run this connector with Docker."
    )


@pytest.mark.slow
def test_a_release_that_needs_what_does_not_exist(package: PackageMaker) -> None:
    package(version="0.9.0", requires="airbyte-nothing==1")
    only = refusal(package(requires="airbyte-nothing==1"))
    assert isinstance(only, UninstallableError)
    assert only.instead is None
    assert str(only).startswith(
        "airbyte-source-tiny 1.0.0 cannot be installed, because airbyte-nothing was not found in "
    )
    assert str(only).endswith("; run it with Docker.")

    package(version="0.8.0")
    error = refusal(package(requires="airbyte-nothing==1"))
    assert isinstance(error, UninstallableError)
    assert error.instead == "0.8.0"
    assert "; set version: 0.8.0 (version: auto chooses it)," in str(error)


@pytest.mark.slow
def test_a_release_is_checked_without_installing_it(package: PackageMaker, caches: Path) -> None:
    package()
    package(version="2.0.0", requires="airbyte-nothing==1")
    package(version="3.0.0", requires_python=">=3.99")
    check_release("airbyte-source-tiny", "1.0.0")
    check_release("airbyte-source-tiny", "3.0.0")  # with another Python it can be
    with pytest.raises(UninstallableError) as caught:
        check_release("airbyte-source-tiny", "2.0.0")
    assert caught.value.instead == "1.0.0"
    with pytest.raises(ConfigError, match="airbyte-source-tiny"):
        check_release("airbyte-source-tiny", "4.0.0")
    assert list(caches.iterdir()) == []


@pytest.mark.slow
def test_the_newest_release_that_can_be_installed_is_taken_and_remembered(
    package: PackageMaker, tmp_path: Path
) -> None:
    package(version="1.0.0")
    package(version="1.1.0")
    package(version="2.0.0", requires="airbyte-nothing==1")
    assert install("airbyte-source-tiny", "1.0.0", "source-tiny") == "1.0.0"
    assert install("airbyte-source-tiny", "2.0.0", "source-tiny") == "1.1.0"

    for wheel in (tmp_path / "wheels").iterdir():
        wheel.unlink()
    assert install("airbyte-source-tiny", "2.0.0", "source-tiny") == "1.1.0"
    with pytest.raises(ConfigError, match="There is no package"):
        install("airbyte-source-tiny", "3.0.0", "source-tiny")


# A Python that a package declares, and crashes with

CRASHING = "import {0}\ndef run(): print('ran')\n"


@pytest.mark.slow
def test_a_package_that_crashes_with_the_python_it_declares(
    package: PackageMaker, caches: Path
) -> None:
    runner = package(requires_python=">=3.1", module=CRASHING.format("no_such_module"))
    error = refusal(runner)
    assert isinstance(error, ConfigError)
    assert str(error).startswith(
        f"airbyte-source-tiny 1.0.0 crashes when it is imported on Python {RUNNING} "
        "(ModuleNotFoundError: No module named 'no_such_module'). It needs Python >=3.1,"
    )
    assert "`uv python install 3.1`" in str(error)
    # It is tried again where somebody has installed one.
    assert not (caches / "airbyte-source-tiny-1.0.0" / ".complete").exists()


@pytest.mark.slow
@pytest.mark.parametrize("requires", ["", f">={RUNNING}"])
def test_a_package_that_crashes_where_no_lower_python_is_allowed(
    package: PackageMaker, requires: str
) -> None:
    runner = package(requires_python=requires, module=CRASHING.format("no_such_module"))
    assert str(refusal(runner)) == (
        f"airbyte-source-tiny 1.0.0 crashes when it is imported on Python {RUNNING} "
        "(ModuleNotFoundError: No module named 'no_such_module'); choose another version or run it "
        "with Docker."
    )


@pytest.mark.slow
def test_after_a_crash_the_lowest_python_there_is_taken(
    package: PackageMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that has Python 3.2 and 3.3, as far as uv says; both are the one that runs this."""
    said = tmp_path / "said"
    machine = tmp_path / "uv"
    machine.write_text(
        f"""#!{sys.executable}
import os, re, sys
words = sys.argv[1:]
if words[0] == "venv":
    with open({str(said)!r}, "a") as file: file.write(" ".join(words) + "\\n")
    asked = re.search(r",==(3\\.[0-9]+)\\.\\*", " ".join(words))
    if asked and asked[1] not in ("3.2", "3.3"):
        sys.exit("No interpreter found")
    if asked:
        words[words.index("--python") + 1] = "{RUNNING}"
os.execv({find_uv_bin()!r}, ["uv", *words])
""".replace("\\\\", "\\")
    )
    machine.chmod(0o700)
    monkeypatch.setattr(packages, "find_uv_bin", lambda: str(machine))
    module = f"if '3.2.*' not in open({str(said)!r}).read(): import no_such_module\n"
    runner = package(requires_python=">=3.1", module=module + CRASHING.format("sys"))

    assert spec(runner) == "ran\n"
    asked = [line.split("--python ")[1].split()[0] for line in said.read_text().splitlines()]
    assert asked == [">=3.1", ">=3.1,==3.1.*", ">=3.1,==3.2.*"]
    # None is downloaded while one is there.
    assert said.read_text().count("--no-python-downloads") == 2


def test_no_network(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    error = refusal(PythonRunner("airbyte-source-tiny", "1.0.0", "source-tiny"))
    assert isinstance(error, RunnerUnavailableError)
    assert str(error).startswith("airbyte-source-tiny 1.0.0 cannot be downloaded; ")


def test_an_installation_that_hangs(package: PackageMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = package()
    monkeypatch.setattr(packages, "_UV_SECONDS", 0.001)
    error = refusal(runner)
    assert isinstance(error, RunnerUnavailableError)
    assert "did not end within" in str(error)


def test_a_cache_that_cannot_be_written(package: PackageMaker, caches: Path) -> None:
    runner = package()
    caches.parent.parent.mkdir()
    caches.parent.write_text("a file where a directory should be")
    error = refusal(runner)
    assert isinstance(error, ConfigError)
    assert "cannot be written; set XDG_CACHE_HOME" in str(error)


@pytest.mark.parametrize(
    "complaint",
    [
        "[Errno 28] No space left on device: '/x'",
        "error: Failed to install: orjson.whl Caused by: No space left on device (os error 28)",
    ],
)
def test_a_full_disk(
    package: PackageMaker, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: str, **__: object) -> None:
        raise packages.UvError(complaint)

    monkeypatch.setattr(packages, "run_uv", fail)
    error = refusal(package())
    assert isinstance(error, RunnerUnavailableError)
    assert "is full; free some space." in str(error)


@pytest.mark.slow
def test_a_package_that_is_no_connector(package: PackageMaker) -> None:
    package()
    error = refusal(PythonRunner("airbyte-source-tiny", "1.0.0", "source-other"))
    assert isinstance(error, ConfigError)
    assert "has no command source-other" in str(error)


@pytest.mark.parametrize("version", ["latest", "", "../1.0", "1.0/..", "1.0 --index-url=x"])
def test_an_inexact_version(version: str) -> None:
    with pytest.raises(ConfigError, match="version of airbyte-source-faker"):
        PythonRunner("airbyte-source-faker", version, "source-faker")


# Programs of one's own


def ask(runner: CommandRunner) -> str:
    with runner.start(ConnectorCommand("check", {"config": b"{}"})) as process:
        out, err = printed(process)
        assert process.wait() == ExitStatus(0), err.decode()
    return out.decode()


def test_a_command_works_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "my_source.py").write_text(
        "import os, sys\nprint(os.getcwd(), sys.argv[1:3], open(sys.argv[3]).read())\n"
    )
    runner = CommandRunner([sys.executable, "my_source.py"], directory=tmp_path)

    assert ask(runner) == f"{tmp_path} ['check', '--config'] {{}}\n"
    assert runner.identity() == f"{sys.executable} my_source.py"


def test_a_commands_program_may_be_a_file_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "folder" / "my_source"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho $1 from $PWD\n")
    program.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    runner = CommandRunner(["./my_source"], directory=Path("folder"))

    assert ask(runner) == f"check from {tmp_path}/folder\n"


@pytest.mark.parametrize("program", ["pyhton", "./my_source"])
def test_a_command_that_is_not_there(tmp_path: Path, program: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CommandRunner([program], directory=tmp_path).start(ConnectorCommand("spec"))
    assert f"program {program} does not exist;" in str(caught.value)
    assert f"relative to {tmp_path}." in str(caught.value)


def test_the_newest_version_whatever_python_it_needs(package: PackageMaker) -> None:
    newest_version.cache_clear()
    package(version="1.9.0")
    package(version="1.10.0", requires_python=">=3.6,<3.8")
    package(version="2.0.0rc1")
    assert newest_version("airbyte-source-tiny") == "1.10.0"
    package(version="1.11.0")
    # Asked for once: all verbs of a run are to be of one version.
    assert newest_version("airbyte-source-tiny") == "1.10.0"


def test_there_is_no_newest_version(caches: Path, package: PackageMaker) -> None:
    with pytest.raises(ConfigError, match=r"airbyte-source-huge .*PyPI"):
        newest_version("airbyte-source-huge")
    assert list(caches.iterdir()) == []
