"""How the steps of a run are carried out: those of one connection in the run's own process.

Dagster's default gives each step a process of its own, which imports everything anew: seconds for
each of CHECK and READ. The steps of a connection take turns anyway, for they share a pool.
"""

import os
from collections.abc import Iterator

import dagster as dg
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode

from atlas_dagster.orchestration.dead_runs import note_process


class _ConnectionExecutor(dg.Executor):
    def __init__(self, one: dg.Executor, many: dg.Executor) -> None:
        self._one = one
        self._many = many

    @property
    def retries(self) -> RetryMode:
        return self._many.retries

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[dg.DagsterEvent]:
        note_process(plan_context.instance, plan_context.run_id, os.getpid())
        steps = map(execution_plan.get_step_by_key, execution_plan.step_keys_to_execute)
        pools = {step.pool for step in steps}
        serial = len(pools) == 1 and None not in pools
        chosen = self._one if serial else self._many
        yield from chosen.execute(plan_context, execution_plan)


@dg.executor(
    name="atlas",
    config_schema=dg.multiprocess_executor.config_schema.as_field(),
    requirements=dg.multiple_process_executor_requirements(),
)
def connection_executor(context: dg.InitExecutorContext) -> dg.Executor:
    """Runs the steps of one connection in one process, all others in a process for each step."""
    one, many = (
        definition.executor_creation_fn
        for definition in (dg.in_process_executor, dg.multiprocess_executor)
    )
    assert one is not None
    assert many is not None
    return _ConnectionExecutor(one(context), many(context))
