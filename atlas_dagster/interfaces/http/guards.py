"""Who may ask, and how much at once: before anything of a request is looked at."""

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atlas_dagster.interfaces.http.problems import ProblemError, problem_response
from atlas_dagster.interfaces.http.settings import Settings, is_loopback

_TOO_LARGE = 413


class Guards:
    """Lets through what may pass; ``open_paths`` need no token."""

    def __init__(self, app: ASGIApp, *, settings: Settings, open_paths: frozenset[str]) -> None:
        self._app = app
        self._token = settings.token.encode() if settings.token else None
        self._most = settings.body_bytes
        self._open = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._refused(scope)
        if refused is not None:
            await problem_response(refused)(scope, receive, send)
            return
        await self._app(scope, self._counting(receive), send)

    def _refused(self, scope: Scope) -> ProblemError | None:
        headers = Headers(scope=scope)
        if self._token is None:
            # A page in a browser here may have its own name lead to this machine, and ask.
            host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
            if not is_loopback(host):
                return ProblemError(
                    "wrong_host",
                    "Without a token only this machine is served, under the name localhost or "
                    "127.0.0.1.",
                )
        elif not self._is_open(scope) and not self._knows(headers.get("authorization", "")):
            return ProblemError(
                "unauthorized", "Send the server's token: Authorization: Bearer <token>."
            )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._most:
            return ProblemError("body_too_large", self._too_large)
        return None

    def _is_open(self, scope: Scope) -> bool:
        path: str = scope["path"]
        return any(path == each or path.startswith(f"{each}/") for each in self._open)

    def _knows(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        assert self._token is not None
        # Headers are decoded as Latin-1, so these are the bytes that came.
        same = hmac.compare_digest(token.strip().encode("latin-1"), self._token)
        return same and scheme.lower() == "bearer"

    def _counting(self, receive: Receive) -> Receive:
        came = 0

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self._most:
                raise HTTPException(_TOO_LARGE, self._too_large.rstrip("."))
            return message

        return counted

    @property
    def _too_large(self) -> str:
        return f"A request may have {self._most:,} bytes; this one has more."
