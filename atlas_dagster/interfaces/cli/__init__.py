"""The ``atlas`` command. Each verb parses, calls a package below, and prints.

A verb's module is imported when the verb runs, and Dagster only by the verbs that need it.
"""

import logging
from importlib import import_module
from typing import NamedTuple

import click

from atlas_dagster.config.secret_files import load_secret_files
from atlas_dagster.interfaces.cli.output import report_errors

__all__ = ["main"]


class _Verb(NamedTuple):
    module: str
    help: str


#: The verbs, in the order in which a new user needs them.
_VERBS = {
    "connectors": _Verb("connectors", "List and search the connectors."),
    "spec": _Verb("connector", "Show the config fields of SOURCE."),
    "check": _Verb("connector", "Check the connection to SOURCE."),
    "discover": _Verb("connector", "List the streams of SOURCES."),
    "read": _Verb("read", "Read records of SOURCE, without tables."),
    "pull": _Verb("connector", "Fetch the images and packages of SOURCES."),
    "init": _Verb("init", "Declare a new connection step by step."),
    "sync": _Verb("sync", "Sync CONNECTION as Dagster would."),
    "refresh": _Verb("sync", "Sync CONNECTION from the beginning."),
    "clear": _Verb("state", "Remove all rows of CONNECTION."),
    "state": _Verb("state", "Show and edit the state of a connection."),
    "reap": _Verb("admin", "Remove connectors that killed runs left behind."),
    "prune": _Verb("admin", "Delete old runs."),
    "doctor": _Verb("admin", "Find problems that would stop a sync."),
    "serve": _Verb("admin", "Serve connectors over HTTP."),
}


class _LazyGroup(click.Group):
    def list_commands(self, _: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        if name not in _VERBS:
            return None
        found = getattr(import_module(f"{__name__}.{_VERBS[name].module}"), name)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in _VERBS.items()])


@click.command(cls=_LazyGroup)
@click.version_option(package_name="atlas-dagster")
@report_errors
def main() -> None:
    """Run Airbyte connectors, with Dagster or without.

    Exit codes: 0 success, 1 failure, 2 wrong command line, 3 wrong configuration, 4 a failure that
    may pass if you try again.
    """
    # Dagster's log messages about loading are for servers.
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    load_secret_files()
