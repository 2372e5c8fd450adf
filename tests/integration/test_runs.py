"""The list of runs: a row for each execution, in transactions of its own, true also of those that died; and never worth a backup."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import psycopg
import pytest

from coldstore.app import ColdStore
from coldstore.config import build
from coldstore.errors import (
    ColdStoreError,
    ConfigError,
    DatabaseError,
    DatabaseUnreachable,
    NotFound,
    ObjectMissing,
    PermissionDenied,
    StoreFull,
    SuspectSnapshot,
    TableMissing,
)
from coldstore.postgres.embedded import EmbeddedPostgres
from coldstore.postgres.migrate import migrate
from coldstore.postgres.runs import RunLog
from coldstore.tiers import EVERYBODY, Scope
from tests.integration.helpers import Notes, ask, run

SLOT = datetime(2026, 2, 26, 2, tzinfo=UTC)
SECRET = "hiddenWord-7f3a"
SLOW = "CREATE VIEW slow AS SELECT n, 'uid_' || n AS uid, pg_sleep(0.02)::text AS nap FROM generate_series(1, 100000) n"


def fill(url: str, *uids: str) -> None:
    for uid in uids:
        run(url, f"INSERT INTO daily_memories (uid, date) SELECT '{uid}', date '2026-01-01' + n FROM generate_series(1, 3) n")


def with_list(url: str) -> str:
    with psycopg.connect(url, autocommit=True) as conn:
        migrate(conn)
    return url


@pytest.fixture
def source(database) -> str:
    """Two users' memory and a list of runs."""
    fill(database, "alice", "bob")
    return with_list(database)


@pytest.fixture
def opened(tmp_path):
    """`opened(url, …settings)` is a ColdStore on one and the same folder."""
    made = []

    def make(url, *, trigger="api", **settings) -> ColdStore:
        made.append(ColdStore(build({"path": str(tmp_path / "store"), **settings}, {"database_url": url}), trigger=trigger))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def log(source):
    found = RunLog(source, interval=0.02)
    yield found
    found.close()


def rows(url: str) -> list[dict]:
    """What the table says, oldest first, read by nothing of ours."""
    with psycopg.connect(url, autocommit=True, row_factory=psycopg.rows.dict_row) as conn:
        return conn.execute("SELECT * FROM coldstore.runs ORDER BY started_at, id").fetchall()


def wait_until(condition) -> None:
    while not condition():
        time.sleep(0.01)


class Bursting(Notes):
    """A progress with a surprise in it, after some calls."""

    def __init__(self, surprise: BaseException, *, calls: int = 0) -> None:
        super().__init__()
        self._surprise, self._calls = surprise, calls

    def advance(self, *, rows: int = 0, size: int = 0) -> None:
        if self._calls == 0:
            raise self._surprise
        self._calls -= 1


# --- what is written ---------------------------------------------------------------------------------------------------------------


def test_a_snapshot(source, opened):
    store = opened(source, trigger="cli")
    info = store.snapshot(uid="alice", label="before")
    (row,) = rows(source)
    assert {n: row[n] for n in ("kind", "trigger", "scope", "uid", "workspace", "state", "schedule", "slot", "error")} == {
        "kind": "snapshot",
        "trigger": "cli",
        "scope": "uid",
        "uid": "alice",
        "workspace": None,
        "state": "succeeded",
        "schedule": None,
        "slot": None,
        "error": None,
    }
    assert (row["snapshot_id"], row["rows"], row["bytes"], row["details"]) == (info.id, 3, info.bytes, {"label": "before"})
    assert row["started_at"] < row["finished_at"] == row["heartbeat_at"]


