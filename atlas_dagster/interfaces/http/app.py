"""The routes. Each parses its request, calls a package below, and answers."""

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

from atlas_dagster.interfaces.http.connectors import ConnectorPool
from atlas_dagster.interfaces.http.limits import RequestGuard, Settings
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
from atlas_dagster.interfaces.http.problems import (
    CONNECTOR_PROBLEMS,
    REQUEST_PROBLEMS,
    Problem,
    answer_with_problems,
    document_problems,
)
from atlas_dagster.interfaces.http.read import choose_format, read_page
from atlas_dagster.interfaces.http.streaming import ARROW, NDJSON
from atlas_dagster.interfaces.python.docker_executor import get_docker_executor
from atlas_dagster.interfaces.python.worker import end_all
from atlas_dagster.reading.ad_hoc import reap_adhoc_once
from atlas_dagster.registry import (
    ConnectorCategory,
    FoundConnectors,
    list_connectors,
    search_connectors,
)
from atlas_dagster.runners.docker.engine import find_connection_problem

BASE = "/atlas-intelligence/docker"
#: Paths that need no token, for health checks and the docs.
_OPEN = frozenset({f"{BASE}/health", "/docs", "/openapi.json", "/static-offline-docs"})


def create_app(settings: Settings) -> FastAPI:
    """Return the ASGI application."""
    pool = ConnectorPool(settings)

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
    app.include_router(_health_route(pool, settings), prefix=BASE)
    # Only for the OpenAPI description, because RequestGuard checks the token.
    bearer = [Depends(HTTPBearer(auto_error=False))] if settings.token else []
    for router in (_registry_routes(pool), _connector_routes(pool, settings)):
        app.include_router(router, prefix=BASE, dependencies=bearer)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _health_route(pool: ConnectorPool, settings: Settings) -> APIRouter:
    router = APIRouter(tags=["registry"], responses=document_problems("wrong_host"))

    @router.get("/health")
    def health() -> Health:
        """Report whether connectors can run."""
        absent = find_connection_problem(settings.executor.docker_host)
        return Health(
            docker_available=absent is None,
            status="healthy" if absent is None else "degraded",
            message=absent or DOCKER_IS_READY,
            total_connectors=sum(map(pool.is_allowed, list_connectors())),
            execution_mode=settings.runner,
        )

    return router


def _registry_routes(pool: ConnectorPool) -> APIRouter:
    router = APIRouter(tags=["registry"], responses=document_problems(*REQUEST_PROBLEMS))

    @router.get("/connectors", responses=document_problems("invalid_request"))
    def connectors(
        category: Annotated[ConnectorCategory | None, Query()] = None,
        search: Annotated[str | None, Query(max_length=200)] = None,
    ) -> Connectors:
        """List the connectors, of a category or with a similar name."""
        found = list_connectors() if search is None else search_connectors(search)
        listed = [
            Connector.of(info)
            for info in found
            if pool.is_allowed(info) and (category is None or category in info.categories)
        ]
        note = found.note if isinstance(found, FoundConnectors) else None
        return Connectors(connectors=listed, total_connectors=len(listed), message=note)

    @router.get("/categories")
    def categories() -> Categories:
        """List the categories, with the number of connectors in each."""
        allowed = [info for info in list_connectors() if pool.is_allowed(info)]
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


def _connector_routes(pool: ConnectorPool, settings: Settings) -> APIRouter:
    router = APIRouter(tags=["connectors"], responses=document_problems(*CONNECTOR_PROBLEMS))

    @router.get("/connectors/{name:path}/spec")
    async def spec(request: Request, name: str) -> SpecAnswer:
        """Return the JSON schema of a connector's config."""
        source = pool.open(ConnectorRequest(connector_name=name))
        found = await pool.run(request, source, source.spec)
        return SpecAnswer(
            connector_name=name,
            docker_image=source.image,
            documentationUrl=found.documentationUrl,
            connectionSpecification=found.connectionSpecification,
        )

    @router.post("/connectors/{name:path}/pull")
    async def pull(request: Request, name: str) -> PullAnswer:
        """Pull the newest image of a connector's tag."""
        source = pool.open(ConnectorRequest(connector_name=name))
        executor = get_docker_executor(settings.executor).sync
        digest = await pool.run(request, source, lambda: executor.pull(name))
        return PullAnswer(
            status="succeeded",
            connector_name=name,
            docker_image=source.image,
            message=f"The Docker engine has {digest}.",
        )

    @router.post("/check")
    async def check(request: Request, body: ConnectorRequest) -> CheckAnswer:
        """Check that a connector can reach its source."""
        source = pool.open(body)
        status = await pool.run(request, source, source.status)
        succeeded = status.status == "SUCCEEDED"
        return CheckAnswer(
            status="succeeded" if succeeded else "failed",
            message=status.message or CONNECTED,
            connector_name=body.connector_name,
            success=succeeded,
            warnings=source.warnings,
        )

    @router.post("/discover")
    async def discover(request: Request, body: ConnectorRequest) -> DiscoverAnswer:
        """List the streams of a source."""
        source = pool.open(body)
        catalog = await pool.run(request, source, source.discover)
        pool.keep_catalog(body, source)
        return DiscoverAnswer(
            connector_name=body.connector_name,
            streams=list(map(DiscoveredStream.of, catalog.streams)),
            total_streams=len(catalog.streams),
            warnings=source.warnings,
        )

    @router.post(
        "/read",
        response_model=ReadAnswer,
        responses={
            **document_problems("unknown_stream", "unknown_connector"),
            200: {"content": {NDJSON: {}, ARROW: {}}},
        },
    )
    async def read(
        request: Request, body: ReadRequest, accept: Annotated[str, Header()] = ""
    ) -> Response:
        """Read rows of one stream: one page of them, or all as a stream (NDJSON or Arrow).

        A stream also reports states, and at its end the result of the read: NDJSON in lines with
        the single key `_atlas`, Arrow in the metadata `atlas` of its batches.
        """
        source = pool.open(body)
        form = choose_format(body, accept)
        try:
            if form != "json":
                return await pool.stream(request, source, body, form)
            page = await pool.run(
                request, source, lambda: read_page(source, body, settings.page_bytes)
            )
        finally:
            pool.keep_catalog(body, source)
        return Response(page, media_type="application/json")

    return router


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description. It includes the schema of problems, which no route names."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, summary=app.summary, routes=app.routes
        )
        schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        app.openapi_schema = schema
    return app.openapi_schema
