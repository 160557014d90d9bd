"""``atlas clear`` and ``atlas state``: the state of a connection, shown and edited."""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import click
import msgspec
from msgspec import Raw
from rich.table import Table
from rich.text import Text

from atlas_dagster.errors import ConfigError
from atlas_dagster.interfaces.cli.output import (
    DECLINED,
    CommandListener,
    console,
    errors,
    json_option,
    make_table,
    print_json,
    print_line,
    report_errors,
)
from atlas_dagster.interfaces.cli.project import complete_connections, find_connection
from atlas_dagster.interfaces.cli.sync import streams_option
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState

if TYPE_CHECKING:
    from atlas_dagster.destinations.envelope import Envelope
    from atlas_dagster.orchestration.operations.state_admin import StateAdmin


@click.command()
@click.argument("connection", shell_complete=complete_connections)
@streams_option
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
@report_errors
def clear(connection: str, streams: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Remove all rows and the state of CONNECTION."""
    if not yes:
        rows = f"all rows of {', '.join(streams) if streams else 'all streams'} of {connection}"
        if not sys.stdin.isatty():
            raise click.UsageError(f"This removes {rows}; without a terminal, confirm with --yes.")
        if not click.confirm(f"Permanently remove {rows}?"):
            print_line("Nothing was removed.")
            sys.exit(DECLINED)
    with open_state_admin(connection) as admin:
        names = admin.find(streams)
        done = admin.apply(lambda editor: editor.clear(names))
    _print_edits(done, "cleared; the next sync reads from the beginning", as_json)


@click.group()
def state() -> None:
    """Show and edit the state of a connection, from which its next sync continues."""


@state.command()
@click.argument("connection", shell_complete=complete_connections)
@streams_option
@click.option("--history", default=0, help="Show the last N commits of each stream instead.")
@json_option
@report_errors
def show(connection: str, streams: tuple[str, ...], history: int, as_json: bool) -> None:
    """Print the state of CONNECTION, in the format of `atlas state set`, and its last commits."""
    with open_state_admin(connection) as admin:
        names = admin.find(streams)
        if history and as_json:
            print_json(_list_history(admin, names, history))
        elif history:
            _print_history(admin, names, history)
        else:
            _print_state(admin, names)


@state.command("set")
@click.argument("connection", shell_complete=complete_connections)
@click.argument("file", type=click.File("rb"))
@click.option("--stream", help="Set only the state of this stream; FILE has nothing else.")
@json_option
@report_errors
def set_(connection: str, file: BinaryIO, stream: str | None, as_json: bool) -> None:
    """Make the next sync of CONNECTION continue from the state in FILE (- for stdin)."""
    with open_state_admin(connection) as admin:
        if stream is None:
            new_state = _parse_state(file.read())
            done = admin.apply(lambda editor: editor.set(new_state))
        else:
            (name,), blob = admin.find([stream]), _parse_blob(file.read())
            done = admin.apply(lambda editor: editor.set_stream(name, blob))
    _print_edits(done, "the next sync continues from this state", as_json)


@state.command()
@click.argument("connection", shell_complete=complete_connections)
@streams_option
@json_option
@report_errors
def reset(connection: str, streams: tuple[str, ...], as_json: bool) -> None:
    """Remove the state of CONNECTION and keep its rows."""
    with open_state_admin(connection) as admin:
        names = admin.find(streams)
        done = admin.apply(lambda editor: editor.reset(names))
    _print_edits(done, "the next sync reads from the beginning; its rows stay", as_json)


@state.command()
@click.argument("connection", shell_complete=complete_connections)
@streams_option
@json_option
@report_errors
def accept(connection: str, streams: tuple[str, ...], as_json: bool) -> None:
    """Accept changes that other programs made to the tables of CONNECTION."""
    with open_state_admin(connection) as admin:
        names = admin.find(streams)
        done = admin.apply(lambda editor: editor.accept(names))
    nothing = "no other program has changed a table"
    _print_edits(done, "its table is accepted as it is", as_json, no_effect=nothing)


@state.command()
@click.argument("connection", shell_complete=complete_connections)
@report_errors
def adopt(connection: str) -> None:
    """Take over the tables of CONNECTION from another deployment."""
    with open_state_admin(connection) as admin:
        deployment = admin.transfer_ownership()
    print_line(f"The tables of {connection} now belong to the deployment '{deployment}'.")


@contextmanager
def open_state_admin(connection: str) -> Iterator[StateAdmin]:
    """Open the state of a declared connection. Raises ConfigError if it does not exist."""
    import dagster as dg

    from atlas_dagster.orchestration.definitions.resource import AtlasResource
    from atlas_dagster.orchestration.operations.state_admin import StateAdmin

    assets = find_connection(connection).assets()
    with dg.DagsterInstance.get() as instance:
        atlas = AtlasResource.from_environment()
        yield StateAdmin(assets, atlas=atlas, instance=instance, listener=CommandListener())


def _parse_state(content: bytes) -> ConnectionState:
    """Return the state of a connection from a list of STATE messages."""
    try:
        if not isinstance(msgspec.json.decode(content), list):
            raise ConfigError(
                "The file must have a list of states; if it has the state of one stream, name the "
                "stream with --stream."
            )
        return ConnectionState.from_file(content)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"The file is not a valid Airbyte state: {error}.") from error


def _parse_blob(content: bytes) -> Raw:
    """Return the state of one stream, byte for byte."""
    try:
        msgspec.json.decode(content)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"The file is not valid JSON: {error}.") from error
    return Raw(content.strip())


def _list_history(
    admin: StateAdmin, names: Collection[StreamDescriptor], commits: int
) -> list[dict[str, Any]]:
    """Return the last commits of each stream, newest first, for ``--json``."""
    return [
        {
            "stream": str(name),
            "action": envelope.action,
            "at": envelope.prepared_at,
            "run_id": envelope.run_id,
            "generation_id": envelope.commit_of(name).generation_id,
            "seq": envelope.seq,
            "cursor": cursor,
        }
        for name in names
        for envelope, cursor in admin.store.history(admin.tables[name], commits)
    ]


def _print_state(admin: StateAdmin, names: Collection[StreamDescriptor]) -> None:
    """Print only the state to stdout, and its commits to stderr."""
    found = admin.resume_points()
    shown, notes = _make_commits_table(), list[str]()
    for name in names:
        point = found.by_stream.get(name)
        problem = found.refused.get(name) or found.changed.get(name)
        if point is not None and point.envelope is not None:
            shown.add_row(*_make_cells(name, point.envelope))
        elif problem is None:
            notes.append(f"{name}: {(point and point.notice) or 'It was never synced.'}")
        if problem is not None:
            notes.append(f"{name}: {problem}")
    if shown.row_count:
        errors.print(shown)
    for note in notes:
        errors.print(note, markup=False, soft_wrap=True)
    # The state is not decoded, so that numbers stay as the source wrote them.
    print_line(msgspec.json.format(found.state.only(names).to_file(), indent=2).decode())


def _print_history(admin: StateAdmin, names: Collection[StreamDescriptor], commits: int) -> None:
    shown = _make_commits_table("cursor")
    for name in names:
        for envelope, cursor in admin.store.history(admin.tables[name], commits):
            text = cursor if isinstance(cursor, str) else json.dumps(cursor)
            shown.add_row(*_make_cells(name, envelope), Text(text))
    console.print(shown)


def _make_commits_table(*more: str) -> Table:
    nowrap = ("stream", "what", "when (UTC)", "run", "seq")
    return make_table("stream", "what", "when (UTC)", "run", "gen.", "seq", *more, nowrap=nowrap)


def _make_cells(name: StreamDescriptor, envelope: Envelope) -> list[str]:
    commit = envelope.commit_of(name)
    unpublished = commit.unpublished and envelope.action == "sync"
    when = dt.datetime.fromtimestamp(envelope.prepared_at, dt.UTC)
    return [
        str(name),
        f"{envelope.action}, unpublished" if unpublished else envelope.action,
        f"{when:%Y-%m-%d %H:%M:%S}",
        (envelope.run_id or "")[:8],
        str(commit.generation_id),
        str(envelope.seq),
    ]


def _print_edits(
    done: Sequence[Envelope],
    effect: str,
    as_json: bool,
    no_effect: str = "nothing was synced yet",
) -> None:
    streams = [str(commit.stream) for envelope in done for commit in envelope.streams]
    if as_json:
        print_json({"streams": streams, "done": effect})
        return
    for stream in streams:
        print_line(f"{stream}: {effect}.")
    if not streams:
        print_line(f"Nothing to do: {no_effect}.")
