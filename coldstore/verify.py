"""Whether snapshots are what they say: each check a sentence, all of them collected, nothing repaired.

Quick: the manifest agrees with itself, and the document has the size that it says. Deep: every frame is read, summed, decompressed and cut
into rows by the same code that restores them; rows are parsed, counted and their digests compared; the whole document is hashed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import msgspec

from coldstore.codec.digest import format_digest, row_digest
from coldstore.codec.pipeline import ordered_map
from coldstore.document import model
from coldstore.document.reader import frame_rows, lines, read_header, read_rows
from coldstore.documents import StoredDocument
from coldstore.errors import ColdStoreError, CorruptDocument, ObjectMissing
from coldstore.progress import Progress, silent
from coldstore.storage import layout
from coldstore.storage.store import Store

_WORKERS = 2


@dataclass(slots=True)
class Verdict:
    """What was found out about one snapshot; it is good when there is no problem."""

    id: str
    deep: bool
    rows: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        return {"id": self.id, "ok": self.ok, "deep": self.deep, "rows": self.rows, "bytes": self.bytes, "problems": self.problems}


def verify(
    store: Store, found: Iterable[model.Manifest | ColdStoreError], *, deep: bool = False, progress: Progress = silent
) -> Iterator[Verdict]:
    """A verdict for each snapshot, in the order given."""
    for item in found:
        if isinstance(item, ColdStoreError):
            yield Verdict(item.key or "?", deep, problems=[str(item)])
        else:
            yield verify_one(store, item, deep=deep, progress=progress)


def verify_one(store: Store, manifest: model.Manifest, *, deep: bool = False, progress: Progress = silent) -> Verdict:
    """Never raises for what is wrong with the snapshot; what is wrong with the store (no access, no network) it does raise."""
    verdict = Verdict(manifest.id, deep, rows=sum(t.rows for t in manifest.tiers), bytes=manifest.bytes)
    verdict.problems += _disagreements(manifest)
    try:
        size = store.stat(manifest.document).size
    except ObjectMissing:
        verdict.problems.append(f"the document {manifest.document} is missing")
        return verdict
    if size != manifest.stored_bytes:
        verdict.problems.append(f"the document has {size} bytes, the manifest says {manifest.stored_bytes}")
        return verdict
    if deep and verdict.ok:
        progress.start(manifest.id, total_bytes=manifest.bytes)
        try:
            verdict.problems += _read_through(StoredDocument(store, manifest), progress)
        except (CorruptDocument, ColdStoreError) as exc:
            if exc.exit_code != CorruptDocument.exit_code:
                raise
            verdict.problems.append(str(exc))
    return verdict


def _disagreements(manifest: model.Manifest) -> list[str]:
    """Where a manifest contradicts itself."""
    problems = []
    offset = 0
    for frame in manifest.frames:
        if frame.offset != offset:
            problems.append(f"a frame starts at {frame.offset}, the one before ends at {offset}")
            break
        offset += frame.length
    if not problems and offset != manifest.stored_bytes:
        problems.append(f"the frames have {offset} bytes together, the document {manifest.stored_bytes}")
    if sum(f.plain for f in manifest.frames) != manifest.bytes:
        problems.append("the frames' plain sizes do not add up to the document's")
    for tier in manifest.tiers:
        rows = sum(f.rows for f in manifest.frames if f.tier == tier.array)
        if rows != tier.rows:
            problems.append(f"{tier.tier}: the frames hold {rows} rows, the manifest says {tier.rows}")
    arrays = [t.array for t in manifest.schema.tables]
    if arrays != [t.array for t in manifest.tiers]:
        problems.append("the tiers are not those of the schema")
    return problems


@dataclass(frozen=True, slots=True)
class _Read:
    """One frame, read through."""

    frame: model.Frame
    plain: bytes
    rows: int
    digest: int


def _read_frame(document: StoredDocument, frame: model.Frame) -> _Read:
    plain = document.frame(frame)
    rows = digest = 0
    if frame.tier is not None:
        for row in frame_rows(plain):
            try:
                msgspec.json.decode(row, type=msgspec.Raw)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
                raise CorruptDocument(f"a row of {frame.tier} is not JSON: {exc}", key=document.manifest.document) from exc
            rows += 1
            digest += row_digest(row)
    return _Read(frame, plain, rows, digest)


def _read_through(document: StoredDocument, progress: Progress) -> list[str]:
    manifest = document.manifest
    plain = hashlib.sha256()
    rows = {t.array: 0 for t in manifest.tiers}
    digests = {t.array: 0 for t in manifest.tiers}
    problems = []

    def pieces() -> Generator[bytes]:
        with closing(ordered_map(lambda f: _read_frame(document, f), manifest.frames, workers=_WORKERS)) as frames:
            for read in frames:
                plain.update(read.plain)
                if read.frame.tier is not None:
                    rows[read.frame.tier] = rows.get(read.frame.tier, 0) + read.rows
                    digests[read.frame.tier] = digests.get(read.frame.tier, 0) + read.digest
                progress.advance(rows=read.rows, size=len(read.plain))
                yield read.plain

    with closing(pieces()) as chunks:
        rest = lines(chunks)
        header = read_header(next(rest, b""), key=manifest.document)
        for _ in read_rows(rest, [t.array for t in manifest.schema.tables], key=manifest.document):
            pass
    if (header.id, header.snapshot_at, header.uid, header.workspace) != (
        manifest.id,
        manifest.snapshot_at,
        manifest.uid,
        manifest.workspace,
    ):
        problems.append(f"the document calls itself {header.id}, the manifest {manifest.id}")
    if plain.hexdigest() != manifest.plain_sha256:
        problems.append("the document's SHA-256 is not the manifest's")
    for tier in manifest.tiers:
        if rows[tier.array] != tier.rows:
            problems.append(f"{tier.tier}: {rows[tier.array]} rows, the manifest says {tier.rows}")
        elif format_digest(digests[tier.array]) != tier.digest:
            problems.append(f"{tier.tier}: the rows are not those the manifest was made for")
    return problems


def orphans(store: Store, manifests: Iterable[str]) -> list[str]:
    """Keys below `snapshots/` that no manifest in `manifests` (ids) names: what a crash between document and manifest leaves behind."""
    known = set(manifests)
    found = []
    for item in store.list(layout.SNAPSHOTS):
        key = layout.parse_key(item.key)
        if key is None or (not key.is_manifest and key.id not in known):
            found.append(item.key)
    return found
