"""The options of one run, as the launchpad offers them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from typing import Any

import dagster as dg
import msgspec
from msgspec import Raw, Struct
from pydantic import Field

from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.errors import ConfigError
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState
from atlas_dagster.sync.state_edits import StateEditor, find_streams


class Refresh(Enum):
    """The fate of the old rows when a stream is read from the beginning."""

    remove = "remove"
    retain = "retain"


class StreamOptions(dg.Config):
    """Options of one stream."""

    refresh: Refresh | None = Field(
        default=None, description="Overrides the run's refresh for this stream."
    )
    state: Any = Field(
        default=None,
        description="Resume from this state, as `atlas state show` prints it for the stream: YAML, "
        "or JSON in a string.",
    )


class SyncConfig(dg.Config):
    """Options of one run."""

    refresh: Refresh | None = Field(
        default=None,
        description="Read the selected streams from the beginning. remove: the old rows are "
        "replaced when the stream is complete; retain: they stay.",
    )
    streams: dict[str, StreamOptions] = Field(
        default={}, description="Options of single streams, by name: {users: {refresh: remove}}."
    )
    state: Any = Field(
        default=None,
        description="Resume from this state of the connection: the content of an Airbyte state "
        "file, as `atlas state show` prints it.",
    )
    dry_run: bool = Field(
        default=False,
        description="Write nothing: check, plan, read a few records, report what a sync would do.",
    )


class PreSyncEdits(Struct, frozen=True):
    """The edits of a run before it reads: streams to refresh and states to set."""

    refreshes: Mapping[StreamDescriptor, Refresh]
    states: Mapping[StreamDescriptor, Raw]
    whole_state: ConnectionState | None

    def apply_edits(
        self, open_editor: Callable[[Sequence[Envelope]], StateEditor]
    ) -> Sequence[Envelope]:
        """Apply the edits, each as a separate commit, and return these commits.

        ``open_editor`` gets the commits made so far.
        """
        done: list[Envelope] = []
        for refresh_mode in Refresh:
            names = [name for name, wanted in self.refreshes.items() if wanted is refresh_mode]
            if names:
                done += open_editor(done).refresh(names, keep_rows=refresh_mode is Refresh.retain)
        for name, blob in self.states.items():
            done += open_editor(done).set_stream(name, blob)
        if self.whole_state is not None:
            done += open_editor(done).set(self.whole_state)
        return done


def parse_run_config(
    connection: str,
    streams: Collection[ConfiguredStream],
    selected: Collection[StreamDescriptor],
    config: SyncConfig,
) -> PreSyncEdits:
    """Return the edits of a run, validated against its selected streams.

    Raises:
        UnknownStreamError: an option names a stream that the connection does not have.
        ConfigError: an option names a stream that is not selected, or options exclude each other.
    """
    refreshes = {name: config.refresh for name in selected if config.refresh is not None}
    states: dict[StreamDescriptor, Raw] = {}
    for given, options in config.streams.items():
        (name,) = find_streams(connection, streams, [given])
        if name not in selected:
            raise ConfigError(
                f"The run has options for stream '{given}', which is not selected; select its "
                "asset, too, or remove the options."
            )
        if options.refresh is not None:
            refreshes[name] = options.refresh
        if options.state is not None:
            states[name] = _json(options.state, f"The state of stream '{given}'")
    for name in refreshes.keys() & states.keys():
        raise ConfigError(
            f"Stream '{name}' cannot be read from the beginning and from a state; give it refresh "
            "or state, not both."
        )
    whole = None
    if config.state is not None:
        if refreshes or states:
            raise ConfigError(
                "A state of the connection cannot be combined with refresh or with the state of a "
                "stream; use one of them."
            )
        whole = _connection_state(_json(config.state, "The state"))
    return PreSyncEdits(refreshes, states, whole)


def _json(given: object, what: str) -> Raw:
    """Return JSON. Text is passed on as it is, because parsing could change long numbers."""
    if not isinstance(given, str):
        return Raw(msgspec.json.encode(given))
    try:
        msgspec.json.decode(given)
    except ValueError as error:
        raise ConfigError(
            f"{what} is not valid JSON ({error}); write YAML, or JSON in a string."
        ) from error
    return Raw(given.encode())


def _connection_state(content: Raw) -> ConnectionState:
    try:
        state = ConnectionState.from_file(content)
    except ValueError as error:
        raise ConfigError(
            f"The state is not the content of an Airbyte state file ({error}); use the output of "
            "`atlas state show`, or set the state of one stream under streams."
        ) from error
    if not state:
        raise ConfigError("The state is empty; to read from the beginning, use refresh.")
    return state
