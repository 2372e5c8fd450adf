"""Runs what the rows of `scheduled_agents` ask for, when their cron expressions say so; any number of schedulers may do so side by side.

A turn: read the rows → for each: what is due? → claim the slot → run it, in a thread → sleep until the next slot, or until woken. Between
turns a scheduler remembers next to nothing. What is settled stands in the list of runs, and whoever claims a slot there first has it.

- A row that is new, was switched on or was edited begins with its next slot: the later of `created_at` and `updated_at` counts, and what a
  running scheduler saw change.
- Of slots that nobody was there for, the newest runs or none (`misfire`); the others are one row that says that they were missed.
- A run whose process died, or was stopped, is begun anew by whoever notices, as long as no newer slot is due, up to `attempts` times.
- The clock is the database's. One that goes back finds its slots settled.

A row that makes no sense gets a `last_run_error` and keeps no other from running; neither does one that fails. While the database is away
it waits. It refuses to start where a table is missing.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import islice
from typing import Protocol

from coldstore.cadence import Cadence, Due, Misfire, due
from coldstore.errors import ColdStoreError, ConfigError, DatabaseError, DatabaseUnreachable
from coldstore.instruction import Instruction, parse, within
from coldstore.postgres.runs import RunHandle, RunLog, sentence
from coldstore.postgres.schedules import ScheduleRow, Schedules

_LONGEST_PAUSE = 60.0  # seconds between two tries while the database is away
_SHORTEST_PAUSE = 0.05  # seconds: the machine's timer may be a little early for the database's clock
_ABORT = 10.0  # seconds that a run which was told to stop gets for it


class Say(Protocol):
    """Where the scheduler tells what it does: a sentence for people, and facts for programs."""

    def __call__(self, message: str, /, **facts: object) -> None: ...


class Work(Protocol):
    """Does what an instruction asks for. An exception is how it failed; what else is to be said of it goes to `RunHandle.current()`."""

    def __call__(self, instruction: Instruction, progress: Watch, /) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`grace`: how late a slot may be begun and still count as on time. `tick`: between two looks at the table. `stop`: how long a run that
    is under way may go on when the scheduler is stopped. `timeout`: after which a run without a sign of life is dead. All in seconds.
    `attempts`: at one slot, when processes die. `parallel`: runs at a time."""

    zone: str = "UTC"
    misfire: Misfire = "once"
    grace: float = 60
    tick: float = 30
    stop: float = 60
    timeout: float = 90
    attempts: int = 3
    parallel: int = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What a row comes to."""

    cadence: Cadence
    instruction: Instruction
    misfire: Misfire

    @classmethod
    def of(cls, row: ScheduleRow, options: Options) -> Plan:
        """Raises `ConfigError`."""
        if row.cron_expression is None or row.input_message is None:
            raise ConfigError("a schedule needs a cron_expression and an input_message")
        asked = within(parse(row.input_message), row.workspace_id)
        if asked.kind == "incremental" and asked.each:
            raise ConfigError(
                "an incremental snapshot is of everybody, of one user or of one workspace", hint="Ask for a full one of each user."
            )
        return cls(_cadence(row.cron_expression, asked.zone or options.zone), asked, asked.misfire or options.misfire)

    def next(self, after: datetime, count: int = 1) -> list[datetime]:
        return list(islice(self.cadence.after(after), count))


_cadence = lru_cache(maxsize=1000)(Cadence)


class Stopped(KeyboardInterrupt):
    """Unwinds a run as Ctrl-C does."""


class Watch:
    """The progress of a scheduled run: heard by nobody, and where it learns that it must stop."""

    def __init__(self, say: Say, stopped: Callable[[], bool]) -> None:
        self._say = say
        self._stopped = stopped

    def start(self, what: str, *, total_bytes: int | None = None) -> None:  # noqa: ARG002 — the protocol's
        self.advance()

    def advance(self, *, rows: int = 0, size: int = 0) -> None:  # noqa: ARG002
        if self._stopped():
            raise Stopped

    def note(self, sentence: str) -> None:
        self._say(f"note: {sentence}")


@dataclass(slots=True)
class _Job:
    """A run under way in this process."""

    row: ScheduleRow
    run: RunHandle
    thread: threading.Thread = field(init=False)


@dataclass(frozen=True, slots=True)
class _Quiet:
    """Nothing is due of `row`, as long as it stays what it is."""

    row: ScheduleRow
    since: datetime
    until: datetime


class Scheduler:
    """`run` until `stop`. `turn` alone is one look at the table: what runs then is over when `idle`."""

    def __init__(self, schedules: Schedules, log: RunLog, work: Work, *, options: Options, say: Say) -> None:
        Cadence("@daily", options.zone)  # an error in the settings is no error of a row
        self._schedules = schedules
        self._log = log
        self._work = work
        self._options = options
        self._say = say
        self._jobs: dict[str, _Job] = {}
        self._lock = threading.Lock()
        self._before: datetime | None = None
        self._seen: dict[str, tuple[tuple[str | None, ...], datetime | None]] = {}
        self._quiet: dict[str, _Quiet] = {}
        self._blamed: dict[str, str] = {}
        # Plain values, for a signal's handler may come while another holds a lock.
        self._stopping = False
        self._abort = False
        self._no_reaping_before = 0.0  # of the monotonic clock
        self._ears, self._mouth = socket.socketpair()
        self._ears.setblocking(False)
        self._mouth.setblocking(False)

    def close(self) -> None:
        self._ears.close()
        self._mouth.close()

    # --- from outside ----------------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Until `stop`. False when a run had to be given up. Raises a `ColdStoreError` when it cannot even begin."""
        failures = 0
        began = False
        while not self._stopping:
            try:
                pause = self.turn()
            except ColdStoreError as exc:
                if not began and not isinstance(exc, DatabaseUnreachable):
                    raise
                pause = self._away(exc, failures)
                failures += 1
            else:
                if failures or not began:
                    self._say("the database is back" if failures else "the scheduler is up", surfaceRows=len(self._seen))
                failures, began = 0, True
            self._rest(pause)
        return self._wind_up()

    def stop(self) -> None:
        """Begin nothing more, and end when what runs is done; asked a second time, at once. May be called by a signal's handler."""
        self._abort = self._stopping
        self._stopping = True
        self._wake()

    @property
    def idle(self) -> bool:
        with self._lock:
            return not self._jobs

    # --- a turn ----------------------------------------------------------------------------------------------------------------

    def turn(self) -> float:
        """Begin what is due; seconds until something will be. Raises a `DatabaseError`."""
        found = self._schedules.read()
        if found.dead and time.monotonic() >= self._no_reaping_before:
            self._log.reap()
            found = self._schedules.read()
        self._seen = {row.id: self._first_seen(row) for row in found.rows}
        soonest = found.now + timedelta(seconds=self._options.tick)
        for row in found.rows:
            with self._alone(row):
                soonest = min(soonest, self._look(row, found.now) or soonest)
        self._before = found.now
        return (soonest - found.now).total_seconds()

    @contextmanager
    def _alone(self, row: ScheduleRow) -> Iterator[None]:
        """What is wrong with one row is told once and keeps no other from running. A database that is away concerns all."""
        try:
            yield
        except DatabaseUnreachable:
            raise
        except DatabaseError as exc:  # a lock that somebody holds: at the next turn it may be free
            self._say(f"schedule {row.id}: {exc}", schedule=row.id, error=str(exc))
        except Exception as exc:  # noqa: BLE001 — whatever it is, it is this row's
            self._blame(row, sentence(exc))

    def _blame(self, row: ScheduleRow, error: str) -> None:
        if error not in {row.last_run_error, self._blamed.get(row.id)}:
            self._blamed[row.id] = error
            self._say(f"schedule {row.id}: {error}", schedule=row.id, error=error)
            self._note(row, at=None, error=error)

    def _note(self, row: ScheduleRow, *, at: datetime | None, error: str | None) -> None:
        try:
            self._schedules.ran(row.id, at=at, error=error)
        except ColdStoreError as exc:  # a source that takes no writes; the list of runs knows all the same
            self._say(f"schedule {row.id}: its row does not tell how it ended: {exc}", schedule=row.id)

    def _look(self, row: ScheduleRow, now: datetime) -> datetime | None:
        """Begin what is due of this row; its next slot, if it has one."""
        quiet = self._quiet.get(row.id)
        if quiet is not None and quiet.row == row and quiet.since <= now < quiet.until:
            return quiet.until
        plan = Plan.of(row, self._options)
        edited = self._edited(row, now)
        since = max(edited, row.slot or edited)
        found = due(plan.cadence, since=since, now=now, misfire=plan.misfire, grace=timedelta(seconds=self._options.grace))
        if found.slot is not None:
            self._begin(row, plan, found.slot, now, missed=found.missed)
        elif found.missed is not None:
            asked, reason = plan.instruction, self._missed(found.missed)
            if self._log.skip(asked.action, scope=asked.scope, schedule=row.id, slot=found.missed[1], reason=reason):
                self._say(f"schedule {row.id}: {reason}", schedule=row.id, slot=found.missed[1])
        elif row.begun is not None and self._worth_another_try(row, plan, edited, now):
            self._begin(row, plan, row.begun, now)
        following = next(iter(plan.next(now)), None)
        if found == Due(None) and not row.unfinished and following is not None:
            self._quiet[row.id] = _Quiet(row, now, following)
        return following

    def _worth_another_try(self, row: ScheduleRow, plan: Plan, edited: datetime, now: datetime) -> bool:
        if not row.unfinished or row.state != "failed" or row.begun is None or row.begun <= edited:
            return False
        if row.attempts >= self._options.attempts:
            self._blame(row, f"{row.error}; {row.attempts} attempts")
            return False
        late = (now - row.ended).total_seconds() - self._options.timeout if row.ended else 0.0
        return plan.misfire == "once" or late <= self._options.grace

    def _edited(self, row: ScheduleRow, now: datetime) -> datetime:
        """Slots up to here are of another time. What lies in the future was written by a clock that was wrong."""
        key, at = self._seen[row.id]
        known = [t for t in (row.created_at, row.updated_at, at) if t is not None and t <= now]
        if not known and row.slot is not None:
            known = [row.slot]
        if not known:
            self._seen[row.id] = (key, now)
            return now
        return max(known)

    def _first_seen(self, row: ScheduleRow) -> tuple[tuple[str | None, ...], datetime | None]:
        """Since when the row is as it is, as far as this process saw it; None: it was so from the start."""
        key = (row.cron_expression, row.input_message, row.workspace_id)
        known = self._seen.get(row.id)
        if known is not None and known[0] == key:
            return known
        return key, self._before

    def _missed(self, missed: tuple[datetime, datetime]) -> str:
        first, last = (f"{slot:%Y-%m-%dT%H:%M:%SZ}" for slot in missed)
        return f"not begun in time: {first}" if first == last else f"not begun in time: {first} to {last}"

    # --- a run -----------------------------------------------------------------------------------------------------------------

    def _begin(
        self, row: ScheduleRow, plan: Plan, slot: datetime, now: datetime, *, missed: tuple[datetime, datetime] | None = None
    ) -> None:
        """Claim the slot and run it, if there is room for one more; without room others may. A row that is under way only has its next slot
        noted as skipped."""
        with self._lock:
            room = len(self._jobs) < self._options.parallel
            ours = any(job.row.id == row.id for job in self._jobs.values())
        if (ours or not room) and not row.going:
            return
        asked = plan.instruction
        run = self._log.claim(
            asked.action,
            scope=asked.scope,
            schedule=row.id,
            slot=slot,
            attempts=self._options.attempts,
            missed=missed[1] if missed else None,
            reason=self._missed(missed) if missed else None,
            details={"each": True} if asked.each else None,
        )
        if isinstance(run, str):
            self._say(f"schedule {row.id}: the slot of {slot:%Y-%m-%dT%H:%M:%SZ} is skipped: {run}", schedule=row.id, slot=slot)
        elif run is not None:
            self._start(_Job(row, run), asked, slot, now)

    def _start(self, job: _Job, asked: Instruction, slot: datetime, now: datetime) -> None:
        again = f", attempt {job.run.attempt}" if job.run.attempt > 1 else ""
        kind = "incremental snapshot" if asked.kind == "incremental" else "snapshot"
        what = f"{kind} of {'each user' if asked.each else asked.scope}" if asked.action == "snapshot" else asked.action
        self._say(f"schedule {job.row.id}: {what} for {slot:%Y-%m-%dT%H:%M:%SZ}{again}", schedule=job.row.id, slot=slot, run=job.run.id)
        # A daemon, for one that does not stop when it is told to must not keep the process from ending.
        job.thread = threading.Thread(target=self._execute, args=(job, asked, now), name=f"coldstore-{job.run.id}", daemon=True)
        with self._lock:
            self._jobs[job.run.id] = job
        job.thread.start()

    def _execute(self, job: _Job, asked: Instruction, at: datetime) -> None:
        try:
            with suppress(Exception), job.run:
                try:
                    self._work(asked, Watch(self._say, lambda: self._abort))
                except Stopped:
                    _stopped(job.run)
            error = job.run.outcome.error
            told = f"failed: {error}" if error else "done"
            self._say(f"schedule {job.row.id}: {told}", schedule=job.row.id, run=job.run.id, error=error)
            if job.run.trouble:
                self._say(f"schedule {job.row.id}: {job.run.trouble}", schedule=job.row.id, run=job.run.id)
            self._note(job.row, at=at, error=error)
        finally:
            with self._lock:
                self._jobs.pop(job.run.id, None)
            self._wake()

    # --- waiting and ending ----------------------------------------------------------------------------------------------------

    def _rest(self, seconds: float) -> None:
        if not self._stopping:
            self._schedules.wait(max(seconds, _SHORTEST_PAUSE), wake=self._ears)

    def _wake(self) -> None:
        with suppress(OSError):  # full: it is awake; closed: it has ended
            self._mouth.send(b".")

    def _away(self, error: ColdStoreError, failures: int) -> float:
        """Seconds to wait until the next try. One line for an outage, however long it is."""
        if not failures:
            self._say(f"the database is away, trying again until it answers: {error}", error=str(error))
        # The hearts of the others beat no more than ours did: they have the time of one life to be heard of.
        self._no_reaping_before = time.monotonic() + self._options.timeout
        return min(_LONGEST_PAUSE, 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 — that not all come at once

    def _wind_up(self) -> bool:
        """Wait for what runs, then tell it to stop, then end without it."""
        if not self.idle:
            self._say(f"stopping; what runs has {self._options.stop:g} seconds to come to its end")
        self._join(self._options.stop, unless=lambda: self._abort)
        if self.idle:
            return True
        self._abort = True
        self._join(_ABORT)
        with self._lock:
            left = list(self._jobs.values())
        for job in left:
            _stopped(job.run)
            job.run.end()
        return False

    def _join(self, seconds: float, *, unless: Callable[[], bool] = lambda: False) -> None:
        until = time.monotonic() + seconds
        while not self.idle and not unless() and (left := until - time.monotonic()) > 0:
            self._ears.settimeout(left)
            with suppress(TimeoutError):
                self._ears.recv(4096)


def _stopped(run: RunHandle) -> None:
    """It failed, and may be begun anew elsewhere."""
    run.details["stopped"] = True
    run.failed(ColdStoreError("stopped before it was done"))
