"""Connectors in Docker, call by call, in the terms of the Airbyte protocol."""

import logging
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import closing
from typing import Any, TypeVar

from airbyte_protocol.models import (
    AirbyteCatalog,
    AirbyteConnectionStatus,
    AirbyteMessage,
    ConnectorSpecification,
)

from atlas_dagster.interfaces.python import protocol_models
from atlas_dagster.interfaces.python.protocol_models import GivenCatalog, GivenState
from atlas_dagster.interfaces.python.worker import Call, Stream, Worker
from atlas_dagster.listener import LoggingListener
from atlas_dagster.reading.ad_hoc import adhoc_connection, adhoc_context, reap_adhoc_once
from atlas_dagster.reading.ad_hoc_source import AdHocSource
from atlas_dagster.runners.docker.engine import connect, find_connection_problem
from atlas_dagster.runners.docker.runner import DockerRunner
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.source.connector_ref import ConnectorRef

T = TypeVar("T")

_log = logging.getLogger("atlas_dagster.airbyte")
#: Messages that a stream delivers at once; single deliveries would cost several times as much.
_TOGETHER = 500


class AirbyteDockerExecutor:
    """Runs images of source connectors. :attr:`sync` has the same methods without an event loop.

    ``image`` is an image reference, or a name from the registry. Log lines of a connector go to
    the logger ``atlas_dagster.connectors.<name>``, secrets masked. Every method may raise:
        ConfigError: the config does not fit the SPEC, or Docker has to be set up differently.
        RunnerUnavailableError: no engine answers, or the image cannot be pulled now.
        ConnectorFailedError: the connector failed; the message is its own.
    """

    def __init__(self, config: ExecutorConfig | None = None) -> None:
        self._config = config

    @property
    def sync(self) -> "SyncDockerExecutor":
        """The same methods for code without an event loop."""
        return SyncDockerExecutor(self)

    async def spec(self, image: str) -> ConnectorSpecification:
        """Return the SPEC: ``connectionSpecification`` is the JSON schema of the config."""
        return await self._ask(_specification, image)

    async def check(self, image: str, config: Mapping[str, Any]) -> AirbyteConnectionStatus:
        """Test the connection: ``status`` is ``"SUCCEEDED"`` or ``"FAILED"``."""
        return await self._ask(_status, image, config)

    async def discover(self, image: str, config: Mapping[str, Any]) -> AirbyteCatalog:
        """Return the streams that the source offers with this config."""
        return await self._ask(_catalog, image, config)

    def read(
        self,
        image: str,
        config: Mapping[str, Any],
        catalog: GivenCatalog,
        state: GivenState | None = None,
    ) -> AsyncIterator[AirbyteMessage]:
        """Iterate over RECORD, STATE and TRACE messages.

        Leaving the loop stops the connector. Single messages are slow; for many rows use
        :meth:`~atlas_dagster.airbyte.SourceConnector.get_data_stream`.

        Args:
            image: the connector.
            config: its config.
            catalog: the answer of :meth:`discover`, to read all of every stream, or a
                ``ConfiguredAirbyteCatalog``.
            state: STATE messages to continue from.
        """
        return self._read(image, config, catalog, state)

    async def pull(self, image: str) -> str:
        """Pull the image, even if it is present, and return its reference with the digest.

        Raises:
            RunnerUnavailableError: it cannot be pulled now, even if an older one is present.
        """
        return await Worker().submit(lambda: _pull(image, self._config))

    async def is_available(self) -> bool:
        """Return whether a Docker engine answers; the log says why not."""
        return await Worker().submit(lambda: _is_available(self._config))

    def _ask(
        self,
        question: Callable[[AdHocSource], T],
        image: str,
        config: Mapping[str, Any] | None = None,
    ) -> Call[T]:
        source = self._source(image, config or {})
        worker = Worker() if config is None else Worker.of(source.connection.name)

        def reap_and_ask() -> T:
            reap_adhoc_once()
            return question(source)

        return worker.submit(reap_and_ask)

    def _read(
        self,
        image: str,
        config: Mapping[str, Any],
        catalog: GivenCatalog,
        state: GivenState | None,
    ) -> Stream[AirbyteMessage]:
        source = self._source(image, config)
        files = {"catalog": protocol_models.catalog_file(catalog)}
        if state:
            files["state"] = protocol_models.state_file(state)
        worker = Worker.of(source.connection.name)
        return Stream(worker.submit, _messages(source, files), iter)

    def _source(self, image: str, config: Mapping[str, Any]) -> AdHocSource:
        connection = adhoc_connection(image, config, "docker")
        listener = LoggingListener(_log, connection.source_name)
        return AdHocSource(connection, adhoc_context(listener, limits=self._config))


