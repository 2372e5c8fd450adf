"""A document is one moment, whatever writers do meanwhile. The snapshot is held up on purpose until the writers have done more, so that
they are always in the middle of it and no test depends on how fast anything is."""

from __future__ import annotations

import itertools
import json
import threading
from contextlib import nullcontext, suppress

import psycopg
import pytest

from coldstore.catalog import manifests
from coldstore.documents import StoredDocument
from coldstore.errors import DatabaseError
from coldstore.export import ExportOptions, snapshot
from coldstore.postgres import source as source_module
from coldstore.storage.open import open_store
from coldstore.tiers import Scope
from tests.integration.helpers import ask, bring_back, rows_of, run, source_of, take, take_each_user, tier

ROWS = 3000
MOVING = [
    "CREATE TABLE hot (id int PRIMARY KEY, uid text, version int, body text)",
    "CREATE TABLE cold (LIKE hot INCLUDING ALL)",
    "CREATE TABLE balance (uid text PRIMARY KEY, amount int)",
    f"INSERT INTO hot SELECT g, 'u' || g % 5, 0, repeat(md5(g::text), 20) FROM generate_series(1, {ROWS}) g",
    "INSERT INTO balance SELECT 'u' || g, 100 FROM generate_series(0, 4) g",
]
TIERS = [tier("hot"), tier("cold"), tier("balance")]
WAITING = "SELECT 1 FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


class Writers:
    """Threads that run `step(conn, number)` until they are stopped, each step one transaction."""

    def __init__(self, url, step, count=2):
        self._url, self._step = url, step
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self.done = 0
        self.errors = []
        self._numbers = itertools.count()
        self._threads = [threading.Thread(target=self._work) for _ in range(count)]

    def _work(self):
        try:
            with psycopg.connect(self._url, autocommit=True) as conn:
                while not self._stop.is_set():
                    try:
                        with conn.transaction():
                            self._step(conn, next(self._numbers))
                    except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure):
                        continue
                    with self._changed:
                        self.done += 1
                        self._changed.notify_all()
        except Exception as exc:
            self.errors.append(exc)
            with self._changed:
                self._changed.notify_all()

    def wait_for(self, more):
        """Until so many further transactions are committed."""
        with self._changed:
            wanted = self.done + more
            self._changed.wait_for(lambda: self.done >= wanted or self.errors)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        self.wait_for(3)
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self.errors, self.errors


class HeldUp:
    """A progress that lets the writers go on between the batches of rows."""

    def __init__(self, writers, *, more=5, times=15):
        self._writers, self._more, self._left = writers, more, times

    def start(self, what, *, total_bytes=None):
        self._writers.wait_for(self._more)

    def advance(self, *, rows=0, size=0):
        if self._left:
            self._left -= 1
            self._writers.wait_for(self._more)

    def note(self, sentence):
        pass


def move_rows(conn, number):
    """A few rows from one tier into the other, and money from one user to another: what is nowhere lost."""
    origin, goal = [("hot", "cold"), ("cold", "hot")][number % 3 == 0]
    conn.execute(
        f"WITH gone AS (DELETE FROM {origin} WHERE id IN (SELECT id FROM {origin} ORDER BY random() LIMIT 20 FOR UPDATE SKIP LOCKED) RETURNING *)"
        f" INSERT INTO {goal} SELECT id, uid, version + 1, body FROM gone"
    )
    conn.execute("UPDATE balance SET amount = amount - 1 WHERE uid = %s", (f"u{number % 5}",))
    conn.execute("UPDATE balance SET amount = amount + 1 WHERE uid = %s", (f"u{(number + 1) % 5}",))


def whole(document):
    """The document's rows, checked to be one moment."""
    found = {a: [json.loads(r) for r in rows] for a, rows in rows_of(document).items()}
    ids = sorted(r["id"] for a in ("hot", "cold") for r in found[a])
    assert ids == list(range(1, ROWS + 1))
    assert sum(r["amount"] for r in found["balance"]) == 500
    return found


@pytest.mark.parametrize("readers", [1, 4])
def test_rows_that_move_between_tiers_are_there_exactly_once(make_database, store, readers):
    url = make_database(empty=True)
    run(url, *MOVING)
    versions = set()
    with Writers(url, move_rows) as writers:
        for _ in range(3):
            before = writers.done
            document = take(url, store, TIERS, progress=HeldUp(writers), readers=readers, frame_size=32 << 10)
            assert writers.done - before >= 50
            assert len(document.manifest.frames) > 30
            found = whole(document)
            versions.add(max(r["version"] for a in ("hot", "cold") for r in found[a]))
    assert len(versions) > 1
    target = make_database(empty=True)
    bring_back(document, target)
    assert ask(target, "SELECT (SELECT count(*) FROM hot) + (SELECT count(*) FROM cold)") == [(ROWS,)]


