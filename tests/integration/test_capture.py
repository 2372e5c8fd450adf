"""Change capture against real Postgres: whatever way rows take to change, the changes since a moment lead to the next one."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from coldstore.errors import ConfigError, DatabaseError, PermissionDenied
from coldstore.postgres import capture
from coldstore.postgres.connect import connect
from coldstore.postgres.embedded import EmbeddedPostgres
from coldstore.postgres.migrate import migrate
from coldstore.postgres.source import Source
from coldstore.storage.open import open_store
from coldstore.tiers import EVERYBODY, Scope, Tier
from tests.integration.changes import Chain, fingerprint, install
from tests.integration.helpers import ask, bring_back, run, source_of, take

SCOPES = (EVERYBODY, Scope.user("a"), Scope.user("b"), Scope.of_workspace("w"))
STRANGE = (
    "SET DateStyle = 'SQL, DMY'; SET IntervalStyle = 'sql_standard'; SET TimeZone = 'Asia/Kolkata'; SET extra_float_digits = -10;"
    " SET bytea_output = 'escape'; SET quote_all_identifiers = on; SET search_path = pg_temp; SET standard_conforming_strings = off"
)


@pytest.fixture
def source(empty_database: str) -> Iterator[Source]:
    with source_of(empty_database) as found:
        yield found


@pytest.fixture
def own_server() -> Iterator[EmbeddedPostgres]:
    """A server of the test's own that can be stopped and started: with two-phase commits, logical replication, and commits that are not
    written to disk before somebody asks."""
    folder = Path(tempfile.gettempdir()) / f"capture-{uuid.uuid4().hex}"
    settings: dict[str, str | int] = {"max_prepared_transactions": 10, "wal_level": "logical", "wal_writer_delay": "10s"}
    try:
        with EmbeddedPostgres(folder, settings=settings) as server:
            yield server
    finally:
        shutil.rmtree(folder)


def follow(source: Source, tiers, *changes: tuple[str, ...] | str, url: str, scopes=SCOPES) -> list[Chain]:
    """Chains of all scopes over the changes; a tuple of statements is one transaction."""
    chains = [Chain(source, tiers, s).step() for s in scopes]
    for change in changes:
        with psycopg.connect(url) as conn:
            for statement in (change,) if isinstance(change, str) else change:
                conn.execute(statement)
        for chain in chains:
            chain.step()
    return chains


NOTES = Tier("notes", "public.notes", workspace="ws")
CREATE = "CREATE TABLE public.notes (id int PRIMARY KEY, uid text, ws text, body jsonb DEFAULT '{}', n int DEFAULT 0)"
SOME = (
    "INSERT INTO public.notes (id, uid, ws) SELECT i, (ARRAY['a','b',NULL,'c'])[i % 4 + 1], (ARRAY['w','v',NULL])[i % 3 + 1]"
    " FROM generate_series(1, 40) i"
)

MERGE = """
MERGE INTO public.notes t USING generate_series(1, 60) i ON t.id = i
 WHEN MATCHED AND i % 3 = 0 THEN DELETE
 WHEN MATCHED AND i % 3 = 1 THEN UPDATE SET uid = 'b'
 WHEN NOT MATCHED THEN INSERT (id, uid, ws) VALUES (i, 'a', 'w')
