"""The Python door: what an adapter does, with connectors in containers and as processes alike."""

import asyncio
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine
from itertools import chain
from pathlib import Path
from typing import Any

import docker
import pandas as pd
import pytest

from atlas_dagster.airbyte import (
    AirbyteSourceAdapter,
    ExecutorConfig,
    SourceConnector,
    create_airbyte_adapter,
)
from atlas_dagster.errors import (
    CheckFailedError,
    ConfigError,
    ConnectorFailedError,
    ConnectorTimeoutError,
    InvalidConfigError,
    MissingVariableError,
    StoppedError,
    UnknownConnectorError,
    UnknownStreamError,
)
from atlas_dagster.listener import LoggingListener
from atlas_dagster.reading.ad_hoc import (
    AdHocConnection,
    adhoc_connection,
    adhoc_context,
    reap_adhoc,
)
from atlas_dagster.reading.ad_hoc_source import AdHocSource
from atlas_dagster.runners.process_tags import CONNECTION_LABEL, tag_value, tagged_processes
from atlas_dagster_tests.conftest import CONNECTORS, SOURCE_STANDIN_IMAGE
from atlas_dagster_tests.interfaces.waiting import at_work, until

pytestmark = pytest.mark.usefixtures("own_state")


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


class Standin:
    """source-standin behind adapters, in one way of running it."""

    def __init__(self, client: docker.DockerClient | None) -> None:
        self.client = client

    def connection(self, config: dict[str, Any]) -> AdHocConnection:
        inside = adhoc_connection(SOURCE_STANDIN_IMAGE, config)
        if self.client is not None:
            return inside
        words = [sys.executable, "-B", "source_standin.py"]
        folder = CONNECTORS / "source-standin"
        return AdHocConnection(name=inside.name, command=words, folder=folder, config=config)

    def adapter(
        self, *, state: Any = None, executor: ExecutorConfig | None = None, **config: Any
    ) -> AirbyteSourceAdapter:
        caller = adhoc_context(limits=executor)
        return AirbyteSourceAdapter(AdHocSource(self.connection(config), caller), state)

    def at_work(self, **config: Any) -> int:
        return at_work(self.client, self.connection(config).name)


@pytest.fixture(params=[pytest.param("docker", marks=pytest.mark.docker), "python"])
def standin(request: pytest.FixtureRequest) -> Standin:
    in_docker = request.param == "docker"
    return Standin(request.getfixturevalue("docker_client") if in_docker else None)


def ids(rows: pd.DataFrame) -> list[int]:
    return list(rows["id"])


# Answers


@pytest.mark.slow
def test_a_source_says_what_it_is_and_what_it_has(standin: Standin) -> None:
    async def asked() -> None:
        async with standin.adapter(count=25) as adapter:
            assert isinstance(adapter, SourceConnector)
            assert await adapter.test_connection() is True
            assert await adapter.list_tables() == ["events"]
            assert await adapter.get_schema("events") == {
                "id": "INTEGER",
                "at": "TIMESTAMP WITH TIME ZONE",
                "note": "VARCHAR",
            }
            rows = await adapter.get_data(table="events")
            assert ids(rows) == list(range(1, 26))
            assert adapter.state == {}

    run(asked())


@pytest.mark.slow
def test_the_twin_for_plain_code_does_the_same(standin: Standin) -> None:
    with standin.adapter(count=25).sync as source:
        assert source.test_connection() is True
        assert source.list_tables() == ["events"]
        assert source.get_schema("events")["id"] == "INTEGER"
        assert ids(source.get_data("events")) == list(range(1, 26))
        batches = [ids(rows) for rows in source.get_data_stream("events", batch_size=4)]
    assert max(map(len, batches)) <= 4
    assert list(chain.from_iterable(batches)) == list(range(1, 26))


@pytest.mark.slow
def test_the_twin_works_while_an_event_loop_runs(standin: Standin) -> None:
    async def plain() -> list[int]:
        return ids(standin.adapter(count=3).sync.get_data("events"))

    assert run(plain()) == [1, 2, 3]


@pytest.mark.slow
def test_columns_are_typed_as_those_of_tables(standin: Standin) -> None:
    rows = standin.adapter(count=2).sync.get_data("events")
    assert {name: str(kind) for name, kind in rows.dtypes.items()} == {
        "id": "Int64",
        "at": "datetime64[us, UTC]",
        "note": "str",
    }
    assert rows["at"][0] == pd.Timestamp("2024-01-01T00:00:01Z")


def test_airbytes_own_columns_come_when_asked_for(standin: Standin) -> None:
    rows = standin.adapter(count=2).sync.get_data("events", metadata_columns=True)
    assert list(rows.columns[3:5]) == ["_airbyte_raw_id", "_airbyte_extracted_at"]


@pytest.mark.slow
def test_no_rows_are_a_data_frame_too(standin: Standin) -> None:
    rows = standin.adapter(count=0).sync.get_data("events")
    assert (len(rows), list(rows.columns)) == (0, ["id", "at", "note"])


