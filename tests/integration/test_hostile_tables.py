"""Tables nobody designed for coldstore: written out and made again in an empty database, with everything that hangs on them."""

from __future__ import annotations

import pytest

from coldstore.errors import ConfigError, NotFound, SchemaMismatch, TableMissing
from coldstore.storage.open import open_store
from coldstore.tiers import EVERYBODY, Scope
from tests.integration.helpers import (
    Notes,
    ask,
    bring_back,
    contents,
    rows_of,
    run,
    sequences,
    structure,
    table_text,
    take,
    take_each_user,
    tier,
)


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


@pytest.fixture
def move(make_database, store):
    """Statements → a source made of them, and a fresh target with `tiers` of it. Both URLs, the document and the report."""

    def go(tiers, *statements, scope=EVERYBODY, target_setup=(), **options):
        source, target = make_database(empty=True), make_database(empty=True)
        run(source, *statements)
        run(target, *target_setup)
        document = take(source, store, tiers, scope, **options)
        report = bring_back(document, target)
        return source, target, document, report

    return go


def same(source, target, *, but=()):
    """Everything of the user's own is equal: structure, rows, sequences."""
    before, after = structure(source), structure(target)
    for what in before:
        if what not in but:
            assert after[what] == before[what], what
    assert contents(target) == contents(source)
    assert sequences(target) == sequences(source)


def test_mixed_case_and_quoted_names_in_other_schemas(move):
    source, target, _, _ = move(
        [tier("weird", '"Weird Sch"."Mem ""Ories"""'), tier("dotted", '"a.b"."c.d"'), tier("keyword", '"select"')],
        'CREATE SCHEMA "Weird Sch"',
        'CREATE TABLE "Weird Sch"."Mem ""Ories""" ("I D" serial PRIMARY KEY, "Uid" text, "order" int CHECK ("order" > 0), "%s" text)',
        'CREATE INDEX "In dex" ON "Weird Sch"."Mem ""Ories""" ("order" DESC NULLS LAST)',
        'INSERT INTO "Weird Sch"."Mem ""Ories""" ("Uid", "order", "%s") VALUES (\'a\', 1, \'%\'), (NULL, 2, \'{}\')',
        'CREATE SCHEMA "a.b"',
        'CREATE TABLE "a.b"."c.d" ("uid" text, "e.f" text, PRIMARY KEY ("uid", "e.f"))',
        "INSERT INTO \"a.b\".\"c.d\" VALUES ('a', 'x'), ('a', 'y')",
        'CREATE TABLE "select" ("from" int, "where" text, "table" jsonb)',
        "INSERT INTO \"select\" VALUES (1, 'x', '{\"a\": 1}')",
    )
    same(source, target)


def test_two_tables_of_one_name_in_two_schemas(move):
    source, target, document, _ = move(
        [tier("one", "a.notes"), tier("two", "b.notes")],
        "CREATE SCHEMA a",
        "CREATE SCHEMA b",
        "CREATE TABLE a.notes (id serial PRIMARY KEY, uid text)",
        "CREATE TABLE b.notes (id serial PRIMARY KEY, uid text, a_id int REFERENCES a.notes)",
        "INSERT INTO a.notes (uid) VALUES ('x'), ('y')",
        "INSERT INTO b.notes (uid, a_id) VALUES ('x', 1)",
    )
    assert {array: len(rows) for array, rows in rows_of(document).items()} == {"one": 2, "two": 1}
    same(source, target)


