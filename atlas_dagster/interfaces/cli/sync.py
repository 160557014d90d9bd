"""``atlas sync`` and ``refresh``: the connection's own assets, materialized in this process."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, get_args

import click
from rich.text import Text

from atlas_dagster.errors import FailureType
from atlas_dagster.interfaces.cli.output import (
    EXIT_CODES,
    CommandListener,
    LineConsole,
    console,
    errors,
    json_option,
    make_table,
    print_error,
    print_json,
    print_line,
    report_errors,
)
from atlas_dagster.interfaces.cli.project import (
    ProjectConnection,
    calling_folder,
    complete_connections,
    find_connection,
)
from atlas_dagster.listener import Listener

if TYPE_CHECKING:
    import dagster as dg

    from atlas_dagster.destinations.base import Destination, TablePath
    from atlas_dagster.orchestration.dagster_internals import StepFailureData
    from atlas_dagster.orchestration.definitions.translator import ConnectionAssets

_PREVIEW_ROWS = 3
_PREVIEW_COLUMNS = 4
_PREVIEW_WIDTH = 26
_CURSOR_WIDTH = 100

streams_option = click.option(
    "--stream", "streams", multiple=True, help="Only this stream; may be repeated."
)


@click.command()
@click.argument("connection", shell_complete=complete_connections)
@streams_option
@json_option
@report_errors
def sync(connection: str, streams: tuple[str, ...], as_json: bool) -> None:
    """Sync CONNECTION as Dagster would, and record it in Dagster's event log."""
    _sync(connection, streams, None, as_json)


@click.command()
@click.argument("connection", shell_complete=complete_connections)
@streams_option
@click.option("--keep-rows", is_flag=True, help="Keep the old rows beside the new ones.")
@json_option
@report_errors
def refresh(connection: str, streams: tuple[str, ...], keep_rows: bool, as_json: bool) -> None:
    """Sync CONNECTION from the beginning. New rows replace the old ones at the end."""
    _sync(connection, streams, "retain" if keep_rows else "remove", as_json)


def _sync(connection: str, streams: tuple[str, ...], refresh: str | None, as_json: bool) -> None:
    from atlas_dagster.config.validation import require_variables

    declared = find_connection(connection)
    # Report problems of the declaration before anything runs.
    source = declared.connection
    require_variables(source.config, environ=os.environ, where=source.where)
    assets = declared.assets()
    listener = CommandListener()
    with listener.pull_bar(), listener.read_bar(connection):
        if not as_json:
            # sys.stdout is a file during the run.
            out = LineConsole(file=sys.stdout, highlight=False)
            listener.print_info = partial(out.print, markup=False, soft_wrap=True)
        outcome = sync_connection(declared, assets, streams, listener, refresh)
    if as_json:
        print_json(_summarize(declared, outcome))
    else:
        print_summary(declared, outcome)
    if outcome.failures:
        for sentence in outcome.failures:
            print_error("Error", sentence)
        errors.print(f"The connector's log: {outcome.log}", markup=False, soft_wrap=True)
        sys.exit(EXIT_CODES[outcome.failure_type])


# The run


@dataclass
class Outcome:
    """The result of a sync: each table's metadata, and the failures."""

    streams: dict[tuple[str, ...], Mapping[str, dg.MetadataValue[Any]]] = field(
        default_factory=dict
    )
    failures: list[str] = field(default_factory=list)
    failure_type: FailureType = "system_error"
    #: The connector's own log.
    log: Path = Path()


