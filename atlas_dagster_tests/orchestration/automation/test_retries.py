"""How often and when a failed sync is tried again."""

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from atlas_dagster.errors import AtlasError, ConfigError, ConnectorFailedError, TransientError
from atlas_dagster.orchestration.automation.retries import (
    ROOT_RUN_TAG,
    RetryBudget,
    plan_retry,
    root_run_id,
)

PASSING = TransientError("the network is down")


def test_inside_a_run_two_minutes_are_waited_at_most() -> None:
    budget = RetryBudget()
    assert [budget.wait_after(PASSING) for _ in range(3)] == [10, 30, None]


def test_progress_starts_patience_anew() -> None:
    budget = RetryBudget()
    waits = [budget.wait_after(PASSING), budget.wait_after(PASSING)]
    budget.note_progress()
    waits += [budget.wait_after(PASSING) for _ in range(3)]
    assert waits == [10, 30, 10, 30, None]


def test_even_progress_has_an_end() -> None:
    budget = RetryBudget()
    tries = 0
    while budget.wait_after(PASSING) is not None:
        budget.note_progress()
        tries += 1
    assert tries == 20


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("a field is missing"),
        ConnectorFailedError("it crashed"),
        ConnectorFailedError("bad password", failure_type="config_error"),
    ],
)
def test_what_will_not_pass_is_not_waited_for(error: AtlasError) -> None:
    assert RetryBudget().wait_after(error) is None


def chain(*progress: bool) -> list[float | None]:
    """The waits after runs that failed one after the other, each with progress or without."""
    waits: list[float | None] = []
    tags: dict[str, str] = {}
    for progressed in progress:
        failed = {"atlas/failure_type": "transient_error"}
        failed["atlas/progress"] = "yes" if progressed else "no"
        following = plan_retry(tags | failed)
        waits.append(following.after if following else None)
        tags = following.tags if following else {}
    return waits


def test_between_runs_the_wait_grows_to_half_an_hour_and_ends() -> None:
    assert chain(*[False] * 6) == [90, 270, 810, 1800, 1800, None]


def test_a_run_that_got_somewhere_is_followed_sooner() -> None:
    assert chain(False, False, True, False) == [90, 270, 90, 270]
    assert chain(*[True] * 21) == [90] * 20 + [None]


@pytest.mark.parametrize("tags", [{}, {"atlas/failure_type": "config_error"}])
def test_other_failures_are_not_followed(tags: dict[str, str]) -> None:
    assert plan_retry(tags) is None


# What belongs together


def again(
    instance: dg.DagsterInstance, run: dg.DagsterRun, status: dg.DagsterRunStatus, **tags: str
) -> dg.DagsterRun:
    """``run`` executed once more, as Dagster does it: with its tags."""
    return create_run_for_test(
        instance,
        status=status,
        parent_run_id=run.run_id,
        root_run_id=run.root_run_id or run.run_id,
        tags={**run.tags, **tags},
    )


def test_the_first_of_the_runs_that_are_one() -> None:
    failed, succeeded = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS
    with dg.DagsterInstance.ephemeral() as instance:
        first = create_run_for_test(instance, status=failed)
        second = again(instance, first, failed)
        third = again(instance, second, succeeded)
        assert {root_run_id(instance, run) for run in (first, second, third)} == {first.run_id}

        fourth = again(instance, third, failed)
        fifth = again(instance, fourth, succeeded)
        assert {root_run_id(instance, run) for run in (fourth, fifth)} == {fourth.run_id}

        scheduled = create_run_for_test(instance, status=failed, tags={ROOT_RUN_TAG: first.run_id})
        sixth = again(instance, scheduled, succeeded)
        assert {root_run_id(instance, run) for run in (scheduled, sixth)} == {first.run_id}
        seventh = again(instance, sixth, failed)
        assert root_run_id(instance, seventh) == seventh.run_id

        instance.delete_run(second.run_id)
        assert root_run_id(instance, third) == third.run_id
