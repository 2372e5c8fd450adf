"""`verify` finds what is wrong with a snapshot, says it once, and goes on to the next. No database is needed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest

from coldstore import catalog
from coldstore.codec.compress import Codec
from coldstore.codec.digest import format_digest, row_digest
from coldstore.codec.pipeline import DocumentSums, encode
from coldstore.document import model
from coldstore.document.writer import DocumentWriter, batches
from coldstore.errors import AccessDenied, CorruptManifest
from coldstore.storage import layout
from coldstore.storage.local import LocalStore
from coldstore.tiers import Scope
from coldstore.verify import Checks, orphans, verify, verify_one

ROWS = [b'{"id":%d,"uid":"u"}' % n for n in range(20)]


def table(tier: str, array: str) -> model.Table:
    columns = [model.Column(name="id", type="integer"), model.Column(name="uid", type="text")]
    return model.Table(tier=tier, array=array, table=model.Name(schema="public", name=tier), kind="table", columns=columns)


def make(store, *, timestamp: int = 1772071200000, codec: str = "none", rows=ROWS, **lies) -> model.Manifest:
    """A snapshot with two tiers, the second empty. `lies`: members of the manifest that are not the truth."""
    tables = [table("daily_memories", "dailyMemories"), table("graph_entities", "graphEntities")]
    header = model.Header(
        format=model.FORMAT,
        snapshot_at=catalog.rfc3339(timestamp),
        uid="u",
        workspace=None,
        id=layout.snapshot_id(Scope.user("u"), timestamp),
        kind="full",
        label=None,
        generator="test",
        database=model.Database(system_identifier="1", name="d", server_version="18", snapshot="1:1:"),
        schema=model.Schema(tables=tables),
    )
    chosen = Codec(codec)
    key = layout.document_key(header.id, chosen.suffix)
    writer = DocumentWriter([t.array for t in tables], frame_size=200)
    frames = [DocumentWriter([], frame_size=0).header(header)]
    writer.open()
    frames += [frame for batch in batches(iter(rows), size=100) if (frame := writer.rows(batch))]
    frames.append(writer.close())
    writer.open()
    frames.append(writer.close())
    sums = DocumentSums()
    with store.create(key) as out:
        for frame in frames:
            stored = encode(frame, chosen)
            for piece in stored.pieces:
                out.write(piece)
            sums.add(stored)
    manifest = model.Manifest(
        **msgspec.structs.asdict(header),
        document=key,
        codec=codec,
        bytes=sums.plain_bytes,
        stored_bytes=sums.stored_bytes,
        sha256=sums.stored_sha256,
        plain_sha256=sums.plain_sha256,
        tiers=[
            model.TierSummary(
                tier="daily_memories", array="dailyMemories", rows=len(rows), digest=format_digest(sum(row_digest(r) for r in rows))
            ),
            model.TierSummary(tier="graph_entities", array="graphEntities", rows=0, digest=format_digest(0)),
        ],
        frames=sums.frames,
        seconds=0.1,
    )
    manifest = msgspec.structs.replace(manifest, **lies)
    with store.create(layout.manifest_key(header.id)) as out:
        out.write(model.encode_manifest(manifest))
    return manifest


@pytest.fixture
def store(tmp_path):
    return LocalStore(str(tmp_path / "store"))


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("deep", [False, True])
def test_a_good_one(store, codec, deep):
    manifest = make(store, codec=codec)
    assert len(manifest.frames) > 4
    verdict = verify_one(store, manifest, deep=deep)
    assert (verdict.ok, verdict.problems, verdict.rows, verdict.bytes) == (True, [], 20, manifest.bytes)
    assert verdict.as_dict() == {
        "id": manifest.id,
        "ok": True,
        "state": "ok",
        "deep": deep,
        "rows": 20,
        "bytes": manifest.bytes,
        "framesRead": len(manifest.frames) if deep else 0,
        "problems": [],
        "notes": [],
    }


def without(frames, number):
    return [*frames[:number], *frames[number + 1 :]]


LIES = {
    "a frame less": lambda m: {"frames": without(m.frames, 2)},
    "the last frame less": lambda m: {"frames": m.frames[:-1]},
    "bytes": lambda m: {"bytes": m.bytes + 1},
    "stored bytes": lambda m: {"stored_bytes": m.stored_bytes - 1},
    "rows": lambda m: {"tiers": [msgspec.structs.replace(m.tiers[0], rows=21), m.tiers[1]]},
    "a tier less": lambda m: {"tiers": m.tiers[:1]},
    "the order of tiers": lambda m: {"tiers": m.tiers[::-1]},
    "frames in another order": lambda m: {"frames": [m.frames[0], *m.frames[:0:-1]]},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_contradicts_itself(store, lie):
    """Seen without reading the document."""
    manifest = make(store)
    lying = msgspec.structs.replace(manifest, **LIES[lie](manifest))
    assert verify_one(store, lying).problems
    assert verify_one(store, lying, deep=True).problems


DEEP_LIES = {
    "the digest": lambda m: {"tiers": [msgspec.structs.replace(m.tiers[0], digest="0" * 32), m.tiers[1]]},
    "the hash": lambda m: {"plain_sha256": "0" * 64},
    "the moment": lambda m: {"snapshot_at": "2026-02-26T02:00:00.001Z"},
    "the owner": lambda m: {"uid": "somebody else"},
    "a frame's hash": lambda m: {"frames": [m.frames[0], msgspec.structs.replace(m.frames[1], sha256="0" * 64), *m.frames[2:]]},
    "a frame's checksum": lambda m: {"frames": [m.frames[0], msgspec.structs.replace(m.frames[1], crc32c="00000000"), *m.frames[2:]]},
}


@pytest.mark.parametrize("lie", DEEP_LIES)
def test_a_manifest_that_is_not_of_this_document(store, lie):
    """Nothing but reading shows it."""
    manifest = make(store)
    lying = msgspec.structs.replace(manifest, **DEEP_LIES[lie](manifest))
    assert len(verify_one(store, lying, deep=True).problems) == 1
    assert verify_one(store, lying).ok


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_any_byte_that_changed_is_found(store, codec):
    manifest = make(store, codec=codec)
    path = Path(store.path(manifest.document))
    good = path.read_bytes()
    for place in range(0, len(good), max(1, len(good) // 60)):
        data = bytearray(good)
        data[place] ^= 0x20
        path.write_bytes(data)
        assert len(verify_one(store, manifest, deep=True).problems) == 1, place
        assert verify_one(store, manifest).ok
    path.write_bytes(good)
    assert verify_one(store, manifest, deep=True).ok


def test_rows_that_are_no_json(store):
    """Written like this, with the sums to match: only the restore's own eyes see it."""
    manifest = make(store, rows=[b'{"id":1}', b'{"id":'])
    assert "not JSON" in verify_one(store, manifest, deep=True).problems[0]


