"""Where connections are disturbed, and each compared with one that was not."""

import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from adbc_driver_postgresql import dbapi
from deltalake import DeltaTable

from atlas_dagster.source.connection import Connection
from atlas_dagster.source.discovered_catalog import Discovered
from atlas_dagster_tests.conftest import CONNECTORS, SOURCE_LEDGER_IMAGE
from atlas_dagster_tests.crash.seam import Strike
from atlas_dagster_tests.crash.victim import Outcome, forked, refresh, sync
from atlas_dagster_tests.orchestration.real_connectors import discover_really
from atlas_dagster_tests.postgres_server import PostgresServer, with_doubles

_LEDGER = CONNECTORS / "source-ledger" / "source_ledger.py"
_SPEC = importlib.util.spec_from_file_location("source_ledger", _LEDGER)
assert _SPEC is not None
assert _SPEC.loader is not None
source_ledger = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(source_ledger)
#: Of a table that does not exist.
_NOTHING = pa.table({})
#: Positions of the source's journal that each round adds.
ROUND = 125
#: Different in every sync that is done again, as it must be.
_OWN = ("_airbyte_raw_id", "_airbyte_generation_id")


@dataclass(frozen=True)
class Setup:
    """A way to sync: where rows land, where events do, what the states are, where it runs."""

    destination: str
    event_log: str
    kind: str
    runner: str

    def __str__(self) -> str:
        return f"{self.destination}_{self.event_log}_{self.kind.lower()}_{self.runner}"

    @property
    def needs_postgres(self) -> bool:
        return "postgres" in (self.destination, self.event_log)


SETUPS = [
    *(
        Setup(destination, event_log, kind, "process")
        for destination in ("delta", "postgres")
        for event_log in ("sqlite", "postgres")
        for kind in ("STREAM", "GLOBAL")
    ),
    Setup("delta", "sqlite", "GLOBAL", "docker"),
    Setup("postgres", "postgres", "STREAM", "docker"),
]


