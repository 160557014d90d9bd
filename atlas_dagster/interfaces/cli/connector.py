"""``atlas spec``, ``check``, ``discover`` and ``pull``: what a connector answers."""

import sys
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from atlas_dagster.errors import AtlasError, FailureType
from atlas_dagster.interfaces.cli import completion
from atlas_dagster.interfaces.cli.output import (
    complain,
    console,
    exit_code,
    hint_at_logs,
    json_option,
    note,
    one_sentence,
    print_json,
    say,
    waiting,
)
from atlas_dagster.interfaces.cli.progress import pull_bar
from atlas_dagster.interfaces.cli.source import (
    at_work,
    connector_log,
    opened,
    reached,
    require_own_config,
    source_options,
)
from atlas_dagster.wording import plural

if TYPE_CHECKING:
    from atlas_dagster.config.form import Field
    from atlas_dagster.protocol.catalog import Catalog, Stream
    from atlas_dagster.source.connection import RunnerChoice
    from atlas_dagster.source.discovered_catalog import Discovery


@click.command()
@click.argument("source", shell_complete=completion.sources)
@source_options
@json_option
@one_sentence
def spec(
    source: str,
    config: str | None,
    runner: "RunnerChoice | None",
    logs: bool,
    validate: bool,
    as_json: bool,
) -> None:
    """Say what config SOURCE takes: a connection, a connector (source-postgres) or an image."""
    from atlas_dagster.source.open import spec_of

    with (
        opened(source, config=config, runner=runner, logs=logs, validate=validate) as it,
        pull_bar(),
    ):
        found = spec_of(it.connection, it.caller)
        name = it.connection.source_name
    if as_json:
        print_json(
            {
                "connectionSpecification": found.connectionSpecification,
                "documentationUrl": found.documentationUrl,
            }
        )
        return
    console.print(f"[bold green]{escape(name)}[/] takes:")
    _print_fields(found.connectionSpecification)
    if found.documentationUrl:
        note(found.documentationUrl)


@click.command()
@click.argument("source", shell_complete=completion.sources)
@source_options
@json_option
@one_sentence
def check(
    source: str,
    config: str | None,
    runner: "RunnerChoice | None",
    logs: bool,
    validate: bool,
    as_json: bool,
) -> None:
    """Ask SOURCE's connector whether it can reach its source.

    SOURCE is a declared connection, or with --config a connector (source-postgres) or an image.
    """
    from atlas_dagster.reading.ad_hoc import is_adhoc

    explain = note if as_json or is_adhoc(source) else say
    with (
        opened(
            source, config=config, runner=runner, logs=logs, validate=validate, explain=explain
        ) as it,
        pull_bar(),
        at_work(it) as connector,
    ):
        connector.check()
    if as_json:
        print_json({"source": source, "status": "SUCCEEDED"})
        return
    console.print(f"[bold green]{escape(source)}[/] reached its source.")


@click.command()
@click.argument("sources", nargs=-1, shell_complete=completion.sources)
@click.option("--missing", is_flag=True, help="Only connections whose streams are not known yet.")
@click.option("--dry-run", is_flag=True, help="Show what has changed, and store nothing.")
@source_options
@json_option
@one_sentence
def discover(
    sources: tuple[str, ...],
    missing: bool,
    dry_run: bool,
    config: str | None,
    runner: "RunnerChoice | None",
    logs: bool,
    validate: bool,
    as_json: bool,
) -> None:
    """Ask sources which streams they offer.

    Of declared connections, all of them unless some are named, the answer is kept, with all changes
    since the last time, breaking ones too. A connector (source-postgres) or an image may be asked
    too, with --config.
    """
    from atlas_dagster.reading.ad_hoc import is_adhoc

    if len(sources) == 1 and is_adhoc(sources[0]):
        with (
            opened(sources[0], config=config, runner=runner, logs=logs, validate=validate) as it,
            pull_bar(),
            reached(it) as (_, catalog),
        ):
            pass
        if as_json:
            print_json({"source": sources[0], "streams": catalog.to_json()})
        else:
            _print_streams(sources[0], catalog)
        return
    from atlas_dagster.interfaces.cli.declared import (
        declared_connections,
        discover_catalog,
        find_declared,
        preview_catalog,
    )

    for name in sources:
        require_own_config(name, config, runner, validate=validate)
    ask = preview_catalog if dry_run else discover_catalog
    declared = [find_declared(name) for name in sources] if sources else declared_connections()
    log = connector_log(logs)
    answers: list[dict[str, Any]] = []
    failures: list[FailureType] = []
    for connection in declared:
        try:
            if missing and connection.is_discovered:
                continue
            with waiting(f"Discovering {connection.name} …"), pull_bar():
                discovery = ask(connection, note if as_json else say, log)
        except AtlasError as error:
            failures.append(error.failure_type)
            answers.append({"source": connection.name, "error": str(error)})
            complain(connection.name, error)
            hint_at_logs(error, logs)
            continue
        answers.append(
            {
                "source": connection.name,
                "streams": discovery.found.catalog.to_json(),
                "taken": [str(change) for change in discovery.taken],
                "pending": [str(change) for change in discovery.found.pending],
            }
        )
        if not as_json:
            _print_discovery(connection.name, discovery, dry_run)
    if as_json:
        print_json(answers)
    sys.exit(exit_code(failures))


