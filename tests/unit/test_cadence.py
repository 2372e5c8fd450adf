"""Cron expressions against the minute-by-minute oracle of `tests/wallclock.py`, above all where clocks are changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstore.cadence import Cadence, Due, due
from coldstore.errors import ConfigError
from tests.wallclock import ZONES, Fields, changes, is_due, slots, ticks

START, END = datetime(2025, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
EXPRESSIONS = (
    "0 2 * * *",
    "30 2 * * *",
    "15 1 * * *",
    "0 0 * * *",
    "*/5 * * * *",
    "0 * * * *",
    "30 * * * *",
    "*/30 1-3 * * *",
    "0,30 2,3 * * 0",
    "45 23 * * 6",
    "0 */6 * * *",
    "10 2 1-15 * *",
)


@cache
def changes_of(zone: str) -> tuple[datetime, ...]:
    return tuple(changes(zone, START, END))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def found_in(cadence: Cadence, start: datetime, end: datetime) -> list[datetime]:
    found = []
    for slot in cadence.after(start):
        if slot > end:
            break
        found.append(slot)
    return found


def in_zone(cadence: Cadence, start: str, count: int) -> list[str]:
    return [f"{slot:%m-%d %H:%M}" for slot in islice(cadence.after(utc(start)), count)]


@pytest.mark.parametrize("zone", ZONES)
def test_around_every_change_of_two_years(zone):
    """The year around is for `python -m tests.torture cadence`."""
    near = changes_of(zone) or (START,)
    for change in near:
        start, end = change - timedelta(hours=30), change + timedelta(hours=30)
        minutes = list(ticks(zone, start, end))
        for expression in EXPRESSIONS:
            fields = Fields(expression)
            expected = [tick.at for tick in minutes if is_due(fields, tick)]
            assert found_in(Cadence(expression, zone), start, end) == expected, (expression, change)


def test_the_zones_are_worth_it():
    assert {zone: len(changes_of(zone)) for zone in ZONES} == {
        "UTC": 0,
        "Asia/Kathmandu": 0,
        **dict.fromkeys(("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/St_Johns", "Africa/Casablanca"), 4),
    }


@st.composite
def instants(draw: st.DrawFn) -> tuple[str, datetime]:
    """A zone, and an instant that is more often than not near a change."""
    zone = draw(st.sampled_from(ZONES))
    near = st.sampled_from(changes_of(zone) or (START,))
    some = st.integers(0, int((END - START).total_seconds())).map(lambda s: START + timedelta(seconds=s))
    base = draw(st.one_of(near, some))
    return zone, base + timedelta(seconds=draw(st.integers(-7200, 7200)), microseconds=draw(st.integers(0, 999_999)))


@given(instants(), st.sampled_from(EXPRESSIONS), st.integers(1, 72))
@settings(max_examples=40, deadline=None)
def test_forwards_and_backwards_agree(instant, expression, hours):
    zone, start = instant
    cadence = Cadence(expression, zone)
    end = start + timedelta(hours=hours)
    forwards = found_in(cadence, start, end)
    assert forwards == sorted(set(forwards))
    assert all(start < slot <= end for slot in forwards)
    assert cadence.latest(start, end) == (forwards[-1] if forwards else None)
    for slot in forwards[-2:]:  # wherever one begins to look, a slot is the same
        assert cadence.latest(start, slot) == slot
        assert next(cadence.after(slot - timedelta(seconds=1))) == slot


@given(instants(), st.sampled_from(EXPRESSIONS))
@settings(max_examples=40, deadline=None)
def test_anywhere(instant, expression):
    zone, start = instant
    end = start + timedelta(hours=26)
    assert found_in(Cadence(expression, zone), start, end) == slots(expression, zone, start, end)


def test_a_slot_in_the_gap_is_due_once_when_the_clock_is_set_forward():
    assert in_zone(Cadence("30 2 * * *", "Europe/Berlin"), "2026-03-28 00:00", 3) == ["03-28 01:30", "03-29 01:00", "03-30 00:30"]


def test_a_slot_in_the_overlap_is_due_once_the_first_time():
    assert in_zone(Cadence("30 2 * * *", "Europe/Berlin"), "2026-10-24 02:00", 2) == ["10-25 00:30", "10-26 01:30"]


def test_an_hour_is_an_hour_through_both():
    for day in ("2026-03-28 20:00", "2026-10-24 20:00"):
        for expression in ("0 * * * *", "30 * * * *", "@hourly"):
            found = list(islice(Cadence(expression, "Europe/Berlin").after(utc(day)), 12))
            assert {b - a for a, b in pairwise(found)} == {timedelta(hours=1)}, expression


def test_five_minutes_are_five_minutes_through_both():
    for day in ("2026-03-28 23:00", "2026-10-24 23:00"):
        found = list(islice(Cadence("*/5 * * * *", "America/New_York").after(utc(day)), 400))
        assert {b - a for a, b in pairwise(found)} == {timedelta(minutes=5)}


def test_half_an_hour_of_lord_howe():
    assert in_zone(Cadence("15 2 * * *", "Australia/Lord_Howe"), "2026-10-02 16:00", 2) == ["10-03 15:30", "10-04 15:15"]
    assert in_zone(Cadence("45 1 * * *", "Australia/Lord_Howe"), "2026-04-03 15:00", 2) == ["04-04 14:45", "04-05 15:15"]


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "* * * *",
        "* * * * * *",
        "99 * * * *",
        "a b c d e",
        "0 2 * * *; DROP TABLE x",
        "@reboot",
        "* * * * *\0",
        "R R * * *",
        "h h * * *",
        "0 2 r/3 * *",
        "x" * 9999,
    ],
)
def test_what_is_no_cron_expression(expression):
    with pytest.raises(ConfigError, match="not a cron expression"):
        Cadence(expression)


def test_what_fits_no_day():
    with pytest.raises(ConfigError, match="fits no day"):
        Cadence("0 0 30 2 *")


@pytest.mark.parametrize("zone", ["Nowhere", "", "../../etc/passwd", "Europe/Berlin\0", "/etc/localtime"])
def test_what_is_no_zone(zone):
    with pytest.raises(ConfigError, match="not a time zone"):
        Cadence("0 2 * * *", zone)


def test_blanks_do_not_count():
    assert Cadence("  0   2 * * * ") == Cadence("0 2 * * *")


def test_the_29th_of_february():
    assert in_zone(Cadence("0 0 29 2 *"), "2025-01-01 00:00", 2) == ["02-29 00:00", "02-29 00:00"]


NIGHTLY = Cadence("0 2 * * *")


@pytest.mark.parametrize(
    ("since", "now", "misfire", "expected"),
    [
        ("01-01 02:00", "01-02 01:59:59", "once", Due(None)),
        ("01-01 02:00", "01-02 02:00:00", "once", Due(utc("2026-01-02 02:00"))),
        ("01-01 02:00", "01-02 02:00:59", "skip", Due(utc("2026-01-02 02:00"))),
        ("01-01 02:00", "01-02 02:01:01", "skip", Due(None, (utc("2026-01-02 02:00"), utc("2026-01-02 02:00")))),
        ("01-01 02:00", "01-02 09:00:00", "once", Due(utc("2026-01-02 02:00"))),
        ("01-01 02:00", "01-05 09:00:00", "once", Due(utc("2026-01-05 02:00"), (utc("2026-01-02 02:00"), utc("2026-01-04 02:00")))),
        ("01-01 02:00", "01-05 09:00:00", "skip", Due(None, (utc("2026-01-02 02:00"), utc("2026-01-05 02:00")))),
        ("01-01 02:00", "01-05 02:00:30", "skip", Due(utc("2026-01-05 02:00"), (utc("2026-01-02 02:00"), utc("2026-01-04 02:00")))),
        ("01-05 02:00", "01-04 02:00:00", "once", Due(None)),
    ],
)
def test_what_is_due(since, now, misfire, expected):
    assert due(NIGHTLY, since=utc(f"2026-{since}"), now=utc(f"2026-{now}"), misfire=misfire) == expected


def test_a_year_away_costs_one_run_and_little_time():
    found = due(Cadence("* * * * *"), since=utc("2025-01-01 00:00"), now=utc("2026-01-01 00:00"))
    assert found == Due(utc("2026-01-01 00:00"), (utc("2025-01-01 00:01"), utc("2025-12-31 23:59")))
