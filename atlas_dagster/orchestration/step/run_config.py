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
    """What becomes of the old rows when streams are read again from the beginning."""

    remove = "remove"
    retain = "retain"


class StreamOptions(dg.Config):
    """Options of one stream."""

    refresh: Refresh | None = Field(
        default=None, description="For this stream in place of the run's own refresh."
    )
    state: Any = Field(
        default=None,
        description="Read on from this state: what `atlas state show` prints of the stream, as "
        "YAML, or as a text that holds JSON.",
    )


class SyncConfig(dg.Config):
    """Options of one run."""

    refresh: Refresh | None = Field(
        default=None,
        description="Read the selected streams again from the beginning. remove: the old rows are "
        "replaced once that is complete; retain: they stay.",
    )
    streams: dict[str, StreamOptions] = Field(
        default={}, description="Options of single streams, by name: {users: {refresh: remove}}."
    )
    state: Any = Field(
        default=None,
        description="Read on from this state of the whole connection: the content of an Airbyte "
        "state file, as `atlas state show` prints it.",
    )
    dry_run: bool = Field(
        default=False,
        description="Change nothing: check, plan, read a little, and tell what a sync would do.",
    )


class PreSyncEdits(Struct, frozen=True):
    """What a run is to do before it reads: which streams to refresh, which states to set."""

    refreshes: Mapping[StreamDescriptor, Refresh]
    states: Mapping[StreamDescriptor, Raw]
    whole_state: ConnectionState | None

    def apply_edits(
        self, open_upkeep: Callable[[Sequence[Envelope]], StateEditor]
    ) -> Sequence[Envelope]:
        """Do it, in commits of their own. ``open_upkeep`` is given those that were done."""
        done: list[Envelope] = []
        for how in Refresh:
            names = [name for name, wanted in self.refreshes.items() if wanted is how]
            if names:
                done += open_upkeep(done).refresh(names, keep_rows=how is Refresh.retain)
        for name, blob in self.states.items():
            done += open_upkeep(done).set_stream(name, blob)
        if self.whole_state is not None:
            done += open_upkeep(done).set(self.whole_state)
        return done


def orders(
    connection: str,
    streams: Collection[ConfiguredStream],
    selected: Collection[StreamDescriptor],
    config: SyncConfig,
) -> PreSyncEdits:
    """The options of a run, checked against its selected streams.

    Raises:
        UnknownStreamError: an option is of a stream that the connection does not have.
        ConfigError: it is of one that is not selected, or options contradict each other.
    """
    refreshes = {name: config.refresh for name in selected if config.refresh is not None}
    states: dict[StreamDescriptor, Raw] = {}
    for given, options in config.streams.items():
        (name,) = find_streams(connection, streams, [given])
        if name not in selected:
            raise ConfigError(
                f"The run has options for stream '{given}', which is not selected; select its "
                "asset, too, or leave the options out."
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
                "A state of the whole connection goes with no refresh and no state of a stream; "
                "give one of them."
            )
        whole = _connection_state(_json(config.state, "The state"))
    return PreSyncEdits(refreshes, states, whole)


def _json(given: object, what: str) -> Raw:
    """Text is taken byte for byte: numbers of many digits survive neither YAML nor the browser."""
    if not isinstance(given, str):
        return Raw(msgspec.json.encode(given))
    try:
        msgspec.json.decode(given)
    except ValueError as error:
        raise ConfigError(
            f"{what} is no JSON ({error}); give it as YAML, or as a text that holds JSON."
        ) from error
    return Raw(given.encode())


def _connection_state(content: Raw) -> ConnectionState:
    try:
        state = ConnectionState.from_file(content)
    except ValueError as error:
        raise ConfigError(
            f"The state is no content of an Airbyte state file ({error}); give what "
            "`atlas state show` prints, or the state of one stream under streams."
        ) from error
    if not state:
        raise ConfigError("The state is empty; to read from the beginning, use refresh.")
    return state
