"""A look at the source's catalog before a sync, where what is known is a day old."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import msgspec
import pytest

from atlas_dagster.orchestration.step.catalog_update import CatalogUpdate
from atlas_dagster.runners.base import ConnectorCommand
from atlas_dagster.source.catalog_diff import SchemaPolicy
from atlas_dagster.source.discovered_catalog import Discovered
from atlas_dagster_tests.orchestration.connections import define
from atlas_dagster_tests.orchestration.fake_runs import EVENTS, FakeRuns, Piece
from atlas_dagster_tests.sync.fake_source import line, state, status

pytestmark = pytest.mark.slow

DAY = 24 * 3600
WIDER = {
    **EVENTS,
    "json_schema": {
        "properties": {**EVENTS["json_schema"]["properties"], "new": {"type": "string"}}
    },
}


@dataclass
class LookingRuns(FakeRuns):
    """Whose source offers ``offered``, and whose catalog is ``age`` seconds old."""

    offered: Mapping[str, Any] = field(default_factory=lambda: WIDER)
    age: float = DAY + 1
    policy: SchemaPolicy | None = "propagate_columns"
    check: str = "SUCCEEDED"
    kept: list[Discovered] = field(default_factory=list)

    def script(self, command: ConnectorCommand) -> Iterator[Piece]:
        if command.verb == "check":
            yield line("CONNECTION_STATUS", connectionStatus={"status": self.check})
        elif command.verb == "discover":
            yield line("CATALOG", catalog={"streams": [self.offered] if self.offered else 5})
        else:
            yield from self.output

    @property
    def discovered(self) -> Discovered:
        return msgspec.structs.replace(super().discovered, discovered_at=time.time() - self.age)

    @property
    def definitions(self) -> dg.Definitions:
        look = None if self.policy is None else CatalogUpdate(self.policy, self.kept.append)
        return define(self.connection, self.discovered, lake=self.lake, look=look)

    @property
    def verbs(self) -> list[str]:
        return [command.verb for command in self.runner.commands]

    def sync(self) -> Any:
        data = {"id": len(self.verbs), "v": "x", "new": "value"}
        sent = line("RECORD", record={"stream": "events", "data": data, "emitted_at": 1})
        return self.run(sent, state("events", {"at": len(self.verbs)}), status("events"))


@pytest.fixture
def looking(runs: FakeRuns) -> LookingRuns:
    found = LookingRuns(runs.lake, runs.instance, runs.runner)
    runs.runner.script = found.script  # type: ignore[attr-defined]
    return found


def fields(looking: LookingRuns) -> list[str]:
    """Those that the source was asked for."""
    catalog = json.loads(looking.sent("catalog") or b"")
    return list(catalog["streams"][0]["stream"]["json_schema"]["properties"])


def test_new_fields_are_read_by_the_same_sync(looking: LookingRuns) -> None:
    """Regression: they were discovered later, and their values never came."""
    ran = looking.sync()
    assert ran.success
    assert looking.verbs == ["check", "discover", "read"]
    assert fields(looking) == ["id", "v", "new"]
    evaluated = ran.checks["source_shop.schema_changes"]
    assert evaluated.description == (
        "1 change applied: reload the definitions to see them. Existing rows of "
        "events have no values in the new columns; `atlas refresh` reads them again."
    )
    assert abs(evaluated.metadata["atlas/looked_at"].value - time.time()) < 600
    (kept,) = looking.kept
    assert [stream.json_schema for stream in kept.catalog.streams] == [WIDER["json_schema"]]


def test_it_looks_once_a_day(looking: LookingRuns) -> None:
    assert all(looking.sync().success for _ in range(3))
    assert looking.verbs.count("discover") == 1


@pytest.mark.parametrize(
    "changes",
    [{"age": 60.0}, {"policy": None}, {"check": "FAILED"}],
    ids=["young", "never", "CHECK failed"],
)
def test_when_it_does_not_look(looking: LookingRuns, changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        setattr(looking, name, value)
    looking.sync()
    assert "discover" not in looking.verbs


def test_what_the_policy_does_not_take_waits(looking: LookingRuns) -> None:
    looking.policy = "ignore"
    ran = looking.sync()
    assert fields(looking) == ["id", "v"]
    assert ran.checks["source_shop.schema_changes"].description == "1 change pending."
    assert len(looking.kept[0].pending) == 1


def test_a_look_that_fails_stops_nothing(looking: LookingRuns) -> None:
    looking.offered = {}
    assert looking.sync().success
    assert looking.sync().success
    assert looking.verbs.count("discover") == 1
    assert looking.kept == []


def test_a_stream_that_is_gone_is_left_to_the_sync(looking: LookingRuns) -> None:
    looking.policy = "propagate_all"
    looking.offered = {**EVENTS, "name": "other"}
    assert looking.sync().success
    assert fields(looking) == ["id", "v"]
