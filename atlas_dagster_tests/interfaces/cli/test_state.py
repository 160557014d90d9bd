"""``atlas refresh``, ``clear`` and ``state``, over a connector that is a program of its own."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from click.testing import CliRunner, Result
from deltalake import DeltaTable

from atlas_dagster.interfaces import cli
from atlas_dagster_tests.commands import BIN
from atlas_dagster_tests.components.connections_project import Project, importable

#: Sends the numbers after its state, up to ``last``, in one state.
SOURCE = """
import json, sys
def say(type, **content): print(json.dumps({"type": type, **content}), flush=True)
verb, args = sys.argv[1], dict(zip(sys.argv[2::2], sys.argv[3::2]))
stream = {"name": "events", "json_schema": {"properties": {"id": {"type": "integer"}}},
          "supported_sync_modes": ["incremental"], "source_defined_cursor": True,
          "default_cursor_field": ["id"]}
if verb == "spec": say("SPEC", spec={"connectionSpecification": {"type": "object"}})
elif verb == "check": say("CONNECTION_STATUS", connectionStatus={"status": "SUCCEEDED"})
elif verb == "discover": say("CATALOG", catalog={"streams": [stream]})
else:
    state = json.load(open(args["--state"])) if "--state" in args else []
    at = state[0]["stream"]["stream_state"]["at"] if state else 0
    for id in range(at + 1, 4):
        say("RECORD", record={"stream": "events", "data": {"id": id}, "emitted_at": id})
    name = {"name": "events"}
    say("STATE", state={"type": "STREAM", "stream": {"stream_descriptor": name,
                                                     "stream_state": {"at": max(at, 3)}}})
    say("TRACE", trace={"type": "STREAM_STATUS", "emitted_at": 1,
                        "stream_status": {"stream_descriptor": name, "status": "COMPLETE"}})
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    for name in ("ATLAS_LAKE", "ATLAS_DESTINATION", "ATLAS_DEPLOYMENT"):
        monkeypatch.delenv(name, raising=False)
    command = json.dumps([sys.executable, "source.py"])
    with importable(tmp_path, monkeypatch) as project:
        project.declare("numbers", f"command: {command}", "config: {}")
        (project.connections / "numbers" / "source.py").write_text(SOURCE)
        yield project


def atlas(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli.main, arguments, input=stdin)


def done(*arguments: str, stdin: str | None = None) -> str:
    result = atlas(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def ids(project: Project) -> list[int]:
    found = DeltaTable(str(project.root / "lake/numbers/events")).to_pyarrow_table()
    return sorted(found.column("id").to_pylist())


def test_a_users_day_with_state(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    done("discover", "numbers")
    assert done("state", "reset", "numbers") == "Nothing to do: nothing was synced yet.\n"
    assert "It was never synced." in atlas("state", "show", "numbers").stderr
    done("sync", "numbers")

    shown = atlas("state", "show", "numbers", "--stream", "events")
    assert json.loads(shown.stdout)[0]["stream"]["stream_state"] == {"at": 3}
    assert re.search(r"events +sync +20\d\d-\d\d-\d\d .* 0 +\d+", shown.stderr)

    (project.root / "state.json").write_text(shown.stdout.replace("3", "2"))
    assert done("state", "set", "numbers", "state.json") == (
        "events: continues from there at the next sync.\n"
    )
    done("sync", "numbers")
    assert ids(project) == [1, 2, 3, 3]
    done("state", "set", "numbers", "-", "--stream", "events", stdin='{"at": 1}')
    done("sync", "numbers")
    assert ids(project) == [1, 2, 2, 3, 3, 3]

    done("refresh", "numbers")
    assert ids(project) == [1, 2, 3]
    done("refresh", "numbers", "--keep-rows")
    assert ids(project) == [1, 1, 2, 2, 3, 3]
    assert "rows stay" in done("state", "reset", "numbers")
    assert "cleared" in done("clear", "numbers", "--yes")
    assert ids(project) == []

    history = done("state", "show", "numbers", "--history", "20")
    acts = re.findall(r"^ events +(\w+)", history, re.MULTILINE)
    assert acts[:4] == ["clear", "reset", "sync", "refresh"]
    assert acts[4:] == ["sync", "refresh", "sync", "set", "sync", "set", "sync"]

    monkeypatch.setenv("ATLAS_DEPLOYMENT", "dev")
    refused = atlas("sync", "numbers")
    assert refused.exit_code == 3
    assert "belong to the deployment 'atlas_dagster', and this one is 'dev'" in refused.stderr
    assert atlas("clear", "numbers", "--yes").exit_code == 3
    assert done("state", "adopt", "numbers") == (
        "The tables of numbers belong to the deployment 'dev' now.\n"
    )
    done("sync", "numbers")
    assert done("state", "accept", "numbers") == (
        "Nothing to do: nobody else changed a row that counts.\n"
    )
    DeltaTable(str(project.root / "lake/numbers/events")).delete("id = 2")
    assert "accepted" in done("state", "accept", "numbers")
    done("sync", "numbers")
    assert ids(project) == [1, 3]


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        ("{}", [], "The file is no array of states; if it is the state of one stream, name that"),
        ("[1]", [], "The file holds no state that connectors read: Expected `object`"),
        ("nonsense", [], "The file holds no state that connectors read: JSON is malformed"),
        ("nonsense", ["--stream", "events"], "The file holds no JSON: JSON is malformed"),
        ("{}", ["--stream", "evnts"], "has no stream 'evnts'; it has events."),
        ("[]", [], "The state is of no incremental stream of connection 'numbers'"),
    ],
)
def test_a_state_that_cannot_be_set(
    project: Project, content: str, options: list[str], sentence: str
) -> None:
    done("discover", "numbers")
    result = atlas("state", "set", "numbers", "-", *options, stdin=content)
    assert (result.exit_code, result.stdout) == (3, "")
    assert sentence in result.stderr


