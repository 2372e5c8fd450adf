"""What every request goes through, before any route: it gets an id, then its key is looked at, then how often it comes, then its body.

Nothing of a request is read before its key is known. Refuses by a `Problem`: 401 without a key that counts, 403 when a key that may only
read would change something, 408, 413, 415, 429. What leaves a route as an exception that nobody foresaw is logged here and answered 500.
"""

from __future__ import annotations

import logging
import math
import re
import secrets
import traceback
from collections.abc import Container

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coldstore.errors import redact
from coldstore.http.keys import Caller, Keys
from coldstore.http.limits import Rate, read_body, replayed
from coldstore.http.problems import Problem, response

HEADER = "x-api-key"
LOG = logging.getLogger("coldstore.http")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_LOOKING = frozenset({"GET", "HEAD", "OPTIONS"})
_JSON = re.compile(r"application/(?:[\w.-]+\+)?json\s*(?:;|\Z)", re.IGNORECASE)


def told(error: BaseException) -> str:
    """Where a defect happened, without any secret."""
    return redact("".join(traceback.format_exception(error))).rstrip()


class Door:
    """The outermost layer. `keyless`: paths that ask for no key. The caller stands in `request.state.caller` afterwards, the id in
    `request.state.request_id`."""

    def __init__(self, app: ASGIApp, *, keys: Keys, rate: Rate, body_limit: int, keyless: Container[str] = ()) -> None:
        self._app = app
        self._keys = keys
        self._rate = rate
        self._body_limit = body_limit
        self._keyless = keyless

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.match(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        began = False

        async def tagged(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            if scope["path"] not in self._keyless:
                scope["state"]["caller"] = self._admit(scope["method"], headers)
            body = await self._body(receive, headers) if scope["method"] not in _LOOKING else b""
            if body is not None:
                await self._app(scope, replayed(body, receive), tagged)
        except Problem as problem:
            await response(problem, request_id=request_id)(scope, receive, tagged)
        except Exception as exc:  # noqa: BLE001 — the last place where it can become an answer
            LOG.error("request %s: %s", request_id, told(exc))  # noqa: TRY400 — with the secrets taken out
            if not began:
                await response(exc, request_id=request_id)(scope, receive, tagged)
            else:
                raise ConnectionAbortedError from None  # half an answer must not look like a whole one

    def _admit(self, method: str, headers: Headers) -> Caller:
        given = headers.get(HEADER)
        caller = self._keys.who(given.encode("latin-1", "replace")) if given is not None else None
        if caller is None:
            detail = "the API key is not one that counts" if given else f"the request has no {HEADER} header"
            challenge = {"WWW-Authenticate": f'ApiKey realm="coldstore", header="{HEADER}"'}
            raise Problem(401, "Unauthorized", detail, hint=f"Send a configured key in the header {HEADER}.", headers=challenge)
        if wait := self._rate.take(caller.name):
            again = {"Retry-After": str(math.ceil(wait))}
            raise Problem(429, "RateLimited", "this key asks too often", hint="`rate_per_second` of [server] is the limit.", headers=again)
        if caller.role == "read" and method not in _LOOKING:
            raise Problem(403, "Forbidden", "this key may only read", hint="Use a key with the role admin.")
        return caller

    async def _body(self, receive: Receive, headers: Headers) -> bytes | None:
        body = await read_body(receive, headers, limit=self._body_limit)
        kind = headers.get("content-type", "application/json")
        if body and not _JSON.match(kind.strip()):
            raise Problem(415, "UnsupportedMediaType", "a body must be application/json", hint="Send Content-Type: application/json.")
        return body
