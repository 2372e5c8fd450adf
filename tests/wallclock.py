"""What a cron expression means, minute by minute: an oracle for `coldstore.cadence` that shares no code with it.

Every minute of UTC is looked at: what does the clock on the wall show, was that shown before, and what did it leave out since the minute
before?
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

MINUTE = timedelta(minutes=1)
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "America/St_Johns",
    "Africa/Casablanca",
)
_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def _values(field: str, low: int, high: int) -> frozenset[int]:
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, last = (low, high) if span == "*" else (int(span.partition("-")[0]), int(span.partition("-")[2] or span.partition("-")[0]))
        found |= set(range(first, last + 1, int(step or 1)))
    return frozenset(found)


@dataclass(frozen=True)
class Fields:
    """The five fields as sets of numbers."""

    text: str

    def __post_init__(self) -> None:
        for name, field, (low, high) in zip(("minutes", "hours", "days", "months", "weekdays"), self.text.split(), _RANGES, strict=True):
            object.__setattr__(self, name, _values(field, low, high))
        _, hour, day, _, weekday = self.text.split()
        object.__setattr__(self, "by_time", hour in {"*", "*/1"})
        object.__setattr__(self, "either", day != "*" and weekday != "*")

    def fits(self, wall: datetime) -> bool:
        if wall.minute not in self.minutes or wall.hour not in self.hours or wall.month not in self.months:  # type: ignore[attr-defined]
            return False
        day = wall.day in self.days  # type: ignore[attr-defined]
        weekday = wall.isoweekday() in self.weekdays or (wall.isoweekday() == 7 and 0 in self.weekdays)  # type: ignore[attr-defined]
        return day or weekday if self.either else day and weekday  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Tick:
    """One minute: the wall's time, whether it was shown already, and what was left out just before."""

    at: datetime
    wall: datetime
    again: bool
    left_out: tuple[datetime, ...]
    shift: timedelta


def ticks(zone: str, start: datetime, end: datetime) -> Iterator[Tick]:
    """Every minute after `start` and not after `end`."""
    where = ZoneInfo(zone)
    at = start.replace(second=0, microsecond=0)
    before = at.astimezone(where).replace(tzinfo=None)
    while (at := at + MINUTE) <= end:
        local = at.astimezone(where)
        wall = local.replace(tzinfo=None, fold=0)
        shift = wall - before - MINUTE
        left_out = tuple(before + n * MINUTE for n in range(1, shift // MINUTE + 1)) if shift > timedelta(0) else ()
        yield Tick(at, wall, local.fold == 1, left_out, shift)
        before = wall


def is_due(fields: Fields, tick: Tick) -> bool:
    by_time = fields.by_time  # type: ignore[attr-defined]
    if fields.fits(tick.wall) and (not tick.again or by_time):
        return True
    return any(fields.fits(wall) and not (by_time and fields.fits(wall + tick.shift)) for wall in tick.left_out)


def slots(expression: str, zone: str, start: datetime, end: datetime) -> list[datetime]:
    """Every slot after `start` and not after `end`."""
    fields = Fields(expression)
    return [tick.at for tick in ticks(zone, start, end) if is_due(fields, tick)]


def changes(zone: str, start: datetime, end: datetime) -> list[datetime]:
    """When the clock on the wall was changed, to the hour."""
    where = ZoneInfo(zone)
    found, at = [], start.replace(minute=0, second=0, microsecond=0, tzinfo=UTC)
    while at < end:
        if at.astimezone(where).utcoffset() != (at + timedelta(hours=1)).astimezone(where).utcoffset():
            found.append(at)
        at += timedelta(hours=1)
    return found
