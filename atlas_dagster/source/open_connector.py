"""Open the connector of a connection: choose its runner, resolve its config, lock it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from atlas_dagster.config.masking import Masker, secret_values, secret_variables
from atlas_dagster.config.renewable_config import RenewableConfig
from atlas_dagster.config.validation import require_variables, resolve
from atlas_dagster.protocol.messages import Spec
from atlas_dagster.runners.base import Runner
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.connector import Connector
from atlas_dagster.source.connector_ref import ConnectorRef
from atlas_dagster.source.run_context import RunContext
from atlas_dagster.source.runner_choice import choose_runner


@contextmanager
def open_connector(
    connection: Connection, context: RunContext, *, spec: Spec | None = None
) -> Iterator[Connector]:
    """Yield the connector with its config, checked against ``spec``, or else its own SPEC.

    The connection is locked: no other run or command uses it meanwhile.

    Raises:
        ConfigError: the config does not fit, or a variable is missing.
        RunnerUnavailableError: nothing can run the connector.
        ConnectorFailedError: the connector gave no SPEC.
    """
    # Check both before choosing a runner, which may pull an image or build an environment.
    require_variables(connection.config, environ=context.environ, where=connection.where)
    config = None if spec is None else _resolve(connection, context, spec)
    with choose_runner(
        ConnectorRef.resolve(connection), context.limits, context.listener
    ) as runner:
        if spec is None:
            spec = _read_spec(connection, context, runner)
        if config is None:
            config = _resolve(connection, context, spec)
        masker = _masker(connection, context, spec, config)
        with context.configs.lock(connection.name, context.listener):
            renewable = RenewableConfig(
                config,
                schema=spec.connectionSpecification,
                masker=masker,
                connection=connection.name,
                store=context.configs,
                listener=context.listener,
            )
            yield Connector(
                runner,
                name=connection.source_name,
                listener=context.listener,
                config=renewable,
                masker=masker,
                labels=context.labels(connection.name),
                known_spec=spec,
            )


def read_spec(connection: Connection, context: RunContext) -> Spec:
    """Return the connector's SPEC, without using the connection's config.

    Raises:
        RunnerUnavailableError: nothing can run the connector.
        ConnectorFailedError: the connector gave no SPEC.
    """
    with choose_runner(
        ConnectorRef.resolve(connection), context.limits, context.listener
    ) as runner:
        return _read_spec(connection, context, runner)


def _read_spec(connection: Connection, context: RunContext, runner: Runner) -> Spec:
    """Return the cached SPEC, or run SPEC. It is not cached for the user's own code."""
    identity = runner.identity()
    if (known := context.specs.get(identity)) is not None:
        return known
    spec = Connector(
        runner,
        name=connection.source_name,
        listener=context.listener,
        labels=context.labels(connection.name),
    ).spec()
    if runner.kind in ("docker", "python"):
        context.specs.put(identity, spec)
    return spec


def _resolve(connection: Connection, context: RunContext, spec: Spec) -> dict[str, Any]:
    return resolve(
        connection.config,
        schema=spec.connectionSpecification,
        environ=context.environ,
        where=connection.where,
        listener=context.listener,
        check=connection.validate_config,
    )


def _masker(
    connection: Connection, context: RunContext, spec: Spec, config: Mapping[str, Any]
) -> Masker:
    """Return a masker for the secrets of ``config`` and of the destination's address."""
    masker = Masker(secret_values(config, spec.connectionSpecification))
    used = secret_variables(connection.config, spec.connectionSpecification)
    # A source that reads the destination's database may print the same password.
    used |= secret_variables(connection.destination, {"type": "string"})
    masker.add(context.environ[name] for name in used if name in context.environ)
    return masker
