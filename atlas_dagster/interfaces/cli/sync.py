"""``atlas sync``: the connection's own assets, materialized in this process."""

import json
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, get_args

import dagster as dg
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from atlas_dagster.destinations.base import Destination, TablePath
from atlas_dagster.destinations.postgres.destination import PostgresDestination
from atlas_dagster.errors import FailureType
from atlas_dagster.interfaces.cli.declared import ProjectConnection
from atlas_dagster.interfaces.cli.output import note
from atlas_dagster.interfaces.cli.project import called_in
from atlas_dagster.orchestration.automation.retries import FAILURE_TAG
from atlas_dagster.orchestration.automation.schedule import CONNECTION_TAG
from atlas_dagster.orchestration.dagster_internals import (
    MAX_RETRIES_TAG,
    StepFailureData,
    make_new_run_id,
)
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.definitions.translator import ConnectionAssets
from atlas_dagster.orchestration.operations.cleanup import process_tag
from atlas_dagster.orchestration.operations.pools import wait_for_turn
from atlas_dagster.records.types import METADATA_FIELDS
from atlas_dagster.runners.owner import this_container
from atlas_dagster.sync.state_edits import find_streams

_PREVIEW_ROWS = 3
_PREVIEW_COLUMNS = 4
_PREVIEW_WIDTH = 26
_CURSOR_WIDTH = 100


@dataclass
class Outcome:
    """What a sync did: metadata by the path of the table, and what failed."""

    streams: dict[tuple[str, ...], Mapping[str, dg.MetadataValue[Any]]] = field(
        default_factory=dict
    )
    failures: list[str] = field(default_factory=list)
    failure_type: FailureType = "system_error"
    #: What the connector said.
    log: Path = Path()


def sync_connection(
    declared: ProjectConnection,
    defined: ConnectionAssets,
    streams: Collection[str],
    refresh: str | None = None,
) -> Outcome:
    """Materialize the connection's streams, or only the named ones, once no other run of it is.

    ``defined`` is what ``declared`` is now. ``refresh``: remove or retain, the option of a run.

    Raises:
        UnknownStreamError: a named stream is not one of the connection's.
    """
    names = find_streams(declared.name, defined.streams, streams)
    tables = {defined.key(path): path for path in defined.tables.values()}
    selected = [defined.key(defined.tables[name]) for name in names]
    job = declared.definitions().resolve_implicit_global_asset_job_def()
    outcome = Outcome()
    config: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    if refresh is not None:
        config["ops"] = {f"{declared.name}__sync": {"config": {"refresh": refresh}}}
    with (
        dg.DagsterInstance.get() as instance,
        _log_file(instance, declared.name).open("w") as log,
        redirect_stdout(log),
        _stderr_of_children(log),
    ):
        outcome.log = Path(log.name)
        wait_for_turn(instance, defined.connection, note)
        run_id = make_new_run_id()
        result = job.execute_in_process(
            run_id=run_id,
            run_config=config,
            instance=instance,
            asset_selection=selected,
            raise_on_error=False,
            # Nobody but the user runs it again.
            tags={
                CONNECTION_TAG: declared.name,
                MAX_RETRIES_TAG: "0",
                **process_tag(run_id, os.getpid()),
                **_whereabouts(instance),
            },
        )
        run = instance.get_run_by_id(run_id)
        outcome.failure_type = _failure_type(run.tags if run else {})
    for event in result.all_events:
        if event.is_step_failure:
            if _is_interrupted(event.step_failure_data):
                raise KeyboardInterrupt
            outcome.failures.append(_failure_sentence(event.step_failure_data))
    for materialization in result.get_asset_materialization_events():
        done = materialization.materialization
        outcome.streams[tables[done.asset_key]] = done.metadata
    return outcome


def _whereabouts(instance: dg.DagsterInstance) -> dict[str, str]:
    """Tags by which Dagster's launcher finds this process, as it finds those that it launches.

    Without them its monitoring takes the run for one whose container is gone.
    """
    if type(instance.run_launcher).__name__ != "DockerRunLauncher":
        return {}
    from dagster_docker.docker_run_launcher import DOCKER_CONTAINER_ID_TAG

    return {DOCKER_CONTAINER_ID_TAG: this_container()}


def _failure_type(tags: Mapping[str, str]) -> FailureType:
    found = tags.get(FAILURE_TAG)
    return next((kind for kind in get_args(FailureType) if kind == found), "system_error")


@contextmanager
def _stderr_of_children(log: IO[str]) -> Iterator[None]:
    """Have processes that are started write their errors into ``log``.

    Dagster starts some that mirror logs. Ctrl-C in a terminal reaches them, too, and each would
    print a traceback. What this process prints goes where it went.
    """
    ours = sys.stderr
    with os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace") as terminal:
        if _is_own(ours):
            sys.stderr = terminal
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal.fileno(), 2)
            sys.stderr = ours


def _is_own(stream: IO[str]) -> bool:
    try:
        return stream.fileno() == 2
    except (OSError, ValueError):
        return False


def _log_file(instance: dg.DagsterInstance, connection: str) -> Path:
    folder = Path(instance.root_directory) / "sync_logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{connection}.log"


def _is_interrupted(failure: StepFailureData) -> bool:
    error = failure.error
    return error is not None and error.cls_name == dg.DagsterExecutionInterruptedError.__name__


