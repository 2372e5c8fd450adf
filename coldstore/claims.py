"""Whether chains come to what their links claim, worked out while the documents are read once each, the newest first.

Of an incremental the keys that it names are kept, with the digests of their rows. By the time the full snapshot is read, at the end, it is
known which of its rows somebody named, and their digests alone are kept. Then every link is carried out on sums: what a row was goes, what
it is comes. So a chain of hundreds of links costs one reading of each, and not one of the full snapshot for each link.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from coldstore.codec.digest import MODULUS, format_digest, row_digest
from coldstore.document import model
from coldstore.document.keys import Deletions, KeyReader
from coldstore.document.reader import frame_rows
from coldstore.documents import StoredDocument
from coldstore.errors import ChainBroken

#: key → digest of its row, None where there is none
_Rows = dict[bytes, int | None]


@dataclass(slots=True)
class _Link:
    """What an incremental says."""

    id: str
    resets: list[str]
    state: list[model.TierSummary] | None
    arrays: dict[str, _Rows] = field(default_factory=lambda: defaultdict(dict))
    problem: str | None = None

    def name(self, array: str, key: bytes, digest: int | None) -> None:
        if key in self.arrays[array]:
            self.problem = f"it names a key of {array} twice"
        self.arrays[array][key] = digest


class Reading:
    """One document, frame by frame."""

    def __init__(self, document: StoredDocument, link: _Link | None, wanted: dict[str, _Rows]) -> None:
        """`link` is filled for an incremental; `wanted` has the keys of a full one whose rows somebody named."""
        manifest = document.manifest
        self._link = link
        self.wanted = wanted
        self._readers: dict[str, KeyReader] = {}
        for table in manifest.schema.tables:
            try:
                self._readers[table.array] = KeyReader(table, manifest.schema.types)
            except ChainBroken:
                continue
        self._deletion = Deletions(self._readers)

    def add(self, array: str, plain: bytes) -> None:
        """A frame of rows."""
        if self._link is not None:
            self._name(self._link, array, plain)
        elif wanted := self.wanted.get(array):
            key = self._readers[array]
            for row in frame_rows(plain):
                if (found := key(row)) in wanted:
                    wanted[found] = row_digest(row)

    def _name(self, link: _Link, array: str, plain: bytes) -> None:
        for row in frame_rows(plain):
            if array == model.DELETED:
                if (found := self._deletion(row)) is not None:
                    link.name(*found, None)
            elif array not in self._readers:
                link.problem = f"{array} has no primary key, so nothing can be built on it"
            else:
                link.name(array, self._readers[array](row), row_digest(row))


class Claims:
    """Of all documents that are read."""

    def __init__(self) -> None:
        self._children: dict[str, list[_Link]] = defaultdict(list)

    def read(self, document: StoredDocument) -> Reading | None:
        """For an incremental, and for a full one on which one that was read is built. None for what needs no second look."""
        manifest = document.manifest
        if manifest.kind == model.INCREMENTAL and manifest.parent is not None:
            link = _Link(manifest.id, manifest.resets, document.state)
            self._children[manifest.parent.id].append(link)
            return Reading(document, link, {})
        links = list(self._below(manifest.id))
        if manifest.kind != "full" or not links:
            return None
        wanted: dict[str, _Rows] = defaultdict(dict)
        for link in links:
            for array, keys in link.arrays.items():
                wanted[array] |= dict.fromkeys(keys)
        return Reading(document, None, wanted)

    def judge(self, document: StoredDocument, reading: Reading | None) -> Iterator[tuple[str, str]]:
        """(id, problem) of the incrementals that are built on a full snapshot, when that was read and is whole."""
        if reading is None or document.manifest.kind != "full":
            return
        totals = {t.array: (t.rows, int(t.digest, 16)) for t in document.tiers}
        sums = _Sums(totals, reading.wanted, _unclear(document.manifest))
        stack: list[tuple[_Link, list[_Before] | None]] = [(link, None) for link in self._children.pop(document.name, [])]
        while stack:
            link, before = stack.pop()
            if before is not None:
                sums.undo(before)
                continue
            stack.append((link, sums.carry_out(link)))
            yield from ((link.id, problem) for problem in sums.objections(link))
            stack += [(child, None) for child in self._children.pop(link.id, [])]

    def unjudged(self) -> Iterator[str]:
        """Ids of incrementals whose full snapshot was not read, or not whole, although they claim something."""
        return (link.id for links in self._children.values() for link in links if link.state is not None)

    def _below(self, snapshot: str) -> Iterator[_Link]:
        waiting = [snapshot]
        while waiting:
            links = self._children.get(waiting.pop(), [])
            yield from links
            waiting += [link.id for link in links]


def _unclear(manifest: model.Manifest) -> set[str]:
    """Arrays whose keys only PostgreSQL can tell apart."""
    keyed = (t for t in manifest.schema.tables if t.key)
    return {t.array for t in keyed if not KeyReader(t, manifest.schema.types).exact}


@dataclass(frozen=True, slots=True)
class _Before:
    """What one array was: the rows that were known, those of them that became others, and the totals."""

    array: str
    rows: _Rows
    changed: _Rows
    total: tuple[int, int]


class _Sums:
    """Rows and digest of each array, and the digests of those rows that links name."""

    def __init__(self, totals: dict[str, tuple[int, int]], rows: dict[str, _Rows], unclear: set[str]) -> None:
        self._totals = totals
        self._rows = rows
        self._unclear = unclear

    def carry_out(self, link: _Link) -> list[_Before]:
        """Returns what `undo` takes, for another link that is built on the same one."""
        return [self._change(link, array) for array in sorted({*link.arrays, *link.resets} & self._totals.keys())]

    def _change(self, link: _Link, array: str) -> _Before:
        count, digest = self._totals[array]
        rows, named = self._rows.setdefault(array, {}), link.arrays.get(array, {})
        if array in link.resets:
            before = _Before(array, rows, {}, (count, digest))
            rows, count, digest = {}, 0, 0
        else:
            before = _Before(array, rows, {key: rows.get(key) for key in named}, (count, digest))
        for key, now in named.items():
            was = rows.get(key)
            count += (now is not None) - (was is not None)
            digest += (now or 0) - (was or 0)
            rows[key] = now
        self._rows[array], self._totals[array] = rows, (count, digest % MODULUS)
        return before

    def undo(self, before: list[_Before]) -> None:
        for one in before:
            one.rows.update(one.changed)
            self._rows[one.array], self._totals[one.array] = one.rows, one.total

    def objections(self, link: _Link) -> Iterator[str]:
        if link.problem is not None:
            yield link.problem
        for tier in link.state or []:
            count, digest = self._totals.get(tier.array, (0, 0))
            if tier.array not in self._unclear and (tier.rows, tier.digest) != (count, format_digest(digest)):
                yield f"{tier.tier}: with all it is built on it comes to {count} rows, or other ones, where it claims {tier.rows}"