@click.command()
@click.argument("sources", nargs=-1, shell_complete=completion.sources)
@click.option(
    "--runner",
    type=click.Choice(["auto", "docker", "python"]),
    help="Where a connector is to run that is not declared.",
)
@json_option
@one_sentence
def pull(sources: tuple[str, ...], runner: "RunnerChoice | None", as_json: bool) -> None:
    """Fetch what SOURCES run from: images, Python packages, manifests.

    SOURCES are declared connections (all of them by default), connectors or images.
    """
    from atlas_dagster.source.connector_ref import ConnectorRef
    from atlas_dagster.source.runner_choice import choose_runner

    if not sources:
        from atlas_dagster.interfaces.cli.declared import declared_connections

        sources = tuple(connection.name for connection in declared_connections())
    answers: list[dict[str, Any]] = []
    failures: list[FailureType] = []
    for source in sources:
        try:
            with (
                opened(source, runner=runner) as it,
                waiting(f"Fetching {source} …"),
                pull_bar(),
                choose_runner(
                    ConnectorRef.resolve(it.connection), it.caller.executor, it.caller.explain
                ) as chosen,
            ):
                chosen.prepare()
                ready = chosen.identity()
        except AtlasError as error:
            failures.append(error.failure_type)
            answers.append({"source": source, "error": str(error)})
            complain(source, error)
            continue
        answers.append({"source": source, "runner": chosen.kind, "ready": ready})
        if not as_json:
            console.print(f"[bold green]{escape(source)}[/] is ready: {escape(chosen.reference)}")
    if as_json:
        print_json(answers)
    sys.exit(exit_code(failures))


def _print_discovery(source: str, discovery: "Discovery", dry_run: bool) -> None:
    """The streams, and what has changed since the last time."""
    offered = [str(stream.descriptor) for stream in discovery.found.catalog.streams]
    names = escape(", ".join(offered))
    console.print(f"[bold green]{source}[/] offers {plural(len(offered), 'stream')}: {names}")
    for change in discovery.taken:
        console.print(escape(f"  {'would take' if dry_run else 'took'} {change}"))
    for change in discovery.found.pending:
        console.print(escape(f"  cannot take {change}: the connection declares otherwise"))


def _print_streams(source: str, catalog: "Catalog") -> None:
    console.print(
        f"[bold green]{escape(source)}[/] offers {plural(len(catalog.streams), 'stream')}:"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("stream", "fields", "primary key", "cursor", "sync modes"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("stream", "field"))
    for stream in catalog.streams:
        table.add_row(*(Text(cell) for cell in _cells(stream)))
    console.print(table)


def _cells(stream: "Stream") -> tuple[str, ...]:
    properties = stream.json_schema.get("properties")
    key = ", ".join(".".join(path) for path in stream.source_defined_primary_key)
    return (
        str(stream.descriptor),
        str(len(properties)) if isinstance(properties, dict) else "",
        key,
        ".".join(stream.default_cursor_field),
        ", ".join(stream.supported_sync_modes),
    )


def _print_fields(schema: dict[str, Any]) -> None:
    """The top level of a SPEC, and what each choice is between; all of it is in ``--json``."""
    from atlas_dagster.config.form import form

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("field", "type", "", "what"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("stream", "field"))
    for field in form(schema):
        marks = (("required", field.required), ("secret", field.secret))
        table.add_row(
            Text(field.name, style="bold"),
            Text(_kind(field)),
            ", ".join(word for word, is_so in marks if is_so),
            Text(_about(field)),
        )
    console.print(table)


def _kind(field: "Field") -> str:
    if field.options:
        return f"one of: {', '.join(option.title for option in field.options)}"
    return f"list of {field.item}" if field.kind == "array" else field.kind


def _about(field: "Field") -> str:
    values = f" One of: {', '.join(map(str, field.values))}." if field.values else ""
    default = f" Default: {field.default}." if field.default not in (None, "") else ""
    return f"{field.description or field.title}{values}{default}"
