"""The step that syncs: it runs a session and records its events in Dagster as they happen."""

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
    explained_failure,
    root_run_id,
    tag_failure,
)
from atlas_dagster.orchestration.definitions.connection_check import ensure_checked
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.definitions.stream_checks import as_of_last_sync
from atlas_dagster.orchestration.definitions.translator import ConnectionAssets
from atlas_dagster.orchestration.operations.cleanup import end_dead_runs, note_process, reap_ended
from atlas_dagster.orchestration.step.catalog_look import Look, look_at_source
from atlas_dagster.orchestration.step.dry_run import dry_run_observation, refused_observation
from atlas_dagster.orchestration.step.event_log import EventLogStateStore
from atlas_dagster.orchestration.step.listener import StepListener
from atlas_dagster.orchestration.step.metadata import major_change
from atlas_dagster.orchestration.step.projections import SyncProjection, books_of
from atlas_dagster.orchestration.step.reporter import Reporter
from atlas_dagster.orchestration.step.run_config import SyncConfig, parse_run_config
from atlas_dagster.orchestration.step.telemetry import RunTotals, measured_sync
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.source.connector import Connector
from atlas_dagster.source.open_connector import open_connector
from atlas_dagster.sync.dry_run import dry_run
from atlas_dagster.sync.events import Checkpoint
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
    look: Look | None = None,
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Sync the streams selected in ``context``; yield each as soon as it is durable.

    ``look`` says how to run DISCOVER first, if the catalog is old. After a transient failure, the
    remaining streams are tried again inside this run.

    Raises:
        dagster.Failure: its description says what failed and what to do.
    """
    with explained_failure():
        if not context.selected_asset_keys:
            for check in context.selected_asset_check_keys:
                yield as_of_last_sync(context.instance, check)
            return
        totals = RunTotals()
        synced = _sync(context, defined, atlas, config, totals, look)
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
    look: Look | None,
) -> Iterator[dg.MaterializeResult[None]]:
    if defined.problem is not None:
        raise ConfigError(defined.problem)
    note_process(context.instance, context.run.run_id)
    end_dead_runs(context.instance)
    if reap_ended(context.instance, atlas, defined.connection):
        # The step of a killed run may still be alive and commit what it has read: let it end.
        time.sleep(_SETTLE_SECONDS)
    step = _Step(context, defined, atlas, config, totals, look)
    patience = RetryBudget()
    while True:
        try:
            yield from step.attempt(patience)
            return
        except AtlasError as error:
            wait = patience.wait_after(error)
            if wait is None:
                tag_failure(context.instance, context.run.run_id, error, patience)
                raise
            StepListener(context.log).warning(f"{error} Trying again in {wait:.0f} seconds.")
            time.sleep(wait)


class _Step:
    """The streams of one run that are not complete yet, and the tries to sync them."""

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        defined: ConnectionAssets,
        atlas: AtlasResource,
        config: SyncConfig,
        totals: RunTotals,
        look: Look | None,
    ) -> None:
        self._context = context
        self._look = look
        self._defined = defined
        self._connection = defined.connection
        run = context.run
        self._run = RunRef(run.run_id, root_run_id(context.instance, run))
        self._atlas = atlas
        self._config = config
        self._left = set(context.selected_asset_keys)
        self._orders = parse_run_config(
            defined.connection.name, defined.streams, self._selected, config
        )
        self._totals = totals
        self._tried = False
        self._store = EventLogStateStore(context.instance, defined.source_key, defined.key)

    def attempt(self, patience: RetryBudget) -> Iterator[dg.MaterializeResult[None]]:
        """Try once to sync the remaining streams."""
        context = self._context
        books = books_of(context.instance, context.log.warning)
        book = SyncProjection(books, self._connection.name, context.run.run_id)
        try:
            yield from self._attempt(patience, book)
        except (Exception, dg.DagsterExecutionInterruptedError) as error:
            if not self._config.dry_run:
                book.failed(self._selected, error)
            raise

    # --8<-- [start:attempt] shown in docs/architecture.md
    def _attempt(
        self, patience: RetryBudget, book: SyncProjection
    ) -> Iterator[dg.MaterializeResult[None]]:
        context, connection = self._context, self._connection
        run, spec = self._atlas.step_context(context), self._defined.discovered.spec
        with (
            open_connector(connection, run, spec=spec) as connector,
            closing(self._atlas.open_destination(connection)) as destination,
        ):
            book.connector = connector
            ensure_checked(context, connection, connector, self._totals)
            if self._look is not None and not self._config.dry_run:
                self._defined = look_at_source(context, self._defined, connector, self._look)
            reporter = Reporter(
                context,
                self._defined,
                connector=connector,
                destination=destination,
                store=self._store,
                left=self._left,
                totals=self._totals,
                book=book,
            )
            if self._config.dry_run:
                self._rehearse(connector, destination, reporter)
                return
            claim_ownership(destination, connection.name, self._atlas.deployment)
            # Once for all tries and retries of a run: edits that are already committed are skipped.
            for envelope in self._orders.apply_edits(lambda _: self._open_upkeep(destination)):
                reporter.observe(envelope)
            plan = self._plan(destination, reporter)
            self._warn_of_major_change(connector)
            session = SyncSession(
                plan, connector=connector, destination=destination, interrupts=_INTERRUPTS
            )
            for event in session.run():
                if isinstance(event, Checkpoint):
                    patience.note_progress()
                yield from reporter.take(event)

    # --8<-- [end:attempt]

    @property
    def _selected(self) -> list[StreamDescriptor]:
        return self._defined.selected(self._left)

    def _open_upkeep(self, destination: Destination) -> StateEditor:
        upkeep = self._upkeep(destination)
        parent = self._context.run.parent_run_id
        begun = sorted(
            str(name) for name in upkeep.restarted_streams() & self._orders.refreshes.keys()
        )
        if begun and parent is not None and not self._tried:
            self._context.log.warning(
                f"This run tries run {parent} again, whose refresh of {', '.join(begun)} has begun "
                "already: they continue where they are. To read them from the beginning once more, "
                "start a new run with refresh."
            )
        self._tried = True
        return upkeep

    def _upkeep(
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
        """What to do now. ``assume``: for a dry run, as if these had been committed."""
        try:
            plan = make_plan(
                self._target(destination),
                self._selected,
                self._run,
                warn=self._context.log.warning,
                assume=assume,
            )
        except BreakingChangeError as error:
            reporter.refused(error)
            raise
        for refusal in plan.refused.values():
            reporter.refused(refusal)
        if assume is None:
            self._totals.begin(plan)
            found = (stream.resume_point.unrecorded for stream in plan.streams)
            # Their processes were killed after the commit, before they recorded it.
            for envelope in {each.seq: each for each in found if each is not None}.values():
                reporter.observe(envelope)
        return plan

    def _rehearse(self, connector: Connector, destination: Destination, reporter: Reporter) -> None:
        """Tell what would be done, in the log and on the streams' pages."""
        pretended = self._orders.apply_edits(partial(self._upkeep, destination))
        plan = self._plan(destination, reporter, pretended)
        key, tables = self._defined.key, self._defined.tables
        told = [
            dry_run_observation(each, key(each.plan.table.path), connector.mask)
            for each in dry_run(plan, connector)
        ]
        told += [refused_observation(key(tables[n]), e) for n, e in plan.refused.items()]
        for observation in told:
            self._context.log_event(observation)
        streams = ", ".join(observation.asset_key.path[-1] for observation in told)
        self._context.log.info(
            f"Dry run: nothing was written. What a sync would do is told on the pages of {streams}."
        )

    def _warn_of_major_change(self, connector: Connector) -> None:
        identity = connector.runner.identity()
        docs_url = self._defined.discovered.documentation_url
        published = self._connection.entry()
        for notice in major_change(self._store.connectors, identity, docs_url, published):
            self._context.log.warning(notice)
