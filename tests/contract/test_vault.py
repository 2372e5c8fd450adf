"""An agent's own documents on every kind of store, and through a network that fails."""

from __future__ import annotations

import pytest

from coldstore import config
from coldstore.autosave import AutoSave
from coldstore.codec.sign import SigningKey
from coldstore.errors import NotFound, QuotaExceeded, StoreError
from coldstore.keyrings.keyfile import Key
from coldstore.vault import SMALLEST_OBJECT, MemoryVault
from tests.contract.conftest import Place

MEMORY = {"plan.md": "# Plan\nümlaut 😀\n", "state": {"n": [1, 2.5, None]}, "face.png": b"\x89PNG\0\xff", "big": "x" * 200_000}


def vault_at(place: Place, agent: str = "alice", **options: object) -> MemoryVault:
    given = {name: options.pop(name) for name in list(options) if name not in {"quota_bytes", "object_limit"}}
    vault = MemoryVault(agent, settings=config.build({}, given), **options)
    vault.store = place.open()
    return vault


def test_a_memory_comes_back(place):
    vault = vault_at(place)
    with pytest.raises(NotFound):
        vault.restore()
    saved = vault.backup(MEMORY, label="first")
    assert vault.restore() == vault.restore(label="first") == vault.restore(snapshot_id=saved.id) == MEMORY
    again = vault_at(place)
    assert again.latest() == saved
    assert again.list_snapshots() == [saved]


def test_sealed_signed_compressed_and_in_parts(place):
    signer = SigningKey.generate()
    vault = vault_at(
        place, key=Key.new().text(), signing_key=signer.text(), compression="zstd", require_signature=True, object_limit=SMALLEST_OBJECT
    )
    memory = {f"{n}": bytes((n * 7 + i * i * 31) % 251 for i in range(5000)) for n in range(60)}
    assert vault.backup(memory).issuer == signer.did
    assert vault.restore() == memory
    status = vault.status()
    assert max(o.size for o in vault.store.list("snapshots/")) <= SMALLEST_OBJECT
    assert status.used_bytes == sum(o.size for o in vault.store.list("snapshots/"))


def test_prune_delete_and_quota(place):
    vault = vault_at(place)
    ids = [vault.backup({"n": f"{n}"}, label="kept" if n == 0 else None).id for n in range(4)]
    assert vault.prune(keep=1) == [ids[2], ids[1]]
    vault.delete_snapshot(ids[0])
    assert [s.id for s in vault.list_snapshots()] == [ids[3]]
    tight = vault_at(place, quota_bytes=vault.status().used_bytes + 100)
    before = sorted(o.key for o in vault.store.list())
    with pytest.raises(QuotaExceeded):
        tight.backup(MEMORY)
    assert sorted(o.key for o in vault.store.list()) == before


def test_a_store_that_fails_for_a_while(faulty):
    """What is saved in the end is whole, and what failed left nothing that is listed."""
    vault = vault_at(faulty)
    vault.backup(MEMORY)
    faulty.faults.add("status", status=503, count=4)
    errors: list[Exception] = []
    saver = AutoSave(vault, lambda: {**MEMORY, "more": "x"}, on_error=errors.append, signals=(), wait=600)
    assert saver.close() is True
    assert errors
    assert all(isinstance(e, StoreError) for e in errors)
    assert vault.restore() == {**MEMORY, "more": "x"}
    assert len(vault.list_snapshots()) == 2
