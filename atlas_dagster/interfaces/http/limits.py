"""Limits of the server: the access, size and number of requests."""

import asyncio
import hmac
import ipaddress
import os
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from msgspec import Struct
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atlas_dagster.errors import ConfigError
from atlas_dagster.interfaces.http.problems import ProblemError, problem_response
from atlas_dagster.runners.limits import ExecutorConfig, declared_defaults, executor_defaults
from atlas_dagster.source.connection import RunnerChoice

#: Connectors at once. They mostly wait for their sources, so a small machine can run several.
_CONTAINERS = max(4, os.cpu_count() or 1)
#: Shorter than those of syncs, because a client waits. ATLAS_EXECUTOR overrides them.
_EXECUTOR = ExecutorConfig(
    check_timeout_seconds=120.0, discover_timeout_seconds=600.0, timeout_seconds=3600.0
)
_TOO_LARGE = 413


class Settings(Struct, frozen=True, kw_only=True):
    """Settings of the server.

    Args:
        token: clients must send it; None serves clients on this machine only.
        allow: names of the registry or images that may run; None for the whole registry.
        runner: where connectors run; ``python`` and ``auto`` run code from PyPI as this user.
        containers: the most connectors at once.
        waiting: the most requests that wait.
        wait_seconds: the longest wait of a request.
        body_bytes: the largest body of a request.
        page_bytes: the approximate largest size of a JSON answer's rows in memory.
        executor: limits of each connector.
    """

    token: str | None = None
    allow: frozenset[str] | None = None
    runner: RunnerChoice = "docker"
    containers: int = _CONTAINERS
    waiting: int = 100
    wait_seconds: float = 120.0
    body_bytes: int = 8 * 1024 * 1024
    page_bytes: int = 64 * 1024 * 1024
    executor: ExecutorConfig = _EXECUTOR

    @classmethod
    def from_environment(
        cls,
        *,
        host: str,
        token: str | None,
        allow: Collection[str] | None = None,
        runner: RunnerChoice = "docker",
        containers: int | None = None,
    ) -> "Settings":
        """Return the settings of a server at ``host``, with the limits of ATLAS_EXECUTOR.

        Raises:
            ConfigError: a limit is not valid, or ``host`` is not local and there is no token.
        """
        if not token and not is_loopback(host):
            raise ConfigError(
                f"Anyone who reaches {host} could run connectors; set a token (ATLAS_TOKEN) that "
                "clients must send, or listen on 127.0.0.1."
            )
        if containers is not None and containers < 1:
            raise ConfigError(f"{containers} is not a valid number of connectors; use at least 1.")
        return cls(
            token=token or None,
            allow=frozenset(allow) if allow else None,
            runner=runner,
            containers=containers or _CONTAINERS,
            executor=_EXECUTOR.overridden_by(executor_defaults(declared_defaults(os.environ))),
        )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class RequestGuard:
    """Middleware that refuses requests by their headers and size.

    It does so before FastAPI reads the body, which a dependency could not. Starlette's own
    TrustedHostMiddleware does not support IPv6 addresses and address ranges.

    Args:
        open_paths: paths that need no token, and that pages of other origins may link to.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings, open_paths: frozenset[str]) -> None:
        self._app = app
        self._token = settings.token.encode() if settings.token else None
        self._body_bytes = settings.body_bytes
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._find_refusal(scope)
        if refusal is not None:
            await problem_response(refusal)(scope, receive, send)
            return
        await self._app(scope, self._limit_body(receive), send)

    def _find_refusal(self, scope: Scope) -> ProblemError | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name = _parse_host(host)
        if name is None:
            return ProblemError(
                "wrong_host", "The header Host is not valid; send the server's name."
            )
        if self._token is None and not is_loopback(name):
            # A web page may give its own name the address of this machine (DNS rebinding).
            return ProblemError(
                "wrong_host",
                "Without a token the server answers this machine only, as localhost or 127.0.0.1.",
            )
        if not self._is_open(scope["path"]):
            if self._token is None and _is_cross_origin(headers, host):
                # Browsers send simple requests for any page, though it cannot read the answer.
                return ProblemError(
                    "cross_origin",
                    "Without a token the server refuses web pages of other origins; send the "
                    "request from a program, or start the server with a token.",
                )
            if self._token is not None and not self._has_token(headers.get("authorization", "")):
                return ProblemError(
                    "unauthorized", "Send the server's token: Authorization: Bearer <token>."
                )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._body_bytes:
            return ProblemError("body_too_large", f"{self._limit_message}.")
        return None

    def _is_open(self, path: str) -> bool:
        return any(path == each or path.startswith(f"{each}/") for each in self._open_paths)

    def _has_token(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        # Starlette decodes headers as Latin-1; this restores the bytes.
        same = hmac.compare_digest(token.strip().encode("latin-1"), self._token or b"")
        return same and scheme.lower() == "bearer"

    def _limit_body(self, receive: Receive) -> Receive:
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._body_bytes:
                raise HTTPException(_TOO_LARGE, self._limit_message)
            return message

        return limited

    @property
    def _limit_message(self) -> str:
        return f"A request may have {self._body_bytes:,} bytes; this one has more"


def _parse_host(host: str) -> str | None:
    """Return the name in a header Host, without its port; None if it is not valid."""
    try:
        found = urlsplit(f"//{host}")
        valid = found.netloc == host and "@" not in host and found.port != 0
    except ValueError:
        return None
    return (found.hostname or "") if valid else None


def _is_cross_origin(headers: Headers, host: str) -> bool:
    """Return whether a browser sends the request for a page of another server.

    Another port of this machine is another origin, because any user may listen there.
    """
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return True
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2].lower() != host.lower()


class ConnectorSlots:
    """The connectors that may run at once, and the requests that wait for one to end.

    Args:
        count: connectors at once.
        waiting: requests that may wait; further ones are refused.
        seconds: the longest wait of a request.
    """

    def __init__(self, count: int, *, waiting: int, seconds: float) -> None:
        self._slots = asyncio.Semaphore(count)
        self._count = count
        self._most_waiting = waiting
        self._seconds = seconds
        self._waiting = 0
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def take(self, name: str) -> AsyncIterator[None]:
        """Take a slot. Requests with the same ``name`` take turns.

        Raises:
            ProblemError: too many requests wait, or this one waited too long.
        """
        # The lock is deleted when no request holds it or waits for it.
        lock = self._locks.setdefault(name, asyncio.Lock())
        if (self._slots.locked() or lock.locked()) and self._waiting >= self._most_waiting:
            raise ProblemError(
                "busy",
                f"{self._count} connectors run and {self._waiting} requests wait; try again later.",
            )
        async with AsyncExitStack() as held:
            self._waiting += 1
            try:
                async with asyncio.timeout(self._seconds):
                    await held.enter_async_context(lock)
                    await held.enter_async_context(self._slots)
            except TimeoutError:
                raise ProblemError(
                    "busy", f"No connector ended within {self._seconds:g} seconds; try again later."
                ) from None
            finally:
                self._waiting -= 1
            yield
