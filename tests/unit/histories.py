"""Stores with a past: whole snapshots, committed as an export commits them, each linked to the one before it."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from coldstore.catalog import Heads, manifests, point_latest, rfc3339, write_checkpoint
from coldstore.codec.sign import SigningKey
from coldstore.document import model
from coldstore.storage import layout
from coldstore.storage.store import Store
from coldstore.tiers import EVERYBODY, Scope
from tests.unit.samples import snapshot

DAY = 86_400_000
NOON = 1772107200000  # 2026-02-26, 12:00 UTC


def commit(
    store: Store, at: int, *, scope: Scope = EVERYBODY, label: str | None = None, signer: SigningKey | None = None, **members: object
) -> model.Manifest:
    """One snapshot of the moment `at`. `members`: of the manifest, `suspect`, `retained`."""
    identity = layout.snapshot_id(scope, at)
    rows = [b'{"id":%d,"uid":"u"}' % n for n in range(3)]
    data, made = snapshot(
        {"notes": rows}, id=identity, uid=scope.uid, workspace=scope.workspace, label=label, snapshot_at=rfc3339(at), frame_size=1 << 20
    )
    made = msgspec.structs.replace(made, previous=Heads(store).before(scope, at), seconds=0.001, **members)
    made = model.complete(made, signer=signer)
    for key, content in ((made.document, data), (layout.manifest_key(made.id), model.encode_manifest(made))):
        with store.create(key) as out:
            out.write(content)
    point_latest(store, made)
    if label is not None and made.suspect is None:
        write_checkpoint(store, made)
    return made


def days(store: Store, ages: Iterable[int], *, now: int = NOON, scope: Scope = EVERYBODY, **members: object) -> list[model.Manifest]:
    """One snapshot a day, `ages` days before `now`, in the order given: the oldest first is how it happens."""
    return [commit(store, now - age * DAY, scope=scope, **members) for age in ages]


def bulk(store: Store, count: int, *, strangers: int = 0) -> list[str]:
    """Ids of `count` snapshots of one day, newest last, written quickly: no links, no pointers, documents of one byte. In the same folder,
    and before them in any listing, lie so many objects of `strangers`."""
    like = snapshot({"notes": []}, id=layout.snapshot_id(EVERYBODY, NOON))[1]

    def one(number: int) -> str:
        at = NOON + number
        identity = layout.snapshot_id(EVERYBODY, at)
        made = msgspec.structs.replace(like, id=identity, snapshot_at=rfc3339(at), document=layout.document_key(identity))
        for key, content in ((made.document, b"x"), (layout.manifest_key(identity), model.encode_manifest(made))):
            with store.create(key) as out:
                out.write(content)
        return identity

    def stranger(number: int) -> None:
        store.replace(f"{layout.folder_of(layout.snapshot_id(EVERYBODY, NOON))}a-note-{number:05}", b"x")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(stranger, range(strangers)))
        return list(pool.map(one, range(count)))


def whole(store: Store) -> set[str]:
    """Ids of what is listed; each has its document, or there is half a snapshot."""
    found = list(manifests(store))
    for manifest in found:
        assert isinstance(manifest, model.Manifest), manifest
        assert store.stat(manifest.document).size == manifest.stored_bytes
    return {m.id for m in found}