def test_composite_and_text_keys_and_unusual_constraints(move):
    source, target, _, _ = move(
        [tier("t"), tier("child")],
        "CREATE EXTENSION vector",
        "CREATE TYPE mood AS ENUM ('it''s fine', 'so so', '\"bad\"')",
        "CREATE TABLE t (tenant text, slug text COLLATE \"C\", at tstzrange, n numeric(38,20) NOT NULL DEFAULT 0, m mood DEFAULT 'so so',"
        " tags text[] DEFAULT '{}', u uuid DEFAULT gen_random_uuid(), v vector(3), PRIMARY KEY (tenant, slug),"
        " CONSTRAINT \"no over'lap\" EXCLUDE USING gist (at WITH &&) WHERE (tenant <> 'x'), UNIQUE NULLS NOT DISTINCT (u, n),"
        " CONSTRAINT positive CHECK (n >= 0) NOT VALID, CHECK (length(slug) < 100))",
        "CREATE INDEX ON t (lower(slug), (n * 2)) WHERE m = 'so so'",
        "CREATE INDEX ON t USING gin (tags)",
        "CREATE UNIQUE INDEX ON t (tenant) INCLUDE (n) WHERE n > 100",
        "CREATE INDEX ON t USING hnsw (v vector_l2_ops) WITH (m = 4, ef_construction = 8)",
        "CREATE INDEX ON t USING ivfflat (v vector_cosine_ops) WITH (lists = 1)",
        "CREATE INDEX ON t USING brin (n)",
        "CREATE TABLE child (id text PRIMARY KEY, tenant text, slug text, parent text REFERENCES child DEFERRABLE INITIALLY DEFERRED,"
        " FOREIGN KEY (tenant, slug) REFERENCES t ON UPDATE CASCADE ON DELETE SET NULL (slug))",
        "INSERT INTO t (tenant, slug, at, v) VALUES ('a', 'Ä', '[2026-01-01,2026-02-01)', '[1,2,3]'), ('b', 'x', NULL, NULL), ('b', 'y', 'empty', '[0,0,0]')",
        "INSERT INTO child VALUES ('c1', 'a', 'Ä', 'c2'), ('c2', NULL, NULL, 'c1'), ('c3', 'b', 'x', 'c3')",
    )
    same(source, target)


def test_generated_columns(move):
    source, target, _, _ = move(
        [tier("t")],
        "CREATE TABLE t (a int, b int GENERATED ALWAYS AS (a * 2) STORED, c text GENERATED ALWAYS AS ('v' || a), id int PRIMARY KEY)",
        "CREATE INDEX ON t (b)",
        "INSERT INTO t (a, id) VALUES (1, 1), (NULL, 2), (21, 3)",
    )
    same(source, target)
    run(target, "INSERT INTO t (a, id) VALUES (4, 4)")
    assert ask(target, "SELECT b, c FROM t WHERE id = 4") == [(8, "v4")]


def test_zero_rows_zero_columns_and_exclusions(move):
    source, target, document, _ = move(
        [tier("empty"), tier("nothing"), tier("stripped", exclude=("secret", "derived")), tier("bare", exclude=("lonely",))],
        "CREATE TABLE empty (id int PRIMARY KEY)",
        "CREATE TABLE nothing ()",
        "INSERT INTO nothing DEFAULT VALUES",
        "INSERT INTO nothing DEFAULT VALUES",
        "CREATE TABLE stripped (id int PRIMARY KEY, secret text UNIQUE, kept text, derived text GENERATED ALWAYS AS (secret || '!') STORED,"
        " CHECK (secret <> kept), CONSTRAINT short CHECK (length(kept) < 9))",
        "CREATE INDEX on_secret ON stripped (secret)",
        "CREATE INDEX on_both ON stripped (kept, lower(secret))",
        "CREATE INDEX partly ON stripped (kept) WHERE secret IS NOT NULL",
        "CREATE INDEX on_kept ON stripped (kept)",
        "INSERT INTO stripped VALUES (1, 'hush', 'a'), (2, NULL, 'b')",
        "CREATE TABLE bare (lonely text)",
        "INSERT INTO bare VALUES ('x'), ('y'), ('z')",
    )
    assert b"hush" not in b"".join(document.chunks())
    assert {array: len(rows) for array, rows in rows_of(document).items()} == {"empty": 0, "nothing": 2, "stripped": 2, "bare": 3}
    assert ask(target, "SELECT count(*) FROM nothing") == [(2,)]
    assert ask(target, "SELECT count(*) FROM bare") == [(3,)]
    assert table_text(target, "public.stripped") == table_text(source, "public.stripped", columns=["id", "kept"])
    assert ask(target, "SELECT indexname FROM pg_indexes WHERE tablename = 'stripped' ORDER BY 1") == [("on_kept",), ("stripped_pkey",)]
    assert ("public", "stripped", "-", "short", "CHECK ((length(kept) < 9))", True) in [
        tuple(c) for c in structure(target)["constraints"]
    ] or ask(target, "SELECT conname FROM pg_constraint WHERE conname = 'short'") == [("short",)]


def test_excluding_a_column_that_is_not_there(move):
    with pytest.raises(ConfigError, match="no_such"):
        move([tier("t", exclude=("no_such",))], "CREATE TABLE t (id int)")


