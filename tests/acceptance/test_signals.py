"""Ctrl-C, SIGTERM and a terminal that hangs up, in the middle of something large: one sentence, the exit code of the signal, and nothing
half-done on either side.

The middle is no matter of luck: a view that sleeps makes a snapshot that cannot end, a column whose check sleeps does the same to a restore.
"""

from __future__ import annotations

import json
import os
import signal
import time

import psycopg
import pytest

from tests.acceptance.conftest import take
from tests.acceptance.program import ask, check_refusal, ended, execute, files, remember, wait_until
from tests.integration.helpers import everything

SLOW_TIER = '[tiers.slow]\ntable = "slow"\n'
SLOW_VIEW = "CREATE VIEW slow AS SELECT n, 'uid_' || n AS uid, pg_sleep(0.02)::text AS nap FROM generate_series(1, 100000) n"
SLOW_TYPE = (
    "CREATE FUNCTION nap(text) RETURNS boolean LANGUAGE sql VOLATILE AS $$ SELECT pg_sleep(0.02)::text = '' $$",
    "CREATE DOMAIN slow_text AS text CHECK (nap(VALUE))",
    "ALTER TABLE daily_memories ALTER COLUMN summary TYPE slow_text",
)
BUSY = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'coldstore%' AND state = 'active' AND query LIKE '{}%'"
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def busy(url: str, with_what: str) -> bool:
    return ask(url, BUSY.format(with_what))[0][0] > 0


def no_connection(url: str) -> bool:
    return ask(url, "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'coldstore%'") == [(0,)]


@pytest.mark.parametrize("number", SIGNALS)
def test_in_the_middle_of_a_snapshot(cold, memory, number):
    remember(memory, "uid_big", days=20_000, padding=1000)
    execute(memory, SLOW_VIEW)
    (cold.folder / "coldstore.toml").write_text(SLOW_TIER)
    store = cold.folder / "coldstore-data"
    before = take(memory, store)
    kept = files(store)
    process = cold.start("snapshot", "--json", env={"DATABASE_URL": memory})
    # The tiers before the slow one, 20 MB, are being written or are written.
    wait_until(lambda: [p for p in store.rglob(".tmp-*") if p.stat().st_size > 10_000_000] and busy(memory, "COPY"), process=process)
    os.killpg(process.pid, number)
    told = check_refusal(ended(process), code=128 + number, error="Interrupted")
    assert "nothing half-done" in told["message"]
    assert files(store) == kept
    assert [i["id"] for i in cold("list", "--json").json] == [before.info.id]
    wait_until(lambda: no_connection(memory))


def test_twice(cold, memory):
    """Somebody who is impatient gets no traceback either."""
    execute(memory, SLOW_VIEW)
    (cold.folder / "coldstore.toml").write_text(SLOW_TIER)
    process = cold.start("snapshot", env={"DATABASE_URL": memory})
    wait_until(lambda: busy(memory, "COPY"), process=process)
    for _ in range(3):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    told = ended(process)
    assert told.code == 130
    assert [line.partition(":")[0] for line in told.err.splitlines()] == ["error", "hint"]
    assert cold("list", "--json").json == []


def test_in_the_middle_of_every_user(cold, memory):
    """Who was written is whole, who was not is not there."""
    users = 5000
    execute(memory, f"INSERT INTO daily_memories (uid, date) SELECT 'uid_' || n, '2026-01-01' FROM generate_series(1, {users}) n")
    store = cold.folder / "coldstore-data"
    process = cold.start("snapshot", "--each-user", "--json", env={"DATABASE_URL": memory})
    wait_until(lambda: list(store.rglob("*.manifest.json")), process=process)
    os.killpg(process.pid, signal.SIGINT)
    check_refusal(ended(process), code=130, error="Interrupted")
    assert not list(store.rglob(".tmp-*"))
    found = cold("list", "--json").json
    assert 0 < len(found) < users
    assert {p.name for p in store.rglob("memory-*.json") if "manifest" not in p.name} == {f"{i['id']}.json" for i in found}
    assert cold("verify", "--all", "--deep", "--json").json["ok"]


@pytest.mark.parametrize("number", SIGNALS)
def test_while_a_restore_loads(cold, memory, make_database, number):
    remember(memory, "uid_big", days=5000, padding=1000)
    take(memory, cold.folder / "coldstore-data")
    target = make_database()
    execute(target, *SLOW_TYPE)
    before = everything(target)
    process = cold.start("restore", "--to", target, "--json")
    wait_until(lambda: busy(target, "COPY"), process=process)
    os.killpg(process.pid, number)
    check_refusal(ended(process), code=128 + number, error="Interrupted")
    wait_until(lambda: no_connection(target))
    assert everything(target) == before


@pytest.mark.parametrize("number", SIGNALS[:2])
def test_while_a_restore_waits_to_publish(cold, stored, make_database, number):
    """Somebody writes to the table; the restore waits for them at its last step."""
    target = make_database()
    before = everything(target)
    with psycopg.connect(target) as somebody:
        somebody.execute("LOCK TABLE daily_memories IN ROW EXCLUSIVE MODE")
        process = cold.start("restore", "--to", target, "--json")
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'coldstore%' AND wait_event_type = 'Lock'"
        wait_until(lambda: ask(target, waiting)[0][0], process=process)
        os.killpg(process.pid, number)
        check_refusal(ended(process), code=128 + number, error="Interrupted")
        wait_until(lambda: no_connection(target))
    assert everything(target) == before


def test_while_a_restore_into_nothing_loads(cold, memory, target):
    """Tables, types and extensions that it would have made are not there."""
    remember(memory, "uid_big", days=20_000, padding=2000)
    take(memory, cold.folder / "coldstore-data")
    before = everything(target)
    process = cold.start("restore", "--to", target, "--json")
    wait_until(lambda: busy(target, "COPY"), process=process)
    os.killpg(process.pid, signal.SIGTERM)
    check_refusal(ended(process), code=143, error="Interrupted")
    wait_until(lambda: no_connection(target))
    assert everything(target) == before


def test_a_restore_that_was_killed_outright_is_swept_by_the_next(cold, memory, make_database):
    remember(memory, "uid_big", days=5000, padding=1000)
    take(memory, cold.folder / "coldstore-data")
    target = make_database()
    execute(target, *SLOW_TYPE)
    before = everything(target)
    process = cold.start("restore", "--to", target)
    wait_until(lambda: busy(target, "COPY"), process=process)
    os.killpg(process.pid, signal.SIGKILL)
    assert ended(process).code == -signal.SIGKILL
    assert everything(target)["rows"].items() >= before["rows"].items()
    execute(target, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'coldstore%'")
    wait_until(lambda: no_connection(target))
    cold("restore", "--uid", "uid_alice", "--to", target)
    schemas = json.dumps(ask(target, "SELECT nspname FROM pg_namespace"))
    assert "coldstore_restore" not in schemas
    assert ask(target, "SELECT DISTINCT uid FROM daily_memories") == [("uid_alice",)]
