"""Whatever Postgres can hold comes back: random tables, written out and restored into a database that has nothing.

What came back is compared by asking Postgres for the text of every column on both sides; coldstore's own reader has no say in it.
"""

from __future__ import annotations

import itertools
import os
from contextlib import contextmanager

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldstore.codec.compress import Codec
from coldstore.storage.open import open_store
from tests.integration import anything
from tests.integration.anything import Table, literal, quoted, tables
from tests.integration.helpers import ask, bring_back, run, structure, table_text, take, tier

_EXAMPLES = 1500 if os.environ.get("HYPOTHESIS_PROFILE") == "torture" else 45
_numbers = itertools.count(1)
_relaxed = settings(
    max_examples=_EXAMPLES,
    deadline=None,
    print_blob=True,
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
