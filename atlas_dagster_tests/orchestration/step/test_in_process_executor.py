"""Which runs are carried out in one process."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

from atlas_dagster.orchestration.operations.cleanup import PROCESS_TAG
from atlas_dagster.orchestration.operations.pools import find_holding_runs
from atlas_dagster_tests.orchestration.instances import sqlite_instance
from atlas_dagster_tests.orchestration.step.executor_jobs import (
    a_pool_of_a_user,
    one_connection,
    two_connections,
)

pytestmark = pytest.mark.dagster

SETTINGS = {"concurrency": {"pools": {"default_limit": 1}}}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with sqlite_instance(**SETTINGS) as instance:
        yield instance


def told(instance: dg.DagsterInstance, job: Any, config: dict[str, Any] | None = None) -> str:
    """What the executor says of a run that succeeds."""
    run_config = {"execution": {"config": config}} if config is not None else {}
    with dg.execute_job(dg.reconstructable(job), instance, run_config) as result:
        assert result.success
        run = instance.get_run_by_id(result.run_id)
        assert run is not None
        assert run.tags[PROCESS_TAG].startswith(result.run_id)
        messages = [str(event.message) for event in result.all_events]
    return next(text for text in messages if text.startswith("Executing steps"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "config", "how"),
    [
        (one_connection, None, "in process"),
        (one_connection, {"multiprocess": {"max_concurrent": 1}}, "in process"),
        (two_connections, None, "using multiprocess executor"),
        (two_connections, {"in_process": {}}, "in process"),
        (a_pool_of_a_user, None, "using multiprocess executor"),
    ],
)
def test_the_steps_of_one_connection_share_a_process(
    instance: dg.DagsterInstance, job: Any, config: dict[str, Any] | None, how: str
) -> None:
    assert told(instance, job, config).startswith(f"Executing steps {how}")


@pytest.mark.slow
def test_a_pool_that_another_run_is_inruns_in(instance: dg.DagsterInstance) -> None:
    assert not find_holding_runs(instance, "airbyte_shop")
    storage = instance.event_log_storage
    storage.initialize_concurrency_limit_to_default("airbyte_shop")
    assert not find_holding_runs(instance, "airbyte_shop")
    claim = storage.claim_concurrency_slot("airbyte_shop", "another run", "read")
    assert claim.is_claimed
    assert find_holding_runs(instance, "airbyte_shop") == ["another run"]
    storage.free_concurrency_slots_for_run("another run")
    assert not find_holding_runs(instance, "airbyte_shop")
