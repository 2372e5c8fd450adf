"""The list of runs, `coldstore.runs`: one row for each snapshot, restore, verify, drill, prune, compaction or deletion.

    begin → one INSERT      heartbeat, for runs that last      end → one UPDATE

The rows are written in transactions of their own: a snapshot that fails leaves its row, and a list that fails leaves the snapshot. All
times are the database's. A process that dies leaves a row that says `running` and no longer moves; `reap` closes it as failed.

What is closed stays closed. A run that ends after it was reaped (its machine slept) finds `failed` and leaves it so, because somebody may
have acted on it; how it ended stands in `details.late`.

It refuses to begin a run for a slot that was taken.
"""

from __future__ import annotations

import builtins
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, get_args

import msgspec
import psycopg
from psycopg.types.json import Jsonb

from coldstore.errors import ColdStoreError, ConfigError, DatabaseError, NotFound, TableMissing, redact
from coldstore.postgres.heart import Heart, Session
from coldstore.tiers import Scope

Kind = Literal["snapshot", "restore", "verify", "drill", "prune", "compact", "delete"]
Trigger = Literal["cli", "http", "schedule", "api"]
State = Literal["running", "succeeded", "failed", "skipped"]

KINDS: tuple[Kind, ...] = get_args(Kind)
STATES: tuple[State, ...] = get_args(State)


class RunInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One row, camelCase as JSON. `rows` and `bytes` (plain ones) are of what was written, restored or looked at. `error` is why it failed
    or was skipped. `seconds` until it ended; of a reaped one, until its last sign of life."""

    id: str
    kind: Kind
    trigger: Trigger
    scope: Literal["all", "uid", "workspace"]
    uid: str | None
    workspace: str | None
    state: State
    schedule: str | None
    slot: datetime | None
    started_at: datetime
    finished_at: datetime | None
    heartbeat_at: datetime
    seconds: float | None
    snapshot_id: str | None
    rows: int | None
    bytes: int | None
    error: str | None
    details: dict[str, Any]


Runs: TypeAlias = list[RunInfo]


@dataclass(frozen=True, slots=True)
class Outcome:
    state: State = "succeeded"
    rows: int | None = None
    bytes: int | None = None
    error: str | None = None


#: The run in whose `with` this code is.
_current: ContextVar[RunHandle | None] = ContextVar("coldstore_run", default=None)


class RunHandle:
    """A run under way. What it came to is said by `succeeded`, `failed` or `skipped`, the last of which counts, and is written by `end`.

    As a context manager it ends with the block: failed when an exception leaves it, which goes on. Operations of a `ColdStore` inside the
    block, in the same thread, report to this run and begin none of their own.

    `snapshot_id` (which snapshot it is about) and `details` go into the row also when it fails. `trouble`: after `end`, why the row does
    not tell how it ended.
    """

    def __init__(self, run: str, write: Callable[[RunHandle], str | None]) -> None:
        self.id = run
        self.attempt = 1
        self.snapshot_id: str | None = None
        self.details: dict[str, Any] = {}
        self.trouble: str | None = None
        self._write = write
        self.outcome = Outcome()
        self._ended = False
        self._tokens: list[Token[RunHandle | None]] = []

    @staticmethod
    def current() -> RunHandle | None:
        return _current.get()

    def __enter__(self) -> Self:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        _current.reset(self._tokens.pop())
        self.end(exc)

    def succeeded(
        self,
        *,
        snapshot_id: str | None = None,
        rows: int | None = None,
        bytes: int | None = None,  # noqa: A002 — the column's name
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self.snapshot_id = snapshot_id or self.snapshot_id
        self.details.update(details or {})
        self.outcome = Outcome("succeeded", rows, bytes)

    def failed(self, error: BaseException) -> None:
        """What was said of rows and bytes stays: a suspect snapshot is written all the same."""
        self.outcome = replace(self.outcome, state="failed", error=sentence(error))

    def skipped(self, reason: str) -> None:
        self.outcome = Outcome("skipped", error=_storable(redact(reason)))

    def end(self, error: BaseException | None = None) -> None:
        """Write the outcome, or that `error` was it. Only once, and never an error of its own: see `trouble`."""
        if self._ended:
            return
        if error is not None:
            self.failed(error)
        self._ended = True
        self.trouble = self._write(self)


def unlogged() -> RunHandle:
    """A handle for a run that is in no list."""
    return RunHandle("", lambda _run: None)


def sentence(error: BaseException) -> str:
    """What a row says of an error: its class and its own words, no secret."""
    if isinstance(error, ColdStoreError):
        return _storable(f"{error.code}: {error}")
    if isinstance(error, Exception):
        return _storable(redact(f"{type(error).__name__}: {error}"))
    return "interrupted"


def _storable(text: str) -> str:
    """`text` as Postgres can hold it."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _json(details: Mapping[str, Any]) -> Jsonb:
    return Jsonb({name: _storable(value) if isinstance(value, str) else value for name, value in details.items()})


