"""`list`, `show`, `cat` and `verify`: what is in the store, without asking any database."""

from __future__ import annotations

import json

import pytest

from tests.acceptance.conftest import ROWS, take
from tests.acceptance.program import remember

CONFIG, NOT_FOUND = 2, 6


@pytest.fixture
def several(cold, stored):
    """everybody → Alice → workspace blue → everybody, labelled; newest last."""
    env = {"DATABASE_URL": stored.url}
    arguments = (["--uid", "uid_alice"], ["--workspace", "blue"], ["--label", "before upgrade"])
    return [stored.info.id, *(cold("snapshot", *a, "--json", env=env).json["id"] for a in arguments)]


def ids(cold, *arguments) -> list[str]:
    return [i["id"] for i in cold("list", *arguments, "--json").json]


def test_newest_first_and_filtered(cold, several):
    everybody, alice, blue, labelled = several
    assert ids(cold) == [labelled, blue, alice, everybody]
    assert ids(cold, "--all") == [labelled, everybody]
    assert ids(cold, "--uid", "uid_alice") == [alice]
    assert ids(cold, "--uid", "uid_bob") == []
    assert ids(cold, "--workspace", "blue") == [blue]
    assert ids(cold, "--label", "before upgrade") == [labelled]
    assert ids(cold, "--limit", "2") == [labelled, blue]
    assert ids(cold, "--kind", "full") == ids(cold)
    assert ids(cold, "--kind", "incremental") == []
    day = cold("list", "--json").json[-1]["snapshotAt"][:10]
    assert everybody in ids(cold, "--date", day)
    assert ids(cold, "--date", "1999-01-01") == []


def test_every_entry_is_what_the_snapshot_said(cold, memory):
    said = cold("snapshot", "--json", env={"DATABASE_URL": memory}).json
    assert cold("list", "--json").json == [said]


def test_no_database_is_asked(cold, stored):
    env = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/gone"}
    for arguments in (["list"], ["show", stored.info.id], ["cat", stored.info.id]):
        assert cold(*arguments, env=env).err == ""
    verify = ["verify", "--all", "--deep"]  # needs none either, and would have noted there that it ran
    assert cold(*verify, env=env).err.startswith("note: this run is not in the list of runs: cannot connect to ")
    assert cold(*verify, env={**env, "COLD_STORE_RUNS_LOG": "off"}).err == ""


def test_what_cannot_be_asked_for(cold, stored):
    for arguments in (["--all", "--uid", "u"], ["--uid", "u", "--workspace", "w"], ["--date", "yesterday"], ["--limit", "0"]):
        cold.refused("list", *arguments, code=CONFIG, error="ConfigError")


def test_an_empty_store(cold):
    assert cold("list").out == f"No snapshots in file://{cold.folder}/coldstore-data.\n"
    assert cold("list", "--json").json == []
    assert not (cold.folder / "coldstore-data").exists()


def test_strangers_in_the_store_are_passed_over(cold, stored):
    for name in ("snapshots/2026-02-26/notes.txt", "snapshots/.DS_Store", "snapshots/2026-02-26/memory-all-x.manifest.json", "README"):
        path = stored.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("stranger")
    (stored.folder / "snapshots/2026-02-26/memory-all-1772071200000.json").write_text("an orphan, no manifest names it")
    assert ids(cold) == [stored.info.id]
    assert cold("verify", "--all", "--json").json["checked"] == 1


def test_show(cold, stored):
    manifest = json.loads(stored.manifest.read_bytes())
    assert cold("show", stored.info.id, "--json").json == manifest
    assert manifest["database"]["systemIdentifier"].isdigit()
    said = cold("show", stored.info.id)
    assert said.err == ""
    for word in (stored.info.id, "public.daily_memories", "PostgreSQL 18", stored.info.sha256, str(stored.document)):
        assert word in said.out


def test_cat_gives_the_document_byte_by_byte(cold, stored):
    assert cold("cat", stored.info.id).stdout == stored.document.read_bytes()


def test_cat_rows(cold, stored):
    document = json.loads(stored.document.read_bytes())

    def rows(*arguments):
        return [json.loads(line) for line in cold("cat", stored.info.id, *arguments).stdout.splitlines()]

    assert rows("--tier", "daily_memories") == document["dailyMemories"]
    assert rows("--tier", "dailyMemories") == document["dailyMemories"]
    every = [*document["dailyMemories"], *document["graphEntities"], *document["proceduralMemory"]]
    assert rows("--uid", "uid_alice") == [r for r in every if r["uid"] == "uid_alice"]
    assert len(rows("--uid", "uid_bob")) == sum(ROWS.values())
    assert rows("--uid", "uid_bob", "--tier", "graph_entities") == [r for r in document["graphEntities"] if r["uid"] == "uid_bob"]
    line = cold("cat", stored.info.id, "--tier", "procedural_memory").stdout.splitlines()[0]
    assert line in {there.removesuffix(b",") for there in stored.document.read_bytes().splitlines()}


def test_cat_of_nothing(cold, stored):
    """A mistyped name is no empty success."""
    for arguments in (["--uid", "uid_nobody"], ["--uid", "UID_ALICE"], ["--uid", ""]):
        told = cold("cat", stored.info.id, *arguments, code=NOT_FOUND)
        assert told.stdout == b""
        assert told.err.startswith("error: ")
    assert "daily_memories" in cold("cat", stored.info.id, "--tier", "no_such", code=CONFIG).err
    assert cold("cat", "memory-all-1", code=NOT_FOUND).stdout == b""


def test_cat_of_a_users_snapshot(cold, memory):
    alice = take(memory, cold.folder / "coldstore-data", uid="uid_alice")
    assert len(cold("cat", alice.info.id, "--uid", "uid_alice").stdout.splitlines()) == sum(ROWS.values())
    cold("cat", alice.info.id, "--uid", "uid_bob", code=NOT_FOUND)


def test_verify_one(cold, several):
    result = cold("verify", several[1], "--deep", "--json").json
    assert (result["ok"], result["checked"], result["results"][0]["id"]) == (True, 1, several[1])


def test_verify_nothing(cold, stored):
    """All of nothing is whole; but whoever asks has mistyped the store."""
    told = cold.refused("verify", "--all", "--store", "no-such-folder", code=NOT_FOUND, error="NotFound")
    assert "no-such-folder" in told["message"]
    cold.refused("verify", code=CONFIG, error="ConfigError")
    cold.refused("verify", stored.info.id, "--all", code=CONFIG, error="ConfigError")


def test_odd_names_are_shown_and_found(cold, memory):
    for uid in ("[red]x[/red]", "a\tb\x1b[2J", "ü✓🦉"):
        remember(memory, uid)
        info = cold("snapshot", "--uid", uid, "--json", env={"DATABASE_URL": memory}).json
        assert ids(cold, "--uid", uid) == [info["id"]]
        assert "\x1b" not in cold("show", info["id"]).out
    listed = cold("list").out
    assert "[red]x[/red]" in listed
    assert "\x1b" not in listed
