"""`drill`: the newest snapshot or a named one, on an embedded Postgres or a server; what a person, a program and `list` get to see."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest

from coldstore.postgres.scratch import PREFIX
from tests.acceptance.conftest import as_role, take, with_password
from tests.acceptance.program import ask, check_refusal, ended, wait_until

CONFIG, DATABASE, NOT_FOUND, NOT_PROVEN = 2, 3, 6, 9
ALICE = """
[[drill.assert]]
name = "alice is there"
sql = "SELECT count(*) > 0 FROM daily_memories WHERE uid = 'uid_alice'"
"""


@pytest.fixture
def server(postgres) -> str:
    return with_password(postgres.url())


def left_behind(postgres) -> list[str]:
    return [name for (name,) in ask(postgres.url(), f"SELECT datname FROM pg_database WHERE datname LIKE '{PREFIX}%'")]


def test_proven_on_an_embedded_postgres(cold, stored):
    (cold.folder / "coldstore.toml").write_text(ALICE)
    told = cold("drill")
    lines = told.out.splitlines()
    assert (lines[0], lines[-1]) == (stored.info.id, "proven")
    assert re.fullmatch(r"restore +ok +\d+\.\d\d s  12 rows in 3 tables", lines[1])
    assert re.fullmatch(r"assertion alice is there +ok +\d+\.\d\d s  true", lines[-2])
    assert told.err == ""
    (day,) = {line.split()[-1] for line in cold("list").out.splitlines()[1:]}
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", day)
    (listed,) = cold("list", "--json").json
    assert listed["lastProven"].startswith(day)
    assert listed["lastDrill"] == {"at": listed["lastProven"], "proven": True}


def test_not_proven(cold, stored, server, postgres):
    (cold.folder / "coldstore.toml").write_text(ALICE.replace("uid_alice'", "uid_carol'"))
    result = cold("drill", "--to", server, "--json", code=NOT_PROVEN)
    assert result.err == ""
    assert set(result.json) == {"id", "proven", "checks", "seconds", "at"}
    assert (result.json["id"], result.json["proven"]) == (stored.info.id, False)
    assert [(c["name"], c["detail"]) for c in result.json["checks"] if not c["ok"]] == [("assertion alice is there", "it is false")]
    (listed,) = cold("list", "--json").json
    assert (listed["lastProven"], listed["lastDrill"]) == (None, {"at": result.json["at"], "proven": False})
    assert f"failed {result.json['at'][:10]}" in cold("list").out
    (record,) = (cold.folder / "coldstore-data" / "drills" / stored.info.id).iterdir()
    assert json.loads(record.read_bytes())["checks"] == result.json["checks"]
    assert cold("drill", code=NOT_PROVEN).out.splitlines()[-1] == "NOT PROVEN"
    assert left_behind(postgres) == []


def test_which_snapshot(cold, stored, server):
    alice = take(stored.url, cold.folder / "coldstore-data", uid="uid_alice").info.id
    for arguments, expected in [([], stored.info.id), (["--latest"], stored.info.id), ([alice], alice)]:
        assert cold("drill", *arguments, "--json", env={"COLD_STORE_DRILL_URL": server}).json["id"] == expected


def test_a_damaged_snapshot(cold, stored, server):
    data = bytearray(stored.document.read_bytes())
    data[-50] ^= 1
    stored.document.write_bytes(data)
    result = cold("drill", "--to", server, "--json", code=NOT_PROVEN)
    assert [(c["name"], c["ok"]) for c in result.json["checks"]] == [("restore", False)]


def test_one_that_is_kept(cold, stored, server, postgres):
    told = cold("drill", "--to", server, "--keep", "--json")
    (name,) = left_behind(postgres)
    try:
        assert told.json["proven"]
        assert name in told.err
        assert ask(postgres.url(name), "SELECT count(*) FROM daily_memories") == [(6,)]
    finally:
        postgres.dropdb(name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(cold, stored, server, postgres, number):
    (cold.folder / "coldstore.toml").write_text("[[drill.assert]]\nname = 'slow'\nsql = 'SELECT pg_sleep(50) IS NOT NULL'\n")
    process = cold.start("drill", "--to", server, "--json")
    wait_until(lambda: ask(postgres.url(), "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(50)%'"), process=process)
    os.killpg(process.pid, number)
    check_refusal(ended(process), code=128 + number, error="Interrupted")
    assert left_behind(postgres) == []
    assert not (cold.folder / "coldstore-data" / "drills").exists()


def test_refusals(cold, stored, server, role):
    cold.refused("drill", stored.info.id, "--latest", code=CONFIG, error="ConfigError")
    cold.refused("drill", "--to", " ", code=CONFIG, error="ConfigError")
    cold.refused("drill", "memory-all-1", code=NOT_FOUND, error="NotFound")
    cold.refused("drill", "--to", "postgresql://postgres@127.0.0.1:1/postgres", code=DATABASE, error="DatabaseUnreachable")
    told = cold.refused("drill", "--to", as_role(server, role), code=DATABASE, error="PermissionDenied")
    assert "CREATEDB" in told["hint"]


def test_a_sealed_snapshot(cold, memory, server):
    key = cold.folder / "keyfile"
    cold("keygen", key)
    env = {"DATABASE_URL": memory, "COLD_STORE_KEY_RINGS": f"local:{key}"}
    assert cold("snapshot", "--json", env=env).json["sealed"]
    assert cold("drill", "--to", server, "--json", env=env).json["proven"]
