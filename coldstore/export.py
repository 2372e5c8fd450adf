"""The way out: one moment of the database into one snapshot per scope.

    tiers → one consistent moment → chunks of rows → document lines → frames → codec, seal → store → manifest → pointers

`restore.py` is the same steps the other way round. Here are those up to the frames; `commit.py`, which others share, has the rest. Nothing
depends on the size of the data but the time: readers run ahead of the writer by a bounded number of batches, and frames are written in the
order in which they stand in the document.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, groupby
from operator import itemgetter

import msgspec

from coldstore import __version__
from coldstore.catalog import Heads, rfc3339, scope_of
from coldstore.commit import Draft, Tally, WriteOptions
from coldstore.document import model
from coldstore.document.writer import DocumentWriter, PlainFrame, RowBatch, batches
from coldstore.errors import ColdStoreError, KeyRingError, NotFound, StoreError
from coldstore.postgres import capture
from coldstore.postgres.introspect import Relation
from coldstore.postgres.parallel import read_ahead, read_batches
from coldstore.postgres.read import chunk_query, chunks, copy_owned_lines, scope_query
from coldstore.postgres.source import Moment, Source
from coldstore.progress import Progress, silent
from coldstore.storage import layout
from coldstore.storage.store import Store
from coldstore.tiers import EVERYBODY, Scope, Tier

_OWNED_BATCH = 256 << 10  # bytes of rows that a sorted stream hands over at once
_OWNED_AHEAD = 8
#: What one user's snapshot may fail by and leave the others'. Whatever concerns reading concerns all of them.
_ONES_OWN = (StoreError, KeyRingError)
_HOPELESS = 20  # failures in a row, after which it is not the users


@dataclass(frozen=True, slots=True)
class ExportOptions(WriteOptions):
    """How to read, and how to write. `readers`: connections for everybody's memory. `vectors`: text or hex. `writers`: documents written
    at once by `snapshot_each_user`. `allow_empty`: a scope without any row is no error. `keep_days`: how long an incremental snapshot may
    build on one that nobody has built on yet."""

    vectors: str = "text"
    readers: int = 2
    writers: int = 4
    allow_empty: bool = False
    keep_days: int = 7


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
        tables = Tables.of(moment, scope)

        def read() -> Generator[tuple[int, RowBatch]]:
            return rows_of(moment, tables, scope, options)

        draft = _draft(store, moment, tables, scope, label, options, started, Heads(store))
        manifest = draft.publish(lambda tally: frames(tables.arrays, read(), tally, options.frame_size, progress))
    remember(source, heads_of(manifest), options, progress)
    return manifest


def snapshot_each_user(
    source: Source,
    store: Store,
    *,
    tiers: Sequence[Tier],
    label: str | None = None,
    options: ExportOptions | None = None,
    failed: Callable[[str, ColdStoreError], None] | None = None,
    progress: Progress = silent,
) -> Iterator[model.Manifest]:
    """One snapshot for each user that occurs in any tier, all of one moment. `failed` is told of a user whose snapshot cannot be written,
    and the others are; without it, or when too many fail in a row, that error is raised.

    Every tier is read once, sorted by uid, and the streams are merged: the cost does not grow with users times tables, and needs no
    index. Documents are written by several threads. Rows without a uid are in nobody's document; `progress.note` tells how many.
    """
    options = options or ExportOptions()
    started = time.monotonic()  # each of them takes from the moment until it is written: nobody saw it before
    with source.moment(tiers, vectors=options.vectors, readers=len(tiers)) as moment:
        tables = Tables.of(moment, Scope.user(""))
        for relation in tables.relations:
            if orphans := moment.rows_without_owner(relation):
                name = relation.table.table.name
                progress.note(f"{orphans} rows of {name} have no {relation.table.uid_column}: only an all-user snapshot holds them")
        written: list[tuple[Scope, capture.Head]] = []
        for manifest in _each_user(store, moment, tables, label, options, started, failed, progress):
            written += heads_of(manifest)
            yield manifest
    remember(source, written, options, progress)


def heads_of(manifest: model.Manifest) -> list[tuple[Scope, capture.Head]]:
    """What an incremental snapshot may build on: nothing, where changes are not recorded or the snapshot is suspect."""
    database = manifest.database
    if manifest.suspect is not None or database is None or database.capture is None:
        return []
    return [(scope_of(manifest), capture.Head(manifest.id, manifest.checksum, database.snapshot))]


def remember(source: Source, heads: Sequence[tuple[Scope, capture.Head]], options: ExportOptions, progress: Progress) -> None:
    """Let the database know what was written, and forget the changes that nobody needs any more. What fails here is worth a note: the
    snapshots are written."""
    if not heads:
        return
    try:
        with source.connection() as conn:
            if not capture.set_heads(conn, heads):
                progress.note(
                    "while this was written, changes were forgotten that an incremental snapshot would need: it will ask for a full one"
                )
            if source.due_to_clean():
                capture.clean(conn, keep=timedelta(days=options.keep_days))
    except ColdStoreError as exc:
        progress.note(f"an incremental snapshot will ask for a full one: the database does not know of this one: {exc}")


# --- reading -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables a scope's document holds, and the tiers it cannot hold because they do not say whose a row is."""

    relations: list[Relation]
    schema: model.Schema

    @classmethod
    def of(cls, moment: Moment, scope: Scope) -> Tables:
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

    @property
    def arrays(self) -> list[tuple[str, str]]:
        """(tier, array) in the order of the document."""
        return [(r.table.tier, r.table.array) for r in self.relations]


