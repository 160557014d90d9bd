"""Merge of staged rows by key. It runs SQL and compares the odd cursors that SQL cannot.

Odd are cursors that their column cannot hold exactly, and dates in several text formats. They are
compared in the order of :mod:`~atlas_dagster.destinations.exact_values`, only for keys that have
one. Of the staged rows of such a key, only the winner stays staged.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from atlas_dagster.destinations.exact_values import order_of
from atlas_dagster.destinations.postgres.columns import ARRIVAL
from atlas_dagster.destinations.postgres.connection import Database
from atlas_dagster.destinations.postgres.merge import DECIDED, Merge
from atlas_dagster.records.types import ColumnType

#: The cursor as comparable bytes, None if it does not compare; and microseconds of the extraction.
_Version = tuple[bytes | None, int]


class Merged(Struct, frozen=True):
    """``more``: rows the table gained. ``late``: rows that lost to one that arrived before."""

    more: int
    late: int


class KeyedMerge:
    """Runs the statements of ``merge``, as part of a transaction.

    Args:
        kind: the type of the cursor, if there is one.
        kept: ``dict[field, whether _airbyte_extra of the table keeps values]``, for known fields;
            :meth:`run` completes it for all fields that rows are compared by.
        tombstones: temporary table for the rows of this sync that deleted their key, quoted.
    """

    def __init__(
        self,
        database: Database,
        merge: Merge,
        *,
        kind: ColumnType | None,
        kept: Mapping[str, bool],
        tombstones: str | None,
    ) -> None:
        self._database = database
        self._merge = merge
        self._kind = kind
        self._tombstones = tombstones
        self.kept = dict(kept)
        self._more = 0
        self._late = 0

    def run(self) -> Merged:
        merge = self._merge
        if self._tombstones is not None:
            self._restage_tombstones(self._tombstones)
        if not self.kept.keys() >= {*merge.fields}:
            (found,) = self._database.rows(merge.describe_table())
            self.kept |= {field: found[f"kept_{n}"] for n, field in enumerate(merge.fields)}
        (facts,) = self._database.rows(merge.describe_stage())
        staged = {field: facts[f"kept_{n}"] for n, field in enumerate(merge.fields)}
        self.kept |= {field: True for field, is_staged in staged.items() if is_staged}
        merge.kept = [field for field, is_kept in self.kept.items() if is_kept]
        merge.has_resets = facts.get("resets", False)
        odd = facts.get("is_json", False) or facts.get("forms", 0) > 1
        odd = odd or (merge.cursor is not None and staged[merge.cursor.source])
        patterns = [[False] * merge.width]
        if facts["null_keys"]:
            self._more += self._database.run(merge.insert_keyless())
            patterns = [[*found.values()] for found in self._database.rows(merge.null_patterns())]
        keys = 0
        for nulls in patterns:
            if odd:
                self._compare_odd_versions(nulls, in_table=False)
            keys += self._merge_pattern(nulls)
        if keys < facts["rows"]:
            for nulls in patterns:
                (lost,) = self._database.rows(merge.count_late(nulls))
                self._late += lost["late"]
        return Merged(self._more, self._late)

    def delete_duplicates(self) -> int:
        """Delete all but the newest row of each key from the table; return their number."""
        gone = 0
        if self._merge.cursor is not None:
            places = []
            for twins in _by_key(self._database.rows(self._merge.select_odd_duplicates())):
                winner = _newest([self._version(row, "s") for row in twins])
                places += [row["place"] for n, row in enumerate(twins) if n != winner]
            if places:
                gone = self._database.run(self._merge.delete_places(places))
        return gone + self._database.run(self._merge.delete_duplicates())

    def _merge_pattern(self, nulls: Sequence[bool]) -> int:
        """Merge the staged rows with these ``nulls``; return the number of their keys."""
        found, lost = self._apply(nulls)
        if lost and self._merge.may_be_odd and self._compare_odd_versions(nulls, in_table=True):
            _, lost = self._apply(nulls)
        self._late += lost
        if self._tombstones is not None:
            self._database.run(self._merge.copy_tombstones(nulls, self._tombstones))
        return found

    def _apply(self, nulls: Sequence[bool]) -> tuple[int, int]:
        """Run the merge; return the numbers of staged keys, and of keys whose row stays."""
        merge = self._merge
        dead = refused = 0
        if merge.deleted_at is not None:
            self._more -= self._database.run(merge.delete(nulls))
            (deleted,) = self._database.rows(merge.count_deleted(nulls))
            dead, refused = deleted["found"], deleted["refused"]
        (done,) = self._database.rows(merge.upsert(nulls))
        self._more += done["inserted"]
        lost = done["found"] - done["updated"] - done["inserted"]
        return done["found"] + dead, lost + refused

    def _compare_odd_versions(self, nulls: Sequence[bool], *, in_table: bool) -> bool:
        """Compare the versions that SQL cannot; return whether there are any."""
        staged: list[int] = []
        winners: list[int] = []
        for rows in _by_key(
            self._database.rows(self._merge.select_odd_versions(nulls, in_table=in_table))
        ):
            versions = [self._version(row, "s") for row in rows]
            if rows[0]["in_table"]:
                versions.insert(0, self._version(rows[0], "t"))
            winner = _newest(versions)
            self._late += len(versions) - 1 - winner
            place = winner - len(versions) + len(rows)
            staged += [row["arrival"] for row in rows]
            winners += [rows[place]["arrival"]] if place >= 0 else []
        if not staged:
            return False
        run, stage = self._database.run, self._merge.stage
        run(f"CREATE TEMPORARY TABLE IF NOT EXISTS {DECIDED} (arrival bigint, wins boolean)")
        if not self._merge.has_decided:
            run(f"DELETE FROM {DECIDED}")
        wins = pc.is_in(pa.array(staged), pa.array(winners, pa.int64()))
        batch = pa.record_batch([pa.array(staged), wins], ["arrival", "wins"])
        self._database.copy(batch, DECIDED)
        run(
            f"DELETE FROM {stage} WHERE {ARRIVAL} IN (SELECT arrival FROM {DECIDED} WHERE NOT wins)"
        )
        self._merge.has_decided = True
        return True

    def _restage_tombstones(self, tombstones: str) -> None:
        """Stage the sync's earlier tombstones again, as the rows that arrived first."""
        names, stage = self._merge.names, self._merge.stage
        self._database.run(
            f"INSERT INTO {stage} ({names}, {ARRIVAL}) "
            f"SELECT {names}, -row_number() OVER () FROM {tombstones}"
        )
        self._database.run(f"DELETE FROM {tombstones}")

    def _version(self, row: Mapping[str, Any], of: str) -> _Version:
        assert self._kind is not None
        order = order_of(self._kind, row[f"{of}_cursor"], row[f"{of}_kept"])
        return order, row[f"{of}_extracted"]


def _by_key(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for _, versions in groupby(rows, itemgetter("key")):
        yield list(versions)


def _newest(versions: Sequence[_Version]) -> int:
    """Return the index of the newest of ``versions``, which are in order of arrival."""
    resets = [place for place, (order, _) in enumerate(versions) if order is None]
    since = range(resets[-1] if resets else 0, len(versions))

    def rank(place: int) -> tuple[bool, bytes, int, int]:
        order, extracted = versions[place]
        return order is not None, order or b"", extracted, place

    return max(since, key=rank)
