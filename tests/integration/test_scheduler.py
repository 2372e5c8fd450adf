"""Schedules on a real Postgres: which slots run, once, whoever dies; and what a row that makes no sense does to the others.

Time is made by moving the rows into the past: the clock is the database's, and nobody waits for it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from coldstore.app import ColdStore
from coldstore.config import build
from coldstore.errors import ConfigError, DatabaseUnreachable, StoreFull, TableMissing
from coldstore.perform import perform
from coldstore.postgres import heart, schedules
from coldstore.postgres.migrate import migrate
from coldstore.postgres.runs import RunHandle, RunLog
from coldstore.postgres.schedules import Schedules
from coldstore.schedule import Options, Scheduler
from tests.acceptance.program import listen_to_signals
from tests.integration.helpers import ask, record_changes, run

ROOT = Path(__file__).parents[2]
DOCUMENTED = (
    "INSERT INTO scheduled_agents (workspace_id, agent_id, cron_expression, input_message, surface, surface_id, created_by)"
    " VALUES (NULL, 'admin-agent', '0 2 * * *', 'Run a full memory cold-store snapshot for all users.', 'chat', 'cold-store-cron', 'system')"
)
EVERYBODY = "Take a snapshot of everybody"
SLOW = "CREATE VIEW slow AS SELECT n, 'uid_' || n AS uid, pg_sleep(0.02)::text AS nap FROM generate_series(1, 100000) n"


@pytest.fixture
def source(database) -> str:
    """Memory of two users in two workspaces, and a list of runs."""
    for uid, workspace in (("alice", "red"), ("bob", "blue")):
        run(
            database,
            "INSERT INTO daily_memories (uid, workspace_id, date)"
            f" SELECT '{uid}', '{workspace}', date '2026-01-01' + n FROM generate_series(1, 3) n",
        )
    with psycopg.connect(database, autocommit=True) as conn:
        migrate(conn)
    return database


def wait_until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.01)


def schedule(url: str, cron: str = "0 2 * * *", message: str = EVERYBODY, *, workspace: str | None = None, days: float = 1.5) -> str:
    """A row that was there `days` ago."""
    with psycopg.connect(url, autocommit=True) as conn:
        (found,) = conn.execute(
            "INSERT INTO scheduled_agents (workspace_id, cron_expression, input_message, surface_id, created_by, created_at, updated_at)"
            " VALUES (%s, %s, %s, 'cold-store-cron', 'test', now() - %s * interval '1 day', now() - %s * interval '1 day') RETURNING id::text",
            (workspace, cron, message, days, days),
        ).fetchone() or ("",)
    return str(found)


def runs(url: str, what: str = "state, error") -> list[tuple[Any, ...]]:
    return ask(url, f"SELECT {what} FROM coldstore.runs ORDER BY slot, started_at")


def age(url: str, *, hours: float = 1) -> None:
    """Everything that stands in the list of runs was so many hours ago."""
    moved = ", ".join(f"{c} = {c} - interval '{hours} hours'" for c in ("slot", "started_at", "heartbeat_at", "finished_at"))
    run(url, f"UPDATE coldstore.runs SET {moved}")


def row(url: str, schedule_id: str) -> tuple[Any, ...]:
    return ask(url, f"SELECT last_run_at, last_run_error, xmin::text FROM scheduled_agents WHERE id = '{schedule_id}'")[0]


@dataclass
class Bench:
    """Schedulers on one source, whose work is `work`; `done` is what they were asked for."""

    url: str
    made: list[tuple[Scheduler, Schedules, RunLog]] = field(default_factory=list)
    done: list[Any] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def __call__(
        self, work=None, *, timeout: float = 90, interval: float = 10, runs_url: str | None = None, url=None, **options
    ) -> Scheduler:
        source = url or self.url
        log = RunLog(runs_url or source, timeout=timeout, interval=interval)
        rows = Schedules(source, surface_id="cold-store-cron", timeout=timeout, runs_url=runs_url)

        def noted(asked, progress):
            self.done.append(asked)
            if work:
                work(asked, progress)

        scheduler = Scheduler(
            rows, log, noted, options=Options(timeout=timeout, **options), say=lambda message, **_: self.said.append(message)
        )
        self.made.append((scheduler, rows, log))
        return scheduler

    def turn(self, scheduler: Scheduler) -> None:
        """One look, and what it begins to its end."""
        scheduler.turn()
        wait_until(lambda: scheduler.idle)

    def close(self) -> None:
        for parts in self.made:
            for part in parts:
                part.close()


@pytest.fixture
def bench(source) -> Iterator[Bench]:
    found = Bench(source)
    yield found
    found.close()


@pytest.fixture
def settings(source, tmp_path):
    return build({"path": str(tmp_path / "store"), "keep_last": 7}, {"database_url": source})


def snapshots(settings) -> list[Any]:
    with ColdStore(settings) as store:
        return list(store.list_snapshots())


# --- what a row asks for -----------------------------------------------------------------------------------------------------------


def test_the_documented_row(source, bench, settings):
    run(
        source, DOCUMENTED, "UPDATE scheduled_agents SET created_at = now() - interval '36 hours', updated_at = now() - interval '36 hours'"
    )
    scheduler = bench(partial(perform, settings))
    bench.turn(scheduler)
    bench.turn(scheduler)
    (info,) = snapshots(settings)
    assert (info.uid, info.workspace, info.rows["daily_memories"]) == (None, None, 6)
    found = runs(source, "kind, trigger, scope, state, snapshot_id, rows, extract(hour FROM slot AT TIME ZONE 'UTC')::int")
    assert found[-1] == ("snapshot", "schedule", "all", "succeeded", info.id, 6, 2)
    assert len([f for f in found if f[3] == "succeeded"]) == 1
    ((at, error),) = ask(source, "SELECT last_run_at > now() - interval '1 hour', last_run_error FROM scheduled_agents")
    assert (at, error) == (True, None)


def test_a_row_of_a_workspace_never_exports_everybody(source, bench, settings):
    schedule(source, message="Run a full memory cold-store snapshot for all users.", workspace="red")
    reaching = [
        schedule(source, message=m, workspace="red") for m in ("snapshot of each user", "snapshot of user bob", "prune old snapshots")
    ]
    bench.turn(bench(partial(perform, settings), parallel=9))
    (info,) = snapshots(settings)
    assert (info.workspace, info.rows["daily_memories"]) == ("red", 3)
    assert all("of that workspace and nothing else" in row(source, r)[1] for r in reaching)


@pytest.mark.parametrize(
    ("message", "kind", "count"),
    [
        ("Take a snapshot of each user", "snapshot", 2),
        ("Take a snapshot of user alice", "snapshot", 1),
        ('{"action": "snapshot", "label": "nightly"}', "snapshot", 1),
        ("Verify all snapshots deeply", "verify", 1),
        ("Prune old snapshots", "prune", 1),
    ],
)
def test_every_action(source, bench, settings, message, kind, count):
    if kind != "snapshot":
        with ColdStore(settings) as store:
            store.snapshot()
        run(source, "DELETE FROM coldstore.runs")
    schedule(source, message=message)
    bench.turn(bench(partial(perform, settings)))
    assert runs(source, "kind, state, error")[-1] == (kind, "succeeded", None)
    assert len(snapshots(settings)) == count


def test_incrementals(source, bench, settings):
    """The first finds nothing to build on and is a full one; one that finds no change writes nothing, and is no failure."""
    record_changes(source)
    names = [
        schedule(source, message="Take an incremental snapshot of user alice"),
        schedule(source, message="incremental snapshot of everybody"),
    ]
    scheduler = bench(partial(perform, settings))
    for number in range(3):
        bench.turn(scheduler)
        if number == 0:
            run(source, "UPDATE daily_memories SET date = date + 100 WHERE uid = 'alice'")
        age(source, hours=24)
    assert [row(source, name)[1] for name in names] == [None, None]
    found = snapshots(settings)
    assert sorted((info.uid, info.kind) for info in found if info.uid) == [("alice", "full"), ("alice", "incremental")]
    assert sorted(info.kind for info in found if info.uid is None) == ["full", "incremental"]
    told = [d for (d,) in ask(source, "SELECT details FROM coldstore.runs ORDER BY started_at")]
    assert [bool(d.get("full")) for d in told] == [True, True, False, False, False, False]
    assert [d.get("unchanged") for d in told] == [None, None, None, None, True, True]
    assert any("incremental snapshot of everybody" in line for line in bench.said)


def test_a_failure_stands_in_the_list_and_in_the_row(source, bench, settings):
    nobody = schedule(source, message="Take a snapshot of user nobody")
    nothing = schedule(source, message="Verify all snapshots")
    bench.turn(bench(partial(perform, settings)))
    failed = {"NotFound: there is not one row of user 'nobody'", "NotFound: there is no snapshot to verify"}
    assert {error for state, error in runs(source) if state == "failed"} == failed
    assert {row(source, nobody)[1], row(source, nothing)[1]} == failed


@pytest.mark.parametrize(
    ("cron", "message", "error"),
    [
        ("99 * * * *", EVERYBODY, "ConfigError: '99 * * * *' is not a cron expression"),
        ("0 2 30 2 *", EVERYBODY, "fits no day"),
        (None, EVERYBODY, "needs a cron_expression"),
        ("0 2 * * *", None, "needs a cron_expression and an input_message"),
        ("0 2 * * *", "Good morning", "no instruction that coldstore knows"),
        ("0 2 * * *", "Run an incremental snapshot of each user", "is of everybody, of one user or of one workspace"),
        ("0 2 * * *", '{"action": "snapshot", "zone": "Nowhere"}', "not a time zone"),
        ("0 2 * * *", "postgresql://me:hidden-51c1e2@db/x", "no instruction"),
    ],
)
def test_a_row_that_makes_no_sense_runs_nothing_and_is_told_once(source, bench, cron, message, error):
    bad, good = schedule(source, cron, message), schedule(source)
    before = ask(source, f"SELECT updated_at FROM scheduled_agents WHERE id = '{bad}'")
    scheduler = bench()
    bench.turn(scheduler)
    first = row(source, bad)
    assert error in first[1]
    assert "hidden-51c1e2" not in first[1]
    assert first[0] is None
    bench.turn(scheduler)
    bench.turn(bench())
    assert row(source, bad) == first
    assert ask(source, f"SELECT updated_at FROM scheduled_agents WHERE id = '{bad}'") == before
    assert {s for (s,) in ask(source, "SELECT schedule FROM coldstore.runs")} == {good}
    assert len(bench.done) == 1


def test_rows_of_others_and_those_that_are_off(source, bench):
    for change in ("surface_id = 'scheduled'", "surface_id = NULL", "enabled = false", "enabled = NULL"):
        run(source, f"UPDATE scheduled_agents SET {change} WHERE id = '{schedule(source)}'")
    bench.turn(bench())
    assert runs(source) == []


# --- once --------------------------------------------------------------------------------------------------------------------------


def test_ten_schedulers_run_a_slot_once(source, bench):
    names = [schedule(source) for _ in range(4)]
    crew = [bench(parallel=9) for _ in range(10)]
    with ThreadPoolExecutor(10) as pool:
        for _ in range(3):
            list(pool.map(bench.turn, crew))
    assert sorted(ask(source, "SELECT schedule FROM coldstore.runs WHERE state = 'succeeded'")) == sorted((n,) for n in names)
    assert len(bench.done) == 4


def test_an_idle_turn_is_one_query(source, bench, monkeypatch):
    for _ in range(3):
        schedule(source)
    scheduler = bench(parallel=3)
    bench.turn(scheduler)
    bench.turn(scheduler)
    asked = []
    real = heart._ask
    monkeypatch.setattr(heart, "_ask", lambda conn, text, values: asked.append(text) or real(conn, text, values))
    scheduler.turn()
    assert len(asked) == 1


def test_a_new_row_begins_with_its_next_slot(source, bench):
    schedule(source, "* * * * *", days=0)
    scheduler = bench()
    assert 0 < scheduler.turn() <= 60
    assert bench.done == []


def test_a_row_that_is_switched_on_again_begins_with_its_next_slot(source, bench):
    """Also where nobody keeps `updated_at`."""
    found = schedule(source, days=40)
    run(source, "UPDATE scheduled_agents SET enabled = false")
    scheduler = bench()
    bench.turn(scheduler)
    run(source, "UPDATE scheduled_agents SET enabled = true")
    bench.turn(scheduler)
    run(source, "UPDATE scheduled_agents SET cron_expression = '0 3 * * *'")
    bench.turn(scheduler)
    run(source, f"UPDATE scheduled_agents SET cron_expression = '0 4 * * *', updated_at = now() WHERE id = '{found}'")
    bench.turn(bench())  # one that saw nothing of it, but `updated_at`
    assert (runs(source), bench.done) == ([], [])


def test_of_missed_slots_the_newest_runs_and_the_rest_is_one_row(source, bench):
    schedule(source, days=6)
    bench.turn(bench())
    (skipped, missed), (succeeded, none) = runs(source)
    assert (skipped, succeeded, none) == ("skipped", "succeeded", None)
    assert missed.startswith("not begun in time: ")
    assert " to " in missed
    assert len(bench.done) == 1


def test_or_none_of_them_runs(source, bench):
    schedule(source, "30 */3 * * *", '{"action": "snapshot", "misfire": "skip"}', days=6)
    scheduler = bench(grace=0)
    bench.turn(scheduler)
    bench.turn(scheduler)
    assert [state for state, _ in runs(source)] == ["skipped"]
    assert bench.done == []


def test_dates_of_a_clock_that_was_wrong(source, bench):
    """Neither a row nor a run of the future keeps a schedule from running. The other half, that what ran does not run again, is simulated
    in tests/torture/years.py."""
    schedule(source)
    run(source, "UPDATE scheduled_agents SET updated_at = now() + interval '1 year'")
    bench.turn(bench())
    age(source, hours=-24 * 365)
    bench.turn(bench())
    assert len(bench.done) == 2


# --- one after the other -----------------------------------------------------------------------------------------------------------


class Gate:
    """Work that lasts until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, _asked, progress) -> None:
        self.entered.set()
        while not self.open.wait(0.01):
            progress.advance()


