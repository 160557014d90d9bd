"""State edits outside of a run, under the connection's lock, and recorded in Dagster."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager

import dagster as dg

from atlas_dagster.destinations.base import Destination
from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.listener import Listener
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.definitions.translator import ConnectionAssets
from atlas_dagster.orchestration.operations.cleanup import end_dead_runs
from atlas_dagster.orchestration.operations.config_store import open_config_store
from atlas_dagster.orchestration.step.event_log import EventLogStateStore
from atlas_dagster.orchestration.step.projections import make_projection_writer
from atlas_dagster.orchestration.step.reporter import make_observations
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.sync.resume import (
    ResumePoints,
    RunRef,
    Target,
    claim_ownership,
    load_resume_points,
)
from atlas_dagster.sync.state_edits import StateEditor, find_streams


class StateAdmin:
    """The stored state of one connection, for commands and requests."""

    def __init__(
        self,
        defined: ConnectionAssets,
        *,
        atlas: AtlasResource,
        instance: dg.DagsterInstance,
        listener: Listener,
    ) -> None:
        self.connection = defined.connection
        self.streams = defined.streams
        self.tables = {name: defined.tables[name] for name in defined.specs}
        self.store = EventLogStateStore(instance, defined.source_key, defined.key)
        self._defined = defined
        self._atlas = atlas
        self._instance = instance
        self._listener = listener

    def find(self, names: Collection[str]) -> list[StreamDescriptor]:
        """Return the streams with these names, or all. Raises UnknownStreamError."""
        return list(find_streams(self.connection.name, self.streams, names))

    def resume_points(self) -> ResumePoints:
        """Return the current resume points. A sync may be running."""
        with closing(self._atlas.open_destination(self.connection)) as destination:
            return load_resume_points(self._target(destination))

    def apply(self, change: Callable[[StateEditor], Sequence[Envelope]]) -> Sequence[Envelope]:
        """Wait until no sync is running, apply ``change``, and record it.

        Raises:
            ConfigError: the tables belong to another deployment.
            AtlasError: ``change`` raised it.
        """
        end_dead_runs(self._instance)
        with (
            self._locked(),
            closing(self._atlas.open_destination(self.connection)) as destination,
        ):
            claim_ownership(destination, self.connection.name, self._atlas.deployment)
            done = change(StateEditor(self._target(destination), RunRef()))
            writer = make_projection_writer(self._instance, self._listener.warning)
            for envelope in done:
                for observation in make_observations(self._defined, envelope):
                    self._instance.report_runless_asset_event(observation)
                writer.write_states(envelope)
            return done

    def transfer_ownership(self) -> str:
        """Transfer the tables from another deployment to this one. Return its name."""
        with (
            self._locked(),
            closing(self._atlas.open_destination(self.connection)) as destination,
        ):
            destination.transfer_ownership(self.connection.name, self._atlas.deployment)
        return self._atlas.deployment

    def _target(self, destination: Destination) -> Target:
        streams = {stream.descriptor: stream for stream in self.streams}
        return Target(self.connection.name, streams, self.tables, destination, self.store)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open_config_store(self._instance).lock(self.connection.name, self._listener):
            yield
