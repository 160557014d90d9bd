import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from uv import find_uv_bin

from atlas_dagster.errors import AtlasError, ConfigError, RunnerUnavailableError
from atlas_dagster.runners import python
from atlas_dagster.runners.base import ConnectorCommand, ConnectorProcess, ExitStatus
from atlas_dagster.runners.python import PythonRunner, start_process

RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"


def run(script: str, files: dict[str, bytes] | None = None) -> ConnectorProcess:
    return start_process([sys.executable, "-c", script], files or {})


def printed(process: ConnectorProcess) -> tuple[bytes, bytes, int]:
    """All of stdout, all of stderr, and how often the process was idle."""
    pieces = list(process.output())
    joined = {
        channel: b"".join(data for named, data in pieces if named == channel)
        for channel in ("stdout", "stderr")
    }
    return joined["stdout"], joined["stderr"], pieces.count(("idle", b""))


def first_line(process: ConnectorProcess) -> str:
    for channel, data in process.output():
        if channel == "stdout":
            return data.decode().strip()
    raise AssertionError("the process printed nothing")


@pytest.fixture
def lifeline(tmp_path: Path) -> Path:
    """A FIFO; whoever opened it for writing is alive until a reader sees its end."""
    path = tmp_path / "lifeline"
    os.mkfifo(path)
    return path


# The process


def test_output_and_exit() -> None:
    with run("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)") as process:
        assert printed(process)[:2] == (b"out\n", b"err\n")
        assert process.wait() == ExitStatus(3)


def test_death_by_a_signal_is_reported_as_by_a_shell() -> None:
    with run("import os; os.kill(os.getpid(), 9)") as process:
        printed(process)
        assert process.wait() == ExitStatus(137)


def test_much_output_on_both_channels() -> None:
    size = 20_000_000
    script = f"""
import os, threading
def write(fd):
    left = {size}
    while left:
        left -= os.write(fd, b'x' * min(left, 1 << 20))
threads = [threading.Thread(target=write, args=(fd,)) for fd in (1, 2)]
[thread.start() for thread in threads]
"""
    with run(script) as process:
        out, err, _ = printed(process)
        assert (len(out), len(err)) == (size, size)
        assert process.wait() == ExitStatus(0)


def test_silence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python, "IDLE_SECONDS", 0.05)
    with run("import time; time.sleep(0.5); print('late')") as process:
        out, _, idle = printed(process)
    assert out == b"late\n"
    assert idle >= 3


def test_silence_is_told_after_the_output_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python, "IDLE_SECONDS", 0.05)
    with run("import os, time; os.close(1); os.close(2); time.sleep(0.5); os._exit(4)") as process:
        assert printed(process)[2] >= 3
        assert process.wait() == ExitStatus(4)


def test_files_are_private_writable_and_gone_afterwards() -> None:
    script = """
import json, os, stat, sys
files = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print(json.dumps({
    "directory": os.getcwd(),
    "modes": [oct(stat.S_IMODE(os.stat(path).st_mode)) for path in [".", *files.values()]],
    "content": {option: open(path).read() for option, path in files.items()},
    "options": list(files),
}))
for path in files.values():
    open(path, "w").write("migrated")
"""
    files = {"state": b"[]", "config": b"{}", "catalog": b'{"streams": []}'}
    with run(script, files) as process:
        told = json.loads(printed(process)[0])
        assert Path(told["directory"]).exists()
    assert told["options"] == ["--config", "--catalog", "--state"]
    assert told["content"] == {f"--{option}": text.decode() for option, text in files.items()}
    assert told["modes"] == ["0o700", "0o600", "0o600", "0o600"]
    assert not Path(told["directory"]).exists()


def test_our_environment_stays_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    with run("import json, os; print(json.dumps([os.getcwd(), dict(os.environ)]))") as process:
        directory, seen = json.loads(printed(process)[0])
    assert "hunter2" not in str(seen)
    assert seen.keys() <= {
        *("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
        *("https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "no_proxy"),
        *("all_proxy", "ALL_PROXY", "ftp_proxy", "FTP_PROXY"),
        *("DEPLOYMENT_MODE", "USE_STREAM_CAPABLE_STATE"),
    }
    assert seen["https_proxy"] == "http://proxy:3128"
    assert seen["NO_PROXY"] == "localhost"
    assert seen["DEPLOYMENT_MODE"] == "OSS"
    assert seen["USE_STREAM_CAPABLE_STATE"] == "true"
    assert seen["TMPDIR"] == directory


def test_close_lets_the_connector_say_goodbye(tmp_path: Path) -> None:
    goodbye = tmp_path / "goodbye"
    script = f"""
import pathlib, signal, sys, time
def leave(*_):
    pathlib.Path({str(goodbye)!r}).touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(60)
"""
    with run(script) as process:
        assert first_line(process) == "ready"
    assert goodbye.exists()
    assert process.wait() == ExitStatus(0)


def test_close_kills_who_ignores_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python, "STOP_GRACE_SECONDS", 0.3)
    script = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""
    process = run(script)
    assert first_line(process) == "ready"
    process.close()
    assert process.wait() == ExitStatus(137)


def test_close_does_not_wait_for_who_is_blocked_writing() -> None:
    script = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: None)
