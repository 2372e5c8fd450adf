"""Taking a snapshot."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from coldstore.app import ColdStore, scope
from coldstore.catalog import SnapshotInfo
from coldstore.errors import SuspectSnapshot
from coldstore.http.asking import How, snapshot_url
from coldstore.http.jobs import Answer, Operation
from coldstore.http.problems import problem_of
from coldstore.http.schemas import Accepted, Snapshot, SnapshotRequest, Unchanged
from coldstore.postgres.runs import RunHandle
from coldstore.progress import Progress
from coldstore.tiers import EVERYBODY

router = APIRouter(tags=["snapshots"])


@router.post(
    "/snapshot",
    status_code=201,
    response_model=None,
    responses={
        200: {"model": Unchanged, "description": "An incremental one was asked for, and nothing changed."},
        201: {"model": Snapshot, "description": "It is stored."},
        202: {"model": Accepted, "description": "It goes on."},
    },
)
async def take(how: How, body: SnapshotRequest | None = None) -> Response:
    """Take a snapshot of one user, of one workspace, or of everybody. Requests for the same at the same time share one."""
    asked = body or SnapshotRequest()
    wanted = scope(uid=asked.uid, workspace=asked.workspace)
    operation = Operation(
        kind="snapshot",
        scope=wanted,
        work=lambda cold, progress: _take(cold, progress, asked),
        share=asked.model_dump_json(),
        small=wanted != EVERYBODY,
        details={"label": asked.label} if asked.label else {},
    )
    return await how.answer(operation, asked=asked)


def _take(cold: ColdStore, progress: Progress, asked: SnapshotRequest) -> Answer:
    try:
        info = _asked(cold, progress, asked)
    except SuspectSnapshot as exc:  # it is stored: sent again, the request must not store another
        run = RunHandle.current()
        if run is not None:
            run.failed(exc)
        problem = problem_of(exc)
        return Answer(status=problem.status, body=problem.body() | {"snapshot": run.snapshot_id if run else None})
    if info is None:
        parent = cold.latest(uid=asked.uid, workspace=asked.workspace).id
        return Answer(status=200, body={"id": None, "unchanged": True, "parent": parent})
    return Answer(status=201, body=info.as_dict(), headers={"Location": snapshot_url(info.id)})


def _asked(cold: ColdStore, progress: Progress, asked: SnapshotRequest) -> SnapshotInfo | None:
    """None when it is to be incremental and nothing changed."""
    if asked.kind == "full":
        return cold.snapshot(uid=asked.uid, workspace=asked.workspace, label=asked.label, accept=asked.accept, progress=progress)
    return cold.snapshot_incremental(
        uid=asked.uid,
        workspace=asked.workspace,
        label=asked.label,
        auto_full=asked.auto_full,
        accept=asked.accept,
        progress=progress,
    )
