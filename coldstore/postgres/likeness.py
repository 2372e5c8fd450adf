"""Whether tables are what a document's schema says: columns, keys, constraints, indexes, partitions, types and sequences, as the catalog of
the database describes them now.

A foreign key to a table that is not in the document cannot be there; it is told and is no fault. Everything else that is missing is one,
also where the restore said that it had to leave it out: the database that came back is not the one that was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from coldstore.document import model
from coldstore.postgres.connect import Connection, errors_as
from coldstore.postgres.introspect import Catalog, find, inspect
from coldstore.postgres.staging import Staging
from coldstore.tiers import Tier

_TABLES = {"table", "partitioned"}


@dataclass(slots=True)
class Finding:
    """What was looked at, in words, and what is wrong with it; good when nothing is."""

    seen: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "; ".join(self.problems or self.seen)


class Likeness:
    """The tables of `schema`, looked up in the database of `conn`."""

    def __init__(self, conn: Connection, schema: model.Schema) -> None:
        self._conn = conn
        self._schema = schema
        self._names = Staging(conn).find_names(schema)
        self._oids = find(conn, [t.table for t in schema.tables])
        there = [t for t in schema.tables if t.table in self._oids]
        self._here: Catalog = inspect(conn, [(Tier(t.tier, "", array=t.array), self._oids[t.table]) for t in there], readable=False)
        self._tables = {r.table.table: r.table for r in self._here.relations}

    def table(self, wanted: model.Table) -> Finding:
        """One table and what hangs on it."""
        found = Finding()
        here = self._tables.get(wanted.table)
        if here is None:
            found.problems.append(f"there is no table {wanted.table}")
            return found
        self._columns(found, wanted, here)
        self._constraints(found, wanted, here)
        indexes = {i.name: (self._text(i.using), i.unique) for i in wanted.indexes}
        _compare(found, "index", indexes, {i.name: (i.using, i.unique) for i in here.indexes})
        found.problems += [f"the index {name} is not valid" for name in self._invalid(wanted)]
        if wanted.kind in _TABLES:
            parts = {str(p.table): (str(p.parent), self._text(p.bound), p.key) for p in wanted.partitions}
            _compare(found, "partition", parts, {str(p.table): (str(p.parent), p.bound, p.key) for p in here.partitions})
            if wanted.partitions and wanted.partition_key != here.partition_key:
                found.problems.append(f"it is cut by {here.partition_key}, not by {wanted.partition_key}")
        return found

    def surroundings(self) -> Finding:
        """Types and sequences that the tables use."""
        found = Finding()
        here = self._here.schema
        _compare(found, "type", {str(t.name): self._type(t) for t in self._schema.types}, {str(t.name): t for t in here.types})
        used = self._sequences_in_use()
        sequences = {str(s.name): _sequence(s) for s in self._schema.sequences if s.name in used}
        _compare(found, "sequence", sequences, {str(s.name): _sequence(s) for s in here.sequences})
        return found

    def _columns(self, found: Finding, wanted: model.Table, here: model.Table) -> None:
        _compare(found, "column", {c.name: self._column(c) for c in wanted.columns}, {c.name: _as_column(c) for c in here.columns})
        if [c.name for c in wanted.columns] != [c.name for c in here.columns] and not found.problems:
            found.problems.append("its columns stand in another order")

    def _constraints(self, found: Finding, wanted: model.Table, here: model.Table) -> None:
        """Their definitions say `NOT VALID` where they are not validated."""
        known = {c.name: c.definition for c in here.constraints}
        away = [c for c in wanted.constraints if c.kind == "f" and c.name not in known and c.references not in self._made()]
        _compare(found, "constraint", {c.name: self._text(c.definition) for c in wanted.constraints if c not in away}, known)
        found.seen += [f"without the foreign key {c.name}, for {c.references} is not in the snapshot" for c in away]

    def _made(self) -> set[model.Name]:
        return {name for t in self._schema.tables for name in (t.table, *(p.table for p in t.partitions))}

    def _invalid(self, wanted: model.Table) -> list[str]:
        with errors_as("look at indexes"):
            rows = self._conn.execute(
                "SELECT i.indexrelid::regclass::text FROM pg_catalog.pg_index i"
                " WHERE (i.indrelid = %(oid)s OR i.indrelid IN (SELECT relid FROM pg_catalog.pg_partition_tree(%(oid)s::oid::regclass)))"
                " AND NOT (i.indisvalid AND i.indisready AND i.indislive) ORDER BY 1",
                {"oid": self._oids[wanted.table]},
            ).fetchall()
        return [name for (name,) in rows]

    def _sequences_in_use(self) -> set[model.Name]:
        """Those of columns that the document describes. One that a default merely names is compared where the default is there."""
        columns = {(t.table, c.name) for t in self._schema.tables for c in t.columns}
        identities = {c.identity.sequence for t in self._schema.tables for c in t.columns if c.identity}
        owned = {s.name for s in self._schema.sequences if (s.owner_table, s.owner_column) in columns}
        return identities | owned | {s.name for s in self._here.schema.sequences}

    def _text(self, expression: str) -> str:
        return self._names.text(expression).as_string()

    def _column(self, column: model.Column) -> model.Column:
        return _as_column(
            msgspec.structs.replace(
                column, type=self._text(column.type), default=None if column.default is None else self._text(column.default)
            )
        )

    def _type(self, wanted: model.TypeDef) -> model.TypeDef:
        def text(expression: str | None) -> str | None:
            return None if expression is None else self._text(expression)

        return msgspec.structs.replace(
            wanted,
            base=text(wanted.base),
            default=text(wanted.default),
            subtype=text(wanted.subtype),
            checks=[(name, self._text(check)) for name, check in wanted.checks],
            attributes=[(name, self._text(attribute)) for name, attribute in wanted.attributes],
        )


def _as_column(column: model.Column) -> model.Column:
    """How its values are written into a document is no property of the column."""
    return msgspec.structs.replace(column, form="json")


def _sequence(sequence: model.Sequence) -> model.Sequence:
    """Where it stands is tried by drawing from it."""
    return msgspec.structs.replace(sequence, last_value=None)


def _compare(found: Finding, what: str, wanted: Mapping[str, object], here: Mapping[str, object]) -> None:
    if wanted:
        found.seen.append(f"{len(wanted)} {_plural(what, len(wanted))}")
    for name, one in wanted.items():
        if name not in here:
            found.problems.append(f"the {what} {name} is missing")
        elif here[name] != one:
            found.problems.append(f"the {what} {name} is {_said(here[name], one)}")
    found.problems += [f"the {what} {name} is not in the snapshot" for name in here if name not in wanted]


def _plural(what: str, count: int) -> str:
    return what if count == 1 else {"index": "indexes"}.get(what, what + "s")


def _said(here: object, wanted: object) -> str:
    """What differs: of values with members those alone."""
    if isinstance(here, msgspec.Struct) and isinstance(wanted, msgspec.Struct):
        members = [m for m in here.__struct_fields__ if getattr(here, m) != getattr(wanted, m)]
        return ", ".join(f"{m} {getattr(here, m)!r} instead of {getattr(wanted, m)!r}" for m in members)
    return f"{here!r} instead of {wanted!r}"
