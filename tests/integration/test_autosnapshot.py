"""Snapshots of one user as an agent works, from a real Postgres."""

from __future__ import annotations

import psycopg
import pytest

from coldstore import config
from coldstore.app import ColdStore
from coldstore.autosave import AutoSnapshot
from coldstore.catalog import SnapshotInfo
from coldstore.postgres.connect import connect
from coldstore.postgres.migrate import install_reference_schema


@pytest.fixture
def source(empty_database):
    conn = connect(empty_database, purpose="test")
    install_reference_schema(conn)
    conn.close()
    return empty_database


def remember(url: str, uid: str, name: str) -> None:
    with psycopg.connect(url) as conn:
        conn.execute("INSERT INTO procedural_memory (uid, name, kind) VALUES (%s, %s, 'rule')", (uid, name))


def cold_store(source: str, tmp_path) -> ColdStore:
    return ColdStore(config.build({}, {"database_url": source, "url": str(tmp_path / "store")}))


@pytest.mark.parametrize("incremental", [False, True])
def test_every_so_many_operations_one_users_memory_is_taken(source, tmp_path, incremental):
    cold = cold_store(source, tmp_path)
    if incremental:
        cold.init(change_capture=True)
    taken: list[SnapshotInfo] = []
    errors: list[Exception] = []
    with AutoSnapshot(
        cold, uid="alice", every=2, incremental=incremental, wait=60, on_error=errors.append, on_save=taken.append, signals=()
    ) as auto:
        for number in range(3):
            remember(source, "alice", f"rule {number}")
            remember(source, "bob", f"rule {number}")
            assert auto.save() is True
            auto.tick()
    assert errors == []
    assert {i.uid for i in taken} == {"alice"}
    assert [i.rows["procedural_memory"] for i in taken[:1]] == [1]
    assert [i.kind for i in taken[:3]] == (["full", "incremental", "incremental"] if incremental else ["full"] * 3)
    rows = list(cold.document(taken[-1].id).parts(["proceduralMemory"]))
    assert sum(len(list(p.rows())) for p in rows) == 3
    cold.close()


def test_a_database_that_is_away_is_told_and_the_agent_goes_on(tmp_path):
    errors: list[Exception] = []
    cold = ColdStore(config.build({}, {"database_url": "postgresql://nobody@127.0.0.1:1/none", "url": str(tmp_path / "store")}))
    auto = AutoSnapshot(cold, uid="alice", every=1, wait=0.5, on_error=errors.append, signals=())
    auto.tick()
    assert auto.close() is False
    assert "DatabaseUnreachable" in {type(e).__name__ for e in errors}