def _failure_sentence(failure: StepFailureData) -> str:
    """What Atlas said, or for the unexpected the innermost exception."""
    if failure.user_failure_data is not None:
        return str(failure.user_failure_data.description)
    error = failure.error
    while error is not None and error.cause is not None:
        error = error.cause
    return "The step failed." if error is None else error.message.strip()


def summary(declared: ProjectConnection, outcome: Outcome) -> dict[str, Any]:
    """What a sync did, for machines."""
    atlas = AtlasResource.from_environment()
    with closing(atlas.open_destination(declared.connection)) as destination:
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


def print_summary(console: Console, declared: ProjectConnection, outcome: Outcome) -> None:
    """Per stream what was read and written, where it is, a few rows, and what to try next."""
    atlas = AtlasResource.from_environment()
    with closing(atlas.open_destination(declared.connection)) as destination:
        _print_outcome(console, declared, outcome, destination)


def _print_outcome(
    console: Console, declared: ProjectConnection, outcome: Outcome, destination: Destination
) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stream", style="bold", no_wrap=True)
    table.add_column("records read", justify="right")
    table.add_column("rows in table", justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("cursor", overflow="fold")
    for path, metadata in outcome.streams.items():
        cursor = metadata["atlas/cursor_after"].value
        table.add_row(
            ".".join(path[1:]),
            f"{metadata['atlas/records_synced'].value:,}",
            f"{metadata['dagster/row_count'].value:,}",
            f"{metadata['atlas/duration_seconds'].value:.1f}",
            Text(
                _shortened(cursor if isinstance(cursor, str) else json.dumps(cursor), _CURSOR_WIDTH)
            ),
        )
    console.print(table)
    for path, metadata in outcome.streams.items():
        if changed := _changed_values(metadata):
            told = ", ".join(
                f"{field} ({', '.join(f'{count:,} {how}' for how, count in kinds.items())})"
                for field, kinds in changed.items()
            )
            console.print(
                f"{'.'.join(path[1:])}: values are not in their columns as the source wrote them: "
                f"{told}. See _airbyte_meta and _airbyte_extra of these rows.",
                markup=False,
                soft_wrap=True,
            )
    for path in outcome.streams:
        _print_preview(console, destination, path)
    if not outcome.streams or outcome.failures:
        return
    if not any(metadata["atlas/records_synced"].value for metadata in outcome.streams.values()):
        console.print("The source had nothing new since the stored cursors; no row was written.\n")
    before = (metadata.get("atlas/cursor_before") for metadata in outcome.streams.values())
    if any(cursor is not None and cursor.value != "none" for cursor in before):
        return  # not for the first time
    some = destination.table_uri(next(iter(outcome.streams)))
    atlas = _this_command()
    console.print("[bold]What to try next[/]")
    for command, effect in (
        (f"{atlas} sync {declared.name}", "once more: it continues from the stored cursors"),
        (_web_ui(Path.cwd()), "the same streams as assets in Dagster's web UI, on port 3000"),
        _reading(destination.kind, some),
    ):
        console.print(f"  [cyan]{command}[/]  {effect}", soft_wrap=True)


def _changed_values(metadata: Mapping[str, dg.MetadataValue[Any]]) -> dict[str, dict[str, int]]:
    """How many values of each field became NULL, or were cut, by what was done with them."""
    found = metadata.get("atlas/changed_values")
    return {} if found is None else found.value


def _reading(kind: str, uri: str) -> tuple[str, str]:
    """How to look into a table, and with what."""
    if kind == PostgresDestination.kind:
        schema, table = uri.split("/")[-2:]
        return f'SELECT * FROM "{schema}"."{table}"', "a table in SQL"  # noqa: S608 - shown only
    return f"SELECT * FROM delta_scan('{_shown(uri)}')", "a table in DuckDB"  # noqa: S608 - shown only


def _print_preview(console: Console, destination: Destination, path: TablePath) -> None:
    own = {column.name for column in METADATA_FIELDS}
    found = destination.preview(path, _PREVIEW_ROWS)
    columns = [name for name in found.column_names if name not in own][:_PREVIEW_COLUMNS]
    uri = _shown(destination.table_uri(path))
    console.print(uri, style="bold", markup=False, soft_wrap=True)
    if not columns:
        return
    preview = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        preview.add_column(column, no_wrap=True)
    for row in found.select(columns).to_pylist():
        # As Text, for rows may hold what looks like rich's markup.
        preview.add_row(*(Text(_shortened(str(value), _PREVIEW_WIDTH)) for value in row.values()))
    console.print(preview)


def _this_command() -> str:
    """``atlas`` as it can be called where the command was called."""
    found = shutil.which("atlas")
    called = called_in() / sys.argv[0]
    return "atlas" if found and Path(found) == called else _shown(str(called))


def _web_ui(project: Path) -> str:
    """What starts Dagster on ``project``, in its folder."""
    makefile = project / "Makefile"
    has_target = makefile.exists() and re.search(
        r"^[\w ]*\bdev\b[\w ]*:", makefile.read_text(), re.M
    )
    command = "make dev" if has_target else "dagster dev"
    return command if project == called_in() else f"cd {_shown(str(project))} && {command}"


def _shown(uri: str) -> str:
    """A local path relative to where the command was called, which need not be the project."""
    return os.path.relpath(uri, called_in()) if "://" not in uri else uri


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
