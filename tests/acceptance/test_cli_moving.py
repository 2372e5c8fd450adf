"""`export` and `import`: one agent's memory in one file, from the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.program import ask, files

CONFIG, CORRUPT, NOT_FOUND, REFUSED, FOLDER = 2, 5, 6, 7, 15
FILE = "alice.coldstore.json"
ALICE = ("--uid", "uid_alice")
OWNERS = "SELECT uid, count(*) FROM daily_memories GROUP BY 1 ORDER BY 1"


@pytest.fixture
def exported(cold, stored):
    notes = cold.folder / "notes"
    notes.mkdir()
    (notes / "plan.md").write_text("plan")
    cold("vault", "backup", notes, "--agent", "uid_alice", "--store", stored.folder)
    told = cold("export", *ALICE, "-o", FILE, "--store", stored.folder, "--json").json
    assert told["rows"] == {"daily_memories": 3, "graph_entities": 2, "procedural_memory": 1, "documents": 1}
    assert told["tables"]["id"] == stored.info.id
    return cold.folder / FILE


def test_there_and_back(cold, exported, target):
    told = cold("import", FILE, "--to", target, "--store", "other", "--json").json
    assert told["tables"]["rows"] == {"daily_memories": 3, "graph_entities": 2, "procedural_memory": 1}
    assert told["documents"] == ["plan.md"]
    assert ask(target, OWNERS) == [("uid_alice", 3)]
    cold("vault", "restore", "out", "--agent", "uid_alice", "--store", "other")
    assert files(cold.folder / "out") == ["plan.md"]


def test_as_somebody_else_in_the_same_database(cold, exported, stored):
    to = ("--to", stored.url, "--store", "other")
    told = cold.refused("import", FILE, *to, "--rename-uid", "uid_zoe", code=REFUSED, error="RestoreConflict")
    assert "--new-ids" in told["hint"]
    done = cold("import", FILE, *to, "--rename-uid", "uid_zoe", "--new-ids")
    assert done.out.startswith(f"imported {FILE} as user 'uid_zoe'\n")
    assert ask(stored.url, OWNERS) == [("uid_alice", 3), ("uid_bob", 3), ("uid_zoe", 3)]
    cold.refused("import", FILE, *to, code=REFUSED, error="TargetNotEmpty")
    assert cold("import", FILE, *to, "--mode", "merge", "--dry-run", "--json").json["dryRun"]


def test_refused(cold, exported, stored, target):
    cold.refused("export", *ALICE, "-o", FILE, "--store", stored.folder, code=FOLDER, error="FolderError")
    cold.refused("export", "--uid", "nobody", "-o", "x", "--store", stored.folder, code=NOT_FOUND, error="NotFound")
    cold.refused("import", FILE, code=CONFIG, error="ConfigError")
    cold.refused("import", "nothing", "--to", target, code=NOT_FOUND, error="NotFound")
    cold.refused("import", FILE, "--to", target, "--mode", "upsert", code=CONFIG, error="ConfigError")
    cold.refused("import", FILE, "--to", target, "--require-signature", code=CONFIG, error="ConfigError")
    assert ask(target, "SELECT to_regclass('daily_memories')") == [(None,)]
    whole = exported.read_bytes()
    exported.write_bytes(whole.replace(b"day 1", b"day 7"))
    cold.refused("import", FILE, "--to", target, code=CORRUPT, error="CorruptDocument")
    exported.write_bytes(whole[:-9])
    cold.refused("import", FILE, "--to", target, code=CORRUPT, error="CorruptDocument")
    assert ask(target, "SELECT to_regclass('daily_memories')") == [(None,)]


def test_a_bundle_is_not_restored_as_a_document(cold, exported, target):
    told = cold.refused("restore", "--file", FILE, "--to", target, code=CORRUPT, error="UnsupportedFormat")
    assert "coldstore import" in told["hint"]
    assert json.loads(exported.read_text())["format"] == "coldstore-bundle/1"


def test_the_python_of_the_page_runs(cold):
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "bundles.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    notes = cold.folder / "notes"
    notes.mkdir()
    (notes / "plan.md").write_text("plan")
    cold("vault", "backup", notes, "--agent", "agent-42")
    environment = cold.environment({"COLD_STORE_API_KEY": None})
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=cold.folder, env=environment, capture_output=True, text=True)
    assert json.loads(done.stdout) == {"format": "coldstore-documents/1", "agent": "agent-42", "documents": {"plan.md": "plan"}}
