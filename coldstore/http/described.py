"""What the API's own description says of an address, where the framework does not see to it: which methods it takes, all routes together,
and that no other parameter stands in the query than those it knows. A filter that is misspelt must not show everything.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from fastapi import FastAPI, Request
from starlette.routing import compile_path

from coldstore.http.problems import Problem


def methods(app: FastAPI, path: str) -> list[str]:
    """Every method that the address takes."""
    return sorted(method.upper() for found in _operations(app, path) for method in found)


def refuse_unknown(request: Request) -> None:
    """Dependency of a route. Raises a `Problem` for a parameter that it does not have."""
    if not request.url.query:
        return
    found = [
        operation[request.method.lower()] for operation in _operations(request.app, request.url.path) if request.method.lower() in operation
    ]
    known = {p["name"] for operation in found for p in operation.get("parameters", []) if p["in"] == "query"}
    if unknown := sorted(set(request.query_params) - known):
        hint = f"Known are {', '.join(sorted(known))}." if known else "This address takes none."
        raise Problem(
            422,
            "InvalidRequest",
            f"query: no such parameter: {unknown[0][:64]!r}",
            hint=hint,
            more={"errors": [{"where": f"query.{name[:64]}", "message": "no such parameter"} for name in unknown[:20]]},
        )


def _operations(app: FastAPI, path: str) -> list[dict[str, Any]]:
    """method → operation, of each template that fits."""
    described = app.openapi()["paths"]
    return [operations for template, operations in described.items() if _pattern(template).match(path)]


@lru_cache(maxsize=64)
def _pattern(template: str) -> re.Pattern[str]:
    return compile_path(template)[0]
