"""Does what an instruction asks for: one call of `ColdStore` each, with the failures that its report holds raised as errors. And the
scheduler that is made of this and of settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from functools import partial

from coldstore.app import ColdStore
from coldstore.config import Settings
from coldstore.errors import ConfigError, NotFound, PruneIncomplete, VerifyFailed
from coldstore.instruction import Instruction
from coldstore.postgres.runs import RunHandle, RunLog
from coldstore.postgres.schedules import ScheduleRow, Schedules
from coldstore.progress import Progress
from coldstore.schedule import Options, Plan, Say, Scheduler


def perform(settings: Settings, instruction: Instruction, progress: Progress) -> None:
    """Raises what the operation raises, `VerifyFailed` for damage and for a drill that proves nothing."""
    with ColdStore(settings, trigger="schedule") as store:
        match instruction.action:
            case "snapshot":
                _snapshot(store, instruction, progress)
            case "verify":
                verdicts = store.verify(deep=instruction.deep, progress=progress)
                if not verdicts:  # all of nothing is whole, but whoever asks believes that there is something
                    raise NotFound("there is no snapshot to verify")
                if bad := sum(not v.ok for v in verdicts):
                    raise VerifyFailed(f"{bad} of {len(verdicts)} snapshots are not good", hint="`coldstore verify --all` names them.")
            case "drill":
                if not store.drill(to=os.environ.get("COLD_STORE_DRILL_URL"), progress=progress).proven:
                    raise VerifyFailed("the drill did not prove the newest snapshot", hint="`coldstore drill` shows why.")
            case "prune":
                report = store.prune(dry_run=False, progress=progress)
                if run := RunHandle.current():
                    run.details.update(deleted=len(report.deleted), swept=len(report.swept))
                if not report.ok:
                    raise PruneIncomplete(f"{len(report.failures)} deletions failed", hint="`coldstore prune` names them.")


def _snapshot(store: ColdStore, asked: Instruction, progress: Progress) -> None:
    if asked.kind == "incremental":
        store.snapshot_incremental(
            uid=asked.scope.uid, workspace=asked.scope.workspace, label=asked.label, auto_full=True, progress=progress
        )
    elif not asked.each:
        store.snapshot(uid=asked.scope.uid, workspace=asked.scope.workspace, label=asked.label, progress=progress)
    elif not sum(1 for _ in store.snapshot_each_user(label=asked.label, progress=progress)):
        raise NotFound("there is no user in any tier", hint="Check the tiers' `uid` columns.")


@contextmanager
def scheduler(settings: Settings, *, say: Say) -> Iterator[Scheduler]:
    """A scheduler that does what the rows ask for, with these settings. Raises `ConfigError`."""
    s = settings
    options = Options(
        zone=s.scheduler_zone,
        misfire=s.scheduler_misfire,
        grace=s.scheduler_grace_seconds,
        tick=s.scheduler_tick_seconds,
        stop=s.scheduler_stop_seconds,
        timeout=s.runs_timeout,
        attempts=s.scheduler_attempts,
        parallel=s.scheduler_parallel,
    )
    if s.runs_log == "off":
        raise ConfigError("the scheduler cannot do without the list of runs", hint="Set `log` of [runs] to auto.")
    log = RunLog(s.runs_url.get_secret_value() if s.runs_url else s.require_database(), timeout=s.runs_timeout)
    with (
        closing(log),
        closing(schedules(s)) as rows,
        closing(Scheduler(rows, log, partial(perform, s), options=options, say=say)) as found,
    ):
        yield found


def schedules(settings: Settings) -> Schedules:
    """The rows of the configured surface."""
    runs_url = settings.runs_url.get_secret_value() if settings.runs_url else None
    url, timeout = settings.require_database(), settings.runs_timeout
    return Schedules(url, surface_id=settings.scheduler_surface_id, timeout=timeout, runs_url=runs_url)


def upcoming(row: ScheduleRow, settings: Settings, *, now: datetime, count: int = 3) -> tuple[str, list[datetime]]:
    """The zone of a row and its next slots. Raises `ConfigError` for one that makes no sense."""
    plan = Plan.of(row, Options(zone=settings.scheduler_zone))
    return plan.cadence.zone, plan.next(now, count)
