"""`vault` and `restore --to FOLDER`: an agent's files from the command line, without a database."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coldstore.vault import MemoryVault
from tests.acceptance.program import Program, ended

CONFIG, STORE, NOT_FOUND, REFUSED, SUSPECT, FOLDER = 2, 4, 6, 7, 13, 15
AGENT = ("--agent", "agent-42")


@pytest.fixture
def files(cold: Program) -> Path:
    folder = cold.folder / "memory"
    (folder / "notes").mkdir(parents=True)
    (folder / "MEMORY.md").write_text("# naïve ✓\n")
    (folder / "notes" / "raw").write_bytes(bytes(range(256)))
    (folder / "notes" / "empty").touch()
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o700)
    return folder


def inside(folder: Path) -> dict[str, tuple[bytes, bool]]:
    return {str(p.relative_to(folder)): (p.read_bytes(), os.access(p, os.X_OK)) for p in folder.rglob("*") if p.is_file()}


def test_out_and_back(cold, files):
    saved = cold("vault", "backup", files, *AGENT, "--json").json
    assert (saved["documents"], saved["leftOut"], saved["settled"], saved["suspect"]) == (4, {}, True, None)
    cold("vault", "restore", "elsewhere", *AGENT)
    found = inside(cold.folder / "elsewhere")
    assert {n: c for n, (c, _) in found.items()} == {n: c for n, (c, _) in inside(files).items()}
    assert [p.name for p in (cold.folder / "elsewhere").rglob("*") if p.is_file() and p.stat().st_mode & 0o100] == ["run.sh"]
    assert cold("vault", "status", *AGENT, "--json").json["latest"] == saved["id"]
    (listed,) = cold("vault", "list", *AGENT, "--json").json
    assert listed["id"] == saved["id"]
    # The rest of the program knows it as a snapshot like any other.
    store = cold.folder.parent / "home" / ".local" / "share" / "coldstore"
    assert cold("list", "--store", store, "--json").json[0]["kind"] == "documents"
    assert cold("verify", "--all", "--deep", "--store", store, "--json").json["ok"]
    assert json.loads(cold("cat", saved["id"], "--store", store).stdout)["documents"][0]["name"] == "MEMORY.md"


def test_files_that_differ_are_not_overwritten_without_a_word(cold, files):
    cold("vault", "backup", files, *AGENT)
    (files / "MEMORY.md").write_text("newer")
    (files / "notes" / "raw").unlink()
    (files / "mine").write_text("mine")
    before = inside(files)
    cold.refused("vault", "restore", files, *AGENT, code=REFUSED, error="RestoreConflict")
    told = cold("vault", "restore", files, *AGENT, "--dry-run")
    assert {"+ notes/raw", "~ MEMORY.md", "-newer", "+# naïve ✓"} <= set(told.out.splitlines())
    assert "- mine" not in told.out.splitlines()
    assert "- mine" in cold("vault", "restore", files, *AGENT, "--dry-run", "--mirror").out.splitlines()
    assert inside(files) == before
    done = cold("vault", "restore", files, *AGENT, "--overwrite", "--json").json
    assert (done["added"], done["changed"], done["kept"], done["removed"]) == (["notes/raw"], ["MEMORY.md"], ["mine"], [])
    assert (files / "mine").read_text() == "mine"
    assert cold("vault", "restore", files, *AGENT, "--mirror", "--json").json["removed"] == ["mine"]
    assert sorted(inside(files)) == ["MEMORY.md", "notes/empty", "notes/raw", "run.sh"]


def test_labels_and_ids(cold, files):
    first = cold("vault", "backup", files, *AGENT, "--label", "v1", "--json").json
    (files / "MEMORY.md").write_text("two")
    second = cold("vault", "backup", files, *AGENT, "--json").json
    for number, (option, wanted) in enumerate([(("--label", "v1"), first), (("--snapshot", first["id"]), first), ((), second)]):
        assert cold("vault", "restore", f"out{number}", *AGENT, *option, "--json").json["id"] == wanted["id"]
    assert (cold.folder / "out0" / "MEMORY.md").read_text() == "# naïve ✓\n"
    assert (cold.folder / "out2" / "MEMORY.md").read_text() == "two"
    assert [s["id"] for s in cold("vault", "list", *AGENT, "--label", "v1", "--json").json] == [first["id"]]
    cold.refused("vault", "restore", "x", *AGENT, "--label", "v2", code=NOT_FOUND, error="NotFound")


def test_what_is_left_out_is_said(cold, files):
    (files / "link").symlink_to("MEMORY.md")
    assert cold("vault", "backup", files, *AGENT).err == "note: left out link: a symbolic link\n"


def test_refused(cold, files):
    cold.refused("vault", "backup", "nothing", *AGENT, code=FOLDER, error="FolderError")
    cold.refused("vault", "restore", "x", *AGENT, code=NOT_FOUND, error="NotFound")
    cold.refused("vault", "backup", files, code=CONFIG, error="ConfigError")
    cold.refused("vault", "backup", files, *AGENT, "--store", "", code=CONFIG, error="ConfigError")
    cold.refused("vault", "backup", files, "--agent", "", code=CONFIG, error="ConfigError")
    cold("vault", "backup", files, *AGENT)
    for path in [p for p in files.rglob("*") if p.is_file()]:
        path.unlink()
    cold.refused("vault", "backup", files, *AGENT, code=SUSPECT, error="SuspectSnapshot")
    assert cold("vault", "restore", files, *AGENT, "--json").json["added"] == ["MEMORY.md", "notes/empty", "notes/raw", "run.sh"]
    cold.refused("vault", "backup", files, *AGENT, code=STORE, error="QuotaExceeded", env={"COLD_STORE_VAULT_QUOTA_MB": "0.001"})


def test_prune(cold, files):
    ids = [cold("vault", "backup", files, *AGENT, "--json").json["id"] for _ in range(4)]
    told = cold.refused("vault", "prune", "--keep", "1", *AGENT, code=CONFIG, error="ConfigError")
    assert "up to 3 of 4" in told["message"]
    assert sorted(cold("vault", "prune", "--keep", "1", *AGENT, "--yes", "--json").json["deleted"]) == ids[:3]
    pruned = cold("vault", "backup", files, *AGENT, "--keep", "1", "--json").json["pruned"]
    assert pruned == [ids[3]]


def test_an_agent_of_the_environment_and_a_configured_store(cold, files):
    env = {"COLD_STORE_AGENT": "agent-7", "COLD_STORE_URL": str(cold.folder / "store")}
    cold("vault", "backup", files, env=env)
    assert cold("list", "--json", env=env).json[0]["uid"] == "agent-7"
    assert "no snapshot yet" in cold("vault", "list", env={**env, "COLD_STORE_AGENT": "agent-8"}).out


def test_sealed_signed_and_compressed(cold, files):
    cold("keygen", "key")
    did = cold("keygen", "--sign", "signing-key", "--json").json
    (cold.folder / "coldstore.toml").write_text(
        '[store]\npath = "store"\n[snapshot]\ncompression = "zstd"\n[encryption]\nkey_rings = ["local:key"]\n'
        '[signing]\nsigning_key_file = "signing-key"\nrequire_signature = true\n'
    )
    assert did
    saved = cold("vault", "backup", files, *AGENT, "--json").json
    assert (saved["sealed"], saved["signed"]) == (True, True)
    for path in (cold.folder / "store").rglob("*.json*"):
        assert b"MEMORY.md" not in path.read_bytes()
    cold("vault", "restore", "out", *AGENT)
    cold("restore", saved["id"], "--to", "too")
    assert inside(cold.folder / "out") == inside(cold.folder / "too")
    for name in ("key", "signing-key"):
        (cold.folder / name).unlink()


# --- restore ID --to FOLDER --------------------------------------------------------------------------------------------------------


def test_restore_to_a_folder(cold, files, target):
    saved = cold("vault", "backup", files, *AGENT, "--store", "store", "--json").json["id"]
    restore = ("restore", saved, "--store", "store", "--to")
    assert cold(*restore, "out", "--dry-run", "--json").json["added"]
    assert not (cold.folder / "out").exists()
    cold(*restore, "out")
    assert sorted(inside(cold.folder / "out")) == sorted(inside(files))
    cold.refused(*restore, "out", code=REFUSED, error="TargetNotEmpty")
    (cold.folder / "out" / "MEMORY.md").write_text("other")
    (cold.folder / "out" / "mine").write_text("mine")
    cold.refused(*restore, "out", "--mode", "merge", code=REFUSED, error="RestoreConflict")
    cold(*restore, "out", "--mode", "merge", "--on-conflict", "skip")
    assert (cold.folder / "out" / "MEMORY.md").read_text() == "other"
    cold(*restore, "out", "--mode", "replace")
    assert sorted(inside(cold.folder / "out")) == sorted(inside(files))
    told = cold.refused(*restore, target, code=REFUSED, error="RestoreRefused")
    assert "--to FOLDER" in told["hint"]
    cold.refused(*restore, "new", "--uid", "agent-42", code=CONFIG, error="ConfigError")
    document = next((cold.folder / "store").rglob("*42-*[0-9].json"))
    cold.refused("restore", "--file", document, "--to", target, code=REFUSED, error="RestoreRefused")


def test_a_database_restore_never_takes_documents(cold, stored, files, target):
    """The newest of the user is documents; the rows are older, and are what is meant."""
    cold("vault", "backup", files, "--agent", "uid_alice", "--store", stored.folder)
    assert cold("restore", "--uid", "uid_alice", "--to", target, "--json").json["id"] == stored.info.id


# --- watch -------------------------------------------------------------------------------------------------------------------------

WATCH = ("--json", "--poll", "0.02", "--quiet", "0.05")


@pytest.fixture
def watching(cold: Program) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """The watch under way; whatever comes of the test, it ends with it."""
    started: list[subprocess.Popen[bytes]] = []

    def start(files: Path, *options: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        watch = cold.start("vault", "watch", files, *AGENT, *options, env=env, stdout=subprocess.PIPE)
        assert isinstance(watch, subprocess.Popen)
        started.append(watch)
        return watch

    yield start
    for watch in started:
        watch.kill()
        watch.communicate()


def heard(watch: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The next line that it says."""
    assert watch.stdout is not None
    return dict(json.loads(watch.stdout.readline()))


