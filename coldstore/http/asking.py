"""How a request whose work leaves a run is answered: with what came of it when that is known in time, else with where to look.

Prefer: respond-async    202 at once                    Prefer: wait=N    so many seconds, instead of the configured ones
Idempotency-Key: …       see `replays`
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote

import msgspec
from fastapi import Depends, Header, Request
from pydantic import BaseModel
from starlette.responses import Response

from coldstore.http.jobs import Answer, Job, Operation
from coldstore.http.problems import MEDIA_TYPE
from coldstore.http.replays import Asked
from coldstore.http.service import PREFIX, Here, Service, Who
from coldstore.postgres.runs import RunInfo

_PREFERENCE = re.compile(r"(?P<name>respond-async|wait)\s*(?:=\s*\"?(?P<value>[0-9]{1,6})\"?)?\s*\Z", re.IGNORECASE)
_LONGEST = 3600.0


def run_url(run: str) -> str:
    return f"{PREFIX}/runs/{run}"


def snapshot_url(snapshot: str) -> str:
    return f"{PREFIX}/snapshots/{quote(snapshot, safe='')}"


@dataclass(frozen=True, slots=True)
class Preferences:
    """What the `Prefer` header asks for (RFC 7240); what nobody can read is no preference."""

    respond_async: bool = False
    wait: int | None = None

    @classmethod
    def of(cls, header: str) -> Preferences:
        found: dict[str, str | None] = {}
        for part in header.split(","):
            if match := _PREFERENCE.match(part.strip()):
                found.setdefault(match["name"].lower(), match["value"])  # of two the first counts
        wait = found.get("wait")
        return cls("respond-async" in found, int(wait) if wait is not None else None)

    def seconds(self, usual: float) -> float:
        if self.wait is not None:
            return min(float(self.wait), _LONGEST)
        return 0.0 if self.respond_async else usual

    def applied(self, *, early: bool) -> dict[str, str]:
        """`early`: the answer did not wait for the end."""
        told = ["respond-async"] if self.respond_async and early else []
        told += [f"wait={self.wait}"] if self.wait is not None else []
        return {"Preference-Applied": ", ".join(told)} if told else {}


@dataclass(frozen=True, slots=True)
class Asking:
    """One request, as far as it says how it wants to be answered."""

    service: Service
    caller: str
    address: str
    request_id: str
    preferences: Preferences
    key: str | None

    async def answer(self, operation: Operation, *, asked: BaseModel | None = None) -> Response:
        """`asked`: the body, by which a request is told from another under the same key."""
        seconds = self.preferences.seconds(self.service.settings.server_wait_seconds)
        if self.key is None:
            found: Job | Answer | RunInfo = self.service.jobs.ask(operation)
        else:
            request = asked.model_dump_json() if asked is not None else ""
            known = Asked.of(caller=self.caller, address=self.address, key=self.key, request=request)
            found = await self.service.replays.ask(known, operation, seconds=seconds)
        if isinstance(found, Answer):
            return self._told(found)
        if isinstance(found, Job) and await found.wait(seconds):
            return self._told(found.answer)
        return self._accepted(found.id)

    def _told(self, answer: Answer) -> Response:
        headers = answer.headers | self.preferences.applied(early=False)
        if answer.status < 400:
            return Response(msgspec.json.encode(answer.body), answer.status, headers, "application/json")
        return Response(msgspec.json.encode(answer.body | {"requestId": self.request_id}), answer.status, headers, MEDIA_TYPE)

    def _accepted(self, run: str) -> Response:
        headers = {"Location": run_url(run), "Retry-After": "1"} | self.preferences.applied(early=True)
        return Response(msgspec.json.encode({"run": run, "url": run_url(run)}), 202, headers, "application/json")


def _asking(
    request: Request,
    service: Here,
    caller: Who,
    prefer: Annotated[str | None, Header(description="`respond-async`, `wait=N` (RFC 7240).")] = None,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, pattern=r"^[!-~]+$", description="Sent again with it, a request is answered again."),
    ] = None,
) -> Asking:
    preferences = Preferences.of(", ".join(request.headers.getlist("prefer")) if prefer else "")
    return Asking(service, caller.name, f"{request.method} {request.url.path}", request.state.request_id, preferences, idempotency_key)


#: Dependency of a route that leaves a run.
How = Annotated[Asking, Depends(_asking)]
