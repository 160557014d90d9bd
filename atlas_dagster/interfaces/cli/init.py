"""``atlas init``: declare a connection by answering questions."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import replace
from rich.markup import escape
from rich.text import Text

from atlas_dagster.config.form import form
from atlas_dagster.config.validation import validate
from atlas_dagster.errors import AtlasError, ConfigError
from atlas_dagster.interfaces.cli.output import (
    CommandListener,
    console,
    make_table,
    print_error,
    print_line,
    print_note,
    print_refusal,
    report_errors,
    show_spinner,
)
from atlas_dagster.interfaces.cli.project import (
    complete_connectors,
    find_connection,
    find_project,
    open_context,
)
from atlas_dagster.interfaces.cli.questions import Questions, add_defaults
from atlas_dagster.protocol.catalog import Catalog, configure
from atlas_dagster.registry import get_connector_info, search_connectors

if TYPE_CHECKING:
    from atlas_dagster.protocol.messages import Spec
    from atlas_dagster.source.connection import Connection
    from atlas_dagster.source.discovered_catalog import Discovered
    from atlas_dagster.source.run_context import RunContext

_MOST_FOUND = 9


@click.command()
@click.argument("connector", required=False, shell_complete=complete_connectors)
@click.option("--name", help="Name of the connection.")
@report_errors
def init(connector: str | None, name: str | None) -> None:
    """Declare a new connection: ask for CONNECTOR's config, check it, and pick streams.

    Secrets go to .env, everything else to the connection's defs.yaml. Both are written at the end.
    """
    chosen = connector or _ask_connector()
    info = get_connector_info(chosen)

    from atlas_dagster.components.scaffolding import write_connection, write_secrets
    from atlas_dagster.orchestration.step.projections import project_discovery
    from atlas_dagster.source.connection import Connection

    folder = _ask_name(name, chosen, find_project().defs_module_path)
    listener = CommandListener()
    with open_context(listener) as (instance, context):
        undeclared = Connection(name=folder.name, connector=chosen)
        connection, secrets = _ask_config(undeclared, context, listener)
        with show_spinner("Discovering streams …"):
            found = _discover(connection, _with_secrets(context, secrets))
        declared: dict[str, Any] = {"connector": chosen, "config": connection.config}
        picked = _pick_streams(found.catalog if found else None)
        declared["streams"] = [{"name": stream} for stream in picked]
        declared["schedule"] = _ask_schedule()
        if secrets:
            write_secrets(Path(".env"), secrets)
        given = {field: value for field, value in declared.items() if value}
        file = write_connection(folder, given, info.docs_url)
        if found is not None:
            importlib.invalidate_caches()
            find_connection(folder.name).store_catalog(found)
            project_discovery(instance, connection, found, print_note)
    _print_result(folder.name, file, secrets, found)


def _ask_name(given: str | None, connector: str, parent: Path) -> Path:
    """Return the folder of the new connection."""
    while True:
        default = re.sub(r"\W+", "_", connector.removeprefix("source-"))
        name = given or click.prompt("Name of the connection", default=default)
        folder = parent / name
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]*", name):
            problem = f"'{name}' is not a valid name; use letters, digits and underscores."
        elif folder.exists():
            problem = f"A connection '{name}' exists already; choose another name."
        else:
            return folder
        if given:
            raise ConfigError(problem)
        print_refusal(problem)


def _ask_config(
    connection: Connection, context: RunContext, listener: CommandListener
) -> tuple[Connection, Mapping[str, str]]:
    """Return the connection with a config that :func:`_accept_config` accepts, and its secrets."""
    from atlas_dagster.source.open_connector import read_spec

    with show_spinner(f"Asking {connection.source_name} for its SPEC …"), listener.pull_bar():
        spec = read_spec(connection, context)
    if spec.documentationUrl:
        print_note(f"Its documentation: {spec.documentationUrl}")
    fields = form(spec.connectionSpecification)
    questions = Questions(connection.name, os.environ)
    answers: Mapping[str, Any] = connection.config
    while True:
        answers = questions.ask(fields, answers)
        connection = connection.model_copy(update={"config": add_defaults(fields, answers)})
        if _accept_config(connection, _with_secrets(context, questions.secrets), spec):
            return connection, questions.secrets


def _ask_schedule() -> str:
    from atlas_dagster.orchestration.automation.cron import Schedule

    while True:
        schedule: str = click.prompt(
            'Schedule, as cron in UTC ("0 * * * *" is hourly; Enter for none)',
            default="",
            show_default=False,
        )
        try:
            if schedule:
                Schedule.of(schedule)
            return schedule
        except ConfigError as error:
            print_refusal(str(error))


def _ask_connector() -> str:
    while True:
        query = click.prompt("Which source? (a name or a part of it)")
        found = search_connectors(query)[:_MOST_FOUND]
        if not found:
            print_refusal(f"No connector matches {query}.")
            continue
        for number, info in enumerate(found, 1):
            line = f"  {number}. {info.title}  {info.name}"
            console.print(line, markup=False)
        number = click.prompt(
            "Which of these? (0: another search)", default=1, type=click.IntRange(0, len(found))
        )
        if number:
            return found[number - 1].name


def _with_secrets(context: RunContext, secrets: Mapping[str, str]) -> RunContext:
    return replace(context, environ={**os.environ, **secrets})


def _accept_config(connection: Connection, context: RunContext, spec: Spec) -> bool:
    """Return whether the config passes CHECK, or the user keeps it although it fails."""
    from atlas_dagster.source.open_connector import open_connector

    try:
        validate(connection.config, schema=spec.connectionSpecification, where="The config")
        with (
            show_spinner("Checking the connection …"),
            open_connector(connection, context, spec=spec) as connector,
        ):
            connector.check()
    except AtlasError as error:
        print_error("Check failed", error)
        return not click.confirm("Change the answers? (n keeps them)", default=True)
    console.print(f"[bold green]{escape(connection.name)}[/] reached its source.")
    return True


def _discover(connection: Connection, context: RunContext) -> Discovered | None:
    """Return the result of DISCOVER; None if it fails."""
    from atlas_dagster.source.discovered_catalog import discover

    try:
        return discover(connection, context, None)
    except AtlasError as error:
        print_error("Discovery failed", error)
        return None


def _pick_streams(catalog: Catalog | None) -> list[str]:
    """Return the names of the chosen streams; an empty list means all, also future ones."""
    if catalog is None:
        return []
    shown = make_table("", "stream", "sync mode")
    names = [stream.descriptor.name for stream in catalog.streams]
    for number, stream in enumerate(catalog.streams, 1):
        configured = configure(stream)
        mode = f"{configured.sync_mode}, {configured.destination_sync_mode}"
        shown.add_row(str(number), Text(str(stream.descriptor)), mode)
    console.print(shown)
    while True:
        text = click.prompt(
            "Which streams? Numbers or names, separated by commas; Enter for all",
            default="",
            show_default=False,
        )
        words = [word for word in re.split(r"\s*,\s*", text.strip()) if word]
        by_number = {str(number): name for number, name in enumerate(names, 1)}
        picked = [by_number.get(word, word) for word in words]
        unknown = [name for name in picked if name not in names]
        if not unknown:
            return list(dict.fromkeys(picked))
        print_refusal(f"There is no stream {', '.join(unknown)}.")


def _print_result(
    name: str, file: Path, secrets: Mapping[str, str], found: Discovered | None
) -> None:
    console.print(f"\n[bold green]{escape(name)}[/] is declared in {escape(os.path.relpath(file))}")
    if secrets:
        print_line(f"Secrets are in .env: {', '.join(secrets)}")
    if found is None:
        console.print(f"Next: [cyan]atlas discover {name}[/], then [cyan]atlas sync {name}[/]")
    else:
        console.print(f"Next: [cyan]atlas sync {name}[/]")
