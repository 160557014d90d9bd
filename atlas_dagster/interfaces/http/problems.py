"""Errors as problem details (RFC 9457), each with a code that stays the same.

No answer repeats what a request held: its config has secrets.
"""

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from atlas_dagster.errors import (
    AtlasError,
    ConfigError,
    ConnectorFailedError,
    ConnectorTimeoutError,
    InvalidConfigError,
    ProtocolError,
    StoppedError,
    TransientError,
    UnknownConnectorError,
    UnknownStreamError,
)
from atlas_dagster.runners.docker.engine import connection_problem
from atlas_dagster.wording import validation_message

_log = logging.getLogger("atlas_dagster.http")

MEDIA_TYPE = "application/problem+json"
#: Of requests whose client has left: nobody reads it (nginx's code for the log).
CLIENT_LEFT = 499

Code = Literal[
    "unknown_connector",
    "unknown_stream",
    "connector_not_allowed",
    "invalid_config",
    "invalid_request",
    "unauthorized",
    "wrong_host",
    "cross_origin",
    "not_found",
    "method_not_allowed",
    "body_too_large",
    "busy",
    "stopping",
    "docker_unavailable",
    "connector_unavailable",
    "connector_failed",
    "connector_timeout",
    "internal_error",
]

_STATUSES: dict[Code, HTTPStatus] = {
    "unknown_connector": HTTPStatus.NOT_FOUND,
    "unknown_stream": HTTPStatus.NOT_FOUND,
    "connector_not_allowed": HTTPStatus.FORBIDDEN,
    "invalid_config": HTTPStatus.UNPROCESSABLE_ENTITY,
    "invalid_request": HTTPStatus.UNPROCESSABLE_ENTITY,
    "unauthorized": HTTPStatus.UNAUTHORIZED,
    "wrong_host": HTTPStatus.MISDIRECTED_REQUEST,
    "cross_origin": HTTPStatus.FORBIDDEN,
    "not_found": HTTPStatus.NOT_FOUND,
    "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "body_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "busy": HTTPStatus.SERVICE_UNAVAILABLE,
    "stopping": HTTPStatus.SERVICE_UNAVAILABLE,
    "docker_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "connector_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "connector_failed": HTTPStatus.BAD_GATEWAY,
    "connector_timeout": HTTPStatus.GATEWAY_TIMEOUT,
    "internal_error": HTTPStatus.INTERNAL_SERVER_ERROR,
}
#: Of Starlette's own answers, which say less.
_OWN: dict[int, tuple[Code, str | None]] = {
    HTTPStatus.NOT_FOUND: ("not_found", "There is nothing at this path; see /docs."),
    HTTPStatus.METHOD_NOT_ALLOWED: (
        "method_not_allowed",
        "This path does not take that method; see /docs.",
    ),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ("body_too_large", None),
}
_RETRY_SECONDS = 10


