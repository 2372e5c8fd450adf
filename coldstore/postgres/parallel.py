"""Streams read ahead by threads, each on its own connection, with bounded memory.

Closing an iterator of this module early, or an error in any stream, stops all its threads: the flag is set, what the server is doing
is cancelled, the threads are joined. A connection left in the middle of a stream is then unusable and `Source` closes it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

import psycopg
from psycopg import sql

from coldstore.document.writer import RowBatch, batches
from coldstore.postgres.connect import Connection
from coldstore.postgres.introspect import Relation
from coldstore.postgres.read import copy_lines

T = TypeVar("T")
_END = object()
_POLL = 0.2  # seconds between looks at the stop flag while a full queue is waited for

#: (number of the tier, its table, the query for a part of it)
Job = tuple[int, Relation, sql.Composable]


class _Stopped(Exception):
    """The reader of the stream went away."""


class _Stream(Generic[T]):
    """A bounded queue that one thread fills and one drains; errors travel through it."""

    def __init__(self, stop: threading.Event, *, depth: int) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._stop = stop

    def put(self, item: object) -> None:
        while True:
            if self._stop.is_set():
                raise _Stopped
            with suppress(queue.Full):
                self._queue.put(item, timeout=_POLL)
                return

    def fill(self, items: Callable[[], Iterator[T]]) -> None:
        """Everything `items()` yields, then the end or the error that ended it."""
        try:
            for item in items():
                self.put(item)
            self.put(_END)
        except _Stopped:
            raise
        except BaseException as exc:  # noqa: BLE001 — it is raised again by whoever drains
            self.put(exc)

    def __iter__(self) -> Iterator[T]:
        while (item := self._queue.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item


class _Crew:
    """Threads that stop together."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self.stop = threading.Event()
        self._connections = connections
        self._threads: list[threading.Thread] = []

    def start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            with suppress(_Stopped):
                work()

        thread = threading.Thread(target=run, name="coldstore-reader", daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self, *, finished: bool) -> None:
        self.stop.set()
        while any(t.is_alive() for t in self._threads):
            # A cancel reaches only what is running: a reader that was just about to start its query is asked again.
            for conn in self._connections if not finished else ():
                with suppress(psycopg.Error):
                    conn.cancel_safe(timeout=5)
            for thread in self._threads:
                thread.join(_POLL)


def read_batches(
    connections: Sequence[Connection], jobs: Iterable[Job], *, batch_size: int, check_utf8: bool = False
) -> Generator[tuple[int, RowBatch]]:
    """(number of the tier, batch of rows) for every job, in the order of `jobs`, read by all `connections` at once.

    A reader takes the next job that nobody has. It may be ahead of the consumer by one batch in each of at most two jobs more than
    there are readers, so memory is bounded by batches, whatever the size of a job and however many there are.
    """
    crew = _Crew(connections)
    begun: queue.SimpleQueue[tuple[int, _Stream[RowBatch]] | BaseException | None] = queue.SimpleQueue()
    ahead = threading.Semaphore(len(connections) + 2)
    waiting = iter(jobs)
    claim = threading.Lock()

    def take() -> tuple[Job, _Stream[RowBatch]] | None:
        with claim:
            try:
                job = None if crew.stop.is_set() else next(waiting, None)
            except BaseException as exc:  # noqa: BLE001 — it is raised again by whoever drains
                begun.put(exc)
                return None
            if job is None:
                begun.put(None)
                return None
            stream: _Stream[RowBatch] = _Stream(crew.stop, depth=1)
            begun.put((job[0], stream))
            return job, stream

    def reader(conn: Connection) -> None:
        while True:
            ahead.acquire()
            taken = take()
            if taken is None:
                ahead.release()
                return
            (_, relation, statement), stream = taken
            lines = copy_lines(conn, statement, raw_newlines=relation.raw_newlines, check_utf8=check_utf8)
            stream.fill(lambda lines=lines: batches(lines, size=batch_size))  # type: ignore[misc]

    for conn in connections:
        crew.start(lambda conn=conn: reader(conn))  # type: ignore[misc]
    finished = False
    try:
        while (job := begun.get()) is not None:
            if isinstance(job, BaseException):
                raise job
            tier, stream = job
            for batch in stream:
                yield tier, batch
            ahead.release()
        finished = True
    finally:
        for _ in connections:
            ahead.release()
        crew.join(finished=finished)


@contextmanager
def read_ahead(
    connections: Sequence[Connection], sources: Sequence[Callable[[Connection], Iterator[T]]], *, depth: int
) -> Iterator[list[Iterator[T]]]:
    """One stream for each of `sources`, each on a connection and a thread of its own, up to `depth` items ahead."""
    crew = _Crew(connections)
    streams: list[_Stream[T]] = [_Stream(crew.stop, depth=depth) for _ in sources]
    for conn, stream, source in zip(connections, streams, sources, strict=True):
        crew.start(lambda conn=conn, stream=stream, source=source: stream.fill(lambda: source(conn)))  # type: ignore[misc]
    finished = False
    try:
        yield [iter(stream) for stream in streams]
        finished = True
    finally:
        crew.join(finished=finished)
