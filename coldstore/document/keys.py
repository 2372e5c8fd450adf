"""The primary key of a row, cut out of its line, in a form that can be compared without a database. Pure.

A key is a JSON object of its columns, as a row has them and as an incremental's deletions have them. Two are equal when their bytes are,
once what PostgreSQL does not tell apart has been written alike. Of types with an equality of their own only PostgreSQL can tell; a reader
of such a key says so, `exact` is false.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import msgspec

from coldstore.document import model
from coldstore.document.values import splitter
from coldstore.errors import ChainBroken, CorruptDocument

#: Types whose values are equal exactly when they are written alike.
_PLAIN = frozenset(
    {
        *("smallint", "integer", "bigint", "oid", "xid8", "pg_lsn", "money", "boolean", "uuid", "bytea", "bit", "bit varying"),
        *("text", "character varying", "character", '"char"', "name", "inet", "cidr", "macaddr", "macaddr8"),
        *("date", "time without time zone", "time with time zone", "timestamp without time zone", "timestamp with time zone"),
    }
)
_FLOATS = frozenset({"real", "double precision"})
_PRECISION = re.compile(r"\([0-9,]+\)")
_PART = re.compile(r'"((?:[^"]|"")*)"|([^".]+)')


def _as_is(raw: bytes) -> bytes:
    return raw


def _numeric(raw: bytes) -> bytes:
    """`1.00` is `1`."""
    return raw.rstrip(b"0").rstrip(b".") if b"." in raw else raw


def _float(raw: bytes) -> bytes:
    return b"0" if raw == b"-0" else raw


class KeyReader:
    """Cuts the keys out of one table's rows. Raises `ChainBroken` for a table without a primary key, or whose key stays behind: what
    changed in it cannot be told."""

    def __init__(self, table: model.Table, types: Sequence[model.TypeDef]) -> None:
        by_name = {c.name: c for c in table.columns}
        if not table.key or not by_name.keys() >= set(table.key):
            raise ChainBroken(f"{table.table} has no primary key in its snapshots, so nothing can be built on them", key=table.array)
        self.array = table.array
        self.columns = [by_name[name] for name in table.key]
        self._split = splitter(table.key, strict=False)
        defined: dict[tuple[str, ...], model.TypeDef] = {(t.name.schema, t.name.name): t for t in types}
        writers = [writing(column, defined) for column in self.columns]
        self.exact = None not in writers
        self._members = [(msgspec.json.encode(name) + b":", n or _as_is) for name, n in zip(table.key, writers, strict=True)]

    def __call__(self, row: bytes) -> bytes:
        """Of a row, or of the key of a deletion."""
        try:
            raws = self._split(row)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise CorruptDocument(f"a row of {self.array} is not JSON: {exc}") from exc
        values = [normal(bytes(raw)) for raw, (_, normal) in zip(raws, self._members, strict=True)]
        if b"null" in values:
            raise CorruptDocument(f"a row of {self.array} has no key")
        return b"{" + b",".join([name + value for (name, _), value in zip(self._members, values, strict=True)]) + b"}"


def writing(column: model.Column, types: Mapping[tuple[str, ...], model.TypeDef]) -> Callable[[bytes], bytes] | None:
    """What writes equal values of a column alike; None where that cannot be done."""
    if column.form != "json":
        return None
    name, collation = column.type, column.collation
    while (found := types.get(_identifiers(name))) is not None and found.kind == "domain":
        name, collation = found.base or "", collation or found.collation
    if collation is not None and not collation.startswith("pg_catalog."):  # it may be a nondeterministic one
        return None
    if found is not None:
        return _as_is if found.kind == "enum" else None
    base = _PRECISION.sub("", name)
    if base == "numeric":
        return _numeric
    if base in _FLOATS:
        return _float
    return _as_is if base in _PLAIN else None


def _identifiers(name: str) -> tuple[str, ...]:
    return tuple(quoted.replace('""', '"') or plain for quoted, plain in _PART.findall(name))


class Deletions:
    """Reads the lines of an incremental's array `deleted`."""

    def __init__(self, readers: dict[str, KeyReader]) -> None:
        """`readers`: by array. Deletions from others are passed over."""
        self._readers = readers
        self._split = splitter(["array", "key"], strict=True)

    def __call__(self, line: bytes) -> tuple[str, bytes] | None:
        """(array, key)."""
        try:
            raw_array, raw_key = self._split(line)
            array = msgspec.json.decode(bytes(raw_array), type=str)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise CorruptDocument(f"a deletion cannot be read: {exc}") from exc
        reader = self._readers.get(array)
        return None if reader is None else (array, reader(bytes(raw_key)))
