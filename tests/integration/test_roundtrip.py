"""Whatever Postgres can hold comes back: random tables, written out and restored into a database that has nothing.

What came back is compared by asking Postgres for the text of every column on both sides; coldstore's own reader has no say in it.
"""

from __future__ import annotations

import itertools
import os
from contextlib import contextmanager

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from coldstore.codec.compress import Codec
from coldstore.storage.open import open_store
from tests.integration import anything
from tests.integration.anything import Table, literal, quoted, tables
from tests.integration.helpers import ask, bring_back, run, structure, table_text, take, tier

_EXAMPLES = 1000 if os.environ.get("HYPOTHESIS_PROFILE") == "torture" else 12
_numbers = itertools.count(1)
_relaxed = settings(
    max_examples=_EXAMPLES,
    deadline=None,
    print_blob=True,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
        HealthCheck.function_scoped_fixture,
    ],
)


@pytest.fixture(scope="module")
def with_vectors(postgres):
    """A template that has pgvector and nothing else."""
    run(postgres.createdb("vectors_template"), "CREATE EXTENSION vector")
    yield "vectors_template"
    postgres.dropdb("vectors_template")


@contextmanager
def two_databases(postgres, template):
    names = [f"roundtrip_{next(_numbers)}" for _ in range(2)]
    try:
        yield postgres.createdb(names[0], template=template), postgres.createdb(names[1])
    finally:
        for name in names:
            postgres.dropdb(name)


def next_values(url: str, table: Table) -> list:
    """What the table's own defaults give to two new rows."""
    with psycopg.connect(url, autocommit=True) as conn:
        statement = f"INSERT INTO {table.sql} DEFAULT VALUES RETURNING {quoted(table.columns[-1])}"
        return [conn.execute(statement.encode()).fetchone() for _ in range(2)]


def refused_by_postgres(statements, url):
    """Run them all; True when Postgres itself will not have such a table (an index row too long, a name used twice)."""
    try:
        run(url, *statements)
    except psycopg.Error as exc:
        if exc.sqlstate in {"54000", "42710", "42701", "42P07"}:
            return True
        raise
    return False


@_relaxed
@given(made=st.lists(tables(), min_size=1, max_size=2, unique_by=lambda t: (t.schema, t.name)), data=st.data())
def test_any_table_comes_back_into_an_empty_database(postgres, with_vectors, tmp_path_factory, made, data):
    codec = data.draw(st.sampled_from(["none", "gzip", "zstd"]), label="codec")
    vectors = data.draw(st.sampled_from(["text", "hex"]), label="vectors")
    frame_size = data.draw(st.sampled_from([1, 100, 8 << 20]), label="frame size")
    with two_databases(postgres, with_vectors) as (source, target):
        statements = [s for t in made for s in t.setup()]
        if refused_by_postgres([s.encode() for s in dict.fromkeys(statements)], source):
            return
        run(source, *(s.encode() for t in made for s in t.inserts()))
        tiers = [tier(f"t{n}", t.sql) for n, t in enumerate(made)]
        store = open_store(str(tmp_path_factory.mktemp("store")))
        document = take(source, store, tiers, codec=Codec(codec), vectors=vectors, frame_size=frame_size)
        report = bring_back(document, target, jobs=2)
        assert report.verified == "content"
        for table in made:
            assert table_text(target, table.sql) == table_text(source, table.sql)
            assert len(table_text(target, table.sql)) == len(table.rows)
        before, after = structure(source), structure(target)
        for what in ("columns", "constraints", "indexes"):
            assert after[what] == before[what], what
        for table in made:
            if table.key not in {"none", "uuid"}:
                there, here = next_values(source, table), next_values(target, table)
                if table.key != "shared":  # two tables may draw from it
                    assert here == there
                assert (
                    len({v for (v,) in ask(target, f"SELECT {quoted(table.columns[-1])} FROM {table.sql}".encode())}) == len(table.rows) + 2
                )


