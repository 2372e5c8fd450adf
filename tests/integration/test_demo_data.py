"""The made-up memory: the same from the same seed, whole, and of the wished size."""

from __future__ import annotations

from itertools import pairwise

import psycopg
import pytest
import zstandard
from psycopg.rows import dict_row

from coldstore.errors import ConfigError, TableMissing
from coldstore.postgres.connect import connect
from coldstore.postgres.demo_data import BULK_USERS, fill, fill_bulk, people

TABLES = ("daily_memories", "graph_entities", "graph_edges", "procedural_memory", "user_profiles")


def one(conn, question):
    return conn.execute(question).fetchone()[0]


def digest(conn, table, condition="true"):
    return one(conn, f"SELECT md5(string_agg(t::text, '|' ORDER BY id)) FROM public.{table} t WHERE {condition}")


def test_names():
    everybody = people(3000)
    assert [p.uid for p in everybody[:3]] == ["uid_alice", "uid_bob", "uid_carol"]
    assert [p.name for p in everybody[:2]] == ["Alice", "Bob"]
    assert len({p.uid for p in everybody}) == 3000
    assert people(5) == everybody[:5]
    assert people(0) == []


def test_what_it_says_is_what_is_there(database):
    with psycopg.connect(database) as conn:
        counts = fill(conn, users=12, days=5, entities=6)
        assert counts == {table: one(conn, f"SELECT count(*) FROM {table}") for table in TABLES}
        assert (counts["daily_memories"], counts["graph_entities"], counts["user_profiles"]) == (60, 72, 12)
        uids = {p.uid for p in people(12)}
        for table in TABLES:
            assert {row[0] for row in conn.execute(f"SELECT DISTINCT uid FROM {table}")} == uids


def test_the_same_seed_is_the_same_memory(make_database):
    found = []
    for seed in (1, 1, 2):
        with psycopg.connect(make_database()) as conn:
            fill(conn, users=4, days=3, seed=seed)
            found.append([digest(conn, table) for table in TABLES])
    assert found[0] == found[1]
    assert all(a != b for a, b in zip(found[0], found[2], strict=True))


def test_alice_is_alice_in_any_crowd(make_database):
    found = []
    for users in (1, 9):
        with psycopg.connect(make_database()) as conn:
            fill(conn, users=users, days=3)
            found.append([digest(conn, table, "uid = 'uid_alice'") for table in TABLES])
    assert found[0] == found[1]


def test_entries_have_the_four_keys(database):
    with psycopg.connect(database) as conn:
        fill(conn, users=5)
        keys = conn.execute(
            "SELECT DISTINCT array(SELECT jsonb_object_keys(e) ORDER BY 1) FROM daily_memories, jsonb_array_elements(entries) e"
        )
        assert keys.fetchall() == [(["category", "content", "timestamp", "weight"],)]
        days = [d for (d,) in conn.execute("SELECT date FROM daily_memories WHERE uid = 'uid_alice' ORDER BY date")]
        assert all((b - a).days == 1 for a, b in pairwise(days))
        assert one(conn, "SELECT count(*) FROM daily_memories WHERE summary IS NULL") > 0
        varied = one(conn, "SELECT count(DISTINCT e->>'content')::float / count(*) FROM daily_memories, jsonb_array_elements(entries) e")
        assert varied > 0.9


def test_embeddings_are_unit_vectors_in_clusters(database):
    with psycopg.connect(database) as conn:
        fill(conn, users=20)
        assert one(conn, "SELECT count(*) FROM graph_entities WHERE embedding IS NULL") == 0
        assert one(conn, "SELECT max(abs(vector_norm(embedding) - 1)) FROM graph_entities") < 1e-4
        within, between = (
            one(
                conn,
                f"SELECT avg(a.embedding <=> b.embedding) FROM graph_entities a, graph_entities b WHERE a.id < b.id AND (a.type = b.type) = {same}",
            )
            for same in (True, False)
        )
        assert within < 0.5 < between


