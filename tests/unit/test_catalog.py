"""What a store holds, found by its manifests: newest first, damaged ones told, pointers moved only forward."""

from __future__ import annotations

import json

import msgspec
import pytest

from coldstore import terminal
from coldstore.catalog import SnapshotInfo, keys, manifests, newest, point_latest, read_manifest, rfc3339, scope_of, write_checkpoint
from coldstore.catalog import drills as drills_of
from coldstore.document import model
from coldstore.errors import ColdStoreError, CorruptManifest, NotFound, UnsupportedFormat
from coldstore.storage import layout
from coldstore.storage.open import open_store
from coldstore.tiers import EVERYBODY, Scope
from tests.unit.samples import header, manifest

DAY = 86_400_000
FEB_26 = 1772071200000
ALICE = Scope.user("alice")


@pytest.fixture
def store(tmp_path):
    found = open_store(str(tmp_path / "store"))
    yield found
    found.close()


def put(store, scope: Scope, timestamp: int, **changes: object) -> model.Manifest:
    """Commit a snapshot without its document: the catalog looks at manifests alone."""
    identity = layout.snapshot_id(scope, timestamp)
    made = manifest(
        header("notes", id=identity, uid=scope.uid, workspace=scope.workspace, snapshot_at=rfc3339(timestamp)),
        document=layout.document_key(identity),
        **changes,
    )
    made = model.complete(made)
    with store.create(layout.manifest_key(identity)) as out:
        out.write(model.encode_manifest(made))
    return made


def ids(found) -> list[str]:
    return [m.id for m in found]


def test_newest_first(store):
    made = [
        put(store, scope, t)
        for t, scope in [(FEB_26 - 40 * DAY, ALICE), (FEB_26 - DAY, EVERYBODY), (FEB_26, ALICE), (FEB_26 + 5, EVERYBODY)]
    ]
    assert ids(manifests(store)) == [m.id for m in reversed(made)]
    assert ids(manifests(store, limit=2)) == [made[3].id, made[2].id]
    assert ids(manifests(store, limit=0)) == []
    assert [k.timestamp for k in keys(store)] == [FEB_26 + 5, FEB_26, FEB_26 - DAY, FEB_26 - 40 * DAY]


@pytest.mark.parametrize("scope", [None, ALICE])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_pages_put_together_are_the_whole(store, scope, size):
    """Over days that have many of them and days that have none of this user."""
    for day in range(12):
        for n in range(day % 4):
            put(store, ALICE if day % 3 else Scope.user("alicia"), FEB_26 - day * DAY + n)
        put(store, EVERYBODY, FEB_26 - day * DAY)  # at the very millisecond of another
    whole = ids(manifests(store, scope=scope))
    assert len(whole) == (12 if scope else 30)
    found: list[str] = []
    while page := ids(manifests(store, scope=scope, before=found[-1] if found else None, limit=size)):
        assert len(page) <= size
        found += page
    assert found == whole


def test_a_page_begins_where_the_one_before_ended_though_that_one_is_gone(store):
    made = [put(store, ALICE, FEB_26 + n).id for n in range(4)]
    store.delete(layout.manifest_key(made[2]))
    assert ids(manifests(store, before=made[2])) == [made[1], made[0]]
    assert [k.id for k in keys(store, before=f"memory-all-{FEB_26 + 100 * DAY}")] == [made[3], made[1], made[0]]
    assert list(keys(store, before=made[0])) == []


@pytest.mark.parametrize("nonsense", ["", "yesterday", "memory-all-999999999999999", "memory-all-x"])
def test_a_page_begins_at_an_id(store, nonsense):
    with pytest.raises(NotFound):
        list(keys(store, before=nonsense))


def test_timestamps_are_compared_as_numbers(store):
    for t in (9, 10, 999, 1000):
        put(store, EVERYBODY, t)
    assert [k.timestamp for k in keys(store)] == [1000, 999, 10, 9]


def test_an_empty_store(store):
    assert list(manifests(store)) == []
    with pytest.raises(NotFound) as caught:
        newest(store)
    assert caught.value.hint


