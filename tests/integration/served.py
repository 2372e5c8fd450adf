"""The HTTP API as a test sees it: a real server on a port of its own, in this process, and a client that holds its keys."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import uvicorn

from coldstore.config import build
from coldstore.http.app import make_app
from coldstore.http.serve import listen
from coldstore.http.service import Service
from coldstore.postgres.migrate import migrate
from tests.integration.helpers import run

ADMIN = "test-admin-key-0001"
READ = "test-read-key-00001"
AT = "/admin/memory"
#: Memory that takes an hour to read, and moves on all the time.
SLOW = (
    "CREATE VIEW slow AS SELECT 'alice' AS uid, n, repeat('x', 50000) AS pad, pg_sleep(0.02)::text AS nap FROM generate_series(1, 100000) n"
)


@dataclass
class Served:
    """`client` may do everything, `reader` look. `service` is the server's inside."""

    url: str
    client: httpx.Client
    reader: httpx.Client
    service: Service
    server: uvicorn.Server
    folder: Path

    def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return self.client.post(AT + path, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def get(self, path: str, **parameters: Any) -> httpx.Response:
        return self.client.get(AT + path, params=parameters)


@contextmanager
def served(database: str, folder: Path, **settings: Any) -> Iterator[Served]:
    """A server for a database and a store in `folder`."""
    keys = {"api_keys": settings.pop("api_keys", f"boss:admin:{ADMIN},viewer:read:{READ}")}
    app = make_app(build({"path": str(folder / "store"), "server_stop_seconds": 5, **settings}, {"database_url": database, **keys}))
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, http="httptools", ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=20)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.005)
    try:
        with (
            httpx.Client(base_url=url, headers={"x-api-key": ADMIN}, timeout=None) as client,
            httpx.Client(base_url=url, headers={"x-api-key": READ}, timeout=None) as reader,
        ):
            yield Served(url, client, reader, app.state.service, server, folder / "store")
    finally:
        app.state.service.jobs.stop()
        server.should_exit = True
        thread.join()
        listener.close()


def remember(url: str, *uids: str) -> None:
    for uid in uids:
        run(
            url,
            "INSERT INTO daily_memories (uid, workspace_id, date)"
            f" SELECT '{uid}', 'red', date '2026-01-01' + n FROM generate_series(1, 3) n",
        )


def with_list(url: str) -> str:
    with psycopg.connect(url, autocommit=True) as conn:
        migrate(conn)
    return url


@contextmanager
def held(url: str) -> Iterator[None]:
    """Snapshots wait until the block ends: somebody has locked a table."""
    with psycopg.connect(url) as conn:
        conn.execute("LOCK TABLE daily_memories IN ACCESS EXCLUSIVE MODE")
        yield
        conn.rollback()


def wait_until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.01)


def stored(api: Served) -> list[str]:
    """The ids of what is in the store."""
    return sorted(path.name.removesuffix(".manifest.json") for path in api.folder.rglob("*.manifest.json"))
