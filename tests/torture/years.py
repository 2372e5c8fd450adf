"""A year and a half of schedules in four time zones: ten schedulers on one real list of runs, and a clock that is set by hand.

The clock of every query is a table (`sim.clock()` in the place of `clock_timestamp()`). It is set to instants around the slots that a
minute-by-minute oracle finds; at each, all schedulers look at once. Some of them die in the middle of a run, new ones take their place, and
now and then the clock is set back or forward by hours. What was run, what was skipped and what was taken over is compared, slot by slot,
with a plain model of what docs/how-to/schedule.md says.
"""

from __future__ import annotations

import random
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import takewhile

import psycopg

from coldstore.cadence import Cadence
from coldstore.instruction import Instruction
from coldstore.postgres import heart, schedules
from coldstore.postgres.migrate import install_reference_schema, migrate
from coldstore.postgres.runs import RunHandle, RunLog
from coldstore.postgres.schedules import Schedules
from coldstore.schedule import Options, Scheduler, Watch
from tests.torture.summary import Summary
from tests.wallclock import ZONES, Fields, changes, is_due, slots, ticks

BEGIN, END = datetime(2026, 2, 1, tzinfo=UTC), datetime(2027, 8, 1, tzinfo=UTC)
#: Cron expressions of each zone, at times that its clock leaves out, or shows twice.
ROWS = {
    "Europe/Berlin": ("30 2 * * *", "0 */6 * * *"),
    "America/New_York": ("30 1 * * *", "15 2 * * 0"),
    "Australia/Lord_Howe": ("15 2 * * *",),
    "Africa/Casablanca": ("30 2 * * *", "0 3 1,15 * *"),
}
TIMEOUT = 90
SCHEDULERS = 10
SURFACE = "simulated"
CLOCK = """
CREATE SCHEMA sim;
CREATE TABLE sim.now (at timestamptz NOT NULL);
INSERT INTO sim.now VALUES ('2026-02-01Z');
CREATE FUNCTION sim.clock() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT at FROM sim.now';
"""


@contextmanager
def simulated_clock() -> Iterator[None]:
    """Every query of the list of runs and of the schedules asks `sim.clock()`."""
    real = heart.query

    def query(name: str) -> str:
        return real(name).replace("pg_postmaster_start_time()", "'-infinity'::timestamptz").replace("clock_timestamp()", "sim.clock()")

    heart.query = schedules.query = query  # type: ignore[attr-defined]
    try:
        yield
    finally:
        heart.query = schedules.query = real  # type: ignore[attr-defined]


@dataclass
class Model:
    """What ought to happen to one row."""

    slots: list[datetime]
    run: set[datetime] = field(default_factory=set)
    skipped: set[datetime] = field(default_factory=set)

    def look(self, now: datetime) -> None:
        settled = self.run | self.skipped
        since = max([BEGIN, *(slot for slot in settled if slot <= now)])
        due = [slot for slot in self.slots if since < slot <= now]
        if due:
            self.run.add(due[-1])
        if due[:-1]:
            self.skipped |= {due[-2]} - settled


class Crew:
    """Ten schedulers, and the work that they share: it writes down who did what, and kills some of them in the middle of it."""

    def __init__(self, url: str, rng: random.Random) -> None:
        self._url = url
        self._rng = rng
        self._lock = threading.Lock()
        self._members = [self._new() for _ in range(SCHEDULERS)]
        self._pool = ThreadPoolExecutor(SCHEDULERS)
        self.done: Counter[str] = Counter()
        self.crashes = 0
        self.said: list[str] = []

    def _new(self) -> tuple[Scheduler, Schedules, RunLog]:
        log = RunLog(self._url, timeout=TIMEOUT, interval=1e6)
        rows = Schedules(self._url, surface_id=SURFACE, timeout=TIMEOUT)
        return Scheduler(rows, log, self._work, options=Options(timeout=TIMEOUT, parallel=4), say=self._say), rows, log

    def _say(self, message: str, /, **_: object) -> None:
        with self._lock:
            self.said.append(message)

    def _work(self, _asked: Instruction, _progress: Watch) -> None:
        run = RunHandle.current()
        assert run is not None
        with self._lock:
            if run.attempt < 3 and self._rng.random() < 0.08:
                self.crashes += 1
                run._write = lambda _: None  # dead: nobody says how it ended
                return
            self.done[run.id] += 1

    def look(self) -> None:
        """All at once, and until everything that was begun is over."""
        list(self._pool.map(lambda member: member[0].turn(), self._members))
        for scheduler, _, _ in self._members:
            while not scheduler.idle:
                scheduler._join(1)

    def replace_some(self) -> None:
        for place in self._rng.sample(range(SCHEDULERS), 3):
            self._close(self._members[place])
            self._members[place] = self._new()

    @staticmethod
    def _close(member: tuple[Scheduler, Schedules, RunLog]) -> None:
        for part in member:
            part.close()

    def close(self) -> None:
        self._pool.shutdown()
        for member in self._members:
            self._close(member)


