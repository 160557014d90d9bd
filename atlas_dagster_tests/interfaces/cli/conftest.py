import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_dagster.interfaces.cli import output
from atlas_dagster_tests.components.connections_project import Project, importable
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE

STANDIN = (
    f"image: {SOURCE_STANDIN_IMAGE}",
    "streams: [{name: events, sync_mode: incremental, destination_sync_mode: append}]",
)
#: Sends the numbers after its state up to 3, in one state.
NUMBERS_SOURCE = """
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


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder outside of any project, with a terminal of 200 columns."""
    monkeypatch.chdir(tmp_path)
    for name in ("DAGSTER_HOME", "ATLAS_LAKE", "ATLAS_DESTINATION", "ATLAS_DEPLOYMENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    # The console may have been made with another width.
    monkeypatch.setattr(output.console, "width", 200)
    return tmp_path


@pytest.fixture
def project(somewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project without connections, around the current folder."""
    (somewhere / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(somewhere))
    with importable(somewhere, monkeypatch) as project:
        yield project


@pytest.fixture
def shop(project: Project) -> Project:
    """A project with a connection ``shop`` whose streams are known."""
    project.declare("shop", "connector: source-faker", "runner: python", "config: {count: 1}")
    project.discover("shop", {"count": 1})
    return project


@pytest.fixture
def numbers(project: Project) -> Project:
    """A project with a connection ``numbers``, whose connector sends three records."""
    project.declare("numbers", f"command: [{sys.executable}, source.py]", "config: {}")
    (project.connections / "numbers" / "source.py").write_text(NUMBERS_SOURCE)
    return project