while True:
    sys.stdout.write("x" * 65536)
"""
    started = time.monotonic()
    with run(script) as process:
        next(process.output())
    assert time.monotonic() - started < python.STOP_GRACE_SECONDS / 2


def test_an_interrupt_while_closing_still_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getcwd(), flush=True)
time.sleep(60)
"""
    process = run(script)
    directory = Path(first_line(process))
    main = os.getpid()
    waker = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -INT {main}"])
    with pytest.raises(KeyboardInterrupt):
        process.close()
    waker.wait()
    assert process.wait() == ExitStatus(137)
    assert not directory.exists()


def test_close_twice_and_output_afterwards() -> None:
    process = run("import time; print('x', flush=True); time.sleep(60)")
    output = process.output()
    next(output)
    process.close()
    process.close()
    assert list(output) == []
    assert list(process.output()) == []
    assert process.wait() == ExitStatus(143)


def test_close_before_any_output_was_read() -> None:
    run("print('never read')").close()


def test_children_of_the_connector_end_with_it(lifeline: Path) -> None:
    child = f"""
import sys, time
held = open({str(lifeline)!r}, "wb")
print("ready", file=sys.stderr, flush=True)
time.sleep(60)
"""
    script = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {child!r}], stderr=subprocess.PIPE)
child.stderr.readline()
print("parent")
"""
    with run(script) as process, lifeline.open("rb") as end:
        assert printed(process)[0] == b"parent\n"
        assert process.wait() == ExitStatus(0)
        assert end.read() == b""


def test_an_escaped_child_holding_stdout_does_not_hang_us() -> None:
    script = """
import subprocess
print(subprocess.Popen(["sleep", "60"], start_new_session=True).pid)
"""
    started = time.monotonic()
    with run(script) as process:
        out, _, _ = printed(process)
        assert process.wait() == ExitStatus(0)
    os.kill(int(out), signal.SIGKILL)
    assert time.monotonic() - started < 10


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("setpriv") is None, reason="needs setpriv"
)
def test_kill_9_of_the_parent_kills_the_connector(lifeline: Path, tmp_path: Path) -> None:
    connector = f"import time; held = open({str(lifeline)!r}, 'wb'); time.sleep(60)"
    parent = f"""
import sys, time
from atlas_dagster.runners.python import start_process
process = start_process([sys.executable, "-c", {connector!r}], {{}})
time.sleep(60)
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    started = subprocess.Popen([sys.executable, "-c", parent], env=environment)
    with lifeline.open("rb") as end:
        started.kill()
        started.wait()
        assert end.read() == b""


