"""The routes. Thin: what they answer comes from the rooms below."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline

from atlas_dagster.interfaces.http.connectors import Service
from atlas_dagster.interfaces.http.limits import RequestGuard
from atlas_dagster.interfaces.http.models import (
    CONNECTED,
    DOCKER_IS_READY,
    Categories,
    Category,
    CheckAnswer,
    Connector,
    ConnectorRequest,
    Connectors,
    DiscoverAnswer,
    DiscoveredStream,
    Health,
    PullAnswer,
    ReadAnswer,
    ReadRequest,
    SpecAnswer,
)
from atlas_dagster.interfaces.http.problems import Problem, answer_with_problems, documented
from atlas_dagster.interfaces.http.read import format_of, read_page
from atlas_dagster.interfaces.http.settings import Settings
from atlas_dagster.interfaces.http.streaming import ARROW, NDJSON
from atlas_dagster.interfaces.python.docker_executor import get_docker_executor
from atlas_dagster.interfaces.python.worker import end_all
from atlas_dagster.protocol.catalog import Stream
from atlas_dagster.reading.ad_hoc import reap_adhoc_once
from atlas_dagster.registry import (
    ConnectorCategory,
    FoundConnectors,
    list_connectors,
    search_connectors,
)
from atlas_dagster.runners.docker.engine import connection_problem

BASE = "/atlas-intelligence/docker"
#: What does not need the token: for whoever looks whether the server is up, and the docs.
_OPEN = frozenset({f"{BASE}/health", "/docs", "/openapi.json", "/static-offline-docs"})


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application."""
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(reap_adhoc_once)
        yield
        await asyncio.to_thread(end_all)

    app: FastAPI = FastAPIOffline(
        redoc_url=None,
        title="Atlas Dagster",
        summary="Airbyte source connectors over HTTP.",
        version=version("atlas-dagster"),
        lifespan=lifespan,
    )
    app.add_middleware(RequestGuard, settings=settings, open_paths=_OPEN)
    answer_with_problems(app)
    app.include_router(_health(service, settings), prefix=BASE)
    # For the description: the guards have asked for it by then.
    bearer = [Depends(HTTPBearer(auto_error=False))] if settings.token else []
    for router in (_registry(service), _connectors(service, settings)):
        app.include_router(router, prefix=BASE, dependencies=bearer)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _health(service: Service, settings: Settings) -> APIRouter:
    router = APIRouter(tags=["registry"], responses=documented("wrong_host"))

    @router.get("/health")
    def health() -> Health:
        """Whether connectors can run."""
        wrong = connection_problem(settings.executor.docker_host)
        return Health(
            docker_available=wrong is None,
            status="healthy" if wrong is None else "degraded",
            message=wrong or DOCKER_IS_READY,
            total_connectors=sum(map(service.allows, list_connectors())),
            execution_mode=settings.runner,
        )

    return router


def _registry(service: Service) -> APIRouter:
    """What is known without running anything."""
    router = APIRouter(
        tags=["registry"], responses=documented("unauthorized", "wrong_host", "cross_origin")
    )

    @router.get("/connectors", responses=documented("invalid_request"))
    def connectors(
        category: Annotated[ConnectorCategory | None, Query()] = None,
        search: Annotated[str | None, Query(max_length=200)] = None,
    ) -> Connectors:
        """Which connectors there are: of a category, or like a name, typos forgiven."""
        found = list_connectors() if search is None else search_connectors(search)
        listed = [
            Connector.of(info)
            for info in found
            if service.allows(info) and (category is None or category in info.categories)
        ]
        note = found.note if isinstance(found, FoundConnectors) else None
        return Connectors(connectors=listed, total_connectors=len(listed), message=note)

    @router.get("/categories")
    def categories() -> Categories:
        """Which categories there are, and how many connectors of each."""
        allowed = [info for info in list_connectors() if service.allows(info)]
        counts = Counter(each for info in allowed for each in info.categories)
        return Categories(
            categories=[
                Category(id=each, name=each.label, count=counts[each])
                for each in ConnectorCategory
                if counts[each]
            ],
            total_connectors=len(allowed),
        )

    return router


