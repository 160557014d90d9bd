"""``atlas connectors``: the list of connectors. It does not need Dagster."""

from collections.abc import Sequence
from typing import Any

import click
import msgspec
from rich.table import Table
from rich.text import Text

from atlas_dagster.errors import ConfigError, RunnerUnavailableError
from atlas_dagster.interfaces.cli.output import (
    console,
    json_option,
    make_table,
    print_json,
    print_line,
    print_note,
    report_errors,
    show_spinner,
)
from atlas_dagster.interfaces.cli.project import (
    complete_connectors,
    enter_project,
    find_project_folder,
    project_registry,
)
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
    """List and search the connectors."""


@connectors.command("list")
@click.option("--category", help="Only this category; see `atlas connectors categories`.")
@json_option
@report_errors
def list_(category: str | None, as_json: bool) -> None:
    """List all connectors, or those of one category."""
    _print_connectors(list_connectors(category), as_json)


@connectors.command()
@click.argument("query", nargs=-1, required=True)
@click.option("--limit", default=_FOUND, show_default=True, help="Show the best N; 0 for all.")
@json_option
@report_errors
def search(query: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Find connectors by name, title or category, even with typos."""
    words = " ".join(query)
    found = search_connectors(words)
    shown = found[:limit] if limit else found
    if found.note:
        print_note(found.note)
    _print_connectors(shown, as_json)
    if len(shown) < len(found):
        print_note(f"{len(found) - len(shown)} more; see them with --limit 0.")
    if shown and not as_json:
        first = shown[0].name
        print_note(f"Try one: atlas spec {first}; add it to a project: atlas init {first}")


@connectors.command()
@json_option
@report_errors
def categories(as_json: bool) -> None:
    """List the categories, with the number of connectors in each."""
    counts = {category: len(list_connectors(category)) for category in ConnectorCategory}
    if as_json:
        print_json(
            [{"id": each, "name": each.label, "count": count} for each, count in counts.items()]
        )
        return
    shown = make_table("category", "connectors", numbers=["connectors"])
    for category, count in counts.items():
        shown.add_row(category.value, str(count))
    console.print(shown)


@connectors.command()
@click.argument("name", shell_complete=complete_connectors)
@json_option
@report_errors
def info(name: str, as_json: bool) -> None:
    """Show everything about the connector NAME."""
    found = get_connector_info(name)
    if as_json:
        print_json(_list_fields(found))
        return
    with show_spinner("Asking PyPI …"):
        without_docker = _describe_without_docker(found)
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
        "connects to": ", ".join(found.allowed_hosts) or None,
        "memory, CPUs": _describe_limits(found),
        "list dated": listing().date,
    }
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for label, fact in facts.items():
        if fact:
            shown.add_row(label, Text(fact))
    console.print(f"[bold green]{found.title}[/]  {found.name}")
    console.print(shown)
    for change in found.breaking_changes:
        print_line(f"Breaking change {change.describe()}")
    print_note(f"See its config: atlas spec {found.name}")


@connectors.command()
@json_option
@report_errors
def refresh(as_json: bool) -> None:
    """Download the list of connectors and their versions from Airbyte's registry.

    ATLAS_REGISTRY_URL names a mirror. If the download fails or is broken, the list does not change.
    """
    with show_spinner("Fetching the registry …"):
        done = refresh_registry()
        if find_project_folder() is not None:
            enter_project()
            project_registry()
    if as_json:
        print_json(_describe_refresh(done))
        return
    count = len(done.listing.connectors)
    console.print(f"[bold green]{count}[/] connectors, as of {done.listing.date}.")
    for word, some in (("New", done.added), ("No longer published", done.removed)):
        if some:
            print_line(f"{word}: {', '.join(each.name for each in some)}")
    if done.upgrades:
        console.print(f"{len(done.upgrades)} have another version.")
    if done.unreadable:
        print_note(
            f"{done.unreadable} entries could not be read; the list keeps their old versions."
        )
    for upgrade in done.upgrades:
        if upgrade.breaking:
            name, before, now = upgrade.now.name, upgrade.before.tag, upgrade.now.tag
            console.print(
                f"[bold yellow]{name}[/] {before} → {now} is a breaking change; "
                f"`version: {before}` in defs.yaml keeps the old one."
            )
            for change in upgrade.breaking:
                print_line(f"  {change.describe()}")


def _print_connectors(found: Sequence[ConnectorInfo], as_json: bool) -> None:
    if as_json:
        print_json([_list_fields(info) for info in found])
        return
    shown = make_table("name", "title", "category", "version", "support", "runs from")
    for info in found:
        shown.add_row(
            Text(info.name, style="bold"),
            Text(info.title),
            ", ".join(info.categories),
            info.tag,
            info.support_level,
            _describe_runners(info),
        )
    if found:
        console.print(shown)


def _list_fields(info: ConnectorInfo) -> dict[str, Any]:
    """Return all fields for ``--json``, also empty ones."""
    named: dict[str, Any] = {name: getattr(info, name) for name in info.__struct_fields__}
    named |= {"categories": info.categories, "docker_image": info.docker_image}
    return msgspec.to_builtins(named)  # type: ignore[no-any-return]


def _describe_refresh(done: Refreshed) -> dict[str, Any]:
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


def _describe_runners(info: ConnectorInfo) -> str:
    runners = ["image"]
    if info.pypi_package:
        runners.append("PyPI")
    elif info.is_manifest_only:
        runners.append("manifest")
    return ", ".join(runners)


def _describe_without_docker(info: ConnectorInfo) -> str:
    if info.pypi_package:
        return _describe_package(info.pypi_package, info.tag)
    return "from its manifest" if info.is_manifest_only else "no"


def _describe_package(package: str, version: str) -> str:
    """Describe whether the connector runs from its package; some packages cannot be installed."""
    from atlas_dagster.runners.packages import UninstallableError, check_release

    try:
        check_release(package, version)
    except UninstallableError as error:
        other = (
            f"{error.instead} can: set version: auto" if error.instead else "no other version can"
        )
        return f"{version} cannot be installed, because {error.cause}; {other}"
    except RunnerUnavailableError:
        return "from its Python package (not checked: PyPI cannot be reached)"
    except ConfigError as error:
        return f"no: {error}"
    return "from its Python package"


def _describe_limits(info: ConnectorInfo) -> str | None:
    cpus = None if info.cpu_limit is None else f"{info.cpu_limit:g} CPUs"
    return ", ".join(filter(None, (info.memory_limit, cpus))) or None