def test_without_embeddings(database):
    with psycopg.connect(database) as conn:
        fill(conn, users=2, embeddings=False)
        assert one(conn, "SELECT count(embedding) FROM graph_entities") == 0


def test_the_vector_index_is_back(database):
    with psycopg.connect(database) as conn:
        before = conn.execute("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1").fetchall()
        fill(conn, users=2)
        assert conn.execute("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1").fetchall() == before
        assert conn.execute("SELECT count(*) FROM pg_class WHERE relname = 'coldstore_demo_vectors'").fetchone() == (0,)


def test_it_leaves_the_rows_of_others_alone(database):
    with psycopg.connect(database) as conn:
        conn.execute("INSERT INTO graph_entities (uid, name, type) VALUES ('somebody', 'a thing', 'place')")
        fill(conn, users=2)
        assert one(conn, "SELECT embedding IS NULL FROM graph_entities WHERE uid = 'somebody'")


def test_a_pinned_connection_and_one_with_dictionaries(make_database):
    conn = connect(make_database())
    assert fill(conn, users=1)["user_profiles"] == 1
    conn.close()
    with psycopg.connect(make_database(), row_factory=dict_row, autocommit=True) as conn:
        assert fill(conn, users=1)["user_profiles"] == 1
        assert fill_bulk(conn, target_bytes=300_000)["graph_entities"] > 0


def test_all_or_nothing(database):
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("DROP TABLE user_profiles")
        with pytest.raises(TableMissing):
            fill(conn, users=2)
        assert one(conn, "SELECT count(*) FROM daily_memories") == 0


def test_without_tables(empty_database):
    with psycopg.connect(empty_database) as conn, pytest.raises(TableMissing) as caught:
        fill(conn, users=1)
    assert "init --reference-schema" in caught.value.hint


@pytest.fixture(scope="module")
def bulk(postgres):
    url = postgres.createdb("bulk", template="reference_template")
    with psycopg.connect(url, autocommit=True) as conn:
        counts = fill_bulk(conn, target_bytes=20_000_000)
        yield conn, counts
    postgres.dropdb("bulk")


def json_bytes(conn, table):
    return one(conn, f"SELECT sum(octet_length(row_to_json(t)::text) + 2)::bigint FROM {table} t")


def test_bulk_has_the_wished_size_and_proportions(bulk):
    conn, counts = bulk
    sizes = {table: json_bytes(conn, table) for table in counts}
    assert sum(sizes.values()) == pytest.approx(20_000_000, rel=0.05)
    assert sizes["graph_entities"] == pytest.approx(10_000_000, rel=0.05)
    assert counts == {table: one(conn, f"SELECT count(*) FROM {table}") for table in counts}


def test_bulk_spreads_over_the_users(bulk):
    conn, _ = bulk
    assert one(conn, "SELECT count(DISTINCT uid) FROM daily_memories") == BULK_USERS
    assert one(conn, "SELECT min(uid) FROM daily_memories") == "uid_00000"
    assert one(conn, "SELECT count(DISTINCT uid) FROM procedural_memory WHERE uid NOT IN (SELECT uid FROM daily_memories)") == 0


@pytest.mark.parametrize(("table", "least", "most"), [("daily_memories", 2.5, 4.2), ("graph_entities", 2, 4)])
def test_bulk_compresses_as_memory_does(bulk, table, least, most):
    conn, _ = bulk
    text = "\n".join(line for (line,) in conn.execute(f"SELECT row_to_json(t)::text FROM {table} t")).encode()
    assert least <= len(text) / len(zstandard.compress(text, 1)) <= most


def test_bulk_without_the_index(database):
    with psycopg.connect(database, autocommit=True) as conn:
        fill_bulk(conn, target_bytes=300_000, indexes=False)
        assert one(conn, "SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%hnsw%'") == 0


def test_bulk_wants_autocommit(database):
    with psycopg.connect(database) as conn, pytest.raises(ConfigError, match="autocommit"):
        fill_bulk(conn, target_bytes=1000)