def test_a_check_that_fails_is_an_error(standin: Standin) -> None:
    with pytest.raises(CheckFailedError, match="bad password"):
        run(standin.adapter(fail_check=True).test_connection())


def test_what_does_not_fit_the_spec_is_named(standin: Standin) -> None:
    with pytest.raises(InvalidConfigError, match=r"'count' .*integer"):
        run(standin.adapter(count="many").get_data("events"))


def test_an_unknown_table_is_met_with_the_nearest(standin: Standin) -> None:
    with pytest.raises(UnknownStreamError, match="did you mean events"):
        run(standin.adapter().get_schema("event"))


def test_a_connector_that_fails_says_why(standin: Standin) -> None:
    adapter = standin.adapter(behaviour="die")
    with pytest.raises(ConnectorFailedError, match="upstream went away"):
        run(adapter.get_data("events", incremental=True))
    assert adapter.state == {}


@pytest.mark.slow
def test_a_connector_that_takes_too_long_is_stopped(standin: Standin) -> None:
    executor = ExecutorConfig(silence_seconds=1)
    with pytest.raises(ConnectorTimeoutError, match=r"\b1 seconds"):
        run(standin.adapter(executor=executor, behaviour="hang").get_data("events"))
    until(lambda: not standin.at_work(behaviour="hang"), "the end of the connector")


# Where it continues


@pytest.mark.slow
def test_only_what_is_new_comes(standin: Standin) -> None:
    adapter = standin.adapter(count=25)
    assert ids(run(adapter.get_data("events", incremental=True))) == list(range(1, 26))
    assert ids(run(adapter.get_data("events", incremental=True))) == []
    more = standin.adapter(count=30, state=adapter.state)
    assert ids(run(more.get_data("events", incremental=True))) == [26, 27, 28, 29, 30]
    (message,) = more.state["events"]
    assert message["stream"]["stream_state"] == {"id": 30}


@pytest.mark.slow
def test_a_full_read_is_none_of_the_states_business(standin: Standin) -> None:
    adapter = standin.adapter(count=5)
    run(adapter.get_data("events", incremental=True))
    before = adapter.state
    assert ids(run(adapter.get_data("events"))) == [1, 2, 3, 4, 5]
    assert adapter.state == before


@pytest.mark.slow
def test_a_limit_goes_on_with_the_next_row(standin: Standin) -> None:
    adapter = standin.adapter(count=35)
    pages = []
    while len(rows := run(adapter.get_data("events", incremental=True, limit=12))):
        pages.append(ids(rows))
    assert pages == [list(range(1, 11)), list(range(11, 21)), list(range(21, 31)), [*range(31, 36)]]


