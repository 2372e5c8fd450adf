"""`coldstore demo`: the whole way on a Postgres of its own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.acceptance.program import check_refusal, ended, files, wait_until


def embedded() -> set[str]:
    """Folders of embedded servers; they are gone when their program is."""
    return {str(p) for p in Path("/tmp").glob("coldstore-pg-*")}


def test_the_demo(cold):
    before = embedded()
    result = cold("demo", "--folder", "kept", "--users", "12", "--json")
    assert result.err == ""
    told = result.json
    assert (told["folder"], told["users"]) == ("kept", 12)
    assert told["rows"] > 12 * 10
    assert set(told["seconds"]) >= {"fill", "one", "all", "restore_one", "restore_all", "compare", "verify", "total"}
    listed = cold("list", "--store", "kept", "--json").json
    assert [i["uid"] for i in listed] == [None, "uid_alice"]
    assert cold("verify", "--all", "--deep", "--store", "kept", "--json").json["ok"]
    wait_until(lambda: not embedded() - before)
    again = cold("demo", "--folder", "kept", "--users", "3")
    assert again.err == ""
    assert "verified every byte" in again.out
    assert "snapshots/" in again.out
    assert len(cold("list", "--store", "kept", "--json").json) == 2


def test_a_folder_of_somebody_else(cold):
    (cold.folder / "mine").mkdir()
    (cold.folder / "mine" / "thesis.txt").write_text("years of work")
    told = cold.refused("demo", "--folder", "mine", code=2, error="ConfigError")
    assert "--folder" in told["hint"]
    (cold.folder / "a file").write_text("")
    cold.refused("demo", "--folder", "a file", code=2, error="ConfigError")
    assert files(cold.folder) == ["a file", "mine/thesis.txt"]


def test_a_link_to_a_folder_of_somebody_else(cold):
    """What is emptied is the demo's own folder, never what a link leads to."""
    precious = cold.folder / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    (cold.folder / "link").symlink_to(precious)
    cold.refused("demo", "--folder", "link", code=2, error="ConfigError")
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_the_environment_has_no_say(cold, memory):
    """Neither the user's database nor their store is touched by a demo."""
    from tests.integration.helpers import everything

    before = everything(memory)
    env = {"DATABASE_URL": memory, "COLD_STORE_URL": "s3://not-this", "COLD_STORE_PREFIX": "not-this", "PGHOST": "not.this", "PGPORT": "1"}
    told = cold("demo", "--folder", "kept", "--users", "2", "--json", env=env).json
    assert told["users"] == 2
    assert everything(memory) == before
    assert len(list((cold.folder / "kept" / "snapshots").rglob("*.manifest.json"))) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(cold, number):
    before = embedded()
    process = cold.start("demo", "--folder", "kept", "--users", "3000", "--json")
    wait_until(lambda: embedded() - before, process=process)
    time.sleep(0.5)
    os.killpg(process.pid, number)
    check_refusal(ended(process), code=128 + number, error="Interrupted")
    wait_until(lambda: not embedded() - before)
    assert not [p for p in psutil.process_iter(["cmdline"]) if any(f in " ".join(p.info["cmdline"] or []) for f in embedded() - before)]
