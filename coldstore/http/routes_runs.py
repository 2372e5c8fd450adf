"""Runs: the list, one of them, and one as it goes on. What is under way in this process is told from memory, with its progress; the rest
from the list of runs, which knows those of other processes too. Where there is no list, memory is all there is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode
from uuid import UUID

import msgspec
from fastapi import APIRouter, Header, Query
from starlette.responses import Response, StreamingResponse

from coldstore.errors import DatabaseError, NotFound, TableMissing
from coldstore.http import schemas
from coldstore.http.jobs import Job
from coldstore.http.service import PREFIX, Here, Service
from coldstore.postgres.runs import Kind, RunInfo

router = APIRouter(tags=["runs"])

_GLANCE = 0.25  # seconds between two looks at a run of this process
_LOOK = 1.0  # at one of another
_HEARTBEAT = 15.0  # seconds after which a proxy might take silence for death
_OURS = ("idempotency", "answer")  # in `details`, for `replays`

State = Literal["queued", "running", "succeeded", "failed", "skipped"]


@router.get("/runs", response_model=schemas.Runs)
def runs(
    service: Here,
    *,
    kind: Annotated[Kind | None, Query()] = None,
    state: Annotated[State | None, Query()] = None,
    uid: Annotated[schemas.Name | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    cursor: Annotated[UUID | None, Query(description="From `next` of the page before.")] = None,
) -> Response:
    """What ran, newest first."""
    found = _page(service, kind=kind, state=state, uid=uid, limit=limit + 1, before=str(cursor) if cursor else None)
    page, more = found[:limit], len(found) > limit
    following = None
    if more:
        asked = {"kind": kind, "state": state, "uid": uid, "limit": limit, "cursor": page[-1]["id"]}
        following = f"{PREFIX}/runs?{urlencode({name: value for name, value in asked.items() if value is not None})}"
    headers = {"Link": f'<{following}>; rel="next"'} if following else None
    return _json({"runs": page, "next": following}, headers)


@router.get("/runs/{run}", response_model=schemas.Run)
def run(service: Here, run: UUID) -> Response:
    """One run."""
    return _json(_told(*_find(service, str(run))))


@router.get(
    "/runs/{run}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}, 204: {"description": "It is over, and you know how it ended."}},
)
async def events(service: Here, run: UUID, last_event_id: Annotated[str, Header(max_length=1000)] = "") -> Response:
    """The run as it goes on, as server-sent events: `state` with the whole run when that changes, `progress` in between."""
    known = await asyncio.to_thread(_find, service, str(run))
    if _over(known[0]) and last_event_id == _event_id(*known):
        return Response(status_code=204)  # which tells a client to come no more
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_follow(service, str(run), last_event_id), media_type="text/event-stream", headers=headers)


# --- the list ----------------------------------------------------------------------------------------------------------------------


def _page(
    service: Service, *, kind: Kind | None, state: State | None, uid: str | None, limit: int, before: str | None
) -> list[dict[str, Any]]:
    jobs = service.jobs.known()
    wanted = [j for j in jobs if kind in {None, j.operation.kind} and state in {None, j.state} and uid in {None, j.operation.scope.uid}]
    listed = _listed(service, kind=kind, state=state, uid=uid, limit=limit, before=before) if state != "queued" else []
    if listed is None:
        ids = [job.id for job in wanted]
        if before is not None and before not in ids:
            raise NotFound(f"there is no run {before!r}", hint="Begin with the first page.")
        return [_told(job.info(), job) for job in wanted[ids.index(before) + 1 if before else 0 :][:limit]]
    queued = [_told(job.info(), job) for job in wanted if job.state == "queued" and before is None]
    alive = {job.id: job for job in jobs if not job.done}
    return (queued + [_told(info, alive.get(info.id)) for info in listed])[:limit]


def _listed(service: Service, *, kind: Kind | None, state: Any, uid: str | None, limit: int, before: str | None) -> list[RunInfo] | None:
    """None where there is no list."""
    cold = service.cold()
    if not cold.knows_runs:
        return None
    try:
        with suppress(DatabaseError):  # who may only read sees them all the same
            cold.runs.reap()
        return cold.runs.list(kind=kind, state=state, uid=uid, limit=limit, before=before)
    except TableMissing:
        return None


def _find(service: Service, run: str) -> tuple[RunInfo, Job | None]:
    """Raises `NotFound`."""
    job = service.jobs.get(run)
    if job is not None:
        return job.info(), job
    cold = service.cold()
    if cold.knows_runs:
        with suppress(TableMissing):
            return cold.runs.get(run), None
    raise NotFound(f"there is no run {run!r}", hint=f"{PREFIX}/runs tells what there is.")


def _told(info: RunInfo, job: Job | None) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(info)
    told["details"] = {name: value for name, value in told["details"].items() if name not in _OURS}
    told["progress"] = _progress(job)
    return told


def _progress(job: Job | None) -> dict[str, Any] | None:
    return {"phase": job.progress.phase, "rows": job.progress.rows, "bytes": job.progress.bytes} if job else None


def _json(value: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), headers=headers, media_type="application/json")


# --- one as it goes on -------------------------------------------------------------------------------------------------------------


def _over(info: RunInfo) -> bool:
    return info.finished_at is not None


def _event_id(info: RunInfo, job: Job | None) -> str:
    """What is known of it: the same for the same, in every process and after a restart."""
    how_far = [] if _over(info) or job is None else [job.progress.phase or "", str(job.progress.rows), str(job.progress.bytes)]
    return ".".join(quote(part, safe="") for part in (info.state, *how_far))


async def _follow(service: Service, run: str, last: str) -> AsyncIterator[bytes]:
    yield b"retry: 2000\n\n"
    spoke = time.monotonic()
    while not service.jobs.stopping:
        info, job = await asyncio.to_thread(_find, service, run) if (job := service.jobs.get(run)) is None else (job.info(), job)
        event = _event_id(info, job)
        if event != last:
            state = event.partition(".")[0] != last.partition(".")[0]
            yield _event("state", _told(info, job), event) if state else _event("progress", _progress(job), event)
            last, spoke = event, time.monotonic()
        if _over(info):
            return
        if time.monotonic() - spoke > _HEARTBEAT:
            yield b": still there\n\n"
            spoke = time.monotonic()
        await (job.wait(_GLANCE) if job is not None else asyncio.sleep(_LOOK))


def _event(name: str, data: Any, event_id: str) -> bytes:
    return b"event: %b\nid: %b\ndata: %b\n\n" % (name.encode(), event_id.encode(), msgspec.json.encode(data))
