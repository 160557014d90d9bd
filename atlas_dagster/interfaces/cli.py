"""The ``atlas`` command. Thin: every verb is a call into a room below."""

import logging
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import click
from rich.console import Console
from rich.markup import escape

from atlas_dagster.errors import AtlasError, ConfigError
from atlas_dagster.interfaces.cli_connections import (
    Declared,
    check_connection,
    declared_connections,
    discover_catalog,
    find_declared,
)

P = ParamSpec("P")
T = TypeVar("T")

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def _one_sentence(command: Callable[P, T]) -> Callable[P, T]:
    """Show errors Atlas raises on purpose as the sentence they are, with exit code 1."""

    @wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except AtlasError as error:
            _complain("Error", error)
            sys.exit(1)

    return guarded


def _complain(about: str, what: object) -> None:
    errors.print(f"[bold red]{about}:[/] {escape(str(what))}", soft_wrap=True)


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


@click.group()
@click.version_option(package_name="atlas-dagster")
def main() -> None:
    """Run Airbyte connectors from Dagster."""
    logging.getLogger("dagster").setLevel(logging.ERROR)
    _enter_project()


@main.command()
@click.argument("connections", nargs=-1)
@click.option("--missing", is_flag=True, help="Only connections whose streams are not known yet.")
@_one_sentence
def discover(connections: tuple[str, ...], missing: bool) -> None:
    """Ask sources which streams they offer. All CONNECTIONS, unless some are named."""
    declared = (
        [find_declared(name) for name in connections] if connections else declared_connections()
    )
    failed = False
    for connection in declared:
        try:
            if missing and connection.is_discovered:
                continue
            with console.status(f"Discovering {connection.name} …"):
                found = discover_catalog(connection, _say)
        except AtlasError as error:
            failed = True
            _complain(connection.name, error)
            continue
        names = escape(", ".join(str(table.stream) for table in found.tables))
        console.print(
            f"[bold green]{connection.name}[/] offers {_counted(len(found.tables))}: {names}"
        )
    sys.exit(1 if failed else 0)


@main.command()
@click.argument("connection")
@_one_sentence
def check(connection: str) -> None:
    """Ask CONNECTION's connector whether it can reach its source."""
    check_connection(find_declared(connection), _say)
    console.print(f"[bold green]{connection}[/] reached its source.")


@main.command()
@click.argument("connection")
@click.option("--stream", "streams", multiple=True, help="Only this stream; may be repeated.")
@_one_sentence
def sync(connection: str, streams: tuple[str, ...]) -> None:
    """Sync CONNECTION as Dagster would, recorded in Dagster's event log."""
    from atlas_dagster.interfaces.cli_sync import print_summary, sync_connection

    declared = find_declared(connection)
    if not declared.is_discovered:
        raise ConfigError(
            f"The streams of '{connection}' are not known yet; run: atlas discover {connection}"
        )
    _explain_runner(declared)
    with console.status(f"Syncing {connection} …"):
        outcome = sync_connection(declared, streams)
    print_summary(console, declared, outcome)
    if outcome.failures:
        for sentence in outcome.failures:
            _complain("Error", sentence)
        errors.print(f"The connector's log: {outcome.log}", markup=False, soft_wrap=True)
        sys.exit(1)


def _counted(streams: int) -> str:
    return "1 stream" if streams == 1 else f"{streams} streams"


def _explain_runner(declared: Declared) -> None:
    from atlas_dagster.orchestration.resource import AtlasResource
    from atlas_dagster.sync.choose import choose_runner
    from atlas_dagster.sync.source import check_variables

    check_variables(declared.connection, os.environ)
    defaults = AtlasResource.from_environment().executor_defaults()
    choose_runner(declared.connection, defaults, _say)


def _enter_project() -> None:
    """Work from the folder of the nearest dagster.yaml, which Dagster's relative paths start at."""
    here = Path.cwd()
    home = os.environ.get("DAGSTER_HOME")
    for folder in [Path(home)] if home else [here, *here.parents]:
        if (folder / "dagster.yaml").exists():
            os.environ["DAGSTER_HOME"] = str(folder)
            os.chdir(folder)
            return
    raise click.ClickException(
        "There is no dagster.yaml here or above; run atlas in the project, or set DAGSTER_HOME."
    )
