"""``atlas state``: what is stored, shown; and files, read."""

import datetime as dt
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
import msgspec
from msgspec import Raw
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.errors import ConfigError
from atlas_dagster.interfaces.cli.declared import Say, find_declared
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.operations.state_admin import StateAdmin
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState

#: Columns that no terminal is too narrow for.
_WHOLE = ("stream", "what", "when (UTC)", "run", "seq")


@contextmanager
def open_state_admin(connection: str, say: Say) -> Iterator[StateAdmin]:
    """The stored state of a declared connection. Raises ConfigError where there is none such."""
    defined = find_declared(connection).defined()
    with dg.DagsterInstance.get() as instance:
        yield StateAdmin(
            defined,
            atlas=AtlasResource.from_environment(),
            instance=instance,
            explain=say,
        )


def read_state(content: bytes) -> ConnectionState:
    """The state of a connection, in the form that connectors read and print."""
    try:
        if not isinstance(msgspec.json.decode(content), list):
            raise ConfigError(
                "The file is no array of states; if it is the state of one stream, name that with "
                "--stream."
            )
        return ConnectionState.from_file(content)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"The file holds no state that connectors read: {error}.") from error


def read_blob(content: bytes) -> Raw:
    """The state of one stream, byte for byte."""
    try:
        msgspec.json.decode(content)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"The file holds no JSON: {error}.") from error
    return Raw(content.strip())


def history_of(
    it: StateAdmin, names: Collection[StreamDescriptor], commits: int
) -> list[dict[str, Any]]:
    """The last commits of each stream, newest first, for machines."""
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
        for envelope, cursor in it.store.history(it.tables[name], commits)
    ]


def print_state(
    out: Console, facts: Console, it: StateAdmin, names: Collection[StreamDescriptor]
) -> None:
    """The state alone on ``out``, for a file; which commits it is of on ``facts``."""
    resume_points = it.resume_points()
    table, notes = _table(), list[str]()
    for name in names:
        resume_point = resume_points.resumptions.get(name)
        wrong = resume_points.refused.get(name) or resume_points.changed.get(name)
        if resume_point is not None and resume_point.envelope is not None:
            table.add_row(*_cells(name, resume_point.envelope))
        elif wrong is None:
            told = (resume_point and resume_point.notice) or "It was never synced."
            notes.append(f"{name}: {told}")
        if wrong is not None:
            notes.append(f"{name}: {wrong}")
    if table.row_count:
        facts.print(table)
    for note in notes:
        facts.print(note, markup=False, soft_wrap=True)
    # Not decoded: numbers stay as the source wrote them.
    text = msgspec.json.format(resume_points.state.only(names).to_file(), indent=2).decode()
    out.print(text, markup=False, soft_wrap=True)


def print_history(
    out: Console, it: StateAdmin, names: Collection[StreamDescriptor], commits: int
) -> None:
    """The last commits of each stream, newest first."""
    table = _table("cursor")
    for name in names:
        for envelope, cursor in it.store.history(it.tables[name], commits):
            shown = cursor if isinstance(cursor, str) else json.dumps(cursor)
            table.add_row(*_cells(name, envelope), Text(shown))
    out.print(table)


def _table(*more: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("stream", "what", "when (UTC)", "run", "gen.", "seq", *more):
        table.add_column(heading, overflow="fold", no_wrap=heading in _WHOLE)
    return table


def _cells(name: StreamDescriptor, envelope: Envelope) -> list[str]:
    commit = envelope.commit_of(name)
    held = commit.unpublished and envelope.action == "sync"
    when = dt.datetime.fromtimestamp(envelope.prepared_at, dt.UTC)
    return [
        str(name),
        f"{envelope.action}, held" if held else envelope.action,
        f"{when:%Y-%m-%d %H:%M:%S}",
        (envelope.run_id or "")[:8],
        str(commit.generation_id),
        str(envelope.seq),
    ]
