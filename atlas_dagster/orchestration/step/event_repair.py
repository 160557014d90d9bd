"""Repair of stored events that Dagster cannot read.

Earlier versions stored a source's names as keys of tables and JSON. Dagster's serializer reserves
some names (``__class__``) and cannot read such an event: syncs, sensors and UI pages failed.
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

#: The names that Dagster's serializer reserves.
_TAKEN = frozenset({"__class__", "__enum__", "__frozenset__", "__mapping_items__", "__set__"})
#: The serialized classes whose keys are a source's names.
_HOLDERS = ("TableRecord", "JsonMetadataEntryData")
_UNREADABLE = (DeserializationError, CheckError, ValueError)
T = TypeVar("T")


def unreserve(name: str) -> str:
    """Return ``name`` as a key that looks the same but is not reserved."""
    return f" {name}" if name.startswith("__") else name


def read_with_repair(
    instance: dg.DagsterInstance, keys: Collection[dg.AssetKey], read: Callable[[], T]
) -> T:
    """Return ``read()``. If it fails, repair the events of the assets ``keys`` and try again."""
    try:
        return read()
    except _UNREADABLE:
        if not _repair(instance, keys):
            raise
        return read()


def _repair(instance: dg.DagsterInstance, keys: Collection[dg.AssetKey]) -> bool:
    """Repair the events of these assets. Return whether there were any to repair."""
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
            if (repaired := _repair_text(text)) is not None:
                change = sa.update(AssetKeyTable).where(assets.id == id_)
                connection.execute(change.values(last_materialization=repaired))
                changed = True
        runs = _repair_events(connection, found)
    # SQLite has a file for each run, and copies of asset events in another one.
    for run_id in runs:
        with storage.run_connection(run_id) as connection:
            _repair_events(connection, found.where(events.run_id == run_id))
    return changed or bool(runs)


def _repair_events(connection: Any, found: Any) -> set[str]:
    """Repair the events in ``found``. Return their runs."""
    runs = set()
    for id_, run_id, text in connection.execute(found).fetchall():
        if (repaired := _repair_text(text)) is not None:
            change = sa.update(SqlEventLogStorageTable).where(SqlEventLogStorageTable.c.id == id_)
            connection.execute(change.values(event=repaired))
            runs.add(run_id)
    return runs


def _repair_text(text: str | None) -> str | None:
    """Return the event with its reserved keys renamed; None if it has none."""
    if text is None or not any(f'"{holder}"' in text for holder in _HOLDERS):
        return None
    event = json.loads(text)
    return json.dumps(event) if _relabel(event, inside=False) else None


def _relabel(value: Any, *, inside: bool) -> bool:
    """Rename reserved keys ``inside`` of the holders. Return whether there were any."""
    if isinstance(value, list):
        return sum(_relabel(each, inside=inside) for each in value) > 0
    if not isinstance(value, dict):
        return False
    if not inside and value.get("__class__") in _HOLDERS:
        return _relabel(value.get("data"), inside=True)
    changed = sum(_relabel(each, inside=inside) for each in value.values()) > 0
    taken = _TAKEN & value.keys() if inside else ()
    for name in taken:
        value[unreserve(name)] = value.pop(name)
    return changed or bool(taken)