def test_a_slot_that_comes_while_the_one_before_runs_is_skipped(source, bench):
    schedule(source, "0 * * * *")
    gate = Gate()
    first = bench(gate, interval=0.05)
    first.turn()
    gate.entered.wait()
    run(source, "DELETE FROM coldstore.runs WHERE state = 'skipped'", "UPDATE coldstore.runs SET slot = slot - interval '1 hour'")
    bench.turn(bench())
    first.turn()
    gate.open.set()
    wait_until(lambda: first.idle)
    states = [state for state, error in runs(source) if not (error or "").startswith("not begun")]
    assert states == ["succeeded", "skipped"]
    assert "was still going" in runs(source)[-1][1]
    assert len(bench.done) == 1


def test_no_more_than_so_many_at_a_time(source, bench):
    for _ in range(3):
        schedule(source)
    gate = Gate()
    scheduler = bench(gate, parallel=2)
    scheduler.turn()
    scheduler.turn()
    assert [state for state, _ in runs(source)].count("running") == 2
    gate.open.set()
    wait_until(lambda: scheduler.idle)
    bench.turn(scheduler)
    assert [state for state, _ in runs(source)].count("succeeded") == 3


def test_an_error_in_one_is_no_matter_to_the_others(source, bench):
    def work(asked, _progress):
        if asked.label == "bad":
            raise StoreFull("the disk is full; password=hidden-51c1e2")
        if asked.label == "worse":
            raise RuntimeError("never seen before")

    for label in ("bad", "worse", "good"):
        schedule(source, message=f'{{"action": "snapshot", "label": "{label}"}}')
    scheduler = bench(work, parallel=3)
    bench.turn(scheduler)
    found = runs(source)
    assert sorted(state for state, error in found if not (error or "").startswith("not")) == ["failed", "failed", "succeeded"]
    assert {error for state, error in found if state == "failed"} == {
        "StoreFull: the disk is full; password=***",
        "RuntimeError: never seen before",
    }
    age(source, hours=24)
    bench.turn(scheduler)
    assert len(bench.done) == 6


