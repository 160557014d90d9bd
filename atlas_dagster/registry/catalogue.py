"""The list of connectors: shipped with Atlas, or a newer one that was fetched."""

import logging
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

import msgspec
from msgspec import Struct

from atlas_dagster.errors import ConfigError
from atlas_dagster.files import atomic_write, cache_folder
from atlas_dagster.format_versions import version_of
from atlas_dagster.registry.connector_info import ConnectorInfo

#: The format version of the stored list. Version 1 does not store its number.
VERSION = 1
_log = logging.getLogger(__name__)


class Listing(Struct, frozen=True, omit_defaults=True):
    """All connectors, sorted by name, as of ``date`` (a day, or a second, in UTC).

    ``source`` is the registry's address, and ``etag`` the version of the list in the registry.
    """

    date: str
    connectors: tuple[ConnectorInfo, ...]
    source: str | None = None
    etag: str | None = None

    def encode(self) -> bytes:
        """Return JSON with one line for each connector, so that a diff is readable."""
        head = msgspec.json.encode(msgspec.structs.replace(self, connectors=()))
        lines = b",\n".join(msgspec.json.encode(connector) for connector in self.connectors)
        return head.replace(b'"connectors":[]', b'"connectors":[\n' + lines + b"\n]") + b"\n"


@cache
def listing() -> Listing:
    """Return the newest list on this machine.

    The list is cached, because each connection of a code location looks up its connector.
    """
    shipped = shipped_listing()
    path = refreshed_path()
    try:
        refreshed = _decode(path.read_bytes())
    except FileNotFoundError:
        return shipped
    except (OSError, ConfigError, msgspec.MsgspecError) as error:
        _log.warning(
            "The list of connectors in %s cannot be read (%s); Atlas uses its shipped list. To "
            "replace the file, run `atlas connectors refresh`.",
            path,
            error,
        )
        return shipped
    # The shipped list is the newer one if Atlas was upgraded after the last refresh.
    return max(shipped, refreshed, key=lambda it: it.date)


@cache
def connectors_by_name() -> Mapping[str, ConnectorInfo]:
    return MappingProxyType({connector.name: connector for connector in listing().connectors})


def shipped_listing() -> Listing:
    return _decode((files("atlas_dagster.registry") / "connectors.json").read_bytes())


def refreshed_path() -> Path:
    """Return the path of the fetched list."""
    return cache_folder() / "connectors.json"


def store_catalogue(refreshed: Listing) -> None:
    """Replace the stored list. Raises OSError."""
    path = refreshed_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, refreshed.encode())
    clear_cache()


def clear_cache() -> None:
    """Make this process read the list again."""
    listing.cache_clear()
    connectors_by_name.cache_clear()


def _decode(content: bytes) -> Listing:
    version_of(content, known=VERSION, what="It")
    return msgspec.json.decode(content, type=Listing)
