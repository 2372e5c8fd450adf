"""Pruning on a disk: what goes and what stays, whatever happens in between; and pointers that lead where they should afterwards."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstore import catalog, pointers
from coldstore.catalog import manifests
from coldstore.codec.sign import SigningKey
from coldstore.document import model
from coldstore.errors import AccessDenied, ObjectLocked, StoreUnavailable, UnsupportedFormat
from coldstore.progress import silent
from coldstore.prune import Report, prune
from coldstore.retention import Policy
from coldstore.storage import layout
from coldstore.storage.local import LocalStore
from coldstore.tiers import EVERYBODY, Scope
from coldstore.trust import Trust
from coldstore.verify import verify
from tests.unit.histories import DAY, NOON, commit, days, whole

ALICE = Scope.user("alice")
THREE = Policy(last=3, floor=1)


class Meanwhile:
    """Something that happens after the decision and before the first deletion."""

    note, advance = silent.note, silent.advance

    def __init__(self, happens: Callable[[], object]) -> None:
        self._happens = happens

    def start(self, what: str, *, total_bytes: int | None = None) -> None:
        if what == "delete":
            self._happens()


class Failing(LocalStore):
    """A disk on which calls fail: `broken` says with what, of a call and its key."""

    broken: Callable[[str, str], Exception | None] = staticmethod(lambda call, key: None)

    def _check(self, call: str, key: str) -> None:
        if error := self.broken(call, key):
            raise error

    def read(self, key, **more):
        self._check("read", key)
        return super().read(key, **more)

    def create(self, key, **more):
        self._check("create", key)
        return super().create(key, **more)

    def replace(self, key, data):
        self._check("replace", key)
        super().replace(key, data)

    def delete(self, key):
        self._check("delete", key)
        super().delete(key)


@pytest.fixture
def store(tmp_path) -> Failing:
    return Failing(str(tmp_path / "store"))


def contents(store: LocalStore) -> dict[str, bytes]:
    return {o.key: store.read(o.key) for o in store.list()}


def ids(found: list[model.Manifest]) -> list[str]:
    return [m.id for m in found]


def assert_whole(store: LocalStore, left: set[str], trust: Trust | None = None) -> None:
    """What is left is whole, the succession goes through what was deleted, and pointers lead to what is there."""
    assert whole(store) == left
    assert [v.problems for v in verify(store, manifests(store), whole=True) if not v.ok] == []
    assert pointers.check(store)[1] == []


def run(store: LocalStore, policy: Policy = THREE, **more: object) -> Report:
    return prune(store, policy, **{"now": NOON, "dry_run": False, **more})


# --- what goes ---------------------------------------------------------------------------------------------------------------------


def test_a_dry_run_changes_nothing(store):
    made = days(store, range(9, -1, -1))
    before = contents(store)
    report = run(store, dry_run=True)
    assert contents(store) == before
    assert [s.id for s in report.going] == ids(made[6::-1])
    assert (report.deleted, report.ok) == ([], True)


def test_what_no_rule_keeps_goes_and_a_signed_record_of_it_stays(store):
    signer = SigningKey.generate()
    everybody = days(store, range(9, -1, -1), signer=signer)
    alice = days(store, range(5, -1, -1), scope=ALICE, signer=signer)
    report = run(store, signer=signer)
    left = set(ids([*everybody[-3:], *alice[-3:]]))
    assert_whole(store, left)
    assert set(report.deleted) == set(ids([*everybody, *alice])) - left
    records = [r for _, r in catalog.deletions(store)]
    assert {d.id for r in records for d in r.snapshots} == set(report.deleted)
    assert {r.signature.by for r in records} == {signer.did}
    assert run(store).deleted == []
    assert len(list(catalog.deletions(store))) == len(records)


def test_one_scope_alone(store):
    everybody = days(store, range(9, -1, -1))
    alice = days(store, range(9, -1, -1), scope=ALICE)
    stranger = "snapshots/2026-01-01/notes.txt"
    store.replace(stranger, b"x")
    report = run(store, scope=ALICE)
    assert_whole(store, set(ids([*everybody, *alice[-3:]])))
    assert report.strangers == ()
    run(store, scope=EVERYBODY)
    assert_whole(store, set(ids([*everybody[-3:], *alice[-3:]])))


def test_labels_locks_and_suspects(store):
    labelled = commit(store, NOON - 40 * DAY, label="before")
    locked = commit(store, NOON - 30 * DAY, retained=model.Retained(until=catalog.rfc3339(NOON + DAY), mode="advisory"))
    once_locked = commit(store, NOON - 29 * DAY, retained=model.Retained(until=catalog.rfc3339(NOON - 1), mode="advisory"))
    plain = days(store, range(9, 0, -1))
    suspect = commit(store, NOON, suspect="no row")
    report = run(store, Policy(last=1, floor=1))
    assert_whole(store, set(ids([labelled, locked, plain[-1], suspect])))
    assert once_locked.id in report.deleted
    (told,) = (d.reasons for d in report.decisions if d.snapshot.id == locked.id)
    assert told == ("locked until 2026-02-27T12:00:00Z",)
    run(store, Policy(last=1, floor=1, labels=False))
    assert_whole(store, set(ids([locked, plain[-1], suspect])))


def test_a_checkpoint_moves_to_what_is_left_of_its_label(store):
    for age in (9, 8, 7, 6):
        commit(store, NOON - age * DAY, label="weekly")
    kept = [commit(store, NOON - age * DAY) for age in (3, 2, 1)]
    run(store, Policy(last=4, floor=1, labels=False))
    assert catalog.read_pointer(store, layout.checkpoint_key(EVERYBODY, "weekly")).id == layout.snapshot_id(EVERYBODY, NOON - 6 * DAY)
    run(store, Policy(last=3, floor=1, labels=False))
    assert_whole(store, set(ids(kept)))
    assert list(store.list(layout.CHECKPOINTS)) == []


def test_damaged_manifests_are_never_dropped(store):
    made = days(store, range(9, -1, -1))
    torn, altered, forged = (layout.manifest_key(m.id) for m in made[:3])
    store.replace(torn, b"{")
    store.replace(altered, store.read(altered).replace(b'"rows":3', b'"rows":4'))
    body = msgspec.json.decode(model.encode_manifest(model.complete(made[2], signer=SigningKey.generate())))
    body["signature"]["by"] = SigningKey.generate().did
    unsealed = {k: v for k, v in body.items() if k != "checksum"}
    checksum = hashlib.sha256(model.canonical(unsealed)).hexdigest()
    store.replace(forged, model.canonical({**unsealed, "checksum": checksum}) + b"\n")
    report = run(store)
    assert set(report.deleted) == set(ids(made[3:-3]))
    assert {torn, altered, forged} <= {o.key for o in store.list()}
    assert all(store.stat(m.document) for m in made[:3])


def test_a_newer_format_is_not_decided_on(store):
    """What it is built on is not known."""
    made = days(store, range(9, -1, -1))
    key = layout.manifest_key(made[5].id)
    store.replace(key, model.encode_record({**msgspec.to_builtins(made[5]), "format": "coldstore/2"}))
    before = contents(store)
    with pytest.raises(UnsupportedFormat):
        run(store)
    assert contents(store) == before


def test_a_manifest_that_cannot_be_fetched_stops_the_decision(store):
    made = days(store, range(9, -1, -1))
    key = layout.manifest_key(made[9].id)
    store.broken = lambda call, at: StoreUnavailable("no answer", key=at) if (call, at) == ("read", key) else None
    with pytest.raises(StoreUnavailable):
        run(store)
    store.broken = lambda *_: None
    assert whole(store) == set(ids(made))


def test_nobody_drives_snapshots_out_by_adding_newer_ones(store):
    signer = SigningKey.generate()
    ours = days(store, range(9, 4, -1), signer=signer)
    forged = days(store, range(4, -1, -1), signer=SigningKey.generate())
    trust = Trust(frozenset({signer.did}), required=True)
    report = run(store, trust=trust)
    assert report.deleted == ids(ours[1::-1])
    assert whole(store) == set(ids([*ours[-3:], *forged]))


# --- meanwhile ---------------------------------------------------------------------------------------------------------------------


def test_what_comes_after_the_decision_is_not_touched(store):
    made = days(store, range(9, 0, -1))
    new = []
    report = run(store, progress=Meanwhile(lambda: new.extend(days(store, [0]))))
    assert_whole(store, set(ids([*made[-3:], *new])))
    assert report.ok


def test_what_is_another_one_by_now_stays(store):
    made = days(store, range(9, -1, -1))
    key = layout.manifest_key(made[0].id)
    other = model.encode_manifest(model.complete(msgspec.structs.replace(made[0], generator="somebody else")))
    report = run(store, progress=Meanwhile(lambda: store.replace(key, other)))
    assert list(report.failures) == [made[0].id]
    assert set(report.deleted) == set(ids(made[1:-3]))
    assert store.read(key) == other


def test_another_prune_was_quicker(store):
    made = days(store, range(9, -1, -1))
    report = run(store, progress=Meanwhile(lambda: run(store)))
    assert (report.deleted, report.ok) == ([], True)
    assert len(list(catalog.deletions(store))) == 1
    assert_whole(store, set(ids(made[-3:])))


def test_two_prunes_at_once(tmp_path):
    stores = [LocalStore(str(tmp_path)) for _ in range(2)]
    made = days(stores[0], range(60, -1, -1))
    barrier = threading.Barrier(2)
    reports: list[Report] = []
    policies = (Policy(last=5, floor=1), Policy(daily=3, weekly=3, floor=1))
    threads = [
        threading.Thread(target=lambda s=s, p=p: reports.append(run(s, p, progress=Meanwhile(barrier.wait))))
        for s, p in zip(stores, policies, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r.failures for r in reports] == [{}, {}]
    assert_whole(stores[0], set(ids([made[-5], *made[-3:]])))  # what both keep: three days, and the Sunday of the week before


def test_it_goes_on_where_it_was_killed(tmp_path):
    """After every single step that writes."""
    for steps in range(200):
        store = Failing(str(tmp_path / str(steps)))
        commit(store, NOON - 20 * DAY, label="x")
        days(store, range(5, -1, -1))
        commit(store, NOON - 3 * DAY, scope=ALICE)
        left = [steps]

        def killed(call: str, _key: str, left: list[int] = left) -> Exception | None:
            left[0] -= call != "read"
            return KeyboardInterrupt() if left[0] < 0 and call != "read" else None

        store.broken = killed
        policy = Policy(last=2, floor=1, labels=False)
        try:
            run(store, policy)
        except KeyboardInterrupt:
            over = False
        else:
            over = True
        store.broken = lambda *_: None
        whole(store)
        assert [v.problems for v in verify(store, manifests(store), whole=True) if not v.ok] == []
        run(store, policy, now=NOON + DAY)
        assert_whole(
            store, {layout.snapshot_id(EVERYBODY, NOON - age * DAY) for age in (0, 1)} | {layout.snapshot_id(ALICE, NOON - 3 * DAY)}
        )
        assert sum(1 for _ in store.list(layout.SNAPSHOTS)) == 6
        if over:
            break
    assert 10 < steps < 199


# --- failures ----------------------------------------------------------------------------------------------------------------------


def test_one_that_cannot_be_deleted_stops_no_other(store):
    made = days(store, range(9, -1, -1))
    stuck, locked = made[2], made[4]

    def broken(call: str, key: str) -> Exception | None:
        if call != "delete" or key not in {layout.manifest_key(stuck.id), layout.manifest_key(locked.id)}:
            return None
        kind = AccessDenied if stuck.id in key else ObjectLocked
        return kind(f"{key} stays", key=key)

    store.broken = broken
    report = run(store)
    assert (list(report.failures), list(report.locked), report.ok) == ([stuck.id], [locked.id], False)
    left = {stuck.id, locked.id, *ids(made[-3:])}
    assert set(report.deleted) == set(ids(made)) - left
    assert_whole(store, left)
    store.broken = lambda *_: None
    assert set(run(store).deleted) == {stuck.id, locked.id}


def test_no_record_no_deletion(store):
    made = days(store, range(9, -1, -1))
    store.broken = lambda call, key: AccessDenied("no", key=key) if call == "create" and key.startswith(layout.DELETIONS) else None
    report = run(store)
    assert set(report.failures) == set(ids(made[:-3]))
    assert_whole(store, set(ids(made)))


def chained(store) -> list[model.Manifest]:
    """Ten days; 0 <- 1 <- 2 <- 3 <- 4, and the others full."""
    made: list[model.Manifest] = []
    for number in range(10):
        on = made[-1] if 0 < number < 5 else None
        members = {"kind": "incremental", "parent": model.Link(id=on.id, checksum=on.checksum)} if on else {}
        made.append(commit(store, NOON - (9 - number) * DAY, **members))
    return made


def test_nothing_kept_loses_what_it_is_built_on(store):
    made = chained(store)
    assert run(store, Policy(last=6, floor=1)).deleted == []
    assert whole(store) == set(ids(made))
    report = run(store, Policy(last=5, floor=1))
    assert set(report.deleted) == set(ids(made[:5]))
    assert report.deleted == ids(made[4::-1])
    assert_whole(store, set(ids(made[5:])))


def test_what_something_is_built_on_goes_after_it_or_not_at_all(store):
    made = chained(store)
    order: list[str] = []

    def broken(call: str, key: str) -> Exception | None:
        if call == "delete" and key.endswith(layout.MANIFEST_SUFFIX):
            order.append(key)
            if made[2].id in key:
                return AccessDenied("no", key=key)
        return None

    store.broken = broken
    report = run(store)
    assert set(report.failures) == set(ids(made[:3]))
    assert whole(store) == set(ids([*made[:3], *made[-3:]]))
    assert [k for k in order if made[4].id in k or made[3].id in k] == [layout.manifest_key(made[n].id) for n in (4, 3)]
    kept_child = run(store, Policy(last=3, floor=1), dry_run=True)
    assert not any(d.keep for d in kept_child.decisions if d.snapshot.id in ids(made[:3]))


# --- what dead processes leave -----------------------------------------------------------------------------------------------------


def test_orphans_are_swept_after_the_grace_age(store):
    made = days(store, [1, 0])
    old, young = (layout.snapshot_id(EVERYBODY, NOON - hours * 3_600_000) for hours in (25, 23))
    ours = [layout.document_key(old), layout.document_key(old, ".zst.enc"), layout.keys_key(old, 1)]
    stay = [layout.document_key(young), f"snapshots/2026-01-01/{old}.txt", layout.document_key(old) + ".bak", "snapshots/README", "notes/x"]
    for key in [*ours, *stay]:
        store.replace(key, b"x")
    listed = run(store, dry_run=True)
    assert (sorted(listed.orphans), sorted(listed.strangers)) == (sorted(ours), sorted(stay[1:4]))
    assert {*ours, *stay} <= set(contents(store))
    report = run(store)
    assert sorted(report.swept) == sorted(ours)
    assert not {*ours} & set(contents(store))
    assert {*stay} <= set(contents(store))
    assert_whole(store, set(ids(made)))
    assert run(store, grace_hours=22).swept == [stay[0]]


def test_an_orphan_that_becomes_a_snapshot_stays(store):
    days(store, [1, 0])
    made = commit(store, NOON - 2 * DAY)
    text = store.read(layout.manifest_key(made.id))
    store.delete(layout.manifest_key(made.id))
    report = run(store, progress=Meanwhile(lambda: store.replace(layout.manifest_key(made.id), text)))
    assert report.orphans == [made.document]
    assert made.id in whole(store)


def test_temporary_files_are_swept_after_the_grace_age(store):
    days(store, [0])
    folder = Path(store.path("snapshots"))
    old, young = folder / ".tmp-old", folder / ".tmp-young"
    for path, age in ((old, 25), (young, 23)):
        path.write_bytes(b"half")
        os.utime(path, (NOON / 1000 - age * 3600,) * 2)
    assert run(store, dry_run=True).unfinished == [str(old)]
    assert old.exists()
    assert run(store).swept == [str(old)]
    assert (old.exists(), young.exists()) == (False, True)


# --- any store ---------------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from([EVERYBODY, ALICE]), st.integers(0, 50), st.sampled_from([None, None, "a", "b"]), st.integers(0, 5)),
        max_size=15,
        unique_by=lambda t: t[:2],
    ),
    st.integers(0, 3),
    st.integers(0, 20),
    st.booleans(),
)
def test_whatever_there_is_what_is_left_is_whole(past, last, age, labels):
    if not (last or age):
        last = 1
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(folder)
        for scope, old, label, luck in sorted(past, key=lambda t: -t[1]):
            commit(store, NOON - old * DAY, scope=scope, label=label, suspect="few rows" if luck == 0 else None)
        policy = Policy(last=last, days=age, labels=labels, floor=2)
        expected = {d.snapshot.id for d in run(store, policy, dry_run=True).decisions if d.keep}
        report = run(store, policy)
        assert report.ok
        assert_whole(store, expected)
