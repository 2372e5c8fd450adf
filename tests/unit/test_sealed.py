"""Sealed snapshots in a store: who opens them, what happens when keys are rotated, and what `verify` says of those that it cannot open."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from coldstore.app import ColdStore
from coldstore.catalog import add_keys, added_keys, keys_objects, manifests
from coldstore.codec.compress import Codec
from coldstore.codec.seal import DataKey
from coldstore.codec.sign import SigningKey
from coldstore.config import build
from coldstore.document import model
from coldstore.documents import open_file, open_stored, rewrap
from coldstore.errors import (
    CorruptDocument,
    CorruptManifest,
    KeyMissing,
    KeyRetired,
    KeyRingUnavailable,
    SignatureInvalid,
    SignatureMissing,
    SignatureUntrusted,
    UnsupportedFormat,
    WrongKey,
)
from coldstore.keyrings.keyfile import Key
from coldstore.keyrings.local import LocalRing
from coldstore.storage import layout
from coldstore.storage.local import LocalStore
from coldstore.tiers import Scope
from coldstore.trust import Trust
from coldstore.verify import Checks, verify, verify_one
from tests.unit.stores import FEB_26, TABLES, put, ring

SIGNER, STRANGER = SigningKey.generate(), SigningKey.generate()
ALICE = Scope.user("alice")
EVERY = [("notes", row) for row in TABLES["notes"]]


@pytest.fixture
def store(tmp_path):
    return LocalStore(str(tmp_path / "store"))


def rows_of(document) -> list[tuple[str, bytes]]:
    with closing(document.parts(TABLES)) as parts:
        return [(part.array, bytes(row)) for part in parts for row in part.rows()]


def retired(key: Key) -> LocalRing:
    return LocalRing.parse(f"{Key.new().text()}\nretired:{key.id}:2026-02-26", source="a test")


def both(*keys: Key) -> LocalRing:
    return LocalRing.parse("\n".join(k.text() for k in keys), source="a test")


# --- opening -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_there_and_back(store, codec):
    mine = ring()
    made = put(store, rings=(mine,), codec=codec)
    assert made.document.endswith(f".json{Codec(codec).suffix}.enc")
    document = open_stored(store, made, rings=[mine])
    assert rows_of(document) == EVERY
    assert verify_one(store, made, checks=Checks(deep=True, rings=(mine,))).ok
    stored = store.read(made.document) + store.read(layout.manifest_key(made.id))
    assert b"hello" not in stored
    plain = put(store, ALICE, codec=codec)
    same = {plain.plain_sha256, *(t.digest for t in plain.tiers)} & {made.plain_sha256, *(t.digest for t in made.tiers)}
    assert same == set()  # not even the digest of nothing


def test_any_one_of_its_rings_opens_it(store):
    one, other = ring(), ring()
    made = put(store, rings=(one, other))
    for rings in ([one], [other], [ring(), other], [other, one]):
        assert rows_of(open_stored(store, made, rings=rings)) == EVERY


def test_three_reasons_not_to_open(store):
    key = Key.new()
    made = put(store, rings=(ring(key),))
    foreign = put(store, ALICE, rings=(ring(key),))
    swapped = msgspec.structs.replace(made, sealing=msgspec.structs.replace(made.sealing, keys=foreign.sealing.keys))
    for manifest, rings, error in (
        (made, [], KeyMissing),
        (made, [ring()], KeyMissing),
        (made, [retired(key)], KeyRetired),
        (swapped, [ring(key)], WrongKey),
    ):
        with pytest.raises(error) as caught:
            open_stored(store, manifest, rings=rings)
        assert caught.value.hint
        assert caught.value.exit_code == 10
        assert (key.id in str(caught.value)) or error is WrongKey


def test_a_data_key_of_another_snapshot_that_a_ring_does_open(store):
    """Whoever has the ring's key can wrap anything: the check tells."""
    mine = ring()
    made = put(store, rings=(mine,))
    other = mine.wrap(DataKey.new("x").secret, context=made.id)
    wrong = msgspec.structs.replace(made, sealing=msgspec.structs.replace(made.sealing, keys=[other]))
    with pytest.raises(WrongKey, match="not the one"):
        open_stored(store, wrong, rings=[mine])