@contextmanager
def _explained() -> Iterator[None]:
    """A list that is not there, or not of this version, is no fault of the query."""
    try:
        yield
    except TableMissing as exc:
        raise TableMissing("there is no list of runs, coldstore.runs", op="runs", hint=_MAKE_IT) from exc
    except DatabaseError as exc:
        if isinstance(exc.__cause__, psycopg.errors.CheckViolation):
            raise ConfigError("the list of runs is that of an older coldstore", op="runs", hint=_MAKE_IT) from exc
        if isinstance(exc.__cause__, psycopg.errors.ReadOnlySqlTransaction):
            raise DatabaseError("the list of runs is in a database that takes no writes", op="runs", hint=_ELSEWHERE) from exc
        raise


_ELSEWHERE = "Name another database in COLD_STORE_RUNS_URL."
_MAKE_IT = "Run `coldstore init` on that database."


@dataclass(frozen=True, slots=True)
class Figure:
    """Of one kind and one scope: how many runs are going, and the last good one. `ended`, and `now` beside it: seconds since the epoch by
    the database's clock."""

    kind: Kind
    scope: str
    now: float
    running: int = 0
    ended: float | None = None
    bytes: float | None = None


@dataclass(frozen=True, slots=True)
class Presence:
    """`present`: the table is there. `standby`: the server takes no writes."""

    present: bool
    standby: bool


_LATE = timedelta(minutes=1)  # a row may be seen only some time after its moment
_READY = Presence(present=True, standby=False)


