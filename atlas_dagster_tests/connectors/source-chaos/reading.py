"""Scenarios of a READ: its states and how it ends."""

import json
import sys

from emitters import (
    EMITTED_AT,
    MEGABYTE,
    complete,
    error,
    files,
    global_state,
    line,
    log,
    record,
    say,
    scenario,
    state,
    status,
    typed_state,
)


@scenario("read")
def well_behaved(until: int = 3) -> None:
    """Continues from its state up to ``until``, as it should."""
    for id in range(last_id() + 1, until + 1):
        say(record(id), state(id, count=1))
    say(complete())


def last_id() -> int:
    """Where stream ``a`` stands in the state file, of whichever form it is."""
    given = json.loads(files["state"].read_bytes()) if "state" in files else {}
    for message in given if isinstance(given, list) else [{"data": given}]:
        states = message.get("global", {}).get("stream_states") or [message.get("stream", {})]
        for entry in states:
            if entry.get("stream_descriptor", {}).get("name") == "a":
                return int(entry["stream_state"]["at"])
        if "at" in message.get("data", {}):
            return int(message["data"]["at"])
    return 0


# States


@scenario("read")
def legacy_states(typed: bool = True) -> None:
    """Keeps one blob for all streams, of the type LEGACY."""
    for id in range(last_id() + 1, last_id() + 3):
        say(record(id), typed_state("LEGACY" if typed else None, data={"at": id}))


@scenario("read")
def typeless_states() -> None:
    """Keeps one blob for all streams and gives it no type, as the oldest sources do."""
    legacy_states(typed=False)


@scenario("read")
def global_states() -> None:
    """Keeps one state for all streams, with the record count of all."""
    id = last_id() + 1
    say(record(id), record(id, stream="b"), record(id + 10, stream="b"), global_state(id, count=3))
    say(complete(), complete("b"))


@scenario("read")
def mixed_states() -> None:
    """Changes the type of its states in the middle of a READ."""
    say(record(1), record(1, stream="b"), global_state(1, count=2), record(2), state(2, count=1))
    say(record(2, stream="b"), global_state(2, count=1), complete(), complete("b"))


@scenario("read")
def null_state() -> None:
    """Takes its state back."""
    content = {"stream_descriptor": {"name": "a"}, "stream_state": None}
    say(record(1), state(1), typed_state("STREAM", stream=content), complete())


@scenario("read")
def state_before_any_record() -> None:
    """Begins with a state."""
    say(state(0, count=0), record(1), state(1, count=1), complete())


@scenario("read")
def duplicate_states() -> None:
    """Repeats its states."""
    say(record(1), state(1, count=1), state(1, count=0), state(1, count=0), record(2))
    say(state(2, count=1), state(2, count=0), complete())


@scenario("read")
def wrong_record_count() -> None:
    """Counts two records in a state after sending one."""
    say(record(1), state(1, count=1), record(2), state(3, count=2), record(4), state(4, count=1))
    say(complete())


@scenario("read")
def no_state() -> None:
    """Never sends a state."""
    say(record(1), record(2), complete())


# Endings


@scenario("read")
def records_after_complete() -> None:
    """Goes on after it has declared its stream complete."""
    say(record(1), state(1), complete(), record(2), state(2))


@scenario("read")
def incomplete_and_exit_0() -> None:
    """Declares its stream incomplete and ends with exit code 0."""
    say(record(1), status("INCOMPLETE"))


@scenario("read")
def no_status_and_exit_0() -> None:
    """Sends no statuses, as old sources do."""
    say(record(1), state(1))


@scenario("read")
def complete_and_exit_1() -> int:
    """Completes all streams and then ends with exit code 1."""
    say(record(1), state(1), complete())
    return 1


@scenario("read")
def zero_records_and_complete() -> None:
    """Has no records and reports COMPLETE."""
    say(status("STARTED"), complete())


@scenario("read")
def zero_records_and_no_status() -> None:
    """Ends at once without output."""


@scenario("read")
def aggregate_error() -> int:
    """Fails one stream, then reports the CDK's aggregate error of another type."""
    say(record(1), state(1), error("the API said 503", "transient_error", "a"))
    say(status("INCOMPLETE"), record(1, stream="b"), state(1, stream="b"), complete("b"))
    say(error("Concurrent read failure", "config_error"))
    return 1


@scenario("read")
def error_and_exit_0() -> None:
    """Reports an error, with null for its time, but completes all streams with exit code 0."""
    told = error("no licence", "config_error")
    say(record(1), state(1), complete(), told.replace(str(EMITTED_AT + 0.5).encode(), b"null"))


@scenario("read")
def exit_code(code: int = 137) -> int:
    """Ends with any exit code, without an error."""
    say(record(1), state(1), record(2))
    print("Killed", file=sys.stderr)
    return code


@scenario("read")
def out_of_memory() -> None:
    """Needs ever more memory."""
    say(record(1), state(1))
    hoard = []
    while True:
        hoard.append(b"x" * 8 * MEGABYTE)


@scenario("read")
def new_config_then_crash(token: str = "stale") -> int:
    """Gets a new token, reports it in a CONTROL message, and crashes; the old token is void."""
    if token == "fresh":
        well_behaved()
        return 0
    config = json.loads(files["config"].read_bytes()) | {"token": "fresh"}
    content = {"type": "CONNECTOR_CONFIG", "emitted_at": EMITTED_AT}
    say(
        record(1),
        state(1),
        line("CONTROL", control=content | {"connectorConfig": {"config": config}}),
    )
    return 1


@scenario("read")
def secrets_everywhere(password: str = "") -> int:
    """Prints its password in every place that people read."""
    say(log(f"user:{password}@host"), f"plain {password}\n".encode())
    print(f"stderr {password}", file=sys.stderr, flush=True)
    told = {"internal_message": f"inside {password}", "stack_trace": f"File x\n  {password}"}
    say(error(f"login with {password} failed", "config_error", **told))
    return 1