def sync_connection(
    declared: ProjectConnection,
    assets: ConnectionAssets,
    streams: Collection[str],
    listener: Listener,
    refresh: str | None = None,
) -> Outcome:
    """Materialize the connection's streams, or only the named ones.

    Wait first while another run of the connection is active. The run reports to ``listener``.
    ``refresh`` is the option of a run: remove or retain.

    Raises:
        UnknownStreamError: the connection has no such stream.
    """
    import dagster as dg

    from atlas_dagster.orchestration.automation.schedule import CONNECTION_TAG
    from atlas_dagster.orchestration.dagster_internals import MAX_RETRIES_TAG, make_new_run_id
    from atlas_dagster.orchestration.operations.cleanup import process_tag
    from atlas_dagster.orchestration.operations.pools import wait_for_turn
    from atlas_dagster.orchestration.step.listener import forward_to
    from atlas_dagster.sync.state_edits import find_streams

    names = find_streams(declared.name, assets.streams, streams)
    tables = {assets.key(path): path for path in assets.tables.values()}
    selected = [assets.key(assets.tables[name]) for name in names]
    job = declared.definitions().resolve_implicit_global_asset_job_def()
    outcome = Outcome()
    config: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    if refresh is not None:
        config["ops"] = {f"{declared.name}__sync": {"config": {"refresh": refresh}}}
    with (
        dg.DagsterInstance.get() as instance,
        _make_log_path(instance, declared.name).open("w") as log,
        redirect_stdout(log),
        _redirect_stderr_of_children(log),
        forward_to(listener),
    ):
        outcome.log = Path(log.name)
        wait_for_turn(instance, assets.connection, CommandListener())
        run_id = make_new_run_id()
        result = job.execute_in_process(
            run_id=run_id,
            run_config=config,
            instance=instance,
            asset_selection=selected,
            raise_on_error=False,
            # Dagster must not retry the run, because the user is there to repeat the command.
            tags={
                CONNECTION_TAG: declared.name,
                MAX_RETRIES_TAG: "0",
                **process_tag(run_id, os.getpid()),
                **_launcher_tags(instance),
            },
        )
        run = instance.get_run_by_id(run_id)
        outcome.failure_type = _failure_type(run.tags if run else {})
    for event in result.all_events:
        if event.is_step_failure:
            if _is_interrupted(event.step_failure_data):
                raise KeyboardInterrupt
            outcome.failures.append(_describe_failure(event.step_failure_data))
    for materialization in result.get_asset_materialization_events():
        done = materialization.materialization
        outcome.streams[tables[done.asset_key]] = done.metadata
    return outcome


def _launcher_tags(instance: dg.DagsterInstance) -> dict[str, str]:
    """Return the tags of a run that Dagster's Docker launcher started.

    Without them, Dagster's monitoring would think that the run's container is gone.
    """
    if type(instance.run_launcher).__name__ != "DockerRunLauncher":
        return {}
    from dagster_docker.docker_run_launcher import DOCKER_CONTAINER_ID_TAG

    from atlas_dagster.runners.owner import this_container

    return {DOCKER_CONTAINER_ID_TAG: this_container()}


def _failure_type(tags: Mapping[str, str]) -> FailureType:
    from atlas_dagster.orchestration.automation.retries import FAILURE_TAG

    found = tags.get(FAILURE_TAG)
    return next((kind for kind in get_args(FailureType) if kind == found), "system_error")


@contextmanager
def _redirect_stderr_of_children(log: IO[str]) -> Iterator[None]:
    """Write the stderr of child processes to ``log``, but not that of this process.

    Dagster starts processes that mirror logs. They get Ctrl-C of the terminal, too, and each would
    print a traceback.
    """
    original = sys.stderr
    with os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace") as terminal:
        if _is_stderr(original):
            sys.stderr = terminal
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal.fileno(), 2)
            sys.stderr = original


def _is_stderr(stream: IO[str]) -> bool:
    try:
        return stream.fileno() == 2
    except (OSError, ValueError):
        return False


def _make_log_path(instance: dg.DagsterInstance, connection: str) -> Path:
    folder = Path(instance.root_directory) / "sync_logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{connection}.log"


def _is_interrupted(failure: StepFailureData) -> bool:
    from dagster import DagsterExecutionInterruptedError

    error = failure.error
    return error is not None and error.cls_name == DagsterExecutionInterruptedError.__name__


def _describe_failure(failure: StepFailureData) -> str:
    """Return the message of an AtlasError, or that of the innermost unexpected exception."""
    if failure.user_failure_data is not None:
        return str(failure.user_failure_data.description)
    error = failure.error
    while error is not None and error.cause is not None:
        error = error.cause
    return "The step failed." if error is None else error.message.strip()


# The summary of the run


def _summarize(declared: ProjectConnection, outcome: Outcome) -> dict[str, Any]:
    """Return the outcome for ``--json``."""
    with _open_destination(declared) as destination:
        return {
            "connection": declared.name,
            "streams": [
                {
                    "stream": ".".join(path[1:]),
                    "table": destination.table_uri(path),
                    "records": metadata["atlas/records_synced"].value,
                    "rows": metadata["dagster/row_count"].value,
                    "seconds": metadata["atlas/duration_seconds"].value,
                    "cursor": metadata["atlas/cursor_after"].value,
                    "changed_values": _changed_values(metadata),
                }
                for path, metadata in outcome.streams.items()
            ],
            "failures": outcome.failures,
            "log": str(outcome.log),
        }


