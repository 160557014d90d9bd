"""The ``atlas`` command. Thin: every verb is a call into a room below.

A verb's module is imported when the verb runs, and Dagster only by verbs that need it: `atlas
connectors` and `--help` answer at once.
"""

from importlib import import_module
from typing import NamedTuple

import click

from atlas_dagster.config.secret_files import load_secret_files
from atlas_dagster.interfaces.cli.output import one_sentence

__all__ = ["main"]


class _Verb(NamedTuple):
    module: str
    help: str


#: As a newcomer meets them.
_VERBS = {
    "connectors": _Verb("connectors", "Which connectors there are."),
    "spec": _Verb("connector", "Say what config SOURCE takes."),
    "check": _Verb("connector", "Ask whether SOURCE can be reached."),
    "discover": _Verb("connector", "Ask SOURCES which streams they offer."),
    "read": _Verb("read", "Read records of SOURCE, without tables."),
    "pull": _Verb("connector", "Fetch what SOURCES run from."),
    "init": _Verb("init", "Declare a new connection, by questions."),
    "sync": _Verb("state", "Sync CONNECTION as Dagster would."),
    "refresh": _Verb("state", "Sync CONNECTION from the beginning."),
    "clear": _Verb("state", "Remove all rows of CONNECTION."),
    "state": _Verb("state", "Where the streams of a connection continue."),
    "reap": _Verb("admin", "Remove connectors that killed runs left behind."),
    "prune": _Verb("admin", "Delete runs that ended long ago."),
    "doctor": _Verb("admin", "Look for what will stop a sync."),
    "serve": _Verb("admin", "Serve connectors over HTTP."),
}


class _Lazy(click.Group):
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


@click.command(cls=_Lazy)
@click.version_option(package_name="atlas-dagster")
@one_sentence
def main() -> None:
    """Run Airbyte connectors, with Dagster or without.

    Exit codes: 0 done, 1 something is broken, 2 wrong command line, 3 something that you must
    change, 4 something that may pass by itself.
    """
    load_secret_files()
