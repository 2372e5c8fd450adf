"""`coldstore runs`, and what the other commands leave there."""

from __future__ import annotations

import os
import signal

import pytest

from tests.acceptance.conftest import as_role
from tests.acceptance.program import ask, ended, execute, wait_until
from tests.acceptance.test_signals import SLOW_TIER, SLOW_VIEW, busy

CONFIG, DATABASE = 2, 3


@pytest.fixture
def listed(cold, memory):
    """The program with a source that has a list of runs."""
    cold.env["DATABASE_URL"] = memory
    cold("init")
    return cold


def test_what_ran(listed, target):
    alice = listed("snapshot", "--uid", "uid_alice", "--json").json
    listed("snapshot", "--each-user")
    listed("restore", alice["id"], "--to", target)
    listed("snapshot", "--uid", "uid_nobody", code=6)
    lines = listed("runs").out.splitlines()
    assert lines[0].split() == ["STARTED", "(UTC)", "KIND", "BY", "OF", "STATE", "TOOK", "SNAPSHOT,", "OR", "WHY", "NOT"]
    shown = [" ".join(line.split()[2:]) for line in lines[1:]]
    assert shown[0].startswith("snapshot cli uid_nobody failed 0.")
    assert shown[0].endswith(" NotFound: there is not one row of user 'uid_nobody'")
    assert shown[1].startswith("restore cli everybody succeeded ")
    assert shown[2].startswith("snapshot cli each user succeeded ")
    assert shown[3].startswith("snapshot cli uid_alice succeeded 0.")
    assert shown[3].endswith(f" s {alice['id']}")
    assert len(shown) == 4
    (failed,) = listed("runs", "--state", "failed", "--json").json
    assert (failed["kind"], failed["uid"], failed["trigger"]) == ("snapshot", "uid_nobody", "cli")
    assert [r["kind"] for r in listed("runs", "--kind", "restore", "--json").json] == ["restore"]
    assert len(listed("runs", "--limit", "2", "--json").json) == 2
    assert [r["snapshotId"] for r in listed("runs", "--uid", "uid_alice", "--json").json] == [alice["id"]]
    listed.refused("runs", "--kind", "snapshots", code=CONFIG, error="ConfigError")
    listed.refused("runs", "--state", "done", code=CONFIG, error="ConfigError")


def test_nothing_yet(listed):
    assert listed("runs").out == "Nothing ran.\n"
    assert listed("runs", "--json").json == []


def test_no_list(cold, memory):
    told = cold.refused("runs", env={"DATABASE_URL": memory}, code=DATABASE, error="TableMissing")
    assert "coldstore init" in told["hint"]
    told = cold.refused("runs", code=CONFIG, error="ConfigError")
    assert "DATABASE_URL" in told["hint"]


def test_it_is_written_for_those_who_may_only_read_it_too(listed, database, role):
    listed("snapshot")
    execute(database, f"GRANT USAGE ON SCHEMA coldstore TO {role}", f"GRANT SELECT ON coldstore.runs TO {role}")
    reader = as_role(listed.env["DATABASE_URL"], role)
    assert [r["kind"] for r in listed("runs", "--json", "--database", reader).json] == ["snapshot"]


def test_looking_around_asks_no_database(listed):
    found = listed("snapshot", "--json").json
    env = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/gone", "COLD_STORE_RUNS_LOG": "required"}
    for arguments in (["list"], ["show", found["id"]], ["cat", found["id"]]):
        assert listed(*arguments, env=env).err == ""
    told = listed.refused("verify", "--all", env=env, code=DATABASE, error="DatabaseUnreachable")
    assert told["hint"]


def test_a_setting_that_cannot_be(cold, memory):
    for name, value in (("COLD_STORE_RUNS_LOG", "sometimes"), ("COLD_STORE_RUNS_TIMEOUT", "5")):
        told = cold.refused("runs", env={"DATABASE_URL": memory, name: value}, code=CONFIG, error="ConfigError")
        assert name in told["message"]
    (cold.folder / "coldstore.toml").write_text('[runs]\nlog = "off"\ntimeout = 60\nrunss = 1\n')
    told = cold.refused("runs", env={"DATABASE_URL": memory}, code=CONFIG, error="ConfigError")
    assert "runss" in told["message"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_interrupted_says_so(listed, memory, number):
    execute(memory, SLOW_VIEW)
    (listed.folder / "coldstore.toml").write_text(SLOW_TIER)
    process = listed.start("snapshot")
    wait_until(lambda: busy(memory, "COPY"), process=process)
    os.killpg(process.pid, number)
    assert ended(process).code == 128 + number
    (row,) = listed("runs", "--json").json
    assert (row["state"], row["error"]) == ("failed", "interrupted")


def test_who_was_killed_is_closed_by_the_next_look(listed, memory):
    execute(memory, SLOW_VIEW)
    (listed.folder / "coldstore.toml").write_text(SLOW_TIER)
    process = listed.start("snapshot")
    wait_until(lambda: busy(memory, "COPY"), process=process)
    os.killpg(process.pid, signal.SIGKILL)
    ended(process)
    assert [r["state"] for r in listed("runs", "--json").json] == ["running"]
    execute(memory, "UPDATE coldstore.runs SET heartbeat_at = now() - interval '91 seconds'")
    (row,) = listed("runs", "--json").json
    assert (row["state"], row["details"]) == ("failed", {"reaped": True})
    assert row["error"].startswith("no sign of life since ")
    assert ask(memory, "SELECT state FROM coldstore.runs") == [("failed",)]
