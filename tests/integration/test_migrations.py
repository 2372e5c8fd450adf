"""The migrations reach `schema.sql`, the classes are the tables, and nobody runs a step twice."""

from __future__ import annotations

import threading
import uuid

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import create_engine, inspect
from sqlalchemy.dialects import postgresql
from sqlmodel import Session, SQLModel, select

from coldstore import sql
from coldstore.errors import ConfigError, DatabaseError, PermissionDenied
from coldstore.postgres import migrate as module
from coldstore.postgres.migrate import installed_version, migrate
from coldstore.postgres.tables import AppliedMigration, Run

CATALOG = {
    "columns": """
        SELECT c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull, a.attidentity, a.attgenerated,
               pg_get_expr(d.adbin, d.adrelid) AS def, col_description(c.oid, a.attnum) AS comment
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (c.oid, a.attnum)
        WHERE c.relnamespace = 'coldstore'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND a.attnum > 0 AND NOT a.attisdropped""",
    "relations": """
        SELECT relname, relkind, relpersistence, relrowsecurity, reloptions, obj_description(oid, 'pg_class') AS comment
        FROM pg_class WHERE relnamespace = 'coldstore'::regnamespace""",
    "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'coldstore'",
    "constraints": """
        SELECT conname, conrelid::regclass::text, contype, convalidated, pg_get_constraintdef(oid) AS def
        FROM pg_constraint WHERE connamespace = 'coldstore'::regnamespace""",
    "triggers": """
        SELECT tgname, pg_get_triggerdef(t.oid) AS def FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
        WHERE c.relnamespace = 'coldstore'::regnamespace AND NOT tgisinternal""",
    "functions": "SELECT proname, pg_get_functiondef(oid) AS def FROM pg_proc WHERE pronamespace = 'coldstore'::regnamespace",
    "types": "SELECT typname, typtype FROM pg_type WHERE typnamespace = 'coldstore'::regnamespace",
    "schema": "SELECT obj_description('coldstore'::regnamespace, 'pg_namespace') AS comment",
}


def catalog(url):
    with psycopg.connect(url, row_factory=dict_row) as conn:
        return {what: sorted(map(repr, conn.execute(query).fetchall())) for what, query in CATALOG.items()}


@pytest.fixture
def migrated(empty_database):
    with psycopg.connect(empty_database, autocommit=True) as conn:
        migrate(conn)
    return empty_database


def test_the_migrations_reach_the_schema(migrated, make_database):
    other = make_database(empty=True)
    with psycopg.connect(other) as conn:
        conn.execute(sql.section("schema.sql", "coldstore").encode())
    reached, wanted = catalog(migrated), catalog(other)
    assert reached == wanted
    assert reached["columns"]


def test_the_schema_may_be_run_again(migrated):
    before = catalog(migrated)
    with psycopg.connect(migrated) as conn:
        conn.execute(sql.section("schema.sql", "coldstore").encode())
    assert catalog(migrated) == before


@pytest.mark.parametrize("model", [Run, AppliedMigration])
def test_a_class_is_its_table(migrated, model):
    engine = create_engine(migrated.replace("postgresql://", "postgresql+psycopg://"))
    real = {c["name"]: c for c in inspect(engine).get_columns(model.__tablename__, schema="coldstore")}
    primary = inspect(engine).get_pk_constraint(model.__tablename__, schema="coldstore")["constrained_columns"]
    declared = model.__table__.columns
    engine.dispose()
    assert [c.name for c in declared] == list(real)
    assert [c.name for c in declared if c.primary_key] == primary
    for column in declared:
        found = real[column.name]
        assert spelled(column.type) == spelled(found["type"]), column.name
        assert column.nullable == found["nullable"], column.name
        assert default_of(column.server_default) == bare(found["default"]), column.name


def spelled(kind):
    return kind.compile(dialect=postgresql.dialect())


def default_of(default):
    return None if default is None else bare(getattr(default.arg, "text", default.arg))


def bare(default):
    """`'all'::text` → `all`."""
    return None if default is None else default.split("::")[0].strip("'")


def test_no_class_has_no_table():
    assert {t.fullname for t in SQLModel.metadata.tables.values()} == {"coldstore.runs", "coldstore.migrations"}


def test_a_run_goes_in_and_out(migrated):
    engine = create_engine(migrated.replace("postgresql://", "postgresql+psycopg://"))
    with Session(engine) as session:
        session.add(Run(kind="snapshot", trigger="cli", scope="uid", uid="uid_alice", details={"frames": 3}))
        session.commit()
        run = session.exec(select(Run)).one()
        assert (run.state, run.details, run.finished_at) == ("running", {"frames": 3}, None)
        assert run.started_at is not None
        assert run.started_at.tzinfo is not None
    engine.dispose()


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("kind, trigger", ("backup", "cli")),
        ("kind, trigger", ("snapshot", "cron")),
        ("kind, trigger, scope", ("snapshot", "cli", "some")),
        ("kind, trigger, scope", ("snapshot", "cli", "uid")),
        ("kind, trigger, uid", ("snapshot", "cli", "uid_alice")),
        ("kind, trigger, scope, uid, workspace", ("snapshot", "cli", "uid", "uid_alice", "acme")),
        ("kind, trigger, state", ("snapshot", "cli", "done")),
        ("kind, trigger, state", ("snapshot", "cli", "succeeded")),
        ("kind, trigger, finished_at", ("snapshot", "cli", "2026-02-26T02:00:00Z")),
    ],
)
def test_a_row_that_makes_no_sense_is_refused(migrated, columns, values):
    with psycopg.connect(migrated) as conn, pytest.raises(psycopg.errors.CheckViolation):
        conn.execute(f"INSERT INTO coldstore.runs ({columns}) VALUES ({', '.join(['%s'] * len(values))})", values)