def test_filters(store):
    put(store, ALICE, FEB_26, label="before")
    put(store, ALICE, FEB_26 + 1, kind="incremental")
    put(store, EVERYBODY, FEB_26 + 2, label="before")
    put(store, Scope.of_workspace("alice"), FEB_26 + 3)
    put(store, ALICE, FEB_26 - DAY, label="before")

    def times(**filters: object) -> list[int]:
        return [layout.parse_id(m.id)[1] - FEB_26 for m in manifests(store, **filters)]

    assert times(scope=ALICE) == [1, 0, -DAY]
    assert times(scope=EVERYBODY) == [2]
    assert times(scope=Scope.of_workspace("alice")) == [3]
    assert times(scope=Scope.user("Alice")) == times(scope=Scope.user("ali")) == []
    assert times(label="before") == [2, 0, -DAY]
    assert times(label="") == []
    assert times(kind="incremental") == [1]
    assert times(date="2026-02-25") == [-DAY]
    assert times(date="2026-02-27") == []
    assert times(scope=ALICE, label="before", date="2026-02-26", kind="full") == [0]
    assert times(scope=ALICE, label="before", limit=1) == [0]
    assert newest(store, ALICE).id == f"memory-alice-{FEB_26 + 1}"
    assert newest(store, ALICE, label="before").id == f"memory-alice-{FEB_26}"
    with pytest.raises(NotFound, match="'after'"):
        newest(store, ALICE, label="after")


@pytest.mark.parametrize(
    "scope", [Scope.user("all"), Scope.user("ws~x"), Scope.of_workspace("all"), Scope.user("../../x"), Scope.user(""), Scope.user("😀")]
)
def test_scopes_that_look_like_others(store, scope):
    put(store, EVERYBODY, FEB_26)
    put(store, Scope.of_workspace("x"), FEB_26)
    mine = put(store, scope, FEB_26)
    assert [m.id for m in manifests(store, scope=scope)] == [mine.id]
    assert scope_of(newest(store, scope)) == scope
    assert scope_of(newest(store)) == EVERYBODY


def test_a_name_that_was_shortened(store):
    """The key has a part of the name and a hash; whose memory it is stands in the manifest."""
    long, other = Scope.user("x" * 4096), Scope.user("x" * 4095 + "y")
    mine = put(store, long, FEB_26)
    put(store, other, FEB_26)
    assert layout.parse_scope_name(layout.scope_name(long)).scope is None
    assert ids(manifests(store, scope=long)) == [mine.id]
    assert newest(store, long).uid == "x" * 4096
    point_latest(store, mine)
    assert json.loads(store.read(layout.latest_key(long)))["id"] == mine.id


def test_a_name_that_says_one_thing_and_a_manifest_another(store):
    """Should two names ever be shortened alike, the manifest decides."""
    liar = manifest(header("notes", id=layout.snapshot_id(ALICE, FEB_26), uid="bob"))
    liar = msgspec.structs.replace(liar, document=layout.document_key(liar.id))
    with store.create(layout.manifest_key(liar.id)) as out:
        out.write(model.encode_manifest(liar))
    assert list(manifests(store, scope=ALICE)) == []
    assert ids(manifests(store)) == [liar.id]


def test_a_manifest_that_names_anothers_document(store):
    mine, other = put(store, ALICE, FEB_26), layout.snapshot_id(ALICE, FEB_26 + 1)
    for document in (mine.document, "../elsewhere", "/etc/passwd", ""):
        liar = model.complete(msgspec.structs.replace(mine, id=other, document=document))
        store.replace(layout.manifest_key(other), model.encode_manifest(liar))
        with pytest.raises(CorruptManifest, match="another's"):
            read_manifest(store, other)