def test_a_document_that_is_gone_or_of_another_size(store):
    manifest = make(store)
    with Path(store.path(manifest.document)).open("ab") as file:
        file.write(b"x")
    assert f"{manifest.stored_bytes + 1} bytes" in verify_one(store, manifest).problems[0]
    store.delete(manifest.document)
    assert "missing" in verify_one(store, manifest).problems[0]


def test_one_that_is_damaged_hides_no_other(store):
    good = make(store)
    damaged = CorruptManifest("it is not readable", key="snapshots/x.manifest.json")
    verdicts = verify(store, [damaged, good], checks=Checks(deep=True))
    assert [(v.id, v.ok) for v in verdicts] == [("snapshots/x.manifest.json", False), (good.id, True)]


def test_a_store_that_says_no_is_not_a_snapshot_that_is_damaged(store):
    """An outage must not be taken for damage, nor the other way round."""
    manifest = make(store)

    class Shut:
        url = store.url
        stat = store.stat

        def read(self, key, **_):
            raise AccessDenied("no", key=key)

    with pytest.raises(AccessDenied):
        verify_one(Shut(), manifest, deep=True)


def test_orphans(store):
    manifest = make(store)
    with store.create("snapshots/2026-02-26/memory-all-1772071200001.json") as out:
        out.write(b"the manifest was never written")
    with store.create("snapshots/2026-02-26/notes.txt") as out:
        out.write(b"a stranger")
    assert orphans(store, [manifest.id]) == ["snapshots/2026-02-26/memory-all-1772071200001.json", "snapshots/2026-02-26/notes.txt"]


def test_many_threads_may_read_their_first_manifest_at_once(store):
    """In a fresh process each time: the library that decodes them works a class out once, and crashed when two threads made it do so."""
    manifest = make(store)
    program = textwrap.dedent(
        f"""
        import os, threading
        from coldstore import catalog
        from coldstore.storage.local import LocalStore

        def race():
            start = threading.Barrier(8)
            def read():
                start.wait()
                catalog.read_manifest(LocalStore({store.url.removeprefix("file://")!r}), {manifest.id!r})
            threads = [threading.Thread(target=read) for _ in range(8)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()

        for _ in range(40):
            pid = os.fork()
            if not pid:
                race()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
