"""One agent's memory to another installation: every value as it was, nobody else's row touched, nothing half-done."""

from __future__ import annotations

import json

import pytest

from coldstore.app import ColdStore
from coldstore.bundle import Contents, Origin, write_bundle
from coldstore.codec.sign import SigningKey
from coldstore.config import build
from coldstore.errors import (
    ConfigError,
    CorruptDocument,
    DatabaseUnreachable,
    NotFound,
    RestoreConflict,
    SchemaMismatch,
    SignatureMissing,
    SignatureUntrusted,
    TargetNotEmpty,
)
from coldstore.keyrings.local import make_key_file
from coldstore.moving import ImportOptions, export, import_bundle
from coldstore.postgres.connect import describe
from coldstore.vault import MemoryVault
from tests.acceptance.program import remember
from tests.integration.helpers import ask, contents, everything, run, table_text

TABLES = ("daily_memories", "graph_entities", "procedural_memory")
ALICE = "uid = 'uid_alice'"


@pytest.fixture
def memory(database: str) -> str:
    remember(database, "uid_alice", workspace="red")
    remember(database, "uid_bob", workspace="blue")
    return database


@pytest.fixture
def here(memory, tmp_path):
    with ColdStore(build({}, {"database_url": memory, "path": str(tmp_path / "here")})) as store:
        yield store


@pytest.fixture
def there(tmp_path):
    with ColdStore(build({}, {"path": str(tmp_path / "there")})) as store:
        yield store


@pytest.fixture
def path(tmp_path):
    return tmp_path / "alice.coldstore.json"


def vault_of(store: ColdStore, agent: str = "uid_alice") -> MemoryVault:
    return MemoryVault(agent, settings=store.settings)


def of(url: str, uid: str) -> dict[str, list]:
    return {t: table_text(url, f"public.{t}", where=f"uid = '{uid}'") for t in TABLES}


def bring(store: ColdStore, path, to: str | None, **more):
    return import_bundle(store, path, options=ImportOptions(to=to, **more))


@pytest.mark.parametrize("everybody", [True, False])
def test_an_agent_moves(here, there, memory, path, make_database, everybody):
    with vault_of(here) as vault:
        vault.backup({"plan.md": "1. ✓", "state": {"n": [1, None]}, "raw": b"\xff\0"})
    here.snapshot(uid=None if everybody else "uid_alice")
    record = export(here, "uid_alice", path)
    assert {a.tier: a.rows for a in record.arrays} == {"daily_memories": 3, "graph_entities": 2, "procedural_memory": 1, "documents": 3}
    target = make_database(empty=True)
    done = bring(there, path, target)
    assert of(target, "uid_alice") == of(memory, "uid_alice")
    assert ask(target, "SELECT count(*) FROM daily_memories") == [(3,)]
    assert (done.uid, done.was, done.notes) == ("uid_alice", "uid_alice", [])
    assert done.tables is not None
    assert done.tables.verified == "content"
    with vault_of(there) as vault:
        assert vault.restore() == {"plan.md": "1. ✓", "state": {"n": [1, None]}, "raw": b"\xff\0"}
        assert vault.latest().label == "imported"
    run(target, "INSERT INTO daily_memories (uid, date) VALUES ('uid_alice', '2026-01-01')")


def test_the_newer_of_two_snapshots_is_taken(here, memory, path):
    here.snapshot()
    run(memory, f"DELETE FROM daily_memories WHERE {ALICE} AND date = (SELECT max(date) FROM daily_memories WHERE {ALICE})")
    own = here.snapshot(uid="uid_alice")
    record = export(here, "uid_alice", path)
    assert record.tables is not None
    assert record.tables.id == own.id
    path.unlink()
    run(memory, f"DELETE FROM daily_memories WHERE {ALICE}")
    whole = here.snapshot()
    assert export(here, "uid_alice", path).tables.id == whole.id
    path.unlink()
    assert export(here, "uid_alice", path, snapshot_id=own.id).tables.id == own.id
    with pytest.raises(NotFound, match="holds the memory of user 'uid_alice', not of user 'uid_bob'"):
        export(here, "uid_bob", path.with_name("bob.json"), snapshot_id=own.id)


