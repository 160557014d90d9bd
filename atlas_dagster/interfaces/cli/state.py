"""``atlas sync``, and what a user does about state."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

import click

from atlas_dagster.interfaces.cli.completion import connections
from atlas_dagster.interfaces.cli.output import (
    DECLINED,
    EXIT_CODES,
    complain,
    console,
    errors,
    json_option,
    note,
    one_sentence,
    print_json,
    say,
)
from atlas_dagster.interfaces.cli.progress import pull_bar, sync_bar

if TYPE_CHECKING:
    from atlas_dagster.destinations.envelope import Envelope
    from atlas_dagster.interfaces.cli.declared import ProjectConnection

_STREAMS = click.option(
    "--stream", "streams", multiple=True, help="Only this stream; may be repeated."
)


@click.command()
@click.argument("connection", shell_complete=connections)
@_STREAMS
@json_option
@one_sentence
def sync(connection: str, streams: tuple[str, ...], as_json: bool) -> None:
    """Sync CONNECTION as Dagster would, recorded in Dagster's event log."""
    _sync(connection, streams, None, as_json)


@click.command()
@click.argument("connection", shell_complete=connections)
@_STREAMS
@click.option("--keep-rows", is_flag=True, help="Leave the old rows beside the new ones.")
@json_option
@one_sentence
def refresh(connection: str, streams: tuple[str, ...], keep_rows: bool, as_json: bool) -> None:
    """Sync CONNECTION from the beginning; the old rows are replaced once that is complete."""
    _sync(connection, streams, "retain" if keep_rows else "remove", as_json)


@click.command()
@click.argument("connection", shell_complete=connections)
@_STREAMS
@click.option("--yes", is_flag=True, help="Do not ask whether that is meant.")
@json_option
@one_sentence
def clear(connection: str, streams: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Remove all rows of CONNECTION, and where its streams continue."""
    from atlas_dagster.interfaces.cli.stored import open_state_admin

    if not yes:
        what = f"all rows of {', '.join(streams) if streams else 'all streams'} of {connection}"
        if not sys.stdin.isatty():
            raise click.UsageError(f"This removes {what}; without a terminal, say so with --yes.")
        if not click.confirm(f"Remove {what}, for good?"):
            say("Nothing was removed.")
            sys.exit(DECLINED)
    with open_state_admin(connection, note) as it:
        names = it.find(streams)
        done = it.apply(lambda upkeep: upkeep.clear(names))
    _tell(done, "cleared; the next sync reads from the beginning", as_json)


@click.group()
def state() -> None:
    """Where the streams of a connection continue."""


@state.command()
@click.argument("connection", shell_complete=connections)
@_STREAMS
@click.option("--history", default=0, help="The last N commits of each stream instead.")
@json_option
@one_sentence
def show(connection: str, streams: tuple[str, ...], history: int, as_json: bool) -> None:
    """Print the state of CONNECTION, as `atlas state set` takes it, and which commit it is of."""
    from atlas_dagster.interfaces.cli.stored import (
        history_of,
        open_state_admin,
        print_history,
        print_state,
    )

    with open_state_admin(connection, note) as it:
        names = it.find(streams)
        if history and as_json:
            print_json(history_of(it, names, history))
        elif history:
            print_history(console, it, names, history)
        else:
            print_state(console, errors, it, names)


@state.command("set")
@click.argument("connection", shell_complete=connections)
@click.argument("file", type=click.File("rb"))
@click.option("--stream", help="The file is the state of this stream alone.")
@json_option
@one_sentence
def set_(connection: str, file: BinaryIO, stream: str | None, as_json: bool) -> None:
    """Have the next sync of CONNECTION continue from the state in FILE, or from - on stdin."""
    from atlas_dagster.interfaces.cli.stored import open_state_admin, read_blob, read_state

    with open_state_admin(connection, note) as it:
        if stream is None:
            given = read_state(file.read())
            done = it.apply(lambda upkeep: upkeep.set(given))
        else:
            (name,), blob = it.find([stream]), read_blob(file.read())
            done = it.apply(lambda upkeep: upkeep.set_stream(name, blob))
    _tell(done, "continues from there at the next sync", as_json)


@state.command()
@click.argument("connection", shell_complete=connections)
@_STREAMS
@json_option
@one_sentence
def reset(connection: str, streams: tuple[str, ...], as_json: bool) -> None:
    """Forget where CONNECTION continues; its rows stay."""
    from atlas_dagster.interfaces.cli.stored import open_state_admin

    with open_state_admin(connection, note) as it:
        names = it.find(streams)
        done = it.apply(lambda upkeep: upkeep.reset(names))
    _tell(done, "is read from the beginning at the next sync; its rows stay", as_json)


@state.command()
@click.argument("connection", shell_complete=connections)
@_STREAMS
@json_option
@one_sentence
def accept(connection: str, streams: tuple[str, ...], as_json: bool) -> None:
    """Go on with tables of CONNECTION as someone else left them."""
    from atlas_dagster.interfaces.cli.stored import open_state_admin

    with open_state_admin(connection, note) as it:
        names = it.find(streams)
        done = it.apply(lambda upkeep: upkeep.accept(names))
    nothing = "nobody else changed a row that counts"
    _tell(done, "accepted as it is", as_json, otherwise=nothing)


@state.command()
@click.argument("connection", shell_complete=connections)
@one_sentence
def adopt(connection: str) -> None:
    """Take the tables of CONNECTION over from another deployment."""
    from atlas_dagster.interfaces.cli.stored import open_state_admin

    with open_state_admin(connection, note) as it:
        deployment = it.transfer_ownership()
    say(f"The tables of {connection} belong to the deployment '{deployment}' now.")


def _tell(
    done: Sequence["Envelope"],
    what: str,
    as_json: bool,
    otherwise: str = "nothing was synced yet",
) -> None:
    streams = [str(commit.stream) for envelope in done for commit in envelope.streams]
    if as_json:
        print_json({"streams": streams, "done": what})
        return
    for stream in streams:
        say(f"{stream}: {what}.")
    if not streams:
        say(f"Nothing to do: {otherwise}.")


def _sync(connection: str, streams: tuple[str, ...], refresh: str | None, as_json: bool) -> None:
    from atlas_dagster.interfaces.cli.declared import find_declared
    from atlas_dagster.interfaces.cli.sync import print_summary, summary, sync_connection
    from atlas_dagster.source.open import check_variables

    declared = find_declared(connection)
    # What is wrong with it is said before anything is run.
    check_variables(declared.connection, os.environ)
    defined = declared.defined()
    with pull_bar():
        _explain_runner(declared, as_json)
    with sync_bar(connection):
        outcome = sync_connection(declared, defined, streams, refresh)
    if as_json:
        print_json(summary(declared, outcome))
    else:
        print_summary(console, declared, outcome)
    if outcome.failures:
        for sentence in outcome.failures:
            complain("Error", sentence)
        errors.print(f"The connector's log: {outcome.log}", markup=False, soft_wrap=True)
        sys.exit(EXIT_CODES[outcome.failure_type])


def _explain_runner(declared: "ProjectConnection", as_json: bool) -> None:
    from atlas_dagster.orchestration.definitions.resource import AtlasResource
    from atlas_dagster.source.connector_ref import ConnectorRef
    from atlas_dagster.source.runner_choice import choose_runner

    defaults = AtlasResource.from_environment().executor_defaults()
    ref = ConnectorRef.resolve(declared.connection)
    choose_runner(ref, defaults, note if as_json else say).close()