def saved_by(cold: Program) -> list[dict[str, Any]]:
    return cold("vault", "list", *AGENT, "--json").json


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_watch_saves_changes_and_at_the_end(cold, files, watching, number):
    cold("vault", "backup", files, *AGENT)
    watch = watching(files, "--json", "--poll", "0.02", "--quiet", "3600", "--at-most", "3600")
    first = heard(watch)
    assert first["message"] == f"watching {files}"
    (files / "MEMORY.md").write_text("changed")
    watch.send_signal(number)
    result = ended(watch)
    assert result.code == 0, result
    assert saved_by(cold)[0]["label"] == "shutdown"
    assert len(saved_by(cold)) == 2
    cold("vault", "restore", "out", *AGENT)
    assert (cold.folder / "out" / "MEMORY.md").read_text() == "changed"


def until_saved(cold: Program, watch: subprocess.Popen[bytes], text: str) -> None:
    """It may have seen the file when it was half-written, and saved that first."""
    with MemoryVault("agent-42", url=str(cold.folder.parent / "home/.local/share/coldstore")) as vault:
        while True:
            told = heard(watch)
            assert told["message"] == f"saved 4 files as {told['snapshot']}"
            if vault.restore()["MEMORY.md"] == text:
                return


def test_watch_saves_what_changes_and_keeps_so_many(cold, files, watching):
    cold("vault", "backup", files, *AGENT)
    watch = watching(files, *WATCH, "--keep", "2")
    assert heard(watch)["message"].startswith("watching")
    for turn in range(4):
        (files / "MEMORY.md").write_text(f"turn {turn}")
        until_saved(cold, watch, f"turn {turn}")
    watch.send_signal(signal.SIGTERM)
    assert ended(watch).code == 0
    assert sum(s["label"] is None for s in saved_by(cold)) <= 2