def test_where_filters_and_is_remembered(move):
    _source, target, document, _ = move(
        [tier("t", where="kind <> 'tmp' AND id > (SELECT 0)")],
        "CREATE TABLE t (id int PRIMARY KEY, uid text, kind text)",
        "INSERT INTO t VALUES (1, 'a', 'tmp'), (2, 'a', 'x'), (3, 'b', NULL), (4, 'b', 'y')",
    )
    assert ask(target, "SELECT id FROM t ORDER BY 1") == [(2,), (4,)]
    assert document.manifest.schema.tables[0].where


def test_three_hundred_columns(move):
    source, target, _, _ = move(
        [tier("t")],
        f"CREATE TABLE t ({', '.join(f'c{n} int' for n in range(300))})",
        f"INSERT INTO t SELECT {', '.join(f'g + {n}' for n in range(300))} FROM generate_series(1, 20) g",
    )
    same(source, target)


def test_a_row_of_fifty_megabytes(move):
    source, target, document, _ = move(
        [tier("t")],
        "CREATE TABLE t (id int PRIMARY KEY, uid text, body text, raw bytea)",
        "INSERT INTO t SELECT g, 'a', repeat(md5(g::text) || E'\\n\"\\\\é', 1300000), decode(repeat('00ff', 2000000), 'hex') FROM generate_series(1, 1) g",
        "INSERT INTO t VALUES (3, 'b', 'small', NULL)",
        frame_size=1 << 20,
    )
    assert document.manifest.bytes > 60_000_000
    query = "SELECT id, md5(body), md5(raw), length(body) FROM t ORDER BY id"
    assert ask(target, query) == ask(source, query)
    assert ask(target, "SELECT max(length(body)) > 40000000 FROM t") == [(True,)]


PARTITIONED = [
    "CREATE SCHEMA cold",
    "CREATE TABLE p (id bigint GENERATED ALWAYS AS IDENTITY, uid text, at date NOT NULL, kind text NOT NULL, v jsonb, PRIMARY KEY (id, at, kind)) PARTITION BY RANGE (at)",
    "CREATE TABLE p_2025 PARTITION OF p FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')",
    "CREATE TABLE cold.p_old PARTITION OF p FOR VALUES FROM (MINVALUE) TO ('2025-01-01') PARTITION BY LIST (kind)",
    "CREATE TABLE cold.\"p Old A\" PARTITION OF cold.p_old FOR VALUES IN ('a', 'it''s')",
    "CREATE TABLE cold.p_old_rest PARTITION OF cold.p_old DEFAULT PARTITION BY HASH (id)",
    "CREATE TABLE cold.p_h0 PARTITION OF cold.p_old_rest FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
    "CREATE TABLE cold.p_h1 PARTITION OF cold.p_old_rest FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
    "CREATE TABLE p_rest PARTITION OF p DEFAULT",
    "CREATE INDEX ON p (uid, at)",
    "INSERT INTO p (uid, at, kind, v) SELECT 'u' || g % 3, date '2024-06-01' + g * 5, (ARRAY['a', 'b', 'it''s'])[1 + g % 3], to_jsonb(g) FROM generate_series(0, 199) g",
]


def test_partitions(move):
    source, target, _, _ = move([tier("p")], *PARTITIONED, frame_size=1000)
    same(source, target)


def test_one_user_of_a_partitioned_table(move):
    source, target, _document, _ = move([tier("p")], *PARTITIONED, scope=Scope.user("u1"))
    assert table_text(target, "public.p") == table_text(source, "public.p", where="uid = 'u1'")
    assert len(table_text(target, "public.p")) > 60


def test_a_partition_whose_columns_stand_in_another_order(move):
    source, target, _, _ = move(
        [tier("p")],
        "CREATE TABLE p (id int, uid text, gone int, body text) PARTITION BY LIST (uid)",
        "CREATE TABLE odd (body text, dropped int, uid text, id int, gone int)",
        "ALTER TABLE odd DROP COLUMN dropped",
        "ALTER TABLE p ATTACH PARTITION odd FOR VALUES IN ('a')",
        "ALTER TABLE p DROP COLUMN gone",
        "INSERT INTO p VALUES (1, 'a', 'x'), (2, 'a', NULL)",
    )
    assert table_text(target, "public.p") == table_text(source, "public.p")
    run(target, "INSERT INTO p VALUES (3, 'a', 'new')")


