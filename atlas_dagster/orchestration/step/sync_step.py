"""The sync step. It runs a session, and records its events in Dagster as they happen."""

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from functools import partial

import dagster as dg

from atlas_dagster.destinations.base import Destination
from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.errors import AtlasError, BreakingChangeError, ConfigError
from atlas_dagster.orchestration.automation.retries import (
    RetryBudget,
    explain_failure,
    root_run_id,
    tag_failure,
)
from atlas_dagster.orchestration.definitions.connection_check import ensure_checked
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.definitions.stream_checks import repeat_last_result
from atlas_dagster.orchestration.definitions.translator import ConnectionAssets
from atlas_dagster.orchestration.operations.cleanup import end_dead_runs, note_process, reap_ended
from atlas_dagster.orchestration.step.catalog_update import CatalogUpdate, update_old_catalog
from atlas_dagster.orchestration.step.dry_run import dry_run_observation, refused_observation
from atlas_dagster.orchestration.step.event_log import EventLogStateStore
from atlas_dagster.orchestration.step.listener import StepListener
from atlas_dagster.orchestration.step.metadata import major_change
from atlas_dagster.orchestration.step.projections import SyncProjection, make_projection_writer
from atlas_dagster.orchestration.step.reporter import Reporter
from atlas_dagster.orchestration.step.run_config import SyncConfig, parse_run_config
from atlas_dagster.orchestration.step.telemetry import RunTotals, measured_sync
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.source.connector import Connector
from atlas_dagster.source.open_connector import open_connector
from atlas_dagster.sync.dry_run import dry_run
from atlas_dagster.sync.events import StreamsCommitted
from atlas_dagster.sync.plan import SyncPlan, make_plan
from atlas_dagster.sync.resume import RunRef, Target, claim_ownership
from atlas_dagster.sync.session import SyncSession
from atlas_dagster.sync.state_edits import StateEditor

_SETTLE_SECONDS = 5.0
#: The exceptions of *Terminate* in the UI and of Ctrl-C.
_INTERRUPTS = (dg.DagsterExecutionInterruptedError, KeyboardInterrupt)


