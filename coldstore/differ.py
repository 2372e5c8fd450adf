"""Two rows, or two JSON values, told apart exactly. Pure.

Bytes are compared, never parsed numbers: `1.0` and `1.00` differ, and no digit is lost. Rows are compared by the columns that both tables
have; objects and arrays inside a column by path. In an array, elements that moved are recognised by their content, so one that was taken
out of the front is one removal and not a change of all that follow. An array of numbers is one value: a vector's thousand digits mean
nothing on their own. So is what cannot be taken apart without a doubt: an object that has a name twice, or a value nested too deeply.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import chain, zip_longest
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from coldstore.document import model
from coldstore.document.keys import writing
from coldstore.document.values import splitter
from coldstore.errors import CorruptDocument

Path = tuple[str | int, ...]

_DEEPEST = 100
_MOST_PAIRS = 1 << 20  # of elements of two arrays; beyond, they are paired by their index
_MOST_LIKELY = 10_000  # the same, of those that are in one alone
_NUMBER = frozenset(b"-0123456789")
_decode = msgspec.json.decode


# --- values ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where two JSON values differ: the path in the one before and in the one after, and what stands there. None where nothing does."""

    was: Path | None
    path: Path | None
    before: bytes | None
    after: bytes | None


def places(before: bytes, after: bytes) -> list[Place]:
    """Every place in which two JSON texts differ, in the order of the one before; none only if they are the same bytes. What is not
    named is equal in both, but for blanks and the order of names."""
    if before == after:
        return []
    found: list[Place] = []
    with suppress(RecursionError):
        if not (_ambiguous(before) or _ambiguous(after)):
            found = list(_compare(_compact(before), _compact(after), (), ()))
    return found or [Place((), (), before, after)]


def _compact(text: bytes) -> bytes:
    """Without blanks, which a value of type json may have anywhere."""
    return msgspec.json.format(text, indent=-1) if text[:1] in {b"{", b"["} else text


def _compare(before: bytes, after: bytes, was: Path, path: Path) -> Iterator[Place]:
    if before == after:
        return
    inner: Iterator[Place] = iter(())
    kinds = before[:1] + after[:1]
    if len(path) < _DEEPEST and kinds == b"{{":
        inner = _members(_decode(before, type=dict[str, Raw]), _decode(after, type=dict[str, Raw]), was, path)
    elif len(path) < _DEEPEST and kinds == b"[[":
        inner = _elements([*map(bytes, _decode(before, type=list[Raw]))], [*map(bytes, _decode(after, type=list[Raw]))], was, path)
    first = next(inner, None)
    if first is None:
        yield Place(was, path, before, after)
    else:
        yield first
        yield from inner


def _members(before: dict[str, Any], after: dict[str, Any], was: Path, path: Path) -> Iterator[Place]:
    for name, value in before.items():
        if name in after:
            yield from _compare(bytes(value), bytes(after[name]), (*was, name), (*path, name))
        else:
            yield Place((*was, name), None, bytes(value), None)
    for name in (n for n in after if n not in before):
        yield Place(None, (*path, name), None, bytes(after[name]))


def _elements(before: list[bytes], after: list[bytes], was: Path, path: Path) -> Iterator[Place]:
    if all(e[0] in _NUMBER for e in chain(before, after)):
        return
    for i, j in _pairs(before, after):
        if j is None:
            yield Place((*was, i), None, before[i], None)  # type: ignore[arg-type,index]
        elif i is None:
            yield Place(None, (*path, j), None, after[j])
        else:
            yield from _compare(before[i], after[j], (*was, i), (*path, j))


