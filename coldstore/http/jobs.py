"""Operations under way: a pool of threads, in which each is one run of the list.

    ask → queue → a thread: gather → begin the run → the work → its answer → end the run

- Equal ones that are asked for at the same time share one run: who asks while it is queued, gathered or under way gets its answer. It is
  gathered until nobody asked for it for some milliseconds, so that a burst is one run, of a moment after the burst.
- Large ones have a pool of their own: they keep no user's snapshot waiting.
- The answer is made in the thread and kept for a while, the thing it is made of is not.

Refuses more than so many at a time, and everything once it is told to stop. What does not end then is told to, as the scheduler does it.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from coldstore.app import ColdStore
from coldstore.config import Settings
from coldstore.errors import ColdStoreError
from coldstore.http.door import LOG, told
from coldstore.http.problems import RETRY_AFTER, Problem, problem_of
from coldstore.postgres.runs import Kind, RunHandle, RunInfo
from coldstore.progress import Progress
from coldstore.schedule import Stopped
from coldstore.tiers import Scope

_QUIET = 0.005  # seconds in which nobody else asks for the same
_GATHERING = 0.1  # seconds after which it begins whoever asks
_MOST = 1000  # under way; and so many that ended are remembered
_STOPPING = "Stopping"
_ABORT = 10.0  # seconds that a run which was told to stop gets for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a request is answered with; `body` becomes JSON."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """`work` is called in a thread, with the opened `ColdStore`; what it raises becomes a problem. `share`: operations with the same value
    share one run, those with None none. `small`: it is over in a moment."""

    kind: Kind
    scope: Scope
    work: Callable[[ColdStore, Progress], Answer]
    share: Hashable | None = None
    small: bool = False
    details: dict[str, Any] = field(default_factory=dict)


class JobProgress:
    """How far a run is, for whoever looks; and where it learns that it must stop."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self.phase: str | None = None
        self.rows = 0
        self.bytes = 0
        self.notes: list[str] = []
        self._stopped = stopped

    def start(self, what: str, *, total_bytes: int | None = None) -> None:  # noqa: ARG002 — the protocol's
        self.phase = what
        self.advance()

    def advance(self, *, rows: int = 0, size: int = 0) -> None:
        self.rows += rows
        self.bytes += size
        if self._stopped():
            raise Stopped

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)


class Job:
    """An operation that was asked for. `answer` is set once, and then the job is over."""

    def __init__(self, operation: Operation, stopped: Callable[[], bool]) -> None:
        self.id = str(uuid.uuid4())
        self.operation = operation
        self.progress = JobProgress(stopped)
        self.state: Literal["queued", "running", "succeeded", "failed"] = "queued"
        self.details = dict(operation.details)
        self.run: RunHandle | None = None
        self.problem: Problem | None = None
        self.created = self.started = datetime.now(UTC)
        self.finished: datetime | None = None
        self.quiet_until = self.latest = 0.0
        self._future: Future[Answer] = Future()
        self._future.set_running_or_notify_cancel()  # a waiter that goes away cancels nothing

    @property
    def done(self) -> bool:
        return self._future.done()

    @property
    def answer(self) -> Answer:
        return self._future.result()

    def end(self, answer: Answer, *, problem: Problem | None = None) -> None:
        if self.done:
            return
        self.problem = problem
        self.state = "failed" if problem or (self.run and self.run.outcome.state == "failed") else "succeeded"
        self.finished = datetime.now(UTC)
        self._future.set_result(answer)

    async def wait(self, seconds: float) -> bool:
        """Whether it is over within that time."""
        if not self.done and seconds > 0:
            await asyncio.wait({asyncio.wrap_future(self._future)}, timeout=seconds)
        return self.done

    def info(self) -> RunInfo:
        """As a row of the list of runs has it, but that it may be `queued`."""
        scope, run = self.operation.scope, self.run
        outcome = run.outcome if run and self.done else None
        return RunInfo(
            id=self.id,
            kind=self.operation.kind,
            trigger="http",
            scope=scope.kind,
            uid=scope.uid,
            workspace=scope.workspace,
            state=self.state,  # type: ignore[arg-type]  # the list itself has no `queued`
            schedule=None,
            slot=None,
            started_at=self.started,
            finished_at=self.finished,
            heartbeat_at=self.finished or datetime.now(UTC),
            seconds=(self.finished - self.started).total_seconds() if self.finished else None,
            snapshot_id=run.snapshot_id if run else None,
            rows=outcome.rows if outcome else None,
            bytes=outcome.bytes if outcome else None,
            error=(outcome.error if outcome else None) or (f"{self.problem.code}: {self.problem.detail}" if self.problem else None),
            details=self.details | (run.details if run else {}),
        )


