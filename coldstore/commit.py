"""Frames of a document into a committed snapshot; where the rows come from is the caller's.

    frames → codec, seal → store → manifest → pointers

The manifest commits. Whatever fails before it leaves at most an object that no manifest names; whatever fails after it leaves a good
snapshot whose pointers are behind, and pointers can be made anew. Nothing here knows a database: rows of Postgres (`export.py`) and an
agent's own documents (`vault.py`) are written by the same steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

import msgspec

from coldstore.catalog import Heads, point_latest, rfc3339, scope_of, write_checkpoint
from coldstore.codec.compress import Codec
from coldstore.codec.digest import format_digest
from coldstore.codec.pipeline import DocumentSums, StoredFrame, encode, ordered_map
from coldstore.codec.seal import CIPHER, DataKey
from coldstore.codec.seal import SUFFIX as SEALED
from coldstore.codec.sign import SigningKey
from coldstore.document import model
from coldstore.document.writer import DocumentWriter, PlainFrame, RowBatch
from coldstore.errors import ObjectExists, ObjectLocked, QuotaExceeded, StoreError
from coldstore.gate import suspicion
from coldstore.keyrings.open import wrap_for_all
from coldstore.keyrings.ring import KeyRing
from coldstore.storage import layout, parts
from coldstore.storage.store import RetainMode, Retention, Store
from coldstore.tiers import EVERYBODY, Scope

_CLASHES = 1000  # so many milliseconds in a row cannot all be taken by honest snapshots


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How to write. `encoders`: threads for everybody's memory. `frame_size`: plain bytes. `rings`: who can open what is written; none,
    and it is not sealed. `retain_days`: how long nobody may delete it. `max_fall`: the share of rows by which it may be smaller than the
    one before and not be suspect; `accept`: it is good whatever it holds. `object_limit`: bytes of the largest object that the store takes.
    `room`: bytes that the snapshot may take there."""

    codec: Codec = field(default_factory=Codec)
    encoders: int = 2
    frame_size: int = 4 << 20
    rings: tuple[KeyRing, ...] = ()
    signer: SigningKey | None = None
    retain_days: int | None = None
    retain_mode: RetainMode = "governance"
    max_fall: float = 0.5
    accept: bool = False
    object_limit: int | None = None
    room: int | None = None


@dataclass(slots=True)
class Tally:
    """Rows and digest of each array, in the order of the document."""

    rows: list[int]
    digests: list[int]

    @classmethod
    def of(cls, arrays: int) -> Tally:
        return cls([0] * arrays, [0] * arrays)

    def add(self, array: int, batch: RowBatch) -> None:
        self.rows[array] += batch.rows
        self.digests[array] += batch.digest


