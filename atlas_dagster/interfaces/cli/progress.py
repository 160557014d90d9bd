"""Progress bars: bytes of an image that is pulled, records of a sync."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from atlas_dagster.interfaces.cli.output import errors

_ON_TERMINALS: Any = {"console": errors, "transient": True, "disable": not errors.is_terminal}


@contextmanager
def pull_bar() -> Iterator[None]:
    """Draws a bar as soon as an image is pulled."""
    from atlas_dagster.runners.docker.images import pull_watcher

    columns = (SpinnerColumn(), TextColumn("Pulling"), BarColumn(), DownloadColumn())
    progress = Progress(*columns, TimeRemainingColumn(), **_ON_TERMINALS)
    task = progress.add_task("")

    def watch(have: int, total: int) -> None:
        progress.start()
        progress.update(task, completed=have, total=total)

    token = pull_watcher.set(watch)
    try:
        yield
    finally:
        pull_watcher.reset(token)
        progress.stop()


@contextmanager
def sync_bar(connection: str) -> Iterator[None]:
    """Draws the records of a sync, as a bar where the source says how many there will be."""
    from atlas_dagster.source.progress import sync_watcher

    columns = (
        SpinnerColumn(),
        TextColumn("Syncing {task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), **_ON_TERMINALS) as progress:
        task = progress.add_task(connection, total=None, said="")

        def watch(records: int, expected: float | None, rate: float) -> None:
            of = f" of about {expected:,.0f}" if expected else ""
            said = f"{records:,} records{of}, {rate:,.0f} a second" if records else ""
            progress.update(task, completed=records, total=expected, said=said)

        token = sync_watcher.set(watch)
        try:
            yield
        finally:
            sync_watcher.reset(token)