"""
MOVE = """
WITH gone AS (DELETE FROM public.notes WHERE id <= 5 RETURNING *), more AS (UPDATE public.notes SET n = 9 WHERE id = 7)
INSERT INTO public.notes (id, uid, ws) SELECT id + 500, uid, ws FROM gone
"""


@pytest.fixture
def notes(empty_database: str) -> str:
    run(empty_database, CREATE, SOME)
    install(empty_database, [NOTES])
    return empty_database


# --- ways to change a row ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO public.notes (id, uid, ws) VALUES (100, 'a', 'w'), (101, 'b', NULL)",
        "UPDATE public.notes SET n = n + 1 WHERE id % 3 = 0",
        "UPDATE public.notes SET id = id + 1000 WHERE id % 3 = 0",
        "UPDATE public.notes SET uid = 'b' WHERE uid = 'a'",
        "UPDATE public.notes SET uid = NULL, ws = 'w' WHERE id < 10",
        "DELETE FROM public.notes WHERE id % 2 = 0",
        "DELETE FROM public.notes",
        "TRUNCATE public.notes",
        "INSERT INTO public.notes (id, uid) SELECT i, 'a' FROM generate_series(30, 50) i ON CONFLICT (id) DO UPDATE SET uid = excluded.uid",
        "INSERT INTO public.notes (id, uid) SELECT i, 'a' FROM generate_series(30, 50) i ON CONFLICT DO NOTHING",
        MERGE,
        MOVE,
        "DO $$ BEGIN FOR i IN 1..20 LOOP UPDATE public.notes SET n = i WHERE id = i; END LOOP; END $$",
        ("DELETE FROM public.notes WHERE id = 4", "INSERT INTO public.notes (id, uid, ws) VALUES (4, 'b', 'w')"),
        ("INSERT INTO public.notes (id, uid) VALUES (100, 'a')", "DELETE FROM public.notes WHERE id = 100"),
        ("TRUNCATE public.notes", "INSERT INTO public.notes (id, uid, ws) VALUES (4, 'b', 'w')"),
        ("SET LOCAL session_replication_role = replica", "UPDATE public.notes SET n = 5 WHERE id < 5", "TRUNCATE public.notes"),
        ("SET LOCAL session_replication_role = local", "DELETE FROM public.notes WHERE id < 5"),
        ("SAVEPOINT s", "DELETE FROM public.notes", "ROLLBACK TO s", "UPDATE public.notes SET n = 8 WHERE id = 8"),
        ("SAVEPOINT s", "DELETE FROM public.notes WHERE id = 1", "SAVEPOINT t", "DELETE FROM public.notes WHERE id = 2", "RELEASE s"),
        ("UPDATE public.notes SET n = 1", "ROLLBACK"),
        ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "UPDATE public.notes SET uid = 'a' WHERE ws = 'w'"),
        "UPDATE public.notes SET n = 1 WHERE false",
    ],
)
def test_what_a_change_leads_to_is_what_is_there(notes, source, change):
    follow(source, [NOTES], change, url=notes)


def test_copy_is_seen(notes, source):
    chain = Chain(source, [NOTES], Scope.user("a")).step()
    with psycopg.connect(notes) as conn, conn.cursor().copy("COPY public.notes (id, uid) FROM STDIN") as copy:
        for number in range(200, 300):
            copy.write_row((number, "a" if number % 2 else "b"))
    assert chain.step().changed == 50


def test_only_what_changed_is_read(notes, source):
    chains = follow(source, [NOTES], "UPDATE public.notes SET n = 7 WHERE id IN (4, 5)", url=notes)
    assert [(c.changed, c.deleted) for c in chains] == [(2, 0), (1, 0), (1, 0), (0, 0)]
    follow(source, [NOTES], url=notes)
    assert [c.step().changed for c in chains] == [0, 0, 0, 0]


def test_a_row_that_changes_hands_goes_from_one_and_comes_to_the_other(notes, source):
    everybody, a, b, _ = follow(source, [NOTES], "UPDATE public.notes SET uid = 'b' WHERE id = 4", url=notes)
    assert [(c.changed, c.deleted) for c in (everybody, a, b)] == [(1, 0), (0, 1), (1, 0)]


def test_a_statement_of_many_rows_and_a_row_of_many_statements_are_each_read_once(notes, source):
    run(notes, *["UPDATE public.notes SET n = n + 1 WHERE id = 3"] * 3)
    chain = Chain(source, [NOTES]).step()
    run(notes, *["UPDATE public.notes SET n = n + 1 WHERE id = 3"] * 30)
    assert chain.step().changed == 1


def test_triggers_of_others_may_change_what_is_written(notes, source):
    run(
        notes,
        "CREATE FUNCTION public.theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.id := NEW.id + 1; NEW.uid := 'b'; RETURN NEW; END $$",
        "CREATE TRIGGER a BEFORE INSERT ON public.notes FOR EACH ROW EXECUTE FUNCTION public.theirs()",
        "CREATE FUNCTION public.more() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN DELETE FROM public.notes WHERE id = OLD.id - 1; RETURN NULL; END $$",
        "CREATE TRIGGER zz AFTER DELETE ON public.notes FOR EACH ROW EXECUTE FUNCTION public.more()",
    )
    follow(source, [NOTES], "INSERT INTO public.notes (id, uid) VALUES (500, 'a')", "DELETE FROM public.notes WHERE id = 20", url=notes)


# --- when it commits ---------------------------------------------------------------------------------------------------------------


def test_a_transaction_that_commits_late_comes_with_the_next_one(notes, source):
    chains = [Chain(source, [NOTES], s).step() for s in SCOPES]
    with psycopg.connect(notes) as late, psycopg.connect(notes, autocommit=True) as quick:
        late.execute("UPDATE public.notes SET n = 1 WHERE id = 4")
        late.execute("INSERT INTO public.notes (id, uid, ws) VALUES (900, 'a', 'w')")
        for number in range(5):
            quick.execute("UPDATE public.notes SET n = %s WHERE id = 8", (number,))
            for chain in chains:
                chain.step()
        late.commit()
        assert [c.step().changed for c in chains] == [2, 2, 0, 1]


def test_what_is_rolled_back_is_no_change(notes, source):
    chain = Chain(source, [NOTES]).step()
    with psycopg.connect(notes) as conn:
        conn.execute("DELETE FROM public.notes")
        conn.rollback()
    assert (chain.step().changed, chain.deleted) == (0, 0)


def test_many_savepoints_in_one_transaction(notes, source):
    chain = Chain(source, [NOTES]).step()
    with psycopg.connect(notes) as conn:
        for number in range(150):  # more than a server keeps in memory for each transaction
            conn.execute(f"SAVEPOINT s{number}")
            conn.execute("UPDATE public.notes SET n = n + 1 WHERE id = %s", (number % 40 + 1,))
            if number % 3 == 0:
                conn.execute(f"ROLLBACK TO s{number}")
        chain.step()
    assert chain.step().changed > 20


def test_two_phases_also_over_a_restart(own_server):
    url = own_server.createdb("phases")
    run(url, CREATE, SOME)
    install(url, [NOTES])
    with source_of(url) as source:
        chains = [Chain(source, [NOTES], s).step() for s in SCOPES]
        with psycopg.connect(url, autocommit=True) as conn:
            for name in ("kept", "dropped"):
                conn.execute("BEGIN")
                conn.execute("UPDATE public.notes SET uid = 'b', n = 3 WHERE id = %s", (4 if name == "kept" else 8,))
                conn.execute(f"PREPARE TRANSACTION '{name}'")
        assert [c.step().changed for c in chains] == [0, 0, 0, 0]
    own_server.stop()
    own_server.start()
    url = own_server.url("phases")
    with source_of(url) as source:
        for chain in chains:
            chain.source = source
            chain.step()
        run(url, "COMMIT PREPARED 'kept'", "ROLLBACK PREPARED 'dropped'")
        assert [(c.step().changed, c.deleted) for c in chains] == [(1, 0), (0, 1), (1, 0), (0, 0)]


def test_what_a_head_has_seen_outlives_a_crash(own_server):
    """An id of a transaction that was lost would be given out again, and its second owner's changes would seem to be seen already."""
    url = own_server.createdb("crash")
    run(url, CREATE, SOME)
    install(url, [NOTES])
    lazily = "SET synchronous_commit = off"
    with source_of(url) as source, connect(url) as conn:
        run(url, lazily, "UPDATE public.notes SET n = 1 WHERE id = 4")
        chain = Chain(source, [NOTES]).step()
        kept = capture.Head("kept", "", chain.parent or "")
        assert capture.set_head(conn, EVERYBODY, kept)
        run(url, lazily, "UPDATE public.notes SET n = 2 WHERE id = 8")
    os.kill(own_server._server.pid, signal.SIGKILL)
    own_server.stop()
    own_server.start()
    url = own_server.url("crash")
    run(url, "UPDATE public.notes SET n = 3 WHERE id = 12")
    with source_of(url) as source, connect(url) as conn:
        chain.source = source
        assert chain.step().changed >= 1
        assert capture.head(conn, EVERYBODY) == kept


