"""Connectors over HTTP, for programs in any language. Needs the extra ``http``."""

from atlas_dagster.interfaces.http.app import create_app
from atlas_dagster.interfaces.http.limits import Settings
from atlas_dagster.interfaces.http.server import serve

__all__ = ["Settings", "create_app", "serve"]
