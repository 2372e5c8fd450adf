"""Restore and verify. Each is a run, a dry run too.

A request names its target; where that is, the configuration says. No address of a database is ever taken from a request: whoever holds a
key of this API could send everybody's memory to a server of his own.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import partial

from fastapi import APIRouter
from starlette.responses import Response

from coldstore.app import ColdStore, scope
from coldstore.errors import NotFound
from coldstore.http.asking import How
from coldstore.http.jobs import Answer, Operation
from coldstore.http.schemas import Accepted, RestoreReport, RestoreRequest, Verification, VerifyRequest
from coldstore.http.service import Here
from coldstore.progress import Progress
from coldstore.tiers import EVERYBODY

router = APIRouter(tags=["restore and verify"])

_MOST = 1000  # results of a verify that go into its answer


@router.post("/restore", response_model=None, responses={200: {"model": RestoreReport}, 202: {"model": Accepted}})
async def restore(here: Here, how: How, body: RestoreRequest) -> Response:
    """Bring memory back into a configured database; with `dryRun`, tell what would happen."""
    url = here.settings.server_targets.get(body.target)
    if url is None:
        raise NotFound(f"no target is called {body.target!r}", hint="Targets stand in [server.targets] of the server's configuration.")
    work = partial(_restore, asked=body, to=url.get_secret_value())
    operation = Operation(kind="restore", scope=scope(uid=body.uid, workspace=body.workspace), work=work)
    return await how.answer(operation, asked=body)


def _restore(cold: ColdStore, progress: Progress, *, asked: RestoreRequest, to: str) -> Answer:
    report = cold.restore(
        asked.snapshot,
        to=to,
        label=asked.label,
        uid=asked.uid,
        workspace=asked.workspace,
        mode=asked.mode,
        on_conflict=asked.on_conflict,
        dry_run=asked.dry_run,
        tiers=asked.tiers,
        allow_missing_columns=asked.allow_missing_columns,
        progress=progress,
    )
    return Answer(status=200, body=report.as_dict())


@router.post("/verify", response_model=None, responses={200: {"model": Verification}, 202: {"model": Accepted}})
async def verify(how: How, body: VerifyRequest) -> Response:
    """Check that snapshots are whole. What is wrong with them stands in the answer, whose status is 200 all the same: look at `ok`."""
    share = ("verify", body.model_dump_json())
    return await how.answer(Operation(kind="verify", scope=EVERYBODY, work=partial(_verify, asked=body), share=share), asked=body)


def _verify(cold: ColdStore, progress: Progress, *, asked: VerifyRequest) -> Answer:
    seed = random.SystemRandom().randrange(1 << 32) if asked.seed is None else asked.seed
    verdicts = cold.verify(asked.snapshot, since=asked.since, deep=asked.deep, sample=asked.sample or 0.0, seed=seed, progress=progress)
    if not verdicts:  # all of nothing is whole, but whoever asks believes that there is something
        raise NotFound("there is no such snapshot in the store")
    sampled = {"sample": asked.sample, "seed": seed} if asked.sample else {}
    answer = {
        "ok": all(v.ok for v in verdicts),
        "checked": len(verdicts),
        "states": Counter(v.state for v in verdicts),
        "results": [v.as_dict() for v in sorted(verdicts, key=lambda v: v.ok)[:_MOST]],
        "orphans": cold.orphans()[:_MOST] if asked.all else [],
    }
    return Answer(status=200, body=answer | sampled)
