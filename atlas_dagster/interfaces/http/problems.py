"""Errors as problem details (RFC 9457), each with a stable code.

No answer repeats the content of a request, because its config has secrets.
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
from atlas_dagster.runners.docker.engine import find_connection_problem
from atlas_dagster.wording import validation_message

_log = logging.getLogger("atlas_dagster.http")

MEDIA_TYPE = "application/problem+json"
#: The status in the log if the client closed the connection; nginx uses it, too.
_CLIENT_LEFT = 499
_RETRY_SECONDS = 10

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
_CODES: dict[HTTPStatus, tuple[Code, ...]] = {
    HTTPStatus.NOT_FOUND: ("unknown_connector", "unknown_stream", "not_found"),
    HTTPStatus.FORBIDDEN: ("connector_not_allowed", "cross_origin"),
    HTTPStatus.UNPROCESSABLE_ENTITY: ("invalid_config", "invalid_request"),
    HTTPStatus.UNAUTHORIZED: ("unauthorized",),
    HTTPStatus.MISDIRECTED_REQUEST: ("wrong_host",),
    HTTPStatus.METHOD_NOT_ALLOWED: ("method_not_allowed",),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ("body_too_large",),
    HTTPStatus.SERVICE_UNAVAILABLE: (
        "busy",
        "stopping",
        "docker_unavailable",
        "connector_unavailable",
    ),
    HTTPStatus.BAD_GATEWAY: ("connector_failed",),
    HTTPStatus.GATEWAY_TIMEOUT: ("connector_timeout",),
    HTTPStatus.INTERNAL_SERVER_ERROR: ("internal_error",),
}
_STATUSES = {code: status for status, codes in _CODES.items() for code in codes}
#: The problems for Starlette's own errors, with better messages.
_STARLETTE: dict[int, tuple[Code, str | None]] = {
    404: ("not_found", "This path does not exist; see /docs."),
    405: ("method_not_allowed", "This path does not support this method; see /docs."),
    413: ("body_too_large", None),
}

#: The problems of every route but /health.
REQUEST_PROBLEMS: tuple[Code, ...] = ("unauthorized", "wrong_host", "cross_origin")
#: The problems of routes that run a connector.
CONNECTOR_PROBLEMS: tuple[Code, ...] = (
    *REQUEST_PROBLEMS,
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
)


class Problem(BaseModel):
    """An error: one sentence for people (``detail``) and a code for programs."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="The kind of problem: urn:atlas:problem:<code>.")
    title: str
    status: int
    detail: str = Field(description="One sentence that names the thing and the fix.")
    code: Code
    field: str | None = Field(None, description="The field of the request or config.")
    errors: list[dict[str, str]] | None = Field(
        None, description="All errors of a config, each with its field and detail."
    )
    suggestions: list[str] | None = Field(None, description="Connectors with a similar name.")
    failure_type: str | None = Field(
        None,
        description="Who has to act: config_error (you), transient_error (nobody: retry) or "
        "system_error (something is broken).",
    )


class ProblemError(Exception):
    """An error with its code. ``more`` has further fields of the problem."""

    def __init__(self, code: Code, detail: str, **more: Any) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.more = more


class ClientLeftError(Exception):
    """The client closed the connection."""


def document_problems(*codes: Code) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses`` of a route in OpenAPI's format."""
    by_status: dict[int | str, list[str]] = {}
    for code in codes:
        by_status.setdefault(int(_STATUSES[code]), []).append(code)
    return {
        status: {
            "description": f"Problem: {', '.join(found)}.",
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, found in by_status.items()
    }


def make_problem(error: Exception) -> ProblemError:
    """Return the problem for an error. It may ask the Docker engine, which blocks."""
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
        case StoppedError():
            return ProblemError("stopping", "The server is stopping; try again when it is back.")
        case AtlasError():
            code = _choose_code(error)
            if code in ("invalid_request", "connector_unavailable"):
                absent = find_connection_problem()
                if absent is not None:
                    return ProblemError("docker_unavailable", absent)
            return ProblemError(code, str(error), failure_type=error.failure_type)
    return ProblemError("internal_error", "The server has an internal error; see its log.")


def _choose_code(error: AtlasError) -> Code:
    match error:
        case ConnectorTimeoutError():
            return "connector_timeout"
        case ConnectorFailedError() | ProtocolError():
            return "connector_failed"
        case TransientError():
            return "connector_unavailable"
        case ConfigError():
            return "invalid_request"
    return "internal_error"


def problem_json(error: ProblemError) -> dict[str, Any]:
    """Return the members of the problem."""
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
    """Return the response for the problem."""
    status = _STATUSES[error.code]
    headers = dict(headers or {})
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(_RETRY_SECONDS)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    # A connector's message may have half surrogate pairs, which UTF-8 cannot encode.
    content = json.dumps(problem_json(error), ensure_ascii=False).encode(errors="replace")
    return Response(content, int(status), headers, media_type=MEDIA_TYPE)


def answer_with_problems(app: FastAPI) -> None:
    """Register handlers that answer every error with a problem."""
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
    # Not async, so that it runs in a thread: problem_of may block.
    found = make_problem(error)
    if found.code == "internal_error":
        _log.error("%s", error, exc_info=error)
    return problem_response(found)


def _on_unexpected(_: Request, error: Exception) -> Response:
    # Starlette raises it again, so the server logs the traceback.
    return problem_response(make_problem(error))


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = list(map(_describe_fault, error.errors()))
    first = faults[0]
    more = {"errors": faults} if len(faults) > 1 else {}
    field = first.get("field")
    return problem_response(ProblemError("invalid_request", first["detail"], field=field, **more))


def _describe_fault(error: Mapping[str, Any]) -> dict[str, str]:
    """Return one of Pydantic's errors without its input, which may have secrets."""
    field = ".".join(str(part) for part in error["loc"] if part not in ("body", "query", "path"))
    if error["type"] == "json_invalid":
        return {"detail": "The body is not valid JSON."}
    if not field:
        return {
            "detail": "The body must be a JSON object, sent with Content-Type: application/json."
        }
    reason = validation_message(error["msg"])
    detail = f"The field '{field}' is wrong: {reason[:1].lower()}{reason[1:]}."
    return {"field": field, "detail": detail}


async def _on_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, detail = _STARLETTE.get(error.status_code, ("invalid_request", None))
    return problem_response(ProblemError(code, detail or f"{error.detail}."), error.headers)


async def _on_client_left(_: Request, __: Exception) -> Response:
    return Response(status_code=_CLIENT_LEFT)