def rows_of(moment: Moment, tables: Tables, scope: Scope, options: ExportOptions) -> Generator[tuple[int, RowBatch]]:
    """(number of the tier, batch) in the order of the document."""
    if scope != EVERYBODY:
        jobs = ((number, relation, scope_query(relation, scope)) for number, relation in enumerate(tables.relations))
        return read_batches(moment.connections(1), jobs, batch_size=options.frame_size, check_utf8=moment.check_utf8)
    # The queries are made one by one: thousands of them would take more memory than the rows in flight.
    parts = [(number, r, chunk) for number, r in enumerate(tables.relations) for chunk in chunks(r, size=options.frame_size)]
    connections = moment.connections(max(1, min(options.readers, len(parts))))
    jobs = ((number, relation, chunk_query(relation, chunk, scope)) for number, relation, chunk in parts)
    return read_batches(connections, jobs, batch_size=options.frame_size, check_utf8=moment.check_utf8)


def frames(
    arrays: Sequence[tuple[str, str]], rows: Generator[tuple[int, RowBatch]], tally: Tally, frame_size: int, progress: Progress
) -> Generator[PlainFrame]:
    """The document after its header. Closes `rows`: readers must not go on when the writer has stopped."""
    document = DocumentWriter([array for _, array in arrays], frame_size=frame_size)
    with closing(rows):
        by_tier = groupby(rows, key=itemgetter(0))
        ahead = next(by_tier, None)
        for number, (tier, _) in enumerate(arrays):
            progress.start(tier)
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


def _draft(
    store: Store, moment: Moment, tables: Tables, scope: Scope, label: str | None, options: ExportOptions, started: float, heads: Heads
) -> Draft:
    def refuse_nothing(tally: Tally) -> None:
        if scope != EVERYBODY and not any(tally.rows) and not options.allow_empty:
            raise NotFound(
                f"there is not one row of {scope}",
                hint="Check the spelling, or the tiers' `uid` columns. --allow-empty takes an empty snapshot.",
            )

    header = header_of(moment, tables, scope, label)
    return Draft(store, header, moment.timestamp, tables.arrays, options, started, heads, refuse_nothing)


def header_of(moment: Moment, tables: Tables, scope: Scope, label: str | None) -> model.Header:
    """Of a full snapshot."""
    return model.Header(
        format=model.FORMAT,
        snapshot_at=rfc3339(moment.timestamp),
        uid=scope.uid,
        workspace=scope.workspace,
        id=layout.snapshot_id(scope, moment.timestamp),
        kind="full",
        label=label,
        generator=f"coldstore {__version__}",
        database=moment.database,
        schema=tables.schema,
    )


# --- each user ---------------------------------------------------------------------------------------------------------------------


def _each_user(
    store: Store,
    moment: Moment,
    tables: Tables,
    label: str | None,
    options: ExportOptions,
    started: float,
    failed: Callable[[str, ColdStoreError], None] | None,
    progress: Progress,
) -> Iterator[model.Manifest]:
    connections = moment.connections(len(tables.relations))
    heads = Heads(store, everybody=True)
    sources = [lambda conn, r=r: _owned_batches(copy_owned_lines(conn, r, check_utf8=moment.check_utf8)) for r in tables.relations]
    with (
        read_ahead(connections, sources, depth=_OWNED_AHEAD) as streams,
        ThreadPoolExecutor(options.writers, thread_name_prefix="coldstore-user") as pool,
    ):
        writing: list[tuple[str, Future[model.Manifest]]] = []
        in_a_row = 0

        def settled() -> Iterator[model.Manifest]:
            nonlocal in_a_row
            uid, future = writing.pop(0)
            try:
                manifest = future.result()
            except _ONES_OWN as exc:
                in_a_row += 1
                if failed is None or in_a_row >= _HOPELESS:
                    raise
                failed(uid, exc)
            else:
                in_a_row = 0
                yield manifest

        try:
            for uid, rows in _merge(streams):
                draft = _draft(store, moment, tables, Scope.user(uid), label, options, started, heads)
                small, rest = _take(rows, options.frame_size)
                if rest is None:
                    writing.append((uid, pool.submit(_publish_user, draft, tables, small, progress)))
                else:
                    # Too much memory for one user to hold: it streams through here, and cannot be read twice.
                    once = chain(small, rest)
                    writing.append((uid, _here(_publish_user, draft, tables, once, progress)))
                while len(writing) > 2 * options.writers or (writing and writing[0][1].done()):
                    yield from settled()
            while writing:
                yield from settled()
        finally:
            for _, future in writing:
                future.cancel()


def _publish_user(draft: Draft, tables: Tables, rows: Iterable[tuple[int, bytes]], progress: Progress) -> model.Manifest:
    asked = False

    def anew(tally: Tally) -> Generator[PlainFrame]:
        nonlocal asked
        if asked and not isinstance(rows, list):
            raise StoreError(
                f"another snapshot of {draft.scope} was written in the same millisecond",
                op="snapshot",
                hint="Run it again: so much memory of one user cannot be read twice in one run.",
            )
        asked = True
        grouped = ((tier, batch) for tier, group in groupby(rows, key=itemgetter(0)) for batch in batches((r for _, r in group), size=size))
        return frames(tables.arrays, grouped, tally, size, _Rows(progress))

    size = draft.options.frame_size
    return draft.publish(anew)


class _Rows:
    """Progress without steps: tiers of one user are too small to be named."""

    def __init__(self, inner: Progress) -> None:
        self.advance = inner.advance
        self.note = inner.note

    def start(self, what: str, *, total_bytes: int | None = None) -> None:
        pass


def _here(write: Callable[..., model.Manifest], *args: object) -> Future[model.Manifest]:
    """As the pool's `submit`, in this thread."""
    future: Future[model.Manifest] = Future()
    try:
        future.set_result(write(*args))
    except _ONES_OWN as exc:
        future.set_exception(exc)
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
