"""Records of ``atlas read``, written as a table, JSON lines, Parquet or CSV.

A file appears when it is whole; what is interrupted leaves none.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from atlas_dagster.errors import ConfigError
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.records.names import assign
from atlas_dagster.records.types import METADATA_FIELDS, TableSchema
from atlas_dagster.sync.reading import Reading

Format = Literal["table", "jsonl", "parquet", "csv"]

#: Characters that a column has at least, and at most.
_NARROW, _WIDE = 14, 40


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


def print_tables(console: Console, reading: Reading) -> None:
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


def write_files(
    reading: Reading, streams: list[ConfiguredStream], form: Format, output: str | None
) -> list[Path]:
    """Write each stream to a file of its own; the files made, none where it went to stdout.

    ``output`` is a file, a folder where there are several streams, or stdout (``-`` or None).

    Raises:
        ConfigError: several streams cannot go into one place, or it cannot be written.
    """
    names = [stream.descriptor for stream in streams]
    to_stdout = output in (None, "-")
    if to_stdout and len(names) > 1:
        raise ConfigError(
            f"The source has {len(names)} streams, and {form} holds one; name it with --stream, "
            "or a folder with --output."
        )
    try:
        with ExitStack() as stack:
            sinks: dict[StreamDescriptor, BinaryIO] = {}
            paths = {} if to_stdout else _paths(Path(output or ""), names, form)
            for name in names:
                sinks[name] = (
                    sys.stdout.buffer if to_stdout else stack.enter_context(whole_file(paths[name]))
                )
            if form == "jsonl":
                _write_lines(reading, sinks)
            else:
                _write_batches(reading, streams, sinks, form)
            sys.stdout.flush()
        return list(paths.values())
    except BrokenPipeError:
        # Whoever read our stdout has had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return []
    except OSError as error:
        raise ConfigError(
            f"{output} cannot be written ({error.strerror}); choose another --output."
        ) from error


def _write_lines(reading: Reading, sinks: dict[StreamDescriptor, BinaryIO]) -> None:
    """Records as the source wrote them, byte for byte."""
    for found in reading.records():
        sink = sinks[StreamDescriptor(found.stream, found.namespace)]
        sink.writelines(bytes(record.data) + b"\n" for record in found.records)


def _write_batches(
    reading: Reading,
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
            schema = TableSchema.of(stream).arrow
            writers[stream.descriptor] = stack.enter_context(make(sinks[stream.descriptor], schema))
        for name, batch in reading.batches():
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


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` once everything is in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        # As any new file, not as a private one.
        Path(unfinished).chmod(0o666 & ~_umask())
        Path(unfinished).replace(path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
