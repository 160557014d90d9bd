"""Jobs for processes of their own, which find them by the name of this module."""

import dagster as dg

from atlas_dagster.orchestration.step.in_process_executor import connection_executor


@dg.op(pool="airbyte_shop")
def check() -> None:
    pass


@dg.op(pool="airbyte_shop")
def read() -> None:
    pass


@dg.op(pool="airbyte_billing")
def of_another() -> None:
    pass


@dg.op(pool="warehouse")
def of_a_user() -> None:
    pass


@dg.job(executor_def=connection_executor)
def one_connection() -> None:
    check()
    read()


@dg.job(executor_def=connection_executor)
def two_connections() -> None:
    check()
    of_another()


@dg.job(executor_def=connection_executor)
def a_pool_of_a_user() -> None:
    of_a_user()