def test_nobody(here, path):
    with pytest.raises(NotFound, match="has nothing of user 'uid_carol'"):
        export(here, "uid_carol", path)
    here.snapshot()
    with pytest.raises(NotFound, match="not one row or document of user 'uid_carol'"):
        export(here, "uid_carol", path)
    assert not path.exists()


def test_tiers_that_cannot_be_carried_are_named(memory, tmp_path, path, there, make_database):
    run(memory, "CREATE TABLE news (id int PRIMARY KEY, text text)", "INSERT INTO news VALUES (1, 'x')")
    settings = build({"tiers": {"news": {"table": "news"}}}, {"database_url": memory, "path": str(tmp_path / "here")})
    with ColdStore(settings) as store:
        store.snapshot()
        assert export(store, "uid_alice", path).omitted == ["news"]
    target = make_database(empty=True)
    assert bring(there, path, target).notes == ["news: not in the bundle, for no column says whose a row is"]
    assert ask(target, "SELECT to_regclass('news')") == [(None,)]


def test_another_uid_beside_the_old_one(here, there, memory, path):
    """A copy in the same database: the keys are taken, so new ones are needed; the old rows stay where they are."""
    run(memory, "UPDATE daily_memories SET summary = 'met uid_alice' WHERE uid = 'uid_alice' AND date = '2026-01-02'")
    here.snapshot()
    export(here, "uid_alice", path)
    before = everything(memory)
    with pytest.raises(RestoreConflict) as refused:
        bring(there, path, memory, rename_uid="uid_copy")
    assert "--new-ids" in str(refused.value.hint)
    assert everything(memory) == before
    bob = of(memory, "uid_bob")
    done = bring(there, path, memory, rename_uid="uid_copy", new_ids=True)
    assert done.notes[0] == "1 rows speak of 'uid_alice' elsewhere than in the column of the owner; that stays"
    for table in TABLES:
        names = [n for (n,) in ask(memory, f"SELECT column_name FROM information_schema.columns WHERE table_name = '{table}'")]
        rest = [n for n in names if n not in {"id", "uid"}]
        old = table_text(memory, f"public.{table}", where="uid = 'uid_alice'", columns=rest)
        assert table_text(memory, f"public.{table}", where="uid = 'uid_copy'", columns=rest) == old
        assert old
    assert of(memory, "uid_bob") == bob
    again = bring(there, path, memory, rename_uid="uid_copy", new_ids=True, mode="merge")
    assert again.tables is not None
    assert all(t["unchanged"] == t["rows"] for t in again.tables.tables)


def test_new_ids_keep_the_graph_together(memory, tmp_path, there, path):
    run(
        memory,
        "INSERT INTO graph_edges (uid, source_id, target_id, relation) SELECT 'uid_alice', min(id::text)::uuid, max(id::text)::uuid, 'near'"
        f" FROM graph_entities WHERE {ALICE}",
    )
    settings = build({"tiers": {"graph_edges": {"enabled": True}}}, {"database_url": memory, "path": str(tmp_path / "here")})
    with ColdStore(settings) as store:
        store.snapshot(uid="uid_alice")
        export(store, "uid_alice", path)
        bring(store, path, memory, rename_uid="uid_copy", new_ids=True)
    linked = "SELECT s.name, t.name FROM graph_edges e JOIN graph_entities s ON s.id = e.source_id AND s.uid = e.uid JOIN graph_entities t"
    linked += " ON t.id = e.target_id AND t.uid = e.uid WHERE e.uid = "
    found = ask(memory, f"{linked} 'uid_copy'")
    assert len(found) == 1
    assert found == ask(memory, f"{linked} 'uid_alice'")


