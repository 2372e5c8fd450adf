"""Chains from the command line: back to a moment, looked at, proven, made into one, deleted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import pytest

from tests.acceptance.program import Program, execute

CONFIG, BROKEN, NOT_FOUND, REFUSED = 2, 5, 6, 16


@dataclass
class Told:
    cold: Program
    full: dict
    link: dict
    last: dict

    @property
    def ids(self) -> list[str]:
        return [s["id"] for s in (self.full, self.link, self.last)]


@pytest.fixture
def chain(cold, memory) -> Told:
    """A full snapshot and two incrementals: Bob's procedure goes, Alice's days move."""
    cold.env["DATABASE_URL"] = memory
    cold("init", "--change-capture")
    full = cold("snapshot", "--json").json
    execute(memory, "DELETE FROM procedural_memory WHERE uid = 'uid_bob'")
    link = cold("snapshot", "--incremental", "--json").json
    execute(memory, "UPDATE daily_memories SET date = date + 100 WHERE uid = 'uid_alice'")
    last = cold("snapshot", "--incremental", "--label", "moved", "--json").json
    return Told(cold, full, link, last)


def offset(at: str, milliseconds: int = 0) -> str:
    """The same moment as somebody in Hanoi says it."""
    moment = datetime.fromisoformat(at) + timedelta(milliseconds=milliseconds)
    return moment.astimezone(timezone(timedelta(hours=7))).isoformat(timespec="milliseconds")


def test_back_to_a_moment(chain, target):
    cold = chain.cold
    planned = cold("restore", "--at", offset(chain.last["snapshotAt"], -1), "--to", target, "--dry-run")
    assert f"would restore {chain.link['id']} ({chain.link['snapshotAt']}) of everybody" in planned.out
    assert [line.split()[1].rstrip(":") for line in planned.out.splitlines() if line.startswith("  from ")] == chain.ids[:2]
    report = cold("restore", "--at", offset(chain.link["snapshotAt"]), "--to", target, "--json").json
    assert [(s["id"], s["kind"]) for s in report["steps"]] == [(chain.ids[0], "full"), (chain.ids[1], "incremental")]
    assert (report["id"], report["snapshotAt"], report["verified"]) == (chain.link["id"], chain.link["snapshotAt"], "content")
    assert report["rows"] == {"daily_memories": 6, "graph_entities": 4, "procedural_memory": 1}


def test_one_user_out_of_it(chain, target):
    report = chain.cold("restore", "--label", "moved", "--uid", "uid_bob", "--to", target, "--json").json
    assert report["rows"] == {"daily_memories": 3, "graph_entities": 2, "procedural_memory": 0}


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["--at", "2026-03-05T14:30:00"], CONFIG, "ConfigError"),
        (["--at", "soon"], CONFIG, "ConfigError"),
        (["--at", ""], CONFIG, "ConfigError"),
        (["--at", "2999-01-01T00:00:00Z"], CONFIG, "ConfigError"),
        (["--at", "2001-01-01T00:00:00Z"], NOT_FOUND, "NotFound"),
        (["--at", "2026-03-05T14:30:00Z", "--latest"], CONFIG, "ConfigError"),
        (["--at", "2026-03-05T14:30:00Z", "--label", "x"], CONFIG, "ConfigError"),
        (["--at", "2026-03-05T14:30:00Z", "--file", "x"], CONFIG, "ConfigError"),
    ],
)
def test_moments_that_are_none(chain, target, arguments, code, error):
    chain.cold.refused("restore", *arguments, "--to", target, code=code, error=error)


def test_a_hole(chain, target):
    (chain.cold.folder / "coldstore-data" / chain.link["manifest"]).unlink()
    told = chain.cold.refused("restore", "--to", target, code=BROKEN, error="ChainBroken")
    assert chain.link["id"] in told["message"]


def test_looked_at(chain):
    cold = chain.cold
    shown = cold("show", chain.last["id"]).out
    assert next(line.split() for line in shown.splitlines() if line.startswith("built on")) == ["built", "on", chain.link["id"]]
    listed = {s["id"]: s["parent"] for s in cold("list", "--json").json}
    assert listed == {chain.ids[0]: None, chain.ids[1]: chain.ids[0], chain.ids[2]: chain.ids[1]}
    assert "3 changed" in cold("list").out
    whole = json.loads(cold("cat", chain.last["id"]).stdout)
    assert {a: len(whole[a]) for a in ("dailyMemories", "graphEntities", "proceduralMemory")} == {
        "dailyMemories": 6,
        "graphEntities": 4,
        "proceduralMemory": 1,
    }
    assert len(cold("cat", chain.last["id"], "--tier", "procedural_memory").stdout.splitlines()) == 1
    assert len(cold("cat", chain.full["id"], "--tier", "procedural_memory").stdout.splitlines()) == 2
    assert len(cold("cat", chain.last["id"], "--uid", "uid_alice", "--tier", "daily_memories").stdout.splitlines()) == 3


def test_what_is_printed_restores_as_a_file(chain, target):
    path = chain.cold.folder / "whole.json"
    path.write_bytes(chain.cold("cat", chain.last["id"]).stdout)
    report = chain.cold("restore", "--file", path, "--to", target, "--json").json
    assert report["rows"] == {"daily_memories": 6, "graph_entities": 4, "procedural_memory": 1}


def test_proven(chain, memory):
    cold = chain.cold
    results = cold("verify", chain.last["id"], "--deep", "--json").json["results"]
    assert [r["id"] for r in results] == chain.ids[::-1]
    assert cold("drill", chain.last["id"], "--to", memory, "--json").json["proven"]


def test_made_into_one(chain, target):
    cold = chain.cold
    made = cold("compact", chain.last["id"], "--label", "kept", "--json").json
    assert (made["kind"], made["builtFrom"], made["label"]) == ("full", chain.last["id"], "kept")
    assert "11 rows, " in cold("compact", chain.link["id"]).out
    cold.refused("compact", chain.full["id"], code=REFUSED, error="ChainRefused")
    report = cold("restore", made["id"], "--to", target, "--json").json
    assert (report["rows"], report["steps"]) == ({"daily_memories": 6, "graph_entities": 4, "procedural_memory": 1}, [])
    assert cold("verify", "--all", "--deep", "--json").json["ok"]


def test_deleted(chain):
    cold = chain.cold
    told = cold.refused("delete", chain.full["id"], "--yes", code=REFUSED, error="ChainRefused")
    assert "2 snapshots" in told["message"]
    told = cold.refused("delete", chain.link["id"], "--cascade", code=CONFIG, error="ConfigError")
    assert told["message"].startswith("2 snapshots")
    assert cold("delete", chain.link["id"], "--cascade", "--yes", "--json").json == {"deleted": chain.ids[:0:-1]}
    assert [s["id"] for s in cold("list", "--json").json] == [chain.full["id"]]
    assert cold("verify", "--all", "--json").json["ok"]