def test_a_standby_does_not_know_its_transactions(own_server):
    url = own_server.createdb("standby")
    run(url, CREATE, SOME)
    install(url, [NOTES])
    assert fingerprint(url, [NOTES]) is not None
    own_server.stop()
    (own_server.folder / "standby.signal").touch()
    own_server.start()
    assert fingerprint(own_server.url("standby"), [NOTES]) is None


def test_pooled_writers_share_sessions(notes, source):
    chain = Chain(source, [NOTES], Scope.user("a")).step()
    with psycopg.connect(notes) as conn:
        conn.prepare_threshold = 0
        for number in range(20):
            conn.execute("UPDATE public.notes SET n = n + 1, uid = %s WHERE id = %s", ("ab"[number % 2], number))
            conn.commit()
            chain.step()
            if number % 5 == 0:
                conn.autocommit = True
                conn.execute("DISCARD ALL")
                conn.autocommit = False


# --- keys --------------------------------------------------------------------------------------------------------------------------

KEYS = {
    "uuid": ("uuid", "gen_random_uuid()"),
    "bigint": ("bigint", "i * 1000000000000"),
    "text": ("text", "chr(39) || i || E'\\\\ \"{,}é\\n' "),
    "text C": ('text COLLATE "C"', "'k' || i"),
    "text of its own": ('text COLLATE public."oth er"', "'k' || i"),
    "char": ("char(5)", "i::text"),
    "varchar": ("varchar(9)", "'v' || i"),
    "enum": ("public.mood", "(enum_range(NULL::public.mood))[i]"),
    "domain": ("public.code", "'c' || i"),
    "date": ("date", "date '2026-01-12' + i"),
    "timestamp": ("timestamp", "timestamp '2026-01-12 10:00:00.123456' + i * interval '1 day'"),
    "timestamptz": ("timestamptz", "timestamptz '1890-01-02 03:04:05.6+00' + i * interval '1 day'"),
    "timetz": ("timetz", "timetz '03:04:05+07:30:20' + i * interval '1 minute'"),
    "interval": ("interval", "make_interval(years => i, days => -3, secs => 4.5)"),
    "float8": ("float8", "i / 7.0::float8"),
    "real": ("real", "i / 7.0::float8"),
    "numeric": ("numeric", "i / 7.0"),
    "bytea": ("bytea", "decode(lpad(i::text, 4, '0') || '00ff27', 'hex')"),
    "inet": ("inet", "inet '10.0.0.1/8' + i"),
    "range": ("daterange", "daterange(date '2026-01-12', date '2026-02-12' + i)"),
    "array": ("text[]", "ARRAY['x,\"y', NULL, i::text]"),
    "dates": ("timestamptz[]", "ARRAY[timestamptz '2026-01-12 10:00:00+00' + i * interval '1 day']"),
    "composite": ("public.pair", "ROW(i, date '2026-01-12' + i)::public.pair"),
    "jsonb": ("jsonb", "jsonb_build_object('i', i, 'n', NULL)"),
    "bit": ("bit(9)", "i::bit(9)"),
    "money": ("money", "(i * 1234.5)::numeric::money"),
    "char1": ('"char"', 'chr(64 + i)::"char"'),
    "regclass": ("oid", "(2600 + i)::oid"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_every_type_whatever_the_writer_has_set(empty_database, source, kind):
    column, value = KEYS[kind]
    run(
        empty_database,
        "CREATE TYPE public.mood AS ENUM ('o''h', 'a,b', '\"', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l')",
        "CREATE DOMAIN public.code AS varchar(8) COLLATE \"C\" CHECK (value <> '')",
        "CREATE TYPE public.pair AS (x int, y date)",
        "CREATE COLLATION public.\"oth er\" (provider = libc, locale = 'C')",
        f'CREATE TABLE public.t (uid text, part int, "The Key" {column}, n int DEFAULT 0, PRIMARY KEY ("The Key", part))',
        f"INSERT INTO public.t (uid, part, \"The Key\") SELECT 'a', i, {value} FROM generate_series(1, 12) i",
    )
    tiers = [Tier("t", "public.t")]
    install(empty_database, tiers)
    chains = follow(
        source,
        tiers,
        (STRANGE, "UPDATE public.t SET n = 1 WHERE part IN (2, 3)"),
        (STRANGE, "DELETE FROM public.t WHERE part IN (4, 5)"),
        (STRANGE, "UPDATE public.t SET part = 100 WHERE part = 6"),
        (STRANGE, "UPDATE public.t SET uid = 'b' WHERE part = 7"),
        (STRANGE, f"INSERT INTO public.t (uid, part, \"The Key\") SELECT 'a', i, {value} FROM generate_series(4, 5) i"),
        (STRANGE, "DELETE FROM public.t WHERE part > 8"),
        url=empty_database,
        scopes=SCOPES[:3],
    )
    assert chains[0].deleted == 5


def test_owners_of_any_type(empty_database, source):
    run(
        empty_database,
        "CREATE TABLE public.t (id int PRIMARY KEY, owner date, n int)",
        "INSERT INTO public.t SELECT i, date '2026-03-01' + i % 3, 0 FROM generate_series(1, 9) i",
    )
    tiers = [Tier("t", "public.t", uid="owner")]
    install(empty_database, tiers)
    chains = follow(
        source,
        tiers,
        (STRANGE, "UPDATE public.t SET n = 1 WHERE id < 4"),
        (STRANGE, "UPDATE public.t SET owner = owner + 1"),
        url=empty_database,
        scopes=(EVERYBODY, Scope.user("2026-03-02"), Scope.user("02/03/2026")),
    )
    assert [(c.changed, c.deleted) for c in chains] == [(9, 0), (3, 3), (0, 0)]


def test_names_that_want_to_break_out(empty_database, source):
    schema, table = 'S "x"; --', "t'able\\ $coldstore$ {0} %s é"
    key, uid = 'k"ey $$ {body}', "r"
    name = sql.Identifier(schema, table)
    run(
        empty_database,
        sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)),
        sql.SQL("CREATE TABLE {} ({} int, tg_op text, old_rows text, {} text, {} text, PRIMARY KEY (tg_op, {}, old_rows))").format(
            name, sql.Identifier(key), sql.Identifier(uid), sql.Identifier("%s \\'"), sql.Identifier(key)
        ),
        sql.SQL("INSERT INTO {} SELECT i, 'x' || i, 'y', 'a', 'w' FROM generate_series(1, 9) i").format(name),
    )
    tiers = [
        Tier(
            "t" * 60,
            name.as_string(None),
            uid=uid,
            workspace="%s \\'",
            where=f"old_rows <> '%s' || {sql.Identifier(key).as_string(None)}::text",
        )
    ]
    assert install(empty_database, tiers)
    assert not install(empty_database, tiers)
    chains = [Chain(source, tiers, s).step() for s in SCOPES]
    run(
        empty_database,
        sql.SQL("UPDATE {} SET {} = 'b' WHERE {} < 3").format(name, sql.Identifier(uid), sql.Identifier(key)),
        sql.SQL("DELETE FROM {} WHERE {} = 5").format(name, sql.Identifier(key)),
    )
    assert [(c.step().changed, c.deleted) for c in chains] == [(2, 1), (0, 3), (2, 0), (2, 1)]