def print_summary(declared: ProjectConnection, outcome: Outcome) -> None:
    """Print each stream's numbers, table and a few rows, and commands to try next."""
    numbers = ("records read", "rows in table", "seconds")
    shown = make_table("stream", *numbers, "cursor", numbers=numbers)
    for path, metadata in outcome.streams.items():
        cursor = metadata["atlas/cursor_after"].value
        text = cursor if isinstance(cursor, str) else json.dumps(cursor)
        shown.add_row(
            Text(".".join(path[1:]), style="bold"),
            f"{metadata['atlas/records_synced'].value:,}",
            f"{metadata['dagster/row_count'].value:,}",
            f"{metadata['atlas/duration_seconds'].value:.1f}",
            Text(_shorten(text, _CURSOR_WIDTH)),
        )
    console.print(shown)
    for path, metadata in outcome.streams.items():
        if changed := _changed_values(metadata):
            fields = ", ".join(
                f"{field} ({', '.join(f'{count:,} {how}' for how, count in kinds.items())})"
                for field, kinds in changed.items()
            )
            print_line(
                f"{'.'.join(path[1:])}: some values do not fit their columns: {fields}. See "
                "_airbyte_meta and _airbyte_extra of these rows."
            )
    with _open_destination(declared) as destination:
        for path in outcome.streams:
            _print_preview(destination, path)
        if outcome.streams and not outcome.failures:
            _print_next_steps(declared, outcome, destination)


def _print_next_steps(
    declared: ProjectConnection, outcome: Outcome, destination: Destination
) -> None:
    found = outcome.streams.values()
    if not any(metadata["atlas/records_synced"].value for metadata in found):
        console.print("The source had no new records since the last sync; no row was written.\n")
    before = (metadata.get("atlas/cursor_before") for metadata in found)
    if any(cursor is not None and cursor.value != "none" for cursor in before):
        return  # not the first sync
    uri = destination.table_uri(next(iter(outcome.streams)))
    console.print("[bold]What to try next[/]")
    for command, effect in (
        (f"{_find_command()} sync {declared.name}", "continue from the stored cursors"),
        (
            _choose_ui_command(Path.cwd()),
            "see the streams as assets in Dagster's web UI, on port 3000",
        ),
        _make_query(destination.kind, uri),
    ):
        console.print(f"  [cyan]{command}[/]  {effect}", soft_wrap=True)


def _print_preview(destination: Destination, path: TablePath) -> None:
    from atlas_dagster.records.types import METADATA_FIELDS

    own = {column.name for column in METADATA_FIELDS}
    found = destination.preview(path, _PREVIEW_ROWS)
    columns = [name for name in found.column_names if name not in own][:_PREVIEW_COLUMNS]
    console.print(
        _make_relative(destination.table_uri(path)), style="bold", markup=False, soft_wrap=True
    )
    if not columns:
        return
    shown = make_table(*columns, nowrap=columns)
    for row in found.select(columns).to_pylist():
        # Text, because rich would interpret a value such as "[red]".
        shown.add_row(*(Text(_shorten(str(value), _PREVIEW_WIDTH)) for value in row.values()))
    console.print(shown)


@contextmanager
def _open_destination(declared: ProjectConnection) -> Iterator[Destination]:
    from atlas_dagster.orchestration.definitions.resource import AtlasResource

    atlas = AtlasResource.from_environment()
    with closing(atlas.open_destination(declared.connection)) as destination:
        yield destination


def _changed_values(metadata: Mapping[str, dg.MetadataValue[Any]]) -> dict[str, dict[str, int]]:
    """Return how many values of each field became NULL or were cut, by kind of change."""
    found = metadata.get("atlas/changed_values")
    return {} if found is None else found.value


def _make_query(kind: str, uri: str) -> tuple[str, str]:
    """Return the SQL that shows a table, and the purpose of that query."""
    if kind == "postgres":
        schema, name = uri.split("/")[-2:]
        return f'SELECT * FROM "{schema}"."{name}"', "see a table in SQL"  # noqa: S608 - shown only
    return f"SELECT * FROM delta_scan('{_make_relative(uri)}')", "see a table in DuckDB"  # noqa: S608


def _find_command() -> str:
    """Return the command that starts ``atlas`` in the calling folder."""
    found = shutil.which("atlas")
    called = calling_folder() / sys.argv[0]
    return "atlas" if found and Path(found) == called else _make_relative(str(called))


def _choose_ui_command(project: Path) -> str:
    """Return the command that starts Dagster for ``project``."""
    makefile = project / "Makefile"
    has_target = makefile.exists() and re.search(
        r"^[\w ]*\bdev\b[\w ]*:", makefile.read_text(), re.M
    )
    command = "make dev" if has_target else "dagster dev"
    return (
        command
        if project == calling_folder()
        else f"cd {_make_relative(str(project))} && {command}"
    )


def _make_relative(uri: str) -> str:
    """Return a local path relative to the calling folder, and any other URI as it is."""
    return os.path.relpath(uri, calling_folder()) if "://" not in uri else uri


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
