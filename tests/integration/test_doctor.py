"""The doctor on real databases: what keeps a snapshot from being taken, and what somebody should know. Nothing is changed there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from coldstore.app import ColdStore
from coldstore.config import build
from coldstore.diagnosis import Diagnosis
from coldstore.doctor import examine
from coldstore.postgres.connect import connect
from coldstore.postgres.migrate import migrate
from tests.servers.liars import transaction_pool


def examined(url: str | None, **settings: Any) -> dict[str, Diagnosis]:
    with ColdStore(build(settings, {} if url is None else {"database_url": url})) as store:
        return {d.name: d for d in examine(store, store=False).diagnoses}


def bad(found: dict[str, Diagnosis]) -> dict[str, str]:
    assert all(d.hint for d in found.values() if d.state in {"failed", "warning"})
    return {name: d.state for name, d in found.items() if d.state in {"failed", "warning"}}


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement.encode())


@pytest.fixture
def role(postgres, database: str) -> Iterator[str]:
    """The URL of a role that may connect."""
    name = "doctor_" + conninfo_to_dict(database)["dbname"]
    run(database, f"CREATE ROLE {name} LOGIN")
    yield make_conninfo(database, user=name)
    run(database, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def named(role: str) -> str:
    return conninfo_to_dict(role)["user"]


def test_a_database_in_order(database):
    run(database, "INSERT INTO daily_memories (uid, date) SELECT 'u', date '2026-01-01' + n FROM generate_series(1, 250) n", "ANALYZE")
    found = examined(database)
    assert bad(found) == {}
    assert found["tier daily_memories"].detail.startswith("about 250 rows, ")
    assert found["tier daily_memories"].detail.endswith("key id")
    assert found["database: role"].detail == "postgres, superuser"
    assert found["database: coldstore's own tables"].detail.startswith("absent")
    assert found["clocks"].detail == "those of this machine, the database agree"


def test_nothing_is_written(database):
    """A server that refuses every write has nothing to refuse."""
    name = conninfo_to_dict(database)["dbname"]
    run(database, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert bad(examined(database)) == {}


def test_tables_that_are_missing(empty_database):
    found = examined(empty_database)
    assert bad(found) == dict.fromkeys(("tier daily_memories", "tier graph_entities", "tier procedural_memory"), "failed")
    assert "--reference-schema" in (found["tier daily_memories"].hint or "")


def test_rights_that_are_missing(database, role):
    run(database, f"GRANT SELECT ON daily_memories TO {named(role)}")
    found = examined(role)
    assert bad(found) == {"tier graph_entities": "failed", "tier procedural_memory": "failed"}
    assert "GRANT SELECT ON graph_entities" in (found["tier graph_entities"].hint or "")
    assert found["database: role"].detail == f"{named(role)}, sees what policies let it see"


def test_row_level_security(database, role):
    run(database, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {named(role)}", "ALTER TABLE graph_entities ENABLE ROW LEVEL SECURITY")
    found = examined(role)
    assert bad(found) == {"tier graph_entities": "failed"}
    assert "row-level security hides rows" in found["tier graph_entities"].detail
    run(database, f"ALTER ROLE {named(role)} BYPASSRLS")
    assert bad(examined(role)) == {}


def test_tables_of_ones_own(empty_database):
    run(
        empty_database,
        "CREATE TABLE keyless (uid text)",
        "CREATE TABLE nobodys (id int PRIMARY KEY)",
        "CREATE TABLE parts (id int, uid text, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
        "CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100)",
        "INSERT INTO parts SELECT n, 'u' FROM generate_series(1, 40) n",
        "CREATE VIEW seen AS SELECT * FROM parts",
        "ANALYZE",
    )
    off = {name: {"enabled": False} for name in ("daily_memories", "graph_entities", "procedural_memory")}
    tiers = {name: {} for name in ("keyless", "nobodys", "parts", "seen")}
    found = examined(empty_database, tiers={**off, **tiers})
    assert bad(found) == {"tier keyless": "warning", "tier nobodys": "warning"}
    assert "no primary key" in found["tier keyless"].detail
    assert "no column says whose" in found["tier nobodys"].detail
    assert found["tier parts"].detail.startswith("about 40 rows, ")
    assert found["tier seen"].state == "ok"


def test_one_table_for_two_tiers(database):
    found = examined(database, tiers={"again": {"table": "daily_memories"}})
    assert bad(found) == {"tiers: one table each": "failed"}


def test_coldstores_own_tables(database, role):
    with connect(database) as conn:
        migrate(conn)
    assert "up to date" in examined(database)["database: coldstore's own tables"].detail
    run(database, "INSERT INTO coldstore.migrations (version, name) VALUES (999, 'later')")
    assert bad(examined(database)) == {"database: coldstore's own tables": "warning"}
    assert examined(role)["database: coldstore's own tables"].state == "skipped"


def test_no_way_to_the_database(postgres):
    found = examined(make_conninfo(postgres.url(), dbname="no_such_database"))
    assert bad(found) == {"database: reachable": "failed"}
    assert found["tier daily_memories"].state == "skipped"


def test_no_database_at_all(tmp_path):
    assert bad(examined(None)) == {"database: address": "failed"}
    with ColdStore(build({"path": str(tmp_path)}, {})) as store:
        found = {d.name: d for d in examine(store).diagnoses}
    assert found["database: address"].state == "skipped"
    assert found["store: delete"].state == "ok"


def test_a_pool_in_transaction_mode(postgres, database):
    parts = conninfo_to_dict(database)
    with transaction_pool(parts["host"], int(parts.get("port") or 5432)) as port:
        pooled = make_conninfo("", host="127.0.0.1", port=port, dbname=parts["dbname"], user=parts["user"])
        found = examined(pooled)
    assert bad(found) == {"database: sessions": "failed"}
    assert "pool in transaction mode" in found["database: sessions"].detail
    assert "session mode" in (found["database: sessions"].hint or "")
    assert found["database: way there"].detail.startswith("over the network, not encrypted")


def test_no_password_is_told(postgres, database):
    """Neither by the address nor by what fails."""
    name = conninfo_to_dict(database)["dbname"]
    right = postgres.url(name, tcp=True)
    for url in (right, right.replace(conninfo_to_dict(right)["password"], "hunter2hunter2")):
        found = examined(url)
        secret = conninfo_to_dict(url)["password"]
        assert secret not in repr(found)
    assert bad(found) == {"database: reachable": "failed"}