def run_sync(
    context: dg.AssetExecutionContext,
    defined: ConnectionAssets,
    atlas: AtlasResource,
    config: SyncConfig,
    update: CatalogUpdate | None = None,
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Sync the streams selected in ``context``; yield each as soon as it is durable.

    ``update`` says how to update an old catalog first. After a transient failure, the step makes
    another attempt for the remaining streams.

    Raises:
        dagster.Failure: its description says what failed and what to do.
    """
    with explain_failure():
        if not context.selected_asset_keys:
            for check in context.selected_asset_check_keys:
                yield repeat_last_result(context.instance, check)
            return
        totals = RunTotals()
        synced = _sync(context, defined, atlas, config, totals, update)
        if config.dry_run:
            yield from synced
            return
        with measured_sync(context, defined.connection.name, atlas.deployment, totals):
            yield from synced


def _sync(
    context: dg.AssetExecutionContext,
    defined: ConnectionAssets,
    atlas: AtlasResource,
    config: SyncConfig,
    totals: RunTotals,
    update: CatalogUpdate | None,
) -> Iterator[dg.MaterializeResult[None]]:
    if defined.problem is not None:
        raise ConfigError(defined.problem)
    note_process(context.instance, context.run.run_id)
    end_dead_runs(context.instance)
    if reap_ended(context.instance, atlas, defined.connection):
        # The step of a killed run may still be alive and commit what it has read; let it end.
        time.sleep(_SETTLE_SECONDS)
    step = _Step(context, defined, atlas, config, totals, update)
    budget = RetryBudget()
    while True:
        try:
            yield from step.attempt(budget)
            return
        except AtlasError as error:
            wait = budget.wait_after(error)
            if wait is None:
                tag_failure(context.instance, context.run.run_id, error, budget)
                raise
            StepListener(context.log).warning(f"{error} Trying again in {wait:.0f} seconds.")
            time.sleep(wait)


class _Step:
    """The streams of one run that are not complete yet, and the attempts to sync them."""

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        defined: ConnectionAssets,
        atlas: AtlasResource,
        config: SyncConfig,
        totals: RunTotals,
        update: CatalogUpdate | None,
    ) -> None:
        self._context = context
        self._update = update
        self._defined = defined
        self._connection = defined.connection
        run = context.run
        self._run = RunRef(run.run_id, root_run_id(context.instance, run))
        self._atlas = atlas
        self._config = config
        self._remaining = set(context.selected_asset_keys)
        self._edits = parse_run_config(
            defined.connection.name, defined.streams, self._selected, config
        )
        self._totals = totals
        self._has_edited = False
        self._store = EventLogStateStore(context.instance, defined.source_key, defined.key)

    def attempt(self, budget: RetryBudget) -> Iterator[dg.MaterializeResult[None]]:
        """Make one attempt to sync the remaining streams."""
        context = self._context
        writer = make_projection_writer(context.instance, context.log.warning)
        projection = SyncProjection(writer, self._connection.name, context.run.run_id)
        try:
            yield from self._attempt(budget, projection)
        except (Exception, dg.DagsterExecutionInterruptedError) as error:
            if not self._config.dry_run:
                projection.record_failure(self._selected, error)
            raise

    # --8<-- [start:attempt] shown in docs/architecture.md
    def _attempt(
        self, budget: RetryBudget, projection: SyncProjection
    ) -> Iterator[dg.MaterializeResult[None]]:
        context, connection = self._context, self._connection
        run, spec = self._atlas.step_context(context), self._defined.discovered.spec
        with (
            open_connector(connection, run, spec=spec) as connector,
            closing(self._atlas.open_destination(connection)) as destination,
        ):
            projection.connector = connector
            ensure_checked(context, connection, connector, self._totals)
            if self._update is not None and not self._config.dry_run:
                self._defined = update_old_catalog(context, self._defined, connector, self._update)
            reporter = Reporter(
                context,
                self._defined,
                connector=connector,
                destination=destination,
                store=self._store,
                remaining=self._remaining,
                totals=self._totals,
                projection=projection,
            )
            if self._config.dry_run:
                self._report_dry_run(connector, destination, reporter)
                return
            claim_ownership(destination, connection.name, self._atlas.deployment)
            # Applied once for all attempts and retries: committed edits are skipped.
            for envelope in self._edits.apply_edits(lambda _: self._open_editor(destination)):
                reporter.record_commit(envelope)
            plan = self._plan(destination, reporter)
            self._warn_of_major_change(connector)
            session = SyncSession(
                plan, connector=connector, destination=destination, interrupts=_INTERRUPTS
            )
            for event in session.run():
                if isinstance(event, StreamsCommitted):
                    budget.note_progress()
                yield from reporter.record(event)

    # --8<-- [end:attempt]

    @property
    def _selected(self) -> list[StreamDescriptor]:
        return self._defined.selected(self._remaining)

    def _open_editor(self, destination: Destination) -> StateEditor:
        editor = self._make_editor(destination)
        parent = self._context.run.parent_run_id
        refreshed = sorted(
            str(name) for name in editor.restarted_streams() & self._edits.refreshes.keys()
        )
        if refreshed and parent is not None and not self._has_edited:
            self._context.log.warning(
                f"This run retries run {parent}, which has already begun the refresh of "
                f"{', '.join(refreshed)}; the refresh continues. To read the streams from the "
                "beginning once more, start a new run with refresh."
            )
        self._has_edited = True
        return editor

    def _make_editor(
        self, destination: Destination, assume: Sequence[Envelope] | None = None
    ) -> StateEditor:
        return StateEditor(self._target(destination), self._run, assume=assume)

    def _target(self, destination: Destination) -> Target:
        streams = {stream.descriptor: stream for stream in self._defined.streams}
        name, tables = self._connection.name, self._defined.tables
        return Target(name, streams, tables, destination, self._store)

    def _plan(
        self,
        destination: Destination,
        reporter: Reporter,
        assume: Collection[Envelope] | None = None,
    ) -> SyncPlan:
        """Return the plan, for a dry run as if the envelopes ``assume`` were committed."""
        try:
            plan = make_plan(
                self._target(destination),
                self._selected,
                self._run,
                warn=self._context.log.warning,
                assume=assume,
            )
        except BreakingChangeError as error:
            reporter.record_refusal(error)
            raise
        for refusal in plan.refused.values():
            reporter.record_refusal(refusal)
        if assume is None:
            self._totals.begin(plan)
            found = (stream.resume_point.unrecorded for stream in plan.streams)
            # Earlier processes were killed after these commits, before they recorded them.
            for envelope in {each.seq: each for each in found if each is not None}.values():
                reporter.record_commit(envelope)
        return plan

    def _report_dry_run(
        self, connector: Connector, destination: Destination, reporter: Reporter
    ) -> None:
        """Report what a sync would do, in the log and on the streams' pages."""
        assumed = self._edits.apply_edits(partial(self._make_editor, destination))
        plan = self._plan(destination, reporter, assumed)
        key, tables = self._defined.key, self._defined.tables
        observations = [
            dry_run_observation(each, key(each.plan.table.path), connector.mask)
            for each in dry_run(plan, connector)
        ]
        observations += [refused_observation(key(tables[n]), e) for n, e in plan.refused.items()]
        for observation in observations:
            self._context.log_event(observation)
        streams = ", ".join(observation.asset_key.path[-1] for observation in observations)
        self._context.log.info(
            f"Dry run: nothing was written. See the assets {streams} for what a sync would do."
        )

    def _warn_of_major_change(self, connector: Connector) -> None:
        identity = connector.runner.identity()
        docs_url = self._defined.discovered.documentation_url
        published = self._connection.entry()
        for notice in major_change(self._store.connectors, identity, docs_url, published):
            self._context.log.warning(notice)