@pytest.mark.parametrize("vectors", ["text", "hex"])
@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_every_type_in_one_table(postgres, with_vectors, tmp_path, codec, vectors):
    """Each type of the strategies as a column, an array and a member of a composite, so that none depends on being drawn."""
    columns = [f"c{n} {k.sql}" for n, k in enumerate(anything.SCALARS)]
    columns += [f"a{n} {k.sql}[]" for n, k in enumerate(anything.SCALARS)]
    columns += [f"m{n} public.mixed{n}[]" for n in range(len(anything.SCALARS))]
    values, arrays, mixed = [], [], []
    for number, kind in enumerate(anything.SCALARS):
        first, *more = FIXED[kind.sql]
        values.append(f"{first}::{kind.sql}")
        arrays.append(f"ARRAY[{', '.join([first, 'NULL', *more])}]::{kind.sql}[]")
        mixed.append(f"ARRAY[ROW({first}, 'x,\"y\\'), NULL, ROW(NULL, NULL)]::public.mixed{number}[]")
    with two_databases(postgres, with_vectors) as (source, target):
        run(source, *(f"CREATE TYPE public.mixed{n} AS (v {k.sql}, t text)" for n, k in enumerate(anything.SCALARS)))
        run(source, f"CREATE TABLE everything (id serial PRIMARY KEY, {', '.join(columns)})")
        run(
            source,
            f"INSERT INTO everything VALUES (DEFAULT, {', '.join(values + arrays + mixed)})",
            "INSERT INTO everything DEFAULT VALUES",
        )
        document = take(source, open_store(str(tmp_path)), [tier("everything")], codec=Codec(codec), vectors=vectors)
        bring_back(document, target)
        assert table_text(target, "public.everything") == table_text(source, "public.everything")
        assert structure(target)["columns"] == structure(source)["columns"]


#: One or two values of each type, the awkward ones.
FIXED = {k.sql: ["NULL", "NULL"] for k in anything.SCALARS} | {
    "smallint": ["'-32768'", "'32767'"],
    "integer": ["'-2147483648'", "'2147483647'"],
    "bigint": ["'-9223372036854775808'", "'9223372036854775807'"],
    "numeric(38,20)": ["'-999999999999999999.99999999999999999999'", "'0'"],
    "numeric": ["'NaN'", "'1e-1000'", "'-Infinity'", "'1.10'"],
    "real": ["'-0'", "'1e-45'", "'NaN'", "'3.4028235e38'"],
    "double precision": ["'-0'", "'5e-324'", "'-Infinity'", "'0.1'"],
    "text": [literal("\\.\n\x01\x02\"'\\ NULL"), "'NULL'", "''"],
    "character varying(40)": ["'null'", "''"],
    "character(5)": ["'a '", "''"],
    "name": ["'a\"b'"],
    '"char"': [r"'\377'", "''"],
    "boolean": ["'t'", "'f'"],
    "bytea": [r"'\x00ff5c22'", "''"],
    "uuid": ["'00000000-0000-0000-0000-000000000000'"],
    "date": ["'infinity'", "'4713-01-01 BC'", "'5874897-12-31'"],
    "timestamp without time zone": ["'-infinity'", "'0044-03-15 12:00:00.000001 BC'", "'294276-12-31 23:59:59.999999'"],
    "timestamp with time zone": ["'infinity'", "'0044-03-15 12:00:00.000001+00 BC'", "'294276-12-31 23:59:59.999999+00'"],
    "timestamp(3) with time zone": ["'2026-02-26 02:00:00.123+05:45'"],
    "time without time zone": ["'24:00:00'", "'00:00:00.000001'"],
    "time with time zone": ["'24:00:00-15:59:59'", "'12:00:00.5+05:45'"],
    "interval": ["'-1 mon +2 days -00:00:00.000001'", "'178000000 years'"],
    "json": [literal('\n{"a": 1,\n "a":\t[1e400, "\\u0000", "\\ud834\\udd1e"]} '), "'null'", "'1.000'"],
    "jsonb": ["'null'", '\'{"a": [null, 1.000, "\\\\"]}\'', "'123456789012345678901234567890.10'"],
    "bit(7)": ["'1010101'"],
    "bit varying": ["''", "'101'"],
    "inet": ["'10.1.2.3/8'", "'::1'"],
    "cidr": ["'10.0.0.0/8'"],
    "macaddr": ["'08:00:2b:01:02:03'"],
    "macaddr8": ["'08:00:2b:01:02:03:04:05'"],
    "tsvector": ["$$'a''b':1A 'c\\\\d':2,3B '\"':4$$", "''"],
    "tsquery": ["$$'a' & !'b''c'$$"],
    "point": ["'(-0,1e-310)'", "'(Infinity,NaN)'"],
    "box": ["'(1,2),(3,4)'", "'(0,0),(1e300,-1)'"],
    "lseg": ["'[(1,2),(3,4)]'"],
    "path": ["'[(1,2),(3,4)]'", "'((1,2),(3,4))'"],
    "polygon": ["'((1,2),(3,4),(5,6))'"],
    "circle": ["'<(1,2),3>'"],
    "money": ["'-92233720368547758.08'", "'1234567.89'"],
    "oid": ["'4294967295'"],
    "regclass": ["'pg_catalog.pg_class'", "'0'"],
    "regtype": ["'integer[]'"],
    "pg_lsn": ["'FFFFFFFF/0'"],
    "xid8": ["'18446744073709551615'"],
    "tid": ["'(4294967295,65535)'"],
    "jsonpath": [literal('strict $."a b"[*] ? (@ > 1)')],
    "int2vector": ["'1 2 3'", "''"],
    "int4range": ["'empty'", "'(,5)'"],
    "numrange": ["'[1.10,2.200]'", "'(,)'"],
    "daterange": ["'[-infinity,infinity]'"],
    "tstzrange": ["'[\"0044-03-15 12:00:00+00 BC\",infinity)'"],
    "int8multirange": ["'{[1,2),[5,9)}'", "'{}'"],
    "datemultirange": ["'{[2020-01-01,2021-01-01),[2022-02-02,)}'"],
    "public.vector": ["'[1.1754944e-38,-0,3.4028235e38]'", "'[1]'"],
    "public.vector(3)": ["'[1,2,0.1]'"],
    "public.halfvec(2)": ["'[65504,-0.00006]'"],
    "public.sparsevec(5)": ["'{1:1.5,5:-2e-30}/5'", "'{}/5'"],
}


