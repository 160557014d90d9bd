"""``atlas read``: records of a source, without a table."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from atlas_dagster.errors import ConfigError
from atlas_dagster.interfaces.cli import completion
from atlas_dagster.interfaces.cli.output import console, note, one_sentence
from atlas_dagster.interfaces.cli.source import Source, opened, reached, source_options
from atlas_dagster.protocol.catalog import Catalog, ConfiguredStream
from atlas_dagster.protocol.state import ConnectionState

if TYPE_CHECKING:
    from atlas_dagster.interfaces.cli.export import Format
    from atlas_dagster.source.connection import RunnerChoice

_FORMATS = ("table", "jsonl", "parquet", "csv")
_ROWS_SHOWN = 20


@click.command()
@click.argument("source", shell_complete=completion.sources)
@click.option("--stream", "streams", multiple=True, help="Only this stream; may be repeated.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after N records of each stream.")
@click.option(
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    help="By default what --output says, a table on a terminal, JSON lines in a pipe.",
)
@click.option(
    "--output", metavar="PATH", help="A file, a folder (a file for each stream), or - for stdout."
)
@click.option(
    "--state",
    metavar="FILE",
    help="Read incrementally: continue from the state in FILE, if there is one, and leave the new "
    "one there.",
)
@click.option("--cursor-field", help="Cursor of incremental reads, where the source has none.")
@source_options
@one_sentence
def read(
    source: str,
    streams: tuple[str, ...],
    limit: int | None,
    form: "Format | None",
    output: str | None,
    state: str | None,
    cursor_field: str | None,
    config: str | None,
    runner: "RunnerChoice | None",
    logs: bool,
    validate: bool,
) -> None:
    """Read records of SOURCE: a connection, a connector (source-faker) or an image.

    JSON lines are the records as the source wrote them; Parquet and CSV have the columns that the
    stream's table would have. No table is touched, and no stored state.
    """
    from atlas_dagster.interfaces.cli.export import (
        Written,
        format_of,
        print_tables,
        wait_for_reader,
        write_file,
        write_files,
    )
    from atlas_dagster.interfaces.cli.progress import pull_bar, sync_bar
    from atlas_dagster.reading.reader import StreamReader

    chosen: Format = form or format_of(output)
    if chosen == "table":
        limit = min(limit or _ROWS_SHOWN, 1000)
    # A project may be entered meanwhile.
    output = output if output in (None, "-") else str(Path(output).absolute())
    state = None if state is None else str(Path(state).absolute())
    before = _stored(state)
    with (
        opened(source, config=config, runner=runner, logs=logs, validate=validate) as it,
        pull_bar(),
        reached(it) as (connector, catalog),
    ):
        configured = _configured(it, catalog, streams, state is not None, cursor_field)
        reading = StreamReader(connector, configured, state=before, limit=limit)
        written = Written()
        if chosen == "table":
            print_tables(console, reading)
        else:
            with sync_bar(source):
                written = write_files(reading, configured, chosen, output)
            for path in written.files.values():
                note(f"Wrote {path}")
    after = reading.state
    if written.failure is not None and len(written.files) < len(configured):
        after = before.advanced(reading.state, written.files)
    if state is not None and output in (None, "-"):
        wait_for_reader()
    if state is not None and after and (written.failure is None or after != before):
        write_file(Path(state), after.to_file() + b"\n")
    elif state is not None:
        note("No state was written: the source said none that covers what was read.")
    if written.failure is not None:
        raise written.failure
    counts = ", ".join(f"{name} {count:,}" for name, count in reading.counts.items())
    note(f"Records: {counts}.")


def _configured(
    it: Source,
    catalog: Catalog,
    names: tuple[str, ...],
    incremental: bool,
    cursor_field: str | None,
) -> list[ConfiguredStream]:
    """A declared connection's streams are read as it says."""
    from atlas_dagster.reading.ad_hoc import AdHocConnection, chosen_streams
    from atlas_dagster.sync.state_edits import find_streams

    if isinstance(it.connection, AdHocConnection):
        cursor = None if cursor_field is None else (cursor_field,)
        return chosen_streams(
            it.connection, catalog, names, incremental=incremental, cursor_field=cursor
        )
    configured = it.connection.configured(catalog)
    wanted = set(find_streams(it.connection.name, configured, names))
    return [stream for stream in configured if stream.descriptor in wanted]


def _stored(path: str | None) -> ConnectionState:
    """Empty where there is no file yet."""
    if path is None or not Path(path).exists():
        return ConnectionState()
    try:
        return ConnectionState.from_file(Path(path).read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"The state in {path} cannot be read ({error}); remove the file to read from the "
            "beginning."
        ) from error
