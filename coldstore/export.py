"""The way out: one moment of the database into one snapshot per scope.

    tiers → one consistent moment → chunks of rows → document lines → frames → codec, seal → store → manifest → pointers

`restore.py` is the same steps the other way round. Nothing here depends on the size of the data but the time: readers run ahead of the
writer by a bounded number of batches, and frames are written in the order in which they stand in the document.

The manifest commits. Whatever fails before it leaves at most an object that no manifest names; whatever fails after it leaves a good
snapshot whose pointers are behind, and pointers can be made anew.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain, groupby
from operator import itemgetter

import msgspec

from coldstore import __version__
from coldstore.catalog import Heads, point_latest, rfc3339, write_checkpoint
from coldstore.codec.compress import Codec
from coldstore.codec.digest import format_digest
from coldstore.codec.pipeline import DocumentSums, StoredFrame, encode, ordered_map
from coldstore.codec.seal import CIPHER, DataKey
from coldstore.codec.seal import SUFFIX as SEALED
from coldstore.codec.sign import SigningKey
from coldstore.document import model
from coldstore.document.writer import DocumentWriter, PlainFrame, RowBatch, batches
from coldstore.errors import NotFound, ObjectExists, ObjectLocked, StoreError
from coldstore.gate import suspicion
from coldstore.keyrings.open import wrap_for_all
from coldstore.keyrings.ring import KeyRing
from coldstore.postgres.introspect import Relation
from coldstore.postgres.parallel import Job, read_ahead, read_batches
from coldstore.postgres.read import chunk_query, chunks, copy_owned_lines, scope_query
from coldstore.postgres.source import Moment, Source
from coldstore.progress import Progress, silent
from coldstore.storage import layout
from coldstore.storage.store import RetainMode, Retention, Store
from coldstore.tiers import EVERYBODY, Scope, Tier

_CLASHES = 1000  # so many milliseconds in a row cannot all be taken by honest snapshots
_OWNED_BATCH = 256 << 10  # bytes of rows that a sorted stream hands over at once
_OWNED_AHEAD = 8


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How to write. `readers`: connections for everybody's memory. `frame_size`: plain bytes. `vectors`: text or hex. `writers`:
    documents written at once by `snapshot_each_user`. `allow_empty`: a scope without any row is no error. `rings`: who can open what is
    written; none, and it is not sealed. `retain_days`: how long nobody may delete it. `max_fall`: the share of rows by which it may be
    smaller than the one before and not be suspect; `accept`: it is good whatever it holds."""

    codec: Codec = field(default_factory=Codec)
    vectors: str = "text"
    readers: int = 2
    encoders: int = 2
    writers: int = 4
    frame_size: int = 4 << 20
    allow_empty: bool = False
    rings: tuple[KeyRing, ...] = ()
    signer: SigningKey | None = None
    retain_days: int | None = None
    retain_mode: RetainMode = "governance"
    max_fall: float = 0.5
    accept: bool = False


def snapshot(
    source: Source,
    store: Store,
    *,
    tiers: Sequence[Tier],
    scope: Scope = EVERYBODY,
    label: str | None = None,
    options: ExportOptions | None = None,
    progress: Progress = silent,
) -> model.Manifest:
    """One scope's memory as one snapshot; one with a `suspect` is stored, and `latest` stays where it was. Raises `NotFound` for a user or
    workspace of whom there is not one row."""
    options = options or ExportOptions()
    started = time.monotonic()
    with source.moment(tiers, vectors=options.vectors, sizes=scope == EVERYBODY) as moment:
        tables = _Tables.of(moment, scope)

        def read() -> Generator[tuple[int, RowBatch]]:
            return _rows(moment, tables, scope, options)

        draft = _Draft(store, moment, tables, scope, label, options, started, Heads(store))
        return draft.publish(lambda tally: _frames(tables, read(), tally, options.frame_size, progress))


def snapshot_each_user(
    source: Source,
    store: Store,
    *,
    tiers: Sequence[Tier],
    label: str | None = None,
    options: ExportOptions | None = None,
    progress: Progress = silent,
) -> Iterator[model.Manifest]:
    """One snapshot for each user that occurs in any tier, all of one moment.

    Every tier is read once, sorted by uid, and the streams are merged: the cost does not grow with users times tables, and needs no
    index. Documents are written by several threads. Rows without a uid are in nobody's document; `progress.note` tells how many.
    """
    options = options or ExportOptions()
    started = time.monotonic()  # each of them takes from the moment until it is written: nobody saw it before
    with source.moment(tiers, vectors=options.vectors) as moment:
        tables = _Tables.of(moment, Scope.user(""))
        for relation in tables.relations:
            if orphans := moment.rows_without_owner(relation):
                name = relation.table.table.name
                progress.note(f"{orphans} rows of {name} have no {relation.table.uid_column}: only an all-user snapshot holds them")
        yield from _each_user(store, moment, tables, label, options, started, progress)