def test_every_type_has_a_fixed_value():
    assert not [k for k, v in FIXED.items() if v == ["NULL", "NULL"]]
    assert set(FIXED) == {k.sql for k in anything.SCALARS}


@pytest.mark.parametrize("type_name", ["text", "jsonb", "character varying", "name"])
def test_a_nul_character_cannot_get_in(empty_database, type_name):
    """What coldstore need not carry: Postgres has no such character in a text."""
    run(empty_database, f"CREATE TABLE t (v {type_name})")
    with psycopg.connect(empty_database) as conn:
        with pytest.raises(psycopg.Error):
            conn.execute("INSERT INTO t VALUES (chr(0)::" + type_name + ")")
        conn.rollback()
        with pytest.raises(psycopg.Error):
            conn.execute(f"INSERT INTO t VALUES ('\"\\u0000\"'::jsonb::{type_name})")
        conn.rollback()
        with pytest.raises((psycopg.Error, ValueError)):
            conn.execute("INSERT INTO t VALUES (%s)", ("a\x00b",))
    assert ask(empty_database, "SELECT * FROM t") == []


@pytest.mark.parametrize("depth", [900, 3000])
@pytest.mark.parametrize("type_name", ["json", "jsonb"])
def test_json_nested_deeper_than_a_parser_likes(make_database, tmp_path, type_name, depth):
    source, target = make_database(empty=True), make_database(empty=True)
    run(source, f"CREATE TABLE t (id int, uid text, v {type_name})")
    run(source, f"INSERT INTO t VALUES (1, 'a', (repeat('[', {depth}) || repeat(']', {depth}))::{type_name}), (2, 'b', '1')")
    document = take(source, open_store(str(tmp_path)), [tier("t")])
    bring_back(document, target)
    assert table_text(target, "public.t") == table_text(source, "public.t")


def test_a_new_row_through_every_sequence(make_database, tmp_path):
    source, target = make_database(empty=True), make_database(empty=True)
    run(
        source,
        "CREATE SEQUENCE shared START 1000 INCREMENT 10",
        "CREATE SEQUENCE never_used START 5",
        "CREATE TABLE a (id bigserial PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY (MAXVALUE 100 INCREMENT -1), s bigint DEFAULT nextval('shared'))",
        "CREATE TABLE b (id smallint GENERATED BY DEFAULT AS IDENTITY (MINVALUE 5 MAXVALUE 7 CYCLE), s bigint DEFAULT nextval('shared'),"
        " f int DEFAULT nextval('never_used'))",
        "INSERT INTO a DEFAULT VALUES",
        "INSERT INTO a DEFAULT VALUES",
        "INSERT INTO a (id) VALUES (500)",  # written past its own sequence
        "INSERT INTO b (f) VALUES (1), (2), (3)",
        "SELECT setval('a_id_seq', 40)",
    )
    bring_back(take(source, open_store(str(tmp_path)), [tier("a"), tier("b")]), target)
    run(source, "SELECT setval('a_id_seq', 500)")
    for url in (source, target):
        run(url, "INSERT INTO a DEFAULT VALUES", "INSERT INTO b DEFAULT VALUES")
    assert table_text(target, "public.a") == table_text(source, "public.a")
    assert table_text(target, "public.b") == table_text(source, "public.b")
    assert structure(target)["sequence options"] == structure(source)["sequence options"]
