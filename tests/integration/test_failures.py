"""Damaged, missing, altered and newer documents: each is named, and the target is as it was."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from coldstore.catalog import newest, read_manifest
from coldstore.codec.compress import Codec
from coldstore.document import model
from coldstore.documents import StoredDocument, open_file, open_loose
from coldstore.errors import (
    ColdStoreError,
    ConfigError,
    ContentMismatch,
    CorruptDocument,
    CorruptManifest,
    DatabaseUnreachable,
    DocumentError,
    NotFound,
    PermissionDenied,
    RowSecurityActive,
    TruncatedDocument,
    UnsupportedFormat,
)
from coldstore.storage.layout import manifest_key
from coldstore.storage.open import open_store
from coldstore.tiers import Scope
from tests.integration.helpers import bring_back, contents, everything, run, take, take_each_user, tier

TIERS = [tier("notes"), tier("empty")]
CODECS = ["none", "gzip", "zstd"]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(root):
    return open_store(str(root))


@pytest.fixture
def source(make_database):
    url = make_database(empty=True)
    run(
        url,
        "CREATE TABLE notes (id int PRIMARY KEY, uid text, body text)",
        "CREATE TABLE empty (id int PRIMARY KEY, uid text)",
        "INSERT INTO notes SELECT g, 'u' || g % 3, 'body ' || g FROM generate_series(1, 200) g",
    )
    return url


@pytest.fixture
def target(empty_database):
    """Has somebody's rows in it already, to see that they stay."""
    run(
        empty_database,
        "CREATE TABLE notes (id int PRIMARY KEY, uid text, body text)",
        "INSERT INTO notes VALUES (1, 'u1', 'older'), (999, 'u1', 'mine')",
    )
    return empty_database


def refused(document, target, expected, **options):
    before = everything(target)
    with pytest.raises(expected) as caught:
        bring_back(document, target, mode="replace", **options)
    assert everything(target) == before
    return caught.value


@pytest.mark.parametrize("codec", CODECS)
def test_one_changed_byte_in_any_frame_is_noticed(source, target, store, root, codec):
    document = take(source, store, TIERS, codec=Codec(codec), frame_size=1500)
    path = root / document.manifest.document
    whole = path.read_bytes()
    frames = [f for f in document.manifest.frames if f.rows]
    assert len(frames) > 3
    for number, frame in enumerate(frames):
        at = frame.offset + (frame.length * (number + 1)) // (len(frames) + 1)
        path.chmod(0o644)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        error = refused(document, target, CorruptDocument)
        assert str(frame.offset) in str(error)
        assert error.hint
    path.write_bytes(whole)
    bring_back(document, target, mode="replace")
    assert contents(target)[("public", "notes")] == contents(source)[("public", "notes")]