def campaign(url: str, *, seed: int, runs: int, until: datetime = END) -> Summary:
    """`runs`: how many of the instants before `until` to visit, those around changes of a clock first. `url`: an empty database."""
    summary = Summary("years", seed)
    rng = random.Random(seed)
    with summary.timed(), psycopg.connect(url, autocommit=True) as conn, simulated_clock():
        migrate(conn)
        install_reference_schema(conn)
        conn.execute(CLOCK)
        models = {_insert(conn, zone, cron): Model(slots(cron, zone, BEGIN, until)) for zone, crons in ROWS.items() for cron in crons}
        with closing(Crew(url, rng)) as crew:
            for now in _instants(models, rng, runs, until):
                _visit(conn, crew, models, now)
                if rng.random() < 0.05:
                    hours = rng.choice((-30, -5, -1, 1, 5, 30))
                    summary.outcomes["clock set back" if hours < 0 else "clock set forward"] += 1
                    _visit(conn, crew, models, now + timedelta(hours=hours))
                if rng.random() < 0.05:
                    crew.replace_some()
                    summary.outcomes["schedulers replaced"] += 3
            summary.outcomes["crashes"] = crew.crashes
            summary.runs = sum(crew.done.values())
            summary.broken += [f"seed {seed}: {sentence}" for sentence in _differences(conn, crew, models)]
    return summary


def _insert(conn: psycopg.Connection, zone: str, cron: str) -> str:
    said = f'{{"action": "snapshot", "zone": "{zone}"}}'
    (found,) = conn.execute(
        "INSERT INTO scheduled_agents (cron_expression, input_message, surface_id, created_by, created_at, updated_at)"
        " VALUES (%s, %s, %s, 'test', %s, %s) RETURNING id::text",
        (cron, said, SURFACE, BEGIN, BEGIN),
    ).fetchone() or ("",)
    return str(found)


def _instants(models: dict[str, Model], rng: random.Random, count: int, until: datetime) -> list[datetime]:
    """Just before and some seconds after slots."""
    every = sorted({slot for model in models.values() for slot in model.slots})
    critical = [change for zone in ROWS for change in changes(zone, BEGIN, until)]
    every.sort(key=lambda slot: min(abs(slot - change) for change in critical))
    chosen = sorted(every[:count])
    early = [slot - timedelta(seconds=rng.randrange(1, 40)) for slot in rng.sample(chosen, len(chosen) // 10)]
    return sorted([*(slot + timedelta(seconds=rng.randrange(20)) for slot in chosen), *early])


def _visit(conn: psycopg.Connection, crew: Crew, models: dict[str, Model], now: datetime) -> None:
    """Look; and when somebody died, look again when that has been noticed."""
    crashes = -1
    while crashes != crew.crashes:
        crashes = crew.crashes
        conn.execute("UPDATE sim.now SET at = %s", (now,))
        for model in models.values():
            model.look(now)
        crew.look()
        now += timedelta(seconds=TIMEOUT + 5)


def _differences(conn: psycopg.Connection, crew: Crew, models: dict[str, Model]) -> Iterator[str]:
    rows = conn.execute("SELECT id::text, schedule, slot, state, error, details FROM coldstore.runs").fetchall()
    for run, schedule, slot, state, error, _details in rows:
        if (state == "succeeded") != (crew.done[run] == 1):
            yield f"{schedule} at {slot} is {state} ({error}) and was done {crew.done[run]} times"
    if lost := crew.done.keys() - {row[0] for row in rows}:
        yield f"{len(lost)} runs are not in the list"
    for schedule, model in models.items():
        for wanted, expected in (("succeeded", model.run), ("skipped", model.skipped)):
            found = {slot for _, of, slot, state, *_ in rows if of == schedule and state == wanted}
            for slot in sorted(found ^ expected):
                yield f"{schedule} at {slot}: {'not ' * (slot not in found)}{wanted}"
    yield from (message for message in crew.said if "error" in message.lower() or "failed" in message)


# --- cadence alone -----------------------------------------------------------------------------------------------------------------


def every_minute(*, seed: int, runs: int, days: int = 730) -> Summary:
    """`runs` cron expressions drawn at random, each in every zone, over `days` from some day: each minute as the oracle has it, and asked
    backwards the same."""
    summary = Summary("cadence", seed)
    rng = random.Random(seed)
    expressions = [_expression(rng) for _ in range(runs)]
    begin = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(days=rng.randrange(max(1, 730 - days)))
    end = begin + timedelta(days=days)
    with summary.timed():
        for zone in ZONES:
            minutes = list(ticks(zone, begin, end))
            for expression in expressions:
                fields = Fields(expression)
                expected = [tick.at for tick in minutes if is_due(fields, tick)]
                cadence = Cadence(expression, zone)
                found = list(takewhile(lambda slot: slot <= end, cadence.after(begin)))
                wrong = [f"{slot:%Y-%m-%dT%H:%MZ} is {'not ' * (slot in expected)}due" for slot in sorted({*found} ^ {*expected})[:3]]
                for at in rng.sample(range(days * 24), 20):
                    until = begin + timedelta(hours=at)
                    place = bisect_right(expected, until)
                    if cadence.latest(begin, until) != (expected[place - 1] if place else None):
                        wrong.append(f"backwards from {until:%Y-%m-%dT%H:%MZ} it is another")
                summary.count("agreed", wrong, where=f"seed {seed}, {expression!r} in {zone}")
    return summary


def _expression(rng: random.Random) -> str:
    minute = rng.choice(["0", "30", "*/5", "*/20", str(rng.randrange(60)), f"{rng.randrange(30)},{rng.randrange(30, 60)}"])
    hour = rng.choice(["*", "2", "1", "0", "3", "*/2", "*/6", "1-3", "0,2", str(rng.randrange(24)), "22-23"])
    day, weekday = rng.choice([("*", "*"), ("*", "*"), ("*", "0"), ("*", "1-5"), ("1-15", "*"), ("*/7", "*"), ("1", "1")])
    return f"{minute} {hour} {day} {rng.choice(['*', '*', '3,10', '*/2'])} {weekday}"
