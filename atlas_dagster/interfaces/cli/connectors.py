"""``atlas connectors``: which there are. Dagster is not imported for it."""

from collections.abc import Sequence
from typing import Any

import click
import msgspec
from rich import box
from rich.table import Table
from rich.text import Text

from atlas_dagster.errors import ConfigError, RunnerUnavailableError
from atlas_dagster.interfaces.cli import completion
from atlas_dagster.interfaces.cli.output import (
    console,
    json_option,
    note,
    one_sentence,
    print_json,
    waiting,
)
from atlas_dagster.interfaces.cli.project import enter_project, find_project
from atlas_dagster.registry import (
    ConnectorCategory,
    ConnectorInfo,
    Refreshed,
    get_connector_info,
    list_connectors,
    refresh_registry,
    search_connectors,
)
from atlas_dagster.registry.catalogue import listing

_FOUND = 20


@click.group()
def connectors() -> None:
    """Which connectors there are."""


@connectors.command("list")
@click.option("--category", help="Only this one; see `atlas connectors categories`.")
@json_option
@one_sentence
def list_(category: str | None, as_json: bool) -> None:
    """List all connectors, or those of a category."""
    _answer(list_connectors(category), as_json)


@connectors.command()
@click.argument("query", nargs=-1, required=True)
@click.option("--limit", default=_FOUND, show_default=True, help="The best N; 0 for all.")
@json_option
@one_sentence
def search(query: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Find connectors by name, title or category; typos are forgiven."""
    words = " ".join(query)
    found = search_connectors(words)
    shown = found[:limit] if limit else found
    if found.note:
        note(found.note)
    _answer(shown, as_json)
    if len(shown) < len(found):
        note(f"{len(found) - len(shown)} more; see them with --limit 0.")
    if shown and not as_json:
        first = shown[0].name
        note(f"Try one: atlas spec {first}; add it to a project: atlas init {first}")


@connectors.command()
@json_option
@one_sentence
def categories(as_json: bool) -> None:
    """Say which categories there are, and how many connectors each has."""
    counts = {category: len(list_connectors(category)) for category in ConnectorCategory}
    if as_json:
        print_json(
            [{"id": each, "name": each.label, "count": count} for each, count in counts.items()]
        )
        return
    table = _table("category", "connectors")
    table.columns[1].justify = "right"
    for category, count in counts.items():
        table.add_row(category.value, str(count))
    console.print(table)


@connectors.command()
@click.argument("name", shell_complete=completion.connectors)
@json_option
@one_sentence
def info(name: str, as_json: bool) -> None:
    """Say what is known of the connector NAME."""
    found = get_connector_info(name)
    if as_json:
        print_json(_fields(found))
        return
    with waiting("Looking at PyPI …"):
        without_docker = _without_docker(found)
    facts: dict[str, str | None] = {
        "image": found.docker_image,
        "Python package": found.pypi_package and f"{found.pypi_package}=={found.tag}",
        "without Docker": without_docker,
        "category": ", ".join(found.categories),
        "reads": {"api": "an API", "database": "a database", "file": "files"}.get(found.kind),
        "language": found.language or None,
        "support": found.support_level,
        "docs": found.docs_url,
        "definition id": found.definition_id,
        "talks to": ", ".join(found.allowed_hosts) or None,
        "memory, CPUs": _limits(found),
        "list of": listing().date,
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, fact in facts.items():
        if fact:
            table.add_row(label, Text(fact))
    console.print(f"[bold green]{found.title}[/]  {found.name}")
    console.print(table)
    for change in found.breaking_changes:
        console.print("Breaking change", change.describe(), markup=False, soft_wrap=True)
    note(f"What it asks for: atlas spec {found.name}")


@connectors.command()
@json_option
@one_sentence
def refresh(as_json: bool) -> None:
    """Take the list of connectors and their versions from Airbyte's registry.

    ATLAS_REGISTRY_URL names a mirror. Where the registry cannot be reached, or sends something
    broken, the list stays as it is.
    """
    with waiting("Fetching the registry …"):
        done = refresh_registry()
        if find_project() is not None:
            from atlas_dagster.interfaces.cli.declared import note_listing

            enter_project()
            note_listing()
    if as_json:
        print_json(_told(done))
        return
    count = len(done.listing.connectors)
    console.print(f"[bold green]{count}[/] connectors, as of {done.listing.date}.")
    for word, some in (("New", done.added), ("No longer published", done.removed)):
        if some:
            names = ", ".join(each.name for each in some)
            console.print(f"{word}: {names}", markup=False, soft_wrap=True)
    if done.upgrades:
        console.print(f"{len(done.upgrades)} in another version.")
    if done.unreadable:
        note(f"{done.unreadable} entries could not be read; they stay as they were.")
    for upgrade in done.upgrades:
        if upgrade.breaking:
            name, before, now = upgrade.now.name, upgrade.before.tag, upgrade.now.tag
            console.print(
                f"[bold yellow]{name}[/] {before} → {now} is a breaking change; "
                f"`version: {before}` in defs.yaml keeps the old one."
            )
            for change in upgrade.breaking:
                console.print(f"  {change.describe()}", markup=False, soft_wrap=True)


def _answer(found: Sequence[ConnectorInfo], as_json: bool) -> None:
    if as_json:
        print_json([_fields(info) for info in found])
        return
    table = _table("name", "title", "category", "version", "support", "runs from")
    for info in found:
        table.add_row(
            Text(info.name, style="bold"),
            Text(info.title),
            ", ".join(info.categories),
            info.tag,
            info.support_level,
            _runs_from(info),
        )
    if found:
        console.print(table)


def _fields(info: ConnectorInfo) -> dict[str, Any]:
    """All of them, also those that are empty."""
    named: dict[str, Any] = {name: getattr(info, name) for name in info.__struct_fields__}
    named |= {"categories": info.categories, "docker_image": info.docker_image}
    return msgspec.to_builtins(named)  # type: ignore[no-any-return]


def _told(done: Refreshed) -> dict[str, Any]:
    return {
        "date": done.listing.date,
        "total_connectors": len(done.listing.connectors),
        "added": [info.name for info in done.added],
        "removed": [info.name for info in done.removed],
        "unreadable": done.unreadable,
        "upgrades": [
            {
                "name": upgrade.now.name,
                "before": upgrade.before.tag,
                "now": upgrade.now.tag,
                "breaking_changes": upgrade.breaking,
            }
            for upgrade in done.upgrades
        ],
    }


def _runs_from(info: ConnectorInfo) -> str:
    ways = ["image"]
    if info.pypi_package:
        ways.append("PyPI")
    elif info.is_manifest_only:
        ways.append("manifest")
    return ", ".join(ways)


def _without_docker(info: ConnectorInfo) -> str:
    if info.pypi_package:
        return _from_package(info.pypi_package, info.tag)
    return "from its manifest" if info.is_manifest_only else "no"


def _from_package(package: str, version: str) -> str:
    """How it runs from its package: what was published cannot always be installed."""
    from atlas_dagster.runners.packages import UninstallableError, check_release

    try:
        check_release(package, version)
    except UninstallableError as error:
        instead = f"{error.instead} can, with version: auto" if error.instead else "no other can"
        return f"{version} cannot be installed, because {error.cause}; {instead}"
    except RunnerUnavailableError:
        return "from its Python package (not checked: PyPI cannot be reached)"
    except ConfigError as error:
        return f"no: {error}"
    return "from its Python package"


def _limits(info: ConnectorInfo) -> str | None:
    cpus = None if info.cpu_limit is None else f"{info.cpu_limit:g} CPUs"
    return ", ".join(filter(None, (info.memory_limit, cpus))) or None


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading == headings[0])
    return table
