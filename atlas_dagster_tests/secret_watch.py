"""Watches the whole machine for the tests' secrets, while all the tests run.

    python -m atlas_dagster_tests.secret_watch

Every secret in a test has `MARK` in it, so one that got out is found without knowing the test.
Until it is told to end, it looks at the arguments of all processes, and at each container as the
engine shows it to whoever may ask. It says when it begins; when it ends, it prints what it has
found, a line each.
"""

import json
import signal
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import docker
import requests

MARK = "hunter2"
_PAUSE_SECONDS = 0.1
#: What Dagster and Atlas write for others to read; a test's own files are not among them.
_KEPT = ("*.db", "*.db-wal", "*.err", "*.out", "*.log", "_delta_log/*.json", "defs_state/**/*")


def in_arguments(mark: str = MARK) -> set[str]:
    """The arguments of each process that has it among them."""
    found = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):  # it has just ended
                arguments = (process / "cmdline").read_bytes()
                if mark.encode() in arguments:
                    found.add("process: " + arguments.replace(b"\0", b" ").decode(errors="replace"))
    return found


def in_containers(client: docker.DockerClient, found: set[str], mark: str = MARK) -> None:
    """Adds each new container that shows it."""
    while True:
        with suppress(docker.errors.DockerException, requests.RequestException):
            for event in client.events(decode=True, filters={"event": "start"}):
                shown = [event]  # with the labels, even of one that is gone again
                with suppress(docker.errors.NotFound):
                    shown.append(client.api.inspect_container(event["id"]))
                if mark in json.dumps(shown):
                    found.add(f"container: {json.dumps(shown)}")
        time.sleep(1)


def in_files(folder: Path, mark: str = MARK) -> Iterable[str]:
    """Files of logs, events, metadata and state below the folder that have it in them."""
    for pattern in _KEPT:
        for path in folder.rglob(pattern):
            if path.is_file() and mark.encode() in path.read_bytes():
                yield f"file: {path}"


def main() -> None:
    found: set[str] = set()
    with suppress(docker.errors.DockerException):  # none here
        client = docker.from_env()
        threading.Thread(target=in_containers, args=(client, found), daemon=True).start()
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    sys.stdout.write("watching\n")
    sys.stdout.flush()
    while not ended.is_set():
        found |= in_arguments()
        time.sleep(_PAUSE_SECONDS)
    sys.stdout.write("".join(f"{each}\n" for each in sorted(found.copy())))


if __name__ == "__main__":
    main()
