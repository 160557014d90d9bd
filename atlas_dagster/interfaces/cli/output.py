"""What all verbs share: where they print, how they fail, and what they answer to machines."""

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import click
import msgspec
from rich.console import Console, ConsoleDimensions
from rich.markup import escape
from rich.table import Table

from atlas_dagster.errors import AtlasError, CheckFailedError, ConnectorFailedError, FailureType

P = ParamSpec("P")
T = TypeVar("T")


class LineConsole(Console):
    """In a pipe or a file nothing is broken over lines: each row of a table is one line."""

    @property
    def size(self) -> ConsoleDimensions:
        found = super().size
        return found if self.is_terminal else found._replace(width=_LINE)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def print(self, *objects: Any, **options: Any) -> None:
        if self.is_terminal or not isinstance(objects[0], Table):
            super().print(*objects, **options)
            return
        with self.capture() as captured:
            super().print(*objects, **options)
        rows = (line.rstrip() for line in captured.get().splitlines())
        # Without the rule below the headings, which is as long as the longest line.
        self.file.write("".join(f"{row}\n" for row in rows if row.strip(" ─")))
        self.file.flush()


#: Wider than any line.
_LINE = 1_000_000

console = LineConsole(highlight=False)
errors = LineConsole(stderr=True, highlight=False)

#: Click itself exits with 2 where the command line is wrong; 130 is for Ctrl-C, as in a shell.
EXIT_CODES: dict[FailureType, int] = {"system_error": 1, "config_error": 3, "transient_error": 4}
FAILED = EXIT_CODES["system_error"]
_INTERRUPTED_EXIT = DECLINED = 130
INTERRUPTED = "Interrupted; what was not finished can be done again."

#: ``--json``: the answer as one JSON value on stdout, and nothing else there.
json_option = click.option("--json", "as_json", is_flag=True, help="Answer in JSON, for machines.")


def one_sentence(command: Callable[P, T]) -> Callable[P, T]:
    """Show errors Atlas raises on purpose as the sentence they are.

    The exit code says whose turn it is: 3 the user's, 4 nobody's (it may pass), 1 something is
    broken. With ``--json`` the error is an object on stdout, too.
    """

    @wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except AtlasError as error:
            if kwargs.get("as_json"):
                print_json({"error": str(error), "failure_type": error.failure_type})
            complain("Error", error)
            if error.topic is not None:
                note(f"More: docs/troubleshooting.md#{error.topic}")
            hint_at_logs(error, bool(kwargs.get("logs", True)))
            sys.exit(EXIT_CODES[error.failure_type])
        except (KeyboardInterrupt, click.Abort):
            if kwargs.get("as_json"):
                print_json({"error": INTERRUPTED, "failure_type": None})
            complain("Error", INTERRUPTED)
            sys.exit(_INTERRUPTED_EXIT)

    return guarded


def hint_at_logs(error: AtlasError, logs: bool) -> None:
    """Name ``--logs`` where the connector's log may say more and was not shown."""
    if not logs and isinstance(error, CheckFailedError | ConnectorFailedError):
        note("With --logs, the connector's own log is shown.")


def exit_code(failures: Collection[FailureType]) -> int:
    """Of several failures, what the user must change counts first, and what may pass last."""
    order: tuple[FailureType, ...] = ("config_error", "system_error", "transient_error")
    return next((EXIT_CODES[kind] for kind in order if kind in failures), 0)


def complain(about: str, what: object) -> None:
    errors.print(f"[bold red]{about}:[/] {escape(str(what))}", soft_wrap=True)


def say(text: str) -> None:
    """On stdout, for verbs whose answer is for people."""
    console.print(text, markup=False, soft_wrap=True)


def note(text: str) -> None:
    """Beside the answer: on stderr."""
    errors.print(text, markup=False, soft_wrap=True, style="dim")


def warn(text: str) -> None:
    """Beside the answer: on stderr, as something to look at."""
    errors.print(f"[bold yellow]Warning:[/] {escape(text)}", soft_wrap=True)


def print_json(value: Any) -> None:
    """``value`` in one piece; numbers of ``Raw`` members stay as they were written."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
    sys.stdout.flush()


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """A spinner while something takes its time."""
    with errors.status(escape(text)):
        yield
