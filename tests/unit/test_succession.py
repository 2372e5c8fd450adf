"""Heads and deletions on a real store: which snapshot the next one names, and that a deletion may die anywhere and leave nothing half-done."""

from __future__ import annotations

import json

import pytest

from coldstore.catalog import (
    Heads,
    Pointer,
    add_keys,
    delete,
    deletions,
    keys_objects,
    manifests,
    newest,
    point_latest,
    read_manifest,
    read_pointer,
    rfc3339,
)
from coldstore.codec.sign import SigningKey
from coldstore.document import model
from coldstore.errors import CorruptManifest, NotFound, ObjectLocked
from coldstore.storage import layout
from coldstore.storage.local import LocalStore
from coldstore.tiers import EVERYBODY, Scope
from coldstore.verify import Checks, orphans, verify
from tests.unit.stores import FEB_26, put, ring

MINUTE = 60_000
ALICE = Scope.user("alice")
NOW = FEB_26 + 1000 * MINUTE
LATEST = layout.latest_key(EVERYBODY)
SIGNER = SigningKey.generate()


@pytest.fixture
def store(tmp_path):
    return LocalStore(str(tmp_path / "store"))


def link(manifest: model.Manifest) -> model.Link:
    return model.Link(id=manifest.id, checksum=manifest.checksum)


def put_all(store, *minutes: int, scope: Scope = EVERYBODY, **more: object) -> list[model.Manifest]:
    return [put(store, scope, FEB_26 + m * MINUTE, **more) for m in minutes]


def problems(store, **checks: object) -> list[str]:
    return [p for v in verify(store, manifests(store), checks=Checks(deep=True, **checks), whole=True) for p in v.as_dict()["problems"]]


# --- heads -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("everybody", [False, True])
@pytest.mark.parametrize("pointer", [None, b"", b"not a pointer", b"{}", b'{"id":"memory-all-1"}'])
def test_without_a_pointer_the_store_is_listed(store, pointer, everybody):
    _, last = put_all(store, 0, 5)
    put_all(store, 9, scope=ALICE)
    store.delete(LATEST)
    if pointer is not None:
        store.replace(LATEST, pointer)
    heads = Heads(store, everybody=everybody)
    assert heads.before(EVERYBODY, NOW) == link(last)
    assert heads.before(Scope.user("nobody"), NOW) is None


@pytest.mark.parametrize("everybody", [False, True])
def test_a_damaged_newest_one_cannot_be_named(store, everybody):
    first, last = put_all(store, 0, 5)
    store.delete(LATEST)
    store.replace(layout.manifest_key(last.id), b"damaged")
    assert Heads(store, everybody=everybody).before(EVERYBODY, NOW) == link(first)


def test_the_first_of_a_scope_names_nothing(store):
    put_all(store, 0)
    assert Heads(store).before(ALICE, NOW) is None
    assert Heads(store).before(Scope.user("all"), NOW) is None


def test_a_clock_that_went_back(store):
    """The pointer is at a later one: the way goes back to the one that was before."""
    first, second, third = put_all(store, 0, 5, 9)
    for at, before in [(9, second), (7, second), (5, first), (2, first), (0, None), (-3, None)]:
        assert Heads(store).before(EVERYBODY, FEB_26 + at * MINUTE) == (before and link(before))
    store.replace(layout.manifest_key(third.id), b"damaged")
    assert Heads(store).before(EVERYBODY, FEB_26 + 7 * MINUTE) == link(second)
    store.delete(layout.manifest_key(third.id))
    assert Heads(store).before(EVERYBODY, FEB_26 + 7 * MINUTE) == link(second)


def test_a_pointer_is_followed_and_believed(store):
    """It costs one request. What it says wrongly stands in the next manifest, and is noticed."""
    first, last = put_all(store, 0, 5)
    delete(store, [last], now=NOW)
    assert Heads(store).before(EVERYBODY, NOW) == link(first)
    for wrong in ({"id": last.id}, {"checksum": "0" * 64}, {"id": "nonsense"}, {"id": f"memory-alice-{FEB_26}"}):
        pointer = json.loads(store.read(LATEST)) | wrong
        store.replace(LATEST, json.dumps(pointer).encode())
        made = put(store, EVERYBODY, NOW)
        assert made.previous == model.Link(id=pointer["id"], checksum=pointer["checksum"])
        assert problems(store) != []
        delete(store, [made], now=NOW + MINUTE)
        for item in store.list(layout.DELETIONS):
            store.delete(item.key)
        point_latest(store, first)


