"""What ``atlas read`` and its kin leave behind, and say, with a connector that misbehaves."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from atlas_dagster.interfaces import cli
from atlas_dagster_tests.components.connections_project import Project, importable

ATLAS = [sys.executable, "-c", "from atlas_dagster.interfaces.cli import main; main()"]
#: A connector that answers every verb with the lines of a file of that name beside it.
SOURCE = """
import pathlib, sys
verb, here = sys.argv[1], pathlib.Path(__file__).parent
print('{"type": "LOG", "log": {"level": "INFO", "message": "a line of the log"}}')
sys.stdout.write((here / f"{verb}.jsonl").read_text())
sys.stdout.flush()
sys.exit(int((here / f"{verb}.exit").read_text()))
"""


def line(kind: str, **content: Any) -> str:
    return json.dumps({"type": kind, **content}) + "\n"


def record(stream: str, id: int) -> str:
    return line("RECORD", record={"stream": stream, "data": {"id": id}, "emitted_at": 1})


def state(stream: str, id: int) -> str:
    content = {"stream_descriptor": {"name": stream}, "stream_state": {"id": id}}
    return line("STATE", state={"type": "STREAM", "stream": content})


def status(stream: str, word: str) -> str:
    content = {"stream_descriptor": {"name": stream}, "status": word}
    return line("TRACE", trace={"type": "STREAM_STATUS", "emitted_at": 1, "stream_status": content})


class Source:
    """A declared connection ``own`` with the ``streams``."""

    def __init__(self, project: Project, *streams: str) -> None:
        project.declare("own", f"command: [{sys.executable}, source.py]")
        self.folder = project.connections / "own"
        (self.folder / "source.py").write_text(SOURCE)
        offered = [
            {
                "name": name,
                "json_schema": {"properties": {"id": {"type": "integer"}}},
                "supported_sync_modes": ["full_refresh", "incremental"],
                "source_defined_cursor": True,
                "default_cursor_field": ["id"],
            }
            for name in streams
        ]
        self.answers("spec", line("SPEC", spec={"connectionSpecification": {}}))
        self.answers("check", line("CONNECTION_STATUS", connectionStatus={"status": "SUCCEEDED"}))
        self.answers("discover", line("CATALOG", catalog={"streams": offered}))

    def answers(self, verb: str, *lines: str, exit_code: int = 0) -> None:
        (self.folder / f"{verb}.jsonl").write_text("".join(lines))
        (self.folder / f"{verb}.exit").write_text(str(exit_code))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.delenv("ATLAS_DESTINATION", raising=False)
    with importable(tmp_path, monkeypatch) as project:
        yield project


def atlas(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments)


@pytest.mark.parametrize(
    "verb", [["spec"], ["check"], ["discover"], ["discover", "--dry-run"], ["read"]]
)
def test_logs_shows_the_connectors_log(project: Project, verb: list[str]) -> None:
    source = Source(project, "users")
    source.answers("read", record("users", 1), status("users", "COMPLETE"))
    quiet, loud = atlas(*verb, "own"), atlas(*verb, "own", "--logs")
    assert (quiet.exit_code, loud.exit_code) == (0, 0), loud.stderr
    assert "INFO  a line of the log" in loud.stderr
    assert "a line of the log" not in quiet.output


def test_a_discover_that_fails_names_the_option(project: Project) -> None:
    source = Source(project, "users")
    error = line("LOG", log={"level": "ERROR", "message": "no licence"})
    source.answers("discover", error, exit_code=1)
    result = atlas("discover", "own")
    assert result.exit_code == 1
    assert "source-own ended with exit code 1: no licence" in result.stderr
    assert "With --logs" in result.stderr


def test_discover_takes_no_config_for_a_declared_connection(project: Project) -> None:
    Source(project, "users")
    result = atlas("discover", "own", "--runner", "python")
    assert result.exit_code == 3
    assert "'own' is a declared connection" in result.stderr