# --- reading -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tables:
    """The tables a scope's document holds, and the tiers it cannot hold because they do not say whose a row is."""

    relations: list[Relation]
    schema: model.Schema

    @classmethod
    def of(cls, moment: Moment, scope: Scope) -> _Tables:
        def holds(table: model.Table) -> bool:
            return scope.kind == "all" or bool(table.uid_column if scope.kind == "uid" else table.workspace_column)

        relations = [r for r in moment.catalog.relations if holds(r.table)]
        if not relations:
            raise NotFound(
                f"no tier has a column that says which {scope.kind} a row belongs to",
                hint="Name it with `uid = …` or `workspace = …` in coldstore.toml, or take everybody with --all.",
            )
        names = {r.table.table for r in relations}
        whole = moment.catalog.schema
        schema = msgspec.structs.replace(
            whole,
            tables=[r.table for r in relations],
            sequences=[s for s in whole.sequences if s.owner_table is None or s.owner_table in names],
            omitted=[r.table.tier for r in moment.catalog.relations if not holds(r.table)],
        )
        return cls(relations, schema)


def _rows(moment: Moment, tables: _Tables, scope: Scope, options: ExportOptions) -> Generator[tuple[int, RowBatch]]:
    """(number of the tier, batch) in the order of the document."""
    jobs: list[Job] = []
    for number, relation in enumerate(tables.relations):
        if scope == EVERYBODY:
            jobs += [(number, relation, chunk_query(relation, c, scope)) for c in chunks(relation, size=options.frame_size)]
        else:
            jobs.append((number, relation, scope_query(relation, scope)))
    readers = max(1, min(options.readers, len(jobs))) if scope == EVERYBODY else 1
    return read_batches(moment.connections(readers), jobs, batch_size=options.frame_size, check_utf8=moment.check_utf8)


@dataclass(slots=True)
class _Tally:
    """Rows and digest of each tier, in the order of the document."""

    rows: list[int]
    digests: list[int]

    def add(self, tier: int, batch: RowBatch) -> None:
        self.rows[tier] += batch.rows
        self.digests[tier] += batch.digest


def _frames(
    tables: _Tables, rows: Generator[tuple[int, RowBatch]], tally: _Tally, frame_size: int, progress: Progress
) -> Generator[PlainFrame]:
    """The document after its header. Closes `rows`: readers must not go on when the writer has stopped."""
    document = DocumentWriter([r.table.array for r in tables.relations], frame_size=frame_size)
    with closing(rows):
        by_tier = groupby(rows, key=itemgetter(0))
        ahead = next(by_tier, None)
        for number, relation in enumerate(tables.relations):
            progress.start(relation.table.tier)
            document.open()
            if ahead and ahead[0] == number:
                for _, batch in ahead[1]:
                    tally.add(number, batch)
                    progress.advance(rows=batch.rows, size=len(batch.body))
                    if frame := document.rows(batch):
                        yield frame
                ahead = next(by_tier, None)
            yield document.close()