def test_a_limit_below_the_first_state_says_so(
    standin: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = standin.adapter(count=35)
    assert len(run(adapter.get_data("events", incremental=True, limit=3))) == 3
    assert adapter.state == {}
    assert "sent no state within 3 rows of 'events'" in caplog.text


@pytest.mark.slow
def test_a_stream_that_is_left_continues_where_it_was_left(standin: Standin) -> None:
    seen: list[int] = []
    state: Any = None
    for _ in range(2):
        adapter = standin.adapter(count=300, state=state)

        async def some(adapter: AirbyteSourceAdapter = adapter) -> None:
            async for rows in adapter.get_data_stream("events", incremental=True, batch_size=40):
                seen.extend(ids(rows))
                if len(seen) >= 100:
                    break

        run(some())
        state = json.loads(json.dumps(adapter.state))
    rest = standin.adapter(count=300, state=state).sync.get_data("events", incremental=True)
    assert seen + ids(rest) == list(range(1, 301))


@pytest.mark.slow
def test_a_loop_that_fails_continues_with_the_batch_it_had(
    standin: Standin, tmp_path: Path
) -> None:
    """State is saved after the batch is stored, so none is lost and none comes twice."""
    file, stored = tmp_path / "state.json", list[int]()
    for fails_at in (60, 10**6):
        adapter = standin.adapter(count=100, state=file)
        try:
            for rows in adapter.sync.get_data_stream("events", incremental=True, batch_size=20):
                if len(stored) >= fails_at:
                    raise ZeroDivisionError
                stored += ids(rows)
                adapter.save_state()
        except ZeroDivisionError:
            assert 60 <= len(stored) < 100
    assert stored == list(range(1, 101))


@pytest.mark.slow
def test_a_missing_file_is_the_beginning(standin: Standin, tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    adapter = standin.adapter(count=5, state=file)
    run(adapter.get_data("events", incremental=True))
    adapter.save_state()
    assert ids(
        run(standin.adapter(count=7, state=str(file)).get_data("events", incremental=True))
    ) == [6, 7]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["state.json"]


# Who leaves


@pytest.mark.slow
def test_cancelling_a_task_stops_the_connector_first(standin: Standin) -> None:
    async def cancelled() -> int:
        adapter = standin.adapter(behaviour="hang")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(adapter.get_data("events", incremental=True), 4)
        return standin.at_work(behaviour="hang")

    assert run(cancelled()) == 0


@pytest.mark.slow
def test_leaving_a_loop_stops_the_connector(standin: Standin) -> None:
    async def left() -> None:
        adapter = standin.adapter(behaviour="hang")
        async for _ in adapter.get_data_stream("events", incremental=True):
            assert standin.at_work(behaviour="hang")
            break
        gc.collect()
        await asyncio.to_thread(
            until, lambda: not standin.at_work(behaviour="hang"), "the end of the connector"
        )

    run(left())


def test_closing_stops_what_is_under_way(standin: Standin) -> None:
    async def closed() -> None:
        adapter = standin.adapter(behaviour="hang")
        reading = asyncio.ensure_future(adapter.get_data("events", incremental=True))
        await asyncio.to_thread(until, lambda: standin.at_work(behaviour="hang"), "the connector")
        await adapter.close()
        assert standin.at_work(behaviour="hang") == 0
        with pytest.raises(StoppedError):
            await reading
        with pytest.raises(ConfigError, match="adapter is closed"):
            await adapter.list_tables()

    run(closed())


@pytest.mark.slow
def test_ctrl_c_stops_the_connector_first(standin: Standin) -> None:
    timer = threading.Timer(4, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        standin.adapter(behaviour="hang").sync.get_data("events")
    timer.join()
    assert standin.at_work(behaviour="hang") == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_connector_waits_for_a_slow_loop() -> None:
    standin = Standin(None)
    name = standin.connection({"count": 300_000}).name
    stream = standin.adapter(count=300_000).sync.get_data_stream("events", batch_size=1_000)
    assert len(next(stream)) <= 1_000
    (pid,) = (
        pid for pid, marks in tagged_processes() if tag_value(marks, CONNECTION_LABEL) == name
    )

    def written() -> int:
        counts = Path(f"/proc/{pid}/io").read_text().splitlines()
        return int(next(line for line in counts if line.startswith("wchar:")).split()[1])

    before = -1
    while (now := written()) != before:  # until the pipe is full
        before = now
        time.sleep(0.5)
    assert now < 8_000_000  # of 60 MB
    assert sum(len(rows) for rows in stream) > 298_000


@pytest.mark.slow
def test_a_call_inside_of_a_loop_is_refused(standin: Standin) -> None:
    async def nested() -> None:
        adapter = standin.adapter(count=1000)
        async for _ in adapter.get_data_stream("events"):
            assert await adapter.list_tables() == ["events"]  # known by now
            with pytest.raises(ConfigError, match="before or after the loop"):
                await adapter.get_data("events")
            break
        await adapter.close()

    run(nested())


@pytest.mark.slow
def test_calls_of_one_source_come_one_after_another(standin: Standin) -> None:
    async def both() -> list[int]:
        one, other = standin.adapter(count=20), standin.adapter(count=20)
        found = await asyncio.gather(one.get_data("events"), other.get_data("events"))
        return [len(rows) for rows in found]

    assert run(both()) == [20, 20]


@pytest.mark.slow
def test_what_a_killed_program_leaves_is_removed(standin: Standin, tmp_path: Path) -> None:
    program = (
        "import sys; from atlas_dagster_tests.interfaces.python.test_adapter import Standin\n"
        "import docker\n"
        "client = docker.from_env() if sys.argv[1] == 'docker' else None\n"
        "Standin(client).adapter(behaviour='hang', count=7).sync.get_data('events')\n"
    )
    kind = "python" if standin.client is None else "docker"
    killed = subprocess.Popen([sys.executable, "-c", program, kind])
    until(lambda: standin.at_work(behaviour="hang", count=7), "the connector")
    killed.kill()
    killed.wait()
    if standin.client is not None:  # a process dies with us, a container does not
        assert standin.at_work(behaviour="hang", count=7)
    reap_adhoc()
    until(lambda: not standin.at_work(behaviour="hang", count=7), "the end of the connector")


# What needs no connector


def test_an_unknown_connector_is_met_with_the_nearest() -> None:
    with pytest.raises(UnknownConnectorError, match="did you mean source-postgres"):
        create_airbyte_adapter("source-postgress", {})


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH", raising=False)
    with pytest.raises(MissingVariableError, match=r"source-faker.* NO_SUCH"):
        create_airbyte_adapter("source-faker", {"seed": "{{ env.NO_SUCH }}"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": 0}, "limit is 0"),
        ({"timestamp_column": "at"}, "timestamp_column is for incremental=True"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Standin(None).adapter().sync.get_data("events", **arguments)


def test_a_batch_has_at_least_one_row() -> None:
    with pytest.raises(ConfigError, match="batch_size is 0"):
        Standin(None).adapter().sync.get_data_stream("events", batch_size=0)


def test_what_connectors_say_is_in_a_log_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "atlas_dagster.connectors")
    caller = adhoc_context(LoggingListener(logging.getLogger(__name__), "source-standin"))
    source = AdHocSource(Standin(None).connection({"count": 3}), caller)
    AirbyteSourceAdapter(source).sync.get_data("events")
    said = ("atlas_dagster.connectors.source-standin", logging.INFO, "Reading events after id 0")
    assert said in caplog.record_tuples