class Jobs:
    """The operations of one server; safe to use from several threads. `on_end`: called with each job that
    is over, in its thread."""

    def __init__(self, cold: Callable[[], ColdStore], settings: Settings) -> None:
        self._cold = cold
        self._stop_seconds = settings.server_stop_seconds
        self._small = ThreadPoolExecutor(settings.server_workers, thread_name_prefix="coldstore-small")
        self._large = ThreadPoolExecutor(settings.server_parallel, thread_name_prefix="coldstore-large")
        self._known: OrderedDict[str, Job] = OrderedDict()
        self._alive: dict[str, Job] = {}
        self._shared: dict[Hashable, Job] = {}
        self._lock = threading.RLock()
        self._stopping_since: float | None = None
        self._abort = False
        self._gave_up = False
        self.on_end: list[Callable[[Job], None]] = []

    # --- asking ----------------------------------------------------------------------------------------------------------------

    def ask(self, operation: Operation) -> Job:
        """The job that answers: a new one, or the one that is under way. Raises a `Problem` when there is no room for another."""
        with self._lock:
            shared = self._shared.get(operation.share) if operation.share is not None else None
            if shared is not None:
                shared.quiet_until = time.monotonic() + _QUIET
                return shared
            if self.stopping:
                raise stopping()
            if len(self._alive) >= _MOST:
                raise Problem(503, "Busy", "too much is under way already", hint="Try again in a moment.", headers=RETRY_AFTER)
            job = Job(operation, lambda: self._abort)
            self._known[job.id] = self._alive[job.id] = job
            while len(self._known) > len(self._alive) + _MOST:
                self._forget_one()
            if operation.share is not None:
                self._shared[operation.share] = job
                now = time.monotonic()
                job.quiet_until, job.latest = now + _QUIET, now + _GATHERING
            self._submit(job)
        return job

    def _submit(self, job: Job) -> None:
        try:
            (self._small if job.operation.small else self._large).submit(self._run, job)
        except RuntimeError:  # the pools are closed
            self._over(job, None, stopping())

    def _forget_one(self) -> None:
        oldest = next(job for job in self._known.values() if job.id not in self._alive)
        del self._known[oldest.id]

    def get(self, run: str) -> Job | None:
        with self._lock:
            return self._known.get(run)

    def known(self) -> list[Job]:
        """Newest first; those that ended a while ago are forgotten."""
        with self._lock:
            return list(reversed(self._known.values()))

    @property
    def alive(self) -> int:
        return len(self._alive)

    # --- in a thread -----------------------------------------------------------------------------------------------------------

    def _run(self, job: Job) -> None:
        while (pause := min(job.quiet_until, job.latest) - time.monotonic()) > 0:
            time.sleep(pause)
        if self.stopping:
            self._over(job, None, stopping())
            return
        operation = job.operation
        job.started, job.state = datetime.now(UTC), "running"
        try:
            cold = self._cold()
            with cold.as_run(operation.kind, operation.scope, job.progress, run_id=job.id, details=job.details) as run:
                job.run = run
                answer = operation.work(cold, job.progress)
                if "idempotency" in job.details:
                    # Asked again after a restart of the server, this is where it finds what it answered.
                    run.details.update(idempotency=job.details["idempotency"], answer=_as_dict(answer))
            self._over(job, answer)
        except Stopped:
            self._over(job, None, stopping())
        except BaseException as exc:  # noqa: BLE001 — whoever waits must hear of it
            problem = problem_of(exc)
            if not isinstance(exc, ColdStoreError | Problem):
                LOG.error("run %s: %s", job.id, told(exc))
            self._over(job, None, problem)

    def _over(self, job: Job, answer: Answer | None, problem: Problem | None = None) -> None:
        with self._lock:  # first: whoever asks from now on gets a run of its own
            self._alive.pop(job.id, None)
            if self._shared.get(job.operation.share) is job:
                del self._shared[job.operation.share]
        if problem is not None:
            self._gave_up |= problem.code == _STOPPING
            job.end(Answer(status=problem.status, body=problem.body(), headers=problem.headers), problem=problem)
        elif answer is not None:
            job.end(answer)
        for listener in self.on_end:
            listener(job)

    # --- ending ----------------------------------------------------------------------------------------------------------------

    @property
    def stopping(self) -> bool:
        return self._stopping_since is not None

    def stop(self) -> None:
        """Begin nothing more; asked a second time, give up what runs. May be called by a signal's handler."""
        self._abort = self.stopping
        self._stopping_since = self._stopping_since or time.monotonic()

    def close(self) -> bool:
        """Wait for what runs, then tell it to stop, then end without it. Whether all came to its end."""
        self._stopping_since = began = self._stopping_since or time.monotonic()
        self._small.shutdown(wait=False)
        self._large.shutdown(wait=False)
        if not self._idle_by(began + self._stop_seconds, unless=lambda: self._abort):
            self._abort = True
            self._idle_by(time.monotonic() + _ABORT)
            for job in list(self._alive.values()):
                if job.run is not None:
                    job.run.failed(ColdStoreError("stopped before it was done"))
                    job.run.end()
                self._over(job, None, stopping())
        return not self._gave_up

    def _idle_by(self, deadline: float, *, unless: Callable[[], bool] = lambda: False) -> bool:
        while self._alive and not unless() and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self._alive


def stopping() -> Problem:
    return Problem(503, _STOPPING, "the server is being stopped", hint="Try again in a moment.", headers=RETRY_AFTER)


def _as_dict(answer: Answer) -> dict[str, Any]:
    return {"status": answer.status, "body": answer.body, "headers": answer.headers}
