"""How much a caller may ask: a token bucket for each key, and the size of a body.

Refuses a body before it is read where its length is told, else as soon as it is too long; and one that takes for ever to come.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from coldstore.http.problems import Problem

_PATIENCE = 30.0  # seconds for a body to come: nobody may hold a connection with half a request


class Rate:
    """A bucket of `burst` tokens for each name, refilled at `per_second`; 0 is no limit."""

    def __init__(self, per_second: float, burst: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, name: str) -> float:
        """Seconds until there is a token; 0.0 when one was there and is taken."""
        if not self._per_second:
            return 0.0
        with self._lock:
            now = self._clock()
            tokens, at = self._buckets.get(name, (self._burst, now))
            tokens = min(self._burst, tokens + (now - at) * self._per_second)
            taken = tokens >= 1
            self._buckets[name] = (tokens - 1 if taken else tokens, now)
            return 0.0 if taken else (1 - tokens) / self._per_second


async def read_body(receive: Receive, headers: Headers, *, limit: int) -> bytes | None:
    """The whole body, or None when the caller went away. Raises a `Problem`."""
    told = headers.get("content-length", "0")
    if told.isdigit() and int(told) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(_PATIENCE):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return None
                body += message.get("body", b"")
                if len(body) > limit:
                    raise _too_large(limit)
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise Problem(408, "BodyTooSlow", "the body did not come in time", headers={"Connection": "close"}) from None


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands over the body that was read, and then what comes."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _too_large(limit: int) -> Problem:
    # What is left of the body would be taken for the next request.
    headers = {"Connection": "close"}
    return Problem(413, "BodyTooLarge", f"a body may have {limit} bytes", hint="`body_kb` of [server] is the limit.", headers=headers)