def test_strangers_are_passed_over(store):
    mine = put(store, ALICE, FEB_26)
    for key in (
        "snapshots/2026-02-26/notes.txt",
        "snapshots/readme.manifest.json",
        "snapshots/2026-02-26/deep/memory-all-1772071200000.manifest.json",
    ):
        store.replace(key, b"hello")
    store.replace("snapshots/2026-02-25/memory-all-1772071200000.manifest.json", b"on the wrong day")
    store.replace("snapshots/zzz/memory-all-1772071200000.manifest.json", b"in no day")
    store.replace(layout.document_key(layout.snapshot_id(ALICE, FEB_26 + 9)), b"{}")  # never committed
    assert ids(manifests(store)) == [mine.id]


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda data: data[:-10], CorruptManifest),
        (lambda data: data.replace(b"coldstore test", b"coldstore tesT"), CorruptManifest),
        (lambda _: b"", CorruptManifest),
        (lambda _: model.encode_manifest(manifest(format="coldstore/2")), UnsupportedFormat),
        (lambda _: model.encode_manifest(manifest(header("notes", id="memory-all-5"))), NotFound),
    ],
)
def test_a_damaged_manifest_does_not_hide_the_others(store, damage, error):
    older, broken, newer = (put(store, ALICE, FEB_26 + n) for n in range(3))
    key = layout.manifest_key(broken.id)
    store.replace(key, damage(store.read(key)))
    found = list(manifests(store, scope=ALICE))
    assert [m.id for m in found if isinstance(m, model.Manifest)] == [newer.id, older.id]
    assert type(found[1]) is error
    with pytest.raises(error):
        read_manifest(store, broken.id)
    assert newest(store, ALICE).id == newer.id
    store.delete(layout.manifest_key(newer.id))
    with pytest.raises(error):  # an older one would be silently stale
        newest(store, ALICE)


def test_a_snapshot_that_is_not_there(store):
    with pytest.raises(NotFound) as caught:
        read_manifest(store, "memory-all-1")
    assert caught.value.hint
    with pytest.raises(NotFound):
        read_manifest(store, "../../etc/passwd")


