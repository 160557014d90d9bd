"""The state of an adapter's tables: loaded, updated and saved."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw

from atlas_dagster.errors import ConfigError
from atlas_dagster.files import atomic_write
from atlas_dagster.format_versions import refuse_newer
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.protocol.state import ConnectionState

#: The version of the file. Version 1 does not store its number; a later one stores it beside the
#: tables.
VERSION = 1
#: A state for each table, as :attr:`AirbyteSourceAdapter.state` returns it; or a list of STATE
#: messages, each of one table; or the path of a file with one of these.
GivenState = Mapping[str, Any] | Sequence[Any] | str | os.PathLike[str]


class TableStates:
    """One state for each table that was read incrementally.

    Tables are read one at a time. So even a shared state is copied for each table: rows that were
    read from one table must not count as read from another.
    """

    def __init__(self, given: GivenState | None = None) -> None:
        """Raise ConfigError if ``given`` is not a state. A missing file is an empty state."""
        self._path = Path(given) if isinstance(given, str | os.PathLike) else None
        self._states = self._read(self._path) if self._path else _decode(given or {}, "given state")

    def of(self, stream: ConfiguredStream) -> ConnectionState:
        """Return the state to continue from; it is empty for a table that was never read."""
        name = stream.descriptor
        empty = ConnectionState()
        return self._states.get(str(name)) or self._states.get(name.name) or empty

    def update(self, states: Mapping[str, ConnectionState]) -> None:
        self._states.update(states)

    def as_json(self) -> dict[str, Any]:
        return {table: json.loads(state.to_file()) for table, state in self._states.items()}

    def save(self, path: str | os.PathLike[str] | None) -> None:
        """Write all states to ``path``, or to the file they came from, atomically.

        Raises:
            ConfigError: there is no path, or it cannot be written.
        """
        file = Path(path) if path is not None else self._path
        if file is None:
            raise ConfigError("There is no file for the state; pass a path to save_state.")
        content = {table: Raw(state.to_file()) for table, state in self._states.items()}
        try:
            atomic_write(file, msgspec.json.encode(content) + b"\n")
        except OSError as error:
            raise ConfigError(
                f"The state cannot be saved in {file} ({error.strerror}); choose another file."
            ) from error

    def _read(self, path: Path) -> dict[str, ConnectionState]:
        try:
            return _decode(Raw(path.read_bytes()), f"content of {path}")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ConfigError(f"The state in {path} cannot be read ({error.strerror}).") from error


def _decode(given: Any, what: str) -> dict[str, ConnectionState]:
    """Decode states. Blobs in bytes stay as the source wrote them."""
    try:
        content = msgspec.json.encode(given)
        if not content.lstrip().startswith(b"["):
            by_table = msgspec.json.decode(content, type=dict[str, Raw])
            version = bytes(by_table.get("version", b"")).strip()
            if version.isdigit():  # a table of that name would have a list
                refuse_newer(int(version), known=VERSION, what=f"The {what}")
                del by_table["version"]
            return {table: ConnectionState.from_file(file) for table, file in by_table.items()}
        state = ConnectionState.from_file(content)
    except (msgspec.MsgspecError, TypeError) as error:
        raise ConfigError(
            f"The {what} is not a valid state ({error}); pass a value of adapter.state, or STATE "
            "messages of a connector."
        ) from error
    if state.type != "STREAM":
        raise ConfigError(
            f"The {what} is shared by all tables ({state.type}), but tables are read one at a "
            'time; pass it for each table: {"users": [...]}.'
        )
    return {str(name): state.only([name]) for name in state.streams}
