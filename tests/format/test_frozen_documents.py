"""An agent's documents as they were written when the format was released: every later version brings them back.

    python -m tests.format.test_frozen_documents

wrote them, once; what is there is not written again.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from coldstore import catalog, config
from coldstore.document.notes import encode_note
from coldstore.storage.local import LocalStore
from coldstore.vault import SMALLEST_OBJECT, MemoryVault
from coldstore.verify import Checks, verify
from tests.recovering import recover

HERE = Path(__file__).parent
FROZEN = HERE / "coldstore-1-documents"
KEY, SIGNING_KEY = HERE / "TEST-KEY-new", HERE / "TEST-KEY-signing"
MEMORY = {
    "plan.md": '# Plan\n\nümlaut 😀 \x00\x1f"\\/\u2028\n',
    "state": {"n": [1, -0.0, 1e-7, 2.5, 10**30, None, True, {}], "": "é"},
    "notes/../../x": "a name like any other",
    "face.png": bytes(range(256)),
    "empty": "",
    "long": "".join(f"{n * n:x} " for n in range(30_000)),
}
SETTINGS = {"plain": {}, "sealed": {"compression": "zstd", "key": KEY.read_text(), "signing_key": SIGNING_KEY.read_text()}}


def vault(agent: str, store: Path = FROZEN) -> MemoryVault:
    return MemoryVault(agent, url=str(store), settings=config.build({}, SETTINGS[agent]), object_limit=SMALLEST_OBJECT)


def write() -> None:
    assert not FROZEN.exists(), "frozen documents are not written again"
    for agent in SETTINGS:
        vault(agent).backup_rows([encode_note(n, v, executable=n == "plan.md") for n, v in MEMORY.items()], label="frozen")


@pytest.mark.parametrize("agent", SETTINGS)
def test_a_memory_comes_back(agent):
    assert repr(vault(agent).restore(label="frozen")) == repr(MEMORY)
    assert [s.documents for s in vault(agent).list_snapshots()] == [len(MEMORY)]


@pytest.mark.parametrize("agent", SETTINGS)
def test_it_passes_every_check(agent):
    manifest = vault(agent).find()
    assert len(manifest.parts) == 4 if agent == "plain" else manifest.sealing
    verdicts = verify(LocalStore(str(FROZEN)), [manifest], checks=Checks(deep=True, rings=vault("sealed").rings))
    assert [v.state for v in verdicts] == ["ok"]


@pytest.mark.parametrize("agent", SETTINGS)
def test_the_reader_that_needs_no_coldstore_reads_it(agent, tmp_path):
    key = ["--key-file", KEY] if agent == "sealed" else []
    done = recover(FROZEN, vault(agent).find().id, *key)
    assert done.returncode == 0, done.stderr
    rows = [encode_note(n, v, executable=n == "plan.md") for n, v in MEMORY.items()]
    assert done.stdout.splitlines() == [b"documents\t" + row for row in rows]


@pytest.mark.parametrize("agent", SETTINGS)
def test_the_next_save_goes_on_from_it(agent, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(FROZEN, store)
    before = vault(agent, store).find()
    saved = vault(agent, store).backup({**MEMORY, "more": "x"})
    assert catalog.read_manifest(LocalStore(str(store)), saved.id).previous.checksum == before.checksum


if __name__ == "__main__":
    write()
