"""``atlas read`` with a connector that fails, or a reader that stops early."""

import json
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from atlas_dagster_tests.components.connections_project import Project
from atlas_dagster_tests.interfaces.cli.command import ATLAS, atlas
from atlas_dagster_tests.interfaces.cli.scripted_source import (
    ScriptedSource,
    line,
    record,
    state,
    status,
)

pytestmark = pytest.mark.slow


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
    source = ScriptedSource(project, "users")
    read = [record("users", id) for id in range(rows)]
    source.answers("read", *read, state("users", rows), status("users", "COMPLETE"))
    before = '[{"type":"STREAM","stream":{"stream_descriptor":{"name":"users"},"stream_state":7}}]'
    Path("state.json").write_text(before)
    assert piped("head -100", "--state", "state.json") == 141
    assert Path("state.json").read_text() == before
    assert piped("cat", "--state", "state.json") == 0
    assert f'"stream_state":{{"id": {rows}}}' in Path("state.json").read_text()


NAMES = [f"s{n:02}" for n in range(12)]


def one_fails(source: ScriptedSource, *last: str) -> None:
    each = [record(name, n) + state(name, n) for n, name in enumerate(NAMES)]
    ends = [status(name, "INCOMPLETE" if name == "s05" else "COMPLETE") for name in NAMES]
    source.answers("read", *each, *ends, *last, exit_code=1)


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_complete_streams_are_written_where_another_fails(project: Project, form: str) -> None:
    one_fails(
        ScriptedSource(project, *NAMES),
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
    assert "no licence for s05" in result.stderr
    written = [name for name in NAMES if name != "s05"]
    assert sorted(path.name for path in Path("out").iterdir()) == [f"{n}.{form}" for n in written]
    if form == "jsonl":
        assert json.loads(Path("out/s11.jsonl").read_text()) == {"id": 11}
    if form == "parquet":
        assert pq.read_table("out/s11.parquet")["id"].to_pylist() == [11]
    kept = json.loads(Path("state.json").read_text())
    assert [each["stream"]["stream_descriptor"]["name"] for each in kept] == written


def test_the_state_of_a_stream_that_fails_stays(project: Project) -> None:
    one_fails(ScriptedSource(project, *NAMES))
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
    source = ScriptedSource(project, "a", "b")
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
