"""Which destination an address names: ``postgresql://`` a database, anything else a lake."""

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

from atlas_dagster.config.templates import variables
from atlas_dagster.config.validation import resolve
from atlas_dagster.destinations.base import Destination
from atlas_dagster.destinations.delta.destination import DeltaDestination
from atlas_dagster.errors import ConfigError

if TYPE_CHECKING:
    from atlas_dagster.destinations.postgres.destination import PostgresDestination

_POSTGRES = ("postgresql://", "postgres://")


def destination_type(address: str) -> "type[DeltaDestination] | type[PostgresDestination]":
    """Told from the address as it is declared, without any variable.

    Raises:
        ConfigError: the address is a variable altogether.
    """
    if address.lstrip().startswith("{{"):
        raise ConfigError(
            "A destination cannot begin with a variable, because its beginning says what it is; "
            'write the rest out: "postgresql://loader:{{ env.PASSWORD }}@host/database".'
        )
    if not address.startswith(_POSTGRES):
        return DeltaDestination
    # Its driver takes time to import, in every process that loads a code location.
    from atlas_dagster.destinations.postgres.destination import PostgresDestination

    return PostgresDestination


def open_destination(address: str, environ: Mapping[str, str], *, where: str) -> Destination:
    """The destination, with ``{{ env.X }}`` in ``address`` replaced.

    Values are percent-encoded, for a password may hold anything. ``where`` is for messages.

    Raises:
        MissingVariableError: a variable is not set.
        ConfigError: the address is a variable altogether.
    """
    kind = destination_type(address)
    if "://" in address:
        used = variables(address) & set(environ)
        environ = {name: quote(environ[name], safe="") for name in used}
    resolved = resolve({"destination": address}, schema={}, environ=environ, where=where)
    return kind(resolved["destination"])


def shown(address: str) -> str:
    """``address`` without user and password."""
    if not address.startswith(_POSTGRES):
        return address
    from atlas_dagster.destinations.postgres.connection import without_login

    return without_login(address)