@pytest.mark.parametrize("codec", CODECS)
def test_a_truncated_document_is_called_so(source, target, store, root, codec):
    document = take(source, store, TIERS, codec=Codec(codec), frame_size=1500)
    path = root / document.manifest.document
    whole = path.read_bytes()
    path.chmod(0o644)
    ends = [f.offset + f.length for f in document.manifest.frames]
    for length in (0, ends[0], ends[1], ends[1] + 5, len(whole) // 2):
        path.write_bytes(whole[:length])
        error = refused(document, target, TruncatedDocument)
        assert error.hint


def test_a_missing_document(source, target, store, root):
    document = take(source, store, TIERS)
    (root / document.manifest.document).unlink()
    error = refused(document, target, CorruptDocument)
    assert "missing" in str(error)
    assert error.hint


def test_another_snapshots_document_in_its_place(source, target, store, root):
    first = take(source, store, TIERS)
    run(source, "UPDATE notes SET body = 'body x' WHERE id = 7")
    second = take(source, store, TIERS)
    path = root / first.manifest.document
    path.chmod(0o644)
    path.write_bytes((root / second.manifest.document).read_bytes())
    refused(first, target, DocumentError)


def test_an_altered_manifest(source, store, root):
    document = take(source, store, TIERS)
    path = root / manifest_key(document.manifest.id)
    good = path.read_bytes()
    path.chmod(0o644)
    for bad in (
        good.replace(b'"rows":200', b'"rows":199'),
        good.replace(b'"uid":null', b'"uid":"u1"', 1),
        good[:-10],
        b"",
        b"{}",
        b"[]",
        b"not JSON",
        good.replace(b"{", b"{ ", 1),
        json.dumps(json.loads(good), indent=1).encode(),
        good.replace(b'"seconds"', b'"seconds":1,"seconds"'),
    ):
        assert bad != good
        path.write_bytes(bad)
        with pytest.raises(CorruptManifest) as caught:
            read_manifest(store, document.manifest.id)
        assert caught.value.key == manifest_key(document.manifest.id)
        with pytest.raises(CorruptManifest):
            newest(store)
    path.write_bytes(good)
    assert newest(store) == document.manifest


def reseal(document, **changes):
    """The manifest with other members and a checksum that fits: written so by somebody, not damaged."""
    return model.encode_manifest(msgspec.structs.replace(document.manifest, **changes, checksum=""))


@pytest.mark.parametrize(
    ("found", "expected"), [("coldstore/2", UnsupportedFormat), ("coldstore/10", UnsupportedFormat), ("other/1", UnsupportedFormat)]
)
def test_a_newer_format(source, store, root, found, expected):
    document = take(source, store, TIERS)
    path = root / manifest_key(document.manifest.id)
    path.chmod(0o644)
    path.write_bytes(reseal(document, format=found))
    with pytest.raises(expected, match=re.escape(found)) as caught:
        read_manifest(store, document.manifest.id)
    assert found != "coldstore/2" or "newer" in caught.value.hint
    # The document alone, without a manifest.
    loose = root / document.manifest.document
    loose.chmod(0o644)
    loose.write_bytes(loose.read_bytes().replace(b"coldstore/1", found.encode(), 1))
    with pytest.raises(expected):
        open_loose(loose)


def test_a_manifest_that_promises_other_rows(source, target, store):
    """Checksums that fit and content that does not: the digest of what was loaded decides."""
    document = take(source, store, TIERS)
    tiers = document.manifest.tiers
    for changed in (
        [msgspec.structs.replace(tiers[0], rows=199), tiers[1]],
        [msgspec.structs.replace(tiers[0], digest="0" * 32), tiers[1]],
    ):
        forged = StoredDocument(store, msgspec.structs.replace(document.manifest, tiers=changed))
        error = refused(forged, target, ContentMismatch)
        assert error.hint


def test_a_frame_left_out_of_the_manifest(source, target, store):
    document = take(source, store, TIERS, frame_size=1500)
    frames = document.manifest.frames
    for left in (frames[:2] + frames[3:], [*frames, frames[2]]):
        refused(StoredDocument(store, msgspec.structs.replace(document.manifest, frames=left)), target, ContentMismatch)


def test_a_moved_manifest(source, store, root):
    first, second = take(source, store, TIERS), take(source, store, TIERS)
    path = root / manifest_key(first.manifest.id)
    path.chmod(0o644)
    path.write_bytes((root / manifest_key(second.manifest.id)).read_bytes())
    with pytest.raises(NotFound, match="moved"):
        read_manifest(store, first.manifest.id)


@pytest.mark.parametrize("codec", CODECS)
def test_a_document_as_a_file(source, empty_database, store, root, tmp_path, codec):
    """With its manifest beside it, and without."""
    document = take(source, store, TIERS, codec=Codec(codec), frame_size=1500)
    path = root / document.manifest.document
    beside = open_file(path)
    assert isinstance(beside, StoredDocument)
    assert bring_back(beside, empty_database).verified == "content"
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    alone = open_file(copy)
    assert not isinstance(alone, StoredDocument)
    bring_back(alone, empty_database, mode="replace")
    assert contents(empty_database) == contents(source)
    whole = copy.read_bytes()
    for length in [0, 1, 50, *range(100, len(whole) - 1, max(1, len(whole) // 17))]:
        copy.write_bytes(whole[:length])
        before = everything(empty_database)
        with pytest.raises(DocumentError):
            bring_back(open_file(copy), empty_database, mode="replace")
        assert everything(empty_database) == before


def test_a_file_that_somebody_edited(source, target, store, root, tmp_path):
    path = tmp_path / "alone.json"
    text = (root / take(source, store, TIERS).manifest.document).read_bytes().decode()
    lines = text.splitlines(keepends=True)
    row = next(i for i, line in enumerate(lines) if line.startswith('{"id":5,'))
    for bad in (
        "".join([*lines[:row], "garbage\n", *lines[row:]]),
        "".join([*lines[:row], lines[row].replace(",\n", "\n"), *lines[row + 1 :]]),
        "".join([*lines[:row], lines[row].replace('"body 5"', '"body 5'), *lines[row + 1 :]]),
        text + "{}\n",
        text.replace('"notes":[', '"other":[', 1),
        text.replace('"empty":[\n]}', "}"),
    ):
        assert bad != text
        path.write_text(bad)
        before = everything(target)
        with pytest.raises(ColdStoreError):
            bring_back(open_file(path), target, mode="replace")
        assert everything(target) == before


def test_dry_run_of_a_damaged_document(source, target, store, root):
    document = take(source, store, TIERS)
    (root / document.manifest.document).unlink()
    refused(document, target, CorruptDocument, scope=Scope.user("u1"), dry_run=True)


def test_databases_that_cannot_be_reached(source, store, empty_database):
    document = take(source, store, TIERS)
    secret = "hunter2-and-more"
    for url, expected in [
        (f"postgresql://someone:{secret}@127.0.0.1:1/db", DatabaseUnreachable),
        (f"postgresql://someone:{secret}@no-such-host.invalid/db", DatabaseUnreachable),
        (f"postgresql://someone:{secret}@[bad", ConfigError),
        (re.sub(r"/[^/?]*(\?|$)", r"/no_such_database\1", empty_database), DatabaseUnreachable),
    ]:
        for act in (lambda u=url: bring_back(document, u), lambda u=url: take(u, store, TIERS)):
            with pytest.raises(expected) as caught:
                act()
            assert secret not in str(caught.value) + (caught.value.hint or "")
            assert caught.value.hint


@pytest.fixture
def guest(source):
    """A role of no rights, as a URL of the source."""
    run(source, "DROP ROLE IF EXISTS guest", "CREATE ROLE guest")
    yield f"{source}{'&' if '?' in source else '?'}options=-crole%3Dguest"
    run(source, "DROP OWNED BY guest", "DROP ROLE guest")


def test_a_role_that_may_not_read(source, guest, store):
    with pytest.raises(PermissionDenied):
        take(guest, store, TIERS)
    run(source, "GRANT SELECT ON empty TO guest", "GRANT SELECT (id, uid) ON notes TO guest")
    with pytest.raises(PermissionDenied):
        take(guest, store, TIERS)
    assert list(store.list("")) == []
    run(source, "GRANT SELECT ON notes TO guest")
    assert take(guest, store, TIERS).manifest.rows() == {"notes": 200, "empty": 0}


def test_row_level_security_is_an_error_and_never_a_partial_backup(source, guest, store):
    run(
        source,
        "GRANT SELECT ON notes, empty TO guest",
        "ALTER TABLE notes ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY only_some ON notes USING (uid = 'u1')",
    )
    for act in (
        lambda: take(guest, store, TIERS),
        lambda: take(guest, store, TIERS, Scope.user("u1")),
        lambda: take_each_user(guest, store, TIERS),
    ):
        with pytest.raises(RowSecurityActive) as caught:
            act()
        assert caught.value.hint
    assert list(store.list("")) == []
    assert take(source, store, TIERS).manifest.rows()["notes"] == 200


def test_row_level_security_in_the_target(source, guest, store):
    document = take(source, store, TIERS)
    run(
        source,
        "DELETE FROM notes WHERE id = 1",
        "GRANT ALL ON notes, empty TO guest",
        "GRANT CREATE ON SCHEMA public TO guest",
        "DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO guest', current_database()); END $$",
        "ALTER TABLE notes ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY only_some ON notes USING (uid = 'u1')",
    )
    before = everything(source)
    with pytest.raises(RowSecurityActive):
        bring_back(document, guest, mode="replace")
    assert everything(source) == before


def test_every_error_has_a_sentence_and_no_traceback(source, store):
    with pytest.raises(NotFound) as caught:
        take(source, store, TIERS, Scope.user("nobody"))
    assert caught.value.as_dict() == {
        "error": "NotFound",
        "message": "there is not one row of user 'nobody'",
        "hint": caught.value.hint,
        "op": None,
        "key": None,
        "exitCode": 6,
    }
    assert not [p for p in Path(store.path("x")).parent.rglob("*") if p.is_file()]