def test_inheritance_becomes_one_table(move):
    source, target, document, _ = move(
        [tier("base")],
        "CREATE TABLE base (id int, uid text)",
        "CREATE TABLE heir (extra text) INHERITS (base)",
        "INSERT INTO base VALUES (1, 'a')",
        "INSERT INTO heir VALUES (2, 'a', 'x'), (3, 'b', 'y')",
    )
    assert table_text(target, "public.base") == table_text(source, "public.base")
    assert len(rows_of(document)["base"]) == 3


def test_views_come_back_as_tables(move):
    source, target, document, _ = move(
        [tier("seen"), tier("kept")],
        "CREATE TABLE t (id int PRIMARY KEY, uid text, v jsonb)",
        "INSERT INTO t SELECT g, 'u' || g % 2, to_jsonb(g) FROM generate_series(1, 50) g",
        "CREATE VIEW seen AS SELECT id, uid, v, upper(uid) AS loud FROM t WHERE id <> 7",
        "CREATE MATERIALIZED VIEW kept AS SELECT uid, count(*) AS n FROM t GROUP BY uid",
        frame_size=500,
    )
    assert table_text(target, "public.seen") == table_text(source, "public.seen")
    assert table_text(target, "public.kept") == table_text(source, "public.kept")
    assert len(rows_of(document)["seen"]) == 49


def test_a_view_in_the_target_is_refused(make_database, store):
    source, target = make_database(empty=True), make_database(empty=True)
    run(source, "CREATE TABLE t (id int)", "INSERT INTO t VALUES (1)")
    run(target, "CREATE VIEW t AS SELECT 1 AS id WHERE false")
    with pytest.raises(SchemaMismatch, match="is a view"):
        bring_back(take(source, store, [tier("t")]), target)


def test_a_table_without_an_owner_is_in_all_user_snapshots_only(make_database, store):
    source, target = make_database(empty=True), make_database(empty=True)
    run(
        source,
        "CREATE TABLE mine (id int, uid text)",
        "CREATE TABLE world (id int, body text)",
        "INSERT INTO mine VALUES (1, 'a'), (2, 'b')",
        "INSERT INTO world VALUES (1, 'x')",
    )
    tiers = [tier("mine"), tier("world")]
    whole = take(source, store, tiers)
    assert {a: len(r) for a, r in rows_of(whole).items()} == {"mine": 2, "world": 1}
    one = take(source, store, tiers, Scope.user("a"))
    assert {a: len(r) for a, r in rows_of(one).items()} == {"mine": 1}
    assert one.manifest.schema.omitted == ["world"]
    report = bring_back(whole, target, scope=Scope.user("a"))
    assert any("world" in note and "uid" in note for note in report.notes)
    assert list(contents(target)) == [("public", "mine")]
    with pytest.raises(NotFound, match="no tier has a column"):
        take(source, store, [tier("world")], Scope.user("a"))
    with pytest.raises(ConfigError, match="no column"):
        take(source, store, [tier("mine", uid="nobody")], Scope.user("a"))


@pytest.mark.parametrize(
    ("type_name", "uids", "nobody"),
    [
        ("uuid", ["6f2d7b86-7f3f-4a8a-9d5e-3a1f0c2b4d5e", "6f2d7b86-7f3f-4a8a-9d5e-3a1f0c2b4d5f"], "alice"),
        ("bigint", ["42", "-9223372036854775808", "4242"], "042"),
        ("integer", ["7", "77"], "99999999999999999999"),
        ("smallint", ["-1", "1"], "1.0"),
        ("character varying(20)", ["a", "ab"], "A"),
        ("character(8)", ["a", "ab"], "a "),
        ("name", ["a", "ab"], "b"),
        ("numeric", ["1.50", "1.5"], "1.500"),
        ("who", ["a b", "it's"], "x"),
        ("person", ["ann", "anna"], "an"),
    ],
)
def test_owners_of_every_type(make_database, store, type_name, uids, nobody):
    source = make_database(empty=True)
    run(
        source,
        "CREATE TYPE who AS ENUM ('a b', 'it''s', 'x')",
        "CREATE DOMAIN person AS text CHECK (VALUE <> '')",
        f"CREATE TABLE t (id int, owner {type_name})",
        *(
            f"INSERT INTO t VALUES ({n}, '{uid.replace(chr(39), chr(39) * 2)}'), ({n + 100}, '{uid.replace(chr(39), chr(39) * 2)}')"
            for n, uid in enumerate(uids)
        ),
    )
    tiers = [tier("t", uid="owner")]
    whole = take(source, store, tiers)
    each = {d.manifest.uid: rows_of(d) for d in take_each_user(source, store, tiers)}
    assert sorted(each) == sorted(uids)
    for number, uid in enumerate(uids):
        one = take(source, store, tiers, Scope.user(uid))
        assert rows_of(one) == each[uid]
        assert len(rows_of(one)["t"]) == 2
        target = make_database(empty=True)
        bring_back(whole, target, scope=Scope.user(uid))
        assert ask(target, "SELECT id FROM t ORDER BY 1") == [(number,), (number + 100,)]
        bring_back(one, target, mode="replace")
        assert ask(target, "SELECT id FROM t ORDER BY 1") == [(number,), (number + 100,)]
    with pytest.raises(NotFound, match="not one row"):
        take(source, store, tiers, Scope.user(nobody))
    with pytest.raises(NotFound, match="not one row"):
        bring_back(whole, make_database(empty=True), scope=Scope.user(nobody))


