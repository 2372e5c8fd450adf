"""Whole snapshots into a store as an export puts them there, sealed and signed if asked, but from rows in memory."""

from __future__ import annotations

import msgspec

from coldstore.catalog import Heads, point_latest, rfc3339, write_checkpoint
from coldstore.codec.compress import Codec
from coldstore.codec.digest import format_digest, row_digest
from coldstore.codec.pipeline import DocumentSums, encode
from coldstore.codec.seal import CIPHER, SUFFIX, DataKey
from coldstore.codec.sign import SigningKey
from coldstore.document import model
from coldstore.keyrings.keyfile import Key
from coldstore.keyrings.local import LocalRing
from coldstore.storage import layout
from coldstore.storage.store import Store
from coldstore.tiers import EVERYBODY, Scope
from tests.unit import samples

FEB_26 = 1772071200000
TABLES = {"notes": [b'{"id":%d,"uid":"u","text":"hello"}' % n for n in range(12)], "empty": []}


def ring(key: Key | None = None) -> LocalRing:
    """A key ring with one key, a new one unless told."""
    return LocalRing.parse((key or Key.new()).text(), source="a test")


def put(
    store: Store,
    scope: Scope = EVERYBODY,
    timestamp: int = FEB_26,
    *,
    tables: dict[str, list[bytes]] = TABLES,
    rings: tuple[LocalRing, ...] = (),
    signer: SigningKey | None = None,
    codec: str = "none",
    **changes: object,
) -> model.Manifest:
    """`changes`: members of the manifest that differ from what an export would write."""
    chosen = Codec(codec)
    identity = layout.snapshot_id(scope, timestamp)
    header = samples.header(*tables, id=identity, uid=scope.uid, workspace=scope.workspace, snapshot_at=rfc3339(timestamp))
    previous = Heads(store).before(scope, timestamp)
    data_key = DataKey.new(identity) if rings else None
    key = layout.document_key(identity, chosen.suffix + (SUFFIX if rings else ""))
    sums = DocumentSums()
    with store.create(key) as out:
        for number, frame in enumerate(samples.plain_frames(header, tables)):
            stored = encode(frame, chosen, data_key, number=number)
            for piece in stored.pieces:
                out.write(piece)
            sums.add(stored)

    def masked(digest: str, name: str) -> str:
        return data_key.mask(digest, name) if data_key else digest

    manifest = samples.manifest(
        header,
        document=key,
        codec=codec,
        bytes=sums.plain_bytes,
        stored_bytes=sums.stored_bytes,
        sha256=sums.stored_sha256,
        plain_sha256=masked(sums.plain_sha256, "plainSha256"),
        tiers=[
            model.TierSummary(tier=n, array=n, rows=len(rows), digest=masked(format_digest(sum(map(row_digest, rows))), f"digest {n}"))
            for n, rows in tables.items()
        ],
        frames=sums.frames,
        seconds=0.001,
        previous=previous,
        sealing=data_key
        and model.Sealing(
            cipher=CIPHER,
            nonce=data_key.nonce.hex(),
            check=data_key.check,
            keys=[r.wrap(data_key.secret, context=identity) for r in rings],
        ),
    )
    manifest = model.complete(msgspec.structs.replace(manifest, **changes), signer=signer)
    with store.create(layout.manifest_key(identity)) as out:
        out.write(model.encode_manifest(manifest))
    point_latest(store, manifest)
    if manifest.label is not None:
        write_checkpoint(store, manifest)
    return manifest