def test_a_condition_lets_rows_in_and_out(notes, source):
    tiers = [Tier("notes", "public.notes", where="n < 5 AND s.body <> '{\"x\": 1}'", workspace="ws")]
    with connect(notes) as conn:
        capture.remove(conn)
    install(notes, tiers)
    chains = follow(
        source,
        tiers,
        "UPDATE public.notes SET n = 9 WHERE id IN (4, 8, 12)",
        "UPDATE public.notes SET n = 0 WHERE id = 8",
        "UPDATE public.notes SET body = '{\"x\": 1}' WHERE id = 8",
        url=notes,
    )
    assert (chains[0].changed, chains[0].deleted) == (0, 1)


# --- trees of tables ---------------------------------------------------------------------------------------------------------------

PARTS = Tier("parts", "public.parts")
PARTED = (
    "CREATE TABLE public.parts (id int, uid text, n int DEFAULT 0, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
    "CREATE TABLE public.p1 PARTITION OF public.parts FOR VALUES FROM (0) TO (100)",
    "CREATE TABLE public.p2 PARTITION OF public.parts FOR VALUES FROM (100) TO (300) PARTITION BY RANGE (id)",
    "CREATE TABLE public.p2a PARTITION OF public.p2 FOR VALUES FROM (100) TO (200)",
    # Attached with other columns before: the rows of a leaf do not look like those of the root.
    "CREATE TABLE public.p2b (gone text, n int DEFAULT 0, uid text, id int NOT NULL)",
    "ALTER TABLE public.p2b DROP COLUMN gone",
    "ALTER TABLE public.p2 ATTACH PARTITION public.p2b FOR VALUES FROM (200) TO (300)",
    "INSERT INTO public.parts (id, uid) SELECT i * 10, (ARRAY['a', 'b'])[i % 2 + 1] FROM generate_series(0, 29) i",
)


def test_partitions_written_through_every_door(empty_database, source):
    run(empty_database, *PARTED)
    install(empty_database, [PARTS])
    follow(
        source,
        [PARTS],
        "UPDATE public.parts SET n = n + 1 WHERE id % 20 = 0",
        "UPDATE public.p1 SET n = n + 1, uid = 'a'",
        "UPDATE public.p2 SET uid = 'b' WHERE id < 250",
        "UPDATE public.p2b SET n = 5",
        "UPDATE public.parts SET id = id + 105 WHERE id < 100 AND uid = 'a'",  # moves to other partitions
        "UPDATE public.p2 SET id = id + 1 WHERE id % 10 = 5",
        "INSERT INTO public.p2b (id, uid) VALUES (299, 'a')",
        "INSERT INTO public.parts (id, uid) VALUES (11, 'a'), (112, 'b'), (213, 'a')",
        "DELETE FROM public.p2a WHERE uid = 'b'",
        "TRUNCATE public.p2b",
        "INSERT INTO public.parts (id, uid) VALUES (11, 'b'), (212, 'b') ON CONFLICT (id) DO UPDATE SET uid = excluded.uid",
        "TRUNCATE public.parts",
        url=empty_database,
        scopes=SCOPES[:3],
    )


def test_a_partition_that_comes_or_goes_asks_for_a_full_one(empty_database):
    run(empty_database, *PARTED)
    install(empty_database, [PARTS])
    first = fingerprint(empty_database, [PARTS])
    assert first is not None
    run(empty_database, "CREATE TABLE public.p3 PARTITION OF public.parts FOR VALUES FROM (300) TO (400)")
    assert fingerprint(empty_database, [PARTS]) is None
    with connect(empty_database) as conn, source_of(empty_database) as source, source.moment([PARTS]) as moment:
        assert "public.p3" in (capture.why_not(conn, moment.catalog) or "")
    assert install(empty_database, [PARTS])
    second = fingerprint(empty_database, [PARTS])
    assert second not in {None, first}
    run(empty_database, "ALTER TABLE public.parts DETACH PARTITION public.p1")
    third = fingerprint(empty_database, [PARTS])
    assert third not in {None, first, second}
    run(empty_database, "ALTER TABLE public.parts ATTACH PARTITION public.p1 FOR VALUES FROM (0) TO (100)")
    assert fingerprint(empty_database, [PARTS]) not in {None, first, second, third}


