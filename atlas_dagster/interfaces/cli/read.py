"""``atlas read``: records of a source as a table, JSON lines, Parquet or CSV."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import stat
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import click
import msgspec
from rich.text import Text

from atlas_dagster.errors import AtlasError, ConfigError, StoppedError
from atlas_dagster.files import AtomicFile, atomic_write
from atlas_dagster.interfaces.cli.output import (
    CommandListener,
    console,
    make_table,
    print_note,
)
from atlas_dagster.interfaces.cli.project import complete_sources
from atlas_dagster.interfaces.cli.source import Source, SourceOptions, open_source, source_command
from atlas_dagster.protocol.catalog import Catalog, ConfiguredStream
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState

if TYPE_CHECKING:
    import pyarrow as pa

    from atlas_dagster.reading.reader import StreamReader

Format = Literal["table", "jsonl", "parquet", "csv"]

_FORMATS = ("table", "jsonl", "parquet", "csv")
_TABLE_ROWS, _MOST_TABLE_ROWS = 20, 1000
#: The fewest and the most characters of a column.
_NARROW, _WIDE = 14, 40
#: Permissions of a new file, less the umask.
_MODE = 0o666
#: The exit code that a shell gives to a program that SIGPIPE ended.
_SIGPIPE_EXIT = 128 + signal.SIGPIPE
#: After the last byte, a pipe's reader has this long to close it without reading to the end.
_READER_CLOSES_MILLISECONDS = 100


@click.command()
@click.argument("source", shell_complete=complete_sources)
@click.option("--stream", "streams", multiple=True, help="Only this stream; may be repeated.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after N records of each stream.")
@click.option(
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    help="Default: by the name of --output; else a table on a terminal, JSON lines in a pipe.",
)
@click.option(
    "--output", metavar="PATH", help="A file, a folder (a file for each stream), or - for stdout."
)
@click.option(
    "--state",
    metavar="FILE",
    help="Read incrementally: continue from the state in FILE if it exists, and write the new "
    "state there.",
)
@click.option("--cursor-field", help="Cursor of incremental reads, if the source has none.")
@source_command
def read(
    source: str,
    streams: tuple[str, ...],
    limit: int | None,
    form: Format | None,
    output: str | None,
    state: str | None,
    cursor_field: str | None,
    options: SourceOptions,
) -> None:
    """Read records of SOURCE: a connection, a connector (source-faker) or an image.

    JSON lines are the records exactly as the source wrote them. Parquet and CSV have the columns of
    the stream's table. Tables and stored states do not change.
    """
    from atlas_dagster.reading.reader import StreamReader

    form = form or _choose_format(output)
    if form == "table":
        limit = min(limit or _TABLE_ROWS, _MOST_TABLE_ROWS)
    # Paths are made absolute, because entering a project changes the folder.
    output = output if output in (None, "-") else str(Path(output).absolute())
    state_file = None if state is None else Path(state).absolute()
    before = _load_state(state_file)
    written = _WriteResult()
    listener = CommandListener(logs=options.logs)
    with open_source(source, options, listener) as opened, opened.open_connector() as connector:
        stored = opened.discovered
        catalog = connector.discover() if stored is None else stored.catalog
        configured = _configure(opened, catalog, streams, state is not None, cursor_field)
        reader = StreamReader(connector, configured, state=before, limit=limit)
        with listener.read_bar(source) if form != "table" else nullcontext():
            if form == "table":
                _print_tables(reader)
            else:
                written = _write_files(reader, configured, form, output)
        for path in written.files.values():
            print_note(f"Wrote {path}")
    if state_file is not None:
        if output in (None, "-"):
            _wait_for_pipe()
        after = reader.state
        if written.failure is not None and len(written.files) < len(configured):
            after = before.advanced(reader.state, written.files)
        if after and (written.failure is None or after != before):
            state_file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(state_file, after.to_file() + b"\n", mode=_MODE, durable=False)
        else:
            print_note("No state was written: the source sent no state after these records.")
    if written.failure is not None:
        raise written.failure
    counts = ", ".join(f"{name} {count:,}" for name, count in reader.counts.items())
    print_note(f"Records: {counts}.")


def _configure(
    source: Source,
    catalog: Catalog,
    names: tuple[str, ...],
    incremental: bool,
    cursor_field: str | None,
) -> list[ConfiguredStream]:
    from atlas_dagster.reading.ad_hoc import AdHocConnection, select_streams
    from atlas_dagster.sync.state_edits import find_streams

    connection = source.connection
    if isinstance(connection, AdHocConnection):
        cursor = None if cursor_field is None else (cursor_field,)
        return select_streams(
            connection, catalog, names, incremental=incremental, cursor_field=cursor
        )
    configured = connection.configured(catalog)
    wanted = set(find_streams(connection.name, configured, names))
    return [stream for stream in configured if stream.descriptor in wanted]


def _load_state(path: Path | None) -> ConnectionState:
    if path is None or not path.exists():
        return ConnectionState()
    try:
        return ConnectionState.from_file(path.read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"The state in {path} cannot be read ({error}); remove the file to read from the "
            "beginning."
        ) from error


def _choose_format(path: str | None) -> Format:
    suffix = Path(path or "").suffix.lstrip(".")
    if suffix in ("jsonl", "ndjson", "json"):
        return "jsonl"
    if suffix in ("parquet", "csv"):
        return suffix  # type: ignore[return-value]
    if suffix and path != "-":
        raise ConfigError(
            f"There is no format for '.{suffix}'; name the file .jsonl, .parquet or .csv, or use "
            "--format."
        )
    return "jsonl" if path or not sys.stdout.isatty() else "table"


# A table for each stream


def _print_tables(reader: StreamReader) -> None:
    """Print a table for each stream, without Airbyte's own columns."""
    import pyarrow as pa

    found: dict[StreamDescriptor, list[pa.RecordBatch]] = {}
    for name, batch in reader.batches():
        found.setdefault(name, []).append(batch)
    for name in reader.counts:
        console.print(str(name), style="bold", markup=False)
        if batches := found.get(name):
            _print_rows(pa.Table.from_batches(batches))
        else:
            console.print("No records.\n")