def test_many(store):
    for n in range(120):
        put(store, EVERYBODY if n % 2 else ALICE, FEB_26 + n * DAY // 8)
    found = list(manifests(store))
    assert len(found) == 120
    assert [m.snapshot_at for m in found] == sorted((m.snapshot_at for m in found), reverse=True)
    assert len(list(manifests(store, scope=ALICE))) == 60


# --- pointers ----------------------------------------------------------------------------------------------------------------------


def pointed(store, scope: Scope) -> str:
    return json.loads(store.read(layout.latest_key(scope)))["id"]


def test_a_pointer_moves_only_forward(store):
    old, middle, new = (put(store, ALICE, FEB_26 + n) for n in range(3))
    point_latest(store, middle)
    assert pointed(store, ALICE) == middle.id
    point_latest(store, old)
    assert pointed(store, ALICE) == middle.id
    point_latest(store, new)
    point_latest(store, middle)
    assert pointed(store, ALICE) == new.id
    assert json.loads(store.read("latest/alice.json")) == {
        "id": new.id,
        "snapshotAt": new.snapshot_at,
        "document": new.document,
        "manifest": layout.manifest_key(new.id),
        "kind": "full",
        "checksum": read_manifest(store, new.id).checksum,
        "rows": {},
        "head": None,
    }


@pytest.mark.parametrize(
    "there",
    [
        *[b"", b"null", b"[]", b"{}", b'{"snapshotAt":null}', b'{"snapshotAt":7}', b"not json", b'"x"'],
        pytest.param(b'{"snapshotAt":"\xff"}'),
    ],
)
def test_a_damaged_pointer_is_replaced(store, there):
    made = put(store, EVERYBODY, FEB_26)
    store.replace("latest/all.json", there)
    point_latest(store, made)
    assert pointed(store, EVERYBODY) == made.id


def test_pointers_of_scopes_are_apart(store):
    for scope in (EVERYBODY, ALICE, Scope.user("all"), Scope.of_workspace("alice")):
        point_latest(store, put(store, scope, FEB_26))
    for scope in (EVERYBODY, ALICE, Scope.user("all"), Scope.of_workspace("alice")):
        assert pointed(store, scope) == layout.snapshot_id(scope, FEB_26)


def test_nothing_depends_on_a_pointer(store):
    old, new = (put(store, EVERYBODY, FEB_26 + n) for n in range(2))
    point_latest(store, old)
    assert newest(store).id == new.id


def test_a_label_names_the_snapshot_it_was_given_last(store):
    first, second = (put(store, ALICE, FEB_26 + n, label="v1/ü") for n in range(2))
    write_checkpoint(store, first)
    write_checkpoint(store, second)
    assert json.loads(store.read("checkpoints/alice/v1%2F%C3%BC.json"))["id"] == second.id


# --- for programs ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timestamp", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (FEB_26, "2026-02-26T02:00:00.000Z"),
        (1740621600007, "2025-02-27T02:00:00.007Z"),
        (253402300799999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_rfc3339(timestamp, text):
    assert rfc3339(timestamp) == text


def test_what_a_program_gets(store):
    made = put(store, ALICE, FEB_26, tiers=[model.TierSummary(tier="notes", array="notes", rows=3, digest="0" * 32)])
    assert SnapshotInfo.of(read_manifest(store, made.id)).as_dict() == {
        "id": f"memory-alice-{FEB_26}",
        "path": f"snapshots/2026-02-26/memory-alice-{FEB_26}.json",
        "manifest": f"snapshots/2026-02-26/memory-alice-{FEB_26}.manifest.json",
        "uid": "alice",
        "workspace": None,
        "kind": "full",
        "label": None,
        "snapshotAt": "2026-02-26T02:00:00.000Z",
        "rows": {"notes": 3},
        "bytes": 0,
        "storedBytes": 0,
        "sha256": "0" * 64,
        "codec": "none",
        "omittedTiers": [],
        "seconds": 0.25,
        "sealed": False,
        "signedBy": None,
        "retainedUntil": None,
        "lastProven": None,
        "lastDrill": None,
        "suspect": None,
        "parent": None,
        "builtFrom": None,
    }


def remember(store, snapshot: str, *outcomes: tuple[int, bool]) -> None:
    for at, proven in outcomes:
        with store.create(layout.drill_key(snapshot, at, proven=proven)) as out:
            out.write(b"{}")


def test_drills_are_told_by_their_keys_alone(store, monkeypatch):
    proven, failed, never = (put(store, EVERYBODY, FEB_26 + n).id for n in range(3))
    remember(store, proven, (FEB_26 + 1000, False), (FEB_26 + 900, True), (FEB_26 + 11000, True))
    remember(store, failed, (9, True), (10, False))
    with store.create("drills/notes.txt") as out:
        out.write(b"a stranger's")
    manifests_there = {m.id: m for m in manifests(store)}
    monkeypatch.delattr(type(store), "read")
    drills = drills_of(store)
    infos = {m.id: SnapshotInfo.of(m, drills.get(m.id, ())) for m in manifests_there.values()}
    assert (infos[proven].last_proven, infos[proven].as_dict()["lastDrill"]) == (
        rfc3339(FEB_26 + 11000),
        {"at": rfc3339(FEB_26 + 11000), "proven": True},
    )
    assert (infos[failed].last_proven, infos[failed].as_dict()["lastDrill"]) == (rfc3339(9), {"at": rfc3339(10), "proven": False})
    assert (infos[never].last_proven, infos[never].last_drill) == (None, None)


def test_the_column_of_the_last_drill(store):
    made = put(store, EVERYBODY, FEB_26)
    info = SnapshotInfo.of(made)
    assert terminal.proven(info) == ""
    for drills, shown in [([(FEB_26, True)], "2026-02-26"), ([(9, True), (FEB_26, False)], "failed 2026-02-26")]:
        keys_there = [layout.DrillKey(made.id, at, proven) for at, proven in drills]
        assert terminal.proven(SnapshotInfo.of(made, keys_there)) == shown


def test_an_error_of_the_store_is_not_an_empty_catalog(store, monkeypatch):
    put(store, ALICE, FEB_26)

    def refuse(*_: object, **__: object) -> bytes:
        raise ColdStoreError("the store is away")

    monkeypatch.setattr(type(store), "read", refuse)
    with pytest.raises(ColdStoreError, match="away"):
        newest(store, ALICE)
