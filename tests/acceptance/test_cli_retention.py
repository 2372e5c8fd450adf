"""`prune`, `lifecycle` and `pointers`, as somebody types them."""

from __future__ import annotations

import json
import time

import pytest

from coldstore.storage.local import LocalStore
from coldstore.storage.open import open_store
from coldstore.tiers import Scope
from tests.unit.histories import DAY, commit, days

CONFIG, DAMAGED, INCOMPLETE = 2, 9, 12


@pytest.fixture
def now() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
def ids(cold, now) -> list[str]:
    """Ten snapshots, one a day, the oldest first, where the program looks."""
    return [m.id for m in days(LocalStore(str(cold.folder / "coldstore-data")), range(9, -1, -1), now=now - 60_000)]


def listed(cold) -> list[str]:
    return [i["id"] for i in cold("list", "--json").json]


def test_without_yes_it_only_tells(cold, ids):
    told = cold("prune", "--keep-last", "4")
    lines = told.out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [["keep" if n < 4 else "drop", i] for n, i in enumerate(reversed(ids))]
    assert "the newest good one; among the last 4" in lines[0]
    assert lines[-1] == "4 kept, 6 would be deleted, 0 left over. Nothing was done; --yes does it."
    assert sorted(listed(cold)) == ids


def test_with_yes_it_deletes(cold, ids):
    said = cold("prune", "--keep-last", "4", "--yes", "--json").json
    assert (said["ok"], said["dryRun"], sorted(said["deleted"])) == (True, False, ids[:6])
    assert [s["keep"] for s in said["snapshots"]] == [True] * 4 + [False] * 6
    assert sorted(listed(cold)) == ids[6:]
    assert cold("verify", "--all", "--deep", "--json").json["ok"]
    assert cold("prune", "--keep-last", "4", "--yes").out.splitlines()[-1] == "4 kept, 0 deleted, 0 left over swept, 0 failed."


def test_the_policy_of_the_file_and_of_the_environment(cold, ids):
    (cold.folder / "coldstore.toml").write_text('[retention]\npreset = "enterprise"\nfloor = 2\n')
    kept = lambda *arguments, **env: sum(s["keep"] for s in cold("prune", *arguments, "--json", env=env).json["snapshots"])  # noqa: E731
    assert kept() == 10
    assert kept("--keep-days", "5") == 5
    assert kept("--keep-last", "1") == 2
    assert kept("--preset", "free") == 7
    (cold.folder / "coldstore.toml").write_text("[retention]\nlast = 3\n")
    assert kept() == 3
    assert kept(COLD_STORE_KEEP_LAST="6") == 6
    assert kept("--daily", "4", "--weekly", "1", COLD_STORE_KEEP_FLOOR="1") == 4
    (cold.folder / "coldstore.toml").write_text("[retention]\nlasst = 3\n")
    assert "last" in cold.refused("prune", code=CONFIG, error="ConfigError")["hint"]
    (cold.folder / "coldstore.toml").write_text("[retention]\nfloor = 0\n")
    assert "[retention] floor" in cold.refused("prune", code=CONFIG, error="ConfigError")["message"]


def test_whose(cold, ids, now):
    store = LocalStore(str(cold.folder / "coldstore-data"))
    alice = [m.id for m in days(store, range(5, -1, -1), now=now - 30_000, scope=Scope.user("alice"))]
    assert {s["id"] for s in cold("prune", "--keep-last", "1", "--uid", "alice", "--json").json["snapshots"]} == set(alice)
    assert {s["id"] for s in cold("prune", "--keep-last", "1", "--all", "--json").json["snapshots"]} == set(ids)
    assert len(cold("prune", "--keep-last", "1", "--json").json["snapshots"]) == len(ids) + len(alice)
    cold.refused("prune", "--keep-last", "1", "--all", "--uid", "alice", code=CONFIG, error="ConfigError")
    cold.refused("prune", "--keep-last", "1", "--workspace", "w", "--uid", "alice", code=CONFIG, error="ConfigError")


def test_labels_stay_unless_told_otherwise(cold, ids, now):
    labelled = commit(LocalStore(str(cold.folder / "coldstore-data")), now - 40 * DAY, label="before upgrade").id
    assert labelled not in cold("prune", "--keep-last", "3", "--yes", "--json").json["deleted"]
    assert cold("prune", "--keep-last", "3", "--no-keep-labels", "--yes", "--json").json["deleted"] == [labelled]


