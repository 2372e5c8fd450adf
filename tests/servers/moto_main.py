"""moto's S3 with one repair: its "write unless it is there" looks and writes in two steps, and two requests can both find nothing.

A lock around the conditional writes makes the two steps one. Everything else is moto as it comes.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

_one_at_a_time = threading.Lock()


def locked(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    def serve(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ.get("HTTP_IF_NONE_MATCH"):
            with _one_at_a_time:
                return list(app(environ, start_response))
        return app(environ, start_response)

    return serve


if __name__ == "__main__":
    import logging

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = DomainDispatcherApplication(create_backend_app)
    run_simple("127.0.0.1", int(sys.argv[1]), locked(application), threaded=True)