def _connectors(service: Service, settings: Settings) -> APIRouter:
    """What takes a connector."""
    router = APIRouter(
        tags=["connectors"],
        responses=documented(
            "unauthorized",
            "wrong_host",
            "cross_origin",
            "unknown_connector",
            "connector_not_allowed",
            "body_too_large",
            "invalid_config",
            "invalid_request",
            "busy",
            "stopping",
            "docker_unavailable",
            "connector_unavailable",
            "connector_failed",
            "connector_timeout",
        ),
    )

    @router.get("/connectors/{name:path}/spec")
    async def spec(request: Request, name: str) -> SpecAnswer:
        """What config a connector takes, as JSON schema."""
        source = service.source(name)
        found = await service.run(request, source, source.spec)
        return SpecAnswer(
            connector_name=name,
            docker_image=source.image,
            documentationUrl=found.documentationUrl,
            connectionSpecification=found.connectionSpecification,
        )

    @router.post("/connectors/{name:path}/pull")
    async def pull(request: Request, name: str) -> PullAnswer:
        """Have a connector's image on the Docker engine, the newest of its tag."""
        source = service.source(name)
        executor = get_docker_executor(settings.executor).sync
        digest = await service.run(request, source, lambda: executor.pull(name))
        return PullAnswer(
            status="succeeded",
            connector_name=name,
            docker_image=source.image,
            message=f"The Docker engine has {digest}.",
        )

    @router.post("/check")
    async def check(request: Request, asked: ConnectorRequest) -> CheckAnswer:
        """Ask a connector whether it can reach its source."""
        source = service.source(asked.connector_name, asked.config, validate=asked.validate_config)
        status = await service.run(request, source, source.status)
        succeeded = status.status == "SUCCEEDED"
        return CheckAnswer(
            status="succeeded" if succeeded else "failed",
            message=status.message or CONNECTED,
            connector_name=asked.connector_name,
            success=succeeded,
            warnings=source.warnings,
        )

    @router.post("/discover")
    async def discover(request: Request, asked: ConnectorRequest) -> DiscoverAnswer:
        """Ask a connector which streams its source offers."""
        source = service.source(asked.connector_name, asked.config, validate=asked.validate_config)
        catalog = await service.run(request, source, source.discover)
        service.remember(asked.connector_name, asked.config, source)
        return DiscoverAnswer(
            connector_name=asked.connector_name,
            streams=[_discovered(stream) for stream in catalog.streams],
            total_streams=len(catalog.streams),
            warnings=source.warnings,
        )

    @router.post(
        "/read",
        response_model=ReadAnswer,
        responses={
            **documented("unknown_stream", "unknown_connector"),
            200: {"content": {NDJSON: {}, ARROW: {}}},
        },
    )
    async def read(
        request: Request, asked: ReadRequest, accept: Annotated[str, Header()] = ""
    ) -> Response:
        """Read rows of one stream: a page of them, or all as a stream (NDJSON or Arrow).

        In a stream, what is no row is said in lines with the one key `_atlas`, or in the metadata
        `atlas` of Arrow's batches: the state so far, and last how the read ended.
        """
        source = service.source(asked.connector_name, asked.config, validate=asked.validate_config)
        form = format_of(asked, accept)
        try:
            if form != "json":
                return await service.stream(request, source, asked, form)
            page = await service.run(
                request, source, lambda: read_page(source, asked, settings.page_bytes)
            )
        finally:
            service.remember(asked.connector_name, asked.config, source)
        return Response(page, media_type="application/json")

    return router


def _discovered(stream: Stream) -> DiscoveredStream:
    return DiscoveredStream(
        name=stream.descriptor.name,
        namespace=stream.descriptor.namespace,
        supported_sync_modes=list(stream.supported_sync_modes),
        source_defined_cursor=stream.source_defined_cursor,
        default_cursor_field=list(stream.default_cursor_field),
        primary_key=[list(path) for path in stream.source_defined_primary_key],
        json_schema=stream.json_schema,
    )


def _openapi(app: FastAPI) -> dict[str, Any]:
    """With what all problems look like, which no route answers by itself."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, summary=app.summary, routes=app.routes
        )
        schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        app.openapi_schema = schema
    return app.openapi_schema
