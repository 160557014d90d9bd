"""The connectors that the server runs, with its limits of their choice, number and time."""

import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from fastapi import Request

from atlas_dagster.config.templates import variables
from atlas_dagster.errors import UnknownConnectorError
from atlas_dagster.interfaces.http.limits import ConnectorSlots, Settings
from atlas_dagster.interfaces.http.models import ConnectorRequest, Format, ReadRequest
from atlas_dagster.interfaces.http.problems import ProblemError
from atlas_dagster.interfaces.http.read import RowPieces
from atlas_dagster.interfaces.http.streaming import RowResponse, while_connected
from atlas_dagster.interfaces.python.worker import Worker
from atlas_dagster.listener import LoggingListener
from atlas_dagster.protocol.catalog import Catalog
from atlas_dagster.reading.ad_hoc import (
    AdHocConnection,
    adhoc_connection,
    adhoc_context,
    parse_registry_name,
)
from atlas_dagster.reading.ad_hoc_source import AdHocSource
from atlas_dagster.registry import (
    ConnectorInfo,
    get_connector_info,
    image_name,
    search_connectors,
)

T = TypeVar("T")

_log = logging.getLogger("atlas_dagster.http")
_SUGGESTIONS = 3
#: Catalogs are kept for a while, because clients read a stream page by page.
_MOST_CATALOGS = 100
_CATALOG_SECONDS = 300.0
#: A response may take this much longer than its connector, which waits for a slow client.
_LINGER_SECONDS = 60.0


class ConnectorPool:
    """Runs connectors for clients."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._slots = ConnectorSlots(
            settings.containers, waiting=settings.waiting, seconds=settings.wait_seconds
        )
        self._catalogs: OrderedDict[str, tuple[float, Catalog]] = OrderedDict()

    def is_allowed(self, info: ConnectorInfo) -> bool:
        """Return whether the connector may run."""
        return self._settings.allow is None or info.name in self._settings.allow

    def open(self, request: ConnectorRequest) -> AdHocSource:
        """Return the connector of ``request`` with its config.

        Raises:
            ProblemError: the connector does not exist or may not run, or the config is not valid.
        """
        connection = self._make_connection(request)
        until, catalog = self._catalogs.get(_hash_request(request), (0.0, None))
        # Clients must not read the environment of the server.
        context = adhoc_context(
            LoggingListener(_log, connection.source_name),
            kind="request",
            environ={},
            limits=self._settings.executor,
        )
        return AdHocSource(connection, context, catalog if until > time.monotonic() else None)

    async def run(self, request: Request, source: AdHocSource, call: Callable[[], T]) -> T:
        """Wait for a slot for ``source``, and return the result of ``call``.

        Raises:
            ProblemError: no slot became free.
            ClientLeftError: the client has disconnected; its connector is stopped.
        """

        async def answer() -> T:
            async with self._slots.take(source.connection.name):
                return await Worker().submit(call)

        return await while_connected(request.receive, answer())

    async def stream(
        self, request: Request, source: AdHocSource, read_request: ReadRequest, form: Format
    ) -> RowResponse:
        """Return a response as soon as it has its first rows. It occupies a slot until its end."""

        async def answer() -> RowResponse:
            async with AsyncExitStack() as resources:
                await resources.enter_async_context(self._slots.take(source.connection.name))
                pieces = RowPieces(source, read_request, form)
                resources.push_async_callback(pieces.stream.aclose)
                first = await anext(pieces.stream)
                return RowResponse(
                    first,
                    pieces.stream,
                    media_type=pieces.media_type,
                    failure=pieces.failure,
                    resources=resources.pop_all(),
                    seconds=self._settings.executor.timeout_seconds + _LINGER_SECONDS,
                )

        return await while_connected(request.receive, answer())

    def keep_catalog(self, request: ConnectorRequest, source: AdHocSource) -> None:
        """Keep the catalog of ``source``, if it was discovered, for the next requests."""
        if source.is_discovered:
            key = _hash_request(request)
            self._catalogs[key] = (time.monotonic() + _CATALOG_SECONDS, source.catalog())
            self._catalogs.move_to_end(key)
            while len(self._catalogs) > _MOST_CATALOGS:
                self._catalogs.popitem(last=False)

    def _make_connection(self, request: ConnectorRequest) -> AdHocConnection:
        name, allow = request.connector_name, self._settings.allow
        registry_name = parse_registry_name(name)
        names = {name} if registry_name is None else {name, registry_name.name}
        if allow is not None and names.isdisjoint(allow):
            raise ProblemError(
                "connector_not_allowed", f"This server does not run {name}; start it with --allow."
            )
        if allow is None and registry_name is None and ("/" in name or "@" in name):
            raise ProblemError(
                "connector_not_allowed",
                "This server runs connectors of the registry only; start it with --allow to run "
                "images.",
            )
        if allow is None:
            _require_connector(registry_name.name if registry_name else image_name(name))
        for field, value in request.config.items():
            if variables(value):
                raise ProblemError(
                    "invalid_config",
                    f"The config field '{field}' refers to an environment variable, and the server "
                    "does not replace those; send its value.",
                    field=field,
                )
        return adhoc_connection(
            name, request.config, self._settings.runner, validate=request.validate_config
        )


def _require_connector(name: str) -> None:
    """Raise ProblemError, with similar names, if the registry does not have the connector."""
    try:
        get_connector_info(name)
    except UnknownConnectorError as error:
        nearest = [info.name for info in search_connectors(name)[:_SUGGESTIONS]]
        raise ProblemError("unknown_connector", str(error), suggestions=nearest) from error


def _hash_request(request: ConnectorRequest) -> str:
    """Return a hash of the connector and its config."""
    content: list[str | Mapping[str, Any]] = [request.connector_name, request.config]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