def test_heirs(empty_database, source):
    run(
        empty_database,
        "CREATE TABLE public.base (id int PRIMARY KEY, uid text, n int DEFAULT 0)",
        "CREATE TABLE public.heir (more text) INHERITS (public.base)",
        "CREATE TABLE public.grandchild () INHERITS (public.heir)",
        "INSERT INTO public.base SELECT i, 'a' FROM generate_series(1, 9) i",
        "INSERT INTO public.heir SELECT i, 'b' FROM generate_series(5, 14) i",  # the same keys once more
        "INSERT INTO public.grandchild SELECT i, 'a' FROM generate_series(20, 29) i",
    )
    tiers = [Tier("base", "public.base")]
    install(empty_database, tiers)
    follow(
        source,
        tiers,
        "UPDATE public.base SET n = 1 WHERE id IN (5, 6, 20)",
        "UPDATE public.heir SET n = 2 WHERE id IN (7, 21)",
        "UPDATE ONLY public.base SET n = 3",
        "DELETE FROM public.grandchild WHERE id = 22",
        "DELETE FROM ONLY public.base WHERE id = 8",
        "DELETE FROM public.base WHERE id = 9",
        "INSERT INTO public.grandchild VALUES (30, 'b')",
        "TRUNCATE public.heir",
        "TRUNCATE ONLY public.base",
        url=empty_database,
        scopes=SCOPES[:3],
    )


def test_foreign_keys_that_delete_and_change(empty_database, source):
    run(
        empty_database,
        "CREATE TABLE public.nodes (id int PRIMARY KEY, uid text)",
        "CREATE TABLE public.edges (id int, uid text, node int REFERENCES public.nodes ON DELETE CASCADE ON UPDATE CASCADE,"
        " PRIMARY KEY (id)) PARTITION BY HASH (id)",
        "CREATE TABLE public.e0 PARTITION OF public.edges FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
        "CREATE TABLE public.e1 PARTITION OF public.edges FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
        "CREATE TABLE public.tags (node int REFERENCES public.nodes ON DELETE CASCADE ON UPDATE CASCADE, tag text, uid text,"
        " PRIMARY KEY (tag, node))",
        "CREATE TABLE public.hints (id int PRIMARY KEY, uid text, node int REFERENCES public.nodes ON DELETE SET NULL ON UPDATE SET NULL)",
        "INSERT INTO public.nodes SELECT i, (ARRAY['a', 'b'])[i % 2 + 1] FROM generate_series(1, 20) i",
        "INSERT INTO public.edges SELECT i, 'a', i % 20 + 1 FROM generate_series(1, 60) i",
        "INSERT INTO public.tags SELECT i, 'x', 'b' FROM generate_series(1, 20) i",
        "INSERT INTO public.hints SELECT i, 'a', i FROM generate_series(1, 20) i",
    )
    tiers = [Tier(n, f"public.{n}") for n in ("nodes", "edges", "tags", "hints")]
    install(empty_database, tiers)
    chains = follow(
        source,
        tiers,
        "DELETE FROM public.nodes WHERE id < 4",
        "UPDATE public.nodes SET id = id + 100 WHERE id < 9",
        "TRUNCATE public.nodes CASCADE",
        url=empty_database,
        scopes=SCOPES[:3],
    )
    assert chains[0].emptied == 4


@pytest.mark.parametrize("mode", ["replace", "merge"])
def test_what_a_restore_writes_is_seen(notes, source, tmp_path, mode):
    taken = take(notes, open_store(str(tmp_path)), [NOTES])
    run(notes, "DELETE FROM public.notes WHERE id < 9", "UPDATE public.notes SET n = 4, uid = 'b' WHERE id = 12")
    chains = [Chain(source, [NOTES], s).step() for s in SCOPES]
    bring_back(taken, notes, mode=mode, on_conflict="update" if mode == "merge" else "fail")
    assert [c.step().changed for c in chains] == [9, 3, 2, 3]
    assert chains[2].deleted == 1


# --- who writes --------------------------------------------------------------------------------------------------------------------


def test_a_writer_needs_no_right_of_coldstores(notes, source):
    run(
        notes,
        "DROP ROLE IF EXISTS plain_writer",
        "CREATE ROLE plain_writer",
        "GRANT USAGE ON SCHEMA public TO plain_writer",
        "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON public.notes TO plain_writer",
        "ALTER TABLE public.notes ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY theirs ON public.notes FOR ALL TO plain_writer USING (uid = 'a')",
    )
    try:
        follow(
            source,
            [NOTES],
            ("SET LOCAL ROLE plain_writer", "UPDATE public.notes SET n = 3"),
            ("SET LOCAL ROLE plain_writer", "DELETE FROM public.notes WHERE id < 10"),
            ("SET LOCAL ROLE plain_writer", "TRUNCATE public.notes"),
            url=notes,
        )
        for forbidden in (
            "SELECT * FROM coldstore.changes",
            "INSERT INTO coldstore.changes (tier, xid) VALUES ('notes', pg_current_xact_id())",
            "SELECT * FROM coldstore.heads",
            "CREATE TRIGGER t AFTER TRUNCATE ON mine EXECUTE FUNCTION coldstore.capture_notes()",
        ):
            with psycopg.connect(notes) as conn:
                conn.execute("GRANT USAGE ON SCHEMA coldstore TO plain_writer")
                conn.execute("SET ROLE plain_writer")
                conn.execute("CREATE TEMPORARY TABLE mine (id int, uid text, ws text)")
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    conn.execute(forbidden)
    finally:
        run(notes, "DROP OWNED BY plain_writer", "DROP ROLE plain_writer")


