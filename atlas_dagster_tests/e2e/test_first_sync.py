"""A newcomer in a terminal: from a search to rows in a table, without opening an editor."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
import yaml
from msgspec.structs import replace

from atlas_dagster.registry.catalogue import clear_cache, shipped_listing, store_catalogue
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE
from atlas_dagster_tests.e2e.project import Project

SECRET = "hunter2 says hello"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """Its registry knows the stand-in source, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    faker = next(info for info in shipped_listing().connectors if info.name == "source-faker")
    image, _, tag = SOURCE_STANDIN_IMAGE.rpartition(":")
    standin = replace(faker, name="source-standin", title="Stand-in", image=image, tag=tag)
    listed = (*shipped_listing().connectors, replace(standin, pypi_package=None))
    store_catalogue(replace(shipped_listing(), date="2999-01-01", connectors=listed))
    folder = tmp_path / "project"
    folder.mkdir()
    yield Project(folder.resolve())
    clear_cache()


class Terminal:
    """``atlas`` typed into a terminal of 100 columns; ``seen`` is all that was on it."""

    def __init__(self, project: Project, *arguments: str) -> None:
        code = "from atlas_dagster.interfaces.cli import main; main(prog_name='atlas')"
        self._child = pexpect.spawn(
            sys.executable,
            ["-c", code, *arguments],
            cwd=str(project.folder),
            env=project.environment
            | {"TERM": "xterm", "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]},
            encoding="utf-8",
            timeout=120,
            dimensions=(40, 100),
        )
        self._parts: list[str] = []

    def answer(self, question: str, text: str) -> None:
        self._child.expect_exact(question)
        self._parts.append(self._child.before + question)
        self._child.sendline(text)

    def end(self) -> tuple[str, int]:
        """All that was seen, and the exit code."""
        self._child.expect(pexpect.EOF)
        self._parts.append(self._child.before)
        self._child.close()
        return "".join(self._parts), self._child.exitstatus


@pytest.mark.docker
def test_from_a_search_to_the_first_sync(project: Project) -> None:
    seen, code = Terminal(project, "connectors", "search", "standin").end()
    assert code == 0
    assert "source-standin" in seen

    terminal = Terminal(project, "init", "source-standin")
    terminal.answer("Name of the connection [standin]: ", "my shop")
    terminal.answer("Name of the connection [standin]: ", "demo")
    terminal.answer("Name of the connection [standin]: ", "shop")
    terminal.answer("Enter for none", "count, password, fail_check")
    terminal.answer("count", "12")
    terminal.answer("(hidden", SECRET)
    terminal.answer("(true or false)", "true")
    terminal.answer("Change the answers?", "y")
    terminal.answer("Enter for none", "count, password")
    terminal.answer("count", "")
    terminal.answer("Enter keeps $SHOP_PASSWORD", "")
    terminal.answer("Which streams?", "1")
    terminal.answer("Schedule", "hourly")
    terminal.answer("Schedule", "0 * * * *")
    seen, code = terminal.end()

    assert code == 0
    assert "'my shop' is not a valid name" in seen
    assert "A connection 'demo' exists already" in seen
    assert "is not a valid cron expression" in seen
    assert "CHECK of source-standin failed: bad password" in seen
    assert "Next: " in seen
    assert SECRET not in seen
    file = project.connections / "shop" / "defs.yaml"
    declared = yaml.safe_load(file.read_text())["attributes"]
    config = declared.pop("config")
    assert (config["count"], config["password"]) == (12, "{{ env.SHOP_PASSWORD }}")
    # The SPEC's defaults of what was not asked for, as the platform's form sends them.
    assert (config["behaviour"], config["fail_check"]) == ("steady", False)
    assert declared == {
        "connector": "source-standin",
        "streams": [{"name": "events"}],
        "schedule": "0 * * * *",
    }
    secrets = project.folder / ".env"
    assert SECRET in secrets.read_text()
    assert secrets.stat().st_mode & 0o077 == 0

    seen, code = Terminal(project, "sync", "shop").end()
    assert code == 0, seen
    assert project.ids("shop/events") == list(range(1, 13))
    assert SECRET not in seen

    seen, code = Terminal(project, "doctor").end()
    assert code == 0, seen
    assert "1 stream, into deltalake" in seen
    secrets.unlink()
    seen, code = Terminal(project, "doctor").end()
    assert code == 1
    assert "SHOP_PASSWORD is not set" in seen


@pytest.mark.docker
def test_whoever_gives_up_leaves_nothing(project: Project) -> None:
    before = sorted(path.name for path in project.connections.iterdir())
    terminal = Terminal(project, "init", "source-standin", "--name", "shop")
    terminal.answer("Enter for none", "\x03")
    _, code = terminal.end()
    assert code == 130
    assert sorted(path.name for path in project.connections.iterdir()) == before
    assert not (project.folder / ".env").exists()
