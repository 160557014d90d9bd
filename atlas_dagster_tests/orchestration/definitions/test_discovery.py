"""DISCOVER inside Dagster: what is taken, what waits and is shown, and how it is asked for."""

from typing import Any

import dagster as dg
import msgspec
import pytest

from atlas_dagster.errors import ConnectorFailedError
from atlas_dagster.orchestration.automation.cron import Schedule
from atlas_dagster.orchestration.definitions.discovery import (
    DiscoveryConfig,
    as_markdown,
    build_discovery,
    schema_check_key,
)
from atlas_dagster.orchestration.definitions.io_manager import default_resources
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.source.catalog_diff import CatalogChange, SchemaPolicy
from atlas_dagster.source.discovered_catalog import Discovered, Discovery
from atlas_dagster.source.run_context import RunContext
from atlas_dagster_tests.orchestration.connections import declare_shop, define, found

NEW = CatalogChange(StreamDescriptor("items"), "added")
FIELD = CatalogChange(StreamDescriptor("users"), "added", "note", None, "string")
BREAKING = CatalogChange(StreamDescriptor("users"), "removed", "id", "integer", None, breaking=True)
SOURCE = dg.AssetKey(["shop", "source_shop"])
KEY = schema_check_key(declare_shop())


def pending(*changes: CatalogChange) -> Discovered:
    return msgspec.structs.replace(found(declare_shop()), pending=changes)


class Source:
    """In place of a connector: what DISCOVER brings, and by which policies it was asked."""

    def __init__(self, brings: Discovery | Exception) -> None:
        self.brings = brings
        self.asked: list[SchemaPolicy | None] = []
        self.compared = 0

    def compare(self, caller: RunContext) -> Discovery:
        self.compared += 1
        assert isinstance(self.brings, Discovery)
        return self.brings

    def __call__(self, caller: RunContext, policy: SchemaPolicy | None) -> Discovery:
        self.asked.append(policy)
        if isinstance(self.brings, Exception):
            raise self.brings
        return self.brings

    def run(
        self, instance: dg.DagsterInstance, config: DiscoveryConfig, **options: Any
    ) -> dg.ExecuteInProcessResult:
        """The job ``shop__discover``."""
        defs = dg.Definitions.merge(
            build_discovery(declare_shop(), config, self, self.compare),
            dg.Definitions(assets=[dg.AssetSpec(SOURCE)], resources=default_resources()),
        )
        run_config = {"ops": {"shop__run_discover": {"config": options}}}
        job = defs.resolve_job_def("shop__discover")
        return job.execute_in_process(
            run_config=run_config, instance=instance, raise_on_error=False
        )


def evaluated(instance: dg.DagsterInstance) -> dg.AssetCheckEvaluation:
    record = instance.get_latest_asset_check_evaluation_record(KEY)
    assert record is not None
    assert record.event is not None
    assert record.event.dagster_event is not None
    return record.event.dagster_event.asset_check_evaluation_data


def test_a_source_that_is_as_it_was() -> None:
    source = Source(Discovery(found(declare_shop())))
    with dg.DagsterInstance.ephemeral() as instance:
        assert source.run(instance, DiscoveryConfig()).success
        evaluation = evaluated(instance)

    assert source.asked == ["propagate_columns"]
    assert evaluation.passed
    assert evaluation.description == "No changes: the source matches the stored catalog."
    assert evaluation.metadata["atlas/streams_offered"].value == 2


def test_changes_that_were_taken_are_listed_and_all_is_well() -> None:
    source = Source(Discovery(found(declare_shop()), (FIELD,)))
    with dg.DagsterInstance.ephemeral() as instance:
        source.run(instance, DiscoveryConfig(schema_changes="propagate_all"))
        evaluation = evaluated(instance)

    assert source.asked == ["propagate_all"]
    assert evaluation.passed
    assert evaluation.description == "1 change applied: reload the definitions to see them."
    assert evaluation.metadata["atlas/taken_changes"] == dg.MetadataValue.md(
        "- users.note: new field, string"
    )