def test_what_the_role_that_takes_snapshots_needs(notes):
    run(
        notes,
        "DROP ROLE IF EXISTS taker",
        "CREATE ROLE taker LOGIN PASSWORD 'p'",
        "GRANT USAGE ON SCHEMA public TO taker",
        "GRANT SELECT ON public.notes TO taker",
    )
    url = make_conninfo(notes, user="taker")
    try:
        assert fingerprint(url, [NOTES]) is None
        with connect(url) as conn, pytest.raises(PermissionDenied):
            capture.head(conn, EVERYBODY)
        run(
            notes,
            "GRANT USAGE ON SCHEMA coldstore TO taker",
            "GRANT SELECT, DELETE ON coldstore.changes TO taker",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON coldstore.heads TO taker",
        )
        assert fingerprint(url, [NOTES]) == fingerprint(notes, [NOTES])
        with source_of(url) as source, connect(url) as conn:
            chain = Chain(source, [NOTES], Scope.user("a")).step()
            assert capture.set_head(conn, EVERYBODY, head_now(source, "its own"))
            run(notes, "UPDATE public.notes SET n = 1")
            assert chain.step().changed == 10
            capture.clean(conn, grace=SOON)
            capture.clean(conn, grace=SOON)
            assert capture.set_head(conn, EVERYBODY, head_now(source, "next"))
            capture.clean(conn, grace=SOON)
            capture.clean(conn, grace=SOON)
            assert changes(notes) == 0
        with connect(url) as conn, pytest.raises(DatabaseError):
            capture.remove(conn)
    finally:
        run(notes, "DROP OWNED BY taker", "DROP ROLE taker")


def test_a_writer_cannot_have_his_own_functions_called(notes, source):
    run(
        notes,
        "CREATE SCHEMA evil",
        "CREATE FUNCTION evil.pg_current_xact_id() RETURNS xid8 LANGUAGE sql AS $$ SELECT '3'::xid8 $$",
        "CREATE FUNCTION evil.text(int) RETURNS text LANGUAGE sql AS $$ SELECT 'forged' $$",
        "CREATE TABLE evil.changes (LIKE coldstore.changes)",
    )
    follow(source, [NOTES], ("SET search_path = evil, pg_catalog", "UPDATE public.notes SET n = 4 WHERE id = 4"), url=notes)
    assert ask(notes, "SELECT key FROM coldstore.changes WHERE tier = 'notes'") == [(["4"],)]


# --- what a chain must not survive -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "deed",
    [
        ("ALTER TABLE public.notes DISABLE TRIGGER ALL",),
        ("ALTER TABLE public.notes DISABLE TRIGGER coldstore_update_notes",),
        ("ALTER TABLE public.notes ENABLE TRIGGER coldstore_truncate_notes",),
        ("DROP TRIGGER coldstore_insert_notes ON public.notes",),
        ("ALTER TABLE public.notes DROP CONSTRAINT notes_pkey",),
        ("ALTER TABLE public.notes DROP CONSTRAINT notes_pkey", "ALTER TABLE public.notes ADD PRIMARY KEY (n, id)"),
        ("ALTER TABLE public.notes RENAME COLUMN uid TO owner",),
        ("ALTER TABLE public.notes SET UNLOGGED",),
        ("CREATE TABLE public.above (LIKE public.notes)", "ALTER TABLE public.notes INHERIT public.above"),
        ("CREATE TABLE public.below () INHERITS (public.notes)",),
        ("CREATE OR REPLACE FUNCTION coldstore.capture_notes() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",),
        ("DROP TABLE coldstore.changes",),
        ("DROP TABLE public.notes", CREATE),
    ],
)
def test_a_gap_has_no_fingerprint(notes, deed):
    run(notes, *deed)
    assert fingerprint(notes, [NOTES]) is None


@pytest.mark.parametrize(
    "deed",
    [
        (
            "ALTER TABLE public.notes DISABLE TRIGGER ALL",
            *(f"ALTER TABLE public.notes ENABLE ALWAYS TRIGGER coldstore_{e}_notes" for e in capture._EVENTS),
        ),
        ("ALTER TABLE public.notes ALTER COLUMN n TYPE int USING n + 1",),  # rewrites every row, and no trigger fires
        ("ALTER TABLE public.notes ADD COLUMN more int DEFAULT 5",),
        (
            "ALTER TABLE public.notes SET UNLOGGED",
            "ALTER TABLE public.notes SET LOGGED",
            "ALTER TABLE public.notes ALTER n SET STATISTICS 5",
        ),
    ],
)
def test_a_gap_that_was_closed_has_another_fingerprint(notes, deed):
    before = fingerprint(notes, [NOTES])
    run(notes, *deed)
    assert fingerprint(notes, [NOTES]) not in {None, before}


def test_upkeep_leaves_the_fingerprint(notes):
    before = fingerprint(notes, [NOTES])
    run(
        notes,
        "VACUUM FULL public.notes",
        "ANALYZE public.notes",
        "CLUSTER public.notes USING notes_pkey",
        "REINDEX TABLE public.notes",
        "CREATE INDEX ON public.notes (uid)",
        "TRUNCATE public.notes",
        SOME,
        "GRANT SELECT ON public.notes TO PUBLIC",
        "ALTER TABLE public.notes SET (fillfactor = 90)",
        "VACUUM FREEZE pg_catalog.pg_trigger",
        "VACUUM FREEZE pg_catalog.pg_attribute",
    )
    assert before is not None
    assert fingerprint(notes, [NOTES]) == before
    assert not install(notes, [NOTES])
    assert fingerprint(notes, [NOTES]) == before


