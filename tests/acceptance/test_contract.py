"""What other programs rely on: commands, keys, paths and places, as they were promised."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime

import pytest

from tests.acceptance.conftest import ROWS
from tests.acceptance.program import ask, remember
from tests.integration.helpers import contents, structure

KEYS = {"id", "path", "manifest", "uid", "workspace", "kind", "snapshotAt", "rows", "bytes", "storedBytes", "sha256", "seconds"}
BOTH = {tier: 2 * count for tier, count in ROWS.items()}


def check_snapshot(info: dict, store, *, scope: str, rows: dict[str, int]) -> dict:
    """The keys, and that they tell the truth; returns the document."""
    assert set(info) >= KEYS
    moment = datetime.fromisoformat(info["snapshotAt"])
    milliseconds = round(moment.timestamp() * 1000)
    assert info["snapshotAt"] == moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{milliseconds % 1000:03d}Z"
    assert info["id"] == f"memory-{scope}-{milliseconds}"
    assert info["path"] == f"snapshots/{info['snapshotAt'][:10]}/{info['id']}.json"
    assert info["manifest"] == f"snapshots/{info['snapshotAt'][:10]}/{info['id']}.manifest.json"
    assert info["kind"] == "full"
    assert info["rows"] == rows
    data = (store / info["path"]).read_bytes()
    assert info["sha256"] == hashlib.sha256(data).hexdigest()
    assert info["bytes"] == info["storedBytes"] == len(data)
    assert isinstance(info["seconds"], float)
    assert info["seconds"] > 0
    document = json.loads(data)
    assert document["snapshotAt"] == info["snapshotAt"]
    assert document["uid"] == info["uid"]
    assert [len(document[a]) for a in ("dailyMemories", "graphEntities", "proceduralMemory")] == list(rows.values())
    return document


@pytest.mark.parametrize(
    ("arguments", "scope", "uid", "workspace", "rows"),
    [
        ([], "all", None, None, BOTH),
        (["--all"], "all", None, None, BOTH),
        (["--uid", "uid_alice"], "uid_alice", "uid_alice", None, ROWS),
        (["--workspace", "blue"], "ws~blue", None, "blue", ROWS),
    ],
    ids=["nothing said", "all", "uid", "workspace"],
)
def test_a_snapshot(cold, memory, arguments, scope, uid, workspace, rows):
    result = cold("snapshot", *arguments, "--json", env={"DATABASE_URL": memory})
    assert result.err == ""
    assert result.out.count("\n") == 1
    assert (result.json["uid"], result.json["workspace"]) == (uid, workspace)
    document = check_snapshot(result.json, cold.folder / "coldstore-data", scope=scope, rows=rows)
    owners = {row["uid"] for row in document["dailyMemories"]}
    assert owners == {"uid_alice": {"uid_alice"}, "ws~blue": {"uid_bob"}}.get(scope, {"uid_alice", "uid_bob"})


def test_each_user(cold, memory):
    result = cold("snapshot", "--each-user", "--json", env={"DATABASE_URL": memory})
    assert result.err == ""
    assert [i["uid"] for i in result.json] == ["uid_alice", "uid_bob"]
    assert len({i["snapshotAt"] for i in result.json}) == 1
    for info in result.json:
        check_snapshot(info, cold.folder / "coldstore-data", scope=info["uid"], rows=ROWS)


def test_the_path_of_the_documents_in_the_issue_of_the_users(cold, memory):
    """A hostile or odd uid stays in its folder, and `all` is nobody's alias."""
    for uid, scope in {"all": "%61ll", "../../x": "%2E.%2F..%2Fx", "ws~red": "ws%7Ered", "ü": "%C3%BC"}.items():
        remember(memory, uid)
        info = cold("snapshot", "--uid", uid, "--json", env={"DATABASE_URL": memory}).json
        assert info["uid"] == uid
        check_snapshot(info, cold.folder / "coldstore-data", scope=scope, rows=ROWS)


def test_init_with_the_reference_schema_can_be_repeated(cold, empty_database):
    first = cold("init", "--reference-schema", "--json", env={"DATABASE_URL": empty_database})
    assert first.json == {"migrations": [1, 2], "referenceSchema": True}
    remember(empty_database, "uid_alice")
    before, rows = structure(empty_database), ask(empty_database, "SELECT xmin::text, uid FROM daily_memories")
    second = cold("init", "--reference-schema", "--json", env={"DATABASE_URL": empty_database})
    assert second.json == {"migrations": [], "referenceSchema": True}
    assert structure(empty_database) == before
    assert ask(empty_database, "SELECT xmin::text, uid FROM daily_memories") == rows
    assert (first.err, second.err) == ("", "")


