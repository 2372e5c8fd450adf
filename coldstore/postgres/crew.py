"""Connections to a target that work at the same time: a task each, as many as there are connections.

The first task that fails stops the others: what the server does for them is cancelled, and every connection is closed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Self

import psycopg

from coldstore.postgres.connect import Connection, connect, errors_as

_AGAIN = 0.2  # seconds between two requests to cancel


class Crew:
    """Connections that work at the same time. Each task gets one; the first failure stops all."""

    def __init__(self, target: str, *, size: int, maintenance_work_mem: str) -> None:
        """`size` connections at most; `maintenance_work_mem` in Postgres' spelling, used where the server's own is smaller."""
        self._target = target
        self._memory = maintenance_work_mem
        self.size = max(1, size)
        self._free: list[Connection] = []
        self._all: list[Connection] = []
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(self.size, thread_name_prefix="coldstore-restore")
        self._running: set[Future[None]] = set()
        self.stopped = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        # A cancel reaches only what is running: a task that was just about to start its command is asked again.
        # (`wait` would wait for ever for what was taken off the queue before it began.)
        while running := {future for future in self._running if not future.done()}:
            wait(running, timeout=_AGAIN)
            for conn in list(self._all):
                with suppress(psycopg.Error):
                    conn.cancel_safe(timeout=5)
        self._pool.shutdown()
        for conn in self._all:
            conn.close()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        with self._lock:
            conn = self._free.pop() if self._free else None
        if conn is None:
            conn = connect(self._target, purpose="coldstore restore")
            with errors_as("connect"):
                # Nothing staged has to survive a crash of the server; the commit that publishes waits for all of it.
                conn.execute("SET synchronous_commit = off")
                conn.execute(
                    "SELECT set_config('maintenance_work_mem', greatest(pg_size_bytes(%s), pg_size_bytes("
                    "current_setting('maintenance_work_mem'))) / 1024 || 'kB', false)",
                    (self._memory,),
                )
            with self._lock:
                self._all.append(conn)
        yield conn
        with self._lock:
            self._free.append(conn)

    def run(self, tasks: Iterable[Callable[[Connection], None]]) -> None:
        """Every task, as many at a time as there are connections. Raises the first error after all have stopped."""

        def one(task: Callable[[Connection], None]) -> None:
            if not self.stopped.is_set():
                with self.connection() as conn:
                    task(conn)

        running = self._running = set()
        try:
            for task in tasks:
                running.add(self._pool.submit(one, task))
                if len(running) > self.size:
                    _collect(running, FIRST_COMPLETED)
            _collect(running, FIRST_EXCEPTION)
        except BaseException:
            self.stopped.set()
            raise


def _collect(running: set[Future[None]], when: str) -> None:
    """Take what is done out of `running`; raise what it raised."""
    done = wait(running, return_when=when).done
    running -= done
    for future in done:
        future.result()