# --- the dead ----------------------------------------------------------------------------------------------------------------------


def dead_run(source, bench) -> None:
    """A run whose process is gone."""
    gate = Gate()
    scheduler = bench(gate, interval=1e6)
    scheduler.turn()
    gate.entered.wait()
    RunHandle.end, real = (lambda *_: None), RunHandle.end
    try:
        gate.open.set()
        wait_until(lambda: scheduler.idle)
    finally:
        RunHandle.end = real
    run(source, "UPDATE coldstore.runs SET heartbeat_at = heartbeat_at - interval '1 hour' WHERE state = 'running'")


def begun(url: str, what: str) -> list[tuple[Any, ...]]:
    return ask(url, f"SELECT {what} FROM coldstore.runs WHERE state <> 'skipped'")


def test_a_dead_run_is_taken_over_in_its_row(source, bench):
    schedule(source)
    dead_run(source, bench)
    ((name,),) = begun(source, "id::text")
    bench.turn(bench(timeout=0.2))
    assert begun(source, "id::text, state, error, (details ->> 'attempts')::int, details ? 'reaped'") == [
        (name, "succeeded", None, 2, False)
    ]
    assert len(bench.done) == 2


def test_but_not_for_ever(source, bench):
    found = schedule(source)
    for _ in range(3):
        dead_run(source, bench)
        bench(timeout=0.2)._log.reap()
    scheduler = bench(timeout=0.2)
    bench.turn(scheduler)
    bench.turn(scheduler)
    assert begun(source, "state, details ->> 'attempts'") == [("failed", "3")]
    assert "no sign of life since" in row(source, found)[1]
    assert "3 attempts" in row(source, found)[1]
    assert len(bench.done) == 3