def test_snapshots_name_one_another(store):
    first, second = put_all(store, 0, 5)
    other = put(store, ALICE, FEB_26 + 6 * MINUTE)
    third = put(store, EVERYBODY, FEB_26 + 9 * MINUTE)
    assert [m.previous for m in (first, second, third, other)] == [None, link(first), link(second), None]
    assert problems(store) == []


# --- deletions ---------------------------------------------------------------------------------------------------------------------


class Dying:
    """A store whose process ends at the `left`th change to it."""

    def __init__(self, store, left: int) -> None:
        self._store, self._left = store, left

    def __getattr__(self, name):
        return getattr(self._store, name)

    def _step(self) -> None:
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1

    def create(self, *arguments, **options):
        self._step()
        return self._store.create(*arguments, **options)

    def replace(self, *arguments):
        self._step()
        self._store.replace(*arguments)

    def delete(self, key):
        self._step()
        self._store.delete(key)


STEPS = 30


@pytest.mark.parametrize("which", [[0], [1], [2], [0, 1], [1, 2], [2, 0], [0, 1, 2]])
def test_a_deletion_may_end_anywhere(tmp_path, which):
    """After each step: what is listed is whole, pointers name what is there, the succession holds. And called again it gets to its end."""
    rings = (ring(),)
    for steps in range(STEPS):
        store = LocalStore(str(tmp_path / str(steps)))
        made = [put(store, EVERYBODY, FEB_26 + n * MINUTE, rings=rings, label="kept" if n != 1 else None) for n in range(3)]
        add_keys(store, made[which[0]].id, made[which[0]].sealing.keys)
        put(store, ALICE, FEB_26)
        going = [made[n] for n in which]
        finished = False
        try:
            delete(Dying(store, steps), going, now=NOW)
            finished = True
        except KeyboardInterrupt:
            assert problems(store, rings=rings) == [], steps
            assert {p.id for p in pointers(store)} <= {m.id for m in manifests(store)}
            delete(store, going, now=NOW + 1)
        left = [m.id for m in made if m not in going]
        assert [m.id for m in manifests(store, scope=EVERYBODY)] == left[::-1]
        assert orphans(store, [m.id for m in manifests(store)]) == []
        assert problems(store, rings=rings) == []
        labelled = [m.id for m in made if m.label and m.id in left]
        assert {p.id for p in pointers(store)} == {*left[-1:], *labelled[-1:], f"memory-alice-{FEB_26}"}
        later = put(store, EVERYBODY, NOW + MINUTE)
        assert later.previous == (link(read_manifest(store, left[-1])) if left else None)
        assert problems(store, rings=rings) == []
        if finished:
            assert steps >= 4
            return
    pytest.fail("it does not end")


def pointers(store) -> list[Pointer]:
    found = [read_pointer(store, o.key) for prefix in (layout.LATEST, layout.CHECKPOINTS) for o in store.list(prefix)]
    assert None not in found
    return found


def test_what_must_be_kept_is_not_deleted(store):
    free, bound = put(store), put(store, ALICE, FEB_26, retained=model.Retained(until=rfc3339(NOW), mode="advisory"))
    before = sorted(o.key for o in store.list())
    for which in ([bound], [free, bound], [bound, free]):
        with pytest.raises(ObjectLocked, match=rfc3339(NOW)) as caught:
            delete(store, which, now=NOW - 1)
        assert caught.value.hint
        assert sorted(o.key for o in store.list()) == before
    delete(store, [bound, free], now=NOW)
    assert list(manifests(store)) == []


@pytest.mark.parametrize("signer", [None, SIGNER])
def test_a_record_says_what_went(store, signer):
    first, second = put_all(store, 0, 5)
    delete(store, [second, first], now=NOW, signer=signer)
    ((key, record),) = deletions(store)
    assert key.startswith(f"deletions/{layout.date_of(NOW)}/{NOW}-")
    assert record.at == rfc3339(NOW)
    assert [(d.id, d.checksum, d.previous, d.seconds) for d in record.snapshots] == [
        (second.id, second.checksum, link(first), second.seconds),
        (first.id, first.checksum, None, first.seconds),
    ]
    assert (record.signature and record.signature.by) == (signer and signer.did)
    assert not any(True for _ in store.list(layout.LATEST))
    with pytest.raises(NotFound):
        newest(store)


