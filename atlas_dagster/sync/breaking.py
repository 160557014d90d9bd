"""Changes of a source that a table cannot follow: it must be read again.

They are those of the Airbyte platform: the cursor's field is gone, a field of the key is gone, or
the key is another one. New, missing and changed columns are no such thing.
"""

from collections.abc import Collection, Mapping

from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.errors import BreakingChangeError, ConfigError
from atlas_dagster.protocol.catalog import ConfiguredStream, FieldPath
from atlas_dagster.records.columns import TableColumns
from atlas_dagster.records.types import TableSchema, declares

_AGAIN = "refresh the stream to read it again"


def refuse_breaking_change(
    stream: ConfiguredStream, last: Envelope, unpublished: Collection[str]
) -> None:
    """Compare ``stream`` with its ``last`` commit and the fields its table ``unpublished`` then.

    Raises:
        BreakingChangeError: it cannot go on from there.
    """
    name, schema = stream.descriptor, stream.stream.json_schema
    cursor, key = stream.cursor_field, stream.primary_key
    if stream.sync_mode == "incremental" and _is_gone(cursor, schema, unpublished):
        raise BreakingChangeError(
            f"The source no longer has the field '{'.'.join(cursor)}', the cursor of stream "
            f"'{name}', so it is not known where to continue; choose another cursor_field, or "
            f"discover the source again if it is back, and {_AGAIN}.",
            stream=str(name),
        )
    if stream.destination_sync_mode != "append_dedup":
        return
    before = last.commit_of(name).primary_key
    if before and set(before) != set(key):
        raise BreakingChangeError(
            f"Stream '{name}' has a new primary key, {_listed(key)} instead of {_listed(before)}, "
            f"so new rows cannot be matched with those in the table; {_AGAIN}.",
            stream=str(name),
        )
    for path in key:
        if _is_gone(path, schema, unpublished):
            raise BreakingChangeError(
                f"The source no longer has the field '{'.'.join(path)}', which is in the primary "
                f"key of stream '{name}', so new rows cannot be matched with those in the table; "
                f"choose another primary_key and {_AGAIN}.",
                stream=str(name),
            )


def has_other_cursor(stream: ConfiguredStream, last: Envelope | None) -> bool:
    """Whether ``stream`` is to be read by another cursor than the state of ``last`` is of.

    A source that defines its cursor itself ignores the declared one.
    """
    if last is None or stream.sync_mode != "incremental" or stream.stream.source_defined_cursor:
        return False
    before = last.commit_of(stream.descriptor).cursor_field
    return before is not None and before != stream.cursor_field


def refuse_other_cursor(connection: str, stream: ConfiguredStream, last: Envelope) -> None:
    """The value of one cursor, compared with another, would skip rows for ever.

    Raises:
        BreakingChangeError: the stream has another cursor than its state.
    """
    if has_other_cursor(stream, last):
        before = last.commit_of(stream.descriptor).cursor_field or ()
        raise BreakingChangeError(
            f"Stream '{stream.descriptor}' has cursor_field '{'.'.join(stream.cursor_field)}', but "
            f"its stored state is of '{'.'.join(before)}', and to go on from there would skip "
            "rows: declare the old one again, or read the stream again with "
            f"`atlas refresh {connection} --stream {stream.descriptor}`.",
            stream=str(stream.descriptor),
        )


def refuse_new_key_column(
    stream: ConfiguredStream, wanted: TableSchema, known: TableColumns
) -> None:
    """Compare the key's columns in ``wanted`` with those that the table has, if it has any.

    Raises:
        BreakingChangeError: it lacks one, so its rows have no key.
    """
    if stream.destination_sync_mode != "append_dedup" or not known.fields:
        return
    columns = {column.name: column for column in wanted.columns}
    for path in stream.primary_key:
        column = columns[column_at(wanted, stream, path)]
        if known.find(column) is None:
            is_known = column.field in known.fields
            new = "a new type for its key" if is_known else "the new key field"
            raise BreakingChangeError(
                f"Stream '{stream.descriptor}' has {new} '{'.'.join(path)}', so new rows cannot be "
                f"matched with those in the table; {_AGAIN}.",
                stream=str(stream.descriptor),
            )


def column_at(schema: TableSchema, stream: ConfiguredStream, path: FieldPath) -> str:
    """The column of a key or cursor. Raises ConfigError if there is none."""
    try:
        return schema.column_of(*path)
    except KeyError:
        raise ConfigError(
            f"Stream '{stream.descriptor}' has no field '{'.'.join(path)}' to be its key or "
            f"cursor; its fields are {', '.join(column.field for column in schema.top_level)}."
        ) from None


def _is_gone(path: FieldPath, schema: Mapping[str, object], unpublished: Collection[str]) -> bool:
    return bool(path) and path[0] in unpublished and not declares(schema, path)


def _listed(key: Collection[FieldPath]) -> str:
    return ", ".join(f"'{'.'.join(path)}'" for path in key)
