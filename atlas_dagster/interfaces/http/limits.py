"""Who may ask, and how much at once: before anything of a request is looked at."""

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atlas_dagster.interfaces.http.problems import ProblemError, problem_response
from atlas_dagster.interfaces.http.settings import Settings, is_loopback

_TOO_LARGE = 413


class RequestGuard:
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
        host = headers.get("host", "")
        name = _host_name(host)
        if name is None or (self._token is None and not is_loopback(name)):
            # A page in a browser here may have its own name lead to this machine, and ask.
            return ProblemError(
                "wrong_host",
                "Without a token only this machine is served, under the name localhost or "
                "127.0.0.1."
                if name
                else "The header Host is not a valid host; send the server's name and port.",
            )
        is_open = self._is_open(scope)
        if self._token is None:
            # A browser sends simple requests of any page, though the page cannot read the answer.
            if not is_open and _is_cross_origin(headers, host):
                return ProblemError(
                    "cross_origin",
                    "Without a token no web page of another origin is served; ask from a program, "
                    "or start the server with a token.",
                )
        elif not is_open and not self._knows(headers.get("authorization", "")):
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


def _host_name(host: str) -> str | None:
    """The name in a header Host, without its port; None where it is not valid."""
    try:
        found = urlsplit(f"//{host}")
        valid = found.netloc == host and "@" not in host and found.port != 0
    except ValueError:
        return None
    return (found.hostname or "") if valid else None


def _is_cross_origin(headers: Headers, host: str) -> bool:
    """Whether a browser asks for a page that is not this server's own.

    Another port of this machine is another origin: what listens there may be anybody's.
    """
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return True
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2].lower() != host.lower()