def test_a_record_that_is_no_good_hides_no_other(store):
    first, second, third = put_all(store, 0, 5, 9)
    delete(store, [second], now=NOW)
    ((key, _),) = deletions(store)
    good = store.read(key)
    moved = key.replace(str(NOW), str(NOW + 1))
    for name, data in {
        key: good.replace(b'"at"', b'"aT"'),
        moved: good,
        layout.deletion_key(NOW, "00"): model.encode_record({"format": model.FORMAT, "kind": "deletion", "at": rfc3339(NOW)}),
        "deletions/readme": b"hello",
    }.items():
        store.replace(key, good)
        store.replace(name, data)
        found = dict(deletions(store))
        assert isinstance(found[name], CorruptManifest)
        assert len(problems(store)) == (1 if name != key else 2)
        if name != key:
            store.delete(name)
    store.replace(key, good)
    assert problems(store) == []
    assert third.previous == link(second)
    assert first.previous is None


def test_a_record_of_nonsense_does_not_stop_the_others(store):
    put_all(store, 0, 5)
    for name in ("nonsense", "", "memory-all-"):
        body = {"id": name, "checksum": "0" * 64, "previous": None, "seconds": 0.1}
        record = {"format": model.FORMAT, "kind": "deletion", "at": rfc3339(NOW), "snapshots": [body]}
        key = layout.deletion_key(NOW, "00")
        store.replace(key, model.encode_record(record))
        (said,) = problems(store)
        assert "not a snapshot id" in said
        store.delete(key)


# --- pointers and keys in verify ---------------------------------------------------------------------------------------------------


def test_the_newest_one_is_missed_while_a_pointer_names_it(store):
    first, last = put_all(store, 0, 5)
    for key in (layout.manifest_key(last.id), last.document):
        store.delete(key)
    (said,) = problems(store)
    assert last.id in said
    assert "no deletion record" in said
    store.delete(LATEST)
    assert problems(store) == []  # nothing is left that names it
    point_latest(store, first)
    assert problems(store) == []


def test_a_pointer_to_another_one_of_that_name(store):
    (made,) = put_all(store, 0)
    pointer = json.loads(store.read(LATEST))
    for wrong in ({"checksum": "0" * 64}, {"snapshotAt": "9999-01-01T00:00:00.000Z"}):
        store.replace(LATEST, json.dumps(pointer | wrong).encode())
        assert len(problems(store)) == 1
    store.replace(LATEST, json.dumps(pointer).encode())
    assert problems(store) == []
    assert made.previous is None


def test_pointers_and_records_of_another_age(store):
    """Somebody wrote them. They are nonsense, and no reason to fail."""
    put_all(store, 0)
    for name in ("memory-all-999999999999999", "memory-all-0"):
        body = {"id": name, "checksum": "0" * 64, "previous": None, "seconds": 1e300}
        record = {"format": model.FORMAT, "kind": "deletion", "at": rfc3339(NOW), "snapshots": [body]}
        store.replace(layout.deletion_key(NOW, "00"), model.encode_record(record))
        pointer = json.loads(store.read(LATEST)) | {"id": name}
        store.replace("latest/x.json", json.dumps(pointer).encode())
        assert problems(store) == []
        store.delete(layout.deletion_key(NOW, "00"))
        assert len(problems(store)) == 1


def test_the_keys_of_a_user_whose_name_looks_like_a_key_object(store):
    """He may call himself what he likes, and is still nobody's key."""
    made = put(store, rings=(ring(),))
    add_keys(store, made.id, made.sealing.keys)
    hostile = put(store, Scope.user(f"{made.id.removeprefix('memory-')}.keys"), FEB_26 + 1)
    assert hostile.document.startswith(layout.keys_prefix(made.id))
    assert keys_objects(store, made.id) == [layout.keys_key(made.id, 1)]
    assert keys_objects(store, hostile.id) == []
    assert {m.id for m in manifests(store)} == {made.id, hostile.id}
    assert orphans(store, [made.id, hostile.id]) == []
    assert orphans(store, [hostile.id]) == [made.document, layout.keys_key(made.id, 1)]


def test_keys_that_are_added_at_once_do_not_overwrite_one_another(store):
    made = put(store, rings=(ring(),))
    assert [add_keys(store, made.id, made.sealing.keys) for _ in range(3)] == [layout.keys_key(made.id, n) for n in (1, 2, 3)]
