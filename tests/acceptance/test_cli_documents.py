"""The commands that read snapshots, on one of an agent's own documents."""

from __future__ import annotations

import pytest

from coldstore import config
from coldstore.document.notes import encode_note
from coldstore.vault import MemoryVault

MEMORY = {"plan.md": "# Plan\n", "state": {"n": 1}, "face": b"\0\xff"}
LINES = b"".join(encode_note(name, value) + b"\n" for name, value in MEMORY.items())


@pytest.fixture
def saved(cold, tmp_path):
    return MemoryVault("agent-42", url=str(tmp_path / "vault"), settings=config.build({}, {})).backup(MEMORY).id


@pytest.mark.parametrize("which", [["--tier", "documents"], ["--uid", "agent-42"], ["--uid", "agent-42", "--tier", "documents"]])
def test_documents_are_printed_as_lines(cold, tmp_path, saved, which):
    assert cold("cat", saved, *which, "--store", tmp_path / "vault").stdout == LINES


def test_what_it_does_not_hold_is_said(cold, tmp_path, saved):
    store = ["--store", tmp_path / "vault"]
    assert "not one row of 'bob'" in cold("cat", saved, "--uid", "bob", *store, code=6).err
    assert "It has documents." in cold("cat", saved, "--tier", "daily_memories", *store, code=2).err


def test_a_drill_is_refused_and_leaves_no_mark(cold, tmp_path, saved):
    store = ["--store", tmp_path / "vault"]
    assert "no database has a table for" in cold("drill", saved, *store, code=7).err
    assert not (tmp_path / "vault" / "drills").exists()
    assert cold("list", *store, "--json").json[0]["lastDrill"] is None