def _pairs(before: list[bytes], after: list[bytes]) -> Iterator[tuple[int | None, int | None]]:
    """Indexes of elements that differ, side by side; None where there is no other."""
    start = next((n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    ends = zip(reversed(before[start:]), reversed(after[start:]), strict=False)
    equal = next((n for n, (a, b) in enumerate(ends) if a != b), min(len(before), len(after)) - start)
    old, new = range(start, len(before) - equal), range(start, len(after) - equal)
    if len(old) * len(new) > _MOST_PAIRS:
        yield from zip_longest(old, new)
        return
    matcher = SequenceMatcher(None, before[old.start : old.stop], after[new.start : new.stop], autojunk=False)
    for what, a, b, c, d in matcher.get_opcodes():
        if what != "equal":
            yield from _likely(old[a:b], new[c:d], before, after)


def _likely(old: range, new: range, before: list[bytes], after: list[bytes]) -> Iterator[tuple[int | None, int | None]]:
    """Of elements of which none is in both, those together that have the most in common, in their order: an object of which one member
    changed is not taken for its neighbour because another was removed."""
    if len(old) * len(new) > _MOST_LIKELY:
        yield from zip_longest(old, new)
        return
    left, right = ([_traits(elements[n]) for n in indexes] for elements, indexes in ((before, old), (after, new)))
    best = [[0] * (len(new) + 1) for _ in range(len(old) + 1)]
    for i in reversed(range(len(old))):
        for j in reversed(range(len(new))):
            both = best[i + 1][j + 1] + _likeness(left[i], right[j])
            best[i][j] = max(both, best[i + 1][j], best[i][j + 1])
    i = j = 0
    while i < len(old) and j < len(new):
        if best[i][j] == best[i + 1][j + 1] + _likeness(left[i], right[j]):
            yield old[i], new[j]
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            yield old[i], None
            i += 1
        else:
            yield None, new[j]
            j += 1
    yield from ((n, None) for n in old[i:])
    yield from ((None, n) for n in new[j:])


def _traits(element: bytes) -> frozenset[tuple[str, bytes]]:
    members = _decode(element, type=dict[str, Raw]) if element[:1] == b"{" else {}
    return frozenset((name, bytes(value)) for name, value in members.items())


def _likeness(one: frozenset[tuple[str, bytes]], other: frozenset[tuple[str, bytes]]) -> int:
    return 1 + 4 * len(one & other)  # any two beside each other are better than none; a member in common is worth more


class _Twice(Exception):
    """A name that an object has two times."""


def _ambiguous(text: bytes) -> bool:
    def unique(pairs: list[tuple[str, object]]) -> None:
        if len(dict(pairs)) != len(pairs):
            raise _Twice

    try:
        json.loads(text, object_pairs_hook=unique, parse_int=str, parse_float=str)
    except _Twice:
        return True
    return False


# --- rows --------------------------------------------------------------------------------------------------------------------------


class ColumnChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One place of one column. `path`: below the column, in the row after, or of what was removed in the row before; `was`: where that
    stood before, if an array moved it. `before` or `after` is absent where there was, or is, nothing."""

    column: str
    path: list[str | int] = []
    was: list[str | int] | UnsetType = UNSET
    before: Raw | UnsetType = UNSET
    after: Raw | UnsetType = UNSET


class RowChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`key`: the primary key's columns, absent where there is none. `row`: of one that was added or removed; `columns` of a changed one."""

    change: Literal["added", "removed", "changed"]
    key: dict[str, Raw] | UnsetType = UNSET
    row: Raw | UnsetType = UNSET
    columns: list[ColumnChange] | UnsetType = UNSET


class RowDiffer:
    """Rows of one tier in two documents. `added` and `removed`: columns that only one of them has; they are not compared. `key`: the
    primary key's columns; empty, and rows are the same when all their values are."""

    def __init__(self, before: model.Table, after: model.Table) -> None:
        there = {c.name: c for c in before.columns}
        here = {c.name: c for c in after.columns}
        names = [n for n in here if n in there]
        self.added = [n for n in here if n not in there and n not in before.excluded]
        self.removed = [n for n in there if n not in here and n not in after.excluded]
        self.key = next((k for k in (after.key, before.key) if k and set(k) <= set(names)), [])
        mixed = {n for n in names if {there[n].form, here[n].form} == {"hex", "json"}}
        #: Both write the same row in the same bytes.
        self.alike = [(c.name, c.form) for c in before.columns] == [(c.name, c.form) for c in after.columns] and (
            before.json_null_key == after.json_null_key
        )
        self.names = [*names, "~jsonNull"]  # a JSON null that became an SQL NULL shows there and nowhere else
        self.before = RowReader(before, names, key=self.key, mixed=mixed, alike=self.alike)
        self.after = RowReader(after, names, key=self.key, mixed=mixed, alike=self.alike)

    def changed(self, before: bytes, after: bytes) -> RowChange:
        return RowChange(change="changed", key=self._key(self.after, after), columns=list(self.columns(before, after)))

    def added_row(self, row: bytes) -> RowChange:
        return RowChange(change="added", key=self._key(self.after, row), row=Raw(row))

    def removed_row(self, row: bytes) -> RowChange:
        return RowChange(change="removed", key=self._key(self.before, row), row=Raw(row))

    def columns(self, before: bytes, after: bytes) -> Iterator[ColumnChange]:
        for name, old, new in zip(self.names, self.before.values(before), self.after.values(after), strict=True):
            for place in places(old, new):
                path = place.was if place.path is None else place.path
                moved = place.was is not None and place.was != path
                yield ColumnChange(
                    column=name,
                    path=list(path or ()),
                    was=list(place.was or ()) if moved else UNSET,
                    before=UNSET if place.before is None else Raw(place.before),
                    after=UNSET if place.after is None else Raw(place.after),
                )

    def _key(self, reader: RowReader, row: bytes) -> dict[str, Raw] | UnsetType:
        return {n: Raw(v) for n, v in zip(self.key, reader.key(row), strict=True)} if self.key else UNSET


class RowReader:
    """Rows of one side as both sides can be compared."""

    def __init__(self, table: model.Table, names: Sequence[str], *, key: Sequence[str], mixed: set[str], alike: bool) -> None:
        self._alike = alike
        self._unhex = [n for n, c in enumerate(names) if c in mixed and _form(table, c) == "json"]
        self._split = splitter([*names, table.json_null_key or "~jsonNull"], strict=False)
        self._split_key = splitter(key, strict=False) if key else None
        columns = {c.name: c for c in table.columns}
        self._writers = [(n, w) for n, w in ((n, writing(columns[name], {})) for n, name in enumerate(key)) if w is not None]

    def values(self, row: bytes) -> list[bytes]:
        """Of each column that both have, and of the member that tells JSON nulls."""
        found = _cut(self._split, row)
        for n in self._unhex:
            found[n] = _hex_of(found[n])
        return found

    def key(self, row: bytes) -> list[bytes]:
        return _cut(self._split_key, row) if self._split_key else []

    def identity(self, row: bytes) -> tuple[bytes, bytes]:
        """(which row it is, what is in it): equal on both sides if they are."""
        content = row if self._alike else b"\0".join(self.values(row))
        if self._split_key is None:
            return content, content
        key = self.key(row)
        for n, write in self._writers:  # as PostgreSQL compares: 1.0 is the key 1.00
            key[n] = write(key[n])
        return b"\0".join(key), content


def _form(table: model.Table, column: str) -> str:
    return next(c.form for c in table.columns if c.name == column)


def _cut(split: Callable[[bytes], Sequence[Any]], row: bytes) -> list[bytes]:
    try:
        return [bytes(v) for v in split(row)]
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise CorruptDocument(f"a row is not JSON: {exc}") from exc


def _hex_of(text: bytes) -> bytes:
    """A vector's decimal form as the hexadecimal one, which another snapshot was written in."""
    if text[:2] != b'"[':
        return text
    numbers = [float(x) for x in text[2:-2].split(b",")]
    return b'"' + struct.pack(f">HH{len(numbers)}f", len(numbers), 0, *numbers).hex().encode() + b'"'
