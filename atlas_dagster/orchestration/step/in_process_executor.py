"""The executor that runs the steps of one connection in the run's own process.

Dagster's default executor starts a process for each step, and each process spends seconds on
imports. The steps of one connection share a pool, so they never run in parallel anyway.
"""

import os
from collections.abc import Iterator

import dagster as dg

from atlas_dagster.orchestration.dagster_internals import (
    ExecutionPlan,
    InProcessExecutor,
    PlanOrchestrationContext,
    RetryMode,
)
from atlas_dagster.orchestration.operations.cleanup import end_dead_runs, note_process
from atlas_dagster.orchestration.operations.pools import POOL_PREFIX, find_holding_runs


class _ConnectionExecutor(dg.Executor):
    def __init__(self, chosen: dg.Executor) -> None:
        self._chosen = chosen
        self._one = InProcessExecutor(chosen.retries, chosen.step_dependency_config)

    @property
    def retries(self) -> RetryMode:
        return self._chosen.retries

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[dg.DagsterEvent]:
        note_process(plan_context.instance, plan_context.run_id, os.getpid())
        end_dead_runs(plan_context.instance)
        steps = map(execution_plan.get_step_by_key, execution_plan.step_keys_to_execute)
        pools = {step.pool for step in steps}
        pool = pools.pop() if len(pools) == 1 else None
        is_ours = pool is not None and pool.startswith(POOL_PREFIX)
        # Dagster's in-process executor cannot be terminated while it waits for a pool.
        if pool is None or not is_ours or find_holding_runs(plan_context.instance, pool):
            yield from self._chosen.execute(plan_context, execution_plan)
        else:
            yield from self._one.execute(plan_context, execution_plan)


@dg.executor(
    name="atlas",
    config_schema=dg.multi_or_in_process_executor.config_schema.as_field(),
    requirements=dg.multi_or_in_process_executor.get_requirements,
)
def connection_executor(context: dg.InitExecutorContext) -> dg.Executor:
    """Return Dagster's default executor, except for runs of one connection."""
    make = dg.multi_or_in_process_executor.executor_creation_fn
    assert make is not None
    return _ConnectionExecutor(make(context))
