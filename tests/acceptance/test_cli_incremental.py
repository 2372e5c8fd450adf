"""`coldstore snapshot --incremental`: what it says, writes and refuses."""

from __future__ import annotations

import pytest

from tests.acceptance.program import execute

CONFIG, REFUSED, SUSPECT = 2, 16, 13


@pytest.fixture
def recording(cold, memory):
    """The program with a source whose changes are recorded."""
    cold.env["DATABASE_URL"] = memory
    cold("init", "--change-capture")
    return cold


def test_a_chain(recording, memory):
    full = recording("snapshot", "--json").json
    assert (full["kind"], full["rows"]) == ("full", {"daily_memories": 6, "graph_entities": 4, "procedural_memory": 2})
    unchanged = recording("snapshot", "--incremental", "--json").json
    assert unchanged == {"id": None, "unchanged": True, "parent": full["id"]}
    assert recording("snapshot", "--incremental").out == f"Nothing changed since {full['id']}; nothing was written.\n"
    execute(
        memory, "UPDATE daily_memories SET date = date + 100 WHERE uid = 'uid_alice'", "DELETE FROM procedural_memory WHERE uid = 'uid_bob'"
    )
    link = recording("snapshot", "--incremental", "--json").json
    assert (link["kind"], link["rows"]) == ("incremental", {"daily_memories": 3, "graph_entities": 0, "procedural_memory": 0, "deleted": 1})
    assert recording("show", link["id"], "--json").json["parent"]["id"] == full["id"]
    shown = recording("snapshot", "--incremental", "--even-if-empty", "--prove", "--label", "tuesday").out
    assert "tuesday" in shown
    proven = recording("show", recording("list", "--label", "tuesday", "--json").json[0]["id"], "--json").json
    assert {t["tier"]: t["rows"] for t in proven["state"]} == {"daily_memories": 6, "graph_entities": 4, "procedural_memory": 1}
    assert [s["kind"] for s in recording("list", "--json").json] == ["incremental", "incremental", "full"]
    recording("verify", "--all", "--deep")


def test_for_one_user(recording, memory):
    recording("snapshot", "--uid", "uid_alice")
    execute(memory, "DELETE FROM daily_memories WHERE uid = 'uid_bob'")
    assert recording("snapshot", "--incremental", "--uid", "uid_alice", "--json").json["unchanged"]
    execute(memory, "UPDATE daily_memories SET date = date + 100")
    assert recording("snapshot", "--incremental", "--uid", "uid_alice", "--json").json["uid"] == "uid_alice"


def test_refused_or_a_full_one(recording, cold, memory):
    told = recording.refused("snapshot", "--incremental", code=REFUSED, error="ChainRefused")
    assert "--auto-full" in told["hint"]
    found = recording("snapshot", "--incremental", "--auto-full", "--json").json
    assert found["kind"] == "full"
    assert recording("snapshot", "--incremental", "--auto-full", "--json").json["unchanged"]
    recording("init", "--no-change-capture")
    told = recording.refused("snapshot", "--incremental", code=REFUSED, error="ChainRefused")
    assert "init --change-capture" in told["hint"]
    again = recording("snapshot", "--incremental", "--auto-full")
    assert "a full snapshot is taken: the changes of this database are not recorded" in again.err
    runs = recording("runs", "--state", "succeeded", "--json").json
    assert [(bool(r["details"].get("full")), r["details"].get("unchanged")) for r in runs] == [(True, None), (False, True), (True, None)]


def test_a_suspect_one(recording, memory):
    recording("snapshot")
    execute(memory, "DELETE FROM daily_memories")
    told = recording.refused("snapshot", "--incremental", code=SUSPECT, error="SuspectSnapshot")
    assert "daily_memories: no row" in told["message"]
    assert recording("snapshot", "--incremental", "--accept", "--json").json["suspect"] is None


def test_what_does_not_go_together(recording):
    recording.refused("snapshot", "--incremental", "--each-user", code=CONFIG, error="ConfigError")
    for option in ("--auto-full", "--even-if-empty", "--prove"):
        recording.refused("snapshot", option, code=CONFIG, error="ConfigError")