def test_foreign_keys_to_a_table_outside_are_noted(move):
    _source, target, _, report = move(
        [tier("t")],
        "CREATE TABLE outside (id int PRIMARY KEY)",
        "CREATE TABLE t (id int PRIMARY KEY, o int REFERENCES outside, parent int REFERENCES t)",
        "INSERT INTO outside VALUES (1)",
        "INSERT INTO t VALUES (1, 1, NULL), (2, 1, 1)",
    )
    assert [n for n in report.notes if "t_o_fkey" in n and "outside" in n]
    assert ask(target, "SELECT conname FROM pg_constraint WHERE contype = 'f'") == [("t_parent_fkey",)]


@pytest.mark.parametrize(("home", "away"), [("public", "extensions"), ("public", "Ex Tensions"), ("Old Home", "public")])
def test_an_extension_that_lives_elsewhere_in_the_target(move, home, away):
    source, target, _, _ = move(
        [tier("t")],
        f'CREATE SCHEMA IF NOT EXISTS "{home}"',
        f'CREATE EXTENSION vector SCHEMA "{home}"',
        f"SET search_path = public, \"{home}\"; CREATE TABLE t (id int PRIMARY KEY, v vector(3) DEFAULT '[0,0,0]', h halfvec(2)[], w vector,"
        " n real GENERATED ALWAYS AS (vector_norm(v)) STORED, CHECK ((v <-> '[1,1,1]') < 1000));"
        "CREATE INDEX ON t USING hnsw (v vector_cosine_ops); CREATE INDEX ON t ((v::halfvec(3)));"
        "INSERT INTO t VALUES (1, '[1,2,3]', ARRAY['[1,2]', NULL]::halfvec(2)[], '[5]'), (2, DEFAULT, NULL, NULL)",
        target_setup=[f'CREATE SCHEMA IF NOT EXISTS "{away}"', f'CREATE EXTENSION vector SCHEMA "{away}"'],
        vectors="hex",
    )
    assert table_text(target, "public.t") == table_text(source, "public.t")
    assert len(ask(target, "SELECT 1 FROM pg_indexes WHERE tablename = 't'")) == 3
    run(target, "INSERT INTO t (id) VALUES (9)")
    assert ask(target, "SELECT v::text FROM t WHERE id = 9") == [("[0,0,0]",)]


def test_an_enum_of_the_target_that_lacks_a_value(make_database, store):
    source, target = make_database(empty=True), make_database(empty=True)
    run(source, "CREATE TYPE mood AS ENUM ('good', 'so so')", "CREATE TABLE t (m mood)", "INSERT INTO t VALUES ('so so')")
    run(target, "CREATE TYPE mood AS ENUM ('good')")
    before = structure(target)
    with pytest.raises(SchemaMismatch, match="so so"):
        bring_back(take(source, store, [tier("t")]), target)
    assert structure(target) == before
    run(target, "ALTER TYPE mood ADD VALUE 'so so'")
    bring_back(take(source, store, [tier("t")]), target)
    assert ask(target, "SELECT m FROM t") == [("so so",)]


