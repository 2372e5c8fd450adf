"""An operation as a run of the list: what the list of runs may cost it, which is next to nothing.

The list is written where it is and left alone where it is not. One that fails is worth a note, which is told once the operation is done;
only where the list is `required` is one that cannot be written an error, before anything starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from coldstore.errors import ColdStoreError
from coldstore.postgres.runs import Kind, RunHandle, RunLog, Trigger, unlogged
from coldstore.progress import Progress
from coldstore.tiers import Scope


@contextmanager
def recorded(
    log: RunLog | None,
    kind: Kind,
    *,
    trigger: Trigger,
    scope: Scope,
    progress: Progress,
    required: bool = False,
    apart: bool = False,
    run_id: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> Iterator[RunHandle]:
    """The block is one run of `log`, or part of the run in whose block it stands. `apart`: the list was given a database of its own, and it
    would be a mistake when that takes no writes; the source itself may well be a standby."""
    if outer := RunHandle.current():
        outer.details.update(details or {})
        yield outer
        return
    run, trouble = unlogged(), None
    try:
        if log is not None and (required or _writes(log, apart=apart)):
            run = log.begin(kind, trigger=trigger, scope=scope, run_id=run_id, details=details) or run
    except ColdStoreError as exc:
        if required:
            raise
        trouble = f"this run is not in the list of runs: {exc}"
    try:
        yield run
    except BaseException as exc:
        run.end(exc)
        raise
    run.end()
    if trouble := trouble or run.trouble:
        progress.note(trouble)


def _writes(log: RunLog, *, apart: bool) -> bool:
    found = log.look()
    return found.present and (apart or not found.standby)
