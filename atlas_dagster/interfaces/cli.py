"""The ``atlas`` command. Thin: every verb is a call into a room below."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar

import click
from rich.console import Console
from rich.markup import escape

from atlas_dagster.errors import AtlasError
from atlas_dagster.interfaces.cli_connections import (
    Declared,
    check_connection,
    declared_connections,
    discover_catalog,
    discovered_or_told,
    find_declared,
)
from atlas_dagster.state.envelope import Envelope

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


_STREAMS = click.option(
    "--stream", "streams", multiple=True, help="Only this stream; may be repeated."
)


@main.command()
@click.argument("connection")
@_STREAMS
@_one_sentence
def sync(connection: str, streams: tuple[str, ...]) -> None:
    """Sync CONNECTION as Dagster would, recorded in Dagster's event log."""
    _sync(connection, streams, None)


@main.command()
@click.argument("connection")
@_STREAMS
@click.option("--keep-rows", is_flag=True, help="Leave the old rows beside the new ones.")
@_one_sentence
def refresh(connection: str, streams: tuple[str, ...], keep_rows: bool) -> None:
    """Sync CONNECTION from the beginning; the old rows are replaced once that is complete."""
    _sync(connection, streams, "retain" if keep_rows else "remove")


@main.command()
@click.argument("connection")
@_STREAMS
@_one_sentence
def clear(connection: str, streams: tuple[str, ...]) -> None:
    """Remove all rows of CONNECTION, and where its streams continue."""
    from atlas_dagster.interfaces.cli_state import desk

    with desk(connection, _say) as it:
        names = it.find(streams)
        done = it.apply(lambda upkeep: upkeep.clear(names))
    _tell(done, "cleared; the next sync reads from the beginning")


@main.group()
def state() -> None:
    """Where the streams of a connection continue."""


@state.command()
@click.argument("connection")
@_STREAMS
@click.option("--history", default=0, help="The last N commits of each stream instead.")
@_one_sentence
def show(connection: str, streams: tuple[str, ...], history: int) -> None:
    """Print the state of CONNECTION, as `atlas state set` takes it, and which commit it is of."""
    from atlas_dagster.interfaces.cli_state import desk, print_history, print_state

    with desk(connection, _say) as it:
        if history:
            print_history(console, it, it.find(streams), history)
        else:
            print_state(console, errors, it, it.find(streams))


@state.command("set")
@click.argument("connection")
@click.argument("file", type=click.File("rb"))
@click.option("--stream", help="The file is the state of this stream alone.")
@_one_sentence
def set_(connection: str, file: BinaryIO, stream: str | None) -> None:
    """Have the next sync of CONNECTION continue from the state in FILE, or from - on stdin."""
    from atlas_dagster.interfaces.cli_state import desk, read_blob, read_state

    with desk(connection, _say) as it:
        if stream is None:
            given = read_state(file.read())
            done = it.apply(lambda upkeep: upkeep.set(given))
        else:
            (name,), blob = it.find([stream]), read_blob(file.read())
            done = it.apply(lambda upkeep: upkeep.set_stream(name, blob))
    _tell(done, "continues from there at the next sync")


@state.command()
@click.argument("connection")
@_STREAMS
@_one_sentence
def reset(connection: str, streams: tuple[str, ...]) -> None:
    """Forget where CONNECTION continues; its rows stay."""
    from atlas_dagster.interfaces.cli_state import desk

    with desk(connection, _say) as it:
        names = it.find(streams)
        done = it.apply(lambda upkeep: upkeep.reset(names))
    _tell(done, "is read from the beginning at the next sync; its rows stay")


@state.command()
@click.argument("connection")
@_STREAMS
@_one_sentence
def accept(connection: str, streams: tuple[str, ...]) -> None:
    """Go on with tables of CONNECTION as someone else left them."""
    from atlas_dagster.interfaces.cli_state import desk

    with desk(connection, _say) as it:
        names = it.find(streams)
        done = it.apply(lambda upkeep: upkeep.accept(names))
    _tell(done, "accepted as it is", otherwise="nobody else changed a row that counts")


@state.command()
@click.argument("connection")
@_one_sentence
def adopt(connection: str) -> None:
    """Take the tables of CONNECTION over from another deployment."""
    from atlas_dagster.interfaces.cli_state import desk

    with desk(connection, _say) as it:
        deployment = it.adopt()
    _say(f"The tables of {connection} belong to the deployment '{deployment}' now.")


def _tell(done: Sequence[Envelope], what: str, otherwise: str = "nothing was synced yet") -> None:
    streams = [str(commit.stream) for envelope in done for commit in envelope.streams]
    for stream in streams:
        _say(f"{stream}: {what}.")
    if not streams:
        _say(f"Nothing to do: {otherwise}.")


def _sync(connection: str, streams: tuple[str, ...], refresh: str | None) -> None:
    from atlas_dagster.interfaces.cli_sync import print_summary, sync_connection

    declared = find_declared(connection)
    discovered_or_told(declared)
    _explain_runner(declared)
    with console.status(f"Syncing {connection} …"):
        outcome = sync_connection(declared, streams, refresh)
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