@pytest.mark.parametrize("other", [{"where": "n < 5"}, {"uid": "ws"}, {"workspace": ""}, {"name": "renamed"}])
def test_another_configuration_has_no_fingerprint(notes, other):
    tiers = [Tier(**{"name": "notes", "table": "public.notes", "workspace": "ws", **other})]
    assert fingerprint(notes, tiers) is None
    assert install(notes, tiers)
    assert fingerprint(notes, tiers) is not None


def test_a_subscription_is_refused_and_noticed(own_server):
    first, second = own_server.createdb("publisher"), own_server.createdb("subscriber")
    run(first, CREATE, "CREATE PUBLICATION p FOR TABLE public.notes", "SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
    run(second, CREATE)
    install(second, [NOTES])
    try:
        run(
            second,
            sql.SQL("CREATE SUBSCRIPTION s CONNECTION {} PUBLICATION p WITH (create_slot = false, slot_name = 's')").format(
                sql.Literal(first)
            ),
        )
        assert fingerprint(second, [NOTES]) is None
        with pytest.raises(ConfigError, match="is written by a subscription"):
            install(second, [NOTES])
    finally:
        run(second, "DROP SUBSCRIPTION IF EXISTS s")


# --- what is refused ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statements", "tier", "says"),
    [
        (["CREATE TABLE public.x (id int)"], Tier("x", "public.x"), r"public\.x has no primary key"),
        (
            ["CREATE TABLE public.x (id int PRIMARY KEY)"],
            Tier("x", "public.x", exclude=("id",)),
            "has no primary key among the tier's columns",
        ),
        (["CREATE VIEW public.x AS SELECT 1 AS id"], Tier("x", "public.x"), "is not a table"),
        (["CREATE MATERIALIZED VIEW public.x AS SELECT 1 AS id"], Tier("x", "public.x"), "is not a table"),
        (["CREATE UNLOGGED TABLE public.x (id int PRIMARY KEY)"], Tier("x", "public.x"), "is unlogged"),
        (PARTED, Tier("x", "public.p1"), r"belongs to public\.parts"),
        (
            [
                "CREATE TABLE public.x (id int PRIMARY KEY)",
                "CREATE TABLE public.y (id int)",
                "CREATE TABLE public.z () INHERITS (public.x, public.y)",
            ],
            Tier("x", "public.x"),
            r"public\.z belongs to public\.y",
        ),
        (
            [
                "CREATE FOREIGN DATA WRAPPER w",
                "CREATE SERVER s FOREIGN DATA WRAPPER w",
                "CREATE TABLE public.x (id int, uid text) PARTITION BY LIST (uid)",
                "CREATE FOREIGN TABLE public.y PARTITION OF public.x FOR VALUES IN ('a') SERVER s",
            ],
            Tier("x", "public.x"),
            r"public\.y is not a table|no primary key",
        ),
        (
            ["CREATE TABLE public.x (id int PRIMARY KEY, at timestamptz)"],
            Tier("x", "public.x", where="at > now()"),
            "`where` depends on more",
        ),
        (["CREATE TABLE public.x (id int PRIMARY KEY)"], Tier("x", "public.x", where="id IN (SELECT 1)"), "`where` depends on more"),
        (["CREATE TABLE public.x (id int PRIMARY KEY)"], Tier("x", "public.x", where="id <"), "`where` depends on more"),
    ],
)
def test_what_could_change_unseen_is_refused_and_nothing_is_left(empty_database, statements, tier, says):
    run(empty_database, CREATE, *statements)
    with connect(empty_database) as conn:
        migrate(conn)
    with pytest.raises(ConfigError, match=says) as refused:
        install(empty_database, [NOTES, tier])
    assert refused.value.hint
    assert ask(empty_database, "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'coldstore%'") == [(0,)]
    assert ask(empty_database, "SELECT to_regclass('coldstore.changes'), to_regclass('coldstore.heads')") == [(None, None)]


def test_a_busy_table_is_left_alone(notes, monkeypatch):
    monkeypatch.setattr(capture, "_WAIT", "50ms")
    run(notes, "DROP TRIGGER coldstore_insert_notes ON public.notes")
    with psycopg.connect(notes) as busy:
        busy.execute("UPDATE public.notes SET n = 1")
        with pytest.raises(DatabaseError, match="holds on to a tier's table"):
            install(notes, [NOTES])
        with connect(notes) as conn, pytest.raises(DatabaseError, match="holds on to a tier's table"):
            capture.remove(conn)
    assert install(notes, [NOTES])


def test_removed_it_leaves_no_trace(postgres, empty_database):
    run(empty_database, *PARTED, CREATE)
    with connect(empty_database) as conn:
        migrate(conn)

    def dump() -> list[str]:
        command = [str(Path(postgres.bin) / "pg_dump"), "--schema-only", empty_database]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return [line for line in out.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]

    before = dump()
    install(empty_database, [PARTS, NOTES])
    assert dump() != before
    with connect(empty_database) as conn:
        capture.remove(conn)
        assert dump() == before
        capture.remove(conn)
    assert install(empty_database, [PARTS, NOTES])


# --- heads, and what may be forgotten ----------------------------------------------------------------------------------------------


STAMPS = itertools.count(1)


def head_now(source: Source, name: str) -> capture.Head:
    with source.moment([NOTES]) as moment:
        return capture.Head(f"memory-{name}-{next(STAMPS)}", "sum of " + name, moment.database.snapshot)


def changes(url: str) -> int:
    return ask(url, "SELECT count(*) FROM coldstore.changes")[0][0]


SOON = timedelta(0)