@dataclass(frozen=True)
class Place:
    """One folder for everything, and a Postgres server."""

    root: Path
    server: PostgresServer | None

    def home(self, event_log: str) -> Path:
        """Of a Dagster instance."""
        home = self.root / f"dagster_{event_log}"
        if not home.exists():
            home.mkdir()
            settings: dict[str, Any] = {"telemetry": {"enabled": False}}
            if event_log == "postgres":
                assert self.server
                # Without the scheme, SQLAlchemy 2.1 would want psycopg 3.
                database = {**self.server.settings, "scheme": "postgresql+psycopg2"}
                settings["storage"] = {"postgres": {"postgres_db": database}}
            (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
        return home

    @property
    def database(self) -> str:
        assert self.server
        settings = self.server.settings
        where = f"{settings['hostname']}:{settings['port']}/{settings['db_name']}"
        return f"postgresql://{settings['username']}@{where}"


@dataclass
class Ledger:
    """A connection to source-ledger that is synced up to ``until``, in one sync or in many."""

    name: str
    setup: Setup
    place: Place
    lake: Path
    seed: int
    until: int = ROUND
    deaths: int = 0
    discovered: Discovered | None = None
    #: Runs begun and those that succeeded, all tries of one counted as one.
    runs: int = 1
    succeeded: int = 0

    @property
    def connection(self) -> Connection:
        where = (
            {"image": SOURCE_LEDGER_IMAGE}
            if self.setup.runner == "docker"
            else {"command": [sys.executable, "-S", str(_LEDGER)]}
        )
        config = {"kind": self.setup.kind, "seed": self.seed, "until": self.until}
        return Connection(
            name=self.name,
            config=config | {"deaths": self.deaths, "deaths_file": str(self.deaths_file)},
            streams=[
                {"name": "appended", "sync_mode": "incremental"},
                {"name": "deduped"},
                {"name": "overwritten"},
                {
                    "name": "snapshots",
                    "sync_mode": "full_refresh",
                    "destination_sync_mode": "append",
                },
            ],
            destination=self.place.database if self.setup.destination == "postgres" else None,
            folder=self.place.root,
            **where,
        )

    @property
    def deaths_file(self) -> Path:
        return self.place.root / f"{self.name}.deaths"

    @property
    def died(self) -> int:
        """How often its connector has died."""
        return self.deaths_file.stat().st_size if self.deaths_file.exists() else 0

    @property
    def home(self) -> Path:
        return self.place.home(self.setup.event_log)

    @property
    def log(self) -> Path:
        return self.place.root / f"{self.name}.log"

    def sync(self, strike: Strike | None = None, kill_after: float | None = None) -> Outcome:
        """Try the current run once more, or the next one where it succeeded.

        Raises :class:`KilledError`.
        """
        root = f"{self.name} {self.runs}"
        arguments = (*self._what, root, strike)
        outcome = forked(self.log, sync, *arguments, kill_after=kill_after)
        if outcome.failure is None:
            self.succeeded += 1
            self.runs += 1
        return outcome

    def give_up(self) -> None:
        """Nobody tries the current run again."""
        self.runs += 1

    def refresh(self, streams: Sequence[str], kill_after: float | None = None) -> None:
        """Raises :class:`KilledError`."""
        forked(self.log, refresh, *self._what, list(streams), kill_after=kill_after)

    @property
    def _what(self) -> tuple[Path, Path, Connection, Discovered]:
        if self.discovered is None:
            self.discovered = forked(self.log, discover_really, self.connection)
        return self.home, self.lake, self.connection, self.discovered

    def rows(self) -> dict[str, Counter[Any]]:
        """Of each table, its rows without what is different each time. In a child only."""
        assert self.discovered
        return {
            path[-1]: Counter(map(_comparable, self._table(path).to_pylist()))
            for path in self.discovered.table_paths.values()
        }

    def _table(self, path: tuple[str, ...]) -> Any:
        if self.setup.destination == "delta":
            if not self.lake.joinpath(*path, "_delta_log").exists():
                return _NOTHING
            return DeltaTable(str(self.lake.joinpath(*path))).to_pyarrow_table()
        with dbapi.connect(self.place.database) as connection, connection.cursor() as cursor:
            cursor.execute(f'SELECT to_regclass(\'"{path[0]}"."{path[1]}"\') IS NULL')
            if cursor.fetchall() == [(True,)]:
                return _NOTHING
            cursor.execute(f'SELECT * FROM "{path[0]}"."{path[1]}"')
            return with_doubles(cursor.fetch_arrow_table())

    def halves(self) -> list[str]:
        """What readers see now and should never see. In a child only."""
        assert self.discovered
        tables = {path[-1]: self._table(path) for path in self.discovered.table_paths.values()}
        found = []
        positions = sorted(tables["appended"].to_pydict().get("position", []))
        if positions != list(range(1, len(positions) + 1)):
            found.append(f"appended has {positions}")
        overwritten = tables["overwritten"].to_pydict()
        rates = sorted(zip(overwritten.get("row", []), overwritten.get("rate", []), strict=True))
        if rates not in ([], self._listed(self.until), self._listed(self.until - ROUND)):
            found.append(f"overwritten has {rates}")
        times = Counter(tables["snapshots"].to_pydict().get("row", []))
        if len({times[row] for row in range(1, source_ledger.LISTED_ROWS + 1)}) > 1:
            found.append(f"snapshots has {times}")
        return found

    def _listed(self, until: int) -> list[tuple[int, float]]:
        rows = range(1, source_ledger.LISTED_ROWS + 1)
        return [(row, source_ledger.listed(self.seed, until, row)["rate"]) for row in rows]


def _comparable(row: dict[str, Any]) -> tuple[Any, ...]:
    changes = json.loads(row["_airbyte_meta"])["changes"]
    kept = {name: value for name, value in row.items() if name not in _OWN}
    return tuple(sorted((kept | {"_airbyte_meta": str(changes)}).items()))


@dataclass
class Difference:
    """Rows of the undisturbed tables that the disturbed ones lack, and the other way round."""

    rows: dict[str, int]
    lost: int = 0
    duplicated: int = 0

    @classmethod
    def between(cls, disturbed: Ledger, undisturbed: Ledger) -> "Difference":
        is_, should_be = disturbed.rows(), undisturbed.rows()
        # One snapshot for each run; for those that were given up, as many as there are of any row.
        there = max(is_["snapshots"].values(), default=0)
        times = min(max(there, disturbed.succeeded), disturbed.runs - 1)
        should_be["snapshots"] = Counter(dict.fromkeys(should_be["snapshots"], times))
        return cls(
            {name: rows.total() for name, rows in should_be.items()},
            lost=sum((should_be[name] - is_[name]).total() for name in should_be),
            duplicated=sum((is_[name] - should_be[name]).total() for name in should_be),
        )