def test_a_slot_is_taken_once(migrated):
    take = "INSERT INTO coldstore.runs (kind, trigger, schedule, slot) VALUES ('snapshot', 'schedule', %s, %s) ON CONFLICT DO NOTHING RETURNING id"
    with psycopg.connect(migrated) as conn:
        taken = [
            conn.execute(take, key).fetchone() is not None
            for key in [
                ("weekly", "2026-02-26T02:00:00Z"),
                ("weekly", "2026-02-26T03:00:00+01:00"),
                ("nightly", "2026-02-26T02:00:00Z"),
                ("nightly", "2026-02-26T02:00:00Z"),
                ("nightly", "2026-02-27T02:00:00Z"),
                (None, None),
                (None, None),
            ]
        ]
        assert taken == [True, False, True, False, True, True, True]
        with pytest.raises(psycopg.errors.CheckViolation):
            conn.execute(take, (None, "2026-02-26T02:00:00Z"))


def test_again_does_nothing(migrated):
    with psycopg.connect(migrated) as conn:
        assert migrate(conn) == []
        assert installed_version(conn) == len(sql.migrations())


def test_each_step_is_noted(empty_database):
    with psycopg.connect(empty_database) as conn:
        assert installed_version(conn) == 0
        conn.rollback()
        assert migrate(conn) == [m.version for m in sql.migrations()]
    # Another connection, so it was committed, although the first was not in autocommit mode.
    with psycopg.connect(empty_database, row_factory=dict_row) as conn:
        rows = conn.execute("SELECT version, name FROM coldstore.migrations ORDER BY version").fetchall()
        assert rows == [{"version": m.version, "name": m.name} for m in sql.migrations()]
        assert installed_version(conn) == len(sql.migrations())
        conn.rollback()
        assert migrate(conn) == []


def test_racers_share_the_steps(empty_database):
    """Also under an isolation level at which a snapshot taken before the lock would show the past."""
    start, results, errors = threading.Barrier(4), [], []

    def race(level):
        with psycopg.connect(empty_database, options=f"-c default_transaction_isolation={level}") as conn:
            start.wait()
            try:
                results.extend(migrate(conn))
            except BaseException as exc:
                errors.append(exc)

    threads = [
        threading.Thread(target=race, args=(level,)) for level in ("serializable", "repeatable\\ read", "read\\ committed", "serializable")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(results) == [m.version for m in sql.migrations()]


def test_a_newer_database_is_refused(migrated):
    with psycopg.connect(migrated, autocommit=True) as conn:
        conn.execute("INSERT INTO coldstore.migrations (version, name) VALUES (%s, 'from the future')", (len(sql.migrations()) + 1,))
        with pytest.raises(ConfigError, match="knows") as caught:
            migrate(conn)
    assert "upgrade" in caught.value.hint


def test_a_failed_step_leaves_nothing_and_the_good_ones_stay(empty_database, monkeypatch):
    good = sql.migrations()
    steps = (*good, sql.Migration(len(good) + 1, "bad", "CREATE TABLE coldstore.half (id int); SELECT 1 / 0;"))
    monkeypatch.setattr(module.sql, "migrations", lambda: steps)
    with psycopg.connect(empty_database) as conn:
        with pytest.raises(DatabaseError, match="division by zero") as caught:
            migrate(conn)
        assert isinstance(caught.value.__cause__, psycopg.Error)
        assert installed_version(conn) == len(good)
        assert conn.execute("SELECT to_regclass('coldstore.half')").fetchone() == (None,)


def test_a_connection_in_the_middle_of_something_is_refused(empty_database):
    with psycopg.connect(empty_database) as conn:
        conn.execute("SELECT 1")
        with pytest.raises(ConfigError, match="in a transaction"):
            migrate(conn)


def test_a_role_without_the_right_is_told(empty_database, role):
    with psycopg.connect(empty_database) as conn:
        conn.execute(f'SET ROLE "{role}"'.encode())
        conn.commit()
        with pytest.raises(PermissionDenied):
            migrate(conn)


def test_a_schema_that_an_administrator_made_is_enough(empty_database, role):
    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute(f'CREATE SCHEMA coldstore AUTHORIZATION "{role}"'.encode())
        conn.execute(f'SET ROLE "{role}"'.encode())
        assert migrate(conn) == [m.version for m in sql.migrations()]
        conn.execute("RESET ROLE")


@pytest.fixture
def role(empty_database):
    name = f"nobody {uuid.uuid4().hex}"
    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute(f'CREATE ROLE "{name}"'.encode())
        yield name
        conn.execute(f'DROP OWNED BY "{name}"'.encode())
        conn.execute(f'DROP ROLE "{name}"'.encode())
