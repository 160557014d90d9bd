"""``atlas sync`` while another run of the connection is active, or was killed."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import pexpect
import pytest

from atlas_dagster_tests.commands import BIN
from atlas_dagster_tests.components.connections_project import Project
from atlas_dagster_tests.interfaces.cli.conftest import NUMBERS_SOURCE
from atlas_dagster_tests.interfaces.waiting import PATIENCE, until

#: Does not go on with a read before the file ``go`` is there.
PATIENT = NUMBERS_SOURCE.replace(
    "else:\n",
    """else:
    import pathlib, time
    pathlib.Path("reading").touch()
    while not pathlib.Path("go").exists(): time.sleep(0.1)
""",
)


STREAM = {
    "name": "events",
    "json_schema": {"properties": {"id": {"type": "integer"}}},
    "supported_sync_modes": ["incremental"],
    "source_defined_cursor": True,
    "default_cursor_field": ["id"],
}


pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]


@pytest.fixture
def project(project: Project) -> Project:
    """A project where each connection syncs once at a time, with a connection ``numbers``."""
    (project.root / "dagster.yaml").write_text(
        "telemetry: {enabled: false}\nconcurrency: {pools: {default_limit: 1, granularity: op}}\n"
    )
    project.declare("numbers", f"command: [{sys.executable}, source.py]", "config: {count: 1}")
    (project.connections / "numbers" / "source.py").write_text(PATIENT)
    project.discover("numbers", {"count": 1}, [STREAM])
    return project


@contextmanager
def atlas(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [BIN / "atlas", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def kill_while_it_reads(project: Project) -> str:
    """A sync; the id of its run."""
    reading = project.connections / "numbers" / "reading"
    with atlas("sync", "numbers") as process:
        until(reading.exists, "the read begins")
        process.kill()
    reading.unlink()
    (project.connections / "numbers" / "go").touch()
    with dg.DagsterInstance.get() as instance:
        (run,) = instance.get_runs()
        assert run.status is dg.DagsterRunStatus.STARTED
        assert instance.event_log_storage.get_concurrency_info("airbyte_numbers").claimed_slots
    return run.run_id


def test_after_a_kill_the_next_one_goes_on_at_once(project: Project) -> None:
    killed = kill_while_it_reads(project)

    with atlas("sync", "numbers") as process:
        out, err = process.communicate(timeout=PATIENCE)

    assert process.returncode == 0, out + err
    assert killed not in err
    with dg.DagsterInstance.get() as instance:
        run = instance.get_run_by_id(killed)
        assert run is not None
        assert run.status is dg.DagsterRunStatus.FAILURE


@pytest.mark.parametrize("command", [["reap"], ["clear", "numbers", "--yes"]])
def test_other_commands_free_its_turn_too(project: Project, command: list[str]) -> None:
    kill_while_it_reads(project)

    with atlas(*command) as process:
        out, err = process.communicate(timeout=PATIENCE)

    assert process.returncode == 0, out + err
    with dg.DagsterInstance.get() as instance:
        known = instance.event_log_storage.get_concurrency_info("airbyte_numbers")
    assert known.claimed_slots == []
    assert known.pending_steps == []


def test_while_another_lives_it_says_so_and_waits(project: Project) -> None:
    folder = project.connections / "numbers"
    with atlas("sync", "numbers") as first:
        until((folder / "reading").exists, "the read begins")
        with dg.DagsterInstance.get() as instance:
            (run,) = instance.get_runs()
        with atlas("sync", "numbers") as second:
            assert second.stderr is not None
            assert run.run_id in second.stderr.readline()
            (folder / "go").touch()
            assert first.wait(PATIENCE) == 0
            assert second.wait(PATIENCE) == 0


def test_the_wait_can_be_ended_and_ends_when_the_other_is_killed(project: Project) -> None:
    folder = project.connections / "numbers"
    with atlas("sync", "numbers") as first:
        until((folder / "reading").exists, "the read begins")
        with atlas("sync", "numbers") as impatient:
            assert impatient.stderr is not None
            assert "run of numbers" in impatient.stderr.readline()
            os.kill(impatient.pid, signal.SIGINT)
            assert impatient.wait(PATIENCE) == 130
        with atlas("sync", "numbers") as second:
            assert second.stderr is not None
            assert "run of numbers" in second.stderr.readline()
            (folder / "go").touch()
            first.kill()
            first.wait(PATIENCE)
            assert second.wait(PATIENCE) == 0


def test_ctrl_c_in_a_terminal_is_one_sentence(project: Project) -> None:
    """The terminal sends it to Dagster's own processes as well."""
    reading = project.connections / "numbers" / "reading"
    terminal = pexpect.spawn(str(BIN / "atlas"), ["sync", "numbers"], timeout=PATIENCE)
    terminal.logfile_read = read = io.BytesIO()

    def it_reads() -> bool:
        # A terminal that nobody reads from holds the command up.
        terminal.expect(pexpect.TIMEOUT, timeout=0.1)
        return reading.exists()

    until(it_reads, "the read begins")
    terminal.sendintr()
    terminal.expect(pexpect.EOF)
    terminal.close()
    shown = read.getvalue().decode()
    assert terminal.exitstatus == 130
    assert "Traceback" not in shown
    assert "KeyboardInterrupt" not in shown
    assert "Syncing numbers" in shown
    assert "Interrupted. " in shown