def test_heads_are_of_their_scope_and_the_newest_stays(notes, source):
    with connect(notes) as conn:
        assert capture.head(conn, EVERYBODY) is None
        old = head_now(source, "old")
        run(notes, "UPDATE public.notes SET n = 1")
        new = head_now(source, "new")
        long = Scope.user("x" * 9000)
        for scope in (EVERYBODY, Scope.user("all"), Scope.user(""), Scope.of_workspace("w"), long):
            assert capture.set_head(conn, scope, new)
        assert capture.set_head(conn, Scope.user("floor"), old)
        assert capture.set_head(conn, EVERYBODY, old)
        assert capture.head(conn, EVERYBODY) == new
        assert capture.head(conn, Scope.user("floor")) == old
        assert capture.head(conn, long) == new
        assert capture.head(conn, Scope.user("w")) is None


def test_the_newest_head_is_the_one_the_store_takes_for_it(notes, source):
    """Of two taken at once, the one dated later may have seen fewer transactions. With another order than the store's, nothing could be
    built on either."""
    with connect(notes) as conn:
        dated_earlier = head_now(source, "earlier")
        less = head_now(source, "later")
        run(notes, "UPDATE public.notes SET n = 1")
        more = replace(dated_earlier, snapshot=head_now(source, "x").snapshot)
        for order in ([less, more], [more, less]):
            for head in order:
                assert capture.set_head(conn, EVERYBODY, head)
            assert capture.head(conn, EVERYBODY) == less


def test_changes_go_when_no_head_needs_them(notes, source):
    with connect(notes) as conn:
        assert capture.set_head(conn, EVERYBODY, head_now(source, "first"))
        run(notes, "UPDATE public.notes SET n = 1")
        assert capture.set_head(conn, Scope.user("a"), head_now(source, "hers"))
        run(notes, "UPDATE public.notes SET n = 2")
        for _ in range(3):
            capture.clean(conn, grace=SOON)
        assert changes(notes) == 80
        assert capture.set_head(conn, EVERYBODY, head_now(source, "second"))
        for _ in range(3):
            capture.clean(conn, grace=SOON)
        assert changes(notes) == 40
        # Whoever takes no more snapshots is forgotten, and must begin anew.
        run(notes, "UPDATE coldstore.heads SET taken_at = taken_at - interval '8 days' WHERE scope = 'uid:a'")
        for _ in range(3):
            capture.clean(conn, grace=SOON)
        assert changes(notes) == 0
        assert capture.head(conn, Scope.user("a")) is None
        assert capture.head(conn, EVERYBODY) is not None


def test_a_snapshot_whose_changes_were_swept_away_becomes_no_head(notes, source):
    with connect(notes) as conn:
        slow = head_now(source, "slow")
        run(notes, "UPDATE public.notes SET n = 1")
        assert capture.set_head(conn, Scope.user("a"), head_now(source, "quick"))
        capture.clean(conn)
        capture.clean(conn)
        assert changes(notes) == 40, "swept before a slow first snapshot can have been written"
        run(notes, "UPDATE public.notes SET n = 2 WHERE id = 1")
        capture.clean(conn, grace=SOON)
        capture.clean(conn, grace=SOON)
        assert changes(notes) == 1
        assert not capture.set_head(conn, EVERYBODY, slow)
        assert capture.head(conn, EVERYBODY) is None
        assert capture.set_head(conn, EVERYBODY, head_now(source, "next"))


def test_sweeping_is_bounded_and_goes_on(notes, source, monkeypatch):
    monkeypatch.setattr(capture, "_BATCH", 10)
    monkeypatch.setattr(capture, "_BATCHES", 3)
    with connect(notes) as conn:
        run(notes, "UPDATE public.notes SET n = 1")
        capture.clean(conn, grace=SOON)
        assert [capture.clean(conn, grace=SOON) for _ in range(3)] == [30, 10, 0]


def test_sweeping_where_all_tables_are_published(notes):
    run(notes, "CREATE PUBLICATION everything FOR ALL TABLES", "UPDATE public.notes SET n = 1 WHERE id < 4")
    with connect(notes) as conn:
        capture.clean(conn, grace=SOON)
        assert capture.clean(conn, grace=SOON) == 3


def test_an_incremental_that_is_being_read_keeps_its_changes(notes, source):
    chain = Chain(source, [NOTES]).step()
    run(notes, "UPDATE public.notes SET n = 1")
    with source.moment([NOTES]) as moment, connect(notes) as conn:
        capture.clean(conn, grace=SOON)
        assert capture.clean(conn, grace=SOON) == 40
        chain.follow(moment)


def test_a_copy_of_a_database_begins_anew(notes, source, postgres, make_database):
    with connect(notes) as conn:
        assert capture.set_head(conn, EVERYBODY, head_now(source, "of the original"))
    run(notes, "UPDATE public.notes SET n = 1")
    before = fingerprint(notes, [NOTES])
    source.close()
    copy = make_database(empty=True)
    dump = subprocess.run([str(Path(postgres.bin) / "pg_dump"), notes], check=True, capture_output=True).stdout
    subprocess.run([str(Path(postgres.bin) / "psql"), "-qX", "-v", "ON_ERROR_STOP=1", copy], check=True, capture_output=True, input=dump)
    # As if it came from a server that has seen far more transactions.
    run(copy, "UPDATE coldstore.heads SET snapshot = '900000000:900000000:'", "UPDATE coldstore.changes SET xid = '900000000'")
    assert fingerprint(copy, [NOTES]) not in {None, before}
    with source_of(copy) as other, connect(copy) as conn:
        mine = head_now(other, "of the copy")
        run(copy, "UPDATE public.notes SET n = 2 WHERE id = 1")
        assert capture.set_head(conn, Scope.user("a"), mine)
        assert capture.head(conn, EVERYBODY) is None
        assert changes(copy) == 1
        # Even if nothing gave it away but numbers that are still to come.
        run(copy, "UPDATE coldstore.heads SET snapshot = '900000000:900000000:'")
        again = head_now(other, "once more")
        assert capture.set_head(conn, Scope.user("a"), again)
        assert capture.head(conn, Scope.user("a")) == again