# --- writing -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Draft:
    """A snapshot that is not committed yet."""

    store: Store
    moment: Moment
    tables: _Tables
    scope: Scope
    label: str | None
    options: ExportOptions
    started: float
    heads: Heads

    def publish(self, frames: Callable[[_Tally], Generator[PlainFrame]]) -> model.Manifest:
        """Write document, manifest and pointers under the first free millisecond. `frames` is asked anew for each try."""
        for timestamp in range(self.moment.timestamp, self.moment.timestamp + _CLASHES):
            try:
                manifest = self._write(timestamp, frames)
            except ObjectExists:
                continue
            point_latest(self.store, manifest)
            if self.label is not None and manifest.suspect is None:
                write_checkpoint(self.store, manifest)
            return manifest
        raise StoreError(f"{_CLASHES} snapshots of {self.scope} are dated after {rfc3339(self.moment.timestamp)}", op="snapshot")

    def _write(self, timestamp: int, frames: Callable[[_Tally], Generator[PlainFrame]]) -> model.Manifest:
        header = self._header(timestamp)
        previous = self.heads.before(self.scope, timestamp)
        data_key = DataKey.new(header.id) if self.options.rings else None
        sealing = data_key and self._sealing(data_key)  # first: a key ring that does not answer should cost no upload
        key = layout.document_key(header.id, self.options.codec.suffix + (SEALED if data_key else ""))
        retain = self._retention(timestamp)
        tally = _Tally([0] * len(self.tables.relations), [0] * len(self.tables.relations))
        sums = DocumentSums()
        codec = self.options.codec
        first = DocumentWriter([], frame_size=0).header(header)

        def stored_frame(numbered: tuple[int, PlainFrame]) -> StoredFrame:
            return encode(numbered[1], codec, data_key, number=numbered[0])

        with self.store.create(key, retain=retain) as out, closing(frames(tally)) as body:
            with closing(ordered_map(stored_frame, enumerate(chain([first], body)), workers=self._encoders())) as encoded:
                for stored in encoded:
                    for piece in stored.pieces:
                        out.write(piece)
                    sums.add(stored)
            self._refuse_nothing(tally)
        manifest = msgspec.structs.replace(
            self._manifest(header, key, tally, sums, data_key),
            suspect=self._suspicion(tally),
            previous=previous,
            sealing=sealing,
            retained=_retained(self.store, retain),
        )
        manifest = model.complete(manifest, signer=self.options.signer)
        try:
            with self.store.create(layout.manifest_key(header.id), retain=retain) as out:
                out.write(model.encode_manifest(manifest))
        except ObjectExists:
            with suppress(ObjectLocked):  # it stays, as an orphan, until its date
                self.store.delete(key)  # ours: a snapshot with another codec has the same id
            raise
        return manifest

    def _suspicion(self, tally: _Tally) -> str | None:
        if self.options.accept:
            return None
        now = {r.table.tier: rows for r, rows in zip(self.tables.relations, tally.rows, strict=True)}
        return suspicion(self.heads.rows(self.scope), now, max_fall=self.options.max_fall, everybody=self.scope == EVERYBODY)

    def _retention(self, timestamp: int) -> Retention | None:
        days = self.options.retain_days
        if days is None:
            return None
        until = datetime.fromtimestamp(timestamp // 1000 + 1, UTC) + timedelta(days=days)
        return Retention(until, self.options.retain_mode)

    def _encoders(self) -> int:
        return self.options.encoders if self.scope == EVERYBODY else 0

    def _refuse_nothing(self, tally: _Tally) -> None:
        if self.scope != EVERYBODY and not any(tally.rows) and not self.options.allow_empty:
            raise NotFound(
                f"there is not one row of {self.scope}",
                hint="Check the spelling, or the tiers' `uid` columns. --allow-empty takes an empty snapshot.",
            )

    def _header(self, timestamp: int) -> model.Header:
        return model.Header(
            format=model.FORMAT,
            snapshot_at=rfc3339(timestamp),
            uid=self.scope.uid,
            workspace=self.scope.workspace,
            id=layout.snapshot_id(self.scope, timestamp),
            kind="full",
            label=self.label,
            generator=f"coldstore {__version__}",
            database=self.moment.database,
            schema=self.tables.schema,
        )

    def _manifest(self, header: model.Header, key: str, tally: _Tally, sums: DocumentSums, data_key: DataKey | None) -> model.Manifest:
        def masked(digest: str, name: str) -> str:
            return digest if data_key is None else data_key.mask(digest, name)

        return model.Manifest(
            **msgspec.structs.asdict(header),
            document=key,
            codec=self.options.codec.name,
            bytes=sums.plain_bytes,
            stored_bytes=sums.stored_bytes,
            sha256=sums.stored_sha256,
            plain_sha256=masked(sums.plain_sha256, "plainSha256"),
            tiers=[
                model.TierSummary(
                    tier=r.table.tier,
                    array=r.table.array,
                    rows=rows,
                    digest=masked(format_digest(digest), f"digest {r.table.array}"),
                )
                for r, rows, digest in zip(self.tables.relations, tally.rows, tally.digests, strict=True)
            ],
            frames=sums.frames,
            seconds=round(time.monotonic() - self.started, 6),
        )

    def _sealing(self, data_key: DataKey) -> model.Sealing:
        wrapped = wrap_for_all(self.options.rings, data_key.secret, context=data_key.snapshot)
        return model.Sealing(cipher=CIPHER, nonce=data_key.nonce.hex(), check=data_key.check, keys=wrapped)


def _retained(store: Store, retain: Retention | None) -> model.Retained | None:
    if retain is None:
        return None
    mode = retain.mode if store.enforces_retention else "advisory"
    return model.Retained(until=rfc3339(int(retain.until.timestamp()) * 1000), mode=mode)


# --- each user ---------------------------------------------------------------------------------------------------------------------


def _each_user(
    store: Store, moment: Moment, tables: _Tables, label: str | None, options: ExportOptions, started: float, progress: Progress
) -> Iterator[model.Manifest]:
    connections = moment.connections(len(tables.relations))
    heads = Heads(store, everybody=True)
    sources = [lambda conn, r=r: _owned_batches(copy_owned_lines(conn, r, check_utf8=moment.check_utf8)) for r in tables.relations]
    with (
        read_ahead(connections, sources, depth=_OWNED_AHEAD) as streams,
        ThreadPoolExecutor(options.writers, thread_name_prefix="coldstore-user") as pool,
    ):
        writing: list[Future[model.Manifest]] = []
        try:
            for uid, rows in _merge(streams):
                draft = _Draft(store, moment, tables, Scope.user(uid), label, options, started, heads)
                small, rest = _take(rows, options.frame_size)
                if rest is None:
                    writing.append(pool.submit(_publish_user, draft, small, progress))
                else:
                    # Too much memory for one user to hold: it streams through here, and cannot be read twice.
                    once = chain(small, rest)
                    writing.append(_done(_publish_user(draft, once, progress)))
                while len(writing) > 2 * options.writers or (writing and writing[0].done()):
                    yield writing.pop(0).result()
            while writing:
                yield writing.pop(0).result()
        finally:
            for future in writing:
                future.cancel()


def _publish_user(draft: _Draft, rows: Iterable[tuple[int, bytes]], progress: Progress) -> model.Manifest:
    asked = False

    def frames(tally: _Tally) -> Generator[PlainFrame]:
        nonlocal asked
        if asked and not isinstance(rows, list):
            raise StoreError(
                f"another snapshot of {draft.scope} was written in the same millisecond",
                op="snapshot",
                hint="Run it again: so much memory of one user cannot be read twice in one run.",
            )
        asked = True
        grouped = ((tier, batch) for tier, group in groupby(rows, key=itemgetter(0)) for batch in batches((r for _, r in group), size=size))
        return _frames(draft.tables, grouped, tally, size, _Rows(progress))

    size = draft.options.frame_size
    return draft.publish(frames)


class _Rows:
    """Progress without steps: tiers of one user are too small to be named."""

    def __init__(self, inner: Progress) -> None:
        self.advance = inner.advance
        self.note = inner.note

    def start(self, what: str, *, total_bytes: int | None = None) -> None:
        pass


def _done(manifest: model.Manifest) -> Future[model.Manifest]:
    future: Future[model.Manifest] = Future()
    future.set_result(manifest)
    return future


def _owned_batches(rows: Iterator[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Rows in lists of about `_OWNED_BATCH` bytes: handing each over alone would cost more than reading it."""
    held: list[tuple[bytes, bytes]] = []
    size = 0
    for row in rows:
        held.append(row)
        size += len(row[1])
        if size >= _OWNED_BATCH:
            yield held
            held, size = [], 0
    if held:
        yield held


def _merge(streams: Sequence[Iterator[list[tuple[bytes, bytes]]]]) -> Iterator[tuple[str, Iterator[tuple[int, bytes]]]]:
    """(uid, its rows as (number of the tier, row), tier after tier) from streams that are each sorted by uid."""

    def tagged(number: int, stream: Iterator[list[tuple[bytes, bytes]]]) -> Iterator[tuple[bytes, int, bytes]]:
        for batch in stream:
            for uid, row in batch:
                yield uid, number, row

    merged = heapq.merge(*(tagged(n, s) for n, s in enumerate(streams)), key=itemgetter(0, 1))
    for uid, rows in groupby(merged, key=itemgetter(0)):
        yield uid.decode(), ((number, row) for _, number, row in rows)


def _take(rows: Iterator[tuple[int, bytes]], size: int) -> tuple[list[tuple[int, bytes]], Iterator[tuple[int, bytes]] | None]:
    """All rows and None, or the first `size` bytes of them and the rest."""
    taken = []
    held = 0
    for row in rows:
        taken.append(row)
        held += len(row[1])
        if held >= size:
            return taken, rows
    return taken, None
