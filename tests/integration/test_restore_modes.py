"""What each way of restoring does to a target, and what it must not do to it."""

from __future__ import annotations

import threading

import psycopg
import pytest

from coldstore.errors import (
    ColdStoreError,
    ContentMismatch,
    DatabaseError,
    NotFound,
    RestoreConflict,
    SchemaMismatch,
    TargetNotEmpty,
)
from coldstore.postgres.connect import connect
from coldstore.postgres.staging import Staging, sweep
from coldstore.storage.open import open_store
from coldstore.tiers import Scope
from tests.integration.helpers import ask, bring_back, contents, everything, run, sequences, structure, table_text, take, tier

NOTES = [tier("notes")]
TABLE = "CREATE TABLE notes (id int PRIMARY KEY, uid text, workspace_id text, body text, updated_at timestamptz DEFAULT now())"
ROWS = "INSERT INTO notes (id, uid, workspace_id, body) SELECT g, 'u' || g % 4, 'w' || g % 2, 'body ' || g FROM generate_series(1, 40) g"


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


@pytest.fixture
def source(make_database):
    url = make_database(empty=True)
    run(url, TABLE, ROWS)
    return url


@pytest.fixture
def whole(source, store):
    return take(source, store, NOTES)


def staging_schemas(url):
    return [s for (s,) in ask(url, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'coldstore\\_restore\\_%'")]


# --- fresh -------------------------------------------------------------------------------------------------------------------------


def test_fresh_into_tables_that_are_there_and_empty(source, whole, empty_database):
    run(empty_database, TABLE)
    before = structure(empty_database)
    report = bring_back(whole, empty_database)
    assert contents(empty_database) == contents(source)
    assert structure(empty_database) == before
    assert report.tables == [
        {
            "tier": "notes",
            "table": "public.notes",
            "action": "fresh",
            "rows": 40,
            "inserted": 40,
            "updated": 0,
            "deleted": 0,
            "unchanged": 0,
            "skipped": 0,
        }
    ]


def test_fresh_refuses_a_target_with_rows(whole, empty_database):
    run(empty_database, TABLE, "INSERT INTO notes (id, uid) VALUES (999, 'somebody')")
    before = everything(empty_database)
    with pytest.raises(TargetNotEmpty, match="has rows already") as caught:
        bring_back(whole, empty_database)
    assert "--mode" in caught.value.hint
    assert everything(empty_database) == before


def test_fresh_for_one_user_minds_only_their_rows(source, whole, empty_database):
    run(empty_database, TABLE, "INSERT INTO notes (id, uid) VALUES (999, 'somebody')")
    bring_back(whole, empty_database, scope=Scope.user("u1"))
    assert table_text(empty_database, "public.notes", where="uid = 'u1'") == table_text(source, "public.notes", where="uid = 'u1'")
    assert ask(empty_database, "SELECT count(*) FROM notes") == [(11,)]
    with pytest.raises(TargetNotEmpty, match="u1"):
        bring_back(whole, empty_database, scope=Scope.user("u1"))


def test_fresh_looks_again_under_the_lock(whole, empty_database, store):
    """A row that appears while the restore is loading is noticed before anything is published."""
    run(empty_database, TABLE)

    class Intruder:
        def __init__(self, inner):
            self.inner = inner
            self.done = False

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def parts(self, wanted, only=None):
            for part in self.inner.parts(wanted, only):
                if not self.done:
                    self.done = True
                    run(empty_database, "INSERT INTO notes (id, uid) VALUES (999, 'late')")
                yield part

    with pytest.raises(TargetNotEmpty):
        bring_back(Intruder(whole), empty_database)
    assert ask(empty_database, "SELECT id FROM notes") == [(999,)]
    assert staging_schemas(empty_database) == []


def test_one_user_and_one_workspace_out_of_everybody(source, whole, empty_database, make_database):
    bring_back(whole, empty_database, scope=Scope.user("u2"))
    assert table_text(empty_database, "public.notes") == table_text(source, "public.notes", where="uid = 'u2'")
    other = make_database(empty=True)
    bring_back(whole, other, scope=Scope.of_workspace("w1"))
    assert table_text(other, "public.notes") == table_text(source, "public.notes", where="workspace_id = 'w1'")
    assert len(table_text(other, "public.notes")) == 20


def test_a_workspace_snapshot(source, store, empty_database):
    document = take(source, store, NOTES, Scope.of_workspace("w0"))
    bring_back(document, empty_database)
    assert table_text(empty_database, "public.notes") == table_text(source, "public.notes", where="workspace_id = 'w0'")
    with pytest.raises(NotFound, match="holds the memory of"):
        bring_back(document, empty_database, scope=Scope.user("u1"))


def test_an_unknown_user_is_an_error_and_changes_nothing(whole, empty_database):
    before = everything(empty_database)
    for dry_run in (True, False):
        with pytest.raises(NotFound, match="nobody"):
            bring_back(whole, empty_database, scope=Scope.user("nobody"), dry_run=dry_run)
    assert everything(empty_database) == before


@pytest.mark.parametrize("mode", ["fresh", "replace", "merge"])
@pytest.mark.parametrize("scope", [None, Scope.user("u1")])
@pytest.mark.parametrize("there", [True, False])
def test_a_dry_run_changes_nothing_and_counts_right(whole, empty_database, mode, scope, there):
    if there:
        run(empty_database, TABLE)
    before = everything(empty_database)
    report = bring_back(whole, empty_database, scope=scope, mode=mode, dry_run=True)
    assert report.dry_run
    assert report.tables == [
        {"tier": "notes", "table": "public.notes", "action": mode if there else "create", "rows": 10 if scope else 40, "existing": 0}
    ]
    assert everything(empty_database) == before


def test_only_some_tiers(make_database, store, empty_database):
    url = make_database(empty=True)
    run(
        url,
        "CREATE TABLE a (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, uid text)",
        "CREATE TABLE b (id serial PRIMARY KEY, uid text, a_id bigint REFERENCES a)",
        "INSERT INTO a (uid) VALUES ('x')",
        "INSERT INTO b (uid) VALUES ('x')",
    )
    document = take(url, store, [tier("a"), tier("b")])
    report = bring_back(document, empty_database, tiers=())
    assert {t["tier"] for t in report.tables} == {"a", "b"}
    other = make_database(empty=True)
    from coldstore.restore import RestoreOptions, restore

    report = restore(document, other, options=RestoreOptions(tiers=("b",)))
    assert list(contents(other)) == [("public", "b")]
    assert list(sequences(other)) == ["public.b_id_seq"]
    assert any("b_a_id_fkey" in n for n in report.notes)
    with pytest.raises(NotFound, match="no tier 'zzz'"):
        restore(document, other, options=RestoreOptions(tiers=("zzz",)))


# --- replace -----------------------------------------------------------------------------------------------------------------------


def test_replace_makes_the_rows_exactly_the_snapshots(source, whole):
    before = contents(source)
    run(
        source,
        "DELETE FROM notes WHERE id % 7 = 0",
        "UPDATE notes SET body = 'changed', uid = 'u9' WHERE id % 5 = 0",
        "INSERT INTO notes (id, uid) VALUES (100, 'u1'), (101, NULL)",
    )
    report = bring_back(whole, source, mode="replace")
    assert contents(source) == before
    (table,) = report.tables
    assert (table["inserted"], table["updated"], table["deleted"], table["unchanged"]) == (5, 7, 2, 28)


def test_replace_touches_only_rows_that_differ(source, whole):
    versions = dict(ask(source, "SELECT id, xmin::text || ctid::text FROM notes"))
    run(source, "UPDATE notes SET body = 'changed' WHERE id = 3", "DELETE FROM notes WHERE id = 4")
    bring_back(whole, source, mode="replace")
    after = dict(ask(source, "SELECT id, xmin::text || ctid::text FROM notes"))
    assert {i for i in versions if versions[i] != after[i]} == {3, 4}
    again = everything(source)
    bring_back(whole, source, mode="replace")
    assert everything(source) == again


def test_replace_for_one_user_leaves_the_others(source, whole):
    others = table_text(source, "public.notes", versions=True, where="uid <> 'u1'")
    wanted = table_text(source, "public.notes", where="uid = 'u1'")
    run(source, "DELETE FROM notes WHERE uid = 'u1' AND id < 20", "INSERT INTO notes (id, uid) VALUES (500, 'u1')")
    bring_back(whole, source, scope=Scope.user("u1"), mode="replace")
    assert table_text(source, "public.notes", where="uid = 'u1'") == wanted
    assert table_text(source, "public.notes", versions=True, where="uid <> 'u1'") == others


@pytest.mark.parametrize("mode", ["replace", "merge", "fresh"])
def test_a_key_that_is_somebody_elses_now_is_refused(source, whole, mode):
    run(source, "DELETE FROM notes WHERE uid = 'u1'", "INSERT INTO notes (id, uid, body) VALUES (5, 'thief', 'mine')")
    before = everything(source)
    with pytest.raises(RestoreConflict):
        bring_back(whole, source, scope=Scope.user("u1"), mode=mode, on_conflict="update" if mode == "merge" else "fail")
    assert everything(source) == before


def test_replace_with_values_that_changed_places(make_database, store):
    """A unique column whose values were swapped since: row by row the update would collide with itself."""
    url = make_database(empty=True)
    run(
        url,
        "CREATE TABLE t (id int PRIMARY KEY, uid text, place int, UNIQUE (uid, place))",
        "INSERT INTO t VALUES (1, 'a', 1), (2, 'a', 2), (3, 'a', 3), (4, 'b', 1)",
    )
    document = take(url, store, [tier("t")])
    wanted = contents(url)
    run(url, "UPDATE t SET place = place + 10 WHERE uid = 'a'", "UPDATE t SET place = 14 - place WHERE uid = 'a'")
    others = table_text(url, "public.t", versions=True, where="uid = 'b'")
    bring_back(document, url, scope=Scope.user("a"), mode="replace")
    assert contents(url) == wanted
    assert table_text(url, "public.t", versions=True, where="uid = 'b'") == others


@pytest.mark.parametrize("mode", ["replace", "merge"])
def test_a_column_that_cannot_be_updated(make_database, store, mode):
    """`GENERATED ALWAYS AS IDENTITY` beside another key: such a row is written anew."""
    url = make_database(empty=True)
    run(
        url,
        "CREATE TABLE t (name text PRIMARY KEY, uid text, n bigint GENERATED ALWAYS AS IDENTITY)",
        "INSERT INTO t VALUES ('x', 'a'), ('y', 'a')",
    )
    document = take(url, store, [tier("t")])
    wanted = contents(url)
    run(url, "DELETE FROM t WHERE name = 'x'", "INSERT INTO t VALUES ('x', 'a')")
    assert contents(url) != wanted
    bring_back(document, url, mode=mode, on_conflict="update")
    assert contents(url) == wanted
    run(url, "INSERT INTO t VALUES ('z', 'a')")
    assert ask(url, "SELECT count(DISTINCT n) FROM t") == [(3,)]


def test_replace_without_a_primary_key(make_database, store):
    url = make_database(empty=True)
    run(
        url,
        "CREATE TABLE t (uid text, n int, j json)",
        "INSERT INTO t VALUES ('a', 1, '{}'), ('a', 1, '{}'), ('b', 2, NULL), (NULL, 3, '1')",
    )
    document = take(url, store, [tier("t")])
    wanted = contents(url)
    run(url, "DELETE FROM t WHERE uid = 'a'", "INSERT INTO t VALUES ('a', 9, NULL)")
    bring_back(document, url, scope=Scope.user("a"), mode="replace")
    assert contents(url) == wanted
    run(url, "INSERT INTO t VALUES ('c', 9, NULL)")
    bring_back(document, url, mode="replace")
    assert contents(url) == wanted


def test_replace_respects_the_tiers_condition(make_database, store):
    url = make_database(empty=True)
    run(
        url,
        "CREATE TABLE t (id int PRIMARY KEY, uid text, kind text)",
        "INSERT INTO t VALUES (1, 'a', 'keep'), (2, 'a', 'tmp'), (3, 'b', NULL)",
    )
    document = take(url, store, [tier("t", where="kind <> 'tmp'")])
    run(url, "DELETE FROM t WHERE id = 1", "INSERT INTO t VALUES (4, 'a', 'keep'), (5, 'a', 'tmp')")
    bring_back(document, url, mode="replace")
    assert ask(url, "SELECT id FROM t ORDER BY 1") == [(1,), (2,), (3,), (5,)]


def test_deletion_that_would_reach_another_table_is_refused(source, whole):
    run(
        source,
        "CREATE TABLE comments (id int PRIMARY KEY, note int REFERENCES notes ON DELETE CASCADE)",
        "INSERT INTO notes (id, uid) VALUES (100, 'u1')",
        "INSERT INTO comments VALUES (1, 100)",
    )
    before = everything(source)
    with pytest.raises(RestoreConflict, match="comments"):
        bring_back(whole, source, mode="replace")
    assert everything(source) == before
    run(source, "UPDATE comments SET note = 1")
    bring_back(whole, source, mode="replace")
    assert ask(source, "SELECT count(*) FROM comments") == [(1,)]


def test_deletion_that_would_reach_another_users_rows_is_refused(make_database, store):
    url = make_database(empty=True)
    run(
        url,
        "CREATE TABLE t (id int PRIMARY KEY, uid text, parent int REFERENCES t ON DELETE SET NULL)",
        "INSERT INTO t VALUES (1, 'a', NULL)",
    )
    document = take(url, store, [tier("t")])
    run(url, "INSERT INTO t VALUES (2, 'a', NULL), (3, 'b', 2)")
    before = everything(url)
    with pytest.raises(RestoreConflict, match="t_parent_fkey"):
        bring_back(document, url, scope=Scope.user("a"), mode="replace")
    assert everything(url) == before


def test_tables_that_refer_to_one_another(make_database, store):
    url = make_database(empty=True)
    run(
        url,
        "CREATE TABLE child (id int PRIMARY KEY, uid text, p int)",
        "CREATE TABLE parent (id int PRIMARY KEY, uid text, favourite int REFERENCES child DEFERRABLE INITIALLY DEFERRED)",
        "ALTER TABLE child ADD FOREIGN KEY (p) REFERENCES parent",
        "CREATE FUNCTION veto() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$",
        "BEGIN; INSERT INTO parent VALUES (1, 'a', 1), (2, 'b', NULL); INSERT INTO child VALUES (1, 'a', 1), (2, 'b', 2); COMMIT",
    )
    document = take(url, store, [tier("child"), tier("parents", "parent")])
    wanted = contents(url)
    run(url, "BEGIN; DELETE FROM child WHERE uid = 'a'; DELETE FROM parent WHERE uid = 'a'; COMMIT")
    for table in ("child", "parent"):
        run(url, f"CREATE TRIGGER veto BEFORE INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION veto()")
    bring_back(document, url, scope=Scope.user("a"), mode="replace")
    assert contents(url) == wanted
    run(
        url,
        "SET session_replication_role = replica; UPDATE parent SET favourite = NULL; DELETE FROM child; INSERT INTO child VALUES (7, 'b', 2)",
    )
    bring_back(document, url, mode="replace")
    assert contents(url) == wanted


# --- merge -------------------------------------------------------------------------------------------------------------------------


def altered(url):
    run(
        url,
        "DELETE FROM notes WHERE id IN (1, 2)",
        "UPDATE notes SET body = 'newer' WHERE id = 3",
        "INSERT INTO notes (id, uid, body) VALUES (100, 'u1', 'new')",
    )


def test_merge_skip_keeps_what_is_there(source, whole):
    altered(source)
    report = bring_back(whole, source, mode="merge", on_conflict="skip")
    assert ask(source, "SELECT body FROM notes WHERE id IN (1, 2, 3, 100) ORDER BY id") == [("body 1",), ("body 2",), ("newer",), ("new",)]
    (table,) = report.tables
    assert (table["inserted"], table["updated"], table["skipped"], table["unchanged"], table["deleted"]) == (2, 0, 1, 37, 0)


def test_merge_update_takes_the_snapshots(source, whole):
    altered(source)
    report = bring_back(whole, source, mode="merge", on_conflict="update")
    assert ask(source, "SELECT body FROM notes WHERE id IN (1, 2, 3, 100) ORDER BY id") == [("body 1",), ("body 2",), ("body 3",), ("new",)]
    (table,) = report.tables
    assert (table["inserted"], table["updated"], table["skipped"], table["unchanged"], table["deleted"]) == (2, 1, 0, 37, 0)


def test_merge_fail_names_the_row(source, whole):
    altered(source)
    before = everything(source)
    with pytest.raises(RestoreConflict, match=r"\(3\)"):
        bring_back(whole, source, mode="merge", on_conflict="fail")
    assert everything(source) == before
    run(source, "UPDATE notes SET body = 'body 3' WHERE id = 3")
    report = bring_back(whole, source, mode="merge", on_conflict="fail")
    assert report.tables[0]["inserted"] == 2


def test_merge_is_done_once(source, whole):
    altered(source)
    bring_back(whole, source, mode="merge", on_conflict="skip")
    again = everything(source)
    bring_back(whole, source, mode="merge", on_conflict="skip")
    assert everything(source) == again


def test_merge_without_a_primary_key(make_database, store):
    url = make_database(empty=True)
    run(url, "CREATE TABLE t (uid text, n int)", "INSERT INTO t VALUES ('a', 1), ('b', 2), ('b', NULL)")
    document = take(url, store, [tier("t")])
    run(url, "DELETE FROM t WHERE uid = 'a'", "INSERT INTO t VALUES ('a', 5)")
    report = bring_back(document, url, mode="merge")
    assert ask(url, "SELECT uid, n FROM t ORDER BY 1, 2") == [("a", 1), ("a", 5), ("b", 2), ("b", None)]
    assert (report.tables[0]["inserted"], report.tables[0]["unchanged"]) == (1, 2)


# --- targets that differ -----------------------------------------------------------------------------------------------------------


def test_columns_match_by_name(source, whole, empty_database):
    run(
        empty_database,
        "CREATE TABLE notes (extra int DEFAULT 7, body varchar(100), workspace_id text, id bigint PRIMARY KEY, uid text, updated_at timestamptz, more text)",
    )
    bring_back(whole, empty_database)
    columns = ["id", "uid", "workspace_id", "body", "updated_at"]
    assert table_text(empty_database, "public.notes", columns=columns) == table_text(source, "public.notes", columns=columns)
    assert ask(empty_database, "SELECT DISTINCT extra, more FROM notes") == [(7, None)]


def test_a_column_that_the_target_lacks_is_named(whole, source, empty_database):
    run(empty_database, "CREATE TABLE notes (id int PRIMARY KEY, uid text, workspace_id text, updated_at timestamptz)")
    before = everything(empty_database)
    with pytest.raises(SchemaMismatch, match="'body'") as caught:
        bring_back(whole, empty_database)
    assert "--allow-missing-columns" in caught.value.hint
    assert everything(empty_database) == before
    report = bring_back(whole, empty_database, allow_missing_columns=True)
    assert report.verified == "counts"
    assert any("body" in note for note in report.notes)
    columns = ["id", "uid", "workspace_id", "updated_at"]
    assert table_text(empty_database, "public.notes") == table_text(source, "public.notes", columns=columns)


def test_a_column_that_wants_a_value(whole, empty_database):
    run(empty_database, TABLE, "ALTER TABLE notes ADD COLUMN must text NOT NULL")
    before = everything(empty_database)
    with pytest.raises(SchemaMismatch, match="must"):
        bring_back(whole, empty_database)
    assert everything(empty_database) == before


def test_a_narrower_type_is_refused(whole, empty_database):
    run(empty_database, "CREATE TABLE notes (id int PRIMARY KEY, uid text, workspace_id text, body text, updated_at date)")
    before = everything(empty_database)
    with pytest.raises(ContentMismatch, match="notes"):
        bring_back(whole, empty_database)
    assert everything(empty_database) == before
    run(empty_database, "ALTER TABLE notes ALTER updated_at TYPE timestamptz, ALTER body TYPE varchar(3)")
    with pytest.raises(DatabaseError, match="too long"):
        bring_back(whole, empty_database)


def test_triggers_stay_silent_and_stay(source, whole):
    run(
        source,
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.updated_at := '2099-01-01'; RETURN NEW; END $$",
        "CREATE FUNCTION veto() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$",
        "CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION touch()",
        "CREATE TRIGGER always BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION touch()",
        "ALTER TABLE notes ENABLE ALWAYS TRIGGER always",
        "CREATE TRIGGER off AFTER INSERT ON notes FOR EACH ROW EXECUTE FUNCTION veto()",
        "ALTER TABLE notes DISABLE TRIGGER off",
        "CREATE TRIGGER replica AFTER DELETE ON notes FOR EACH ROW EXECUTE FUNCTION veto()",
        "ALTER TABLE notes ENABLE REPLICA TRIGGER replica",
        "CREATE TRIGGER statement AFTER UPDATE ON notes EXECUTE FUNCTION veto()",
    )
    wanted, shape = contents(source), structure(source)
    run(source, "ALTER TABLE notes DISABLE TRIGGER USER", "UPDATE notes SET body = 'x' WHERE id < 5", "DELETE FROM notes WHERE id > 30")
    run(source, "ALTER TABLE notes ENABLE TRIGGER touch", "ALTER TABLE notes ENABLE ALWAYS TRIGGER always")
    run(source, "ALTER TABLE notes ENABLE REPLICA TRIGGER replica", "ALTER TABLE notes ENABLE TRIGGER statement")
    assert structure(source) == shape
    bring_back(whole, source, mode="replace")
    assert contents(source) == wanted
    assert structure(source) == shape


def test_a_trigger_that_alters_rows_all_the_same_is_noticed(source, whole):
    """Triggers called `coldstore_…` stay on. One that changed rows would be found by comparing content."""
    run(
        source,
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.body := 'altered'; RETURN NEW; END $$",
        "DELETE FROM notes WHERE id = 40",
        "CREATE TRIGGER coldstore_evil BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION touch()",
    )
    before = everything(source)
    with pytest.raises(ContentMismatch):
        bring_back(whole, source, mode="replace")
    assert everything(source) == before


def test_sequences_of_a_table_that_was_there(make_database, store):
    source, target = make_database(empty=True), make_database(empty=True)
    for url in (source, target):
        run(url, "CREATE TABLE t (id serial PRIMARY KEY, uid text, n bigint GENERATED BY DEFAULT AS IDENTITY)")
    run(source, "INSERT INTO t (uid) SELECT 'a' FROM generate_series(1, 20)")
    bring_back(take(source, store, [tier("t")]), target)
    run(target, "INSERT INTO t (uid) VALUES ('new')")
    assert ask(target, "SELECT id, n FROM t WHERE uid = 'new'") == [(21, 21)]


def test_foreign_key_to_a_row_that_is_gone(make_database, store):
    url = make_database(empty=True)
    run(
        url,
        "CREATE TABLE p (id int PRIMARY KEY)",
        "CREATE TABLE t (id int PRIMARY KEY, uid text, p int REFERENCES p)",
        "CREATE TABLE later (id int PRIMARY KEY, uid text, p int REFERENCES p DEFERRABLE INITIALLY DEFERRED)",
        "INSERT INTO p VALUES (1)",
        "INSERT INTO t VALUES (1, 'a', 1)",
        "INSERT INTO later VALUES (1, 'a', 1)",
    )
    for name in ("t", "later"):
        document = take(url, store, [tier(name)])
        run(url, "DELETE FROM t", "DELETE FROM later", "DELETE FROM p")
        before = everything(url)
        with pytest.raises(RestoreConflict, match="foreign key"):
            bring_back(document, url)
        assert everything(url) == before
        run(url, "INSERT INTO p VALUES (1)", "INSERT INTO later VALUES (1, 'a', 1)")


# --- failures in the middle --------------------------------------------------------------------------------------------------------


RICH = [
    "CREATE SCHEMA app",
    "CREATE EXTENSION vector SCHEMA app",
    "CREATE TYPE app.mood AS ENUM ('a', 'b')",
    "CREATE DOMAIN app.email AS text CHECK (VALUE <> '')",
    "CREATE TYPE app.pair AS (m app.mood, e app.email)",
    "CREATE TABLE app.t (id serial PRIMARY KEY, uid text, v app.vector(2), p app.pair, e app.email)",
    "CREATE INDEX ON app.t USING hnsw (v app.vector_l2_ops)",
    "CREATE TABLE app.u (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, uid text, t int REFERENCES app.t) PARTITION BY RANGE (id)",
    "CREATE TABLE app.u1 PARTITION OF app.u DEFAULT",
    "INSERT INTO app.t (uid, v, p, e) SELECT 'u' || g % 3, '[1,2]', ROW('a', 'x')::app.pair, 'y' FROM generate_series(1, 300) g",
    "INSERT INTO app.u (uid, t) SELECT 'u' || g % 3, g FROM generate_series(1, 300) g",
]
RICH_TIERS = [tier("t", "app.t"), tier("u", "app.u")]


@pytest.fixture
def rich(make_database, store):
    url = make_database(empty=True)
    run(url, *RICH)
    return take(url, store, RICH_TIERS, frame_size=2000)


class Interrupted:
    """A document with which something happens after a few parts were handed out."""

    def __init__(self, inner, act, *, after):
        self.inner, self.act, self.after = inner, act, after

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def parts(self, wanted, only=None):
        for number, part in enumerate(self.inner.parts(wanted, only)):
            if number == self.after:
                self.act()
            yield part


class AtStep:
    """A progress that acts when a step begins."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def start(self, what, *, total_bytes=None):
        if what == self.step:
            self.act()

    def advance(self, *, rows=0, size=0):
        pass

    def note(self, sentence):
        pass


def fail():
    raise RuntimeError("pulled the plug")


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("step", "act"), [("load", fail), ("load", interrupt), ("compare", interrupt), ("index", fail), ("publish", interrupt)]
)
def test_an_error_at_any_step_leaves_nothing(rich, empty_database, step, act):
    before = everything(empty_database)
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        bring_back(rich, empty_database, progress=AtStep(step, act))
    assert everything(empty_database) == before
    bring_back(rich, empty_database)
    assert ask(empty_database, "SELECT count(*) FROM app.u") == [(300,)]


def kill(url, *, only_leader=False):
    """End the server's processes of the restore: all, or the one that holds its advisory lock."""
    leader = "AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.locktype = 'advisory')" if only_leader else ""
    run(
        url,
        "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()"
        f" AND a.application_name = 'coldstore restore' {leader}",
    )


@pytest.mark.parametrize(
    ("step", "only_leader", "there"),
    [
        ("load", True, False),
        ("load", False, True),
        ("compare", False, False),
        ("compare", True, True),
        ("index", True, False),
        ("index", False, False),
        ("publish", False, False),
        ("publish", True, True),
    ],
)
def test_killed_backends_leave_nothing(rich, empty_database, step, only_leader, there):
    if there:
        run(empty_database, *RICH[:-2])
    before = everything(empty_database)
    with pytest.raises(ColdStoreError) as caught:
        bring_back(rich, empty_database, progress=AtStep(step, lambda: kill(empty_database, only_leader=only_leader)))
    assert caught.value.exit_code == 3
    assert everything(empty_database) == before


def test_a_backend_killed_in_the_middle_of_loading(rich, empty_database):
    before = everything(empty_database)
    with pytest.raises(DatabaseError):
        bring_back(Interrupted(rich, lambda: kill(empty_database), after=5), empty_database)
    assert everything(empty_database) == before


def test_what_a_killed_process_left_is_swept_by_the_next(rich, empty_database):
    """The process dies without a word: only the server notices. Its schemas, types and extension go when somebody restores again."""
    before = everything(empty_database)
    dead = connect(empty_database)
    staging = Staging(dead)
    staging.open(rich.schema, created=rich.schema.tables, schemas=["app"])
    staging.create(rich.schema.tables[0], rich.schema.tables[0].columns, like=None)
    assert len(staging_schemas(empty_database)) == 1
    assert structure(empty_database)["types"] != before["types"]
    pid = dead.info.backend_pid
    dead.close()
    while ask(empty_database, f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid}"):
        pass
    with connect(empty_database) as conn:
        assert sweep(conn) == 1
    assert everything(empty_database) == before


def test_a_living_restore_is_not_swept(rich, empty_database):
    alive = connect(empty_database)
    try:
        staging = Staging(alive)
        staging.open(rich.schema, created=rich.schema.tables, schemas=["app"])
        (schema,) = staging_schemas(empty_database)
        with connect(empty_database) as conn:
            assert sweep(conn) == 0
        assert staging_schemas(empty_database) == [schema]
        staging.drop(published=False)
        assert staging_schemas(empty_database) == []
    finally:
        alive.close()


def test_two_restores_at_once_into_one_database(make_database, store, empty_database):
    documents = []
    for name in ("a", "b"):
        url = make_database(empty=True)
        run(
            url,
            f"CREATE TABLE {name} (id serial PRIMARY KEY, uid text)",
            f"INSERT INTO {name} (uid) SELECT 'u' FROM generate_series(1, 5000)",
        )
        documents.append(take(url, store, [tier(name)], frame_size=10_000))
    failures = []

    def work(document):
        try:
            bring_back(document, empty_database)
        except ColdStoreError as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(d,)) for d in documents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert ask(empty_database, "SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM b)") == [(5000, 5000)]
    assert staging_schemas(empty_database) == []


def test_the_table_appears_while_the_restore_is_loading(source, whole, empty_database):
    """Somebody makes the table that the restore is about to make."""
    document = Interrupted(whole, lambda: run(empty_database, "CREATE TABLE notes (id int)"), after=0)
    with pytest.raises(ColdStoreError, match="already exists"):
        bring_back(document, empty_database)
    assert table_text(empty_database, "public.notes") == []
    assert staging_schemas(empty_database) == []


def test_a_lock_that_somebody_holds_is_waited_for(source, whole, empty_database):
    run(empty_database, TABLE)
    with psycopg.connect(empty_database) as conn:
        conn.execute("LOCK TABLE notes IN ROW EXCLUSIVE MODE")

        def let_go():
            threading.Timer(0.3, conn.rollback).start()

        bring_back(whole, empty_database, progress=AtStep("publish", let_go))
    assert contents(empty_database) == contents(source)


def test_a_role_that_may_not_create_schemas(whole, empty_database, postgres):
    run(empty_database, TABLE, "DROP ROLE IF EXISTS reader", "CREATE ROLE reader LOGIN", "GRANT ALL ON notes TO reader")
    try:
        url = f"{empty_database}{'&' if '?' in empty_database else '?'}options=-crole%3Dreader"
        before = everything(empty_database)
        with pytest.raises(ColdStoreError) as caught:
            bring_back(whole, url)
        assert caught.value.code == "PermissionDenied"
        assert everything(empty_database) == before
    finally:
        run(empty_database, "DROP OWNED BY reader", "DROP ROLE reader")