def test_types_made_of_types(move):
    source, target, _, _ = move(
        [tier("t")],
        "CREATE SCHEMA types",
        "CREATE TYPE types.level AS ENUM ('low', 'High One')",
        "CREATE DOMAIN types.email AS text COLLATE \"C\" NOT NULL DEFAULT 'x@y' CONSTRAINT at CHECK (VALUE LIKE '%@%')",
        "CREATE DOMAIN types.strict AS types.email CHECK (length(VALUE) < 50)",
        "CREATE TYPE types.inner AS (l types.level, e types.strict[], n numeric(5,2))",
        'CREATE TYPE types.outer AS (i types.inner, "many Ins" types.inner[], j jsonb)',
        "CREATE DOMAIN types.outers AS types.outer[]",
        'CREATE TYPE types.span AS RANGE (SUBTYPE = text, COLLATION = "C", MULTIRANGE_TYPE_NAME = types."Many Spans")',
        "CREATE TYPE types.timespan AS RANGE (SUBTYPE = time)",
        'CREATE TABLE t (id int, o types.outers, s types.span, ms types."Many Spans", ts types.timespan, e types.strict, i types.inner)',
        "INSERT INTO t VALUES (1, ARRAY[ROW(ROW('High One', ARRAY['a@b'], 1.50), ARRAY[ROW('low', NULL, NULL)]::types.inner[], 'null'), NULL]::types.outer[],"
        " types.span('B', 'a'), types.\"Many Spans\"(types.span('B', 'a')), types.timespan('01:00', '02:00'), 'q@r', ROW(NULL, NULL, NULL)),"
        " (2, NULL, NULL, NULL, NULL, 'z@z', NULL)",
    )
    same(source, target)


def test_a_default_that_calls_a_function_the_target_lacks(make_database, store):
    """Functions are not part of a document. The rows come back all the same, and the report says what has to be made by hand."""
    source, target = make_database(empty=True), make_database(empty=True)
    run(
        source,
        "CREATE FUNCTION ulid() RETURNS text LANGUAGE sql AS $$ SELECT md5(random()::text) $$",
        "CREATE FUNCTION fine(text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT true $$",
        "CREATE TABLE t (id text PRIMARY KEY DEFAULT ulid(), uid text, CONSTRAINT is_fine CHECK (fine(uid)))",
        "CREATE INDEX by_fine ON t (fine(uid))",
        "INSERT INTO t (uid) VALUES ('a'), ('b')",
    )
    report = bring_back(take(source, store, [tier("t")]), target)
    assert table_text(target, "public.t") == table_text(source, "public.t")
    assert len([n for n in report.notes if "ulid" in n or "fine" in n]) == 3


def test_a_missing_table_and_an_unreadable_name(empty_database, store):
    with pytest.raises(TableMissing, match="nowhere"):
        take(empty_database, store, [tier("nowhere")])
    with pytest.raises((ConfigError, TableMissing)):  # which of the two depends on the version of Postgres
        take(empty_database, store, [tier("t", "a b c; drop")])


def test_a_type_is_not_a_table(empty_database, store):
    run(empty_database, "CREATE TABLE t (id int PRIMARY KEY)", "CREATE SEQUENCE s")
    for wrong in ("t_pkey", "s"):
        with pytest.raises(TableMissing):
            take(empty_database, store, [tier("x", wrong)])


def test_a_table_that_grew_while_the_process_was_warm(make_database, store):
    """The catalog is remembered between snapshots of one process, and never believed after somebody altered a table."""
    from coldstore.export import snapshot
    from tests.integration.helpers import source_of

    url = make_database(empty=True)
    run(url, "CREATE TABLE t (id int, uid text)", "INSERT INTO t VALUES (1, 'a')")
    with source_of(url) as source:
        for change, expected in [
            ("SELECT 1", {"id", "uid"}),
            ("ALTER TABLE t ADD COLUMN c int DEFAULT 5", {"id", "uid", "c"}),
            ("ALTER TABLE t RENAME COLUMN c TO d", {"id", "uid", "d"}),
            ("ALTER TABLE t DROP COLUMN d", {"id", "uid"}),
            ("ALTER TABLE t RENAME TO u; CREATE TABLE t (x int, uid text); INSERT INTO t VALUES (1, 'a')", {"x", "uid"}),
            ("DROP TABLE t; CREATE TABLE t (y int, uid text); INSERT INTO t VALUES (1, 'a')", {"y", "uid"}),
        ]:
            run(url, change)
            manifest = snapshot(source, store, tiers=[tier("t")], scope=Scope.user("a"))
            assert {c.name for c in manifest.schema.tables[0].columns} == expected
            assert manifest.rows() == {"t": 1}


def test_progress_counts_every_row(database, store):
    run(database, "INSERT INTO daily_memories (uid, date) SELECT 'u' || g, '2026-01-01' FROM generate_series(1, 25) g")
    seen = Notes()
    take(database, store, progress=seen)
    assert seen.rows == 25
    assert seen.steps[0] == "daily_memories"
