"""What a look at one promise found: it holds, it holds with a doubt, it is broken, or it was not looked at. Pure but for the stopwatch.

A look returns a sentence, or raises: `Doubt` is a warning, `NotChecked` a reason, every other `ColdStoreError` a failure. Defects pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from coldstore.errors import ColdStoreError, redact
from coldstore.progress import Progress, silent

State = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds by which a clock is ahead of this machine's, give or take `margin`."""

    ahead: float
    margin: float


class Doubt(ColdStoreError):
    """It works, and somebody should know something about it."""


class NotChecked(ColdStoreError):
    """There is nothing to look at, or no way to."""


@dataclass(frozen=True, slots=True)
class Look:
    """One thing to look at. Where it is `needed` and does not hold, what comes after is skipped."""

    name: str
    at: Callable[[], str]
    needed: bool = False


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found, in one sentence, and what to do about it where it is not ok."""

    name: str
    state: State
    detail: str
    hint: str | None = None
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "state": self.state, "detail": self.detail, "hint": self.hint, "seconds": round(self.seconds, 6)}


def diagnose(looks: Iterable[Look], *, progress: Progress = silent) -> Iterator[Diagnosis]:
    """Look at one after the other; at nothing more once a needed one fails."""
    broken: str | None = None
    for look in looks:
        if broken is not None:
            yield Diagnosis(look.name, "skipped", f"not looked at, because of: {broken}")
            continue
        progress.start(look.name)
        found = _look(look)
        if look.needed and found.state == "failed":
            broken = look.name
        yield found


def _look(look: Look) -> Diagnosis:
    started = time.monotonic()

    def found(state: State, detail: str, hint: str | None = None) -> Diagnosis:
        return Diagnosis(look.name, state, redact(detail), hint, time.monotonic() - started)

    try:
        return found("ok", look.at())
    except Doubt as exc:
        return found("warning", str(exc), exc.hint)
    except NotChecked as exc:
        return found("skipped", str(exc), exc.hint)
    except ColdStoreError as exc:
        return found("failed", str(exc), exc.hint)
