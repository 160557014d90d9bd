"""The readable summary of a sync: a few lines of Markdown and a few rows."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import dagster as dg
import msgspec
import pyarrow as pa
from msgspec import Raw

from atlas_dagster.orchestration.step.event_repair import unreserve
from atlas_dagster.orchestration.step.telemetry import RunTotals
from atlas_dagster.protocol.nesting import levels
from atlas_dagster.records.issues import ValueChange
from atlas_dagster.records.types import METADATA_FIELDS
from atlas_dagster.sync.events import StreamFinished
from atlas_dagster.wording import plural

#: Hides secret values in a text.
Mask = Callable[[str], str]

#: The UI shows Markdown of at most this many characters on the page, longer text behind a link.
_LONGEST = 999
_LONGEST_CURSOR = 120
_MOST_FIELDS = 5
_MOST_COLUMNS = 6
_LONGEST_VALUE = 32
#: Levels of JSON that Dagster's serializer can follow.
_DEEPEST_SHOWN = 100
_MARKUP = re.compile(r"[\\`*_{}\[\]<>#|~]")


def summary(finished: StreamFinished, totals: RunTotals, mask: Mask) -> str:
    """Describe a sync of one stream: records, speed, cursor before and after, warnings."""
    stream, numbers = finished.plan.configured, totals.of(finished.plan.table.path)
    mode = f"{stream.sync_mode} | {stream.destination_sync_mode}"
    rows = f"The table has {plural(finished.table.row_count, 'row')}."
    if numbers.records_synced:
        seconds = totals.seconds
        rate = numbers.records_synced / max(seconds, 0.001)
        read = f"**{plural(numbers.records_synced, 'record')}** in {seconds:,.1f} s "
        read += f"({rate:,.0f} a second, {numbers.bytes_synced / 1e6:,.2f} MB), {mode}. {rows}"
    else:
        read = f"**Nothing new**, {mode}. {rows}"
    first_state = totals.first_state(finished.plan.table.path)
    lines = [read, _cursors(first_state, finished.cursor_after, mask)]
    lines += [f"**Warning:** {escape(mask(warning))}" for warning in finished.warnings]
    return join_bounded([*lines, *changed_values(finished.changes)])


def join_bounded(lines: Iterable[str]) -> str:
    """Join as many paragraphs as the UI can show on the page."""
    text = ""
    for line in lines:
        longer = f"{text}\n\n{line}" if text else line
        if len(longer) > _LONGEST - 3:
            return f"{text}\n\n…" if text else line[: _LONGEST - 1] + "…"
        text = longer
    return text


def preview(sample: pa.RecordBatch | None, mask: Mask) -> dg.TableMetadataValue | None:
    """Return the rows of ``sample``, without Airbyte's columns; long rows and values are cut."""
    if sample is None:
        return None
    own = {field.name for field in METADATA_FIELDS}
    names = [name for name in sample.schema.names if name not in own][:_MOST_COLUMNS]
    if not names:
        return None
    records = [
        dg.TableRecord({unreserve(name): format_value(value, mask) for name, value in row.items()})
        for row in sample.select(names).to_pylist()
    ]
    columns = [
        dg.TableColumn(unreserve(name), str(sample.schema.field(name).type)) for name in names
    ]
    return dg.MetadataValue.table(records, dg.TableSchema(columns))


def format_value(value: object, mask: Mask) -> str | None:
    if value is None:
        return None
    # Cut last: a part of a secret would not be masked.
    return shorten(mask(str(value)), _LONGEST_VALUE)


def shorten(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def escape(text: str) -> str:
    """Escape ``text`` for Markdown."""
    return _MARKUP.sub(r"\\\g<0>", text)


def format_code(text: str) -> str:
    """Return ``text`` as code in Markdown."""
    return "`` {} ``".format(text.replace("`", "'"))


def format_cursor(blob: Raw | None, mask: Mask) -> str:
    """Return a state as one line of Markdown."""
    shown = shown_state(blob)
    # json.dumps writes spaces, where the page can break the line.
    text = shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
    return escape(shorten(mask(text), _LONGEST_CURSOR))


def shown_state(blob: Raw | None, *, longest: int = 4096) -> Any:
    """Return a readable state: its JSON, its text if it cannot be parsed, or its size."""
    if blob is None:
        return "none"
    content = bytes(blob)
    if len(content) > longest:
        return f"{len(content) / 1024:,.0f} KB, not shown"
    try:
        if levels(content) <= _DEEPEST_SHOWN:
            return msgspec.json.decode(content)
    except msgspec.MsgspecError:  # such as a number that is too large
        pass
    return content.decode("utf-8", "replace")


def _cursors(before: Raw | None, after: Raw | None, mask: Mask) -> str:
    if before is None and after is None:
        return "Read from the beginning."
    was, now = (format_cursor(blob, mask) for blob in (before, after))
    return f"Cursor: {was}" if was == now else f"Cursor: {was} → {now}"


def changes_by_field(changes: Mapping[ValueChange, int]) -> dict[str, Counter[str]]:
    """Count the changes (NULLED, TRUNCATED) of each field, the most changed field first."""
    by_field: dict[str, Counter[str]] = {}
    for change, count in changes.items():
        by_field.setdefault(change.field, Counter())[change.change or "changed"] += count
    return dict(sorted(by_field.items(), key=lambda item: -item[1].total()))


def changed_values(changes: Mapping[ValueChange, int]) -> Iterator[str]:
    """Describe values that differ from the source's, in paragraphs."""
    most = list(changes_by_field(changes).items())
    listed = [
        f"{format_code(field) if field else 'whole rows'}: "
        + ", ".join(f"{count:,} {how}" for how, count in kinds.items())
        for field, kinds in most[:_MOST_FIELDS]
    ]
    if len(most) > _MOST_FIELDS:
        listed.append(f"{len(most) - _MOST_FIELDS} other fields")
    if listed:
        yield "Values changed by the source, or to fit their columns (`_airbyte_meta.changes`):"
        yield "\n".join(f"- {line}" for line in listed)