def test_each_of_the_others(source, opened, make_database, postgres):
    store = opened(source)
    info = store.snapshot()
    target = make_database(empty=True)
    store.restore(to=target, dry_run=True)
    store.restore(to=target, uid="bob")
    store.verify(deep=True)
    store.drill(to=postgres.url())
    one = store.snapshot(workspace="w", allow_empty=True)
    store.delete([one.id])
    users = [i.id for i in store.snapshot_each_user()]
    store.delete([info.id, *users])
    found = [(r["kind"], r["scope"], r["state"], r["snapshot_id"], r["rows"]) for r in rows(source)]
    assert found == [
        ("snapshot", "all", "succeeded", info.id, 6),
        ("restore", "all", "succeeded", info.id, None),
        ("restore", "uid", "succeeded", info.id, 3),
        ("verify", "all", "succeeded", None, 6),
        ("drill", "all", "succeeded", info.id, None),
        ("snapshot", "workspace", "succeeded", one.id, 0),
        ("delete", "all", "succeeded", one.id, None),
        ("snapshot", "all", "succeeded", None, 6),
        ("delete", "all", "succeeded", None, None),
    ]
    details = {r["kind"]: r["details"] for r in rows(source) if r["kind"] != "restore"}
    assert (details["verify"], details["drill"]) == ({"deep": True, "states": {"ok": 1}}, {"proven": True})
    dry, real = [r["details"] for r in rows(source) if r["kind"] == "restore"]
    assert (dry["dryRun"], "dryRun" in real, real["mode"], real["verified"]) == (True, False, "fresh", "content")
    assert real["target"].endswith(target.rpartition("/")[2].partition("?")[0])


def test_every_user_is_one_run(source, opened):
    done = list(opened(source).snapshot_each_user())
    (row,) = rows(source)
    assert (row["scope"], row["state"], row["rows"], row["bytes"]) == ("all", "succeeded", 6, sum(i.bytes for i in done))
    assert row["details"] == {"each": "user", "users": 2, "suspects": {}}


def test_every_user_until_somebody_lost_interest(source, opened):
    found = opened(source).snapshot_each_user()
    next(found)
    found.close()
    (row,) = rows(source)
    assert (row["state"], row["error"], row["details"]["users"], row["rows"]) == ("failed", "interrupted", 1, 3)


def test_every_user_and_what_is_wrong_with_some(source, opened):
    run(source, "INSERT INTO daily_memories (uid, date) SELECT 'alice', date '2027-01-01' + n FROM generate_series(1, 200) n")
    store = opened(source)
    list(store.snapshot_each_user())
    run(source, "DELETE FROM daily_memories WHERE uid = 'alice' AND date > '2026-01-02'")
    with pytest.raises(SuspectSnapshot):
        list(store.snapshot_each_user())
    row = rows(source)[-1]
    assert (row["state"], row["details"]["users"], list(row["details"]["suspects"])) == ("failed", 2, ["alice"])
    assert "203" in row["details"]["suspects"]["alice"]


def test_a_suspect_snapshot_failed_and_is_named(source, opened):
    store = opened(source)
    store.snapshot()
    run(source, "DELETE FROM daily_memories")
    with pytest.raises(SuspectSnapshot) as caught:
        store.snapshot()
    row = rows(source)[-1]
    assert (row["state"], row["error"]) == ("failed", f"SuspectSnapshot: {caught.value}")
    assert row["snapshot_id"] in str(caught.value)


def test_damage_and_what_is_not_proven_are_failures(source, opened, tmp_path, postgres):
    store = opened(source)
    good, bad = store.snapshot(uid="alice"), store.snapshot(uid="bob")
    document = tmp_path / "store" / bad.path
    document.write_bytes(document.read_bytes()[:-1])
    assert [v.ok for v in store.verify()].count(False) == 1
    row = rows(source)[-1]
    assert (row["state"], row["error"], row["details"]) == (
        "failed",
        "VerifyFailed: 1 of 2 snapshots are not good",
        {"states": {"ok": 1, "damaged": 1}},
    )
    store.settings.assertions = build({"assertions": [{"name": "never", "sql": "SELECT false"}]}, {}).assertions
    assert not store.drill(good.id, to=postgres.url()).proven
    row = rows(source)[-1]
    assert (row["state"], row["snapshot_id"], row["details"]) == ("failed", good.id, {"proven": False})
    assert row["error"].startswith("VerifyFailed: not proven: ")