def test_init_alone_makes_no_memory_table(cold, empty_database):
    assert cold("init", env={"DATABASE_URL": empty_database}).out == "2 migrations applied.\n"
    assert ask(empty_database, "SELECT to_regclass('public.daily_memories')") == [(None,)]
    assert ask(empty_database, "SELECT to_regclass('coldstore.runs')::text") == [("coldstore.runs",)]


@pytest.mark.parametrize("which", ["nothing", "latest", "id", "file"])
def test_restore_everybody(cold, stored, target, which):
    arguments = {"nothing": [], "latest": ["--latest"], "id": [stored.info.id], "file": ["--file", stored.document]}[which]
    result = cold("restore", *arguments, "--to", target, "--json")
    assert result.err == ""
    assert result.json["id"] == stored.info.id
    assert result.json["rows"] == BOTH
    assert result.json["verified"] == "content"
    restored = contents(target)
    assert restored == {name: rows for name, rows in contents(stored.url).items() if name in restored}
    assert {name for _, name in restored} == set(ROWS)


def test_restore_takes_the_newest_all_user_snapshot_unless_told_otherwise(cold, stored, target):
    env = {"DATABASE_URL": stored.url}
    remember(stored.url, "uid_carol")
    newest = cold("snapshot", "--json", env=env).json
    cold("snapshot", "--uid", "uid_alice", env=env)
    result = cold("restore", "--to", target, "--json")
    assert result.json["id"] == newest["id"]
    assert ask(target, "SELECT count(*) FROM daily_memories") == [(9,)]


def test_restore_one_user_out_of_everybody(cold, stored, target):
    result = cold("restore", "--uid", "uid_bob", "--to", target, "--json")
    assert (result.json["uid"], result.json["rows"]) == ("uid_bob", ROWS)
    assert ask(target, "SELECT DISTINCT uid FROM daily_memories") == [("uid_bob",)]


def test_a_document_of_another_program(cold, database):
    """Only `snapshotAt`, `uid` and arrays, pretty-printed."""
    row = {"id": "6f1c0000-0000-4000-8000-000000000001", "uid": "u", "date": "2026-02-26", "entries": [{"content": "naïve ✓"}]}
    document = {"snapshotAt": "2026-02-26T02:00:00Z", "uid": "u", "dailyMemories": [row], "graph_entities": [], "proceduralMemory": []}
    (cold.folder / "theirs.json").write_text(json.dumps(document, indent=4))
    result = cold("restore", "--file", "theirs.json", "--to", database, "--json")
    assert result.json["rows"]["daily_memories"] == 1
    assert ask(database, "SELECT id::text, uid, date::text, entries FROM daily_memories") == [tuple(row.values())]


@pytest.mark.parametrize("deep", [False, True])
def test_verify_everything(cold, stored, deep):
    cold("snapshot", "--uid", "uid_alice", "--compression", "zstd", env={"DATABASE_URL": stored.url})
    result = cold("verify", "--all", *(["--deep"] if deep else []), "--json")
    assert result.err == ""
    assert {k: result.json[k] for k in ("ok", "checked")} == {"ok": True, "checked": 2}
    assert [(r["ok"], r["deep"], r["problems"]) for r in result.json["results"]] == [(True, deep, [])] * 2
    assert sorted(r["rows"] for r in result.json["results"]) == [6, 12]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_compressed_documents_are_what_their_ending_says(cold, memory, compression):
    info = cold("snapshot", "--compression", compression, "--json", env={"DATABASE_URL": memory}).json
    suffix = {"gzip": ".gz", "zstd": ".zst"}[compression]
    assert info["path"].endswith(f"{info['id']}.json{suffix}")
    data = (cold.folder / "coldstore-data" / info["path"]).read_bytes()
    assert info["sha256"] == hashlib.sha256(data).hexdigest()
    assert info["storedBytes"] == len(data) < info["bytes"]
    if compression == "gzip":
        import gzip

        plain = gzip.decompress(data)
    else:
        import zstandard

        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as stream:
            plain = stream.read()
    assert len(plain) == info["bytes"]
    assert len(json.loads(plain)["dailyMemories"]) == 6
    assert cold("cat", info["id"]).stdout == plain


def test_what_a_person_sees(cold, memory):
    shown = cold("snapshot", "--label", "before [upgrade]", env={"DATABASE_URL": memory})
    assert shown.err == ""
    assert "before [upgrade]" in shown.out
    assert re.search(r"rows +daily_memories 6, graph_entities 4, procedural_memory 2\n", shown.out)
    listed = cold("list").out.splitlines()
    assert listed[0].split() == ["ID", "OF", "AT", "(UTC)", "LABEL", "ROWS", "STORED", "LAST", "PROVEN"]
    assert re.fullmatch(r"memory-all-\d+ +everybody +[\d-]+ [\d:.]+ +before \[upgrade\] +12 +[\d.]+ kB *", listed[1])
    assert cold("verify", "--all", "--deep").out.splitlines()[-1] == "1 checked deeply, 0 damaged"
