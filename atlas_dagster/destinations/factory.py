"""Destinations by address: ``postgresql://`` is a database, anything else a lake."""

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
    """Return the class of the destination, from its address as declared.

    Raises:
        ConfigError: the address begins with a variable.
    """
    if address.lstrip().startswith("{{"):
        raise ConfigError(
            "A destination cannot begin with a variable, because its beginning decides its type; "
            'write it out, as in "postgresql://loader:{{ env.PASSWORD }}@host/database".'
        )
    if not address.startswith(_POSTGRES):
        return DeltaDestination
    # Importing its driver is slow, and every code location would pay for it.
    from atlas_dagster.destinations.postgres.destination import PostgresDestination

    return PostgresDestination


def open_destination(address: str, environ: Mapping[str, str], *, where: str) -> Destination:
    """Open the destination at ``address``, with ``{{ env.X }}`` replaced.

    In a URL, values are percent-encoded, because a password may contain any character. Error
    messages name ``where`` the address is declared.

    Raises:
        MissingVariableError: a variable is not set.
        ConfigError: the address begins with a variable.
    """
    kind = destination_type(address)
    if "://" in address:
        used = variables(address) & set(environ)
        environ = {name: quote(environ[name], safe="") for name in used}
    resolved = resolve({"destination": address}, schema={}, environ=environ, where=where)
    return kind(resolved["destination"])


def without_password(address: str) -> str:
    """Return ``address`` without user and password."""
    if not address.startswith(_POSTGRES):
        return address
    from atlas_dagster.destinations.postgres.connection import without_login

    return without_login(address)