class Problem(BaseModel):
    """What went wrong, in one sentence (``detail``) and for programs (``code``)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="A name for this kind of problem: urn:atlas:problem:<code>.")
    title: str
    status: int
    detail: str = Field(description="One sentence that names the thing and the fix.")
    code: Code
    field: str | None = Field(None, description="The field of the request or config it is about.")
    errors: list[dict[str, str]] | None = Field(
        None, description="All that is wrong with a config: field and detail of each."
    )
    suggestions: list[str] | None = Field(None, description="Connectors with such a name.")
    failure_type: str | None = Field(
        None, description="Whose turn it is: config_error, transient_error or system_error."
    )


class ProblemError(Exception):
    """An answer that is a problem."""

    def __init__(self, code: Code, detail: str, **more: Any) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.more = more


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


def documented(*codes: Code) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that may answer with these problems, in OpenAPI's words."""
    by_status: dict[int | str, list[str]] = {}
    for code in codes:
        by_status.setdefault(int(_STATUSES[code]), []).append(code)
    return {
        status: {
            "description": f"Problem: {', '.join(of_it)}.",
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, of_it in by_status.items()
    }


def problem_of(error: Exception) -> ProblemError:
    """What an error of the rooms below is over HTTP."""
    match error:
        case ProblemError():
            return error
        case UnknownConnectorError():
            return ProblemError("unknown_connector", str(error))
        case UnknownStreamError():
            return ProblemError("unknown_stream", str(error), field="stream_name")
        case InvalidConfigError():
            faults = [{"field": field, "detail": text} for field, text in error.faults]
            return ProblemError(
                "invalid_config", str(error), field=error.field or None, errors=faults
            )
        case ConnectorTimeoutError():
            return ProblemError("connector_timeout", str(error), failure_type=error.failure_type)
        case ConnectorFailedError() | ProtocolError():
            return ProblemError("connector_failed", str(error), failure_type=error.failure_type)
        case StoppedError():
            return ProblemError("stopping", "The server is stopping; ask again when it is back.")
        case ConfigError() | TransientError():
            absent = connection_problem()
            if absent is not None:
                return ProblemError("docker_unavailable", absent)
            code: Code = "invalid_request"
            if isinstance(error, TransientError):
                code = "connector_unavailable"
            return ProblemError(code, str(error), failure_type=error.failure_type)
        case AtlasError():
            return ProblemError("internal_error", str(error), failure_type=error.failure_type)
    return ProblemError("internal_error", "Something is broken in the server; its log says what.")


def problem_json(error: ProblemError) -> dict[str, Any]:
    status = _STATUSES[error.code]
    more = {name: value for name, value in error.more.items() if value is not None}
    return {
        "type": f"urn:atlas:problem:{error.code}",
        "title": status.phrase,
        "status": int(status),
        "detail": error.detail,
        "code": error.code,
        **more,
    }


def problem_response(error: ProblemError, headers: Mapping[str, str] | None = None) -> Response:
    status = _STATUSES[error.code]
    headers = dict(headers or {})
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(_RETRY_SECONDS)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    # Text of a request or of a connector may hold what UTF-8 does not.
    content = json.dumps(problem_json(error), ensure_ascii=False).encode(errors="replace")
    return Response(content, int(status), headers, media_type=MEDIA_TYPE)


def answer_with_problems(app: FastAPI) -> None:
    """Have every error of ``app`` answered with a problem."""
    for kind, handler in (
        (ProblemError, _on_error),
        (AtlasError, _on_error),
        (Exception, _on_unexpected),
        (RequestValidationError, _on_invalid),
        (HTTPException, _on_http),
        (ClientLeftError, _on_client_left),
    ):
        app.add_exception_handler(kind, handler)


def _on_error(_: Request, error: Exception) -> Response:
    # In a thread (it is no coroutine), for it may ask the Docker engine.
    found = problem_of(error)
    if found.code == "internal_error":
        _log.error("%s", error, exc_info=error)
    return problem_response(found)


def _on_unexpected(_: Request, error: Exception) -> Response:
    # Starlette raises it on, and the server's log has the traceback.
    return problem_response(problem_of(error))


async def _on_invalid(_: Request, error: Exception) -> Response:
    """Pydantic's errors without what it calls input and context: these are the request's own."""
    assert isinstance(error, RequestValidationError)
    faults = list(map(_fault, error.errors()))
    first = faults[0]
    more = {"errors": faults} if len(faults) > 1 else {}
    field = first.get("field")
    return problem_response(ProblemError("invalid_request", first["detail"], field=field, **more))


def _fault(error: Mapping[str, Any]) -> dict[str, str]:
    """One of Pydantic's errors: a sentence, and the field it is about where it is about one."""
    field = ".".join(str(part) for part in error["loc"] if part not in ("body", "query", "path"))
    if error["type"] == "json_invalid":
        return {"detail": "The body is not valid JSON."}
    if not field:
        return {
            "detail": "The body must be a JSON object, sent with Content-Type: application/json."
        }
    what = validation_message(error["msg"])
    detail = f"The field '{field}' is wrong: {what[:1].lower()}{what[1:]}."
    return {"field": field, "detail": detail}


async def _on_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, detail = _OWN.get(error.status_code, ("invalid_request", None))
    return problem_response(ProblemError(code, detail or f"{error.detail}."), error.headers)


async def _on_client_left(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)