@dataclass(frozen=True, slots=True)
class State:
    """What an incremental snapshot and all that it builds on come to. `rows`: by tier, as last counted; what the gate compares. `tally`: of
    all arrays but the last, where every row was read; what the manifest claims."""

    rows: dict[str, int]
    tally: Tally | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A snapshot that is not committed yet. `header`: what its first line will say, but that `publish` may have to move it to a later
    millisecond than `timestamp`. `arrays`: (tier, array) in the order of the document. `guard` raises for what must not be committed, once
    every row has been seen and before anything can be read by others. `state`: of an incremental, asked at the same time. `built_from`: the
    snapshot whose chain this is."""

    store: Store
    header: model.Header
    timestamp: int
    arrays: Sequence[tuple[str, str]]
    options: WriteOptions
    started: float
    heads: Heads
    guard: Callable[[Tally], None]
    state: Callable[[Tally], State] | None = None
    built_from: str | None = None

    @property
    def scope(self) -> Scope:
        return scope_of(self.header)

    def publish(self, frames: Callable[[Tally], Generator[PlainFrame]]) -> model.Manifest:
        """Write document, manifest and pointers under the first free millisecond. `frames` is asked anew for each try."""
        for timestamp in range(self.timestamp, self.timestamp + _CLASHES):
            try:
                manifest = self._write(timestamp, frames)
            except ObjectExists:
                continue
            point_latest(self.store, manifest)
            if manifest.label is not None and manifest.suspect is None:
                write_checkpoint(self.store, manifest)
            return manifest
        raise StoreError(f"{_CLASHES} snapshots of {self.scope} are dated after {rfc3339(self.timestamp)}", op="snapshot")

    def _write(self, timestamp: int, frames: Callable[[Tally], Generator[PlainFrame]]) -> model.Manifest:
        header = self._header(timestamp)
        previous = self.heads.before(self.scope, timestamp)
        data_key = DataKey.new(header.id) if self.options.rings else None
        sealing = data_key and self._sealing(data_key)  # first: a key ring that does not answer should cost no upload
        key = layout.document_key(header.id, self.options.codec.suffix + (SEALED if data_key else ""))
        retain = self._retention(timestamp)
        tally = Tally.of(len(self.arrays))
        sums = DocumentSums()
        codec = self.options.codec
        first = DocumentWriter([], frame_size=0).header(header)

        def stored_frame(numbered: tuple[int, PlainFrame]) -> StoredFrame:
            return encode(numbered[1], codec, data_key, number=numbered[0])

        with parts.create(self.store, key, limit=self.options.object_limit, retain=retain) as out, closing(frames(tally)) as body:
            with closing(ordered_map(stored_frame, enumerate(chain([first], body)), workers=self._encoders())) as encoded:
                for stored in encoded:
                    sums.add(stored)
                    self._check_room(sums.stored_bytes)
                    for piece in stored.pieces:
                        out.write(piece)
            self.guard(tally)
            state = self.state(tally) if self.state else None
        manifest = msgspec.structs.replace(
            self._manifest(header, key, tally, sums, data_key),
            **_claimed(state, self.arrays, data_key),
            built_from=self.built_from,
            suspect=self._suspicion(state.rows if state else self._rows(tally)),
            previous=previous,
            sealing=sealing,
            retained=_retained(self.store, retain),
            parts=out.sizes if len(out.sizes) > 1 else None,
        )
        manifest = model.complete(manifest, signer=self.options.signer)
        try:
            self._commit(manifest, model.encode_manifest(manifest), retain)
        except (ObjectExists, QuotaExceeded):
            for part in manifest.objects():  # ours: a snapshot with another codec has the same id
                with suppress(ObjectLocked):  # it stays, as an orphan, until its date
                    self.store.delete(part)
            raise
        return manifest

    def _commit(self, manifest: model.Manifest, data: bytes, retain: Retention | None) -> None:
        self._check_room(manifest.stored_bytes + len(data))
        limit = self.options.object_limit
        if limit is not None and len(data) > limit:
            raise QuotaExceeded(
                f"the manifest of {manifest.id} has {len(data):,} bytes, and an object may have {limit:,}",
                hint="Allow larger objects, or make the frames larger: the manifest has a line for each.",
            )
        with self.store.create(layout.manifest_key(manifest.id), retain=retain) as out:
            out.write(data)

    def _check_room(self, size: int) -> None:
        """Before anything that would not fit is written."""
        room = self.options.room
        if room is not None and size > room:
            raise QuotaExceeded(
                f"the snapshot of {self.scope} takes {size:,} bytes or more, and its quota leaves {max(0, room):,}",
                hint="Nothing was stored. Prune older snapshots, or raise the quota.",
            )

    def _rows(self, tally: Tally) -> dict[str, int]:
        return {tier: rows for (tier, _), rows in zip(self.arrays, tally.rows, strict=True)}

    def _suspicion(self, now: Mapping[str, int]) -> str | None:
        if self.options.accept:
            return None
        before = self.heads.rows(self.scope, documents=self.header.kind == model.DOCUMENTS)
        return suspicion(before, now, max_fall=self.options.max_fall, everybody=self.scope == EVERYBODY)

    def _retention(self, timestamp: int) -> Retention | None:
        days = self.options.retain_days
        if days is None:
            return None
        until = datetime.fromtimestamp(timestamp // 1000 + 1, UTC) + timedelta(days=days)
        return Retention(until, self.options.retain_mode)

    def _encoders(self) -> int:
        return self.options.encoders if self.scope == EVERYBODY else 0

    def _header(self, timestamp: int) -> model.Header:
        if timestamp == self.timestamp:
            return self.header
        return msgspec.structs.replace(self.header, snapshot_at=rfc3339(timestamp), id=layout.snapshot_id(self.scope, timestamp))

    def _manifest(self, header: model.Header, key: str, tally: Tally, sums: DocumentSums, data_key: DataKey | None) -> model.Manifest:
        return model.Manifest(
            **msgspec.structs.asdict(header),
            document=key,
            codec=self.options.codec.name,
            bytes=sums.plain_bytes,
            stored_bytes=sums.stored_bytes,
            sha256=sums.stored_sha256,
            plain_sha256=_masked(sums.plain_sha256, "plainSha256", data_key),
            tiers=_summaries(self.arrays, tally, "digest", data_key),
            frames=sums.frames,
            seconds=round(time.monotonic() - self.started, 6),
        )

    def _sealing(self, data_key: DataKey) -> model.Sealing:
        wrapped = wrap_for_all(self.options.rings, data_key.secret, context=data_key.snapshot)
        return model.Sealing(cipher=CIPHER, nonce=data_key.nonce.hex(), check=data_key.check, keys=wrapped)


def _masked(digest: str, name: str, data_key: DataKey | None) -> str:
    return digest if data_key is None else data_key.mask(digest, name)


def _summaries(arrays: Sequence[tuple[str, str]], tally: Tally, what: str, data_key: DataKey | None) -> list[model.TierSummary]:
    """`what`: by which name digests are masked. Two of one array under one mask would show how they differ."""
    return [
        model.TierSummary(tier=tier, array=array, rows=rows, digest=_masked(format_digest(digest), f"{what} {array}", data_key))
        for (tier, array), rows, digest in zip(arrays, tally.rows, tally.digests, strict=True)
    ]


def _claimed(state: State | None, arrays: Sequence[tuple[str, str]], data_key: DataKey | None) -> dict[str, Any]:
    """What a manifest says of the state."""
    if state is None:
        return {}
    if state.tally is None:
        return {"counted": state.rows}
    return {"state": _summaries(arrays[:-1], state.tally, "state", data_key)}


def _retained(store: Store, retain: Retention | None) -> model.Retained | None:
    if retain is None:
        return None
    mode = retain.mode if store.enforces_retention else "advisory"
    return model.Retained(until=rfc3339(int(retain.until.timestamp()) * 1000), mode=mode)
