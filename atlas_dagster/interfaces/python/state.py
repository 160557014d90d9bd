"""Where the tables of an adapter continue: given, read and saved."""

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

#: Of the file. Version 1 does not store it; a later one is to store it beside the tables.
VERSION = 1
#: What each table's connector takes back, by table; states of single tables, as connectors print
#: them; or a file of either.
GivenState = Mapping[str, Any] | Sequence[Any] | str | os.PathLike[str]


class TableStates:
    """The state of each table that was read incrementally, apart from those of the others.

    Even a source that keeps one state for all its streams has one for each here, because each is
    read alone: what is new in one table must not count as read in another.
    """

    def __init__(self, given: GivenState | None = None) -> None:
        """Raises ConfigError where ``given`` is no state. A file that is not there is empty."""
        self._path = Path(given) if isinstance(given, str | os.PathLike) else None
        self._states = self._read(self._path) if self._path else _decoded(given or {}, "state")

    def of(self, stream: ConfiguredStream) -> ConnectionState:
        """Empty for a table that was never read."""
        name = stream.descriptor
        empty = ConnectionState()
        return self._states.get(str(name)) or self._states.get(name.name) or empty

    def update(self, states: Mapping[str, ConnectionState]) -> None:
        self._states.update(states)

    def as_json(self) -> dict[str, Any]:
        return {table: json.loads(state.to_file()) for table, state in self._states.items()}

    def save(self, path: str | os.PathLike[str] | None) -> None:
        """Write all to ``path``, or where they came from; the file is whole at any time.

        Raises:
            ConfigError: there is no path, or it cannot be written.
        """
        file = Path(path) if path is not None else self._path
        if file is None:
            raise ConfigError("There is no file for the state; give its path to save_state.")
        content = {table: Raw(state.to_file()) for table, state in self._states.items()}
        try:
            atomic_write(file, msgspec.json.encode(content) + b"\n")
        except OSError as error:
            raise ConfigError(
                f"The state cannot be saved in {file} ({error.strerror}); choose another file."
            ) from error

    def _read(self, path: Path) -> dict[str, ConnectionState]:
        try:
            return _decoded(Raw(path.read_bytes()), f"state in {path}")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ConfigError(f"The state in {path} cannot be read ({error.strerror}).") from error


def _decoded(given: Any, what: str) -> dict[str, ConnectionState]:
    """Blobs stay as the source wrote them, where they came as bytes."""
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
            f"The {what} is none ({error}); give what adapter.state was, or what connectors print."
        ) from error
    if state.type != "STREAM":
        raise ConfigError(
            f"The {what} is one for all tables ({state.type}), but each is read alone; give it by "
            'table: {"users": [...]}.'
        )
    return {str(name): state.only([name]) for name in state.streams}
