"""The state log in Dagster's events: envelopes of materializations and observations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from atlas_dagster.destinations.base import TablePath
from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.orchestration.dagster_internals import TableMetadataSet
from atlas_dagster.orchestration.definitions.translator import table_key
from atlas_dagster.orchestration.step.event_repair import read_with_repair
from atlas_dagster.orchestration.step.metadata import (
    RECORDS_SYNCED,
    AtlasMetadataSet,
    envelope_of,
)
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.sync.resume import LoggedState

#: Observations that are searched for the newest one of Atlas; other programs may add theirs.
_OTHERS = 50
#: The page size of a search for an old observation.
_PAGE = 200


class EventLogStateStore:
    """Reads the newest envelope of each stream from its asset's events.

    A state that covers several streams is stored once, on the asset of their ``source``. ``key``
    returns the asset of a table.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        source: dg.AssetKey,
        key: Callable[[TablePath], dg.AssetKey] = table_key,
    ) -> None:
        self._instance = instance
        self._source = source
        self._key = key
        #: These are from the newest materializations. ``recent_records`` are the numbers of records
        #: of the last syncs, newest first.
        self.connectors: set[str] = set()
        self.columns: dict[TablePath, dg.TableSchema] = {}
        self.recent_records: dict[TablePath, list[int]] = {}

    def last_logged(
        self,
        tables: Mapping[StreamDescriptor, TablePath],
        committed: Mapping[StreamDescriptor, int | None],
    ) -> Mapping[StreamDescriptor, LoggedState]:
        """Return the last logged state of each stream.

        This takes one query for all streams, one for a shared state, and one for each stream whose
        newest materialization is not of its table's last commit. That happens if a sync was killed
        after the commit, or if another program reported a materialization.
        """
        keys = {self._key(path): name for name, path in tables.items()}
        found: dict[StreamDescriptor, LoggedState] = {}
        records = read_with_repair(
            self._instance, keys, lambda: self._instance.get_asset_records(list(keys))
        )
        for record in records:
            entry = record.asset_entry
            stream = keys[entry.asset_key]
            details = entry.asset_details
            envelopes: list[Envelope | None] = []
            if entry.last_materialization is not None:
                materialization = entry.last_materialization.asset_materialization
                metadata = materialization.metadata if materialization else {}
                envelopes.append(envelope_of(metadata))
                self._remember(tables[stream], metadata)
            if not any(known and known.seq == committed.get(stream) for known in envelopes):
                envelopes.append(self._find_newest_envelope(entry.asset_key))
            found[stream] = LoggedState(
                envelope=max(
                    (envelope for envelope in envelopes if envelope is not None),
                    key=lambda envelope: envelope.seq,
                    default=None,
                ),
                wiped_at=details.last_wipe_timestamp if details else None,
            )
        return self._resolve_references(found)

    def _remember(self, table: TablePath, metadata: Mapping[str, Any]) -> None:
        own = AtlasMetadataSet.extract(metadata)
        columns = TableMetadataSet.extract(metadata).column_schema
        if own.connector is None:
            return  # another program reported it
        self.connectors.add(own.connector)
        synced = [metadata[RECORDS_SYNCED].value] if RECORDS_SYNCED in metadata else []
        self.recent_records[table] = [*synced, *map(int, (own.records_before or "").split())]
        if columns is not None:
            self.columns[table] = columns

    def history(self, table: TablePath, limit: int) -> Sequence[tuple[Envelope, Any]]:
        """Return the last commits to ``table``, newest first, each with a readable cursor."""
        found = []
        for metadata in self._fetch_observations(self._key(table), limit):
            envelope = envelope_of(metadata)
            if envelope is not None:
                cursor = AtlasMetadataSet.extract(metadata).cursor_after
                found.append((envelope, cursor and cursor.value))
        return found

    def _resolve_references(
        self, found: dict[StreamDescriptor, LoggedState]
    ) -> dict[StreamDescriptor, LoggedState]:
        """Replace references to the shared state by that state, if it is of the same commit."""
        if not any(each.envelope and each.envelope.is_reference for each in found.values()):
            return found
        shared = self._find_newest_envelope(self._source)
        for stream, each in found.items():
            known = each.envelope
            if known and known.is_reference and shared and known.seq == shared.seq:
                found[stream] = LoggedState(shared, each.wiped_at)
        return found

    def find(self, table: TablePath, seq: int) -> Envelope | None:
        """Search all observations of the asset and of its source for commit ``seq``."""
        for key in (self._key(table), self._source):
            cursor, more = None, True
            while more:
                page = self._instance.fetch_observations(key, limit=_PAGE, cursor=cursor)
                cursor, more = page.cursor, page.has_more
                for event in page.records:
                    seen = event.asset_observation
                    envelope = envelope_of(seen.metadata) if seen else None
                    if envelope is not None and envelope.seq == seq and not envelope.is_reference:
                        return envelope
        return None

    def _find_newest_envelope(self, key: dg.AssetKey) -> Envelope | None:
        """Return the newest envelope; other programs may have reported newer observations."""
        for limit in (1, _OTHERS):
            found = self._fetch_observations(key, limit)
            envelopes = (envelope_of(metadata) for metadata in found)
            envelope = next((each for each in envelopes if each is not None), None)
            if envelope is not None or len(found) < limit:
                return envelope
        return None

    def _fetch_observations(self, key: dg.AssetKey, limit: int) -> Sequence[Mapping[str, Any]]:
        """Return the metadata of the newest observations."""
        events = read_with_repair(
            self._instance,
            [key],
            lambda: self._instance.fetch_observations(key, limit=limit).records,
        )
        return [o.metadata if (o := event.asset_observation) else {} for event in events]