class RunLog:
    """The list in the database at `url`. Safe to use from several threads; opens its connection when it is first asked. `timeout`: seconds
    without a sign of life after which a run is dead. `interval`: seconds between two such signs."""

    def __init__(self, url: str, *, timeout: float = 90, interval: float = 10) -> None:
        self._timeout = timeout
        self._found: Presence | None = None
        self._session = Session(url)
        self._heart = Heart(url, interval=interval)
        self._watch = Session(url)
        self._watching = threading.Lock()
        self._figures: dict[tuple[Kind, str], Figure] = {}
        self._since = "-infinity"

    def close(self) -> None:
        self._heart.close()
        self._watch.close()
        self._session.close()

    def look(self) -> Presence:
        """Whether there is a list that can be written. Raises a `DatabaseError` when the database does not answer."""
        if self._found != _READY:  # somebody may have run `init` since
            self._found = Presence(**(self._session.run("run_log").fetchone() or {}))
        return self._found

    def begin(
        self,
        kind: Kind,
        *,
        trigger: Trigger,
        scope: Scope,
        schedule: str | None = None,
        slot: datetime | None = None,
        run_id: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> RunHandle | None:
        """A new run, under `run_id` where one is given; None when the slot of this schedule was taken, by whatever process. Raises
        `TableMissing` where there is no list."""
        run = run_id or str(uuid.uuid4())
        values = {
            "id": run,
            "kind": kind,
            "trigger": trigger,
            "scope": scope.kind,
            "uid": scope.uid,
            "workspace": scope.workspace,
            "schedule": schedule,
            "slot": slot,
            "details": _json(details or {}),
        }
        # No row was inserted when the slot is taken; or by the second try, when only the answer to the first was lost.
        if not self._write("run_begin", values) and not self._ask("run", {"id": run}):
            return None
        self._heart.add(run)
        return RunHandle(run, self._end)

    def claim(
        self,
        kind: Kind,
        *,
        scope: Scope,
        schedule: str,
        slot: datetime,
        attempts: int = 1,
        missed: datetime | None = None,
        reason: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> RunHandle | str | None:
        """The run of a slot: a new one, or, up to `attempts` of them, the next attempt at one that nobody brought to its end. A sentence
        where the slot is noted as skipped, because a run of this schedule is still going; None where somebody has it. `missed`: an
        earlier slot to be noted as skipped for `reason`."""
        values = {
            "id": str(uuid.uuid4()),
            "kind": kind,
            "scope": scope.kind,
            "uid": scope.uid,
            "workspace": scope.workspace,
            "schedule": schedule,
            "slot": slot,
            "attempts": attempts,
            "missed": missed,
            "reason": reason,
            "details": _json(details or {}),
        }
        with _explained():
            found = self._session.together(["slot_lock", "slot_claim", "slot_skip"], values)[1].fetchone()
        if found is None:
            return None
        if found["state"] != "running":
            return str(found["error"])
        run = RunHandle(found["id"], self._end)
        run.attempt = found["attempt"]
        self._heart.add(run.id, run.attempt)
        return run

    def skip(self, kind: Kind, *, scope: Scope, schedule: str, slot: datetime, reason: str) -> bool:
        """Note that nobody runs this slot any more; whether that was new."""
        values = {"kind": kind, "scope": scope.kind, "uid": scope.uid, "workspace": scope.workspace, "schedule": schedule}
        return bool(self._write("slot_skip", {**values, "missed": slot, "reason": reason}))

    def _end(self, run: RunHandle) -> str | None:
        """Close the row; the sentence to tell when that did not work."""
        self._heart.remove(run.id)
        told = {"snapshot_id": run.snapshot_id, "details": _json(run.details), **asdict(run.outcome)}
        values = {"id": run.id, "attempt": run.attempt, **told}
        try:
            if not self._write("run_end", values) and self._write("run_late", values):
                return "the list of runs has this one as dead: it gave no sign of life for too long"
        except ColdStoreError as exc:
            return f"how this run ended is not in the list of runs: {exc}"
        return None

    def get(self, run: str) -> RunInfo:
        """Raises `NotFound`."""
        try:
            found = self._ask("run", {"id": str(uuid.UUID(run))})
        except ValueError:
            found = []
        if not found:
            raise NotFound(f"there is no run {run!r}", hint="`coldstore runs` shows what there is.")
        return found[0]

    def answered(self, key: str, *, hours: float) -> RunInfo | None:
        """The newest run of the last hours that was asked for under this idempotency key."""
        found = self._ask("run_answered", {"asked": Jsonb({"idempotency": [{"key": key}]}), "hours": hours})
        return found[0] if found else None

    def figures(self) -> builtins.list[Figure]:
        """Sums over the whole list, for whoever watches it. The first time all of it is read, later what was begun since; on a connection
        of its own, for no run may wait for that."""
        with _explained(), self._watching:
            rows = self._watch.run("run_figures", {"since": self._since}).fetchall()
            now, found = rows[0]["now"], [r for r in rows if r["kind"] is not None]
            known = {key: replace(figure, now=now, running=0) for key, figure in self._figures.items()}
            for r in found:
                key = r["kind"], r["scope"]
                before = known.get(key, Figure(*key, now))
                good = r["good"] if r["good"] and r["good"][0] >= (before.ended or 0.0) else (before.ended, before.bytes)
                known[key] = Figure(*key, now, r["running"], *good)
            if found:
                oldest = [r["oldest"] for r in found if r["oldest"] is not None]
                self._since = str(min(oldest, default=max(r["newest"] for r in found)) - _LATE)
            self._figures = known
            return [*known.values()]

    def reap(self) -> int:
        """Close as failed what has given no sign of life for too long by the database's clock; how many there were."""
        return self._write("run_reap", {"timeout": self._timeout})

    def last_slot(self, schedule: str) -> datetime | None:
        """The latest slot that anybody began a run for, however it ended."""
        with _explained():
            row = self._session.run("run_last_slot", {"schedule": schedule}).fetchone()
        return row["slot"] if row else None

    def list(
        self,
        *,
        kind: Kind | None = None,
        state: State | None = None,
        uid: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> Runs:
        """Newest first. `before`: the id of a run; only those that began before it, for the next page. Raises `NotFound` for it."""
        edge = self.get(before) if before is not None else None
        values = {"kind": kind, "state": state, "uid": uid, "limit": limit}
        return self._ask("runs", {**values, "before": edge and edge.id, "at": edge and edge.started_at})

    def _write(self, name: str, values: Mapping[str, Any]) -> int:
        with _explained():
            return self._session.run(name, values).rowcount

    def _ask(self, name: str, values: Mapping[str, Any]) -> Runs:
        with _explained():
            return [RunInfo(**row) for row in self._session.run(name, values)]
