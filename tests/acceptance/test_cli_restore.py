"""`restore`: which snapshot, whose rows, what happens to what is there."""

from __future__ import annotations

import gzip
import json
import shutil

import pytest

from tests.acceptance.conftest import ROWS, take
from tests.acceptance.program import ask, execute, remember
from tests.integration.helpers import contents, everything

CONFIG, NOT_FOUND, REFUSED = 2, 6, 7
OWNERS = "SELECT uid, count(*) FROM daily_memories GROUP BY 1 ORDER BY 1"


def test_by_label(cold, stored, target):
    labelled = cold("snapshot", "--label", "v1", "--json", env={"DATABASE_URL": stored.url}).json
    remember(stored.url, "uid_carol")
    cold("snapshot", env={"DATABASE_URL": stored.url})
    assert cold("restore", "--label", "v1", "--to", target, "--json").json["id"] == labelled["id"]


def test_the_target_of_the_environment(cold, stored, target):
    cold("restore", env={"COLD_STORE_TARGET_URL": target})
    assert ask(target, OWNERS) == [("uid_alice", 3), ("uid_bob", 3)]


def test_a_workspace_out_of_everybody(cold, stored, target):
    result = cold("restore", "--workspace", "blue", "--to", target, "--json").json
    assert (result["workspace"], result["uid"], result["rows"]) == ("blue", None, ROWS)
    assert ask(target, OWNERS) == [("uid_bob", 3)]


def test_a_users_own_snapshot_serves_where_there_is_none_of_everybody(cold, memory, target):
    own = take(memory, cold.folder / "coldstore-data", uid="uid_alice")
    assert cold("restore", "--uid", "uid_alice", "--to", target, "--json").json["id"] == own.info.id
    cold.refused("restore", "--to", target, code=NOT_FOUND, error="NotFound")
    cold.refused("restore", own.info.id, "--uid", "uid_bob", "--to", target, code=NOT_FOUND, error="NotFound")


def test_replace_brings_one_user_back_and_touches_nobody_else(cold, stored):
    """Tuesday's memory, into the live database."""
    before = contents(stored.url, versions=True)
    execute(
        stored.url,
        "DELETE FROM daily_memories WHERE uid = 'uid_alice'",
        "UPDATE procedural_memory SET name = 'spoilt' WHERE uid = 'uid_alice'",
    )
    remember(stored.url, "uid_alice", days=1)
    result = cold("restore", "--uid", "uid_alice", "--to", stored.url, "--mode", "replace", "--json").json
    assert result["mode"] == "replace"
    now = contents(stored.url)
    for table, rows in before.items():
        assert sorted(r[2:] for r in rows) == sorted(now[table]), table
    untouched = {t: [r for r in rows if "uid_bob" in r] for t, rows in before.items()}
    assert untouched == {t: [r for r in rows if "uid_bob" in r] for t, rows in contents(stored.url, versions=True).items()}


def test_merge(cold, stored):
    execute(stored.url, "DELETE FROM daily_memories WHERE uid = 'uid_alice'", "UPDATE procedural_memory SET name = 'newer'")
    before = everything(stored.url)
    cold.refused("restore", "--to", stored.url, "--mode", "merge", code=REFUSED, error="RestoreConflict")
    assert everything(stored.url) == before
    cold("restore", "--to", stored.url, "--mode", "merge", "--on-conflict", "skip")
    assert ask(stored.url, OWNERS) == [("uid_alice", 3), ("uid_bob", 3)]
    assert ask(stored.url, "SELECT DISTINCT name FROM procedural_memory") == [("newer",)]
    cold("restore", "--to", stored.url, "--mode", "merge", "--on-conflict", "update")
    assert ask(stored.url, "SELECT DISTINCT name FROM procedural_memory") == [("r",)]


