"""`diff`, `history`, and the preview of an undo: what they print, for a person and for a program."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.acceptance.conftest import ROWS, take
from tests.acceptance.program import ask, execute, remember
from tests.integration.helpers import everything

CONFIG, NOT_FOUND = 2, 6
SPOIL = (
    "DELETE FROM daily_memories WHERE uid = 'uid_alice' AND date = '2026-01-02'",
    "UPDATE procedural_memory SET name = 'spoilt', body = '{\"do it\": [\"ask\"]}' WHERE uid = 'uid_alice'",
    "UPDATE daily_memories SET entries = jsonb_set(entries, '{0,content}', '\"other\"') WHERE uid = 'uid_alice' AND date = '2026-01-03'",
)


@pytest.fixture
def live(cold, stored):
    """The program with a source, and a store with a snapshot of it as it was."""
    cold.env["DATABASE_URL"] = stored.url
    return cold


def counts(found):
    return {t["tier"]: (t["added"], t["removed"], t["changed"], t["unchanged"]) for t in found["tiers"]}


def test_nothing_is_different(live, stored):
    before = everything(stored.url)
    found = live("diff", stored.info.id, "live", "--exit-code", "--json").json
    assert everything(stored.url) == before
    assert (found["equal"], found["before"]["id"], found["after"]["id"]) == (True, stored.info.id, "live")
    assert counts(found) == {tier: (0, 0, 0, 2 * rows) for tier, rows in ROWS.items()}
    assert live("diff", "latest", stored.info.id).out.splitlines()[2:] == [
        f"{tier}: 0 added, 0 removed, 0 changed, {2 * rows} unchanged" for tier, rows in ROWS.items()
    ]


def test_what_is_different(live, stored):
    execute(stored.url, *SPOIL)
    remember(stored.url, "uid_carol")
    found = live("diff", stored.info.id, "live", "--uid", "uid_alice", "--json").json
    assert (found["uid"], found["equal"], found["notes"]) == ("uid_alice", False, [])
    assert counts(found) == {"daily_memories": (0, 1, 1, 1), "graph_entities": (0, 0, 0, 2), "procedural_memory": (0, 0, 1, 0)}
    changed, removed = found["tiers"][0]["rows"]
    assert changed["columns"][0]["path"] == [0, "content"]
    assert (changed["columns"][0]["column"], changed["columns"][0]["after"]) == ("entries", "other")
    assert (removed["change"], removed["row"]["date"]) == ("removed", "2026-01-02")
    newer = take(stored.url, stored.folder)
    assert live("diff", stored.info.id, newer.info.id, "--uid", "uid_alice", "--json").json["tiers"] == found["tiers"]
    assert counts(live("diff", "live", stored.info.id, "--json").json)["daily_memories"] == (1, 3, 1, 4)


def test_what_a_person_sees(live, stored):
    execute(stored.url, *SPOIL)
    out = live("diff", stored.info.id, "live", "--uid", "uid_alice").out
    lines = out.splitlines()
    assert lines[0] == f"from  {stored.info.id}  {stored.info.snapshot_at}"
    assert lines[1].startswith("to    live  ")
    assert lines[2] == "daily_memories: 0 added, 1 removed, 1 changed, 1 unchanged"
    assert lines[3].startswith('  ~ id "')
    assert '      entries[0].content: "day 2 — naïve ✓" → "other"' in lines
    assert any(line.startswith('  - id "') and 'date "2026-01-02"' in line for line in lines)
    assert '      name: "r" → "spoilt"' in lines
    assert '      body["do it"]: added ["ask"]' in lines
    assert max(map(len, lines)) < 260


def test_exit_codes(live, stored):
    execute(stored.url, *SPOIL)
    live("diff", stored.info.id, "live")
    assert live("diff", stored.info.id, "live", "--exit-code", code=1).err == ""
    live("diff", stored.info.id, "live", "--exit-code", "--tier", "graph_entities")


def test_a_limit(live, stored):
    execute(stored.url, "DELETE FROM daily_memories")
    out = live("diff", stored.info.id, "live", "--limit", "2", "--tier", "daily_memories").out
    assert out.count("\n  - ") == 2
    assert "… and 4 more: --limit 0 shows all" in out
    assert len(live("diff", stored.info.id, "live", "--limit", "0", "--json").json["tiers"][0]["rows"]) == 6


def test_a_moment(live, stored):
    at = datetime.fromisoformat(stored.info.snapshot_at)
    elsewhere = (at.replace(tzinfo=None) + timedelta(hours=7, seconds=1)).isoformat() + "+07:00"
    while datetime.now(UTC) < at + timedelta(seconds=1.1):  # a moment that is yet to come is refused
        time.sleep(0.05)
    execute(stored.url, *SPOIL)
    newer = take(stored.url, stored.folder)
    found = live("diff", elsewhere, newer.info.id, "--json").json
    assert (found["before"]["id"], found["equal"]) == (stored.info.id, False)


def test_refusals(live, stored):
    for arguments in (
        ["live", "live"],
        ["yesterday", "live"],
        ["2026-03-05T14:30:00", "live"],
        ["--uid", "u", "--workspace", "w", "latest", "live"],
    ):
        live.refused("diff", *arguments, code=CONFIG, error="ConfigError")
    for arguments in (["memory-all-1", "live"], ["2020-01-01T00:00:00Z", "live"], ["latest", "live", "--tier", "no_such"]):
        live.refused("diff", *arguments, code=NOT_FOUND, error="NotFound")
    live.refused("diff", "latest", "live", env={"DATABASE_URL": None}, code=CONFIG, error="ConfigError")


# --- undo --------------------------------------------------------------------------------------------------------------------------------


def test_the_preview_of_an_undo_and_the_undo(live, stored):
    execute(stored.url, *SPOIL)
    undo = ("restore", stored.info.id, "--uid", "uid_alice", "--mode", "replace", "--to", stored.url)
    found = live(*undo, "--dry-run", "--json").json
    assert found["changes"] == live("diff", "live", stored.info.id, "--uid", "uid_alice", "--json").json["tiers"]
    out = live(*undo, "--dry-run").out
    assert "what it would change:\n  daily_memories: 1 added, 0 removed, 1 changed, 1 unchanged\n" in out
    assert '"other" → "day 2 — naïve ✓"' in out
    done = live(*undo, "--json").json
    assert done["changes"] is None
    assert [(t["inserted"], t["deleted"], t["updated"]) for t in done["tables"]] == [(1, 0, 1), (0, 0, 0), (0, 0, 1)]
    live("diff", "live", stored.info.id, "--exit-code")


# --- history -----------------------------------------------------------------------------------------------------------------------------


def test_history(live, stored):
    ((key,),) = ask(stored.url, "SELECT id::text FROM procedural_memory WHERE uid = 'uid_alice'")
    execute(stored.url, *SPOIL)
    take(stored.url, stored.folder, uid="uid_alice")
    execute(stored.url, "DELETE FROM procedural_memory WHERE uid = 'uid_alice'")
    take(stored.url, stored.folder)
    asked = ("history", "--uid", "uid_alice", "--tier", "procedural_memory", "--key", key)
    found = live(*asked, "--json", env={"DATABASE_URL": None}).json
    assert [v["change"] for v in found["versions"]] == ["removed", "changed", "there"]
    assert [v.get("row", {}).get("name") for v in found["versions"]] == [None, "spoilt", "r"]
    assert (found["key"], found["snapshots"], found["notes"]) == ({"id": key}, 3, [])
    assert found["versions"][2]["first"] == found["versions"][2]["last"] == {"id": stored.info.id, "snapshotAt": stored.info.snapshot_at}
    out = live(*asked).out
    assert out.splitlines()[0].startswith("removed  ")
    assert '  name: "r" → "spoilt"' in out.splitlines()
    assert out.splitlines()[-1] == "3 versions in 3 snapshots"
    today = stored.info.snapshot_at[:10]
    assert len(live(*asked, "--since", today, "--until", today, "--json").json["versions"]) == 3


def test_history_refusals(live, stored):
    asked = ("history", "--tier", "procedural_memory", "--key")
    live.refused(*asked, "no such key", code=NOT_FOUND, error="NotFound")
    live.refused(*asked, "x", "--since", "Tuesday", code=CONFIG, error="ConfigError")
    live.refused(*asked, "x", "--key", "y", code=CONFIG, error="ConfigError")
    live.refused("history", "--tier", "procedural_memory", code=CONFIG, error="ConfigError")


def test_a_chain(live, stored):
    """Incrementals are read with what they are built on, and a history reads each by itself."""
    live("init", "--change-capture")
    full = live("snapshot", "--json").json
    ((key,),) = ask(stored.url, "SELECT id::text FROM procedural_memory WHERE uid = 'uid_alice'")
    execute(stored.url, *SPOIL)
    first = live("snapshot", "--incremental", "--json").json
    execute(stored.url, "DELETE FROM procedural_memory WHERE uid = 'uid_alice'")
    second = live("snapshot", "--incremental", "--json").json
    assert counts(live("diff", full["id"], first["id"], "--uid", "uid_alice", "--json").json) == {
        "daily_memories": (0, 1, 1, 1),
        "graph_entities": (0, 0, 0, 2),
        "procedural_memory": (0, 0, 1, 0),
    }
    live("diff", second["id"], "live", "--exit-code")
    found = live("diff", full["id"], second["id"], "--tier", "procedural_memory", "--json").json
    assert counts(found) == {"procedural_memory": (0, 1, 0, 1)}
    versions = live("history", "--uid", "uid_alice", "--tier", "procedural_memory", "--key", key, "--json").json["versions"]
    assert [(v["change"], v["first"]["id"]) for v in versions] == [
        ("removed", second["id"]),
        ("changed", first["id"]),
        ("there", stored.info.id),
    ]
    told = live("restore", first["id"], "--uid", "uid_alice", "--mode", "replace", "--to", stored.url, "--dry-run", "--json").json
    assert json.dumps(told["changes"]).count('"added"') >= 1
    assert told["changes"][2]["added"] == 1
