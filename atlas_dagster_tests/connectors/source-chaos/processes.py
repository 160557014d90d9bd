"""Scenarios of the process that a READ is, and of the other verbs."""

import json
import os
import signal
import sys
import time

from emitters import (
    MEGABYTE,
    catalog,
    complete,
    connection_status,
    files,
    log,
    record,
    say,
    scenario,
    state,
    status,
)


def sleep_for_ever() -> None:
    while True:
        time.sleep(60)


# The process


@scenario("read")
def stderr_flood(megabytes: int = 1000) -> None:
    """Writes a gigabyte to stderr."""
    text = b"x" * 9_999 + b"\n"
    for _ in range(megabytes):
        sys.stderr.buffer.write(text * 100)
    say(record(1), state(1), complete())


@scenario("read")
def silent_hang() -> None:
    """Stops printing and never ends."""
    say(record(1), state(1))
    sleep_for_ever()


@scenario("read")
def logs_for_ever() -> None:
    """Logs diligently, but brings no data."""
    say(record(1), state(1))
    while True:
        say(log("waiting for the API"))
        time.sleep(0.2)


@scenario("read")
def rate_limited(seconds: float = 3.0) -> None:
    """Announces that it must wait, is silent that long, and goes on."""
    reset = {"quota_reset": int((time.time() + seconds) * 1000)}
    say(
        record(1),
        state(1),
        status("RUNNING", reasons=[{"type": "RATE_LIMITED", "rate_limited": reset}]),
    )
    time.sleep(seconds)
    say(record(2), state(2), complete())


@scenario("read")
def ignores_sigterm() -> None:
    """Hangs and ignores SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    silent_hang()


@scenario("read")
def child_holds_stdout(seconds: float = 30.0) -> None:
    """Leaves a child behind that keeps stdout open."""
    if os.fork() == 0:
        time.sleep(seconds)
        os._exit(0)
    say(record(1), state(1), complete())


@scenario("read")
def daemonizes() -> None:
    """Ends at once while a daemon of its own goes on with the work."""
    say(status("STARTED"), record(1), state(1))
    if os.fork():
        return
    os.setsid()
    for id in range(2, 60):
        time.sleep(0.5)
        say(record(id), state(id))
    say(complete())


@scenario("read")
def closes_stdout(seconds: float = 1.0, code: int = 0, stderr_too: bool = False) -> int:
    """Closes its output and goes on working."""
    say(status("STARTED"), record(1), state(1))
    os.close(1)
    if stderr_too:
        os.close(2)
    time.sleep(seconds)
    if not stderr_too:
        print("still at work", file=sys.stderr)
    return code


@scenario("read")
def rewrites_its_config() -> None:
    """Migrates its config file in place, and beside it by renaming."""
    config = json.loads(files["config"].read_bytes())
    files["config"].write_text(json.dumps(config | {"migrated": "in place"}))
    new = files["config"].with_suffix(".new")
    new.write_text(files["config"].read_text())
    new.replace(files["config"])
    say(record(1, json.loads(files["config"].read_bytes())["migrated"]), state(1), complete())


# The other verbs


@scenario("check")
def check_failed_and_exit_0(password: str = "") -> None:
    """Answers CHECK with FAILED, as it should, and exit code 0."""
    say(connection_status("FAILED", f"wrong password {password}"))


@scenario("check")
def two_connection_statuses(last: str = "SUCCEEDED") -> None:
    """Answers CHECK twice."""
    first = "FAILED" if last == "SUCCEEDED" else "SUCCEEDED"
    say(connection_status(first, "first thought"), connection_status(last, "second thought"))


@scenario("check")
def check_crash() -> int:
    """Crashes in CHECK without an answer."""
    print("KeyError: 'host'", file=sys.stderr)
    return 1


@scenario("discover")
def big_catalog(megabytes: int = 50) -> None:
    """Offers streams without end."""
    columns = {f"column_{number}": {"type": ["null", "string"]} for number in range(500)}
    size = len(json.dumps(columns))
    say(catalog(*(f"s{number}" for number in range(megabytes * MEGABYTE // size)), columns=columns))


@scenario("spec")
def spec_never_comes() -> None:
    """Does not answer SPEC."""
    sleep_for_ever()
