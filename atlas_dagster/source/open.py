"""From a declared connection to a connector ready to run: runner chosen, config resolved."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from atlas_dagster.config.live_config import ConfigStore, RenewableConfig
from atlas_dagster.config.masking import Masker, secret_values, secret_variables
from atlas_dagster.config.validation import require_variables, resolve
from atlas_dagster.protocol.catalog import Catalog
from atlas_dagster.protocol.messages import Spec
from atlas_dagster.records.names import assign
from atlas_dagster.registry.catalogue import listing
from atlas_dagster.runners.base import Runner
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.runners.process_tags import CONNECTION_LABEL, DEPLOYMENT_LABEL, OWNER_LABEL
from atlas_dagster.source.catalog_diff import (
    CatalogChange,
    SchemaPolicy,
    compare,
    held_back,
    merged,
)
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.connector import Connector
from atlas_dagster.source.connector_ref import ConnectorRef
from atlas_dagster.source.discovered_catalog import Discovered, discovered
from atlas_dagster.source.invocation import Log
from atlas_dagster.source.runner_choice import choose_runner

if TYPE_CHECKING:
    # SQLAlchemy takes a while to import, and most callers keep no books.
    from atlas_dagster.projections import ProjectionWriter

#: SPECs by the identity of the connector that gave them.
_specs: dict[str, Spec] = {}
_MOST_SPECS = 200


class Caller:
    """On whose behalf connectors run.

    Args:
        deployment: name of the deployment, with its lake: containers of others are never touched.
        owner: the process that runs them, and its Dagster run, for the reaper; see
            ``runners/owner.py``.
        environ: where ``{{ env.X }}`` is looked up.
        log: receives the connector's own lines with their levels, masked.
        explain: receives Atlas's own sentences, such as where the connector runs and why.
        configs: where config renewals are kept.
        executor: limits of connectors whose connection does not say otherwise.
        books: where discoveries are written down; nowhere, when None.
        warn: receives what is odd about a config; ``explain`` does, when None.
    """

    def __init__(
        self,
        *,
        deployment: str,
        owner: str,
        environ: Mapping[str, str],
        log: Log,
        explain: Callable[[str], None],
        configs: ConfigStore,
        executor: ExecutorConfig | None = None,
        books: "ProjectionWriter | None" = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.deployment = deployment
        self.owner = owner
        self.environ = environ
        self.log = log
        self.explain = explain
        self.configs = configs
        self.executor = executor or ExecutorConfig()
        self.books = books
        self.warn = warn or explain

    def labels(self, connection: str) -> dict[str, str]:
        return {
            CONNECTION_LABEL: connection,
            DEPLOYMENT_LABEL: self.deployment,
            OWNER_LABEL: self.owner,
        }


def source_key_part(connection: Connection) -> str:
    """The name of the connection's source among its streams: ``source_faker``."""
    name = connection.source_name
    return assign([name])[name]


def check_variables(connection: Connection, environ: Mapping[str, str]) -> None:
    """Before a runner is chosen, for that may pull an image or build an environment.

    Raises:
        MissingVariableError: a variable of the config is not set.
    """
    require_variables(connection.config, environ=environ, where=connection.where)


@contextmanager
def connected(
    connection: Connection, caller: Caller, spec_schema: Mapping[str, Any]
) -> Iterator[Connector]:
    """A connector with its config, checked against ``spec_schema``.

    No other run or command uses the connection meanwhile.

    Raises:
        ConfigError: the config does not fit, or a variable is missing.
        RunnerUnavailableError: there is nothing to run the connector with.
    """
    config = _resolved(connection, caller, spec_schema)
    with (
        choose_runner(ConnectorRef.resolve(connection), caller.executor, caller.explain) as runner,
        _with_config(connection, caller, runner, config, spec_schema) as connector,
    ):
        yield connector


@contextmanager
def introduced(connection: Connection, caller: Caller) -> Iterator[tuple[Connector, Spec]]:
    """A connector with its config, checked against the SPEC it gives; see :func:`connected`.

    Raises:
        ConnectorFailedError: it gave no SPEC.
    """
    check_variables(connection, caller.environ)
    with choose_runner(ConnectorRef.resolve(connection), caller.executor, caller.explain) as runner:
        spec = _spec(connection, caller, runner)
        schema = spec.connectionSpecification
        config = _resolved(connection, caller, schema)
        with _with_config(connection, caller, runner, config, schema) as connector:
            yield connector, spec