def test_the_same_rows_read_without_one_moment_would_be_torn(make_database):
    """The test above can fail: plain reads, chunk by chunk, lose or double rows under these writers."""
    url = make_database(empty=True)
    run(url, *MOVING)
    with Writers(url, move_rows) as writers, psycopg.connect(url, autocommit=True) as conn:
        for _ in range(20):
            seen = [i for (i,) in conn.execute("SELECT id FROM hot").fetchall()]
            writers.wait_for(10)
            seen += [i for (i,) in conn.execute("SELECT id FROM cold").fetchall()]
            if sorted(seen) != list(range(1, ROWS + 1)):
                return
    pytest.fail("the writers never came between two reads")


def test_each_users_documents_are_one_moment(make_database, store):
    url = make_database(empty=True)
    run(url, *MOVING)
    with Writers(url, move_rows) as writers:
        before = writers.done
        documents = take_each_user(url, store, TIERS, progress=HeldUp(writers), frame_size=32 << 10)
        assert writers.done - before >= 50
    assert len({d.manifest.database.snapshot for d in documents}) == 1
    found = [rows_of(d) for d in documents]
    ids = sorted(json.loads(r)["id"] for rows in found for a in ("hot", "cold") for r in rows[a])
    assert ids == list(range(1, ROWS + 1))
    assert sum(json.loads(r)["amount"] for rows in found for r in rows["balance"]) == 500


def test_one_users_document_is_one_moment(make_database, store):
    url = make_database(empty=True)
    run(url, *MOVING)
    mine = sorted(i for (i,) in ask(url, "SELECT id FROM hot WHERE uid = 'u1'"))
    with Writers(url, move_rows) as writers:
        for _ in range(3):
            document = take(url, store, TIERS, Scope.user("u1"), progress=HeldUp(writers, times=4))
            rows = rows_of(document)
            assert sorted(json.loads(r)["id"] for a in ("hot", "cold") for r in rows[a]) == mine


class Altered:
    """`statement` on a thread of its own, begun and waiting for its lock."""

    def __init__(self, url, statement="ALTER TABLE hot ADD COLUMN extra int"):
        self._url = url
        self._thread = threading.Thread(target=lambda: run(url, statement))

    def begin(self):
        self._thread.start()
        while not ask(self._url, WAITING):
            pass

    def join(self):
        self._thread.join()


@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE hot, cold",
        "ALTER TABLE hot DROP COLUMN body",
        "ALTER TABLE hot ALTER id TYPE text USING 'x' || id",
        "DROP TABLE cold",
        "VACUUM FULL hot",
    ],
)
def test_nobody_pulls_a_table_away_while_it_is_read(make_database, store, statement):
    url = make_database(empty=True)
    run(url, *MOVING)
    altered = Altered(url, statement)

    class Starts:
        def start(self, what, *, total_bytes=None):
            if what == "hot":
                altered.begin()

        def advance(self, *, rows=0, size=0):
            pass

        def note(self, sentence):
            pass

    document = take(url, store, TIERS, progress=Starts(), readers=4, frame_size=32 << 10)
    altered.join()
    found = whole(document)
    assert all(set(r) == {"id", "uid", "version", "body"} for r in found["hot"])


def test_nobody_waits_behind_somebody_who_waits_for_us(make_database):
    url = make_database(empty=True)
    run(url, *MOVING)
    altered = Altered(url)
    with source_of(url) as source, source.moment(TIERS) as moment:
        altered.begin()
        (leader,) = moment.connections(4)  # the others would never have their locks
        assert leader.execute("SELECT count(*) FROM public.hot").fetchone() == (ROWS,)
    altered.join()


def test_readers_that_cannot_be_spared_begin_again_after_who_waits(make_database, monkeypatch):
    url = make_database(empty=True)
    run(url, *MOVING)
    altered = Altered(url)
    with source_of(url) as source:
        taken = itertools.count()
        take = source.take

        def take_slowly():
            if next(taken) == 1:  # the leader has its locks, the next reader has none
                altered.begin()
            return take()

        monkeypatch.setattr(source, "take", take_slowly)
        with source.moment(TIERS, readers=3) as moment:
            assert len(moment.connections(3)) == 3
            assert "extra" in [c.name for c in moment.catalog.relations[0].table.columns]
            for reader in moment.connections(3):
                assert reader.execute("SELECT count(extra), count(*) FROM public.hot").fetchone() == (0, ROWS)
    altered.join()


