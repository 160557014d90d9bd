"""``atlas reap``, ``prune``, ``doctor`` and ``serve``: the work of an administrator."""

from __future__ import annotations

import datetime as dt
import importlib
import sys
from typing import TYPE_CHECKING

import click
from rich.text import Text

from atlas_dagster.errors import ConfigError
from atlas_dagster.interfaces.cli.output import (
    FAILED,
    console,
    json_option,
    print_json,
    print_line,
    report_errors,
)
from atlas_dagster.interfaces.cli.project import (
    enter_project,
    find_connections,
    make_subject,
)
from atlas_dagster.wording import plural

if TYPE_CHECKING:
    from atlas_dagster.source.connection import RunnerChoice

_MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "error": "[red]✗[/]"}


@click.command()
@json_option
@report_errors
def reap(as_json: bool) -> None:
    """Remove connectors that killed runs and commands left behind.

    Connectors of active runs stay. Every sync and the sensor atlas_reaper do the same.
    """
    import dagster as dg

    from atlas_dagster.orchestration.definitions.resource import AtlasResource
    from atlas_dagster.orchestration.operations.cleanup import end_dead_runs, reap_ended
    from atlas_dagster.reading.ad_hoc import reap_adhoc

    enter_project()
    with dg.DagsterInstance.get() as instance:
        ended = end_dead_runs(instance)
        atlas = AtlasResource.from_environment()
        removed = reap_ended(instance, atlas) + reap_adhoc()
        for subject in map(make_subject, find_connections()):
            connection = subject.ref and subject.ref.connection
            if connection and connection.executor and connection.executor.docker_host:
                removed += reap_ended(instance, atlas, connection)
    if as_json:
        print_json({"removed": removed, "ended_runs": list(ended)})
        return
    for name in removed:
        print_line(f"Removed {name}.")
    for run in ended:
        print_line(f"Reported run {run} as failed: its process is gone.")
    if not removed and not ended:
        print_line("No connectors were left behind.")


@click.command()
@click.option(
    "--days",
    type=click.IntRange(min=1),
    required=True,
    help="Delete runs that ended more than N days ago.",
)
@json_option
@report_errors
def prune(days: int, as_json: bool) -> None:
    """Delete runs that ended more than --days ago, with their events and compute logs.

    This concerns the runs of all jobs. Some runs stay at any age: those with the newest event of an
    asset, partition or check, the newest run of each schedule, runs that a remaining run retried,
    runs of an active backfill, and runs that your own sensors requested with a run key. The state
    of streams is stored beside their tables, and stays too.
    """
    import dagster as dg

    from atlas_dagster.orchestration.operations.pruning import prune as prune_runs

    enter_project()
    with dg.DagsterInstance.get() as instance:
        deleted = prune_runs(instance, dt.datetime.now(dt.UTC) - dt.timedelta(days=days))
    if as_json:
        print_json({"deleted": deleted})
        return
    runs, their = plural(deleted, "run"), "its" if deleted == 1 else "their"
    ago = "a day" if days == 1 else f"{days} days"
    print_line(
        f"Deleted {runs} that ended more than {ago} ago, with {their} events and compute logs."
    )


@click.command()
@json_option
@report_errors
def doctor(as_json: bool) -> None:
    """Find problems that would stop a sync: Docker, images, variables, storage, disk, versions."""
    import dagster as dg

    from atlas_dagster.orchestration.definitions.resource import AtlasResource
    from atlas_dagster.orchestration.operations.doctor import examine

    subjects = [make_subject(connection) for connection in find_connections()]
    with dg.DagsterInstance.get() as instance:
        findings = list(examine(instance, AtlasResource.from_environment(), subjects))
    if as_json:
        print_json(findings)
    else:
        for finding in findings:
            line = Text(f" {finding.about}: ", style="bold")
            console.print(_MARKS[finding.verdict], end="")
            console.print(line.append(finding.message, style="not bold"), soft_wrap=True)
    if any(finding.verdict == "error" for finding in findings):
        sys.exit(FAILED)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port to listen on.")
@click.option(
    "--token",
    envvar="ATLAS_TOKEN",
    show_envvar=True,
    help="Clients must send this token (Authorization: Bearer …). Required for a public --host.",
)
@click.option(
    "--allow",
    multiple=True,
    metavar="CONNECTOR",
    help="Only this connector or image; may be repeated. Default: all of the registry.",
)
@click.option(
    "--runner",
    type=click.Choice(["docker", "auto", "python"]),
    default="docker",
    show_default=True,
    help="Where connectors run.",
)
@click.option(
    "--containers",
    type=click.IntRange(min=1),
    help="Connectors at once. Default: the number of processors, and at least 4.",
)
@report_errors
def serve(
    host: str,
    port: int,
    token: str | None,
    allow: tuple[str, ...],
    runner: RunnerChoice,
    containers: int | None,
) -> None:
    """Serve connectors over HTTP to programs in any language; see http://HOST:PORT/docs."""
    try:
        http = importlib.import_module("atlas_dagster.interfaces.http")
    except ImportError as error:
        raise ConfigError(
            f"The HTTP server needs the extra http ({error.name or error} is missing); "
            "install it: pip install 'atlas-dagster[http]'"
        ) from error
    http.serve(host, port, token, allow=allow, runner=runner, containers=containers)