def test_a_newer_slot_comes_before_a_dead_one(source, bench):
    schedule(source)
    dead_run(source, bench)
    bench(timeout=0.2)._log.reap()
    age(source, hours=24)
    bench.turn(bench(timeout=0.2))
    assert ask(source, "SELECT state FROM coldstore.runs WHERE state <> 'skipped' ORDER BY slot") == [("failed",), ("succeeded",)]


def test_where_late_runs_are_not_wanted_a_dead_one_is_late_too(source, bench):
    schedule(source, message='{"action": "snapshot", "misfire": "skip"}')
    bench(timeout=0.2)
    run(
        source,
        "INSERT INTO coldstore.runs (kind, trigger, schedule, slot, state, started_at, heartbeat_at, finished_at, details)"
        " SELECT 'snapshot', 'schedule', id::text, date_trunc('day', now() - interval '2 hours') + interval '2 hours', 'failed',"
        " now(), now() - interval '30 seconds', now() - interval '30 seconds', '{\"reaped\": true}' FROM scheduled_agents",
    )
    bench.turn(bench(timeout=0.2, grace=5))
    assert bench.done == []
    bench.turn(bench(timeout=0.2, grace=600))
    assert len(bench.done) == 1


def test_a_slow_run_that_lives_is_never_taken_over(source, bench):
    schedule(source)
    gate = Gate()
    slow = bench(gate, interval=0.05, timeout=0.5)
    slow.turn()
    gate.entered.wait()
    other = bench(timeout=0.5)
    started = time.monotonic()
    while time.monotonic() < started + 2:
        other.turn()
        time.sleep(0.05)
    gate.open.set()
    wait_until(lambda: slow.idle)
    assert begun(source, "state, details ? 'attempts'") == [("succeeded", False)]
    assert len(bench.done) == 1


