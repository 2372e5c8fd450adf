"""An agent's own documents in a store on this disk."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldstore import catalog, config, pointers
from coldstore.codec.sign import SigningKey
from coldstore.document import model
from coldstore.errors import (
    ConfigError,
    ContentMismatch,
    CorruptDocument,
    CorruptManifest,
    DocumentError,
    InvalidMemory,
    KeyMissing,
    NotFound,
    ObjectLocked,
    PruneIncomplete,
    QuotaExceeded,
    SignatureMissing,
    SuspectSnapshot,
)
from coldstore.keyrings.keyfile import Key
from coldstore.prune import prune
from coldstore.retention import Policy
from coldstore.storage.local import LocalStore
from coldstore.tiers import Scope
from coldstore.vault import SMALLEST_OBJECT, MemoryVault, default_folder
from coldstore.verify import verify
from tests.unit.stores import put
from tests.unit.test_notes import JSON, TEXT

MEMORY = {"plan.md": "# Plan\n\nümlaut 😀\n", "state": {"n": [1, 2.5, None, True]}, "face.png": b"\x89PNG\0\xff", "": "no name"}
HOSTILE = [
    "../../etc/passwd",
    "/absolute",
    "a/b/c",
    "..",
    ".",
    "nul\0",
    "new\nline",
    "naïve",
    "CON",
    "a" * 5000,
    "~",
    "%2e%2e",
    "latest/x.json",
]
ALICE = Scope.user("alice")


class Clock:
    def __init__(self, now: int = 1772071200000) -> None:
        self.now = now

    def __call__(self) -> int:
        self.now += 1
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path, clock):
    """A vault of `alice`, with these settings."""

    def made(agent: str = "alice", *, quota_bytes=None, object_limit=None, **given) -> MemoryVault:
        given = {"url": str(tmp_path / "store"), **given}
        return MemoryVault(agent, settings=config.build({}, given), quota_bytes=quota_bytes, object_limit=object_limit, clock=clock)

    return made


@pytest.fixture
def vault(make) -> MemoryVault:
    return make()


@pytest.fixture
def store(tmp_path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"))


def everything(store: LocalStore) -> dict[str, bytes]:
    return {o.key: store.read(o.key) for o in store.list()}


def sound(store: LocalStore, **options) -> None:
    """Nothing is wrong with anything in the store, and nothing is left over."""
    from coldstore.verify import Checks, orphans

    found = list(catalog.manifests(store))
    assert [v.state for v in verify(store, found, checks=Checks(deep=True, **options), whole=True)] == ["ok"] * len(found)
    assert pointers.check(store)[1] == []
    assert orphans(store, [m.id for m in found]) == []


# --- out and back ------------------------------------------------------------------------------------------------------------------


def test_a_memory_comes_back_as_it_was(vault, store):
    saved = vault.backup(MEMORY, label="first")
    restored = vault.restore()
    assert restored == MEMORY
    assert list(restored) == list(MEMORY)
    assert {n: type(v) for n, v in restored.items()} == {n: type(v) for n, v in MEMORY.items()}
    assert (saved.id, saved.label, saved.documents, saved.created) == ("memory-alice-1772071200001", "first", 4, "2026-02-26T02:00:00.001Z")
    assert (saved.signed, saved.issuer, saved.sealed, saved.suspect, saved.problem) == (False, None, False, None, None)
    manifest = catalog.read_manifest(store, saved.id)
    assert (manifest.kind, manifest.database, manifest.schema.tables, manifest.parts) == ("documents", None, [], None)
    assert (saved.bytes, saved.stored_bytes, saved.sha256) == (manifest.bytes, manifest.stored_bytes, manifest.sha256)
    sound(store)


def test_the_document_is_json_and_lines(vault, store):
    import json

    saved = vault.backup({"a": "x", "b": [1], "c": b"\0"})
    document = json.loads(store.read(catalog.read_manifest(store, saved.id).document))
    assert (document["kind"], document["uid"], document["database"]) == ("documents", "alice", None)
    assert document["documents"] == [{"name": "a", "text": "x"}, {"name": "b", "json": [1]}, {"name": "c", "base64": "AA=="}]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(memory=st.dictionaries(TEXT, TEXT | JSON | st.binary(), max_size=8))
def test_any_memory_comes_back(tmp_path_factory, memory):
    vault = MemoryVault("a", url=str(tmp_path_factory.mktemp("store")), settings=config.build({}, {}))
    vault.backup(memory)
    assert repr(vault.restore()) == repr(memory)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("object_limit", [None, SMALLEST_OBJECT])
@pytest.mark.parametrize("sealed", [False, True])
def test_compressed_sealed_signed_and_in_parts(make, store, compression, object_limit, sealed):
    key, signer = Key.new(), SigningKey.generate()
    vault = make(
        compression=compression,
        object_limit=object_limit,
        frame_mb=1,
        key=key.text() if sealed else None,
        signing_key=signer.text(),
        require_signature=True,
    )
    memory = {f"{n}": bytes((n * 7 + i * i) % 251 for i in range(9000)) for n in range(150)}
    saved = vault.backup(memory)
    assert (saved.signed, saved.issuer, saved.sealed) == (True, signer.did, sealed)
    assert vault.restore() == memory
    sizes = [o.size for o in store.list("snapshots/")]
    assert (max(sizes) <= SMALLEST_OBJECT) == (len(sizes) > 2) == (object_limit is not None)
    sound(store, rings=vault.rings)
    if sealed:
        assert b"documents" not in store.read(catalog.read_manifest(store, saved.id).document)
        with pytest.raises(KeyMissing):
            make().restore()


def test_a_signer_of_the_moment(vault, make):
    signer = SigningKey.generate()
    saved = vault.backup(MEMORY, signer=signer)
    assert saved.issuer == signer.did
    assert make(trusted_keys=[signer.did], require_signature=True).restore() == MEMORY
    vault.backup({**MEMORY, "more": ""})
    with pytest.raises(SignatureMissing):
        make(trusted_keys=[signer.did], require_signature=True).restore()


def test_an_empty_memory(vault, store):
    vault.backup({})
    assert vault.restore() == {}
    assert vault.latest().documents == 0
    sound(store)


def test_hostile_names_are_names(vault, store, tmp_path):
    memory = dict.fromkeys(HOSTILE, "x")
    vault.backup(memory)
    assert vault.restore() == memory
    assert {p.name for p in tmp_path.iterdir()} == {"store"}
    sound(store)


@pytest.mark.parametrize("agent", ["all", "../../x", "ws~acme", "a/b ü", "x" * 300])
def test_hostile_agents_are_names(make, store, agent, tmp_path):
    vault = make(agent)
    vault.backup(MEMORY, label="../..")
    assert vault.restore(label="../..") == MEMORY
    assert make("alice").latest() is None
    assert {p.name for p in tmp_path.iterdir()} == {"store"}
    sound(store)


def test_ten_thousand_documents(vault, store):
    memory = {f"notes/{n:05}.md": f"note {n}\n" * (n % 7) for n in range(10_000)}
    vault.backup(memory)
    assert vault.restore() == memory
    sound(store)


@pytest.mark.parametrize("memory", [{"a": "x", "b": object()}, {"a": "x", 1: "y"}, ["a"], None, "text", {"a": {1: 2}}])
def test_what_cannot_be_kept_is_refused_before_anything_is_written(vault, tmp_path, memory):
    with pytest.raises(InvalidMemory) as refused:
        vault.backup(memory)
    assert refused.value.hint
    assert not (tmp_path / "store").exists()


def test_an_agent_has_a_name():
    with pytest.raises(ConfigError, match="no name"):
        MemoryVault("")


# --- which one ---------------------------------------------------------------------------------------------------------------------


def test_the_newest_counts_and_labels_name_others(vault):
    first = vault.backup({"n": "1"}, label="good")
    second = vault.backup({"n": "2"})
    third = vault.backup({"n": "3"}, label="good")
    vault.backup({"n": "4"})
    assert vault.restore() == {"n": "4"}
    assert vault.restore(label="good") == {"n": "3"}
    assert vault.restore(snapshot_id=second.id) == {"n": "2"}
    assert [s.id for s in vault.list_snapshots(label="good")] == [third.id, first.id]
    assert vault.latest(label="good") == third
    assert [s.label for s in vault.list_snapshots()] == [None, "good", None, "good"]
    with pytest.raises(ConfigError, match="not by both"):
        vault.restore(label="good", snapshot_id=second.id)


def test_nothing_there(vault):
    assert vault.latest() is None
    assert vault.list_snapshots() == []
    assert vault.status().file_count == 0
    with pytest.raises(NotFound, match="no memory of agent 'alice'"):
        vault.restore()
    with pytest.raises(NotFound):
        vault.restore(snapshot_id="memory-alice-1")
    vault.backup(MEMORY)
    with pytest.raises(NotFound, match="labelled 'x'"):
        vault.restore(label="x")


def test_agents_do_not_see_one_another(make):
    saved = make("alice").backup({"n": "alice"})
    bob = make("bob")
    bob.backup({"n": "bob"})
    assert (make("alice").restore(), bob.restore()) == ({"n": "alice"}, {"n": "bob"})
    with pytest.raises(NotFound, match="of agent 'bob'"):
        bob.restore(snapshot_id=saved.id)
    with pytest.raises(NotFound):
        bob.delete_snapshot(saved.id)
    assert len(bob.list_snapshots()) == 1


def test_tables_and_documents_never_stand_for_each_other(vault, store, clock):
    """One name, two kinds of memory, in one succession."""
    rows = put(store, ALICE, clock())
    assert vault.latest() is None
    assert vault.list_snapshots() == []
    saved = vault.backup({"n": "1"})  # the snapshot before has many more rows, of another kind
    assert saved.suspect is None
    later = put(store, ALICE, clock())
    assert vault.restore() == {"n": "1"}
    assert catalog.newest(store, ALICE).id == later.id
    vault.backup({"n": "2"})
    assert catalog.newest(store, ALICE).id == later.id
    with pytest.raises(NotFound, match="rows of tables"):
        vault.restore(snapshot_id=rows.id)
    assert [v.ok for v in verify(store, catalog.manifests(store), whole=True)] == [True] * 4
    assert pointers.check(store)[1] == []


def test_the_last_save_is_the_newest_whatever_the_clock_says(vault, clock, store):
    vault.backup({"n": "1"})
    clock.now -= 86_400_000
    second = vault.backup({"n": "2"})
    assert vault.restore() == {"n": "2"}
    clock.now -= 86_400_000
    store.delete("latest/alice.json")
    third = vault.backup({"n": "3"})
    assert vault.restore() == {"n": "3"}
    assert vault.prune(keep=1) == [second.id, "memory-alice-1772071200001"]
    assert [s.id for s in vault.list_snapshots()] == [third.id]
    sound(store)


def test_saves_at_the_same_time_are_all_kept(make, store):
    def save(n: int) -> str:
        return make().backup({f"{n}": f"{n}"}, accept=True).id

    with ThreadPoolExecutor(10) as pool:
        ids = list(pool.map(save, range(40)))
    assert len(set(ids)) == 40
    assert sorted(s.id for s in make().list_snapshots()) == sorted(ids)
    assert sorted(next(iter(make().restore(snapshot_id=i))) for i in ids) == sorted(map(str, range(40)))


# --- the gate ----------------------------------------------------------------------------------------------------------------------


def test_a_lost_memory_does_not_take_the_place_of_the_one_before(vault, store):
    vault.backup(MEMORY, label="mine")
    with pytest.raises(SuspectSnapshot, match="had 4") as refused:
        vault.backup({}, label="mine")
    assert "accept=True" in refused.value.hint
    assert vault.restore() == vault.restore(label="mine") == MEMORY
    assert [s.suspect is None for s in vault.list_snapshots()] == [False, True]
    vault.backup({}, accept=True)
    assert vault.restore() == {}
    sound(store)


# --- damage ------------------------------------------------------------------------------------------------------------------------


def damage(tmp_path: Path, key: str, *, at: int = -10) -> None:
    path = tmp_path / "store" / key
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_damaged_newest_is_an_error_and_not_an_older_one(vault, store, tmp_path):
    first = vault.backup({"n": "1"})
    second = vault.backup({"n": "2"})
    damage(tmp_path, catalog.read_manifest(store, second.id).document)
    for verify_too in (True, False):
        with pytest.raises(CorruptDocument):
            vault.restore(verify=verify_too)
    damage(tmp_path, f"snapshots/2026-02-26/{second.id}.manifest.json")
    with pytest.raises(CorruptManifest):
        vault.restore()
    with pytest.raises(CorruptManifest):
        vault.latest()
    assert vault.restore(snapshot_id=first.id) == {"n": "1"}
    listed = vault.list_snapshots()
    assert [s.id for s in listed] == [second.id, first.id]
    assert "checksum" in listed[0].problem
    vault.backup({"n": "3"})
    assert vault.prune(keep=1) == [first.id]
    assert [s.id for s in vault.list_snapshots()][1:] == [second.id]


def test_a_manifest_with_other_sums_is_refused(vault, store, tmp_path):
    import msgspec

    saved = vault.backup(MEMORY)
    manifest = catalog.read_manifest(store, saved.id)
    other = [msgspec.structs.replace(manifest.tiers[0], digest="0" * 32)]
    path = tmp_path / "store" / "snapshots" / "2026-02-26" / f"{saved.id}.manifest.json"
    path.write_bytes(model.encode_manifest(msgspec.structs.replace(manifest, tiers=other, checksum="")))
    with pytest.raises(ContentMismatch):
        vault.restore()
    assert vault.restore(verify=False) == MEMORY


@pytest.mark.parametrize("how", ["gone", "shorter", "flipped"])
def test_a_damaged_part_is_noticed(make, store, tmp_path, how):
    vault = make(object_limit=SMALLEST_OBJECT)
    saved = vault.backup({"big": "x" * 200_000})
    manifest = catalog.read_manifest(store, saved.id)
    assert list(manifest.parts) == [SMALLEST_OBJECT] * 3 + [manifest.stored_bytes - 3 * SMALLEST_OBJECT]
    part = f"{manifest.document}.0003"
    if how == "gone":
        store.delete(part)
    elif how == "shorter":
        (tmp_path / "store" / part).write_bytes(store.read(part)[:-1])
    else:
        damage(tmp_path, part)
    with pytest.raises(DocumentError):
        vault.restore()
    (verdict,) = verify(store, [manifest], whole=False) if how != "flipped" else _deep(store, manifest)
    assert not verdict.ok


def _deep(store, manifest):
    from coldstore.verify import Checks

    return verify(store, [manifest], checks=Checks(deep=True))


def test_two_documents_of_one_name_are_no_memory(vault):
    from coldstore.document.notes import encode_note

    vault.backup_rows([encode_note("a", "1"), encode_note("a", "2")])
    with pytest.raises(CorruptDocument, match="two documents"):
        vault.restore()


# --- room --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("object_limit", [None, SMALLEST_OBJECT])
def test_a_quota_holds_to_the_byte_and_before_anything_is_stored(make, store, compression, object_limit):
    memory = {f"{n}": f"{n * n}" * 3000 for n in range(20)}
    measured = make("x", compression=compression, object_limit=object_limit)
    measured.backup(memory)
    taken = measured.status().used_bytes  # within a few bytes of what another takes: a duration stands in the manifest
    before = everything(store)
    tight = make("y", compression=compression, object_limit=object_limit, quota_bytes=taken - 50)
    with pytest.raises(QuotaExceeded, match="its quota leaves"):
        tight.backup(memory)
    assert everything(store) == before
    enough = make("y", compression=compression, object_limit=object_limit, quota_bytes=taken + 50)
    enough.backup(memory)
    status = enough.status()
    assert status.quota_bytes == taken + 50
    assert status.available_bytes == status.quota_bytes - status.used_bytes
    assert 0 <= status.available_bytes <= 100
    assert status.file_count == len([o for o in store.list("snapshots/") if "memory-y-" in o.key])
    with pytest.raises(QuotaExceeded):
        enough.backup({"n": "1"})
    sound(store)


def test_a_quota_is_an_agents_own(make):
    make("bob").backup({"n": "x" * 100_000})
    alice = make("alice", quota_bytes=5000)
    alice.backup({"n": "1"})
    assert alice.status().used_bytes < 5000


def test_nothing_is_a_quota_too(make, store):
    with pytest.raises(QuotaExceeded):
        make(quota_bytes=0).backup({})
    assert everything(store) == {}


def test_settings_have_a_quota(make):
    vault = make(vault_quota_mb=0.002, vault_object_mb=0.5)
    assert (vault.quota_bytes, vault.object_limit) == (2000, 500_000)
    assert make(vault_quota_mb=1, quota_bytes=7).quota_bytes == 7


@pytest.mark.parametrize("given", [{"quota_bytes": -1}, {"object_limit": 0}, {"object_limit": SMALLEST_OBJECT - 1}])
def test_sizes_that_make_no_sense_are_refused(make, given):
    with pytest.raises(ConfigError):
        make(**given)


def test_a_manifest_larger_than_an_object_may_be_is_refused_before_it_is_written(make, store):
    with pytest.raises(QuotaExceeded, match="manifest"):
        make(object_limit=SMALLEST_OBJECT).backup({"n": "1"}, label="x" * SMALLEST_OBJECT)
    assert everything(store) == {}


# --- away --------------------------------------------------------------------------------------------------------------------------


def test_prune_keeps_the_newest_and_the_labelled(vault, store):
    ids = [vault.backup({"n": f"{n}"}, label="kept" if n % 3 == 0 else None).id for n in range(9)]
    assert vault.prune(keep=2) == [ids[n] for n in (5, 4, 2, 1)]
    assert vault.prune(keep=2) == []
    assert vault.prune(keep=1, label="kept") == [ids[3], ids[0]]
    assert [s.id for s in vault.list_snapshots()] == [ids[8], ids[7], ids[6]]
    assert vault.restore() == {"n": "8"}
    sound(store)


@pytest.mark.parametrize("keep", [0, -1])
def test_prune_never_takes_the_last(vault, keep):
    vault.backup(MEMORY)
    with pytest.raises(ConfigError, match="one snapshot or more"):
        vault.prune(keep=keep)
    with pytest.raises(ConfigError):
        vault.backup(MEMORY, prune_keep=keep)
    assert len(vault.list_snapshots()) == 1


def test_backup_prunes_after_itself(vault, store):
    for n in range(6):
        vault.backup({"n": f"{n}"}, prune_keep=2)
    assert [vault.restore(snapshot_id=s.id)["n"] for s in vault.list_snapshots()] == ["5", "4"]
    sound(store)


def test_prune_does_not_count_suspect_ones(vault):
    ids = [vault.backup(MEMORY).id for _ in range(3)]
    with pytest.raises(SuspectSnapshot):
        vault.backup({})
    assert vault.prune(keep=1) == [ids[1], ids[0]]
    assert vault.restore() == MEMORY


def test_what_is_retained_stays(make):
    vault = make(retain_days=1)
    first = vault.backup({"n": "1"})
    assert vault.backup({"n": "2"}, prune_keep=1)
    assert len(vault.list_snapshots()) == 2
    with pytest.raises(ObjectLocked):
        vault.delete_snapshot(first.id)
    assert vault.restore() == {"n": "2"}


def test_a_save_that_could_not_be_pruned_is_a_save(vault, store, monkeypatch):
    from coldstore.errors import StoreUnavailable

    vault.backup({"n": "1"})

    def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(catalog, "delete", away)
    with pytest.raises(PruneIncomplete, match="is saved"):
        vault.backup({"n": "2"}, prune_keep=1)
    assert vault.restore() == {"n": "2"}


def test_delete_leaves_nothing_but_a_record(make, store):
    vault = make(object_limit=SMALLEST_OBJECT)
    first = vault.backup({"n": "1"})
    second = vault.backup({"n": "x" * 300_000})
    vault.delete_snapshot(second.id)
    assert vault.restore() == {"n": "1"}
    sound(store)
    vault.delete_snapshot(first.id)
    assert [o.key for o in store.list() if not o.key.startswith("deletions/")] == []
    with pytest.raises(NotFound):
        vault.delete_snapshot(first.id)


def test_a_policy_is_for_each_kind_by_itself(vault, store, clock):
    """An agent that saves every minute does not drive the snapshots of its tables out."""
    rows = [put(store, ALICE, clock()).id for _ in range(3)]
    notes = [vault.backup({"n": f"{n}"}).id for n in range(10)]
    report = prune(store, Policy(last=2, floor=1), now=clock(), dry_run=False)
    assert set(report.deleted) == {rows[0], *notes[:8]}
    assert vault.restore() == {"n": "9"}


def test_parts_that_a_crash_left_are_swept(make, store, clock):
    vault = make(object_limit=SMALLEST_OBJECT)
    saved = vault.backup({"n": "x" * 300_000})
    store.delete(f"snapshots/2026-02-26/{saved.id}.manifest.json")
    store.delete("latest/alice.json")
    later = clock.now + int(timedelta(days=3).total_seconds() * 1000)
    report = prune(store, Policy(last=1), now=later, dry_run=False)
    assert len(report.swept) == 5
    assert everything(store) == {}


# --- where -------------------------------------------------------------------------------------------------------------------------


def test_two_lines_on_a_laptop(tmp_path):
    """No configuration, any current folder: the same place. And no database's driver is ever imported."""
    code = """
import sys
from coldstore import MemoryVault
vault = MemoryVault(agent="agent-42")
print(vault.restore() if vault.latest() else vault.backup({"plan.md": "x"}).id)
vault.backup({"plan.md": "x", "more": {"a": 1}}, prune_keep=1, label="l"); vault.list_snapshots(); vault.status()
loaded = {m.partition(".")[0] for m in sys.modules} & {"psycopg", "sqlmodel", "sqlalchemy", "typer", "fsspec", "s3fs"}
print(sorted(loaded), [m for m in sys.modules if m.startswith("coldstore.postgres")])
"""
    environ = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    for number, expected in enumerate(["memory-agent-42-", "{'plan.md': 'x', 'more': {'a': 1}}"]):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environ, capture_output=True, text=True, check=True)
        first, modules = done.stdout.splitlines()
        assert first.startswith(expected)
        assert modules == "[] []"
        assert list(folder.iterdir()) == []
    assert (tmp_path / "data" / "coldstore" / "latest" / "agent-42.json").is_file()


def test_the_default_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert default_folder() == tmp_path / ".local" / "share" / "coldstore"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert default_folder() == tmp_path / "Library" / "Application Support" / "coldstore"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert default_folder() == tmp_path / "local" / "coldstore"


@pytest.mark.parametrize("where", ["path", "url", "argument"])
def test_a_store_that_is_named_is_used(tmp_path, where):
    folder = tmp_path / "there"
    given = {} if where == "argument" else {where: str(folder)}
    with MemoryVault("a", url=str(folder) if where == "argument" else None, settings=config.build({}, given)) as vault:
        vault.backup(MEMORY)
    assert (folder / "latest" / "a.json").is_file()


def test_dates_are_of_the_moment(tmp_path):
    before = datetime.now(UTC)
    saved = MemoryVault("a", url=str(tmp_path / "s"), settings=config.build({}, {})).backup(MEMORY)
    assert before - timedelta(milliseconds=1) <= datetime.fromisoformat(saved.created) <= datetime.now(UTC)