def test_changes_that_wait_are_a_warning_that_blocks_nothing() -> None:
    source = Source(Discovery(pending(NEW, BREAKING)))
    with dg.DagsterInstance.ephemeral() as instance:
        assert source.run(instance, DiscoveryConfig()).success
        evaluation = evaluated(instance)

    assert not evaluation.passed
    assert evaluation.severity is dg.AssetCheckSeverity.WARN
    assert not evaluation.blocking
    assert evaluation.description == "2 changes (1 breaking) pending."
    assert evaluation.metadata["atlas/pending_changes"] == dg.MetadataValue.md(
        "- items: new stream\n- users.id: field is gone (breaking)"
    )


def test_somebody_takes_all() -> None:
    source = Source(Discovery(found(declare_shop()), (NEW,)))
    with dg.DagsterInstance.ephemeral() as instance:
        source.run(instance, DiscoveryConfig(schema_changes="ignore"), take="all")

    assert source.asked == [None]


def test_a_discovery_that_fails_says_nothing_of_the_source() -> None:
    source = Source(ConnectorFailedError("source-shop: no route to host."))
    with dg.DagsterInstance.ephemeral() as instance:
        result = source.run(instance, DiscoveryConfig())
        record = instance.get_latest_asset_check_evaluation_record(KEY)

    assert not result.success
    assert record is None
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    said = failure.step_failure_data.user_failure_data
    assert said is not None
    assert said.description == "source-shop: no route to host."


def test_the_check_compares_and_takes_nothing() -> None:
    source = Source(Discovery(pending(NEW)))
    defs = dg.Definitions.merge(
        build_discovery(declare_shop(), DiscoveryConfig(), source, source.compare),
        dg.Definitions(assets=[dg.AssetSpec(SOURCE)], resources=default_resources()),
    )
    job = defs.resolve_implicit_global_asset_job_def().get_subset(asset_check_selection={KEY})

    with dg.DagsterInstance.ephemeral() as instance:
        assert job.execute_in_process(instance=instance).success
        assert not evaluated(instance).passed
    assert source.asked == []
    assert source.compared == 1


def test_runs_of_streams_do_not_discover() -> None:
    """Nor do those of a job that selects everything, nor do they CHECK twice."""
    graph = define(declare_shop()).resolve_asset_graph()

    for selection in (dg.AssetSelection.all(), dg.AssetSelection.groups("shop")):
        made = {key.asset_key.to_user_string() for key in selection.resolve_checks(graph)}
        assert made == {"shop/users", "shop/sales/orders"}


def test_no_schedule_unless_one_is_asked_for() -> None:
    assert list(define(declare_shop()).schedules or []) == []


def test_a_schedule_in_a_time_zone() -> None:
    asked = DiscoveryConfig(schedule=Schedule(cron="0 6 * * *", timezone="Europe/Rome"))

    (schedule,) = define(declare_shop(), discovery=asked).schedules or []

    assert isinstance(schedule, dg.ScheduleDefinition)
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 6 * * *", "Europe/Rome")
    assert schedule.job_name == "shop__discover"
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING


def test_what_waits_is_on_the_source_until_it_is_taken() -> None:
    def source(discovered: Discovered) -> dg.AssetSpec:
        specs = define(declare_shop(), discovered).resolve_all_asset_specs()
        return next(spec for spec in specs if spec.key == SOURCE)

    waiting, taken = source(pending(NEW, BREAKING)), source(found(declare_shop()))

    assert waiting.tags["atlas/schema_changes"] == "pending"
    assert waiting.metadata["atlas/pending_changes"] == dg.MetadataValue.md(
        "- items: new stream\n- users.id: field is gone (breaking)"
    )
    assert waiting.description is not None
    assert "2 changes of the source pending" in waiting.description
    assert "`atlas discover shop`" in waiting.description
    assert "atlas/schema_changes" not in taken.tags
    assert "atlas/pending_changes" not in taken.metadata


def test_the_cache_keeps_what_waits() -> None:
    again = Discovered.decode(pending(NEW, BREAKING).encode())

    assert again.pending == (NEW, BREAKING)


def test_a_cache_of_the_time_before_can_be_read() -> None:
    old = msgspec.json.decode(found(declare_shop()).encode())
    del old["pending"]

    assert Discovered.decode(msgspec.json.encode(old)).pending == ()


@pytest.mark.parametrize(("changes", "last"), [(50, "- s: new stream"), (60, "- … and 10 more")])
def test_a_long_list_is_cut(changes: int, last: str) -> None:
    lines = as_markdown([CatalogChange(StreamDescriptor("s"), "added")] * changes).splitlines()

    assert len(lines) <= 51
    assert lines[-1] == last
