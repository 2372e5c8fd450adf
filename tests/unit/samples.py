"""Headers, manifests and whole documents to try things on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from coldstore.codec.compress import Codec
from coldstore.codec.digest import format_digest, row_digest
from coldstore.codec.pipeline import DocumentSums, encode
from coldstore.document import model
from coldstore.document.writer import DocumentWriter, PlainFrame, batches
from coldstore.storage import layout

DATABASE = model.Database(system_identifier="7468013241", name="memory", server_version="18.0", snapshot="10:12:11")


def table(array: str, *, uid: str | None = "uid") -> model.Table:
    return model.Table(
        tier=array,
        array=array,
        table=model.Name(schema="public", name=array),
        kind="table",
        columns=[model.Column(name="id", type="bigint", not_null=True), model.Column(name="uid", type="text")],
        constraints=[model.Constraint(name=f"{array}_pkey", kind="p", definition="PRIMARY KEY (id)", columns=["id"])],
        uid_column=uid,
    )


def header(*arrays: str, **changes: object) -> model.Header:
    found = model.Header(
        format=model.FORMAT,
        snapshot_at="2026-02-26T02:00:00.000Z",
        uid=None,
        workspace=None,
        id="memory-all-1772071200000",
        kind="full",
        label=None,
        generator="coldstore test",
        database=DATABASE,
        schema=model.Schema(tables=[table(a) for a in arrays]),
    )
    return msgspec.structs.replace(found, **changes)


def manifest(of: model.Header | None = None, **changes: object) -> model.Manifest:
    found = model.Manifest(
        **msgspec.structs.asdict(of or header("notes")),
        document="snapshots/2026-02-26/memory-all-1772071200000.json",
        codec="none",
        bytes=0,
        stored_bytes=0,
        sha256="0" * 64,
        plain_sha256="0" * 64,
        tiers=[],
        frames=[],
        seconds=0.25,
    )
    return msgspec.structs.replace(found, **changes)


def plain_frames(of: model.Header, tables: Mapping[str, Sequence[bytes]], *, frame_size: int = 64) -> list[PlainFrame]:
    """A document's frames, by the writer itself."""
    document = DocumentWriter(tables, frame_size=frame_size)
    frames = [document.header(of)]
    for rows in tables.values():
        document.open()
        frames += [f for b in batches(rows, size=frame_size) if (f := document.rows(b))]
        frames.append(document.close())
    return frames


def snapshot(
    tables: Mapping[str, Sequence[bytes]], *, codec: Codec | None = None, frame_size: int = 64, **changes: object
) -> tuple[bytes, model.Manifest]:
    """(the stored document, its manifest), as an export would make them."""
    codec = codec or Codec("none")
    of = header(*tables, **changes)
    sums = DocumentSums()
    stored = []
    for frame in plain_frames(of, tables, frame_size=frame_size):
        made = encode(frame, codec)
        sums.add(made)
        stored += made.pieces
    found = manifest(
        of,
        document=layout.document_key(of.id, codec.suffix),
        codec=codec.name,
        bytes=sums.plain_bytes,
        stored_bytes=sums.stored_bytes,
        sha256=sums.stored_sha256,
        plain_sha256=sums.plain_sha256,
        tiers=[
            model.TierSummary(tier=n, array=n, rows=len(rows), digest=format_digest(sum(map(row_digest, rows))))
            for n, rows in tables.items()
        ],
        frames=sums.frames,
    )
    return b"".join(stored), found
