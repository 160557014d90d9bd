"""Connectors in Docker, call by call, in the terms of the Airbyte protocol."""

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import closing
from typing import Any, TypeVar

from airbyte_protocol.models import (
    AirbyteCatalog,
    AirbyteConnectionStatus,
    AirbyteMessage,
    ConnectorSpecification,
)

from atlas_dagster.interfaces.python import protocol_models
from atlas_dagster.interfaces.python.adapter import log_of
from atlas_dagster.interfaces.python.protocol_models import GivenCatalog, GivenState
from atlas_dagster.interfaces.python.worker import Feed, Work
from atlas_dagster.reading.ad_hoc import adhoc_caller, adhoc_connection, reap_adhoc_once
from atlas_dagster.reading.ad_hoc_source import AdHocSource
from atlas_dagster.runners.docker.engine import connect, problem
from atlas_dagster.runners.docker.runner import DockerRunner
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.source.connector_ref import ConnectorRef

T = TypeVar("T")

_log = logging.getLogger("atlas_dagster.airbyte")
#: Messages that are handed over at once; each alone would cost more on the way than itself.
_TOGETHER = 500


class AirbyteDockerExecutor:
    """Runs images of source connectors; :attr:`sync` has the same methods without an event loop.

    ``image`` is an image reference, or a name from the registry. What a connector logs goes to the
    logger ``atlas_dagster.connectors.<name>``, without secrets. Every method may raise:
        ConfigError: the config does not fit the SPEC, or Docker needs somebody's hand.
        RunnerUnavailableError: no engine answers, or the image cannot be had now.
        ConnectorFailedError: the connector failed; the message is its own.
    """

    def __init__(self, config: ExecutorConfig | None = None) -> None:
        self.sync = SyncDockerExecutor(config)

    async def spec(self, image: str) -> ConnectorSpecification:
        """What config the connector takes, as JSON schema in ``connectionSpecification``."""
        return await self.sync._spec(image)

    async def check(self, image: str, config: Mapping[str, Any]) -> AirbyteConnectionStatus:
        """Whether the source can be reached: ``status`` is ``"SUCCEEDED"`` or ``"FAILED"``."""
        return await self.sync._check(image, config)

    async def discover(self, image: str, config: Mapping[str, Any]) -> AirbyteCatalog:
        """The streams that the source offers with this config."""
        return await self.sync._discover(image, config)

    def read(
        self,
        image: str,
        config: Mapping[str, Any],
        catalog: GivenCatalog,
        state: GivenState | None = None,
    ) -> AsyncIterator[AirbyteMessage]:
        """RECORD, STATE and TRACE messages, for ``async for``.

        Leaving the loop stops the connector. Message by message is slow; for many rows there is
        :meth:`~atlas_dagster.airbyte.SourceConnector.get_data_stream`.

        Args:
            image: the connector.
            config: what its SPEC asks for.
            catalog: what :meth:`discover` answered, to read all of every stream, or a
                ``ConfiguredAirbyteCatalog``.
            state: the STATE messages where it continues.
        """
        return self.sync._read(image, config, catalog, state)

    async def pull(self, image: str) -> str:
        """Fetch the image, even if it is there; the reference with the digest that it has now.

        Raises:
            RunnerUnavailableError: it cannot be pulled now, even if an older one is there.
        """
        return await self.sync._pull(image)

    async def is_available(self) -> bool:
        """Whether a Docker engine answers; the log says why not."""
        return await self.sync._is_available()


