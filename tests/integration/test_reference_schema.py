"""The reference schema: as documented, safe to run again, clear when it cannot."""

from __future__ import annotations

import uuid

import psycopg
import pytest

from coldstore import sql
from coldstore.errors import DatabaseError, PermissionDenied
from coldstore.postgres import migrate as module
from coldstore.postgres.connect import connect
from coldstore.postgres.migrate import install_reference_schema

SCHEDULED_AGENTS = [
    ("id", "uuid", "gen_random_uuid()", True),
    ("workspace_id", "text", None, False),
    ("agent_id", "text", None, False),
    ("cron_expression", "text", None, False),
    ("input_message", "text", None, False),
    ("surface", "text", "'chat'::text", False),
    ("surface_id", "text", "'scheduled'::text", False),
    ("enabled", "boolean", "true", False),
    ("last_run_at", "timestamp with time zone", None, False),
    ("last_run_error", "text", None, False),
    ("created_by", "text", None, True),
    ("created_at", "timestamp with time zone", "now()", False),
    ("updated_at", "timestamp with time zone", "now()", False),
]

TABLES = {"daily_memories", "graph_entities", "graph_edges", "procedural_memory", "user_profiles", "scheduled_agents"}


def columns(conn, table):
    return conn.execute(
        "SELECT attname, format_type(atttypid, atttypmod), pg_get_expr(adbin, adrelid), attnotnull FROM pg_attribute"
        " LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum) WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum",
        (f"public.{table}",),
    ).fetchall()


def tables(conn):
    return {name for (name,) in conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


def test_scheduled_agents_is_exactly_the_documented_table(database):
    with psycopg.connect(database) as conn:
        assert columns(conn, "scheduled_agents") == SCHEDULED_AGENTS
        assert conn.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'scheduled_agents'::regclass AND contype <> 'n'"
        ).fetchall() == [("PRIMARY KEY (id)",)]


def test_the_documented_insert(database):
    with psycopg.connect(database) as conn:
        conn.execute(
            "INSERT INTO scheduled_agents (workspace_id, agent_id, cron_expression, input_message, surface, surface_id, created_by) "
            "VALUES (NULL, 'admin-agent', '0 2 * * *', 'Run a full memory cold-store snapshot for all users.', "
            "'chat', 'cold-store-cron', 'system');"
        )
        row = conn.execute("SELECT enabled, last_run_at, created_at = updated_at, id IS NOT NULL FROM scheduled_agents").fetchone()
        assert row == (True, None, True, True)


def test_twice_is_once(database):
    with psycopg.connect(database) as conn:
        before = {table: columns(conn, table) for table in TABLES}
        conn.execute("INSERT INTO daily_memories (uid, date) VALUES ('uid_alice', '2026-02-26')")
        conn.commit()
        install_reference_schema(conn)
        install_reference_schema(conn)
        assert tables(conn) == TABLES
        assert {table: columns(conn, table) for table in TABLES} == before
        assert conn.execute("SELECT count(*) FROM daily_memories").fetchone() == (1,)


def test_psql_can_run_the_whole_file(empty_database):
    with psycopg.connect(empty_database) as conn:
        for _ in range(2):
            conn.execute(sql.text("schema.sql").encode())
        assert tables(conn) == TABLES
        assert conn.execute("SELECT to_regclass('coldstore.runs') IS NOT NULL").fetchone() == (True,)


def test_a_pinned_connection_installs_it_too(empty_database):
    """Such a one has an empty `search_path`, and keeps it."""
    conn = connect(empty_database)
    install_reference_schema(conn)
    assert tables(conn) == TABLES
    assert conn.execute("SELECT current_setting('search_path')").fetchone() in [("",), ('""',)]
    conn.close()


def test_a_table_of_the_users_own_stays(empty_database):
    with psycopg.connect(empty_database) as conn:
        conn.execute("CREATE TABLE public.user_profiles (uid text, workspace_id text, mine int)")
        conn.commit()
        install_reference_schema(conn)
        assert [name for name, *_ in columns(conn, "user_profiles")] == ["uid", "workspace_id", "mine"]


def test_pgvector_in_a_schema_of_its_own(empty_database):
    with psycopg.connect(empty_database) as conn:
        conn.execute("CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions")
        conn.commit()
        install_reference_schema(conn)
        assert ("embedding", "extensions.vector(1536)", None, False) in columns(conn, "graph_entities")


def test_no_trigger_touches_a_restored_row(database):
    with psycopg.connect(database) as conn:
        assert conn.execute("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal").fetchone() == (0,)


def test_the_embedding_has_a_cosine_index(database):
    with psycopg.connect(database) as conn:
        found = conn.execute("SELECT indexdef FROM pg_indexes WHERE tablename = 'graph_entities' AND indexdef LIKE '%hnsw%'").fetchall()
    assert [d.split(" USING ")[1] for (d,) in found] == ["hnsw (embedding vector_cosine_ops)"]


@pytest.mark.parametrize("table", ["daily_memories", "graph_entities", "graph_edges", "procedural_memory", "user_profiles"])
def test_a_tier_can_be_read_by_user_and_by_workspace(database, table):
    with psycopg.connect(database) as conn:
        leading = {
            row[0]
            for row in conn.execute(
                "SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
                " WHERE i.indrelid = %s::regclass",
                (table,),
            )
        }
    assert {"uid", "workspace_id"} <= leading


@pytest.mark.parametrize("kind", ["workflow", "rule", "template"])
def test_the_kinds_of_a_procedure(database, kind):
    with psycopg.connect(database) as conn:
        conn.execute("INSERT INTO procedural_memory (uid, kind, name) VALUES ('u', %s, 'n')", (kind,))
        with pytest.raises(psycopg.errors.CheckViolation):
            conn.execute("INSERT INTO procedural_memory (uid, kind, name) VALUES ('u', 'habit', 'n')")


def test_a_server_without_pgvector(empty_database, monkeypatch):
    real = psycopg.Connection.execute

    def execute(self, query, *args, **kwargs):
        # The server's answer where the extension is not installed: no such row.
        if isinstance(query, str) and "pg_available_extensions" in query:
            query = query.replace("'vector'", "'there is no such extension'")
        return real(self, query, *args, **kwargs)

    monkeypatch.setattr(psycopg.Connection, "execute", execute)
    with psycopg.connect(empty_database) as conn:
        with pytest.raises(DatabaseError, match="has no pgvector") as caught:
            install_reference_schema(conn)
        assert "pgvector/pgvector" in caught.value.hint
        assert tables(conn) == set()


def test_a_role_without_the_right_is_told_and_nothing_is_left(empty_database):
    role = f"nobody {uuid.uuid4().hex}"
    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute(f'CREATE ROLE "{role}"; SET ROLE "{role}"'.encode())
        with pytest.raises(PermissionDenied):
            install_reference_schema(conn)
        assert tables(conn) == set()
        conn.execute(f'RESET ROLE; DROP ROLE "{role}"'.encode())


def test_all_or_nothing(empty_database, monkeypatch):
    monkeypatch.setattr(module.sql, "section", lambda *_: sql.text("schema.sql").split("-- section: reference")[1] + "; SELECT 1 / 0;")
    with psycopg.connect(empty_database) as conn:
        with pytest.raises(DatabaseError, match="division by zero"):
            install_reference_schema(conn)
        assert tables(conn) == set()
