"""Records of ``atlas read``, written as a table, JSON lines, Parquet or CSV.

A file appears when it is whole; what is interrupted leaves none.
"""

import fcntl
import os
import select
import signal
import stat
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from msgspec import Struct
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from atlas_dagster.errors import AtlasError, ConfigError, StoppedError
from atlas_dagster.files import AtomicFile, atomic_write
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.reading.reader import StreamReader
from atlas_dagster.records.names import assign
from atlas_dagster.records.types import METADATA_FIELDS, TableSchema

Format = Literal["table", "jsonl", "parquet", "csv"]

#: As a shell says of a program that SIGPIPE ended.
READER_LEFT_EXIT = 128 + signal.SIGPIPE
#: So long a reader may take to leave after the last byte; it then was not the end that it read.
_READER_LEAVES_MILLISECONDS = 100
#: Characters that a column has at least, and at most.
_NARROW, _WIDE = 14, 40
#: Permissions of a new file, less the umask.
_MODE = 0o666


def format_of(path: str | None) -> Format:
    """What the name of a file says; a table for the terminal, JSON lines for a pipe."""
    suffix = Path(path or "").suffix.lstrip(".")
    if suffix in ("jsonl", "ndjson", "json"):
        return "jsonl"
    if suffix in ("parquet", "csv"):
        return suffix  # type: ignore[return-value]
    if suffix and path != "-":
        raise ConfigError(
            f"There is no format for '.{suffix}'; name the file .jsonl, .parquet or .csv, or say "
            "--format."
        )
    return "jsonl" if path or not sys.stdout.isatty() else "table"


def print_tables(console: Console, reading: StreamReader) -> None:
    """A table for each stream, without Airbyte's own columns."""
    own = {field.name for field in METADATA_FIELDS}
    found: dict[StreamDescriptor, list[pa.RecordBatch]] = {}
    for name, batch in reading.batches():
        found.setdefault(name, []).append(batch)
    for name in reading.counts:
        console.print(str(name), style="bold", markup=False)
        batches = found.get(name)
        if not batches:
            console.print("No records.\n")
            continue
        rows = pa.Table.from_batches(batches)
        columns = [column for column in rows.column_names if column not in own]
        shown = columns[: max(console.width // _NARROW, 1)]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in shown:
            table.add_column(column, overflow="ellipsis", no_wrap=True, max_width=_WIDE)
        for row in rows.select(shown).to_pylist():
            # As Text, for rows may hold what looks like rich's markup.
            table.add_row(*(Text("" if value is None else str(value)) for value in row.values()))
        console.print(table)
        if len(columns) > len(shown):
            rest = ", ".join(columns[len(shown) :])
            console.print(f"And: {rest}\n", markup=False, soft_wrap=True)


class Written(Struct, frozen=True):
    """What a READ left: a file for each complete stream, and why others have none."""

    files: dict[StreamDescriptor, Path] = {}
    failure: AtlasError | None = None


def write_files(
    reading: StreamReader, streams: list[ConfiguredStream], form: Format, output: str | None
) -> Written:
    """Write each stream to a file of its own, or one stream to stdout (``-`` or None).

    ``output`` is a file, or a folder where there are several streams. Streams that are complete
    keep their files where others fail.

    Raises:
        ConfigError: several streams cannot go into one place, or it cannot be written.
        AtlasError: the READ failed, to stdout.
        SystemExit: whoever read our stdout has had enough.
    """
    names = [stream.descriptor for stream in streams]
    if output in (None, "-"):
        if len(names) > 1:
            raise ConfigError(
                f"The source has {len(names)} streams, and {form} holds one; name it with "
                "--stream, or a folder with --output."
            )
        with _until_reader_leaves():
            _write(reading, streams, form, dict.fromkeys(names, sys.stdout.buffer))
            sys.stdout.flush()
        return Written()
    files: dict[StreamDescriptor, AtomicFile] = {}
    failure: AtlasError | None = None
    try:
        for name, path in _paths(Path(output), names, form).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            files[name] = AtomicFile(path, mode=_MODE)
        try:
            _write(reading, streams, form, {name: each.file for name, each in files.items()})
        except StoppedError:
            raise
        except AtlasError as error:
            failure = error
        kept = names if failure is None else reading.complete
        return Written({name: files.pop(name).publish() for name in kept}, failure)
    except OSError as error:
        raise ConfigError(
            f"{output} cannot be written ({error.strerror}); choose another --output."
        ) from error
    finally:
        for each in files.values():
            each.discard()


@contextmanager
def _until_reader_leaves() -> Iterator[None]:
    """End as other programs do whose stdout nobody reads to its end."""
    try:
        yield
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(READER_LEFT_EXIT)


def wait_for_reader() -> None:
    """Return when all that went into a pipe was read, by a reader that waits for its end.

    ``head`` leaves before, and what it left unread must not count as read.

    Raises:
        SystemExit: it left.
    """
    try:
        pipe = sys.stdout.fileno()
    except (OSError, ValueError):  # no file, in tests
        return
    if not stat.S_ISFIFO(os.fstat(pipe).st_mode):
        return
    watch = select.poll()
    watch.register(pipe, 0)
    with _until_reader_leaves():
        unread = True
        while unread:
            (size,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
            unread = size > 0
            if watch.poll(_READER_LEAVES_MILLISECONDS):
                raise BrokenPipeError


def _write(
    reading: StreamReader,
    streams: list[ConfiguredStream],
    form: Format,
    sinks: dict[StreamDescriptor, BinaryIO],
) -> None:
    if form == "jsonl":
        _write_lines(reading, sinks)
    else:
        _write_batches(reading, streams, sinks, form)


def _write_lines(reading: StreamReader, sinks: dict[StreamDescriptor, BinaryIO]) -> None:
    """Records as the source wrote them, byte for byte."""
    with closing(reading.records()) as records:
        for found in records:
            sink = sinks[StreamDescriptor(found.stream, found.namespace)]
            sink.writelines(bytes(record.data) + b"\n" for record in found.records)


def _write_batches(
    reading: StreamReader,
    streams: list[ConfiguredStream],
    sinks: dict[StreamDescriptor, BinaryIO],
    form: Format,
) -> None:
    make: Callable[..., Any] = pa.csv.CSVWriter
    if form == "parquet":
        make = pa.parquet.ParquetWriter
    with ExitStack() as stack:
        writers = {}
        for stream in streams:
            schema = TableSchema.of_rows(stream).arrow
            writers[stream.descriptor] = stack.enter_context(make(sinks[stream.descriptor], schema))
        for name, batch in stack.enter_context(closing(reading.batches())):
            if form == "parquet":
                writers[name].write_batch(batch)
            else:
                writers[name].write(batch)


def _paths(
    output: Path, names: list[StreamDescriptor], form: Format
) -> dict[StreamDescriptor, Path]:
    if len(names) == 1 and not output.is_dir() and not str(output).endswith("/"):
        return {names[0]: output}
    output.mkdir(parents=True, exist_ok=True)
    files = assign([str(name) for name in names])
    return {name: output / f"{files[str(name)]}.{form}" for name in names}


def write_file(path: Path, content: bytes) -> None:
    """Put ``content`` in the place of ``path``, all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content, mode=_MODE, durable=False)