def _print_rows(rows: pa.Table) -> None:
    from atlas_dagster.records.types import METADATA_FIELDS

    own = {field.name for field in METADATA_FIELDS}
    columns = [column for column in rows.column_names if column not in own]
    fitting = columns[: max(console.width // _NARROW, 1)]
    shown = make_table()
    for column in fitting:
        shown.add_column(column, overflow="ellipsis", no_wrap=True, max_width=_WIDE)
    for row in rows.select(fitting).to_pylist():
        # Text, because rich would interpret a value such as "[red]".
        shown.add_row(*(Text("" if value is None else str(value)) for value in row.values()))
    console.print(shown)
    if len(columns) > len(fitting):
        rest = ", ".join(columns[len(fitting) :])
        console.print(f"Columns not shown: {rest}\n", markup=False, soft_wrap=True)


# A file for each stream


@dataclass(frozen=True)
class _WriteResult:
    """The file of each complete stream, and the error of the others."""

    files: dict[StreamDescriptor, Path] = field(default_factory=dict)
    failure: AtlasError | None = None


def _write_files(
    reader: StreamReader, streams: list[ConfiguredStream], form: Format, output: str | None
) -> _WriteResult:
    """Write each stream to its own file, or one stream to stdout (``-`` or None).

    A file appears when its stream is complete, even if other streams fail.

    Raises:
        ConfigError: several streams cannot go into one file, or ``output`` cannot be written.
        AtlasError: the READ to stdout failed.
        SystemExit: the reader of stdout closed the pipe.
    """
    names = [stream.descriptor for stream in streams]
    if output in (None, "-"):
        if len(names) > 1:
            raise ConfigError(
                f"The source has {len(names)} streams, and a {form} file holds one; choose it with "
                "--stream, or give a folder with --output."
            )
        with _exit_on_closed_pipe():
            _write(reader, streams, form, dict.fromkeys(names, sys.stdout.buffer))
            sys.stdout.flush()
        return _WriteResult()
    files: dict[StreamDescriptor, AtomicFile] = {}
    failure: AtlasError | None = None
    try:
        for name, path in _choose_paths(Path(output), names, form).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            files[name] = AtomicFile(path, mode=_MODE)
        try:
            _write(reader, streams, form, {name: each.file for name, each in files.items()})
        except StoppedError:
            raise
        except AtlasError as error:
            failure = error
        complete = names if failure is None else reader.complete
        return _WriteResult({name: files.pop(name).publish() for name in complete}, failure)
    except OSError as error:
        raise ConfigError(
            f"{output} cannot be written ({error.strerror}); choose another --output."
        ) from error
    finally:
        for each in files.values():
            each.discard()


def _write(
    reader: StreamReader,
    streams: list[ConfiguredStream],
    form: Format,
    files: dict[StreamDescriptor, BinaryIO],
) -> None:
    if form == "jsonl":
        with closing(reader.records()) as records:
            for found in records:
                file = files[StreamDescriptor(found.stream, found.namespace)]
                file.writelines(bytes(record.data) + b"\n" for record in found.records)
    else:
        _write_batches(reader, streams, form, files)


def _write_batches(
    reader: StreamReader,
    streams: list[ConfiguredStream],
    form: Format,
    files: dict[StreamDescriptor, BinaryIO],
) -> None:
    import pyarrow.csv as csv
    import pyarrow.parquet as parquet

    from atlas_dagster.records.types import TableSchema

    make: Callable[..., Any] = parquet.ParquetWriter if form == "parquet" else csv.CSVWriter
    with ExitStack() as stack:
        writers = {}
        for stream in streams:
            schema = TableSchema.of_rows(stream).arrow
            writers[stream.descriptor] = stack.enter_context(make(files[stream.descriptor], schema))
        for name, batch in stack.enter_context(closing(reader.batches())):
            if form == "parquet":
                writers[name].write_batch(batch)
            else:
                writers[name].write(batch)


def _choose_paths(
    output: Path, names: list[StreamDescriptor], form: Format
) -> dict[StreamDescriptor, Path]:
    from atlas_dagster.records.names import assign

    if len(names) == 1 and not output.is_dir() and not str(output).endswith("/"):
        return {names[0]: output}
    output.mkdir(parents=True, exist_ok=True)
    files = assign([str(name) for name in names])
    return {name: output / f"{files[str(name)]}.{form}" for name in names}


# Pipes, whose reader may close them early, as ``head`` does


@contextmanager
def _exit_on_closed_pipe() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        # The interpreter flushes stdout at exit, which must not raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_SIGPIPE_EXIT)


def _wait_for_pipe() -> None:
    """Wait until the reader of stdout has read everything.

    Raises:
        SystemExit: it closed the pipe early, so the records must not count as read.
    """
    try:
        pipe = sys.stdout.fileno()
    except (OSError, ValueError):  # in tests, stdout is not a file
        return
    if not stat.S_ISFIFO(os.fstat(pipe).st_mode):
        return
    watch = select.poll()
    watch.register(pipe, 0)
    with _exit_on_closed_pipe():
        unread = True
        while unread:
            (size,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
            unread = size > 0
            if watch.poll(_READER_CLOSES_MILLISECONDS):
                raise BrokenPipeError
