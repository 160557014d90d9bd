"""What ``atlas read`` and its kin leave behind, and say, with a connector that misbehaves."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
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
    for verb in ("check", "discover"):
        result = atlas(verb, "own", "--no-validate")
        assert result.exit_code == 3
        assert "write `validate: off`" in result.stderr


# A config and its SPEC


def test_what_is_odd_about_a_config_is_told_on_stderr(project: Project) -> None:
    source = Source(project, "users")
    schema = {"properties": {"count": {"type": "integer", "default": 7}}}
    source.answers("spec", line("SPEC", spec={"connectionSpecification": schema}))
    declared = (source.folder / "defs.yaml").read_text()
    odd, wrong = declared + "  config: {xyzzy: 1}\n", declared + "  config: {cuont: 1}\n"

    (source.folder / "defs.yaml").write_text(odd)
    checked, discovered = atlas("check", "own"), atlas("discover", "own")
    (source.folder / "defs.yaml").write_text(wrong)
    refused = atlas("check", "own")
    (source.folder / "defs.yaml").write_text(wrong + "  validate: off\n")
    passed = atlas("check", "own")

    sentence = "Warning: Connection 'own': the connector's SPEC has no config field 'xyzzy';"
    for result in (checked, discovered):
        assert result.exit_code == 0
        assert sentence in result.stderr
        assert "xyzzy" not in result.stdout
    assert (refused.exit_code, passed.exit_code) == (3, 0)
    assert "did you mean 'count'?" in refused.stderr


# A reader that has had enough


def piped(reader: str, *arguments: str) -> int:
    """The exit code of ``atlas read own … | reader``."""
    with (
        subprocess.Popen([*ATLAS, "read", "own", *arguments], stdout=subprocess.PIPE) as atlas,
        subprocess.Popen(["sh", "-c", reader], stdin=atlas.stdout, stdout=subprocess.DEVNULL),
    ):
        assert atlas.stdout is not None
        atlas.stdout.close()
        return atlas.wait(timeout=120)


@pytest.mark.parametrize("rows", [3_000, 100_000], ids=["in the pipe", "more than a pipe holds"])
def test_a_reader_that_leaves_leaves_the_state(project: Project, rows: int) -> None:
    source = Source(project, "users")
    read = [record("users", id) for id in range(rows)]
    source.answers("read", *read, state("users", rows), status("users", "COMPLETE"))
    before = '[{"type":"STREAM","stream":{"stream_descriptor":{"name":"users"},"stream_state":7}}]'
    Path("state.json").write_text(before)
    assert piped("head -100", "--state", "state.json") == 141
    assert Path("state.json").read_text() == before
    assert piped("cat", "--state", "state.json") == 0
    assert f'"stream_state":{{"id": {rows}}}' in Path("state.json").read_text()


# One stream of several that fails

NAMES = [f"s{n:02}" for n in range(12)]


def one_fails(source: Source, *last: str) -> None:
    each = [record(name, n) + state(name, n) for n, name in enumerate(NAMES)]
    ends = [status(name, "INCOMPLETE" if name == "s05" else "COMPLETE") for name in NAMES]
    source.answers("read", *each, *ends, *last, exit_code=1)


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_complete_streams_are_written_where_another_fails(project: Project, form: str) -> None:
    one_fails(
        Source(project, *NAMES),
        line(
            "TRACE",
            trace={
                "type": "ERROR",
                "emitted_at": 1,
                "error": {
                    "message": "no licence for s05",
                    "failure_type": "config_error",
                    "stream_descriptor": {"name": "s05"},
                },
            },
        ),
    )
    result = atlas("read", "own", "--output", "out/", "--format", form, "--state", "state.json")
    assert result.exit_code == 3
    assert "Error: source-own: no licence for s05. Not complete: s05." in result.stderr
    written = [name for name in NAMES if name != "s05"]
    assert sorted(path.name for path in Path("out").iterdir()) == [f"{n}.{form}" for n in written]
    if form == "jsonl":
        assert json.loads(Path("out/s11.jsonl").read_text()) == {"id": 11}
    if form == "parquet":
        assert pq.read_table("out/s11.parquet")["id"].to_pylist() == [11]
    kept = json.loads(Path("state.json").read_text())
    assert [each["stream"]["stream_descriptor"]["name"] for each in kept] == written


def test_the_state_of_a_stream_that_fails_stays(project: Project) -> None:
    one_fails(Source(project, *NAMES))
    content = [{"type": "STREAM", "stream": {"stream_descriptor": {"name": "s05"}}}]
    content[0]["stream"]["stream_state"] = {"id": "before"}  # type: ignore[index]
    Path("state.json").write_text(json.dumps(content))
    result = atlas("read", "own", "--output", "out/", "--format", "jsonl", "--state", "state.json")
    assert result.exit_code == 1
    kept = json.loads(Path("state.json").read_text())
    states = {e["stream"]["stream_descriptor"]["name"]: e["stream"]["stream_state"] for e in kept}
    assert states["s05"] == {"id": "before"}
    assert states["s11"] == {"id": 11}


def test_a_state_of_all_streams_stays_where_one_fails(project: Project) -> None:
    source = Source(project, "a", "b")
    whole = {"shared_state": 2, "stream_states": []}
    source.answers(
        "read",
        record("a", 1) + record("b", 1),
        line("STATE", state={"type": "GLOBAL", "global": whole}),
        status("a", "COMPLETE") + status("b", "INCOMPLETE"),
        exit_code=1,
    )
    result = atlas("read", "own", "--output", "out/", "--format", "jsonl", "--state", "state.json")
    assert result.exit_code == 1
    assert [path.name for path in Path("out").iterdir()] == ["a.jsonl"]
    assert not Path("state.json").exists()
    assert "No state was written" in result.stderr