def test_a_dry_run_changes_nothing(cold, stored, target, make_database):
    there = make_database()
    for url, action in ((target, "create"), (there, "fresh")):
        before = everything(url)
        result = cold("restore", "--to", url, "--uid", "uid_bob", "--dry-run", "--json").json
        assert everything(url) == before
        assert (result["dryRun"], result["verified"], result["rows"]) == (True, None, ROWS)
        assert {t["action"] for t in result["tables"]} == {action}
        assert "would restore" in cold("restore", "--to", url, "--dry-run").out
    cold.refused("restore", "--to", stored.url, "--dry-run", code=REFUSED, error="TargetNotEmpty")
    cold.refused("restore", "--to", there, "--uid", "uid_nobody", "--dry-run", code=NOT_FOUND, error="NotFound")


def test_one_tier(cold, stored, target):
    result = cold("restore", "--to", target, "--tier", "daily_memories", "--tier", "procedural_memory", "--json").json
    assert result["rows"] == {"daily_memories": 6, "procedural_memory": 2}
    assert ask(target, "SELECT to_regclass('public.graph_entities')") == [(None,)]
    told = cold.refused("restore", "--to", target, "--tier", "no_such", code=NOT_FOUND, error="NotFound")
    assert "daily_memories" in told["hint"]


def test_columns_that_the_target_lacks(cold, stored, make_database):
    there = make_database()
    execute(there, "ALTER TABLE daily_memories DROP COLUMN summary")
    result = cold("restore", "--to", there, "--allow-missing-columns", "--json")
    assert any("summary" in note for note in result.json["notes"])
    assert ask(there, OWNERS) == [("uid_alice", 3), ("uid_bob", 3)]


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("beside", [True, False], ids=["with its manifest", "alone"])
def test_a_file_that_was_carried_away(cold, memory, target, compression, beside):
    stored = take(memory, cold.folder.parent / "elsewhere", compression=compression)
    shutil.copy(stored.document, cold.folder)
    if beside:
        shutil.copy(stored.manifest, cold.folder)
    result = cold("restore", "--file", stored.document.name, "--to", target, "--json").json
    assert (result["verified"], result["snapshotAt"]) == ("content", stored.info.snapshot_at)
    restored = contents(target)
    assert restored == {name: rows for name, rows in contents(memory).items() if name in restored}


def test_one_user_out_of_another_programs_file(cold, database):
    rows = [{"id": f"6f1c0000-0000-4000-8000-00000000000{n}", "uid": f"u{n % 2}", "date": "2026-02-26"} for n in range(4)]
    document = json.dumps({"snapshotAt": "2026-02-26T02:00:00Z", "uid": None, "daily_memories": rows, "somethingElse": [1, 2]})
    with gzip.open(cold.folder / "theirs.json.gz", "wt") as file:
        file.write(document)
    cold("restore", "--file", "theirs.json.gz", "--uid", "u1", "--to", database)
    assert ask(database, OWNERS) == [("u1", 2)]


def test_what_contradicts_itself(cold, stored, target):
    for arguments in (
        [stored.info.id, "--latest"],
        [stored.info.id, "--file", stored.document],
        ["--latest", "--file", stored.document],
        [stored.info.id, "--label", "x"],
        ["--file", stored.document, "--label", "x"],
        ["--uid", "u", "--workspace", "w"],
        ["--mode", "overwrite"],
        ["--mode", "merge", "--on-conflict", "maybe"],
    ):
        cold.refused("restore", *arguments, "--to", target, code=CONFIG, error="ConfigError")
    assert cold.refused("restore", code=CONFIG, error="ConfigError")["message"].startswith("Missing option '--to'")


def test_what_a_person_sees(cold, stored, target):
    result = cold("restore", "--to", target)
    assert result.err == ""
    lines = result.out.splitlines()
    assert lines[0].startswith(f"restored {stored.info.id} ({stored.info.snapshot_at}) of everybody to ")
    assert "  daily_memories: 6 rows → public.daily_memories (create: 6 inserted)" in lines
    assert lines[-1].startswith("content compared with the snapshot; took ")
