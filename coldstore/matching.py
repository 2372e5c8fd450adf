"""Which row of one document is which of another: records of rows, kept in buckets on disk, matched bucket by bucket.

Memory is that of the largest bucket and of what is asked for, not of the documents.
"""

from __future__ import annotations

import struct
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from operator import attrgetter
from typing import BinaryIO, Literal, NamedTuple, Self

from coldstore.errors import ColdStoreError

_HELD = 16 << 20  # bytes of records in memory before they go to disk


class Record(NamedTuple):
    """A row, as far as comparing needs it: which one and what is in it, both as 16 bytes of a hash, and where it stands."""

    key: bytes
    content: bytes
    part: int
    number: int


Kind = Literal["changed", "removed", "added"]
#: A row before and after; None where it is not.
Pair = tuple[Record | None, Record | None]


@dataclass(slots=True)
class Matches:
    """Counts of what differs, and of each kind the first `limit` pairs in the order of the documents."""

    limit: int | None = None
    unchanged: int = 0
    counts: dict[Kind, int] = field(default_factory=lambda: {"changed": 0, "removed": 0, "added": 0})
    _pairs: dict[Kind, list[Pair]] = field(default_factory=lambda: {"changed": [], "removed": [], "added": []})

    def take(self, before: Iterable[Record], after: Iterable[Record]) -> None:
        """All rows of both sides whose keys may be equal."""
        old, new = _by(before, "key"), _by(after, "key")
        for key, left in old.items():
            right = new.pop(key, [])
            if len(left) == len(right) == 1 and left[0].content == right[0].content:
                self.unchanged += 1
            else:
                self._unequal(left, right)
        for right in new.values():
            self._unequal([], right)

    def _unequal(self, left: list[Record], right: list[Record]) -> None:
        """Rows with one key. There may be several on a side where nothing enforces it; those with the same content go together first."""
        there = _by(right, "content")
        lonely = []
        for record in left:
            if twins := there.get(record.content):
                twins.pop()
                self.unchanged += 1
            else:
                lonely.append(record)
        for pair in zip_longest(lonely, (record for records in there.values() for record in records)):
            self._add("added" if pair[0] is None else "removed" if pair[1] is None else "changed", pair)

    def _add(self, kind: Kind, pair: Pair) -> None:
        self.counts[kind] += 1
        pairs = self._pairs[kind]
        pairs.append(pair)
        if self.limit is not None and len(pairs) > 2 * self.limit + 100:
            pairs[:] = self._first(pairs)

    def chosen(self) -> list[Pair]:
        """Changed ones, then removed, then added."""
        return [pair for pairs in self._pairs.values() for pair in self._first(pairs)]

    def _first(self, pairs: list[Pair]) -> list[Pair]:
        return sorted(pairs, key=_place)[: self.limit]


def _place(pair: Pair) -> tuple[int, int]:
    record = pair[0] if pair[1] is None else pair[1]
    assert record is not None  # noqa: S101 — one of the two is there
    return record.part, record.number


def _by(records: Iterable[Record], what: Literal["key", "content"]) -> dict[bytes, list[Record]]:
    found: dict[bytes, list[Record]] = defaultdict(list)
    of = attrgetter(what)
    for record in records:
        found[of(record)].append(record)
    return found


class Spool:
    """Records in buckets by their key; in memory as long as they are few, else in a file that is gone when this is closed."""

    BUCKETS = 256
    _FORM = struct.Struct(">16s16sII")

    def __init__(self, *, held: int = _HELD) -> None:
        self._buckets = [bytearray() for _ in range(self.BUCKETS)]
        self._pieces: list[list[tuple[int, int]]] = [[] for _ in range(self.BUCKETS)]
        self._limit = held
        self._size = 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, record: Record) -> None:
        self._buckets[record.key[0]] += self._FORM.pack(*record)
        self._size += self._FORM.size
        if self._size >= self._limit:
            _or_say_where(self._flush)

    def bucket(self, number: int) -> Iterator[Record]:
        for start, length in self._pieces[number]:
            assert self._file is not None  # noqa: S101 — who wrote the piece has opened it
            self._file.seek(start)
            yield from map(Record._make, self._FORM.iter_unpack(self._file.read(length)))
        yield from map(Record._make, self._FORM.iter_unpack(self._buckets[number]))

    def _flush(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="coldstore-")  # noqa: SIM115 — closed with the spool
        for bucket, pieces in zip(self._buckets, self._pieces, strict=True):
            if bucket:
                pieces.append((self._file.tell(), len(bucket)))
                self._file.write(bucket)
                bucket.clear()
        self._file.flush()
        self._size = 0


def _or_say_where(work: Callable[[], None]) -> None:
    try:
        work()
    except OSError as exc:
        raise ColdStoreError(
            f"the temporary folder {tempfile.gettempdir()} cannot be written to: {exc.strerror}",
            hint="Set TMPDIR to a folder with more room: comparing takes 40 bytes of it for each row.",
        ) from exc