@pytest.mark.parametrize(
    ("surprise", "says"),
    [
        (StoreFull("no room"), "StoreFull: no room"),
        (RuntimeError(f"cannot reach postgresql://u:{SECRET}@h/d"), "RuntimeError: cannot reach postgresql://u:***@h/d"),
        (ValueError("a\0b\udcff"), "ValueError: a\\x00b\\udcff"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(3), "interrupted"),
    ],
)
def test_how_it_failed(source, opened, surprise, says):
    with pytest.raises(type(surprise)):
        opened(source).snapshot(progress=Bursting(surprise))
    (row,) = rows(source)
    assert (row["state"], row["error"], row["snapshot_id"], row["rows"]) == ("failed", says, None, None)


@pytest.mark.parametrize(
    "to",
    [
        f"postgresql://u:{SECRET}@127.0.0.1:1/elsewhere",
        f"postgresql://u:a@b{SECRET}@127.0.0.1:1/elsewhere",
        f"postgresql://u:a/{SECRET}@127.0.0.1:1/elsewhere",
        f"host=127.0.0.1 port=1 password='{SECRET}'",
        f"postgresql://[{SECRET}",
    ],
)
def test_no_secret_of_a_target_is_written(source, opened, to):
    store = opened(source)
    store.snapshot()
    with pytest.raises(ColdStoreError):
        store.restore(to=to)
    row = rows(source)[-1]
    assert (row["kind"], row["state"]) == ("restore", "failed")
    assert row["details"]["target"]
    assert SECRET not in repr(row)


def test_what_cannot_begin_is_written_too(source, opened):
    store = opened(source)
    with pytest.raises(NotFound):
        store.restore(to=source)
    with pytest.raises(NotFound):
        store.snapshot(uid="nobody")
    with pytest.raises(NotFound):
        store.delete(["memory-all-1"])
    assert [(r["kind"], r["state"], r["error"].partition(":")[0]) for r in rows(source)] == [
        ("restore", "failed", "NotFound"),
        ("snapshot", "failed", "NotFound"),
        ("delete", "failed", "NotFound"),
    ]


def test_looking_is_no_run(source, opened):
    store = opened(source)
    info = store.snapshot()
    list(store.list_snapshots())
    store.manifest(info.id)
    b"".join(store.stored_document(info.id).chunks())
    assert len(rows(source)) == 1


# --- one run around another's work -------------------------------------------------------------------------------------------------


def test_work_inside_a_run_is_that_run(source, opened):
    store = opened(source)
    with store.runs.begin("snapshot", trigger="schedule", scope=Scope.user("alice"), schedule="nightly", slot=SLOT) as begun:
        info = store.snapshot(uid="alice")
    (row,) = rows(source)
    assert (str(row["id"]), row["trigger"], row["schedule"], row["slot"]) == (begun.id, "schedule", "nightly", SLOT)
    assert (row["state"], row["snapshot_id"], row["rows"]) == ("succeeded", info.id, 3)
    store.snapshot()
    assert len(rows(source)) == 2


def test_another_thread_is_not_inside(source, opened):
    store = opened(source)
    with store.runs.begin("drill", trigger="http", scope=EVERYBODY):
        other = threading.Thread(target=store.snapshot)
        other.start()
        other.join()
    assert [(r["kind"], r["trigger"]) for r in rows(source)] == [("drill", "http"), ("snapshot", "api")]


def test_a_consumer_of_every_user_is_not_inside(source, opened):
    store = opened(source)
    for info in store.snapshot_each_user():
        store.verify(info.id)
    assert sorted(r["kind"] for r in rows(source)) == ["snapshot", "verify", "verify"]