def test_a_newer_cipher(store):
    made = put(store, rings=(ring(),))
    newer = msgspec.structs.replace(made, sealing=msgspec.structs.replace(made.sealing, cipher="AES-512-XYZ"))
    with pytest.raises(UnsupportedFormat, match="AES-512-XYZ"):
        open_stored(store, newer, rings=[ring()])


def test_frames_belong_to_their_places(store):
    """With sums that fit: only the seal tells."""
    mine = ring()
    made = put(store, rings=(mine,))
    document = open_stored(store, made, rings=[mine])
    data = store.read(made.document)
    by_size = itertools.groupby(
        sorted(range(1, len(made.frames) - 1), key=lambda n: made.frames[n].length), lambda n: made.frames[n].length
    )
    one, other, *_ = next(group for group in (list(g) for _, g in by_size) if len(group) > 1)
    a, b = made.frames[one], made.frames[other]
    changed = bytearray(data)
    changed[a.offset : a.offset + a.length] = data[b.offset : b.offset + b.length]
    store.replace(made.document, bytes(changed))
    frames = list(made.frames)
    frames[one] = msgspec.structs.replace(a, crc32c=b.crc32c, sha256=b.sha256)
    bent = open_stored(store, msgspec.structs.replace(made, frames=frames), rings=[mine])
    assert document.frame(other)
    with pytest.raises(CorruptDocument, match="does not open"):
        bent.frame(one)


# --- rewrapping --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signer", [None, SIGNER])
def test_rewrapped_for_a_new_key(store, signer):
    old, new = Key.new(), Key.new()
    made = put(store, rings=(ring(old),), signer=signer)
    before = {o.key: store.read(o.key) for o in store.list()}
    with pytest.raises(KeyMissing):
        open_stored(store, made, rings=[ring(new)])
    assert rewrap(store, made, rings=[both(new, old)], signer=signer)
    (key,) = keys_objects(store, made.id)
    assert {o.key: store.read(o.key) for o in store.list() if o.key != key} == before
    assert [w.key for w in added_keys(store, made.id)] == [new.id]
    for rings in ([ring(new)], [ring(old)], [both(new, old)], [retired(old), ring(new)]):
        assert rows_of(open_stored(store, made, rings=rings)) == EVERY
    assert not rewrap(store, made, rings=[both(new, old)], signer=signer)
    assert not rewrap(store, made, rings=[ring(new)], signer=signer)
    assert keys_objects(store, made.id) == [key]


def test_rewrapped_many_times(store):
    keys = [Key.new() for _ in range(4)]
    made = put(store, rings=(ring(keys[0]),))
    for n in range(1, 4):
        assert rewrap(store, made, rings=[both(keys[n], keys[n - 1])])
    assert [w.key for w in added_keys(store, made.id)] == [k.id for k in keys[:0:-1]]
    for key in keys:
        assert rows_of(open_stored(store, made, rings=[ring(key)])) == EVERY


def test_a_ring_that_was_added(store):
    one, other = ring(), ring()
    made = put(store, rings=(one,))
    assert rewrap(store, made, rings=[one, other])
    assert len(added_keys(store, made.id)) == 1
    assert rows_of(open_stored(store, made, rings=[other])) == EVERY


def test_what_cannot_be_rewrapped(store):
    assert not rewrap(store, put(store), rings=[ring()])  # not sealed
    made = put(store, ALICE, rings=(ring(),))
    with pytest.raises(KeyMissing):
        rewrap(store, made, rings=[ring()])
    assert keys_objects(store, made.id) == []


# --- files -------------------------------------------------------------------------------------------------------------------------


def lay(store, made: model.Manifest, folder: Path) -> Path:
    folder.mkdir()
    for key in (made.document, layout.manifest_key(made.id), *keys_objects(store, made.id)):
        shutil.copy(store.path(key), folder)
    return folder / made.document.rpartition("/")[2]


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_a_sealed_file_with_its_manifest(store, tmp_path, codec):
    old, new = Key.new(), Key.new()
    made = put(store, rings=(ring(old),), codec=codec)
    rewrap(store, made, rings=[both(new, old)])
    path = lay(store, made, tmp_path / "copy")
    for rings in ([ring(old)], [ring(new)]):
        assert rows_of(open_file(path, rings=rings)) == EVERY
    with pytest.raises(KeyMissing):
        open_file(path)
    (path.parent / f"{made.id}.keys-0001.json").unlink()
    with pytest.raises(KeyMissing):
        open_file(path, rings=[ring(new)])