def test_what_cannot_be_locked_beforehand_is_not_waited_for_for_ever(make_database, store, monkeypatch):
    """The table behind a view: while several readers wait for it, whoever holds it may be waiting for what they hold."""
    url = make_database(empty=True)
    run(url, *MOVING, "CREATE VIEW seen AS SELECT * FROM hot")
    tiers = [tier("cold"), tier("balance"), tier("seen")]
    monkeypatch.setattr(source_module, "_IMPATIENT", "SET LOCAL lock_timeout = '100ms'")
    with psycopg.connect(url) as holder:
        holder.execute("LOCK TABLE hot IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(DatabaseError, match="locked by another session") as caught:
            take(url, store, tiers, readers=3)
    assert "run again" in caught.value.hint
    assert [o.key for o in store.list("")] == []
    found = rows_of(take(url, store, tiers, readers=3))
    assert len(found["seen"]) == ROWS


def rewrite(conn, number):
    """Everything away and back again in one transaction; a column comes and goes."""
    conn.execute("TRUNCATE t")
    if number % 2:
        conn.execute("ALTER TABLE t ADD COLUMN IF NOT EXISTS extra int DEFAULT 1")
    else:
        conn.execute("ALTER TABLE t DROP COLUMN IF EXISTS extra")
    conn.execute("INSERT INTO t (id, uid) SELECT g, 'u' FROM generate_series(1, 50) g")


def replace_table(conn, number):
    conn.execute("DROP TABLE t")
    conn.execute(f"CREATE TABLE t (id int, uid text, c{number} int DEFAULT {number})")
    conn.execute("INSERT INTO t (id, uid) SELECT g, 'u' FROM generate_series(1, 50) g")


@pytest.mark.parametrize("scope", [Scope(), Scope.user("u")])
@pytest.mark.parametrize("step", [rewrite, replace_table])
def test_tables_that_are_rewritten_all_the_time(make_database, store, step, scope):
    """Each snapshot has all rows, with the columns its header names; where the table was dropped under its hands, it says so."""
    url = make_database(empty=True)
    run(url, "CREATE TABLE t (id int, uid text)", "INSERT INTO t SELECT g, 'u' FROM generate_series(1, 50) g")
    good, enough = 0, 3 if step is replace_table else 12  # a table that is replaced all the time is seldom the same for long enough
    with Writers(url, step, count=1) as writers, source_of(url) as source:
        while good < enough:
            writers.wait_for(1)
            may_fail = suppress(DatabaseError) if step is replace_table else nullcontext()
            manifest = None
            with may_fail:
                manifest = snapshot(source, store, tiers=[tier("t")], scope=scope, options=ExportOptions(readers=2))
            if manifest is None:
                continue
            good += 1
            assert manifest.rows() == {"t": 50}
            columns = {c.name for c in manifest.schema.tables[0].columns}
            assert all(set(json.loads(r)) == columns for r in rows_of(StoredDocument(store, manifest))["t"])


def test_a_snapshot_that_is_broken_off_leaves_nothing_committed(make_database, store):
    url = make_database(empty=True)
    run(url, *MOVING)

    class Breaks:
        def __init__(self, after):
            self.left = after

        def start(self, what, *, total_bytes=None):
            pass

        def advance(self, *, rows=0, size=0):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

        def note(self, sentence):
            pass

    for after in (1, 2, 20):
        with pytest.raises(KeyboardInterrupt):
            take(url, store, TIERS, progress=Breaks(after), readers=4, frame_size=16 << 10)
    assert [o.key for o in store.list("")] == []
    for after in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            take_each_user(url, store, TIERS, progress=Breaks(after))
    for found in manifests(store):  # users who were done by then have whole snapshots
        rows_of(StoredDocument(store, found))
    left = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    while ask(url, left) != [(0,)]:
        pass


def test_readers_that_are_killed_end_the_snapshot(make_database, store):
    url = make_database(empty=True)
    run(url, *MOVING)

    class Kills:
        def __init__(self):
            self.done = False

        def start(self, what, *, total_bytes=None):
            pass

        def advance(self, *, rows=0, size=0):
            if not self.done:
                self.done = True
                run(
                    url,
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'coldstore snapshot'"
                    " AND datname = current_database()",
                )

        def note(self, sentence):
            pass

    with pytest.raises(DatabaseError):
        take(url, store, TIERS, progress=Kills(), readers=4, frame_size=4 << 10)
    assert [o.key for o in store.list("")] == []