@pytest.mark.parametrize("way", ["skipped", "failed", "raised", "nothing"])
def test_the_outcomes_of_a_run(log, source, way):
    begun = log.begin("prune", trigger="api", scope=EVERYBODY, details={"why": "a\0"})
    try:
        with begun as handle:
            if way == "skipped":
                handle.skipped(f"too late for token={SECRET}")
            elif way == "failed":
                handle.failed(ObjectMissing("gone"))
            elif way == "raised":
                handle.succeeded(rows=7, details={"more": 1})
                {}["x"]
    except KeyError:
        assert way == "raised"
    begun.end(RuntimeError("it is over"))
    (row,) = rows(source)
    states = {"skipped": "skipped", "failed": "failed", "raised": "failed", "nothing": "succeeded"}
    errors = {"skipped": "too late for token=***", "failed": "ObjectMissing: gone", "raised": "KeyError: 'x'", "nothing": None}
    assert (row["state"], row["error"], row["rows"]) == (states[way], errors[way], 7 if way == "raised" else None)
    assert row["details"]["why"] == "a\\x00"
    assert begun.trouble is None


# --- slots -------------------------------------------------------------------------------------------------------------------------


def test_a_slot_is_taken_once(log):
    def take(**more):
        wish = {"kind": "snapshot", "scope": EVERYBODY, "schedule": "nightly", "slot": SLOT, **more}
        return log.begin(trigger="schedule", **wish)

    with take() as first:
        assert take() is None
        first.failed(StoreFull("no room"))
    assert take() is None
    assert take(kind="drill", scope=Scope.user("alice")) is None  # the schedule's slot, whatever it is for
    for other in ({"schedule": "other"}, {"slot": SLOT.replace(day=27)}):
        with take(**other):
            pass
    assert log.last_slot("nightly") == SLOT.replace(day=27)
    assert log.last_slot("never") is None


TAKER = """
import sys
from datetime import UTC, datetime, timedelta
from coldstore.postgres.runs import RunLog
from coldstore.tiers import EVERYBODY
log = RunLog(sys.argv[1])
log.look()
print("ready", flush=True)
sys.stdin.readline()
for n in range(100):
    run = log.begin("snapshot", trigger="schedule", scope=EVERYBODY, schedule="s", slot=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=n))
    if run:
        print(n, flush=True)
        run.end()
"""


