"""What a sync of nothing takes beside its connector: a step, from its start to its end.

Called by ``run.py``. Each sync runs in a fresh process, as a step does; counted is from Dagster's
STEP_START to STEP_SUCCESS, so without the start of that process. The connector's own time is that
of the same READ by hand: of ``docker run`` for one stream, of the program itself for fifty, where
what is done for each stream shows. ``dagster_s`` is a step that only yields as many results, with as
many checks: what Dagster takes to write so many events. CHECK has just passed, so none runs.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

STANDIN = "atlas-test/source-standin:2"
STREAMS = 50
#: Speaks the protocol, and says of every stream that there is nothing new.
_PROGRAM = """
import json, sys
files = dict(zip(sys.argv[2::2], sys.argv[3::2]))
def say(**message): print(json.dumps(message))
if sys.argv[1] == "check":
    say(type="CONNECTION_STATUS", connectionStatus={"status": "SUCCEEDED"})
elif sys.argv[1] == "read":
    for each in json.load(open(files["--catalog"]))["streams"]:
        name = {"name": each["stream"]["name"]}
        state = {"stream_descriptor": name, "stream_state": {"at": 1}}
        say(type="STATE", state={"type": "STREAM", "stream": state})
        status = {"stream_descriptor": name, "status": "COMPLETE"}
        trace = {"type": "STREAM_STATUS", "emitted_at": 1, "stream_status": status}
        say(type="TRACE", trace=trace)
"""


def measure(runs: int) -> dict[str, dict[str, float]]:
    """Seconds of the step and of what it cannot do without, medians of ``runs``."""
    from atlas_dagster_tests.postgres_server import postgres_server

    results = {}
    with ExitStack() as stack:
        server = stack.enter_context(postgres_server()).settings
        login = {**server, "scheme": "postgresql+psycopg2"}
        postgres = {"postgres": {"postgres_db": login}}
        for log in ("sqlite", "postgres"):
            for what in ("docker", "fifty"):
                folder = Path(
                    stack.enter_context(tempfile.TemporaryDirectory(prefix="atlas-bench-"))
                )
                folder.chmod(0o755)  # the image has a user of its own
                sqlite = {"sqlite": {"base_dir": str(folder / "storage")}}
                storage = sqlite if log == "sqlite" else postgres
                results[f"{log}_{what}"] = _measure(folder, {"storage": storage}, what, runs)
    return results


def _measure(folder: Path, settings: Mapping[str, Any], what: str, runs: int) -> dict[str, float]:
    # JSON is YAML, too.
    (folder / "dagster.yaml").write_text(json.dumps(settings | {"telemetry": {"enabled": False}}))
    (folder / "source.py").write_text(_PROGRAM)
    streams = 1 if what == "docker" else STREAMS
    environment = {**os.environ, "DAGSTER_HOME": str(folder)}
    steps, own, floor = [], [], []
    for turn in range(runs + 1):
        took = _child(environment, str(folder), what)
        if turn:  # the first one brings rows, and leaves the state
            steps.append(took)
            own.append(_by_hand(folder, what))
            floor.append(_child(environment, "floor", str(streams)))
    step, connector, dagster = map(statistics.median, (steps, own, floor))
    return {
        "step_s": round(step, 2),
        "connector_s": round(connector, 2),
        "dagster_s": round(dagster, 2),
        "added_s": round(step - connector, 2),
        "added_of_dagster": round((step - connector) / dagster, 2),
    }


def _child(environment: Mapping[str, str], *arguments: str) -> float:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    return float(done.stdout.splitlines()[-1])


def _by_hand(folder: Path, what: str) -> float:
    options = [f"--{name} {name}.json" for name in ("config", "catalog", "state")]
    if what == "docker":
        command = ["docker", "run", "--rm", "--init", "--network=host", "--log-driver=none"]
        command += ["--volume", f"{folder}:/in:ro", "--workdir=/in", STANDIN, "read"]
    else:
        command = [sys.executable, "source.py", "read"]
    command += " ".join(options).split()
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def _sync(folder: Path, what: str) -> None:
    """One sync; what the connector is given stays in ``folder``."""
    import dagster as dg
    from fake_runs import EVENTS

    from atlas_dagster.runners.base import ConnectorCommand
    from atlas_dagster_tests.orchestration.connections import USERS, declare_shop, define, found

    names = ["events"] if what == "docker" else [f"stream_{number}" for number in range(STREAMS)]
    connection = declare_shop(image=STANDIN, config={"host": "db", "count": 5})
    if what != "docker":
        program = [sys.executable, str(folder / "source.py")]
        connection = declare_shop(image=None, command=program)
    streams = [{**USERS, **EVENTS, "name": name} for name in names]
    spec = {"type": "object", "properties": {"host": {}, "count": {}}}
    defs = define(connection, found(connection, streams, spec), lake=folder / "lake")
    job = defs.resolve_implicit_global_asset_job_def()
    remember = ConnectorCommand.arguments

    def arguments(command: ConnectorCommand, place: str) -> list[str]:
        for name, content in command.files.items():
            (folder / f"{name}.json").write_bytes(content)
        return remember(command, place)

    ConnectorCommand.arguments = arguments  # type: ignore[method-assign]
    keys = [dg.AssetKey(["shop", name]) for name in names]
    _print_step_seconds(job, keys)


def _floor(streams: int) -> None:
    """A step that does nothing but yield."""
    import dagster as dg

    keys = [dg.AssetKey(["floor", f"stream_{number}"]) for number in range(streams)]
    names = ("records", "primary_key", "schema")

    @dg.multi_asset(
        specs=[dg.AssetSpec(key) for key in keys],
        check_specs=[dg.AssetCheckSpec(name, asset=key) for key in keys for name in names],
        can_subset=True,
    )
    def floor() -> Iterator[dg.MaterializeResult[None]]:
        for key in keys:
            checks = [dg.AssetCheckResult(passed=True, check_name=n, asset_key=key) for n in names]
            yield dg.MaterializeResult(asset_key=key, check_results=checks)

    _print_step_seconds(dg.Definitions([floor]).resolve_implicit_global_asset_job_def(), keys)


def _print_step_seconds(job: Any, keys: list[Any]) -> None:
    import dagster as dg

    with dg.DagsterInstance.get() as instance:
        result = job.execute_in_process(instance=instance, asset_selection=keys)
        entries = [e for e in instance.all_logs(result.run_id) if e.dagster_event]
    at = {e.dagster_event.event_type_value: e.timestamp for e in entries if e.dagster_event}
    print(at["STEP_SUCCESS"] - at["STEP_START"])


if __name__ == "__main__":
    if sys.argv[1] == "floor":
        _floor(int(sys.argv[2]))
    else:
        _sync(Path(sys.argv[1]), sys.argv[2])
