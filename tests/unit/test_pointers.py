"""Pointers: each way in which one can be wrong is told, put right, and nothing else is touched."""

from __future__ import annotations

import msgspec
import pytest

from coldstore import catalog, pointers
from coldstore.storage import layout
from coldstore.storage.local import LocalStore
from coldstore.tiers import EVERYBODY, Scope
from tests.unit.histories import DAY, NOON, commit, days

LATEST = layout.latest_key(EVERYBODY)
CHECKPOINT = layout.checkpoint_key(EVERYBODY, "before")


@pytest.fixture
def store(tmp_path) -> LocalStore:
    store = LocalStore(str(tmp_path / "store"))
    commit(store, NOON - 5 * DAY, label="before")
    commit(store, NOON - 4 * DAY, label="before")
    days(store, [3, 2])
    days(store, [2], scope=Scope.user("alice"))
    return store


def all_pointers(store: LocalStore) -> dict[str, bytes]:
    return {o.key: store.read(o.key) for prefix in (layout.LATEST, layout.CHECKPOINTS) for o in store.list(prefix)}


def wrong(store: LocalStore) -> list[str]:
    return [w.key for w in pointers.check(store)[1]]


def test_what_snapshots_write_is_right(store):
    assert pointers.check(store) == (3, [])
    assert pointers.rebuild(store) == []


def test_they_can_be_made_anew_from_nothing(store):
    before = all_pointers(store)
    for key in before:
        store.delete(key)
    assert wrong(store) == sorted(before)
    assert [w.key for w in pointers.rebuild(store)] == sorted(before)
    assert {k: msgspec.json.decode(v) for k, v in all_pointers(store).items()} == {k: msgspec.json.decode(v) for k, v in before.items()}


@pytest.mark.parametrize("key", [LATEST, CHECKPOINT])
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[:-5],
        lambda text: b"\xff" + text,
        lambda text: text.replace(b'"checksum":"', b'"checksum":"0'),
        lambda text: text.replace(b"memory-all", b"memory-bob"),
        lambda text: text.replace(b'"id":"memory-all', b'"id":"nonsense'),
        lambda text: text.replace(b'"notes":3', b'"notes":4'),
    ],
)
def test_damage(store, key, damage):
    before = store.read(key)
    store.replace(key, damage(before))
    assert wrong(store) == [key]
    pointers.rebuild(store)
    assert store.read(key) == before
    assert wrong(store) == []


def test_one_that_is_behind_and_one_that_names_what_is_gone(store):
    behind = store.read(CHECKPOINT)
    right = store.read(LATEST)
    store.replace(LATEST, behind)
    assert wrong(store) == [LATEST]
    pointers.rebuild(store)
    assert store.read(LATEST) == right
    newest = catalog.read_pointer(store, LATEST).id
    store.delete(layout.manifest_key(newest))
    (found,) = pointers.check(store)[1]
    assert newest in found.problem
    pointers.rebuild(store)
    assert catalog.read_pointer(store, LATEST).id == layout.snapshot_id(EVERYBODY, NOON - 3 * DAY)


def test_only_good_snapshots_are_pointed_at(store):
    head = commit(store, NOON - DAY, suspect="no row", label="before")
    damaged = commit(store, NOON)
    store.replace(layout.manifest_key(damaged.id), b"{")
    assert wrong(store) == [LATEST]
    pointers.rebuild(store)
    there = catalog.read_pointer(store, LATEST)
    assert (there.id, there.head.id) == (layout.snapshot_id(EVERYBODY, NOON - 2 * DAY), head.id)
    assert catalog.read_pointer(store, CHECKPOINT).id == layout.snapshot_id(EVERYBODY, NOON - 4 * DAY)
    assert wrong(store) == []


def test_a_suspect_one_that_the_pointer_does_not_know(store):
    before = store.read(LATEST)
    commit(store, NOON, suspect="no row")
    after = store.read(LATEST)
    assert before != after
    store.replace(LATEST, before)
    assert wrong(store) == [LATEST]
    pointers.rebuild(store)
    assert msgspec.json.decode(store.read(LATEST)) == msgspec.json.decode(after)


def test_pointers_to_nothing_go_and_strangers_stay(store):
    stale = layout.latest_key(Scope.user("bob"))
    store.replace(stale, store.read(LATEST))
    for key in ("latest/README", "checkpoints/all/notes.txt"):
        store.replace(key, b"somebody's")
    found = {w.key: w.ours for w in pointers.check(store)[1]}
    assert found == {stale: True, "latest/README": False, "checkpoints/all/notes.txt": False}
    assert [w.key for w in pointers.rebuild(store)] == [stale]
    assert {"latest/README", "checkpoints/all/notes.txt"} < set(all_pointers(store))
    assert stale not in all_pointers(store)


def test_a_snapshot_that_is_taken_meanwhile(store, monkeypatch):
    """Its pointers are ahead of the manifests that were read; they are right, and stay."""
    read = pointers._right

    def and_then(store):
        found = read(store)
        commit(store, NOON, label="later")
        commit(store, NOON + 1, label="before")
        return found

    monkeypatch.setattr(pointers, "_right", and_then)
    assert pointers.rebuild(store) == []
    monkeypatch.undo()
    assert pointers.check(store) == (4, [])
