"""When something is due: cron expressions into *slots*, which are instants of UTC. Pure; croniter does the arithmetic of the fields.

A cron expression speaks of the clock on the wall, which twice a year leaves out an hour or shows one twice. What it names is a slot once:

- a time that the clock leaves out is due at the moment when the clock is set forward;
- a time that it shows twice is due the first time.

Where the hour is a wildcard (`*/5 * * * *`, `0 * * * *`) somebody counts by time that passes: of hours shown twice both are meant, and a
time left out is not due where it comes as the same minute of the next hour.

croniter is asked about wall-clock times without a zone only: with one it drifts when the offset changes, and forwards and backwards give
different answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import CroniterBadDateError, croniter
from croniter.croniter import CroniterError

from coldstore.errors import ConfigError

#: What happens to slots that nobody was there for: `once` runs for the newest of them, `skip` for none. Never for each.
Misfire = Literal["once", "skip"]

_FIELDS = re.compile(r"[0-9A-Za-z*,/#?LW-]+( [0-9A-Za-z*,/#?LW-]+){4}\Z")
_DRAWN = re.compile(r"(?<![a-z])[hr](?![a-z])", re.IGNORECASE)  # croniter draws these at random: another time for each process
_NAMES = frozenset({"@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually"})
_SHIFT = timedelta(hours=3)  # no zone has ever been set by more at once but for changing sides of the date line
_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Cadence:
    """A cron expression in a zone. Raises `ConfigError` for one that is none, or that no day ever fits."""

    expression: str
    zone: str = "UTC"

    def __post_init__(self) -> None:
        fields = " ".join(self.expression.split())
        if not (fields in _NAMES or _FIELDS.match(fields)) or _DRAWN.search(fields) or not croniter.is_valid(fields):
            raise ConfigError(
                f"{self.expression!r} is not a cron expression",
                hint="Five fields: minute hour day month weekday. 0 2 * * * is every night at two.",
            )
        object.__setattr__(self, "expression", fields)
        try:
            ZoneInfo(self.zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ConfigError(f"{self.zone!r} is not a time zone", hint="Write it as Europe/Berlin, or leave it out for UTC.") from None
        if not any(True for _ in islice(_walls(fields, datetime(2024, 1, 1)), 1)):  # noqa: DTZ001 — of the wall, without a zone
            raise ConfigError(f"{self.expression!r} fits no day", hint="There is no 30 February.")

    def after(self, instant: datetime) -> Iterator[datetime]:
        """Every slot after `instant`, in order, without end."""
        zone = ZoneInfo(self.zone)
        last = instant
        waiting: list[datetime] = []
        for wall in _walls(self.expression, (instant.astimezone(zone) - _SHIFT - _MINUTE).replace(tzinfo=None)):
            # What comes of a later time on the wall is later, but for the hours that a change of the clock can set it back.
            certain = wall.replace(tzinfo=zone).astimezone(UTC) - _SHIFT
            for slot in sorted(s for s in waiting if s < certain):
                waiting.remove(slot)
                if slot > last:
                    yield slot
                    last = slot
            waiting += [s for s in self._instants(wall, zone) if s > last and s not in waiting]

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """The newest slot after `after` and not after `until`."""
        start = max(after, until - timedelta(days=1))
        while True:
            newest = None
            for slot in self.after(start):
                if slot > until:
                    break
                newest = slot
            if newest is not None or start <= after:
                return newest
            start = max(after, until - 8 * (until - start))

    def _instants(self, wall: datetime, zone: ZoneInfo) -> list[datetime]:
        """What instants a time on the wall is: one, the moment of the change when the wall never shows it, or two."""
        first, second = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        if first == second:
            return [first]
        if first < second:  # shown twice
            return [first, second] if self._every_hour else [first]
        if self._every_hour and croniter.match(self.expression, first.astimezone(zone).replace(tzinfo=None)):
            return []
        return [_change(second, first, zone)]

    @property
    def _every_hour(self) -> bool:
        return self.expression == "@hourly" or self.expression.split()[1:2] in (["*"], ["*/1"])


def _change(low: datetime, high: datetime, zone: ZoneInfo) -> datetime:
    """The minute between two instants at which the zone's offset changes."""
    before = low.astimezone(zone).utcoffset()
    while high - low > _MINUTE:
        middle = low + (high - low) // 2
        middle = middle.replace(second=0, microsecond=0)
        if middle.astimezone(zone).utcoffset() == before:
            low = max(middle, low + _MINUTE)
        else:
            high = middle
    return high if low.astimezone(zone).utcoffset() == before else low


def _walls(expression: str, start: datetime) -> Iterator[datetime]:
    """Times on the wall that fit, after `start`."""
    times = croniter(expression, start)
    while True:
        try:
            yield times.get_next(datetime)
        except (CroniterBadDateError, CroniterError):
            return


@dataclass(frozen=True, slots=True)
class Due:
    """The slot to run for now, if any, and the first and the last of those that nobody runs any more."""

    slot: datetime | None
    missed: tuple[datetime, datetime] | None = None


def due(cadence: Cadence, *, since: datetime, now: datetime, misfire: Misfire = "once", grace: timedelta = timedelta(minutes=1)) -> Due:
    """What is due at `now` when everything up to `since` is settled. `grace`: how late a slot may be begun and still count as on time."""
    newest = cadence.latest(since, now)
    if newest is None:
        return Due(None)
    slot = None if misfire == "skip" and now - newest > grace else newest
    last = newest if slot is None else cadence.latest(since, newest - _MINUTE)
    return Due(slot, None if last is None else (next(cadence.after(since)), last))
