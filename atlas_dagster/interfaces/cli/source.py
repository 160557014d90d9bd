"""What a verb works on: a declared connection, or a connector by its name or image.

What runs connectors is imported once the command line is known to be right: it takes a second.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
import msgspec
import yaml

from atlas_dagster.errors import ConfigError
from atlas_dagster.interfaces.cli.output import errors, note, warn

if TYPE_CHECKING:
    from atlas_dagster.protocol.catalog import Catalog
    from atlas_dagster.source.connection import Connection, RunnerChoice
    from atlas_dagster.source.connector import Connector
    from atlas_dagster.source.discovered_catalog import Discovered
    from atlas_dagster.source.invocation import Log
    from atlas_dagster.source.open import Caller

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Source:
    """``discovered`` is what is cached of a declared connection."""

    connection: "Connection"
    caller: "Caller"
    discovered: "Discovered | None" = None


def source_options(command: Callable[P, T]) -> Callable[P, T]:
    """Those of verbs that take a connector which is not declared, too."""
    for option in (
        click.option("--logs", is_flag=True, help="Show the connector's own log, on stderr."),
        click.option(
            "--validate/--no-validate",
            default=True,
            help="Whether the config of a connector that is not declared must fit its SPEC.",
        ),
        click.option(
            "--runner",
            type=click.Choice(["auto", "docker", "python"]),
            help="Where a connector runs that is not declared.",
        ),
        click.option(
            "--config",
            metavar="FILE|JSON|-",
            help="Config of a connector that is not declared: a file (JSON or YAML), - for stdin, "
            "or JSON itself, which others can see in the list of processes. {{ env.X }} is "
            "replaced by that variable.",
        ),
    ):
        command = option(command)
    return command


@contextmanager
def opened(
    source: str,
    *,
    config: str | None = None,
    runner: "RunnerChoice | None" = None,
    logs: bool = False,
    validate: bool = True,
    explain: Callable[[str], None] = note,
) -> Iterator[Source]:
    """Raises ConfigError where there is no such source."""
    from atlas_dagster.reading.ad_hoc import adhoc_caller, adhoc_connection, is_adhoc, reap_adhoc

    log = connector_log(logs)
    if is_adhoc(source):
        if runner != "python":
            reap_adhoc()
        connection = adhoc_connection(
            source, read_config(config), runner or "auto", validate=validate
        )
        yield Source(connection, adhoc_caller(explain, log, warn=warn))
        return
    require_own_config(source, config, runner, validate=validate)
    # Dagster takes seconds to import.
    import dagster as dg

    from atlas_dagster.interfaces.cli.declared import find_declared
    from atlas_dagster.orchestration.definitions.resource import AtlasResource

    declared = find_declared(source)
    with dg.DagsterInstance.get() as instance:
        atlas = AtlasResource.from_environment()
        caller = atlas.caller(instance, None, explain=explain, log=log, warn=warn)
        yield Source(declared.connection, caller, declared.discovered)


@contextmanager
def at_work(it: Source) -> "Iterator[Connector]":
    """The source's connector with its config, checked against the SPEC that is known, if one is."""
    from atlas_dagster.source.open import connected, introduced

    if it.discovered is not None:
        with connected(it.connection, it.caller, it.discovered.spec_schema) as connector:
            yield connector
    else:
        with introduced(it.connection, it.caller) as (connector, _):
            yield connector


@contextmanager
def reached(it: Source) -> "Iterator[tuple[Connector, Catalog]]":
    """As :func:`at_work`, and the source's catalog: the cached one if there is one."""
    with at_work(it) as connector:
        yield connector, it.discovered.catalog if it.discovered else connector.discover()


def read_config(given: str | None) -> Mapping[str, Any]:
    """Raises ConfigError where it cannot be read; the message never shows what is in it."""
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
        found = _parsed(text)
    except yaml.YAMLError:
        raise ConfigError(f"{where} is neither JSON nor YAML.") from None
    if not isinstance(found, Mapping):
        raise ConfigError(f"{where} holds no object; write the fields that `atlas spec` names.")
    return found


def _parsed(text: str) -> Any:
    """JSON first, for YAML takes some of its numbers for text."""
    try:
        return json.loads(text)
    except ValueError:
        # A date without quotes is a text, too.
        return msgspec.to_builtins(yaml.safe_load(text))


def require_own_config(
    source: str, config: str | None, runner: "RunnerChoice | None", *, validate: bool
) -> None:
    """Raises ConfigError where options are given that a declared connection does not take."""
    if not validate:
        raise ConfigError(
            f"'{source}' is a declared connection; write `validate: off` in its defs.yaml."
        )
    if config is not None or runner is not None:
        raise ConfigError(
            f"'{source}' is a declared connection, which has its own config and runner; to try a "
            "connector with others, name it: source-postgres, or an image."
        )


def connector_log(logs: bool) -> "Log":
    """Where the connector's own log goes: to stderr with ``--logs``."""
    return _print_log if logs else _drop


def _print_log(level: str, text: str) -> None:
    errors.print(f"{level:5} {text}", markup=False, soft_wrap=True, style="dim")


def _drop(level: str, text: str) -> None:
    pass
