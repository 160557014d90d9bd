"""What stands between the routes and the connectors: which may run, how many, and for how long."""

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
from atlas_dagster.interfaces.http.clients import while_connected
from atlas_dagster.interfaces.http.models import Format, ReadRequest
from atlas_dagster.interfaces.http.places import ConnectorSlots
from atlas_dagster.interfaces.http.problems import ProblemError
from atlas_dagster.interfaces.http.read import read_stream
from atlas_dagster.interfaces.http.settings import Settings
from atlas_dagster.interfaces.http.streaming import RowStream
from atlas_dagster.interfaces.python.adapter import log_of
from atlas_dagster.interfaces.python.worker import Worker
from atlas_dagster.protocol.catalog import Catalog
from atlas_dagster.reading.ad_hoc import (
    AdHocConnection,
    adhoc_caller,
    adhoc_connection,
    registry_name,
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
#: Catalogs of sources that were asked for lately; pages of one stream follow each other.
_MOST_CATALOGS = 100
_CATALOG_SECONDS = 300.0
#: What a response may take longer than its connector, which waits for the client.
_LINGER_SECONDS = 60.0


class Service:
    """Runs connectors for clients."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._places = ConnectorSlots(
            settings.containers, waiting=settings.waiting, seconds=settings.wait_seconds
        )
        self._catalogs: OrderedDict[str, tuple[float, Catalog]] = OrderedDict()

    def allows(self, info: ConnectorInfo) -> bool:
        return self._settings.allow is None or info.name in self._settings.allow

    def source(
        self, name: str, config: Mapping[str, Any] | None = None, *, validate: bool = True
    ) -> AdHocSource:
        """The connector ``name`` with ``config``.

        Raises:
            ProblemError: there is none such, it may not run here, or its config is refused.
        """
        connection = self._connection(name, config or {}, validate=validate)
        catalog = self._known_catalog(_key(name, config or {}))
        log = log_of(connection.source_name)
        # Nothing of our own environment may get into what a client sends.
        caller = adhoc_caller(
            _log.info, log, kind="request", environ={}, executor=self._settings.executor
        )
        return AdHocSource(connection, caller, catalog)

    async def run(self, request: Request, source: AdHocSource, call: Callable[[], T]) -> T:
        """What ``call`` returns, once there is a place for ``source``'s connector.

        Raises:
            ProblemError: there is none.
            ClientLeftError: the client has left; its connector is stopped.
        """

        async def answering() -> T:
            async with self._places.one(source.connection.name):
                return await Worker().submit(call)

        return await while_connected(request.receive, answering())

    async def stream(
        self, request: Request, source: AdHocSource, asked: ReadRequest, form: Format
    ) -> RowStream:
        """A response that has its first rows, and holds its place as long as there are more."""

        async def opening() -> RowStream:
            async with AsyncExitStack() as held:
                await held.enter_async_context(self._places.one(source.connection.name))
                feed, broken, media_type = read_stream(source, asked, form)
                held.push_async_callback(feed.aclose)
                first = await anext(feed)
                return RowStream(
                    first,
                    feed,
                    broken=broken,
                    held=held.pop_all(),
                    media_type=media_type,
                    seconds=self._settings.executor.timeout_seconds + _LINGER_SECONDS,
                )

        return await while_connected(request.receive, opening())

    def remember(self, name: str, config: Mapping[str, Any], source: AdHocSource) -> None:
        """Keep the catalog of ``source`` for the next requests."""
        if source.is_discovered:
            key = _key(name, config)
            self._catalogs[key] = (time.monotonic() + _CATALOG_SECONDS, source.catalog())
            self._catalogs.move_to_end(key)
            while len(self._catalogs) > _MOST_CATALOGS:
                self._catalogs.popitem(last=False)

    def _known_catalog(self, key: str) -> Catalog | None:
        until, catalog = self._catalogs.get(key, (0.0, None))
        return catalog if until > time.monotonic() else None

    def _connection(
        self, name: str, config: Mapping[str, Any], *, validate: bool
    ) -> AdHocConnection:
        allow = self._settings.allow
        named = registry_name(name)
        if allow is not None and name not in allow and (named is None or named.name not in allow):
            raise ProblemError(
                "connector_not_allowed",
                f"This server does not run {name}; it was started with a list of those it does.",
            )
        if allow is None and named is None and ("/" in name or "@" in name):
            raise ProblemError(
                "connector_not_allowed",
                "This server runs connectors of the registry only, by their names; start it with "
                "--allow for images.",
            )
        if allow is None:
            _require(named.name if named else image_name(name))
        for field, value in config.items():
            if variables(value):
                raise ProblemError(
                    "invalid_config",
                    f"The config field '{field}' refers to an environment variable, which is not "
                    "replaced here; send its value.",
                    field=field,
                )
        return adhoc_connection(name, config, self._settings.runner, validate=validate)


def _require(name: str) -> None:
    """Raises ProblemError, with the nearest names, where the registry has no such connector."""
    try:
        get_connector_info(name)
    except UnknownConnectorError as error:
        nearest = [info.name for info in search_connectors(name)[:_SUGGESTIONS]]
        raise ProblemError("unknown_connector", str(error), suggestions=nearest) from error


def _key(name: str, config: Mapping[str, Any]) -> str:
    """Tells one source from another, and says nothing of it."""
    return hashlib.sha256(json.dumps([name, config], sort_keys=True).encode()).hexdigest()