class SyncDockerExecutor:
    """The methods of :class:`AirbyteDockerExecutor` for code without an event loop. Each waits."""

    def __init__(self, executor: AirbyteDockerExecutor) -> None:
        self._executor = executor

    def spec(self, image: str) -> ConnectorSpecification:
        """See :meth:`AirbyteDockerExecutor.spec`."""
        return self._executor._ask(_specification, image).wait()

    def check(self, image: str, config: Mapping[str, Any]) -> AirbyteConnectionStatus:
        """See :meth:`AirbyteDockerExecutor.check`."""
        return self._executor._ask(_status, image, config).wait()

    def discover(self, image: str, config: Mapping[str, Any]) -> AirbyteCatalog:
        """See :meth:`AirbyteDockerExecutor.discover`."""
        return self._executor._ask(_catalog, image, config).wait()

    def read(
        self,
        image: str,
        config: Mapping[str, Any],
        catalog: GivenCatalog,
        state: GivenState | None = None,
    ) -> Iterator[AirbyteMessage]:
        """See :meth:`AirbyteDockerExecutor.read`."""
        return self._executor._read(image, config, catalog, state)

    def pull(self, image: str) -> str:
        """See :meth:`AirbyteDockerExecutor.pull`."""
        return _pull(image, self._executor._config)

    def is_available(self) -> bool:
        """See :meth:`AirbyteDockerExecutor.is_available`."""
        return _is_available(self._executor._config)


def get_docker_executor(config: ExecutorConfig | None = None) -> AirbyteDockerExecutor:
    """Return an executor with these limits, by default those of ATLAS_EXECUTOR."""
    return AirbyteDockerExecutor(config)


async def check_docker_available() -> bool:
    """Return whether a Docker engine answers; the log says why not."""
    return await AirbyteDockerExecutor().is_available()


async def pull_image(image: str) -> str:
    """Pull an image, or the image of a connector of the registry; see the executor's ``pull``."""
    return await AirbyteDockerExecutor().pull(image)


# The functions below block, so they run on a worker's thread.


def _specification(source: AdHocSource) -> ConnectorSpecification:
    return protocol_models.specification(source.spec())


def _status(source: AdHocSource) -> AirbyteConnectionStatus:
    return protocol_models.connection_status(source.status())


def _catalog(source: AdHocSource) -> AirbyteCatalog:
    return protocol_models.catalog(source.discover())


def _messages(
    source: AdHocSource, files: Mapping[str, bytes]
) -> Generator[list[AirbyteMessage], None, None]:
    reap_adhoc_once()
    together: list[AirbyteMessage] = []
    with source.open() as connector:
        invocation = connector.invoke()
        with closing(invocation.messages(connector.command("read", files))) as found:
            for each in found:
                together += () if each is None else protocol_models.messages(each)
                if together and (each is None or len(together) >= _TOGETHER):
                    yield together
                    together = []
        yield together
        if invocation.failed:
            raise invocation.failure()


def _pull(image: str, config: ExecutorConfig | None) -> str:
    limits = config or ExecutorConfig()
    reference = ConnectorRef.resolve(adhoc_connection(image, {}, "docker")).image
    client = connect(limits.docker_host)
    listener = LoggingListener(_log, image)
    with DockerRunner(reference, client=client, executor=limits, listener=listener) as runner:
        runner.pull()
        return runner.identity()


def _is_available(config: ExecutorConfig | None) -> bool:
    wrong = find_connection_problem(config.docker_host if config else None)
    if wrong is not None:
        _log.warning("%s", wrong)
    return wrong is None
