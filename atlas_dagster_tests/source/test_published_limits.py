"""What a connector's publisher gives it counts where nobody else says anything."""

from typing import Any

import pytest
from msgspec.structs import replace

from atlas_dagster.registry import get_connector_info
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.source.runner_choice import find_published_limits


def limits(**fields: Any) -> dict[str, Any]:
    info = replace(get_connector_info("source-faker"), **fields)
    return find_published_limits(info).model_dump(exclude_unset=True)


def test_nothing_published_changes_nothing() -> None:
    assert limits() == {}


def test_more_than_the_defaults_is_given() -> None:
    assert limits(memory_limit="4Gi", cpu_limit=3.0) == {"memory_limit": "4Gi", "cpu_limit": 3.0}


def test_less_than_the_defaults_is_not() -> None:
    assert limits(memory_limit="600Mi", cpu_limit=0.5, max_seconds_between_messages=60.0) == {}


def test_a_source_that_may_be_silent_for_long_is_let() -> None:
    assert limits(max_seconds_between_messages=10_000.0) == {"silence_seconds": 10_000.0}
    assert limits(max_seconds_between_messages=86_400.0) == {
        "silence_seconds": 86_400.0,
        "heartbeat_seconds": 86_400.0,
    }


@pytest.mark.parametrize("memory", ["", "lots", "-1"])
def test_what_cannot_be_read_changes_nothing(memory: str) -> None:
    assert limits(memory_limit=memory) == {}


def test_a_user_has_the_last_word() -> None:
    info = replace(get_connector_info("source-faker"), memory_limit="4Gi", cpu_limit=3.0)
    said = ExecutorConfig(cpu_limit=1.0).overridden_by(ExecutorConfig(memory_limit="1g"))
    used = find_published_limits(info).overridden_by(said)
    assert (used.memory_limit, used.cpu_limit, used.pids_limit) == ("1g", 1.0, 1024)