def test_processes_share_the_slots(source):
    takers = [
        subprocess.Popen([sys.executable, "-c", TAKER, source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for taker in takers:
        assert taker.stdout.readline() == "ready\n"
    for taker in takers:
        taker.stdin.write("go\n")
        taker.stdin.flush()
    taken = [int(n) for taker in takers for n in taker.communicate()[0].split()]
    assert sorted(taken) == list(range(100))
    assert len(rows(source)) == 100


# --- life and death ----------------------------------------------------------------------------------------------------------------


def age(url: str) -> None:
    run(
        url,
        "UPDATE coldstore.runs SET started_at = now() - interval '1 hour', heartbeat_at = now() - interval '30 minutes' WHERE state = 'running'",
    )


def is_fresh(url: str) -> bool:
    return ask(url, "SELECT bool_and(heartbeat_at > now() - interval '5 minutes') FROM coldstore.runs WHERE state = 'running'") == [(True,)]


def test_a_run_that_lasts_gives_signs_of_life(source, log):
    with log.begin("snapshot", trigger="api", scope=EVERYBODY), log.begin("drill", trigger="api", scope=EVERYBODY):
        age(source)
        wait_until(lambda: is_fresh(source))
        assert log.reap() == 0
    assert {r["state"] for r in rows(source)} == {"succeeded"}


def test_a_short_run_has_no_heartbeat(source):
    log = RunLog(source)
    with log.begin("snapshot", trigger="api", scope=EVERYBODY):
        found = ask(
            source, "SELECT application_name FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'cold%'"
        )
    log.close()
    assert found == [("coldstore runs",)]


def test_nothing_beats_where_nothing_runs(source, log):
    def beating():
        return [t for t in threading.enumerate() if t.name == "coldstore-heart"]

    before = set(beating())
    for _ in range(2):  # it comes back, too
        with log.begin("verify", trigger="api", scope=EVERYBODY):
            age(source)
            wait_until(lambda: is_fresh(source))
            assert len(set(beating()) - before) == 1
        wait_until(lambda: not set(beating()) - before)
    wait_until(
        lambda: ask(source, "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE '%heartbeat'") == []
    )


def test_killed_in_the_middle_of_a_snapshot(source, log, tmp_path):
    run(source, SLOW)
    (tmp_path / "coldstore.toml").write_text('[tiers.slow]\ntable = "slow"\n')
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COLD_STORE_")} | {"DATABASE_URL": source}
    process = subprocess.Popen([sys.executable, "-m", "coldstore", "snapshot"], cwd=tmp_path, env=environment)
    wait_until(lambda: rows(source) and ask(source, "SELECT FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'COPY%'"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert log.reap() == 0  # it may still be there, for all one knows
    age(source)
    assert (log.reap(), log.reap()) == (1, 0)
    (row,) = rows(source)
    assert (row["state"], row["trigger"], row["details"]) == ("failed", "cli", {"reaped": True})
    assert row["finished_at"] == row["heartbeat_at"]
    assert row["error"] == f"no sign of life since {row['heartbeat_at'].astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


@pytest.mark.parametrize("ending", ["well", "badly"])
def test_what_was_reaped_stays_so_and_says_how_it_really_ended(source, opened, ending):
    store, reaper = opened(source), RunLog(source)

    class Late(Notes):
        def advance(self, *, rows: int = 0, size: int = 0) -> None:
            age(source)
            assert reaper.reap() == 1
            if ending == "badly":
                raise StoreFull("no room")

    run(source, "DELETE FROM daily_memories WHERE uid = 'bob' OR date > '2026-01-02'")  # one row: one step
    notes = Late()
    if ending == "well":
        info = store.snapshot(uid="alice", progress=notes)
    else:
        with pytest.raises(StoreFull):
            store.snapshot(uid="alice", progress=notes)
    reaper.close()
    (row,) = rows(source)
    assert (row["state"], row["snapshot_id"], row["error"][:20]) == ("failed", None, "no sign of life sinc")
    late = row["details"]["late"]
    assert datetime.fromisoformat(late.pop("at"))
    if ending == "well":
        assert late == {"state": "succeeded", "snapshotId": info.id, "rows": 1, "bytes": info.bytes}
        assert notes.notes == ["the list of runs has this one as dead: it gave no sign of life for too long"]
    else:
        assert (late, notes.notes) == ({"state": "failed", "error": "StoreFull: no room"}, [])


def test_connections_that_break_in_the_middle_come_back(source, log):
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'coldstore%'"
    )
    with log.begin("snapshot", trigger="api", scope=EVERYBODY) as begun:
        age(source)
        wait_until(lambda: is_fresh(source))
        assert len(ask(source, kill)) == 2
        age(source)
        wait_until(lambda: is_fresh(source))
        run(source, kill)
    assert begun.trouble is None
    (row,) = rows(source)
    assert row["state"] == "succeeded"
    run(source, kill)
    assert log.begin("drill", trigger="api", scope=EVERYBODY)


def test_a_list_that_goes_away_costs_a_note(source, opened, make_database, postgres):
    elsewhere = with_list(make_database(empty=True))

    class Gone(Notes):
        def start(self, what: str, *, total_bytes: int | None = None) -> None:
            postgres.dropdb(elsewhere.rpartition("/")[2].partition("?")[0])

    notes = Gone()
    info = opened(source, runs_url=elsewhere).snapshot(progress=notes)
    assert info.rows["daily_memories"] == 6
    (note,) = notes.notes
    assert note.startswith("how this run ended is not in the list of runs: cannot connect to ")
    assert "does not exist" in note


def test_a_list_that_somebody_locked_holds_nothing_up(source, opened):
    notes = Notes()
    with psycopg.connect(source) as somebody:
        somebody.execute("LOCK TABLE coldstore.runs IN ACCESS EXCLUSIVE MODE")
        opened(source).snapshot(progress=notes)
    assert "statement timeout" in notes.notes[0]
    assert rows(source) == []


# --- where the list is, and whether it must be ---------------------------------------------------------------------------------------


def test_no_list_is_nothing_to_speak_of(database, opened):
    fill(database, "alice")
    notes = Notes()
    store = opened(database)
    store.snapshot(progress=notes)
    assert notes.notes == []
    assert ask(database, "SELECT to_regnamespace('coldstore')") == [(None,)]
    store.init()  # and from now on there is one
    store.snapshot(progress=notes)
    assert (len(rows(database)), notes.notes) == (1, [])


def test_off(source, opened):
    opened(source, runs_log="off").snapshot()
    assert rows(source) == []


def test_in_another_database(database, opened, make_database):
    fill(database, "alice")
    elsewhere = with_list(make_database(empty=True))
    store = opened(database, runs_url=elsewhere, runs_log="required")
    info = store.snapshot()
    assert [r["snapshot_id"] for r in rows(elsewhere)] == [info.id]
    assert ask(database, "SELECT to_regnamespace('coldstore')") == [(None,)]


def test_a_restore_needs_no_source(source, opened, make_database):
    opened(source).snapshot()
    gone = opened("postgresql://nobody@127.0.0.1:1/gone")
    notes = Notes()
    gone.restore(to=make_database(empty=True), progress=notes)
    assert [n.partition(": ")[0] for n in notes.notes] == ["this run is not in the list of runs"]
    opened(None).restore(to=make_database(empty=True), progress=notes)
    assert len(notes.notes) == 1


def test_an_error_is_told_alone(opened):
    """That the list could not be reached either is no news."""
    notes = Notes()
    with pytest.raises(DatabaseUnreachable):
        opened("postgresql://nobody@127.0.0.1:1/gone").snapshot(progress=notes)
    assert notes.notes == []


@pytest.mark.parametrize(
    ("prepare", "error"),
    [
        ("DROP SCHEMA coldstore CASCADE", TableMissing),
        ("ALTER DATABASE {database} SET default_transaction_read_only = on", DatabaseError),
    ],
)
def test_required_means_before_anything_starts(source, opened, tmp_path, prepare, error):
    run(source, prepare.format(database=ask(source, "SELECT quote_ident(current_database())")[0][0]))
    store = opened(source, runs_log="required")
    for operation in (store.snapshot, store.verify, lambda: list(store.snapshot_each_user())):
        with pytest.raises(error) as caught:
            operation()
        assert caught.value.hint
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store").rglob("*.json"))


def test_required_and_nowhere(opened):
    with pytest.raises(ConfigError, match="no database"):
        opened(None, runs_log="required").verify()


@pytest.fixture
def reader(source):
    """The URL of a role that may read memory, and nothing else."""
    name = f"reader_{uuid.uuid4().hex[:8]}"
    run(source, f"CREATE ROLE {name}", f"GRANT USAGE ON SCHEMA public TO {name}", f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}")
    yield f"{source}&options=-crole%3D{name}"
    run(source, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def test_a_role_that_may_not_write(source, reader, opened):
    notes = Notes()
    opened(reader).snapshot(progress=notes)
    (note,) = notes.notes
    assert note.startswith("this run is not in the list of runs: permission denied")
    with pytest.raises(PermissionDenied):
        opened(reader, runs_log="required").snapshot()
    opened(reader, runs_url=source, runs_log="required").snapshot(progress=notes)
    assert (len(rows(source)), len(notes.notes)) == (1, 1)


@pytest.fixture
def standby():
    """A server that only follows: its URL. It has memory and a list, from before."""
    folder = Path(tempfile.gettempdir()) / f"standby-{uuid.uuid4().hex}"
    server = EmbeddedPostgres(folder)
    try:
        with server:
            url = with_list(server.createdb("m"))
            run(url, "CREATE TABLE notes (uid text)", "INSERT INTO notes VALUES ('alice')")
        (folder / "standby.signal").touch()
        with server:
            yield server.url("m")
    finally:
        shutil.rmtree(folder)


def test_a_standby(standby, opened, source):
    tiers = {n: {"enabled": False} for n in ("daily_memories", "graph_entities", "procedural_memory")} | {"notes": {}}
    notes = Notes()
    assert ask(standby, "SELECT pg_is_in_recovery()") == [(True,)]
    opened(standby, tiers=tiers).snapshot(progress=notes)
    assert notes.notes == []
    info = opened(standby, tiers=tiers, runs_url=source).snapshot(progress=notes)
    assert ([r["snapshot_id"] for r in rows(source)], notes.notes) == ([info.id], [])
    opened(standby, tiers=tiers, runs_url=standby).snapshot(progress=notes)
    assert "takes no writes" in notes.notes[0]
    with pytest.raises(DatabaseError, match="takes no writes") as caught:
        opened(standby, tiers=tiers, runs_log="required").snapshot()
    assert "COLD_STORE_RUNS_URL" in caught.value.hint


def test_a_list_of_an_older_coldstore(source, log):
    run(
        source,
        "ALTER TABLE coldstore.runs DROP CONSTRAINT runs_kind_known",
        "ALTER TABLE coldstore.runs ADD CONSTRAINT runs_kind_known CHECK (kind IN ('snapshot'))",
    )
    with pytest.raises(ConfigError, match="older") as caught:
        log.begin("delete", trigger="api", scope=EVERYBODY)
    assert "coldstore init" in caught.value.hint


# --- reading it --------------------------------------------------------------------------------------------------------------------


def test_the_list_and_its_pages(source, log):
    for n in range(7):
        with log.begin("snapshot" if n % 2 else "verify", trigger="api", scope=Scope.user(f"u{n % 3}")) as begun:
            if n == 4:
                begun.failed(StoreFull("no room"))
    run(source, "UPDATE coldstore.runs SET started_at = (SELECT min(started_at) FROM coldstore.runs) WHERE uid <> 'u0'")  # ties
    everything = log.list()
    assert [r.id for r in everything] == [str(r["id"]) for r in reversed(rows(source))]
    pages, last = [], None
    while page := log.list(limit=2, before=last):
        pages += page
        last = page[-1].id
    assert pages == everything
    assert {r.kind for r in log.list(kind="verify")} == {"verify"}
    assert [r.error for r in log.list(state="failed")] == ["StoreFull: no room"]
    assert {r.uid for r in log.list(uid="u1")} == {"u1"}
    assert len(log.list(kind="snapshot", state="succeeded", uid="u0", limit=1)) == 1


def test_one_of_the_list(source, log):
    with log.begin("restore", trigger="http", scope=Scope.of_workspace("acme"), schedule="nightly", slot=SLOT, details={"n": 1}) as begun:
        under_way = log.get(begun.id)
    assert (under_way.state, under_way.finished_at, under_way.seconds) == ("running", None, None)
    done = msgspec.json.decode(msgspec.json.encode(log.get(begun.id)))
    assert done["slot"] == "2026-02-26T02:00:00Z"
    assert done["seconds"] > 0
    assert {n: done[n] for n in ("id", "scope", "workspace", "snapshotId", "details")} == {
        "id": begun.id,
        "scope": "workspace",
        "workspace": "acme",
        "snapshotId": None,
        "details": {"n": 1},
    }
    for nobody in (str(uuid.uuid4()), "no id at all"):
        with pytest.raises(NotFound):
            log.get(nobody)
        with pytest.raises(NotFound):
            log.list(before=nobody)


def test_no_list_to_read(database):
    log = RunLog(database)
    for question in (log.list, log.reap, lambda: log.last_slot("x"), lambda: log.get(str(uuid.uuid4()))):
        with pytest.raises(TableMissing) as caught:
            question()
        assert "coldstore init" in caught.value.hint
    log.close()
