"""A declared connection whose connector prints the lines of files."""

import json
import sys
from typing import Any

from atlas_dagster_tests.components.connections_project import Project

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


class ScriptedSource:
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
