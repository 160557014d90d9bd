"""The state store in Dagster's event log: what materializations and observations carry."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from atlas_dagster.destinations.base import TablePath
from atlas_dagster.orchestration.envelope_text import from_text
from atlas_dagster.orchestration.metadata import AtlasMetadataSet, envelope_of
from atlas_dagster.orchestration.translator import table_key
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.state.envelope import Envelope
from atlas_dagster.state.reconcile import Remembered


class EventLogStateStore:
    """Reads the newest envelope of each stream from its asset's events.

    A state that covers several streams is written out once, on the asset of their ``source``.
    ``key`` says which asset a table is.
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
        #: The connectors that the newest materializations of the streams asked for name.
        self.connectors: set[str] = set()

    def remembered(
        self,
        tables: Mapping[StreamDescriptor, TablePath],
        committed: Mapping[StreamDescriptor, int | None],
    ) -> Mapping[StreamDescriptor, Remembered]:
        """One query for all streams (and one for a state they share), and one more for each whose
        newest materialization is not of its table's last commit: a sync died after it, or somebody
        else reported one.
        """
        keys = {self._key(path): name for name, path in tables.items()}
        found: dict[StreamDescriptor, Remembered] = {}
        for record in self._instance.get_asset_records(list(keys)):
            entry = record.asset_entry
            details = entry.asset_details
            envelopes: list[Envelope | None] = []
            if entry.last_materialization is not None:
                materialization = entry.last_materialization.asset_materialization
                own = AtlasMetadataSet.extract(materialization.metadata if materialization else {})
                envelopes.append(None if own.envelope is None else from_text(own.envelope))
                if own.connector is not None:
                    self.connectors.add(own.connector)
            stream = keys[entry.asset_key]
            if not any(known and known.seq == committed.get(stream) for known in envelopes):
                envelopes.append(self._observed(entry.asset_key))
            found[stream] = Remembered(
                envelope=max(
                    (envelope for envelope in envelopes if envelope is not None),
                    key=lambda envelope: envelope.seq,
                    default=None,
                ),
                wiped_at=details.last_wipe_timestamp if details else None,
            )
        return self._written_out(found)

    def history(self, table: TablePath, limit: int) -> Sequence[tuple[Envelope, Any]]:
        """The last commits to ``table``, newest first, each with its cursor as it is shown."""
        found = []
        for event in self._instance.fetch_observations(self._key(table), limit=limit).records:
            observation = event.asset_observation
            own = AtlasMetadataSet.extract(observation.metadata if observation else {})
            if own.envelope is not None:
                cursor = own.cursor_after
                found.append((from_text(own.envelope), cursor and cursor.value))
        return found

    def _written_out(
        self, found: dict[StreamDescriptor, Remembered]
    ) -> dict[StreamDescriptor, Remembered]:
        """With references to the shared state replaced by it, where it is of the same commit."""
        if not any(each.envelope and each.envelope.is_reference for each in found.values()):
            return found
        shared = self._observed(self._source)
        for stream, each in found.items():
            known = each.envelope
            if known and known.is_reference and shared and known.seq == shared.seq:
                found[stream] = Remembered(shared, each.wiped_at)
        return found

    def _observed(self, key: dg.AssetKey) -> Envelope | None:
        """The envelope of the newest observation."""
        for event in self._instance.fetch_observations(key, limit=1).records:
            observation = event.asset_observation
            return envelope_of(observation.metadata if observation else {})
        return None
