"""Names for the shell to complete; Dagster is not imported for them."""

from importlib.util import find_spec
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from atlas_dagster.registry import list_connectors

_CONNECTIONS = "atlas_dagster.connections"


def connections(
    _: click.Context, __: click.Parameter, incomplete: str
) -> list[CompletionItem | str]:
    """Declared connections."""
    spec = find_spec(_CONNECTIONS)
    folders = map(Path, (spec and spec.submodule_search_locations) or ())
    files = (file for folder in folders for file in sorted(folder.glob("*/defs.yaml")))
    return [file.parent.name for file in files if file.parent.name.startswith(incomplete)]


def connectors(
    _: click.Context, __: click.Parameter, incomplete: str
) -> list[CompletionItem | str]:
    """Connectors of the registry."""
    return [
        CompletionItem(info.name, help=info.title)
        for info in list_connectors()
        if info.name.startswith(incomplete)
    ]


def sources(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem | str]:
    """Either."""
    declared = connections(context, parameter, incomplete)
    return declared + connectors(context, parameter, incomplete)
