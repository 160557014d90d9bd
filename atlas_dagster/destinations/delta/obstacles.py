"""Features of a Delta table that keep Atlas from writing to it; other programs may add them.

deltalake 1.6.6 ignores some of them silently; other readers would then see NULLs, or rows that
violate a constraint.
"""

from collections.abc import Iterator

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

#: Table features that do not restrict Atlas's commits, or only if a column or a property uses them,
#: which is checked separately.
_HARMLESS = frozenset(
    {
        "appendOnly",
        "changeDataFeed",
        "checkConstraints",
        "columnMapping",
        "deletionVectors",
        "generatedColumns",
        "invariants",
        "timestampNtz",
        "v2Checkpoint",
        "variantType",
    }
)
#: Writer version for tables with identity columns, which deltalake does not write.
_IDENTITY_COLUMNS = 6
#: Metadata keys of columns with a rule, and the name of that rule in messages.
_RULES = {
    "delta.invariants": "an invariant on column",
    "delta.generationExpression": "the generated column",
    "delta.identity.start": "the identity column",
}
_REFRESH = "remove it, or refresh the stream, which creates the table without it"
_MOVE = "remove it, or move or delete the table; the stream is then read from the beginning"


def find_obstacles(handle: DeltaTable, *, replaces: bool, removes: bool) -> list[str]:
    """Describe what prevents a commit; the last text ends with the fix for all.

    ``replaces``: the commit recreates the table, without most obstacles. ``removes``: it removes
    files.
    """
    permanent = [*_find_permanent(handle, removes=removes)]
    removable = [] if replaces else [*_find_removable(handle, removes=removes)]
    found = permanent + removable
    if found:
        found[-1] += f", which Atlas cannot write to: {_MOVE if permanent else _REFRESH}"
    return found


def _find_permanent(handle: DeltaTable, *, removes: bool) -> Iterator[str]:
    """Yield the obstacles that no commit of deltalake removes."""
    protocol = handle.protocol()
    features = {*(protocol.reader_features or ()), *(protocol.writer_features or ())}
    for feature in sorted(features - _HARMLESS):
        yield f"the table feature {feature}"
    if protocol.min_writer_version == _IDENTITY_COLUMNS:
        yield f"writer version {_IDENTITY_COLUMNS}"
    if removes and handle.metadata().configuration.get("delta.appendOnly") == "true":
        yield "the property delta.appendOnly"


def _find_removable(handle: DeltaTable, *, removes: bool) -> Iterator[str]:
    """Yield the obstacles that disappear when the table is recreated."""
    metadata = handle.metadata()
    mode = metadata.configuration.get("delta.columnMapping.mode", "none")
    if mode != "none":
        yield f"column mapping (delta.columnMapping.mode = {mode})"
    if metadata.partition_columns:
        yield f"partition columns ({', '.join(metadata.partition_columns)})"
    for key, rule in metadata.configuration.items():
        if key.startswith("delta.constraints."):
            yield f"the constraint {key.removeprefix('delta.constraints.')} ({rule})"
    for field in handle.schema().fields:
        for key, rule in _RULES.items():
            if key in field.metadata:
                yield f"{rule} {field.name}"
        if not field.nullable:
            yield f"the NOT NULL column {field.name}"
    # An append is safe, but a merge would read the deleted rows of such files.
    if removes and _has_deletion_vectors(handle):
        yield "deletion vectors (the table feature deletionVectors)"


def _has_deletion_vectors(handle: DeltaTable) -> bool:
    if "deletionVectors" not in (handle.protocol().reader_features or ()):
        return False
    if handle.metadata().configuration.get("delta.enableDeletionVectors") == "true":
        return True
    try:
        return bool(pa.table(handle.deletion_vectors()).num_rows)
    except (DeltaError, OSError):  # deletion vectors exist, but cannot be read
        return True
