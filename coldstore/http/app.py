"""The application: settings in, something to be served out.

Order of the layers, from outside: what is counted (`metrics`) → the `Door` (id, key, rate, body) → the routes. No page, no cookie, no
cross-origin answer: it is for programs that hold a key.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.security import APIKeyHeader

from coldstore import __version__
from coldstore.config import Settings
from coldstore.http import described, keys, problems, routes_health, routes_restore, routes_runs, routes_snapshot, routes_snapshots, schemas
from coldstore.http.door import HEADER, Door
from coldstore.http.limits import Rate
from coldstore.http.metrics import Counted
from coldstore.http.service import PREFIX, Service

_KEYLESS = frozenset({"/healthz", "/readyz", "/openapi.json"})

_KNOWN = Depends(described.refuse_unknown)
# The key was looked at by the `Door`; this is for OpenAPI.
_KEY = Depends(APIKeyHeader(name=HEADER, scheme_name="key", auto_error=False))


def make_app(settings: Settings) -> FastAPI:
    """Raises `ConfigError` when there is no key, or one that will not do."""
    known = keys.load(settings)
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            service.whole = await asyncio.to_thread(service.jobs.close)
            service.close()

    app = FastAPI(
        title="coldstore",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        strict_content_type=False,
    )
    app.state.service = service
    problems.install(app, methods=partial(described.methods, app))
    for routes in (routes_snapshot, routes_snapshots, routes_restore, routes_runs):
        app.include_router(routes.router, prefix=PREFIX, dependencies=[_KEY, _KNOWN], responses=problems.RESPONSES)
    app.include_router(routes_health.router)
    keyless = _KEYLESS | ({"/metrics"} if settings.server_open_metrics else set())
    rate = Rate(settings.server_rate_per_second, settings.server_rate_burst)
    app.add_middleware(Door, keys=known, rate=rate, body_limit=settings.server_body_kb << 10, keyless=keyless)
    app.add_middleware(Counted, metrics=service.metrics)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's own way to change it
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's, with our problems instead of its own form of a validation error."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes)
        known = made.setdefault("components", {}).setdefault("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):
            known.pop(name, None)
        problem = schemas.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        known |= problem.pop("$defs", {}) | {"Problem": problem}
        for path in made["paths"].values():
            for operation in path.values():
                if "HTTPValidationError" in str(operation["responses"].get("422")):
                    operation["responses"]["422"] = problems.RESPONSES[422]
        app.openapi_schema = made
    return app.openapi_schema