def test_a_sealed_file_alone(store, tmp_path):
    mine = ring()
    path = lay(store, put(store, rings=(mine,)), tmp_path / "copy")
    (path.parent / f"memory-all-{FEB_26}.manifest.json").unlink()
    with pytest.raises(CorruptManifest, match="manifest is not beside it") as caught:
        open_file(path, rings=[mine])
    assert f"memory-all-{FEB_26}.manifest.json" in caught.value.hint


# --- verify ------------------------------------------------------------------------------------------------------------------------


def checked(store, **options: object) -> dict[str, str]:
    return {v.id: v.state for v in verify(store, manifests(store), checks=Checks(**options), whole=True)}


def test_the_states(store):
    key = Key.new()
    mine, trust = ring(key), Trust(frozenset({SIGNER.did}), required=True)
    good = put(store, rings=(mine,), signer=SIGNER)
    unsigned = put(store, Scope.user("unsigned"), rings=(mine,))
    stranger = put(store, Scope.user("stranger"), rings=(mine,), signer=STRANGER)
    closed = put(store, Scope.user("closed"), rings=(ring(),), signer=SIGNER)
    cut = put(store, Scope.user("cut"), rings=(mine,), signer=SIGNER)
    Path(store.path(cut.document)).write_bytes(store.read(cut.document)[:-1])
    everybody = [good, unsigned, stranger, closed, cut]
    assert checked(store, rings=(mine,), trust=trust, deep=True) == {
        good.id: "ok",
        unsigned.id: "untrusted",
        stranger.id: "untrusted",
        closed.id: "unopened",
        cut.id: "damaged",
    }
    quick = {m.id: "ok" for m in everybody} | {cut.id: "damaged"}
    assert checked(store) == quick  # nothing is opened, nobody is trusted
    assert checked(store, trust=trust) == quick | {unsigned.id: "untrusted", stranger.id: "untrusted"}
    notes = {v.id: v.notes for v in verify(store, manifests(store), checks=Checks(trust=Trust(frozenset({SIGNER.did}))))}
    assert {m: bool(n) for m, n in notes.items()} == {m.id: m in (unsigned, stranger) for m in everybody}


def test_a_key_service_that_is_away_is_no_verdict(store):
    mine = ring()
    made = put(store, rings=(mine,))

    class Away:
        name, key_ids = "local", ("0",)

        def unwrap(self, *_, **__):
            raise KeyRingUnavailable("it is away")

    with pytest.raises(KeyRingUnavailable):
        verify(store, manifests(store), checks=Checks(deep=True, rings=(Away(),)))
    assert verify_one(store, made).ok


def test_added_keys_are_checked_though_nobody_needs_them(store):
    """The manifest's own still opens it; one day it will not."""
    mine, trust = ring(), Trust(frozenset({SIGNER.did}), required=True)
    made = put(store, rings=(mine,), signer=SIGNER)
    other = put(store, ALICE, rings=(mine,), signer=SIGNER)
    good = add_keys(store, made.id, made.sealing.keys, signer=SIGNER)
    data = store.read(good)
    assert set(checked(store, deep=True, rings=(mine,), trust=trust).values()) == {"ok"}
    bad = {
        "flipped": bytes([data[0] ^ 1]) + data[1:],
        "not signed": model.encode_keys(made.id, made.sealing.keys),
        "a stranger's": model.encode_keys(made.id, made.sealing.keys, signer=STRANGER),
        "another snapshot's": model.encode_keys(other.id, other.sealing.keys, signer=SIGNER),
    }
    for what, wrong in bad.items():
        store.replace(good, wrong)
        for whole in (True, False):
            found = verify(store, [made, other], checks=Checks(deep=True, rings=(mine,), trust=trust), whole=whole)
            assert [(v.id, v.ok) for v in found] == [(made.id, True), (other.id, True), (good, False)], what
    store.delete(layout.manifest_key(made.id))  # then it is an orphan, and nobody's key


