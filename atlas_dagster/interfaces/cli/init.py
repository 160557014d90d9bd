"""``atlas init``: from a connector's name to a declared connection, by questions."""

import importlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from atlas_dagster.config.form import form
from atlas_dagster.config.validation import validate
from atlas_dagster.errors import AtlasError, ConfigError
from atlas_dagster.interfaces.cli import completion
from atlas_dagster.interfaces.cli.output import complain, console, note, one_sentence, waiting
from atlas_dagster.interfaces.cli.progress import pull_bar
from atlas_dagster.interfaces.cli.questions import Questions, with_defaults
from atlas_dagster.protocol.catalog import Catalog, configure
from atlas_dagster.registry import get_connector_info, search_connectors

if TYPE_CHECKING:
    from atlas_dagster.source.connection import Connection
    from atlas_dagster.source.discovered_catalog import Discovered
    from atlas_dagster.source.open import Caller

_FOUND = 9


@click.command()
@click.argument("connector", required=False, shell_complete=completion.connectors)
@click.option("--name", help="What to call the connection.")
@one_sentence
def init(connector: str | None, name: str | None) -> None:
    """Declare a new connection: asks what CONNECTOR needs, CHECKs it, lets you pick streams.

    Secrets go to .env, the rest to the connection's defs.yaml. Nothing is written before the end.
    """
    chosen = connector or _find_connector()
    info = get_connector_info(chosen)

    # From here on Dagster is needed, which takes seconds.
    import dagster as dg

    from atlas_dagster.components.writing import write_connection, write_secrets
    from atlas_dagster.interfaces.cli.declared import connections_folder, find_declared
    from atlas_dagster.interfaces.cli.project import enter_project
    from atlas_dagster.orchestration.definitions.resource import AtlasResource
    from atlas_dagster.source.connection import Connection
    from atlas_dagster.source.open import write_down

    enter_project()
    folder = _ask_name(name, chosen, connections_folder())
    with dg.DagsterInstance.get() as instance:
        atlas = AtlasResource.from_environment()
        caller = atlas.caller(instance, None, explain=note, log=lambda *_: None)
        # Nothing is written down of what may come to nothing.
        books, caller.books = caller.books, None
        connection, secrets = _ask_config(Connection(name=folder.name, connector=chosen), caller)
        with waiting("Asking which streams there are …"):
            found = _discover(connection, caller)
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
            find_declared(folder.name).keep(found)
            if books is not None:
                write_down(books, folder.name, found)
    _tell(folder.name, file, secrets, found)


def _ask_name(given: str | None, connector: str, parent: Path) -> Path:
    """The folder of a connection that is not there yet."""
    while True:
        default = re.sub(r"\W+", "_", connector.removeprefix("source-"))
        name = given or click.prompt("Name of the connection", default=default)
        folder = parent / name
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]*", name):
            wrong = f"'{name}' is no name: letters, digits and underscores only."
        elif folder.exists():
            wrong = f"There is a connection '{name}' already; choose another name."
        else:
            return folder
        if given:
            raise ConfigError(wrong)
        console.print(wrong, style="red", markup=False, soft_wrap=True)


def _ask_config(
    connection: "Connection", caller: "Caller"
) -> tuple["Connection", Mapping[str, str]]:
    """The connection with a config that passes CHECK, or is kept as it is; and its secrets."""
    from atlas_dagster.source.open import spec_of

    with waiting(f"Asking {connection.source_name} what it needs …"), pull_bar():
        spec = spec_of(connection, caller)
    if spec.documentationUrl:
        note(f"Its documentation: {spec.documentationUrl}")
    fields = form(spec.connectionSpecification)
    questions = Questions(connection.name, os.environ)
    answers: Mapping[str, Any] = connection.config
    while True:
        answers = questions.ask(fields, answers)
        caller.environ = {**os.environ, **questions.secrets}
        connection = connection.model_copy(update={"config": with_defaults(fields, answers)})
        if _is_good(connection, caller, spec.connectionSpecification):
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
            console.print(str(error), style="red", markup=False, soft_wrap=True)


def _find_connector() -> str:
    while True:
        query = click.prompt("Which source? (a name, or what it is like)")
        found = search_connectors(query)[:_FOUND]
        if not found:
            console.print(f"Nothing is like {query}.", style="red", markup=False, soft_wrap=True)
            continue
        for number, info in enumerate(found, 1):
            line = f"  {number}. {info.title}  {info.name}"
            console.print(line, markup=False)
        number = click.prompt(
            "Which of these? (0: another search)", default=1, type=click.IntRange(0, len(found))
        )
        if number:
            return found[number - 1].name


def _is_good(connection: "Connection", caller: "Caller", schema: Mapping[str, Any]) -> bool:
    """Whether the config passes CHECK, or the user takes it as it is."""
    from atlas_dagster.source.open import connected

    try:
        validate(connection.config, schema=schema, where="The config")
        with (
            waiting("Checking the connection …"),
            connected(connection, caller, schema) as connector,
        ):
            connector.check()
    except AtlasError as error:
        complain("Not yet", error)
        return not click.confirm("Change the answers? (No keeps them)", default=True)
    console.print(f"[bold green]{escape(connection.name)}[/] reached its source.")
    return True


def _discover(connection: "Connection", caller: "Caller") -> "Discovered | None":
    """What the connection offers; None where it does not answer yet."""
    from atlas_dagster.source.open import discover

    try:
        return discover(connection, caller, None)
    except AtlasError as error:
        complain("No streams yet", error)
        return None


def _pick_streams(catalog: Catalog | None) -> list[str]:
    """Names; empty for all, also those that come later."""
    if catalog is None:
        return []
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "stream", "how"):
        table.add_column(heading)
    names = [stream.descriptor.name for stream in catalog.streams]
    for number, stream in enumerate(catalog.streams, 1):
        configured = configure(stream)
        how = f"{configured.sync_mode}, {configured.destination_sync_mode}"
        table.add_row(str(number), Text(str(stream.descriptor)), how)
    console.print(table)
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
        console.print(
            f"There is no stream {', '.join(unknown)}.", style="red", markup=False, soft_wrap=True
        )


def _tell(name: str, file: Path, secrets: Mapping[str, str], found: "Discovered | None") -> None:
    console.print(f"\n[bold green]{escape(name)}[/] is declared in {escape(os.path.relpath(file))}")
    if secrets:
        console.print(f"Secrets are in .env: {', '.join(secrets)}", markup=False)
    if found is None:
        console.print(f"Next: [cyan]atlas discover {name}[/], then [cyan]atlas sync {name}[/]")
    else:
        console.print(f"Next: [cyan]atlas sync {name}[/]")
