"""What goes wrong, as RFC 9457 has it: `application/problem+json` for every refusal, whoever makes it.

    {"type": "urn:coldstore:error:NotFound", "title": …, "status": 404, "detail": one sentence, "hint": …, "requestId": …}

An error of the tree in `errors.py` keeps its class name as its type and its sentence as its detail. Anything else that is raised is a
defect: it is told in the log, by the request's id, and nothing of it in the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from coldstore import errors
from coldstore.errors import ColdStoreError, redact

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = {"Retry-After": "5"}

# The first that fits: a class stands before those it is a kind of.
_STATUS: tuple[tuple[type[ColdStoreError], HTTPStatus], ...] = (
    (errors.NotFound, HTTPStatus.NOT_FOUND),
    (errors.InvalidKey, HTTPStatus.UNPROCESSABLE_ENTITY),
    (errors.RestoreRefused, HTTPStatus.CONFLICT),
    (errors.SuspectSnapshot, HTTPStatus.CONFLICT),
    (errors.ChainRefused, HTTPStatus.CONFLICT),
    (errors.ObjectLocked, HTTPStatus.CONFLICT),
    (errors.ObjectExists, HTTPStatus.CONFLICT),
    (errors.SignatureError, HTTPStatus.CONFLICT),
    (errors.DatabaseUnreachable, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.StoreUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.KeyRingUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.StoreFull, HTTPStatus.INSUFFICIENT_STORAGE),
    (errors.DatabaseError, HTTPStatus.BAD_GATEWAY),
    (errors.StoreError, HTTPStatus.BAD_GATEWAY),
    (errors.KeyRingError, HTTPStatus.BAD_GATEWAY),
)

#: What any route may answer, for OpenAPI.
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    for status in (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 502, 503, 507)
}


class Problem(Exception):
    """A refusal. `code` is the end of its `type`, `more` further members."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        hint: str | None = None,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.hint = hint
        self.headers = dict(headers or {})
        self.more = dict(more or {})

    def body(self) -> dict[str, Any]:
        told = {
            "type": f"urn:coldstore:error:{self.code}",
            "title": re.sub(r"(?<=[a-z])(?=[A-Z])", " ", self.code).capitalize(),
            "status": self.status,
            "detail": self.detail,
            "hint": self.hint,
        }
        return {name: value for name, value in told.items() if value is not None} | self.more


def problem_of(error: BaseException) -> Problem:
    """Any error as a problem."""
    match error:
        case Problem():
            return error
        case ColdStoreError():
            status = next((s for kind, s in _STATUS if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)
            headers = RETRY_AFTER if status == HTTPStatus.SERVICE_UNAVAILABLE else None
            return Problem(status, error.code, str(error), hint=error.hint, headers=headers)
        case RequestValidationError():
            return _invalid(error)
        case HTTPException():
            return _refused(error)
        case _:
            return Problem(
                HTTPStatus.INTERNAL_SERVER_ERROR, "Unexpected", "something unforeseen went wrong", hint="The server's log tells more."
            )


def _invalid(error: RequestValidationError) -> Problem:
    """Without what was sent: it may be anything."""
    wrong = [
        {"where": redact(".".join(str(part) for part in found["loc"])), "message": redact(str(found["msg"]))} for found in error.errors()
    ]
    first = f"{wrong[0]['where']}: {wrong[0]['message']}" if wrong else "the request makes no sense"
    more = {"errors": wrong}
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "InvalidRequest", first, hint="See /openapi.json.", more=more)


_CODES = {404: ("RouteNotFound", "there is no such address"), 405: ("MethodNotAllowed", "this address does not take that method")}


def _refused(error: HTTPException) -> Problem:
    code, detail = _CODES.get(error.status_code, ("InvalidRequest", str(error.detail)))
    return Problem(error.status_code, code, detail, hint="See /openapi.json.", headers=error.headers)


def response(error: BaseException, *, request_id: str | None) -> Response:
    problem = problem_of(error)
    body = problem.body() | ({"requestId": request_id} if request_id else {})
    return Response(msgspec.json.encode(body), problem.status, problem.headers, MEDIA_TYPE)


def install(app: FastAPI, *, methods: Callable[[str], Iterable[str]]) -> None:
    """Let every error that a route raises become a problem. What is none of ours goes on to the `Door`, which logs it. `methods`: all that
    an address takes; the router itself names those of one route."""

    async def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            error.headers = {"Allow": ", ".join(methods(request.url.path))}
        return response(error, request_id=request.scope.get("state", {}).get("request_id"))

    for kind in (Problem, ColdStoreError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)