def test_added_keys_that_are_needed_and_no_good(store):
    old, new = Key.new(), Key.new()
    made = put(store, rings=(ring(old),), signer=SIGNER)
    rewrap(store, made, rings=[both(new, old)], signer=SIGNER)
    (key,) = keys_objects(store, made.id)
    body = msgspec.json.decode(store.read(key))
    body["keys"][0]["ring"] = "other"
    rest = {k: v for k, v in body.items() if k != "checksum"}
    store.replace(key, model.canonical({**rest, "checksum": hashlib.sha256(model.canonical(rest)).hexdigest()}) + b"\n")
    with pytest.raises(SignatureInvalid):
        open_stored(store, made, rings=[ring(new)])
    verdict = verify_one(store, made, checks=Checks(deep=True, rings=(ring(new),)))
    assert verdict.state == "damaged"
    assert "signature" in verdict.problems[0]


def test_a_sample_is_the_same_for_the_same_seed(store):
    made = put(store, tables={"notes": [b'{"id":%d,"text":"%s"}' % (n, b"x" * 40) for n in range(200)]})
    assert len(made.frames) > 80

    class Watched:
        def __init__(self) -> None:
            self.read_at: set[int] = set()

        def __getattr__(self, name):
            return getattr(store, name)

        def read(self, key, *, start=0, length=None):
            self.read_at.add(start)
            return store.read(key, start=start, length=length)

    def sampled(seed: int, share: float) -> tuple[set[int], int]:
        watched = Watched()
        verdict = verify_one(watched, made, checks=Checks(sample=share, seed=seed))
        assert verdict.ok
        return watched.read_at, verdict.frames

    first, count = sampled(7, 0.2)
    assert (first, count) == sampled(7, 0.2)
    assert 0 < count == len(first) < len(made.frames) / 2
    assert sampled(8, 0.2)[0] != first
    assert sampled(7, 1.0) == ({f.offset for f in made.frames}, len(made.frames))
    assert first < sampled(7, 0.6)[0]  # a larger share has the smaller one in it


def test_a_sample_finds_what_it_reads(store):
    mine = ring()
    made = put(store, rings=(mine,), tables={"notes": [b'{"id":%d}' % n for n in range(300)]})
    path = Path(store.path(made.document))
    data = bytearray(path.read_bytes())
    data[made.frames[5].offset] ^= 1
    path.write_bytes(data)
    found = {seed: verify_one(store, made, checks=Checks(sample=0.3, seed=seed, rings=(mine,))).state for seed in range(40)}
    assert set(found.values()) == {"ok", "damaged"}
    assert verify_one(store, made, checks=Checks(sample=1.0, rings=(mine,))).state == "damaged"


# --- who reads -------------------------------------------------------------------------------------------------------------------------


def cold(store, **values: object) -> ColdStore:
    return ColdStore(build(values, {"path": store.url.removeprefix("file://")}))


def test_a_required_signature_is_required_of_every_read(store, tmp_path):
    good = put(store, signer=SIGNER)
    unsigned, strange = put(store, ALICE), put(store, Scope.user("bob"), signer=STRANGER)
    trusting = {"trusted_keys": [SIGNER.did]}
    file = lay(store, unsigned, tmp_path / "copy")
    loose = tmp_path / "loose.json"
    shutil.copy(file, loose)
    with cold(store, **trusting, require_signature=True) as reader:
        assert reader.document(good.id).name == good.id
        assert reader.stored_document(good.id).name == good.id
        for read in (reader.document, reader.stored_document):
            with pytest.raises(SignatureMissing):
                read(unsigned.id)
            with pytest.raises(SignatureUntrusted):
                read(strange.id)
        for path in (file, loose):
            with pytest.raises(SignatureMissing):
                reader.document(file=path)
        for uid in ("alice", "bob"):
            with pytest.raises((SignatureMissing, SignatureUntrusted)):
                reader.restore(unsigned.id if uid == "alice" else strange.id, to="postgresql://nobody@127.0.0.1:1/none")
        assert reader.document(unsigned.id, require_signature=False).name == unsigned.id
    with cold(store, **trusting) as reader:
        assert reader.document(unsigned.id).name == unsigned.id
        assert reader.document(file=loose).name == "loose.json"
        with pytest.raises(SignatureUntrusted):
            reader.document(strange.id, require_signature=True)


def test_ones_own_signature_counts(store, tmp_path):
    put(store, signer=SIGNER)
    with cold(store, signing_key=SIGNER.text(), require_signature=True) as reader:
        assert reader.document().name == f"memory-all-{FEB_26}"