def test_a_name_that_needs_escapes(here, there, path, make_database):
    here.snapshot(uid="uid_alice")
    export(here, "uid_alice", path)
    target = make_database(empty=True)
    odd = 'Zoë "\\/\x01\x1f\x7f\u2028\U0001f600'
    assert bring(there, path, target, rename_uid=odd).uid == odd
    assert ask(target, "SELECT DISTINCT uid FROM daily_memories") == [(odd,)]


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("bigint", "7", "42"),
        ("uuid", "6713b80a-0000-4000-8000-000000000001", "6713B80A-0000-4000-8000-000000000002"),
        ("char(8)", "alice", "bob"),
    ],
)
def test_owners_of_other_types(make_database, tmp_path, path, there, kind, old, new):
    source, target = make_database(empty=True), make_database(empty=True)
    run(
        source,
        f"CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, owner {kind}, text text)",
        f"INSERT INTO notes (owner, text) VALUES ('{old}', 'one'), ('{old}', 'two')",
    )
    tiers = {"notes": {"table": "notes", "uid": "owner"}, **{t: {"enabled": False} for t in TABLES}}
    with ColdStore(build({"tiers": tiers}, {"database_url": source, "path": str(tmp_path / "here")})) as store:
        store.snapshot(uid=old)
        export(store, old, path)
    bring(there, path, target, rename_uid=new)
    assert ask(target, f"SELECT count(*) FROM notes WHERE owner = '{new}'") == [(2,)]
    run(target, f"INSERT INTO notes (owner, text) VALUES ('{new}', 'three')")
    with pytest.raises(SchemaMismatch, match="is no UUID"):
        bring(there, path, target, rename_uid=new, new_ids=True)


def test_out_of_a_chain(here, there, memory, path, make_database):
    """The rows in the end: without those that were deleted or changed since the full one."""
    here.init(change_capture=True)
    here.snapshot(uid="uid_alice")
    run(
        memory,
        f"DELETE FROM daily_memories WHERE {ALICE} AND date = '2026-01-02'",
        f"UPDATE procedural_memory SET name = 'better' WHERE {ALICE}",
        "INSERT INTO daily_memories (uid, date) VALUES ('uid_alice', '2027-01-01')",
    )
    last = here.snapshot_incremental(uid="uid_alice")
    assert last is not None
    assert last.kind == "incremental"
    record = export(here, "uid_alice", path)
    assert {a.tier: a.rows for a in record.arrays} == {"daily_memories": 3, "graph_entities": 2, "procedural_memory": 1}
    target = make_database(empty=True)
    bring(there, path, target)
    assert of(target, "uid_alice") == of(memory, "uid_alice")


# --- refused -----------------------------------------------------------------------------------------------------------------------


def test_modes_hold_for_documents_too(there, here, path, tmp_path):
    with vault_of(here) as vault:
        vault.backup({"a": "1", "b": "1"})
    export(here, "uid_alice", path)
    with vault_of(there) as vault:
        first = vault.backup({"b": "2", "c": "2"})
        for mode, conflict, error in (("fresh", "fail", TargetNotEmpty), ("merge", "fail", RestoreConflict)):
            with pytest.raises(error):
                bring(there, path, None, mode=mode, on_conflict=conflict)
        assert vault.latest().id == first.id
        dry = bring(there, path, None, mode="merge", on_conflict="update", dry_run=True)
        assert (dry.documents, dry.snapshot_id) == (["a", "b"], None)
        bring(there, path, None, mode="merge", on_conflict="skip")
        assert vault.restore() == {"a": "1", "b": "2", "c": "2"}
        bring(there, path, None, mode="merge", on_conflict="update")
        assert vault.restore() == {"a": "1", "b": "1", "c": "2"}
        bring(there, path, None, mode="replace")
        assert vault.restore() == {"a": "1", "b": "1"}
        count = len(vault.list_snapshots())
        assert bring(there, path, None, mode="replace").snapshot_id is None
        assert len(vault.list_snapshots()) == count


def test_rows_need_a_database(here, there, path):
    here.snapshot(uid="uid_alice")
    export(here, "uid_alice", path)
    with pytest.raises(ConfigError, match="no database is named"):
        bring(there, path, None)
    with pytest.raises(DatabaseUnreachable):
        bring(there, path, "postgresql://127.0.0.1:1/nowhere")
    with vault_of(there) as vault:
        assert vault.latest() is None


