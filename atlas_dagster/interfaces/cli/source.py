"""The SOURCE of a verb: a declared connection, a connector or an image; and its options.

Functions import the code that runs connectors, so that a wrong command line is reported at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec
import yaml

from atlas_dagster.errors import ConfigError
from atlas_dagster.interfaces.cli.output import errors, print_note, print_warning, report_errors

if TYPE_CHECKING:
    from atlas_dagster.protocol.catalog import Catalog
    from atlas_dagster.source.connection import Connection, RunnerChoice
    from atlas_dagster.source.connector import Connector
    from atlas_dagster.source.discovered_catalog import Discovered
    from atlas_dagster.source.invocation import Log
    from atlas_dagster.source.open import Caller

T = TypeVar("T")


@dataclass(frozen=True)
class SourceOptions:
    """The options of :func:`source_command`."""

    config: str | None = None
    runner: RunnerChoice | None = None
    validate: bool = True
    logs: bool = False

    @property
    def log(self) -> Log:
        """The receiver of the connector's log: stderr with ``--logs``."""
        return _print_log if self.logs else lambda _, __: None

    def refuse_for_declared(self, source: str) -> None:
        """Raises ConfigError if options are given that a declared connection does not take."""
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
    caller: Caller
    discovered: Discovered | None = None

    @contextmanager
    def connect(self) -> Iterator[Connector]:
        """Open the connector with its config."""
        from atlas_dagster.source.open import connected, introduced

        if self.discovered is not None:
            with connected(self.connection, self.caller, self.discovered.spec_schema) as connector:
                yield connector
        else:
            with introduced(self.connection, self.caller) as (connector, _):
                yield connector

    @contextmanager
    def connect_and_discover(self) -> Iterator[tuple[Connector, Catalog]]:
        """Open the connector, and return the stored catalog or else what DISCOVER finds."""
        with self.connect() as connector:
            yield connector, self.discovered.catalog if self.discovered else connector.discover()


@contextmanager
def open_source(
    source: str, options: SourceOptions, explain: Callable[[str], None] = print_note
) -> Iterator[Source]:
    """Raises ConfigError if there is no such source."""
    from atlas_dagster.reading.ad_hoc import adhoc_caller, adhoc_connection, is_adhoc, reap_adhoc

    if is_adhoc(source):
        if options.runner != "python":
            reap_adhoc()
        runner, config = options.runner or "auto", read_config(options.config)
        connection = adhoc_connection(source, config, runner, validate=options.validate)
        yield Source(connection, adhoc_caller(explain, options.log, warn=print_warning))
        return
    options.refuse_for_declared(source)
    from atlas_dagster.interfaces.cli.project import find_connection, open_caller

    declared = find_connection(source)
    with open_caller(explain, options.log) as (_, caller):
        yield Source(declared.connection, caller, declared.discovered)


def read_config(given: str | None) -> Mapping[str, Any]:
    """Return the value of ``--config``. Raises ConfigError, which never shows its content."""
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
        # YAML takes some numbers of JSON, such as 1e5, for text.
        return json.loads(text)
    except ValueError:
        # YAML dates become text again.
        return msgspec.to_builtins(yaml.safe_load(text))


def _print_log(level: str, text: str) -> None:
    errors.print(f"{level:5} {text}", markup=False, soft_wrap=True, style="dim")
