"""Requests that are sent again, under the `Idempotency-Key` of the first: they get its answer, and nothing is done twice.

A key belongs to its caller and to the address. It is remembered here, and in `details` of the run where there is a list of runs, so that
another process, or this one after a restart, answers as well. What failed is not remembered: it left nothing, and sent again it is tried
again. Refuses a key that comes with another request.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from coldstore.app import ColdStore
from coldstore.errors import TableMissing
from coldstore.http.jobs import Answer, Job, Jobs, Operation
from coldstore.http.problems import Problem
from coldstore.postgres.runs import RunInfo

_MOST = 10_000
_GLANCE = 0.25  # seconds between two looks at a run of another process


@dataclass(frozen=True, slots=True)
class Asked:
    """`key`: whose, of which address, under which key; `request`: what was asked. Hashes both: no key of a client is kept."""

    key: str
    request: str

    @classmethod
    def of(cls, *, caller: str, address: str, key: str, request: str) -> Asked:
        return cls(_hash(f"{caller}\0{address}\0{key}"), _hash(request))

    def check(self, request: str) -> None:
        if request != self.request:
            raise Problem(422, "IdempotencyKeyReused", "this Idempotency-Key came with another request", hint="Use a new key for it.")


def _hash(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Replays:
    """What was asked for under a key. All of it belongs to the event loop."""

    def __init__(self, jobs: Jobs, cold: Callable[[], ColdStore], *, hours: float) -> None:
        self._jobs = jobs
        self._cold = cold
        self._hours = hours
        self._jobs_by_key: OrderedDict[str, tuple[float, str, Job]] = OrderedDict()

    async def ask(self, asked: Asked, operation: Operation, *, seconds: float) -> Job | Answer | RunInfo:
        """The job, of this request or of the one before; the answer that was given before; or, after `seconds`, the run of another process
        that is still going. Raises a `Problem`, or a `DatabaseError` when nobody can know whether it was asked before."""
        if (job := self._mine(asked)) is not None:
            return job
        deadline = time.monotonic() + seconds
        while (found := await asyncio.to_thread(self._logged, asked)) is not None:
            if isinstance(found, Answer):
                return found
            if time.monotonic() >= deadline:
                return found
            await asyncio.sleep(_GLANCE)
        if (job := self._mine(asked)) is not None:  # it came while the list was asked
            return job
        job = self._jobs.ask(operation)
        job.details.setdefault("idempotency", []).append({"key": asked.key, "request": asked.request})
        self._jobs_by_key[asked.key] = (time.monotonic(), asked.request, job)
        return job

    def _mine(self, asked: Asked) -> Job | None:
        while self._jobs_by_key:
            key, (at, _, job) = next(iter(self._jobs_by_key.items()))
            if not job.done or (time.monotonic() - at < self._hours * 3600 and len(self._jobs_by_key) <= _MOST):
                break
            del self._jobs_by_key[key]
        if asked.key not in self._jobs_by_key:
            return None
        _, request, job = self._jobs_by_key[asked.key]
        if job.done and job.problem is not None:
            del self._jobs_by_key[asked.key]
            return None
        asked.check(request)
        return job

    def _logged(self, asked: Asked) -> Answer | RunInfo | None:
        """What the list of runs knows: the answer, or a run that is under way."""
        cold = self._cold()
        if not cold.knows_runs:
            return None
        try:
            found = cold.runs.answered(asked.key, hours=self._hours)
            if found is not None and found.state == "running" and cold.runs.reap():
                found = cold.runs.answered(asked.key, hours=self._hours)
        except TableMissing:
            return None
        if found is None:
            return None
        asked.check(next(entry["request"] for entry in found.details["idempotency"] if entry["key"] == asked.key))
        if answer := found.details.get("answer"):
            return Answer(**answer)
        return found if found.state == "running" else None