class SyncDockerExecutor:
    """The methods of :class:`AirbyteDockerExecutor` for code without an event loop: each waits."""

    def __init__(self, config: ExecutorConfig | None = None) -> None:
        self._config = config

    def spec(self, image: str) -> ConnectorSpecification:
        """See :meth:`AirbyteDockerExecutor.spec`."""
        return self._spec(image).wait()

    def check(self, image: str, config: Mapping[str, Any]) -> AirbyteConnectionStatus:
        """See :meth:`AirbyteDockerExecutor.check`."""
        return self._check(image, config).wait()

    def discover(self, image: str, config: Mapping[str, Any]) -> AirbyteCatalog:
        """See :meth:`AirbyteDockerExecutor.discover`."""
        return self._discover(image, config).wait()

    def read(
        self,
        image: str,
        config: Mapping[str, Any],
        catalog: GivenCatalog,
        state: GivenState | None = None,
    ) -> Iterator[AirbyteMessage]:
        """See :meth:`AirbyteDockerExecutor.read`."""
        return self._read(image, config, catalog, state)

    def pull(self, image: str) -> str:
        """See :meth:`AirbyteDockerExecutor.pull`."""
        return self._pull(image).wait()

    def is_available(self) -> bool:
        """See :meth:`AirbyteDockerExecutor.is_available`."""
        return self._is_available().wait()

    def _spec(self, image: str) -> Work[ConnectorSpecification]:
        source = self._source(image)
        return _work(lambda: protocol_models.specification(source.spec()))

    def _check(self, image: str, config: Mapping[str, Any]) -> Work[AirbyteConnectionStatus]:
        source = self._source(image, config)
        return _work(lambda: protocol_models.connection_status(source.status()), source)

    def _discover(self, image: str, config: Mapping[str, Any]) -> Work[AirbyteCatalog]:
        source = self._source(image, config)
        return _work(lambda: protocol_models.catalog(source.discover()), source)

    def _read(
        self,
        image: str,
        config: Mapping[str, Any],
        catalog: GivenCatalog,
        state: GivenState | None,
    ) -> "Messages":
        source = self._source(image, config)
        files = {"catalog": protocol_models.catalog_file(catalog)}
        if state:
            files["state"] = protocol_models.state_file(state)

        def produce(put: Callable[[list[AirbyteMessage]], None]) -> None:
            reap_adhoc_once()
            together: list[AirbyteMessage] = []
            with source.at_work() as connector:
                conversation = connector.invoke()
                with closing(conversation.messages(connector.command("read", files))) as found:
                    for each in found:
                        together += () if each is None else protocol_models.messages(each)
                        if together and (each is None or len(together) >= _TOGETHER):
                            put(together)
                            together = []
                put(together)
                if conversation.failed:
                    raise conversation.failure()

        return Messages(Feed(produce, alone=source.connection.name))

    def _pull(self, image: str) -> Work[str]:
        limits = self._config or ExecutorConfig()
        reference = ConnectorRef.resolve(adhoc_connection(image, {}, "docker")).image

        def pull() -> str:
            client = connect(limits.docker_host)
            with DockerRunner(reference, client=client, executor=limits, explain=_log.info) as it:
                it.pull()
                return it.identity()

        return Work(pull)

    def _is_available(self) -> Work[bool]:
        engine = self._config.docker_host if self._config else None

        def ask() -> bool:
            wrong = problem(engine)
            if wrong is not None:
                _log.warning("%s", wrong)
            return wrong is None

        return Work(ask)

    def _source(self, image: str, config: Mapping[str, Any] | None = None) -> AdHocSource:
        connection = adhoc_connection(image, config or {}, "docker")
        log = log_of(connection.source_name)
        return AdHocSource(connection, adhoc_caller(_log.info, log, executor=self._config))


class Messages(AsyncIterator[AirbyteMessage], Iterator[AirbyteMessage]):
    """What a connector says; closed or forgotten, it stops the connector."""

    def __init__(self, feed: Feed[list[AirbyteMessage]]) -> None:
        self._feed = feed
        self._here: deque[AirbyteMessage] = deque()

    def __iter__(self) -> "Messages":
        return self

    def __next__(self) -> AirbyteMessage:
        while not self._here:
            self._here.extend(next(self._feed))
        return self._here.popleft()

    def __aiter__(self) -> "Messages":
        return self

    async def __anext__(self) -> AirbyteMessage:
        while not self._here:
            self._here.extend(await anext(self._feed))
        return self._here.popleft()

    def close(self) -> None:
        """Stop, and return when the connector is gone."""
        self._here.clear()
        self._feed.close()

    async def aclose(self) -> None:
        """As :meth:`close`, for callers with an event loop."""
        self._here.clear()
        await self._feed.aclose()


def get_docker_executor(config: ExecutorConfig | None = None) -> AirbyteDockerExecutor:
    """An executor with these limits, by default those of ATLAS_EXECUTOR."""
    return AirbyteDockerExecutor(config)


async def check_docker_available() -> bool:
    """Whether a Docker engine answers; the log says why not."""
    return await AirbyteDockerExecutor().is_available()


async def pull_image(image: str) -> str:
    """Fetch an image, or that of a connector of the registry; see the executor's ``pull``."""
    return await AirbyteDockerExecutor().pull(image)


def _work(call: Callable[[], T], source: AdHocSource | None = None) -> Work[T]:
    def prepared() -> T:
        reap_adhoc_once()
        return call()

    return Work(prepared, alone=source.connection.name if source else None)