def test_what_a_killed_parent_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    parent = """
import os
from atlas_dagster.runners.python import start_process
process = start_process(["true"], {"config": b"password"})
os.kill(os.getpid(), 9)
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", parent], env=environment)
    (left,) = tmp_path.iterdir()
    foreign = tmp_path / "atlas-dagster-notes"
    foreign.mkdir()
    with run("import os; print(os.getcwd(), flush=True)") as young:
        alive = Path(first_line(young))
        assert left.exists()
        for directory in (left, alive, foreign):
            os.utime(directory, (0, 0))
        run("pass").close()
        assert sorted(tmp_path.iterdir()) == sorted([alive, foreign])


def test_a_program_that_cannot_start_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(python, "_dying_with_us", lambda: ())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(RunnerUnavailableError, match="source-gone cannot be started"):
        start_process(["/nowhere/source-gone"], {"config": b"{}"})
    assert list(tmp_path.iterdir()) == []


# The environment

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
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(shelf))
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")

    def make(requires_python: str = "", requires: str = "") -> PythonRunner:
        metadata = "Metadata-Version: 2.1\nName: airbyte-source-tiny\nVersion: 1.0.0\n"
        metadata += f"Requires-Python: {requires_python}\n" if requires_python else ""
        metadata += f"Requires-Dist: {requires}\n" if requires else ""
        main = "import platform, sys\ndef run(): print(platform.python_version(), sys.argv[1])\n"
        files = {
            "source_tiny.py": main,
            "airbyte_source_tiny-1.0.0.dist-info/METADATA": metadata,
            "airbyte_source_tiny-1.0.0.dist-info/WHEEL": (
                "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            ),
            "airbyte_source_tiny-1.0.0.dist-info/entry_points.txt": (
                "[console_scripts]\nsource-tiny = source_tiny:run\n"
            ),
        }
        record = "airbyte_source_tiny-1.0.0.dist-info/RECORD"
        files[record] = "".join(f"{name},,\n" for name in [*files, record])
        with zipfile.ZipFile(shelf / "airbyte_source_tiny-1.0.0-py3-none-any.whl", "w") as wheel:
            for name, text in files.items():
                wheel.writestr(name, text)
        return PythonRunner("airbyte-source-tiny", "1.0.0", "source-tiny")

    return make


def spec(runner: PythonRunner) -> str:
    with runner.start(ConnectorCommand("spec")) as process:
        out, err, _ = printed(process)
        assert process.wait() == ExitStatus(0), err.decode()
    return out.decode()


def refusal(runner: PythonRunner) -> AtlasError:
    with pytest.raises(AtlasError) as caught:
        runner.ensure()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 400
    return caught.value


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


def test_a_built_environment_is_compiled_complete_and_kept(
    package: PackageMaker, caches: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner = package()
    with caplog.at_level("INFO"):
        assert spec(runner) == f"{sys.version.split()[0]} spec\n"
        assert spec(runner).endswith("spec\n")
    assert caplog.text.count("Installing airbyte-source-tiny 1.0.0") == 1
    environment = caches / "airbyte-source-tiny-1.0.0"
    assert list(environment.glob("lib/*/site-packages/__pycache__/source_tiny.*.pyc"))


@pytest.mark.parametrize("missing", [".complete", "bin/python"])
def test_a_broken_environment_is_built_again(
    package: PackageMaker, caches: Path, missing: str
) -> None:
    runner = package()
    runner.ensure()
    environment = caches / "airbyte-source-tiny-1.0.0"
    (environment / missing).unlink()
    (environment / "leftover").touch()
    assert spec(runner).endswith("spec\n")
    assert not (environment / "leftover").exists()


def test_two_processes_build_once(package: PackageMaker) -> None:
    package()
    script = """
import logging
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


def test_uv_sees_none_of_our_secrets(
    package: PackageMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    spy = tmp_path / "uv"
    spy.write_text(f'#!/bin/sh\nenv >> {tmp_path}/seen\nexec {find_uv_bin()} "$@"\n')
    spy.chmod(0o700)
    monkeypatch.setattr(python, "find_uv_bin", lambda: str(spy))
    package().ensure()
    seen = (tmp_path / "seen").read_text()
    assert "UV_FIND_LINKS" in seen
    assert "hunter2" not in seen


@pytest.mark.parametrize("requires", [">=3.1,<3.2", ">=3.99"])
def test_no_python_fits(package: PackageMaker, requires: str) -> None:
    error = refusal(package(requires_python=requires))
    assert isinstance(error, RunnerUnavailableError)
    assert str(error) == (
        f"airbyte-source-tiny 1.0.0 does not run on Python {RUNNING} (it needs {requires}) and no "
        "fitting Python could be found or fetched; install one or run it with Docker."
    )


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


def test_a_missing_dependency_is_not_mistaken_for_the_package(package: PackageMaker) -> None:
    error = refusal(package(requires="airbyte-nothing==1"))
    assert isinstance(error, RunnerUnavailableError)
    assert str(error).startswith("airbyte-source-tiny 1.0.0 cannot be installed here;")


def test_no_network(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    error = refusal(PythonRunner("airbyte-source-tiny", "1.0.0", "source-tiny"))
    assert isinstance(error, RunnerUnavailableError)
    assert str(error) == (
        "airbyte-source-tiny 1.0.0 cannot be downloaded; "
        "check the network and, if there is one, the proxy."
    )


def test_a_cache_that_cannot_be_written(package: PackageMaker, caches: Path) -> None:
    runner = package()
    caches.parent.parent.mkdir()
    caches.parent.write_text("a file where a directory should be")
    error = refusal(runner)
    assert isinstance(error, ConfigError)
    assert "cannot be written; set XDG_CACHE_HOME to a directory that can." in str(error)


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
    def fail(*_: str, directory: Path) -> None:
        raise python._UvError(complaint)

    monkeypatch.setattr(python, "_uv", fail)
    error = refusal(package())
    assert isinstance(error, RunnerUnavailableError)
    assert "is full; free some space." in str(error)


def test_a_package_that_is_no_connector(package: PackageMaker) -> None:
    package()
    error = refusal(PythonRunner("airbyte-source-tiny", "1.0.0", "source-other"))
    assert isinstance(error, ConfigError)
    assert "has no command source-other" in str(error)


@pytest.mark.parametrize("version", ["latest", "", "../1.0", "1.0/..", "1.0 --index-url=x"])
def test_an_inexact_version(version: str) -> None:
    with pytest.raises(ConfigError, match="is not a version of airbyte-source-faker"):
        PythonRunner("airbyte-source-faker", version, "source-faker")
