"""The SOURCE of a verb (a declared connection, a connector or an image), and its options.

Functions import the code that runs connectors, so that a wrong command line is reported quickly.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec
import yaml

from atlas_dagster.errors import ConfigError
from atlas_dagster.interfaces.cli.output import CommandListener, report_errors

if TYPE_CHECKING:
    from atlas_dagster.source.connection import Connection, RunnerChoice
    from atlas_dagster.source.connector import Connector
    from atlas_dagster.source.discovered_catalog import Discovered
    from atlas_dagster.source.run_context import RunContext

T = TypeVar("T")


@dataclass(frozen=True)
class SourceOptions:
    """The options of :func:`source_command`."""

    config: str | None = None
    runner: RunnerChoice | None = None
    validate: bool = True
    logs: bool = False

    def refuse_for_declared(self, source: str) -> None:
        """Raise ConfigError for options that do not apply to a declared connection."""
        if not self.validate:
            raise ConfigError(
                f"'{source}' is a declared connection; write `validate: off` in its defs.yaml."
            )
        if self.config is not None or self.runner is not None:
            raise ConfigError(
                f"'{source}' is a declared connection with its own config and runner; to try "
                "others, name the connector (source-postgres) or an image."
            )


def source_command(command: Callable[..., T]) -> Callable[..., T]:
    """Add the options for undeclared connectors; the verb gets them as ``options``."""

    @wraps(command)
    def run(
        *,
        config: str | None,
        runner: RunnerChoice | None,
        validate: bool,
        logs: bool,
        **others: Any,
    ) -> T:
        return command(options=SourceOptions(config, runner, validate, logs), **others)

    result = report_errors(run)
    for option in (
        click.option("--logs", is_flag=True, help="Show the connector's own log on stderr."),
        click.option(
            "--validate/--no-validate",
            default=True,
            help="Check --config against the connector's SPEC.",
        ),
        runner_option,
        click.option(
            "--config",
            metavar="FILE|JSON|-",
            help="Config of an undeclared connector: a file (JSON or YAML), - for stdin, or JSON "
            "itself (visible in the list of processes). {{ env.X }} is replaced by the variable X.",
        ),
    ):
        result = option(result)
    return result


runner_option = click.option(
    "--runner",
    type=click.Choice(["auto", "docker", "python"]),
    help="Where an undeclared connector runs.",
)


@dataclass
class Source:
    """A SOURCE that can run. ``discovered`` is the stored catalog of a declared connection."""

    connection: Connection
    context: RunContext
    discovered: Discovered | None = None

    def open_connector(self) -> AbstractContextManager[Connector]:
        """Open the connector with its config."""
        from atlas_dagster.source.open_connector import open_connector

        spec = None if self.discovered is None else self.discovered.spec
        return open_connector(self.connection, self.context, spec=spec)


@contextmanager
def open_source(source: str, options: SourceOptions, listener: CommandListener) -> Iterator[Source]:
    """Find ``source``, and show pulls of its image. Raises ConfigError if it does not exist."""
    from atlas_dagster.reading.ad_hoc import adhoc_connection, adhoc_context, is_adhoc, reap_adhoc

    if is_adhoc(source):
        if options.runner != "python":
            reap_adhoc()
        runner, config = options.runner or "auto", read_config(options.config)
        connection = adhoc_connection(source, config, runner, validate=options.validate)
        with listener.pull_bar():
            yield Source(connection, adhoc_context(listener))
        return
    options.refuse_for_declared(source)
    from atlas_dagster.interfaces.cli.project import find_connection, open_context

    declared = find_connection(source)
    with open_context(listener) as (_, context), listener.pull_bar():
        yield Source(declared.connection, context, declared.discovered)


def read_config(given: str | None) -> Mapping[str, Any]:
    """Return the config that ``--config`` gives. Raises ConfigError, without the content."""
    if given is None:
        return {}
    if given.lstrip().startswith("{"):
        text, where = given, "The config"
    elif given == "-":
        text, where = sys.stdin.read(), "The config from stdin"
    else:
        where = f"The config file {given}"
        try:
            text = Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ConfigError(f"{where} cannot be read ({reason}).") from error
    try:
        found = _parse(text)
    except yaml.YAMLError:
        raise ConfigError(f"{where} is neither JSON nor YAML.") from None
    if not isinstance(found, Mapping):
        raise ConfigError(f"{where} is not an object; write the fields that `atlas spec` lists.")
    return found


def _parse(text: str) -> Any:
    try:
        # JSON first, because YAML reads some of its numbers, such as 1e5, as text.
        return json.loads(text)
    except ValueError:
        # YAML parses dates; to_builtins turns them into text again.
        return msgspec.to_builtins(yaml.safe_load(text))
