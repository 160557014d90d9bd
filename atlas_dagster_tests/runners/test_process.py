"""Connectors as child processes: their output, their privacy, their limits and their end."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from atlas_dagster.errors import RunnerUnavailableError
from atlas_dagster.runners import process as process_module
from atlas_dagster.runners.base import ConnectorCommand, ConnectorProcess, ExitStatus
from atlas_dagster.runners.cleanup import reap_processes
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.runners.process import start_process
from atlas_dagster.runners.process_tags import tagged_processes

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and rlimits of Linux")


def run(script: str, files: dict[str, bytes] | None = None, **executor: Any) -> ConnectorProcess:
    return start_process(
        [sys.executable, "-c", script],
        ConnectorCommand("read", files or {}, {"atlas.connection": "shop"}),
        executor=ExecutorConfig(**executor),
    )


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


@pytest.mark.slow
def test_silence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "IDLE_SECONDS", 0.05)
    with run("import time; time.sleep(0.5); print('late')") as process:
        out, _, idle = printed(process)
    assert out == b"late\n"
    assert idle >= 3


@pytest.mark.slow
def test_silence_is_told_after_the_output_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "IDLE_SECONDS", 0.05)
    with run("import os, time; os.close(1); os.close(2); time.sleep(0.5); os._exit(4)") as process:
        assert printed(process)[2] >= 3
        assert process.wait() == ExitStatus(4)


def test_files_are_private_writable_and_gone_afterwards() -> None:
    script = """
import json, os, stat, sys
files = dict(zip(sys.argv[2::2], sys.argv[3::2]))
print(json.dumps({
    "directory": os.getcwd(),
    "modes": [oct(stat.S_IMODE(os.stat(path).st_mode)) for path in [".", *files.values()]],
    "content": {option: open(path).read() for option, path in files.items()},
    "verb": sys.argv[1],
    "names": {option: os.path.basename(path) for option, path in files.items()},
}))
for path in files.values():
    open(path, "w").write("migrated")
"""
    files = {"config": b"{}", "state": b"[]", "components-path": b"import os"}
    with run(script, files) as process:
        told = json.loads(printed(process)[0])
        assert Path(told["directory"]).exists()
    assert told["verb"] == "read"
    assert told["names"] == {
        "--config": "config.json",
        "--state": "state.json",
        "--components-path": "components.py",
    }
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
        *("DEPLOYMENT_MODE", "USE_STREAM_CAPABLE_STATE", "ATLAS_CONNECTION", "ATLAS_PROCESS"),
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
    monkeypatch.setattr(process_module, "STOP_GRACE_SECONDS", 0.3)
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
    assert time.monotonic() - started < process_module.STOP_GRACE_SECONDS / 2


@pytest.mark.slow
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


@pytest.mark.slow
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


@LINUX
@pytest.mark.parametrize("escaped", [["sleep", "60"], ["yes"]], ids=["silent", "writing"])
@pytest.mark.slow
def test_an_escaped_child_holding_stdout_neither_hangs_us_nor_outlives_us(
    escaped: list[str],
) -> None:
    script = f"""
import subprocess, sys
child = subprocess.Popen({escaped!r}, start_new_session=True)
print(child.pid, file=sys.stderr)  # the child may be writing to stdout already
"""
    started = time.monotonic()
    with run(script) as process:
        _, said, _ = printed(process)
        assert process.wait() == ExitStatus(0)
    assert time.monotonic() - started < 5
    assert int(said) not in dict(tagged_processes())


@LINUX
def test_close_kills_what_left_the_group_and_started_more(lifeline: Path) -> None:
    grandchild = f"import time; held = open({str(lifeline)!r}, 'wb'); time.sleep(60)"
    script = f"""
import subprocess, sys, time
inner = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True)"
words = [sys.executable, "-c", inner, sys.executable, "-c", {grandchild!r}]
subprocess.Popen(words, start_new_session=True)
print("ready", flush=True)
time.sleep(60)
"""
    process = run(script)
    assert first_line(process) == "ready"
    with lifeline.open("rb") as end:
        process.close()
        assert end.read() == b""


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("setpriv") is None, reason="needs setpriv"
)
def test_kill_9_of_the_parent_kills_the_connector(lifeline: Path, tmp_path: Path) -> None:
    connector = f"import time; held = open({str(lifeline)!r}, 'wb'); time.sleep(60)"
    parent = f"""
import sys, time
from atlas_dagster.runners.base import ConnectorCommand
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.runners.process import start_process
words = [sys.executable, "-c", {connector!r}]
process = start_process(words, ConnectorCommand("read"), executor=ExecutorConfig())
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
from atlas_dagster.runners.base import ConnectorCommand
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.runners.process import start_process
command = ConnectorCommand("read", {"config": b"password"})
process = start_process(["true"], command, executor=ExecutorConfig())
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
        reap_processes(deployment="tests", has_ended=lambda _: False)
        assert sorted(tmp_path.iterdir()) == sorted([alive, foreign])


def test_a_program_that_cannot_start_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "parent_death_prefix", lambda: ())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(RunnerUnavailableError, match="source-gone"):
        start_process(
            ["/nowhere/source-gone"],
            ConnectorCommand("read", {"config": b"{}"}),
            executor=ExecutorConfig(),
        )
    assert list(tmp_path.iterdir()) == []


# Limits

#: A process is limited a moment after its start.
LIMITED = """
import time
from resource import RLIMIT_CORE, RLIMIT_DATA, getrlimit
while getrlimit(RLIMIT_CORE)[0] or getrlimit(RLIMIT_DATA)[0] < 0:
    time.sleep(0.01)
"""


@LINUX
def test_a_process_that_needs_more_than_its_memory_limit_fails_and_says_so() -> None:
    with run(f"{LIMITED}hog = bytearray(300 * 1024**2)", memory_limit="200m") as process:
        _, err, _ = printed(process)
        assert process.wait() == ExitStatus(1, oom_killed=True)
    assert b"MemoryError" in err


@LINUX
def test_an_error_of_the_protocol_says_so_too() -> None:
    script = """
import json, sys
try:
    hog = bytearray(300 * 1024**2)
except MemoryError as error:
    trace = {"type": "ERROR", "error": {"message": "oops", "stack_trace": repr(error)}}
    print(json.dumps({"type": "TRACE", "trace": trace}))
sys.exit(1)
"""
    with run(LIMITED + script, memory_limit="200m") as process:
        printed(process)
        assert process.wait() == ExitStatus(1, oom_killed=True)


def test_a_record_about_memory_is_no_reason() -> None:
    script = """
import json, sys
print(json.dumps({"type": "RECORD", "record": {"data": {"issue": "MemoryError"}}}))
sys.exit(1)
"""
    with run(script) as process:
        printed(process)
        assert process.wait() == ExitStatus(1)


@LINUX
def test_memory_that_is_only_mapped_does_not_count() -> None:
    script = """
import mmap
mapped = mmap.mmap(-1, 1024**3, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
"""
    with run(LIMITED + script, memory_limit="200m") as process:
        _, err, _ = printed(process)
        assert process.wait() == ExitStatus(0), err.decode()


@LINUX
def test_no_core_is_written() -> None:
    with run(f"{LIMITED}print(getrlimit(RLIMIT_CORE))") as process:
        assert printed(process)[0] == b"(0, 0)\n"