def test_who_was_taken_over_changes_nothing_any_more(source, bench):
    """A process that slept, was taken for dead, and wakes up while another does its work."""
    schedule(source)
    asleep, gate = Gate(), Gate()
    first = bench(asleep, interval=0.05)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heart.Heart, "add", lambda *_: None)  # asleep, it gives no sign
        first.turn()
    asleep.entered.wait()
    run(source, "UPDATE coldstore.runs SET heartbeat_at = heartbeat_at - interval '1 hour' WHERE state = 'running'")
    second = bench(gate, timeout=0.2, interval=0.05)
    second.turn()
    gate.entered.wait()
    asleep.open.set()
    wait_until(lambda: first.idle)
    assert begun(source, "state, details ->> 'attempts', details -> 'late' ->> 'state'") == [("running", "2", "succeeded")]
    assert any("has this one as dead" in said for said in bench.said)
    gate.open.set()
    wait_until(lambda: second.idle)
    assert begun(source, "state, details ->> 'attempts'") == [("succeeded", "2")]


# --- outages -----------------------------------------------------------------------------------------------------------------------


def running(scheduler: Scheduler) -> tuple[threading.Thread, list[object]]:
    ended: list[object] = []

    def run_it() -> None:
        try:
            ended.append(scheduler.run())
        except BaseException as exc:
            ended.append(exc)

    thread = threading.Thread(target=run_it)
    thread.start()
    return thread, ended


