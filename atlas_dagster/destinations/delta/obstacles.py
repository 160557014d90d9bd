"""What others may have made of a Delta table that Atlas cannot write to as it is.

deltalake commits to some of these without a word, and the rows are then NULL, or against a rule,
for every other reader (deltalake 1.6.6).
"""

from collections.abc import Iterator

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

#: Table features that ask nothing of rows as we write them, or only where a column or a property
#: makes use of them, which is looked for.
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
#: Writer version from which a table may have identity columns, which deltalake does not write.
_IDENTITY_COLUMNS = 6
#: Where a field's metadata makes a rule, and what it is called.
_RULES = {
    "delta.invariants": "an invariant on column",
    "delta.generationExpression": "the generated column",
    "delta.identity.start": "the identity column",
}
_REFRESH = "remove it, or refresh the stream, which makes the table anew without"
_MOVE = "remove it, or move or delete the table, and the stream is read from the beginning"


def obstacles(handle: DeltaTable, *, replaces: bool, removes: bool) -> list[str]:
    """What is in the way of a commit, in words, the last with what to do about all.

    ``replaces``: the commit makes the table anew, without most of these. ``removes``: it takes
    files away.
    """
    lasting = [*_lasting(handle, removes=removes)]
    passing = [] if replaces else [*_passing(handle, removes=removes)]
    found = lasting + passing
    if found:
        found[-1] += f", which Atlas cannot write to: {_MOVE if lasting else _REFRESH}"
    return found


def _lasting(handle: DeltaTable, *, removes: bool) -> Iterator[str]:
    """What no commit of deltalake takes away."""
    protocol = handle.protocol()
    features = {*(protocol.reader_features or ()), *(protocol.writer_features or ())}
    for feature in sorted(features - _HARMLESS):
        yield f"the table feature {feature}"
    if protocol.min_writer_version == _IDENTITY_COLUMNS:
        yield f"writer version {_IDENTITY_COLUMNS}"
    if removes and handle.metadata().configuration.get("delta.appendOnly") == "true":
        yield "the property delta.appendOnly"


def _passing(handle: DeltaTable, *, removes: bool) -> Iterator[str]:
    """What goes when the table is made anew."""
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
    # Rows are only added beside such files, but a merge reads them as they are.
    if removes and _has_deletion_vectors(handle):
        yield "deletion vectors (the table feature deletionVectors)"


def _has_deletion_vectors(handle: DeltaTable) -> bool:
    if "deletionVectors" not in (handle.protocol().reader_features or ()):
        return False
    if handle.metadata().configuration.get("delta.enableDeletionVectors") == "true":
        return True
    try:
        return bool(pa.table(handle.deletion_vectors()).num_rows)
    except (DeltaError, OSError):  # there are, and they cannot be read
        return True
