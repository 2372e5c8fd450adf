"""Sealed and signed memory out of a real database and into another: the same content there, and none of it in the store."""

from __future__ import annotations

import base64
import gzip

import pytest
import zstandard

from coldstore.catalog import manifests
from coldstore.codec.compress import Codec
from coldstore.codec.sign import SigningKey
from coldstore.documents import open_stored
from coldstore.errors import CorruptDocument, KeyMissing
from coldstore.keyrings.keyfile import Key
from coldstore.keyrings.local import LocalRing
from coldstore.storage.open import open_store
from coldstore.tiers import EVERYBODY, Scope
from coldstore.trust import Trust
from coldstore.verify import Checks, verify
from tests.acceptance.program import remember
from tests.integration.helpers import bring_back, contents, everything, structure, take, take_each_user

KEY, SIGNER = Key.new(), SigningKey.generate()
RING = LocalRing.parse(KEY.text(), source="a test")
CHECKS = Checks(deep=True, rings=(RING,), trust=Trust(frozenset({SIGNER.did}), required=True))
CODECS = ["none", "gzip", "zstd"]
#: Of rows: what stands there, what it would be as text. `uid_alice` names a snapshot, and so is no secret.
CONTENT = ["naïve ✓".encode(), b"thing 1", b"day 1 ", b"c4ca4238a0b923820dcc509a6f75849b", b"0.14285715"]


@pytest.fixture
def store(tmp_path):
    found = open_store(str(tmp_path / "store"))
    yield found
    found.close()


@pytest.fixture
def memory(database):
    remember(database, "uid_alice", workspace="red", days=60)
    remember(database, "uid_bob", workspace="blue", days=40)
    return database


def options(codec: str) -> dict[str, object]:
    return {"rings": (RING,), "signer": SIGNER, "codec": Codec(codec), "frame_size": 3000}


def no_secret_in(store) -> None:
    """Neither as it is nor behind a codec."""
    secrets = [KEY.secret, base64.b64encode(KEY.secret), KEY.text().encode(), SIGNER.text().rpartition(":")[2].encode()]
    for item in store.list():
        data = store.read(item.key)
        assert [s for s in [*CONTENT, *secrets] if s in data] == [], item.key
        if item.key.endswith(".enc"):
            with pytest.raises((gzip.BadGzipFile, EOFError)):
                gzip.decompress(data)
            with pytest.raises(zstandard.ZstdError):
                zstandard.decompress(data)


def the_same(source: str, target: str, *, uid: str | None = None) -> None:
    there = {name: rows for name, rows in contents(source).items() if any(uid is None or uid in row for row in rows)}
    wanted = {name: [r for r in rows if uid is None or uid in r] for name, rows in there.items()}
    found = {name: rows for name, rows in contents(target).items() if rows}
    assert found == {name: rows for name, rows in wanted.items() if rows}
    assert len(found) == 3


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("scope", [EVERYBODY, Scope.user("uid_alice")], ids=str)
def test_there_and_back(memory, empty_database, store, scope, codec):
    manifest = take(memory, store, scope=scope, **options(codec)).manifest
    assert len(manifest.frames) > 8
    document = open_stored(store, manifest, rings=[RING])
    assert bring_back(document, empty_database).verified == "content"
    the_same(memory, empty_database, uid=scope.uid)
    plain = b"".join(document.chunks())
    assert [s for s in CONTENT if s not in plain] == []
    no_secret_in(store)
    assert [v.state for v in verify(store, manifests(store), checks=CHECKS, whole=True)] == ["ok"]


@pytest.mark.parametrize("codec", CODECS)
def test_each_user(memory, empty_database, store, codec):
    for _ in range(2):
        made = [d.manifest for d in take_each_user(memory, store, **options(codec))]
    assert [m.previous is not None for m in made] == [True, True]
    for manifest in made:
        bring_back(open_stored(store, manifest, rings=[RING]), empty_database)
    the_same(memory, empty_database)
    no_secret_in(store)
    assert [v.state for v in verify(store, manifests(store), checks=CHECKS, whole=True)] == ["ok"] * 4
    assert len({m.sealing.nonce for m in made} | {m.sealing.check for m in made}) == 4


def test_one_user_out_of_everybody(memory, empty_database, store):
    document = open_stored(store, take(memory, store, **options("zstd")).manifest, rings=[RING])
    bring_back(document, empty_database, scope=Scope.user("uid_bob"))
    the_same(memory, empty_database, uid="uid_bob")


def test_over_s3(memory, empty_database, weed):
    store = open_store(weed.url(), **weed.arguments())
    try:
        manifest = take(memory, store, **options("gzip")).manifest
        take(memory, store, scope=Scope.user("uid_alice"), **options("none"))
        bring_back(open_stored(store, manifest, rings=[RING]), empty_database)
        the_same(memory, empty_database)
        no_secret_in(store)
        assert [v.state for v in verify(store, manifests(store), checks=CHECKS, whole=True)] == ["ok", "ok"]
    finally:
        store.close()


def test_without_its_key_nothing_is_touched(memory, empty_database, store):
    manifest = take(memory, store, **options("none")).manifest
    before = everything(empty_database)
    with pytest.raises(KeyMissing):
        open_stored(store, manifest, rings=[])
    bare = take(memory, store, **options("none"))  # opened without its key, as somebody might in a program
    with pytest.raises(CorruptDocument):
        bring_back(bare, empty_database)
    assert everything(empty_database) == before
    assert structure(empty_database)["advisory locks"] == []