def test_watch_outlives_a_store_that_is_away(cold, files, watching):
    store = cold.folder / "store"
    store.write_text("not a folder yet")
    env = {"COLD_STORE_URL": str(store)}
    watch = watching(files, *WATCH, env=env)
    messages = []
    while not messages or "tried again" not in messages[-1]:
        messages.append(heard(watch)["message"])
    store.unlink()
    while not messages[-1].startswith("saved 4 files"):
        messages.append(heard(watch)["message"])
    watch.send_signal(signal.SIGTERM)
    assert ended(watch).code == 0


def test_a_watch_that_is_killed_loses_nothing_that_was_saved(cold, files, watching):
    cold("vault", "backup", files, *AGENT)
    watch = watching(files, *WATCH)
    heard(watch)
    for turn in range(3):
        (files / "MEMORY.md").write_text(f"turn {turn}")
        until_saved(cold, watch, f"turn {turn}")
    watch.kill()
    watch.wait()
    assert "MEMORY.md" in cold("vault", "restore", "out", *AGENT, "--json").json["added"]
    assert (cold.folder / "out" / "MEMORY.md").read_text() == "turn 2"
    assert cold("verify", "--all", "--deep", "--store", cold.folder.parent / "home/.local/share/coldstore", "--json").json["ok"]
