"""What a list of runs stands on: a kept connection that is opened anew when it broke, and a thread that says "still alive".

Both are apart from every connection of a snapshot or restore, and neither may hold one up: a statement of theirs that takes longer than
some seconds is given up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from psycopg.rows import dict_row

from coldstore.errors import ColdStoreError
from coldstore.postgres.connect import Connection, connect, errors_as
from coldstore.sql import query

Result = TypeVar("Result")

# A lock on the table, a server that died without a word: the backup matters more. Not waiting for the disk may cost the last second of the
# list when the server itself crashes: a run that was under way then is reaped, a slot that was taken then is free again.
_SESSION = "SET statement_timeout = '5s'; SET synchronous_commit = off; SET default_transaction_isolation = 'read committed'"
_PATIENCE = {"connect_timeout": "5", "tcp_user_timeout": "10000"}


def _open(url: str, purpose: str) -> Connection:
    conn = connect(url, purpose=purpose, **_PATIENCE)
    with errors_as("runs"):
        conn.execute(_SESSION)
    return conn


def _ask(conn: Connection, text: str, values: Mapping[str, Any] | None) -> psycopg.Cursor[dict[str, Any]]:
    return conn.cursor(row_factory=dict_row).execute(text.encode(), values)


class Session:
    """One connection for several threads. A statement may be sent twice when the connection breaks: it must bear that."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._conn: Connection | None = None
        self._lock = threading.Lock()

    def run(self, name: str, values: Mapping[str, Any] | None = None) -> psycopg.Cursor[dict[str, Any]]:
        """The named query's result. Raises a `DatabaseError`, or `ConfigError` for a URL that is none."""
        return self._kept(lambda conn: _ask(conn, query(name), values))

    def ask(self, text: str, values: Mapping[str, Any]) -> psycopg.Cursor[dict[str, Any]]:
        """The result of a query that was put together. Raises as `run` does."""
        return self._kept(lambda conn: _ask(conn, text, values))

    def together(self, names: Sequence[str], values: Mapping[str, Any]) -> list[psycopg.Cursor[dict[str, Any]]]:
        """The results of several named queries in one transaction. Raises as `run` does."""

        def ask(conn: Connection) -> list[psycopg.Cursor[dict[str, Any]]]:
            with conn.transaction():
                return [_ask(conn, query(name), values) for name in names]

        return self._kept(ask)

    def _kept(self, ask: Callable[[Connection], Result]) -> Result:
        with self._lock, errors_as("runs"):
            kept = self._conn
            if kept is not None and not kept.closed:
                try:
                    return ask(kept)
                except psycopg.OperationalError:
                    if not kept.closed:
                        raise
            self._conn = _open(self._url, "coldstore runs")
            return ask(self._conn)

    def close(self) -> None:
        with self._lock:
            if self._conn is not None:
                self._conn.close()
                self._conn = None


class Heart:
    """Moves `heartbeat_at` of all runs of this process, every `interval` seconds. One thread while there are runs; a run that ends before
    the first beat costs no connection."""

    def __init__(self, url: str, *, interval: float) -> None:
        self._url = url
        self._interval = interval
        self._alive: dict[str, int] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def add(self, run: str, attempt: int = 1) -> None:
        with self._lock:
            self._alive[run] = attempt
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, args=(self._stop,), name="coldstore-heart", daemon=True)
                self._thread.start()

    def remove(self, run: str) -> None:
        with self._lock:
            self._alive.pop(run, None)

    def close(self) -> None:
        with self._lock:
            self._stop.set()
            self._stop = threading.Event()
            self._thread = None

    def _beat(self, stop: threading.Event) -> None:
        conn: Connection | None = None
        try:
            while not stop.wait(self._interval):
                with self._lock:
                    alive = dict(self._alive)
                    if not alive:
                        if not stop.is_set():
                            self._thread = None
                        return
                # A server that is away now may be back at the next beat; whether the run is still in the list shows when it ends.
                with suppress(psycopg.Error, ColdStoreError):
                    if conn is None or conn.closed:
                        conn = _open(self._url, "coldstore heartbeat")
                    conn.execute(query("run_beat"), {"ids": list(alive), "attempts": list(alive.values())})
        finally:
            if conn is not None:
                conn.close()