def test_what_is_there_already_is_refused_and_nothing_is_written(here, there, memory, path):
    here.snapshot(uid="uid_alice")
    with vault_of(here) as vault:
        vault.backup({"a": "1"})
    export(here, "uid_alice", path)
    before = everything(memory)
    with pytest.raises(TargetNotEmpty):
        bring(there, path, memory)
    assert everything(memory) == before
    with vault_of(there) as vault:
        assert vault.latest() is None


def test_a_bundle_that_says_one_user_and_holds_anothers_rows_is_refused(here, there, memory, path, tmp_path, make_database):
    """Whoever can make a bundle cannot write into another's memory with it."""
    info = here.snapshot(uid="uid_bob")
    document = here.document(info.id)
    write_bundle(
        path,
        Contents(
            uid="uid_alice",
            created_at="2026-01-01T00:00:00.000Z",
            schema=document.schema,
            rows=lambda array: [row for part in document.parts([array]) for row in part.rows()],
            tables=Origin(id=info.id, snapshot_at=info.snapshot_at),
        ),
    )
    run(
        memory,
        f"DELETE FROM daily_memories WHERE {ALICE}",
        f"DELETE FROM graph_entities WHERE {ALICE}",
        f"DELETE FROM procedural_memory WHERE {ALICE}",
    )
    run(memory, "DELETE FROM daily_memories WHERE uid = 'uid_bob'")
    for target in (memory, make_database(), make_database(empty=True)):
        before = everything(target)
        for mode in ("fresh", "merge", "replace"):
            with pytest.raises((RestoreConflict, SchemaMismatch, CorruptDocument)):
                bring(there, path, target, mode=mode)
            assert everything(target) == before


def test_signed_and_required(memory, tmp_path, path, make_database):
    signer, other = SigningKey.generate(), SigningKey.generate()
    flags = {"database_url": memory, "path": str(tmp_path / "here")}
    with ColdStore(build({}, flags)) as store:
        store.snapshot(uid="uid_alice")
        export(store, "uid_alice", path)
    signed = path.with_name("signed.json")
    with ColdStore(build({}, {**flags, "signing_key": signer.text()})) as store:
        export(store, "uid_alice", signed)
    target = make_database(empty=True)
    place = str(tmp_path / "there")
    with ColdStore(build({"trusted_keys": [signer.did], "require_signature": True}, {"path": place})) as store:
        with pytest.raises(SignatureMissing):
            bring(store, path, target)
        bring(store, signed, target)
    with ColdStore(build({"trusted_keys": [other.did]}, {"path": place})) as store:
        with pytest.raises(SignatureUntrusted):
            bring(store, signed, target, mode="merge", require_signature=True)
        (note,) = bring(store, signed, target, mode="merge").notes
        assert "who is not trusted" in note


def test_out_of_a_sealed_store(memory, tmp_path, path, there, make_database):
    key = tmp_path / "key"
    make_key_file(key)
    with ColdStore(build({}, {"database_url": memory, "path": str(tmp_path / "sealed"), "key_rings": [f"local:{key}"]})) as store:
        assert store.snapshot().sealed
        export(store, "uid_alice", path)
    target = make_database(empty=True)
    bring(there, path, target)
    assert of(target, "uid_alice") == of(memory, "uid_alice")


def test_a_dry_run_changes_nothing(here, there, memory, path):
    here.snapshot(uid="uid_alice")
    export(here, "uid_alice", path)
    before = contents(memory, versions=True)
    told = bring(there, path, memory, mode="merge", dry_run=True).as_dict()
    assert contents(memory, versions=True) == before
    assert told["dryRun"] is True
    assert told["tables"]["rows"] == {"daily_memories": 3, "graph_entities": 2, "procedural_memory": 1}
    json.dumps(told)
    assert describe(memory) == told["tables"]["target"]
