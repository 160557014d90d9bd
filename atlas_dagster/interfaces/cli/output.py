"""Output of all verbs: consoles, tables, progress bars, JSON, errors and exit codes."""

import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import click
import msgspec
from rich import box
from rich.console import Console, ConsoleDimensions
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from atlas_dagster.errors import AtlasError, CheckFailedError, ConnectorFailedError, FailureType
from atlas_dagster.listener import Listener, Work

P = ParamSpec("P")
T = TypeVar("T")


class LineConsole(Console):
    """A console that does not wrap lines in a pipe or file: each row of a table is one line."""

    @property
    def size(self) -> ConsoleDimensions:
        found = super().size
        return found if self.is_terminal else found._replace(width=_PIPE_WIDTH)

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
        # Leave out the rule below the headings, which is as long as the longest line.
        self.file.write("".join(f"{row}\n" for row in rows if row.strip(" ─")))
        self.file.flush()


#: More characters than any line has.
_PIPE_WIDTH = 1_000_000

console = LineConsole(highlight=False)
errors = LineConsole(stderr=True, highlight=False)

#: Click exits with 2 if the command line is wrong. 130 means Ctrl-C, as in a shell.
EXIT_CODES: dict[FailureType, int] = {"system_error": 1, "config_error": 3, "transient_error": 4}
FAILED = EXIT_CODES["system_error"]
INTERRUPTED = DECLINED = 130
_INTERRUPTED_MESSAGE = "Interrupted. Run the command again to finish the work."

json_option = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")


def report_errors(command: Callable[P, T]) -> Callable[P, T]:
    """Make ``command`` print an AtlasError as one sentence and exit with its code.

    With ``--json``, the command also prints an object on stdout.
    """

    @wraps(command)
    def reporting(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except AtlasError as error:
            if kwargs.get("as_json"):
                print_json({"error": str(error), "failure_type": error.failure_type})
            print_error("Error", error)
            if error.topic is not None:
                print_note(f"More: docs/troubleshooting.md#{error.topic}")
            print_logs_hint(error, bool(kwargs.get("logs", True)))
            sys.exit(EXIT_CODES[error.failure_type])
        except (KeyboardInterrupt, click.Abort):
            if kwargs.get("as_json"):
                print_json({"error": _INTERRUPTED_MESSAGE, "failure_type": None})
            print_error("Error", _INTERRUPTED_MESSAGE)
            sys.exit(INTERRUPTED)

    return reporting


def exit_code(failures: Collection[FailureType]) -> int:
    """Return the code of the most important failure: config errors first, transient ones last."""
    order: tuple[FailureType, ...] = ("config_error", "system_error", "transient_error")
    return next((EXIT_CODES[kind] for kind in order if kind in failures), 0)


def print_line(text: str) -> None:
    """Print ``text`` to stdout."""
    console.print(text, markup=False, soft_wrap=True)


def print_note(text: str) -> None:
    """Print ``text`` to stderr, dimmed."""
    errors.print(text, markup=False, soft_wrap=True, style="dim")


def print_warning(text: str) -> None:
    """Print ``text`` to stderr as a warning."""
    errors.print(f"[bold yellow]Warning:[/] {escape(text)}", soft_wrap=True)


def print_error(about: str, message: object) -> None:
    """Print ``message`` to stderr, with ``about`` in red before it."""
    errors.print(f"[bold red]{about}:[/] {escape(str(message))}", soft_wrap=True)


def print_refusal(text: str) -> None:
    """Print why an answer to a prompt is not valid."""
    console.print(text, style="red", markup=False, soft_wrap=True)


def print_logs_hint(error: AtlasError, logs: bool) -> None:
    """Print a hint to ``--logs`` if the connector's log may explain ``error`` and is not shown."""
    if not logs and isinstance(error, CheckFailedError | ConnectorFailedError):
        print_note("Run the command with --logs to see the connector's own log.")


def print_json(value: Any) -> None:
    """Print ``value`` to stdout; ``Raw`` members keep their numbers as written."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
    sys.stdout.flush()


def make_table(
    *headings: str, nowrap: Collection[str] = (), numbers: Collection[str] = ()
) -> Table:
    """Return a table. A narrow terminal folds cells, except of the first and ``nowrap`` columns."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        result.add_column(
            heading,
            overflow="fold",
            no_wrap=heading == headings[0] or heading in nowrap,
            justify="right" if heading in numbers else "left",
        )
    return result


@contextmanager
def show_spinner(text: str) -> Iterator[None]:
    """Show a spinner with ``text``."""
    with errors.status(escape(text)):
        yield


class CommandListener(Listener):
    """Prints sentences with ``print_info``; if ``logs``, also the connector's log, to stderr."""

    def __init__(
        self, print_info: Callable[[str], None] = print_note, *, logs: bool = False
    ) -> None:
        self.print_info = print_info
        self._logs = logs
        self._bars: dict[Work, Callable[[int, float | None], None]] = {}

    def info(self, text: str) -> None:
        self.print_info(text)

    def warning(self, text: str) -> None:
        print_warning(text)

    def connector(self, level: str, text: str) -> None:
        if self._logs:
            errors.print(f"{level:5} {text}", markup=False, soft_wrap=True, style="dim")

    def progress(self, work: Work, done: int, total: float | None) -> None:
        if (draw := self._bars.get(work)) is not None:
            draw(done, total)

    @contextmanager
    def pull_bar(self) -> Iterator[None]:
        """Draw a progress bar while an image is pulled."""
        columns = (SpinnerColumn(), TextColumn("Pulling"), BarColumn(), DownloadColumn())
        progress = Progress(*columns, TimeRemainingColumn(), **_TERMINAL_ONLY)
        task = progress.add_task("")

        def draw(done: int, total: float | None) -> None:
            progress.start()
            progress.update(task, completed=done, total=total)
            if done == total:
                progress.stop()  # other output may follow

        self._bars["pull"] = draw
        try:
            yield
        finally:
            del self._bars["pull"]
            progress.stop()

    @contextmanager
    def read_bar(self, source: str) -> Iterator[None]:
        """Draw the number of records read, as a bar if the source gives an estimate."""
        columns = (
            SpinnerColumn(),
            TextColumn("Syncing {task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[records]}"),
        )
        with Progress(*columns, TimeElapsedColumn(), **_TERMINAL_ONLY) as progress:
            task = progress.add_task(source, total=None, records="")
            first: tuple[float, int] | None = None

            def draw(done: int, total: float | None) -> None:
                nonlocal first
                first = first or (time.monotonic(), done)
                since, before = first
                rate = (done - before) / max(time.monotonic() - since, 1e-3)
                of = f" of about {total:,.0f}" if total else ""
                shown = f"{done:,} records{of}, {rate:,.0f} a second" if done else ""
                progress.update(task, completed=done, total=total, records=shown)

            self._bars["read"] = draw
            try:
                yield
            finally:
                del self._bars["read"]


_TERMINAL_ONLY: Any = {"console": errors, "transient": True, "disable": not errors.is_terminal}