@pytest.mark.parametrize(
    "command", [["clear", "--yes"], ["refresh"], ["state", "show"], ["state", "adopt"]]
)
def test_streams_must_be_known(project: Project, command: list[str]) -> None:
    result = atlas(*command, "numbers")
    assert result.exit_code == 3
    assert result.stderr == (
        "Error: The streams of 'numbers' are not known yet; run: atlas discover numbers\n"
    )


def test_clear_asks_before_it_removes(project: Project) -> None:
    done("discover", "numbers")
    done("sync", "numbers")

    refused = atlas("clear", "numbers", stdin="")
    assert refused.exit_code == 2
    assert "removes all rows of all streams of numbers; without a terminal, say so with --yes" in (
        " ".join(refused.stderr.split())
    )

    terminal = pexpect.spawn(str(BIN / "atlas"), ["clear", "numbers"], timeout=60)
    terminal.expect_exact("Remove all rows of all streams of numbers, for good? [y/N]: ")
    terminal.sendline("n")
    terminal.expect(pexpect.EOF)
    assert terminal.before.decode().splitlines()[-1] == "Nothing was removed."
    terminal.close()
    assert terminal.exitstatus == 130
    assert ids(project) == [1, 2, 3]


def test_a_sync_tells_which_values_became_null(project: Project) -> None:
    source = SOURCE.replace(
        '{"id": {"type": "integer"}}', '{"id": {"type": "integer"}, "age": {"type": "integer"}}'
    )
    source = source.replace('{"id": id}', '{"id": id, "age": "old"}')
    (project.connections / "numbers" / "source.py").write_text(source)
    done("discover", "numbers")

    told = done("sync", "numbers")
    assert (
        "events: values are not in their columns as the source wrote them: age (3 NULLED). See "
        "_airbyte_meta and _airbyte_extra of these rows.\n"
    ) in told

    (stream,) = json.loads(done("refresh", "numbers", "--json"))["streams"]
    assert stream["changed_values"] == {"age": {"NULLED": 3}}


def test_what_a_first_sync_advises_works_where_one_stands(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    done("discover", "numbers")
    below = project.root / "notes" / "today"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    monkeypatch.setattr(sys, "argv", [str(BIN / "atlas")])
    monkeypatch.setenv("PATH", str(BIN))

    told = done("sync", "numbers")
    assert "../../lake/numbers/events\n" in told
    assert "SELECT * FROM delta_scan('../../lake/numbers/events')" in told
    assert "  atlas sync numbers  once more" in told
    assert "  cd ../.. && dagster dev  the same streams" in told

    monkeypatch.chdir(project.root)
    done("clear", "numbers", "--yes")
    (project.root / "Makefile").write_text("demo dev: export A := 1\n\ndev:\n\ttrue\n")
    told = done("sync", "numbers")
    assert "\nlake/numbers/events\n" in told
    assert "  make dev  the same streams" in told
