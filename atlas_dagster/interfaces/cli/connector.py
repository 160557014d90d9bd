"""``atlas spec``, ``check``, ``discover`` and ``pull``: calls of a connector without a READ."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.text import Text

from atlas_dagster.errors import AtlasError, FailureType
from atlas_dagster.interfaces.cli.output import (
    CommandListener,
    console,
    exit_code,
    json_option,
    make_table,
    print_error,
    print_json,
    print_line,
    print_logs_hint,
    print_note,
    report_errors,
    show_spinner,
)
from atlas_dagster.interfaces.cli.project import complete_sources, find_connection, find_connections
from atlas_dagster.interfaces.cli.source import (
    SourceOptions,
    open_source,
    runner_option,
    source_command,
)
from atlas_dagster.wording import plural

if TYPE_CHECKING:
    from atlas_dagster.config.form import Field
    from atlas_dagster.protocol.catalog import Catalog, Stream
    from atlas_dagster.source.connection import RunnerChoice
    from atlas_dagster.source.discovered_catalog import Discovery


@click.command()
@click.argument("source", shell_complete=complete_sources)
@source_command
@json_option
def spec(source: str, options: SourceOptions, as_json: bool) -> None:
    """Show the config fields of SOURCE.

    SOURCE is a declared connection, a connector (source-postgres) or an image.
    """
    from atlas_dagster.source.open_connector import read_spec

    with open_source(source, options, CommandListener(logs=options.logs)) as opened:
        found = read_spec(opened.connection, opened.context)
        name = opened.connection.source_name
    if as_json:
        print_json(
            {
                "connectionSpecification": found.connectionSpecification,
                "documentationUrl": found.documentationUrl,
            }
        )
        return
    console.print(f"The config of [bold green]{escape(name)}[/]:")
    _print_fields(found.connectionSpecification)
    if found.documentationUrl:
        print_note(found.documentationUrl)


@click.command()
@click.argument("source", shell_complete=complete_sources)
@source_command
@json_option
def check(source: str, options: SourceOptions, as_json: bool) -> None:
    """Check that SOURCE's connector can reach its source.

    SOURCE is a declared connection, or with --config a connector (source-postgres) or an image.
    """
    from atlas_dagster.reading.ad_hoc import is_adhoc

    print_info = print_note if as_json or is_adhoc(source) else print_line
    listener = CommandListener(print_info, logs=options.logs)
    with open_source(source, options, listener) as opened, opened.open_connector() as connector:
        connector.check()
    if as_json:
        print_json({"source": source, "status": "SUCCEEDED"})
        return
    console.print(f"[bold green]{escape(source)}[/] reached its source.")


@click.command()
@click.argument("sources", nargs=-1, shell_complete=complete_sources)
@click.option("--missing", is_flag=True, help="Only connections without a stored catalog.")
@click.option("--dry-run", is_flag=True, help="Show the changes, and store nothing.")
@source_command
@json_option
def discover(
    sources: tuple[str, ...], missing: bool, dry_run: bool, options: SourceOptions, as_json: bool
) -> None:
    """List the streams of SOURCES.

    SOURCES are declared connections (by default all of them). Their catalogs are stored with all
    changes, also breaking ones. Or SOURCES is one connector (source-postgres) or image, with
    --config.
    """
    from atlas_dagster.reading.ad_hoc import is_adhoc

    if len(sources) == 1 and is_adhoc(sources[0]):
        _discover_undeclared(sources[0], options, as_json)
        return
    for name in sources:
        options.refuse_for_declared(name)
    connections = [find_connection(name) for name in sources] if sources else find_connections()
    listener = CommandListener(print_note if as_json else print_line, logs=options.logs)
    answers: list[dict[str, Any]] = []
    failures: list[FailureType] = []
    for connection in connections:
        try:
            if missing and connection.discovered is not None:
                continue
            with show_spinner(f"Discovering {connection.name} …"), listener.pull_bar():
                run_discover = connection.preview if dry_run else connection.discover
                discovery = run_discover(listener)
        except AtlasError as error:
            failures.append(error.failure_type)
            answers.append({"source": connection.name, "error": str(error)})
            print_error(connection.name, error)
            print_logs_hint(error, options.logs)
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
@click.argument("sources", nargs=-1, shell_complete=complete_sources)
@runner_option
@json_option
@report_errors
def pull(sources: tuple[str, ...], runner: RunnerChoice | None, as_json: bool) -> None:
    """Fetch the images, Python packages and manifests that SOURCES run from.

    SOURCES are declared connections (by default all of them), connectors or images.
    """
    from atlas_dagster.source.connector_ref import ConnectorRef
    from atlas_dagster.source.runner_choice import choose_runner

    options, listener = SourceOptions(runner=runner), CommandListener()
    answers: list[dict[str, Any]] = []
    failures: list[FailureType] = []
    for source in sources or [connection.name for connection in find_connections()]:
        try:
            with (
                open_source(source, options, listener) as opened,
                show_spinner(f"Fetching {source} …"),
                choose_runner(
                    ConnectorRef.resolve(opened.connection), opened.context.limits, listener
                ) as chosen,
            ):
                chosen.prepare()
                ready = chosen.identity()
        except AtlasError as error:
            failures.append(error.failure_type)
            answers.append({"source": source, "error": str(error)})
            print_error(source, error)
            continue
        answers.append({"source": source, "runner": chosen.kind, "ready": ready})
        if not as_json:
            console.print(f"[bold green]{escape(source)}[/] is ready: {escape(chosen.reference)}")
    if as_json:
        print_json(answers)
    sys.exit(exit_code(failures))


def _discover_undeclared(source: str, options: SourceOptions, as_json: bool) -> None:
    listener = CommandListener(logs=options.logs)
    with open_source(source, options, listener) as opened, opened.open_connector() as connector:
        catalog = connector.discover()
    if as_json:
        print_json({"source": source, "streams": catalog.to_json()})
    else:
        _print_streams(source, catalog)


def _print_discovery(source: str, discovery: Discovery, dry_run: bool) -> None:
    streams = discovery.found.catalog.streams
    names = escape(", ".join(str(stream.descriptor) for stream in streams))
    console.print(f"[bold green]{source}[/] offers {plural(len(streams), 'stream')}: {names}")
    for change in discovery.taken:
        console.print(escape(f"  {'would apply' if dry_run else 'applied'} {change}"))
    for change in discovery.found.pending:
        console.print(escape(f"  cannot apply {change}: it contradicts the declaration"))


def _print_streams(source: str, catalog: Catalog) -> None:
    count = plural(len(catalog.streams), "stream")
    console.print(f"[bold green]{escape(source)}[/] offers {count}:")
    shown = make_table("stream", "fields", "primary key", "cursor", "sync modes")
    for stream in catalog.streams:
        shown.add_row(*(Text(cell) for cell in _stream_cells(stream)))
    console.print(shown)


def _stream_cells(stream: Stream) -> tuple[str, ...]:
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
    """Print the top-level fields of a SPEC; ``--json`` prints all of it."""
    from atlas_dagster.config.form import form

    shown = make_table("field", "type", "", "description")
    for field in form(schema):
        marks = (("required", field.required), ("secret", field.secret))
        shown.add_row(
            Text(field.name, style="bold"),
            Text(_describe_type(field)),
            ", ".join(word for word, is_so in marks if is_so),
            Text(_describe(field)),
        )
    console.print(shown)


def _describe_type(field: Field) -> str:
    if field.options:
        return f"one of: {', '.join(option.title for option in field.options)}"
    return f"list of {field.item}" if field.kind == "array" else field.kind


def _describe(field: Field) -> str:
    values = f" One of: {', '.join(map(str, field.values))}." if field.values else ""
    default = f" Default: {field.default}." if field.default not in (None, "") else ""
    return f"{field.description or field.title}{values}{default}"
