"""What is different between two documents, or a document and the database: rows added, removed and changed, tier by tier.

    both documents → (which row, what is in it) of each row, hashed, in buckets on disk → buckets side by side → the rows that are shown

Memory does not depend on the documents: every row leaves forty bytes in a temporary file that has no name, and the hashes have a key that
is forgotten, so nothing of a sealed snapshot can be guessed from them. Rows with the same key are the same row; without a primary key a
row is what it holds, and equal ones are counted. A tier whose rows and digest both manifests give alike is not read at all. Only
the parts of a document that hold a row to be shown are read a second time.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

import msgspec

from coldstore.catalog import rfc3339
from coldstore.codec.pipeline import ordered_map
from coldstore.differ import RowChange, RowDiffer, RowReader
from coldstore.document import model
from coldstore.documents import Document, Owner, Part
from coldstore.errors import ConfigError, CorruptDocument, NotFound
from coldstore.matching import Matches, Record, Spool
from coldstore.postgres.live import LiveTables, live_tables
from coldstore.progress import Progress, silent
from coldstore.tiers import EVERYBODY, Scope

LIVE = "live"

_READERS = 2


class Side(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One of the two: a snapshot's id, or `live`."""

    id: str
    snapshot_at: str | None


class TierDifference(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`columns_added`, `columns_removed`: those that only one side has, which are not compared. `rows`: as many as were asked for."""

    tier: str
    table: str
    added: int
    removed: int
    changed: int
    unchanged: int
    columns_added: list[str]
    columns_removed: list[str]
    rows: list[RowChange]

    @property
    def equal(self) -> bool:
        return not (self.added or self.removed or self.changed)


class Difference(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What it takes from `before` to `after`."""

    before: Side
    after: Side
    uid: str | None
    workspace: str | None
    equal: bool
    tiers: list[TierDifference]
    notes: list[str]


# --- the database as a document ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LiveDocument:
    """The database at one moment, in the place of a document."""

    tables: LiveTables
    schema: model.Schema | None
    name: str = LIVE
    tiers: list[model.TierSummary] | None = None
    size: int | None = None

    @property
    def scope(self) -> Scope:
        return self.tables.scope

    @property
    def snapshot_at(self) -> str | None:
        return rfc3339(self.tables.timestamp)

    def parts(self, wanted: Iterable[str], only: Owner | None = None) -> Generator[Part]:  # noqa: ARG002 — its rows are the scope's already
        for array in wanted:
            for piece in self.tables.pieces(array):
                yield Part(array, 0, lambda a=array, p=piece: map(bytes, self.tables.lines(a, p)))  # type: ignore[misc]


def between(
    before: Document | None,
    after: Document | None,
    *,
    database: Callable[[], str],
    scope: Scope = EVERYBODY,
    only: Collection[str] = (),
    limit: int | None = None,
    progress: Progress = silent,
) -> Difference:
    """As `compare`; one of the two may be None, which is the database at the URL that `database` gives, as it is now. Its tables are those
    that the other one describes."""
    known = before or after
    if known is None:
        raise ConfigError("the database is compared with itself", hint="One of the two must be a snapshot.")
    if before is not None and after is not None:
        return compare(before, after, scope=scope, only=only, limit=limit, progress=progress)
    scope = common_scope(known.scope, EVERYBODY, scope)
    _require(known, scope)
    _refuse_unknown(only, {t.tier for t in _tables(known)})
    tables = [t for t in _tables(known) if (not only or t.tier in only) and _says_whose(t, scope)]
    with live_tables(database(), tables, scope) as found:
        live = LiveDocument(found, model.Schema(tables=[r.table for r in found.relations.values()]))
        return compare(before or live, after or live, scope=scope, only=only, limit=limit, progress=progress)


def _tables(document: Document) -> list[model.Table]:
    if document.schema is None:
        raise ConfigError(f"{document.name} does not describe its tables, so its rows cannot be compared")
    return document.schema.tables


def _says_whose(table: model.Table, scope: Scope) -> bool:
    return scope == EVERYBODY or bool(table.uid_column if scope.kind == "uid" else table.workspace_column)


# --- comparing -----------------------------------------------------------------------------------------------------------------------


def common_scope(before: Scope, after: Scope, wanted: Scope = EVERYBODY) -> Scope:
    """Whose memory both have: the wanted one's, or the narrower of the two."""
    if wanted != EVERYBODY:
        return wanted
    narrow = {before, after} - {EVERYBODY}
    if len(narrow) > 1:
        raise NotFound(f"one is of {before}, the other of {after}: they have nothing in common", hint="Compare two of the same user.")
    return next(iter(narrow), EVERYBODY)


def compare(
    before: Document,
    after: Document,
    *,
    scope: Scope = EVERYBODY,
    only: Collection[str] = (),
    limit: int | None = None,
    progress: Progress = silent,
) -> Difference:
    """`only`: names of tiers, all when empty. `limit`: rows shown of each kind of each tier, None for all. Raises `NotFound` when a
    document has not the memory of `scope`, and a `DocumentError`."""
    scope = common_scope(before.scope, after.scope, scope)
    for document in (before, after):
        _require(document, scope)
    old, new = ({t.tier: t for t in _tables(d)} for d in (before, after))
    _refuse_unknown(only, old.keys() | new.keys())
    notes = [*_notes(before), *_notes(after)]
    tiers = []
    for tier in [t for t in old | new if not only or t in only]:
        if tier not in old or tier not in new:
            notes.append(f"{tier} is in {(before if tier in old else after).name} alone, and was not compared")
        elif not (_says_whose(old[tier], scope) and _says_whose(new[tier], scope)):
            notes.append(f"{tier}: no column says which {scope.kind} a row belongs to, so it was not compared")
        else:
            tiers.append(_Comparison.of((before, old[tier]), (after, new[tier]), scope).result(limit, progress))
    if not tiers:
        raise NotFound(f"{before.name} and {after.name} have no tier in common", hint="; ".join(notes) or None)
    return Difference(
        before=Side(id=before.name, snapshot_at=before.snapshot_at),
        after=Side(id=after.name, snapshot_at=after.snapshot_at),
        uid=scope.uid,
        workspace=scope.workspace,
        equal=all(t.equal for t in tiers),
        tiers=tiers,
        notes=notes,
    )


def _require(document: Document, scope: Scope) -> None:
    if document.scope not in {EVERYBODY, scope}:
        raise NotFound(f"{document.name} holds the memory of {document.scope}, not of {scope}", hint="Use an all-user snapshot.")


def _refuse_unknown(wanted: Iterable[str], there: Collection[str]) -> None:
    if unknown := sorted(set(wanted) - set(there)):
        raise NotFound(f"neither has a tier {unknown[0]!r}", hint=f"There are {', '.join(sorted(there))}.")


def _notes(document: Document) -> list[str]:
    return document.tables.notes if isinstance(document, LiveDocument) else []


@dataclass(frozen=True, slots=True)
class _Half:
    """One tier of one document."""

    document: Document
    table: model.Table
    owner: Owner | None
    reader: RowReader
    secret: bytes

    def parts(self) -> Iterator[Part]:
        with closing(self.document.parts([self.table.array], self.owner)) as found:
            yield from found

    def identity(self, row: bytes) -> tuple[bytes, bytes]:
        key, content = self.reader.identity(row)
        return self._hash(key), self._hash(content)

    def _hash(self, data: bytes) -> bytes:
        return blake2b(data, digest_size=16, key=self.secret).digest()

    def records(self, numbered: tuple[int, Part]) -> Iterator[Record]:
        number, part = numbered
        for n, row in enumerate(map(bytes, part.rows())):
            yield Record(*self.identity(row), number, n)

    def spool(self, spool: Spool, progress: Progress) -> None:
        found: Generator[Iterable[Record]]
        if isinstance(self.document, LiveDocument):  # a connection answers one at a time, and a whole table may be one part
            found = (self.records(numbered) for numbered in enumerate(self.parts()))
        else:
            found = ordered_map(lambda numbered: list(self.records(numbered)), enumerate(self.parts()), workers=_READERS)
        with closing(found):
            for records in found:
                rows = 0
                for rows, record in enumerate(records, 1):  # noqa: B007
                    spool.add(record)
                progress.advance(rows=rows)

    def rows(self, wanted: Iterable[Record]) -> dict[bytes, bytes]:
        """Content's hash → the row, of the wanted ones."""
        by_part: dict[int, set[bytes]] = defaultdict(set)
        for record in wanted:
            by_part[record.part].add(record.content)
        found: dict[bytes, bytes] = {}
        missing = {content for contents in by_part.values() for content in contents}
        for number, part in enumerate(self.parts() if missing else ()):
            for row in map(bytes, part.rows()) if number in by_part else ():
                content = self.identity(row)[1]
                if content in by_part[number]:
                    found[content] = row
            if missing <= found.keys():
                return found
        if missing:
            raise CorruptDocument(f"{self.document.name} read differently the second time", key=self.document.name)
        return found


@dataclass(frozen=True, slots=True)
class _Comparison:
    differ: RowDiffer
    before: _Half
    after: _Half
    same: int | None

    @classmethod
    def of(cls, before: tuple[Document, model.Table], after: tuple[Document, model.Table], scope: Scope) -> Self:
        differ = RowDiffer(before[1], after[1])
        secret = secrets.token_bytes(16)

        def half(document: Document, table: model.Table, reader: RowReader) -> _Half:
            owner = None if document.scope == scope else Owner.of(scope, [table])
            return _Half(document, table, owner, reader, secret)

        first, second = half(*before, differ.before), half(*after, differ.after)
        return cls(differ, first, second, _same(first, second) if differ.alike else None)

    def result(self, limit: int | None, progress: Progress) -> TierDifference:
        shown = Matches(limit)
        if self.same is None:
            self._match(shown, progress)
        return TierDifference(
            tier=self.after.table.tier,
            table=str(self.after.table.table),
            added=shown.counts["added"],
            removed=shown.counts["removed"],
            changed=shown.counts["changed"],
            unchanged=shown.unchanged if self.same is None else self.same,
            columns_added=self.differ.added,
            columns_removed=self.differ.removed,
            rows=list(self._rows(shown)),
        )

    def _match(self, shown: Matches, progress: Progress) -> None:
        with Spool() as old, Spool() as new:
            for half, spool in ((self.before, old), (self.after, new)):
                progress.start(f"{half.table.tier} of {half.document.name}")
                half.spool(spool, progress)
            for number in range(Spool.BUCKETS):
                shown.take(old.bucket(number), new.bucket(number))

    def _rows(self, shown: Matches) -> Iterator[RowChange]:
        pairs = shown.chosen()
        before = self.before.rows(old for old, _ in pairs if old is not None)
        after = self.after.rows(new for _, new in pairs if new is not None)
        for old, new in pairs:
            if old is None:
                assert new is not None  # noqa: S101 — one of the two is there
                yield self.differ.added_row(after[new.content])
            elif new is None:
                yield self.differ.removed_row(before[old.content])
            else:
                yield self.differ.changed(before[old.content], after[new.content])


def _same(before: _Half, after: _Half) -> int | None:
    """How many rows the tier has in both, when both manifests say that they are the same."""
    told = [
        next(((t.rows, t.digest) for t in half.document.tiers or () if t.array == half.table.array), None)
        for half in (before, after)
        if half.owner is None
    ]
    return told[0][0] if len(told) == 2 and told[0] is not None and told[0] == told[1] else None