def spec_of(connection: Connection, caller: Caller) -> Spec:
    """What config the connector takes; its own config is not looked at.

    Raises:
        RunnerUnavailableError: there is nothing to run the connector with.
        ConnectorFailedError: it gave no SPEC.
    """
    with choose_runner(ConnectorRef.resolve(connection), caller.executor, caller.explain) as runner:
        return _spec(connection, caller, runner)


def discover(
    connection: Connection,
    caller: Caller,
    previous: Discovered | None,
    policy: SchemaPolicy | None = None,
) -> Discovered:
    """Run SPEC and DISCOVER; table names given out in ``previous`` stay.

    ``policy``: which changes since ``previous`` are taken; without one, all that the declaration
    does not stand against, for somebody has asked. The others are pending.

    Raises:
        ConfigError: the config does not fit the SPEC, or a stream is declared that does not exist.
        RunnerUnavailableError: there is nothing to run the connector with.
        ConnectorFailedError: the connector gave no answer.
    """
    with introduced(connection, caller) as (connector, spec):
        found = _compared(connection, connector, connector.discover(), spec, previous, policy)
    if caller.books is not None:
        write_down(caller.books, connection.name, found)
    return found


def look(
    connection: Connection,
    connector: Connector,
    previous: Discovered,
    policy: SchemaPolicy,
    books: "ProjectionWriter | None",
) -> Discovered:
    """Run DISCOVER alone, with a ``connector`` that is there already; else as :func:`discover`."""
    spec = Spec(previous.spec_schema, previous.documentation_url)
    found = _compared(connection, connector, connector.discover(), spec, previous, policy)
    if books is not None:
        write_down(books, connection.name, found)
    return found


def _compared(
    connection: Connection,
    connector: Connector,
    catalog: Catalog,
    spec: Spec,
    previous: Discovered | None,
    policy: SchemaPolicy | None,
) -> Discovered:
    """What is known now, with the changes that ``policy`` takes."""
    pending: list[CatalogChange] = []
    if previous is not None:
        pending = held_back(compare(connection, previous.catalog, catalog), policy)
        catalog = merged(previous.catalog, catalog, pending)
    connection.configured(catalog)
    return discovered(
        connection.name,
        connector=connector.runner.identity(),
        config=connection.config,
        spec=spec,
        catalog=catalog,
        reserved=source_key_part(connection),
        previous=previous,
        pending=pending,
    )


def write_down(books: "ProjectionWriter", connection: str, found: Discovered) -> None:
    """What was discovered, and the list of connectors in use."""
    books.write_catalog(
        connection,
        found.catalog,
        paths=found.table_paths,
        connector=found.connector,
        at=found.discovered_at,
    )
    books.write_registry(listing())


def _spec(connection: Connection, caller: Caller, runner: Runner) -> Spec:
    """Asked for once in the life of a process, unless the user may change the connector's code."""
    identity = runner.identity()
    known = _specs.get(identity)
    if known is not None:
        return known
    labels = caller.labels(connection.name)
    spec = Connector(runner, name=connection.source_name, log=caller.log, labels=labels).spec()
    if runner.kind in ("docker", "python"):
        if len(_specs) >= _MOST_SPECS:
            _specs.pop(next(iter(_specs)), None)
        _specs[identity] = spec
    return spec


def _resolved(
    connection: Connection, caller: Caller, spec_schema: Mapping[str, Any]
) -> dict[str, Any]:
    return resolve(
        connection.config,
        schema=spec_schema,
        environ=caller.environ,
        where=connection.where,
        warn=caller.warn,
        check=connection.validate_config,
    )


@contextmanager
def _with_config(
    connection: Connection,
    caller: Caller,
    runner: Runner,
    config: Mapping[str, Any],
    spec_schema: Mapping[str, Any],
) -> Iterator[Connector]:
    masker = Masker(secret_values(config, spec_schema))
    used = secret_variables(connection.config, spec_schema)
    # A source that prints its environment may be one that reads the destination's database.
    used |= secret_variables(connection.destination, {"type": "string"})
    masker.add(caller.environ[name] for name in used if name in caller.environ)
    with caller.configs.lock(connection.name, caller.explain):
        yield Connector(
            runner,
            name=connection.source_name,
            config=RenewableConfig(
                config,
                schema=spec_schema,
                masker=masker,
                connection=connection.name,
                store=caller.configs,
                explain=caller.explain,
            ),
            masker=masker,
            labels=caller.labels(connection.name),
            log=caller.log,
        )