def test_a_policy_that_keeps_nothing(cold, ids):
    for arguments in ([], ["--keep-labels"]):
        told = cold.refused("prune", *arguments, "--yes", code=CONFIG, error="ConfigError")
        assert "keeps nothing" in told["message"]
    for arguments in (["--keep-last", "0"], ["--keep-days", "-1"], ["--preset", "gold"]):
        cold.refused("prune", *arguments, "--yes", code=CONFIG, error="ConfigError")
    assert sorted(listed(cold)) == ids


def test_what_is_left_over_is_told_and_swept(cold, ids, now):
    folder = cold.folder / "coldstore-data"
    store = LocalStore(str(folder))
    orphan = commit(store, now - 3 * DAY - 5)
    store.delete(f"{orphan.document.removesuffix('.json')}.manifest.json")
    (folder / "snapshots" / "notes.txt").write_text("a stranger's")
    cold("pointers", "--rebuild")
    lines = cold("prune", "--keep-last", "50").out.splitlines()
    assert f"left over    {orphan.document}" in lines
    assert "a stranger's snapshots/notes.txt" in lines
    assert cold("prune", "--keep-last", "50", "--yes", "--json").json["swept"] == [orphan.document]
    assert (folder / "snapshots" / "notes.txt").exists()
    assert not (folder / orphan.document).exists()


def test_deletions_that_failed_have_an_exit_code_of_their_own(cold, weed, weed_faults, now):
    url = weed.url()
    with_store = open_store(url, **weed.arguments())
    made = [m.id for m in days(with_store, range(4, -1, -1), now=now - 60_000)]
    env = {"COLD_STORE_URL": url, **weed.env, "AWS_ENDPOINT_URL": weed_faults.url}
    weed_faults.add("status", method="DELETE", match=made[0], status=403, count=None)
    said = cold("prune", "--keep-last", "3", "--yes", "--json", env=env, code=INCOMPLETE).json
    assert (said["ok"], list(said["failures"]), said["deleted"]) == (False, [made[0]], [made[1]])
    told = cold("prune", "--keep-last", "3", "--yes", env=env, code=INCOMPLETE).out.splitlines()
    assert any(line.startswith(f"FAILED       {made[0]}: ") for line in told)
    assert told[-1] == "3 kept, 0 deleted, 0 left over swept, 1 failed."
    weed_faults.clear()
    assert cold("prune", "--keep-last", "3", "--yes", "--json", env=env).json["deleted"] == [made[0]]


def test_lifecycle(cold):
    told = cold("lifecycle", "--store", "s3://bucket/agents")
    assert {r["ID"] for r in json.loads(told.out)["Rules"]} == {"coldstore-uploads", "coldstore-noncurrent"}
    assert [line.partition(": ")[0] for line in told.err.splitlines()] == ["note", "note"]
    (cold.folder / "coldstore.toml").write_text('[store]\nurl = "gs://bucket/agents"\n[retention]\ndays = 30\nlabels = false\n')
    assert json.loads(cold("lifecycle", "--expire").out)["lifecycle"]["rule"][-1]["condition"]["age"] == 60
    told = cold("lifecycle", "--expire", "--format", "s3", env={"COLD_STORE_KEEP_DAILY": "7"})
    assert len(json.loads(told.out)["Rules"]) == 2
    assert "daily" in told.err
    for arguments in (["--store", "folder"], ["--format", "azure"]):
        assert "--format" in cold("lifecycle", *arguments, code=CONFIG).err


def test_pointers(cold, ids):
    assert cold("pointers", "--json").json == {"ok": True, "pointers": 1, "wrong": [], "strangers": [], "rebuilt": []}
    latest = cold.folder / "coldstore-data" / "latest" / "all.json"
    latest.write_text("{}")
    told = cold("pointers", code=DAMAGED).out.splitlines()
    assert told == ["wrong       latest/all.json: it is missing, or is none", "1 checked, 1 wrong"]
    assert cold("pointers", "--rebuild").out.splitlines()[0].startswith("rebuilt     latest/all.json: ")
    assert json.loads(latest.read_text())["id"] == ids[-1]
    assert cold("pointers").out == "1 checked, 0 wrong\n"
