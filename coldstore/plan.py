"""What a restore is going to do, before it touches anything: whose rows, from which array to which table, with which columns.

Refuses what cannot be meant: a scope outside the document's, a column or table that the target lacks, rows that no tier is called after.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from coldstore.document import model
from coldstore.documents import Document, ForeignFile, Owner
from coldstore.errors import CorruptDocument, NotFound, RestoreRefused, SchemaMismatch, TableMissing
from coldstore.postgres.connect import Connection
from coldstore.postgres.introspect import find, inspect, resolve
from coldstore.postgres.table_plan import TablePlan
from coldstore.tiers import EVERYBODY, Scope, Tier


def effective_scope(document: Document, wanted: Scope | None) -> Scope:
    """Whose memory comes back: the wanted scope, which must lie within the document's."""
    if document.schema is not None and not document.schema.tables:
        raise RestoreRefused(
            f"{document.name} holds an agent's own files, which no database has a table for",
            hint=f"They go into a folder: `coldstore restore {document.name} --to FOLDER`.",
        )
    if wanted is None or wanted in {EVERYBODY, document.scope}:
        return document.scope
    if document.scope != EVERYBODY:
        raise NotFound(f"{document.name} holds the memory of {document.scope}, not of {wanted}", hint="Use an all-user snapshot.")
    return wanted


def plan_tables(
    document: Document,
    conn: Connection,
    *,
    scope: Scope,
    tiers: Sequence[Tier],
    only: Collection[str],
    allow_missing_columns: bool,
    notes: list[str],
) -> list[TablePlan]:
    """Which array goes to which table, with which columns. `only`: names of tiers, all when empty. `notes` is told what stays out."""
    tables = _described(document) if document.schema else _guessed(document, conn, tiers, only)
    wanted = [t for t in tables if not only or t.tier in only]
    unknown = set(only) - {t.tier for t in tables}
    if unknown:
        raise NotFound(f"{document.name} has no tier {sorted(unknown)[0]!r}", hint=f"It has {', '.join(t.tier for t in tables)}.")
    plans = []
    for table in wanted:
        if scope != document.scope and not (table.uid_column if scope.kind == "uid" else table.workspace_column):
            notes.append(f"{table.table}: no column says which {scope.kind} a row belongs to, so it stays out")
            continue
        plans.append(_table_plan(conn, table, allow_missing_columns, notes))
    if not plans:
        raise NotFound(f"{document.name} has nothing that could be restored for {scope}")
    return plans


def _described(document: Document) -> list[model.Table]:
    return list(document.schema.tables) if document.schema else []


def _guessed(document: Document, conn: Connection, tiers: Sequence[Tier], only: Collection[str]) -> list[model.Table]:
    """Tables for the arrays of another program's document: found by the tier's array, name or table."""
    assert isinstance(document, ForeignFile)  # noqa: S101 — every other kind of document describes its tables
    by_name = {alias: t for t in reversed(tiers) for alias in (t.table, t.name, t.array)}
    found: list[model.Table] = []
    mixed = sorted(a for a in document.not_rows if a in by_name or a in document.members)
    if mixed:
        raise CorruptDocument(f"the array {mixed[0]!r} of {document.name} stands there twice, or holds something else than rows")
    for array, members in document.members.items():
        tier = by_name.get(array)
        if tier is None or (only and tier.name not in only):
            if members and tier is None and not only:
                raise SchemaMismatch(
                    f"{document.name} has rows in {array!r}, and no tier is called so",
                    hint="Declare the tier in coldstore.toml, or choose tiers with --tier.",
                )
            continue
        if any(t.tier == tier.name for t in found):
            raise CorruptDocument(f"{document.name} has the tier {tier.name} twice, under two names", hint="Put its rows into one array.")
        oid = resolve(conn, [tier.table])[tier.table]
        if oid is None:
            raise TableMissing(
                f"the target has no table {tier.table}, and {document.name} does not describe it",
                hint="Create it first: `coldstore init --reference-schema`.",
            )
        table = inspect(conn, [(tier, oid)], readable=False).relations[0].table
        unknown = members - {c.name for c in table.columns}
        extra = [model.Column(name=name, type="text") for name in sorted(unknown)]
        columns = [c for c in table.columns if c.name in members] + extra
        found.append(msgspec.structs.replace(table, array=array, columns=columns, where=None))
    if not found:
        raise NotFound(f"{document.name} has no array that a tier is called after", hint="Declare the tiers in coldstore.toml.")
    return found


def _table_plan(conn: Connection, table: model.Table, allow_missing_columns: bool, notes: list[str]) -> TablePlan:
    oid = find(conn, [table.table]).get(table.table)
    if oid is None:
        return TablePlan(table, None, list(table.columns))
    tier = Tier(table.tier, "", array=table.array)
    relation = inspect(conn, [(tier, oid)], vectors=_vectors(table), readable=False).relations[0]
    if relation.table.kind not in {"table", "partitioned"}:
        raise SchemaMismatch(f"{table.table} is a {relation.table.kind} in the target", hint="Restore into another database.")
    own = {c.name for c in relation.table.columns}
    missing = [c.name for c in table.columns if c.name not in own]
    if missing and not allow_missing_columns:
        raise SchemaMismatch(
            f"{table.table} has no column {missing[0]!r} in the target",
            hint="Add the column, or leave its values out with --allow-missing-columns.",
        )
    if missing:
        notes.append(f"{table.table}: left out {', '.join(missing)}, which the target lacks")
    return TablePlan(table, relation, [c for c in table.columns if c.name in own], ignored=missing)


def _vectors(table: model.Table) -> str:
    return "hex" if any(c.form == "hex" for c in table.columns) else "text"


def owner_of(document: Document, scope: Scope, plans: Sequence[TablePlan]) -> Owner | None:
    """What picks the scope's rows out of a document of everybody's."""
    return None if scope == document.scope else Owner.of(scope, [p.source for p in plans])
