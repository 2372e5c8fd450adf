"""Whether it lives, whether it can work, and how it has been going."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from coldstore.http.problems import RETRY_AFTER, Problem
from coldstore.http.schemas import Health
from coldstore.http.service import Here

router = APIRouter(tags=["health"])

_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get("/healthz")
async def alive() -> Health:
    """The process answers. Nothing else is looked at."""
    return Health(status="ok")


@router.get("/readyz")
def ready(here: Here) -> Health:
    """Database and store answer, as of a few seconds ago. Which of them does not stands in /metrics and in the log."""
    if here.jobs.stopping or not all(here.readiness.parts().values()):
        raise Problem(503, "NotReady", "the server cannot work now", headers=RETRY_AFTER)
    return Health(status="ok")


@router.get("/metrics", response_class=Response, responses=_TEXT)
def metrics(here: Here, request: Request) -> Response:
    """For Prometheus."""
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(here.metrics.registry), headers={"Content-Type": media_type})
