"""Events that Dagster cannot read back, mended where they are stored.

Earlier versions stored names and states of a source as keys of tables and JSON. Dagster's
serializer keeps some names for itself (``__class__``), and nobody could read such an event any
more: no sync, no sensor, no page of the UI.
"""

import json
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import dagster as dg
import sqlalchemy as sa

from atlas_dagster.orchestration.dagster_internals import (
    AssetKeyTable,
    CheckError,
    DeserializationError,
    SqlEventLogStorage,
    SqlEventLogStorageTable,
)

#: Names that Dagster's serializer keeps for itself.
_TAKEN = frozenset({"__class__", "__enum__", "__frozenset__", "__mapping_items__", "__set__"})
#: What holds keys that are a source's, as the serializer calls it.
_HOLDERS = ("TableRecord", "JsonMetadataEntryData")
_UNREADABLE = (DeserializationError, CheckError, ValueError)
T = TypeVar("T")


def label(name: str) -> str:
    """``name`` as a key that the serializer leaves alone; it looks the same."""
    return f" {name}" if name.startswith("__") else name


def readable(
    instance: dg.DagsterInstance, keys: Collection[dg.AssetKey], read: Callable[[], T]
) -> T:
    """What ``read`` brings of the assets of ``keys``, once what it cannot read is mended."""
    try:
        return read()
    except _UNREADABLE:
        if not _mend(instance, keys):
            raise
        return read()


def _mend(instance: dg.DagsterInstance, keys: Collection[dg.AssetKey]) -> bool:
    """Whether there was anything to mend."""
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        return False
    names = [key.to_string() for key in keys]
    events, assets = SqlEventLogStorageTable.c, AssetKeyTable.c
    found = sa.select(events.id, events.run_id, events.event).where(events.asset_key.in_(names))
    changed = False
    with storage.index_connection() as connection:
        last = sa.select(assets.id, assets.last_materialization).where(assets.asset_key.in_(names))
        for id_, text in connection.execute(last).fetchall():
            if (mended := _mended(text)) is not None:
                change = sa.update(AssetKeyTable).where(assets.id == id_)
                connection.execute(change.values(last_materialization=mended))
                changed = True
        runs = _mend_events(connection, found)
    # SQLite has a file for each run, and copies of what happened to assets in another.
    for run_id in runs:
        with storage.run_connection(run_id) as connection:
            _mend_events(connection, found.where(events.run_id == run_id))
    return changed or bool(runs)


def _mend_events(connection: Any, found: Any) -> set[str]:
    """Mend what is ``found``; the runs whose events it was."""
    runs = set()
    for id_, run_id, text in connection.execute(found).fetchall():
        if (mended := _mended(text)) is not None:
            change = sa.update(SqlEventLogStorageTable).where(SqlEventLogStorageTable.c.id == id_)
            connection.execute(change.values(event=mended))
            runs.add(run_id)
    return runs


def _mended(text: str | None) -> str | None:
    """The event without such keys; None where it has none."""
    if text is None or not any(f'"{holder}"' in text for holder in _HOLDERS):
        return None
    event = json.loads(text)
    return json.dumps(event) if _relabel(event, inside=False) else None


def _relabel(value: Any, *, inside: bool) -> bool:
    """Change keys ``inside`` of what a source named; whether there were any."""
    if isinstance(value, list):
        return sum(_relabel(each, inside=inside) for each in value) > 0
    if not isinstance(value, dict):
        return False
    if not inside and value.get("__class__") in _HOLDERS:
        return _relabel(value.get("data"), inside=True)
    changed = sum(_relabel(each, inside=inside) for each in value.values()) > 0
    taken = _TAKEN & value.keys() if inside else ()
    for name in taken:
        value[label(name)] = value.pop(name)
    return changed or bool(taken)