def test_a_database_that_goes_away_and_comes_back(source, bench, postgres):
    name = source.rpartition("/")[2].partition("?")[0]
    schedule(source)
    scheduler = bench(tick=0.05)
    thread, ended = running(scheduler)
    wait_until(lambda: begun(source, "state") == [("succeeded",)])
    age(source, hours=24)
    run(
        postgres.url(),
        f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
    )
    wait_until(lambda: any("is away" in said for said in bench.said))
    run(postgres.url(), f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    wait_until(lambda: any("is back" in said for said in bench.said))
    wait_until(lambda: len(bench.done) == 2)
    scheduler.stop()
    thread.join()
    assert ended == [True]
    assert len([said for said in bench.said if "is away" in said]) == 1


def test_broken_connections_are_opened_anew(source, bench):
    schedule(source)
    scheduler = bench()
    scheduler.turn()
    run(
        source,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'coldstore%' AND datname = current_database()",
    )
    wait_until(lambda: scheduler.idle)
    age(source, hours=24)
    bench.turn(scheduler)
    assert len(bench.done) == 2


def test_after_an_outage_the_others_have_time_to_be_heard_of(source, bench):
    schedule(source)
    dead_run(source, bench)
    scheduler = bench(timeout=60)
    scheduler._away(DatabaseUnreachable("it was away"), 0)
    bench.turn(scheduler)
    assert begun(source, "state") == [("running",)]


def test_without_the_tables_it_does_not_start(empty_database, bench):
    run(empty_database, "CREATE TABLE unrelated ()")
    with pytest.raises(TableMissing, match="scheduled_agents") as caught:
        bench(url=empty_database).run()
    assert "init --reference-schema" in caught.value.hint


def test_without_the_list_it_does_not_start(make_database, bench):
    with pytest.raises(TableMissing, match="no list of runs") as caught:
        bench(url=make_database()).run()
    assert "coldstore init" in caught.value.hint


def test_a_zone_that_is_none(bench):
    with pytest.raises(ConfigError, match="not a time zone"):
        bench(zone="Nowhere")


def test_the_list_in_another_database(source, bench, make_database):
    elsewhere = make_database(empty=True)
    with psycopg.connect(elsewhere, autocommit=True) as conn:
        migrate(conn)
    found = schedule(source)
    scheduler = bench(runs_url=elsewhere)
    bench.turn(scheduler)
    bench.turn(scheduler)
    assert runs(source) == []
    assert [state for state, _ in runs(elsewhere)][-1] == "succeeded"
    assert len(bench.done) == 1
    assert row(source, found)[0] is not None
    run(source, "DELETE FROM scheduled_agents")
    assert scheduler.turn() > 0


def test_a_source_that_takes_no_writes(source, bench, make_database, postgres):
    elsewhere = make_database(empty=True)
    with psycopg.connect(elsewhere, autocommit=True) as conn:
        migrate(conn)
    found = schedule(source)
    reader = f"{source}&options=-c%20default_transaction_read_only%3Don"
    bench.turn(bench(url=reader, runs_url=elsewhere))
    assert [state for state, _ in runs(elsewhere)][-1] == "succeeded"
    assert row(source, found)[0] is None
    assert any("its row does not tell" in said for said in bench.said)


# --- woken -------------------------------------------------------------------------------------------------------------------------


def test_the_trigger_wakes_at_once_and_can_be_removed(source, bench, settings):
    with ColdStore(settings) as store:
        for _ in range(2):
            store.init(schedule_trigger=True)
    scheduler = bench(tick=3600)
    thread, _ = running(scheduler)
    wait_until(lambda: bench.said)
    schedule(source, "nonsense")
    wait_until(lambda: any("not a cron expression" in said for said in bench.said))  # not an hour later
    scheduler.stop()
    thread.join()
    with ColdStore(settings) as store:
        for _ in range(2):
            store.init(schedule_trigger=False)
    assert ask(source, "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'coldstore%'") == [(0,)]
    assert ask(source, "SELECT count(*) FROM pg_proc WHERE proname = 'schedules_changed'") == [(0,)]


def test_what_the_scheduler_writes_wakes_nobody(source, bench, settings):
    with ColdStore(settings) as store:
        store.init(schedule_trigger=True)
    schedule(source)
    with psycopg.connect(source, autocommit=True) as conn:
        conn.execute(f"LISTEN {schedules.CHANNEL}".encode())
        bench.turn(bench())
        assert list(conn.notifies(timeout=0)) == []
        run(source, "UPDATE scheduled_agents SET enabled = false")
        assert len(list(conn.notifies(timeout=5, stop_after=1))) == 1


# --- stopped ----------------------------------------------------------------------------------------------------------------------


def test_what_runs_may_come_to_its_end(source, bench):
    schedule(source)
    gate = Gate()
    scheduler = bench(gate)
    thread, ended = running(scheduler)
    gate.entered.wait()
    scheduler.stop()
    schedule(source)
    gate.open.set()
    thread.join()
    assert ended == [True]
    assert begun(source, "state") == [("succeeded",)]


@pytest.mark.parametrize("listens", [True, False])
def test_or_is_given_up_and_begun_anew_by_another(source, bench, monkeypatch, listens):
    monkeypatch.setattr("coldstore.schedule._ABORT", 5.0 if listens else 0.1)
    schedule(source)
    gate = Gate()
    stuck = threading.Event()
    entered = threading.Event()

    def deaf(_asked, _progress):
        entered.set()
        stuck.wait()

    scheduler = bench(gate if listens else deaf, stop=0.0)
    thread, ended = running(scheduler)
    (gate.entered if listens else entered).wait()
    scheduler.stop()
    thread.join()
    assert ended == [False]
    assert scheduler.idle is listens
    assert begun(source, "state, error, details") == [("failed", "ColdStoreError: stopped before it was done", {"stopped": True})]
    bench.turn(bench())
    assert begun(source, "state, details") == [("succeeded", {"attempts": 2})]
    stuck.set()
    wait_until(lambda: scheduler.idle)


def test_stopped_twice_it_does_not_wait(source, bench):
    schedule(source)
    gate = Gate()
    scheduler = bench(gate, stop=1e6)
    thread, ended = running(scheduler)
    gate.entered.wait()
    scheduler.stop()
    scheduler.stop()
    thread.join()
    assert ended == [False]


# --- real processes ---------------------------------------------------------------------------------------------------------------


def program(source, folder: Path, *arguments: str, code: str = "from coldstore.__main__ import main; main()", **env: str):
    """`coldstore ARGUMENTS` in a process of its own, which `code` may have prepared."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DATABASE_URL": source, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen_to_signals,  # noqa: PLW1509
    )


def test_sigterm_when_nothing_runs(source, tmp_path):
    process = program(source, tmp_path, "scheduler")
    assert "is up" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.communicate() == ("", "")
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_a_snapshot(source, tmp_path, number):
    run(source, SLOW)
    (tmp_path / "coldstore.toml").write_text('[scheduler]\nstop_seconds = 0\n[snapshot]\nframe_mb = 1\n[tiers.slow]\ntable = "slow"\n')
    run(
        source,
        "INSERT INTO daily_memories (uid, date, summary) SELECT 'big', date '2026-01-01', repeat('x', 30000) FROM generate_series(1, 900)",
    )
    schedule(source)
    process = program(source, tmp_path, "scheduler", "--json")
    wait_until(lambda: begun(source, "state") == [("running",)])
    wait_until(lambda: list((tmp_path / "coldstore-data").rglob(".tmp-*")))
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 143, err
    assert '"message":"stopping' in out
    assert "Traceback" not in err
    assert begun(source, "state, error") == [("failed", "ColdStoreError: stopped before it was done")]
    assert list((tmp_path / "coldstore-data").rglob("*.json")) == []


def test_sigterm_lets_a_snapshot_come_to_its_end(source, tmp_path):
    run(source, SLOW.replace("100000", "100"))
    (tmp_path / "coldstore.toml").write_text('[tiers.slow]\ntable = "slow"\n')
    schedule(source)
    process = program(source, tmp_path, "scheduler")
    wait_until(lambda: begun(source, "state") == [("running",)])
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 0
    assert begun(source, "state") == [("succeeded",)]
    assert len([*(tmp_path / "coldstore-data").rglob("*.manifest.json")]) == 1


#: Where the process dies, and what there is when another has taken its place: (attempts, snapshots, whether the slot was taken).
PHASES = {
    "before the claim": ("RunLog.claim = die", None, 0),
    "in the claim, before it counts": (
        "real = heart._ask\nheart._ask = lambda c, t, v: (real(c, t, v), die() if 'INTO coldstore.runs' in t else None)[0]",
        None,
        0,
    ),
    "after the claim": ("Scheduler._start = die", "running", 0),
    "in the snapshot": ("Watch.advance = die", "running", 0),
    "before the end is noted": ("RunHandle.end = die", "running", 1),
    "after the end is noted": ("Scheduler._note = die", "succeeded", 1),
}
KILLED = """
import os, signal
from coldstore.postgres import heart
from coldstore.postgres.runs import RunHandle, RunLog
from coldstore.schedule import Scheduler, Watch
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
{}
from coldstore.__main__ import main
main()
"""


@pytest.mark.parametrize("phase", PHASES)
def test_killed_in_every_phase(source, bench, settings, tmp_path, phase):
    patch, left, written = PHASES[phase]
    found = schedule(source)
    process = program(source, tmp_path, "scheduler", "--store", str(tmp_path / "store"), code=KILLED.format(patch))
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert [state for (state,) in begun(source, "state")] == ([left] if left else [])
    assert len(snapshots(settings)) == written
    wait_until(
        lambda: (
            ask(source, "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'coldstore%' AND datname = current_database()")
            == [(0,)]
        )
    )
    run(source, "UPDATE coldstore.runs SET heartbeat_at = heartbeat_at - interval '1 hour' WHERE state = 'running'")
    scheduler = bench(partial(perform, settings), timeout=0.2)
    bench.turn(scheduler)
    bench.turn(scheduler)
    assert begun(source, "schedule, state, coalesce(details ->> 'attempts', '1')") == [
        (found, "succeeded", "2" if left == "running" else "1")
    ]
    assert len(snapshots(settings)) == written + (left != "succeeded")
    with ColdStore(settings) as store:
        assert all(v.ok for v in store.verify(deep=True))


# --- the command -------------------------------------------------------------------------------------------------------------------


def test_the_list_of_what_comes(source, tmp_path):
    import json

    berlin = schedule(source, "30 2 * * *", '{"action": "snapshot", "zone": "Europe/Berlin"}')
    bad = schedule(source, "nonsense")
    process = program(source, tmp_path, "scheduler", "list", "--json")
    out, err = process.communicate()
    found = {one["id"]: one for one in json.loads(out)}
    assert (process.returncode, err) == (0, "")
    slots = [datetime.fromisoformat(one["utc"]) for one in found[berlin]["next"]]
    assert len(slots) == 3
    assert datetime.now(UTC) < slots[0] < datetime.now(UTC) + timedelta(days=1, hours=1)
    assert all("T02:30:00+0" in one["local"] or "T03:00:00+02" in one["local"] for one in found[berlin]["next"])
    assert (found[bad]["next"], found[bad]["error"]) == ([], "ConfigError: 'nonsense' is not a cron expression")
    process = program(source, tmp_path, "scheduler", "list", "--next", "1")
    out, _ = process.communicate()
    assert berlin in out
    assert out.count("next ") == 1
    run(source, "DELETE FROM scheduled_agents")
    out, _ = program(source, tmp_path, "scheduler", "list").communicate()
    assert out == "No row of scheduled_agents has the surface_id 'cold-store-cron' and is enabled.\n"


def test_it_cannot_do_without_the_list_of_runs(source, tmp_path):
    process = program(source, tmp_path, "scheduler", COLD_STORE_RUNS_LOG="off")
    _, err = process.communicate()
    assert process.returncode == 2
    assert "cannot do without the list of runs" in err
