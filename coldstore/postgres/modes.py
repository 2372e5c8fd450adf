"""Staged rows into tables that were there, by mode:

    fresh     the scope has no row (checked again under the lock); the staged rows are inserted
    replace   rows of the scope that the snapshot lacks are deleted, rows that differ updated, missing ones inserted
    merge     missing rows are inserted; what to do with a key that is there is the caller's choice

`replace` compares by primary key and touches only rows that differ: deleting and inserting everything would set off every
ON DELETE CASCADE that points at the table. Rows of other scopes are never touched: a key that belongs to somebody else, and a deletion
that would reach somebody else's rows, are refused. User triggers of the tables are off meanwhile (one that sets `updated_at` would make
the restored rows differ from the snapshot), except those called `coldstore_…`; where the role may not switch them, the comparison that
follows decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
from psycopg import errors as pg
from psycopg import sql

from coldstore.document import model
from coldstore.errors import ContentMismatch, RestoreConflict
from coldstore.postgres.connect import Connection
from coldstore.postgres.read import scope_condition
from coldstore.postgres.table_plan import Mode, TablePlan, refuse_rows, scope_rows
from coldstore.sql import query
from coldstore.tiers import EVERYBODY, Scope

_SQL = sql.SQL


def load_existing(conn: Connection, plans: Sequence[TablePlan], scope: Scope, mode: Mode) -> None:
    """All of `plans`, whose tables are there. Fills their counts. Raises `RestoreRefused` or `ContentMismatch`; the caller's transaction
    ends then."""
    if not plans:
        return
    names = _SQL(", ").join(p.name for p in plans if p.target and p.target.table.kind in {"table", "partitioned"})
    conn.execute(_SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(names))
    conn.execute("SET CONSTRAINTS ALL DEFERRED")  # those that may be; `publish` has them checked at its end
    with _triggers_off(conn, plans):
        ordered = _parents_first(conn, plans)
        for plan in ordered:
            _refuse_strangers(conn, plan, scope)
            if mode.name == "fresh":
                refuse_rows(conn, plan, scope)
        if mode.name == "replace":
            _delete_surplus(conn, ordered, scope)
        for plan in ordered:
            if mode.name == "replace":
                _update(conn, plan, scope, ordered)
            if mode.name == "merge":
                plan.inserted = _merge(conn, plan, scope, mode, ordered)
                _compare_merged(conn, plan)
            else:
                plan.inserted = _insert_missing(conn, plan, mode)


def _delete_surplus(conn: Connection, plans: Sequence[TablePlan], scope: Scope) -> None:
    for plan in plans:
        _refuse_foreign_keys_of_others(conn, plan, scope)
    _refuse_cascades(conn, plans, plans, scope, _doomed)
    for plan in reversed(plans):
        plan.deleted = _delete(conn, plan, scope)


@contextmanager
def _triggers_off(conn: Connection, plans: Sequence[TablePlan]) -> Iterator[None]:
    back = [statement for plan in plans for statement in _silence_triggers(conn, plan)]
    yield
    if back:
        # A table with deferred foreign keys still to be checked cannot be altered.
        conn.execute("SET CONSTRAINTS ALL IMMEDIATE")
    for statement in back:
        conn.execute(statement)


def fill_defaults(conn: Connection, plan: TablePlan) -> None:
    """Rows of another program may lack a member that others have. They take the column's default, as an INSERT without it would, where
    NULL cannot have been meant."""
    staged = {c.name for c in plan.columns}
    for column in plan.target.table.columns if plan.target else []:
        if column.name in staged and column.not_null and column.default is not None and column.generated is None:
            name = sql.Identifier(column.name)
            statement = _SQL("UPDATE {} SET {} = {} WHERE {} IS NULL").format(plan.staged_name, name, _SQL(column.default), name)
            conn.execute(statement)


def _parents_first(conn: Connection, plans: Sequence[TablePlan]) -> list[TablePlan]:
    """Tables in an order in which each stands after those its foreign keys point at, as far as there is one."""
    oids = [p.target.oid for p in plans if p.target]
    edges = conn.execute(
        "SELECT conrelid::bigint, confrelid::bigint FROM pg_catalog.pg_constraint"
        " WHERE contype = 'f' AND NOT condeferrable AND conrelid <> confrelid"
        " AND conrelid = ANY (%s::oid[]) AND confrelid = ANY (%s::oid[])",
        (oids, oids),
    ).fetchall()
    left = list(plans)
    ordered: list[TablePlan] = []
    while left:
        waiting = {p.target.oid for p in left if p.target}
        free = [p for p in left if p.target and not any(a == p.target.oid and b in waiting for a, b in edges)] or left[:1]
        ordered += free
        left = [p for p in left if p not in free]
    return ordered


def _silence_triggers(conn: Connection, plan: TablePlan) -> list[sql.Composed]:
    """Switch the table's own triggers off; returns what switches them on again as they were."""
    assert plan.target is not None  # noqa: S101
    rows = conn.execute(
        "SELECT tgname::text, tgenabled::text FROM pg_catalog.pg_trigger"
        " WHERE tgrelid = %s AND NOT tgisinternal AND tgenabled <> 'D' AND tgname NOT LIKE 'coldstore\\_%%'",
        (plan.target.oid,),
    ).fetchall()
    back = []
    try:
        with conn.transaction():
            for name, enabled in rows:
                trigger = sql.Identifier(name)
                conn.execute(_SQL("ALTER TABLE {} DISABLE TRIGGER {}").format(plan.name, trigger))
                how = {"O": "ENABLE", "A": "ENABLE ALWAYS", "R": "ENABLE REPLICA"}[enabled]
                back.append(_SQL("ALTER TABLE {} {} TRIGGER {}").format(plan.name, _SQL(how), trigger))
    except pg.InsufficientPrivilege:
        return []
    return back


def _columns(plan: TablePlan, alias: str | None = None) -> sql.Composed:
    names = [c.name for c in plan.columns if _writable(plan, c)]
    return _SQL(", ").join(sql.Identifier(alias, n) if alias else sql.Identifier(n) for n in names)


def _writable(plan: TablePlan, column: model.Column) -> bool:
    own = plan.target.table.columns if plan.target else []
    return any(c.name == column.name and c.generated is None for c in own)


def _key(plan: TablePlan) -> list[str]:
    """The target's primary key, where the document has all of it."""
    key = plan.target.table.key if plan.target else []
    return key if set(key) <= {c.name for c in plan.columns} else []


def _same_key(plan: TablePlan) -> sql.Composed:
    return _SQL(" AND ").join(_SQL("s.{0} = d.{0}").format(sql.Identifier(k)) for k in _key(plan))


def _row_text(plan: TablePlan, alias: str) -> sql.Composed:
    """A whole row as text: equal exactly when every value is, also for types that have no `=`."""
    return _SQL("ROW({})::pg_catalog.text").format(_columns(plan, alias))


def _insert(plan: TablePlan, condition: sql.Composable, tail: sql.Composable | None = None) -> sql.Composed:
    if not plan.columns or not any(_writable(plan, c) for c in plan.columns):
        return _SQL("INSERT INTO {} SELECT FROM {} AS d WHERE {}").format(plan.name, plan.staged_name, condition)
    statement = _SQL("INSERT INTO {} AS s ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} AS d WHERE {}").format(
        plan.name, _columns(plan), _columns(plan, "d"), plan.staged_name, condition
    )
    return _SQL("{} {}").format(statement, tail) if tail is not None else statement


def _insert_missing(conn: Connection, plan: TablePlan, mode: Mode) -> int:
    """What `fresh` and `replace` have left to insert: everything, or the keys that are not there."""
    missing: sql.Composable = _SQL("true")
    if mode.name == "replace" and _key(plan):
        missing = _SQL("NOT EXISTS (SELECT 1 FROM {} AS s WHERE {})").format(plan.name, _same_key(plan))
    return conn.execute(_insert(plan, missing)).rowcount - plan.rewritten


def _delete(conn: Connection, plan: TablePlan, scope: Scope) -> int:
    """Rows of the scope that the snapshot does not have; all of them where there is no key to tell by."""
    statement = _SQL("DELETE FROM {} AS s WHERE {}").format(plan.name, _doomed(plan, scope))
    return conn.execute(statement).rowcount


def _doomed(plan: TablePlan, scope: Scope) -> sql.Composable:
    if not _key(plan):
        return scope_rows(plan, scope)
    return _SQL("{} AND NOT EXISTS (SELECT 1 FROM {} AS d WHERE {})").format(scope_rows(plan, scope), plan.staged_name, _same_key(plan))


def _update(conn: Connection, plan: TablePlan, scope: Scope, everything: Sequence[TablePlan]) -> None:
    """Give rows of the scope whose key is staged the staged values. What cannot be updated is deleted, and inserted with what is missing:
    a `GENERATED ALWAYS` identity that differs, and values of a unique column that changed places."""
    if not _key(plan):
        return
    always = {c.name for c in plan.target.table.columns if c.identity and c.identity.always} if plan.target else set()
    # A key's columns too: 1.0 and 1.00 are one key, and not the same content. An identity's are integers, which have one form.
    columns = [c.name for c in plan.columns if _writable(plan, c) and c.name not in always.intersection(_key(plan))]
    fixed = [n for n in columns if n in always]
    names = [n for n in columns if n not in always]
    if fixed:
        differs = _SQL(" OR ").join(_SQL("s.{0} IS DISTINCT FROM d.{0}").format(sql.Identifier(n)) for n in fixed)
        _rewrite(conn, plan, scope, everything, _SQL("({})").format(differs))
    if not names:
        return
    differs = _SQL("{} IS DISTINCT FROM {}").format(_row_text(plan, "s"), _row_text(plan, "d"))
    statement = _SQL("UPDATE {} AS s SET {} FROM {} AS d WHERE {} AND {} AND {}").format(
        plan.name,
        _SQL(", ").join(_SQL("{0} = d.{0}").format(sql.Identifier(n)) for n in names),
        plan.staged_name,
        _same_key(plan),
        scope_rows(plan, scope),
        differs,
    )
    try:
        with conn.transaction():
            plan.updated += conn.execute(statement).rowcount
    except (pg.UniqueViolation, pg.ExclusionViolation):
        _rewrite(conn, plan, scope, everything, differs)


def _rewrite(conn: Connection, plan: TablePlan, scope: Scope, everything: Sequence[TablePlan], differs: sql.Composable) -> None:
    def doomed(plan: TablePlan, scope: Scope) -> sql.Composable:
        return _SQL("{} AND EXISTS (SELECT 1 FROM {} AS d WHERE {} AND {})").format(
            scope_rows(plan, scope), plan.staged_name, _same_key(plan), differs
        )

    _refuse_cascades(conn, [plan], everything, scope, doomed)
    count = conn.execute(_SQL("DELETE FROM {} AS s WHERE {}").format(plan.name, doomed(plan, scope))).rowcount
    plan.rewritten += count
    plan.updated += count


def _merge(conn: Connection, plan: TablePlan, scope: Scope, mode: Mode, everything: Sequence[TablePlan]) -> int:
    """Insert what is missing. Without a key a row is there when an equal row is."""
    (total,) = conn.execute(_SQL("SELECT count(*) FROM {}").format(plan.staged_name)).fetchone() or (0,)
    if not _key(plan):
        there = _SQL("EXISTS (SELECT 1 FROM {} AS s WHERE {} AND {} = {})").format(
            plan.name, scope_rows(plan, scope), _row_text(plan, "s"), _row_text(plan, "d")
        )
        inserted = conn.execute(_insert(plan, _SQL("NOT {}").format(there))).rowcount
        plan.unchanged = int(total) - inserted
        return inserted
    (plan.unchanged,) = conn.execute(
        _SQL("SELECT count(*) FROM {} AS s, {} AS d WHERE {} AND {} = {}").format(
            plan.name, plan.staged_name, _same_key(plan), _row_text(plan, "s"), _row_text(plan, "d")
        )
    ).fetchone() or (0,)
    different = _SQL("FROM {} AS s, {} AS d WHERE {} AND {} <> {}").format(
        plan.name, plan.staged_name, _same_key(plan), _row_text(plan, "s"), _row_text(plan, "d")
    )
    if mode.on_conflict == "fail":
        found = conn.execute(
            _SQL("SELECT {} {} LIMIT 1").format(_SQL("ROW({})::pg_catalog.text").format(_key_of(plan)), different)
        ).fetchone()
        if found:
            raise RestoreConflict(
                f"{plan.source.table} has a different row with the key {found[0]}",
                hint="--on-conflict skip keeps the target's row, --on-conflict update takes the snapshot's.",
            )
    if mode.on_conflict == "update":
        _refuse_foreign_keys_of_others(conn, plan, scope)
        _update(conn, plan, scope, everything)
    else:
        (plan.skipped,) = conn.execute(_SQL("SELECT count(*) {}").format(different)).fetchone() or (0,)
    missing = _SQL("NOT EXISTS (SELECT 1 FROM {} AS s WHERE {})").format(plan.name, _same_key(plan))
    tail = _SQL("ON CONFLICT DO NOTHING") if mode.on_conflict == "skip" else None
    inserted = conn.execute(_insert(plan, missing, tail)).rowcount - plan.rewritten
    plan.skipped = int(total) - inserted - plan.updated - int(plan.unchanged)
    return inserted


def _compare_merged(conn: Connection, plan: TablePlan) -> None:
    """Every staged row that was not skipped now stands in the target as it is. (`fresh` and `replace` compare the whole scope.)"""
    same_key = _same_key(plan) if _key(plan) else _SQL("true")
    there = _SQL("SELECT 1 FROM {} AS s WHERE {} AND {} = {}").format(plan.name, same_key, _row_text(plan, "s"), _row_text(plan, "d"))
    (total, equal) = conn.execute(
        _SQL("SELECT count(*), count(*) FILTER (WHERE EXISTS ({})) FROM {} AS d").format(there, plan.staged_name)
    ).fetchone() or (0, 0)
    if equal + plan.skipped < total:
        raise ContentMismatch(
            f"{total - plan.skipped - equal} rows merged into {plan.source.table} read differently from the snapshot",
            hint="A trigger of the table changed them. Restore as the table's owner, for whom it can be switched off meanwhile.",
        )


def _key_of(plan: TablePlan, alias: str = "s") -> sql.Composable:
    return _SQL(", ").join(sql.Identifier(alias, k) for k in _key(plan))


def _refuse_foreign_keys_of_others(conn: Connection, plan: TablePlan, scope: Scope) -> None:
    """A staged key that stands in the target outside the scope is somebody else's row."""
    if not _key(plan):
        return
    found = conn.execute(
        _SQL(
            "SELECT ROW({})::pg_catalog.text FROM {} AS s WHERE NOT coalesce({}, false) AND EXISTS (SELECT 1 FROM {} AS d WHERE {}) LIMIT 1"
        ).format(_key_of(plan), plan.name, scope_rows(plan, scope), plan.staged_name, _same_key(plan))
    ).fetchone()
    if found:
        raise RestoreConflict(
            f"{plan.source.table} has the key {found[0]} in a row that is not of {scope}",
            hint="Somebody else's memory uses this key now; restore into another database and look at both.",
        )


def _refuse_strangers(conn: Connection, plan: TablePlan, scope: Scope) -> None:
    """A document that calls itself one user's must not bring somebody else's rows."""
    if scope == EVERYBODY:
        return
    owned = scope_condition(msgspec.structs.replace(plan.table, where=None), scope, alias="d")
    if owned is None:
        return
    owner = plan.table.uid_column if scope.kind == "uid" else plan.table.workspace_column
    if owner not in {c.name for c in plan.columns}:  # rows that do not say whose they are
        owned = _SQL("false")
    if conn.execute(_SQL("SELECT 1 FROM {} AS d WHERE NOT coalesce({}, false) LIMIT 1").format(plan.staged_name, owned)).fetchone():
        raise RestoreConflict(
            f"the document is of {scope}, but has rows of {plan.source.table} that are not",
            hint="Restore it into an empty database and look at it there.",
        )


def _refuse_cascades(
    conn: Connection,
    plans: Sequence[TablePlan],
    everything: Sequence[TablePlan],
    scope: Scope,
    doomed: Callable[[TablePlan, Scope], sql.Composable],
) -> None:
    """Deleting the rows `doomed` of the tables `plans` must not delete or change rows that the restore, `everything`, is not about."""
    by_oid = {p.target.oid: p for p in everything if p.target}
    cursor = conn.execute(query("destructive_references"), {"oids": [p.target.oid for p in plans if p.target]})
    for name, schema, table, referenced, referencing, columns, referenced_columns in cursor.fetchall():
        plan, other = by_oid[referenced], by_oid.get(referencing)
        outside = _SQL("NOT coalesce({}, false)").format(_aliased_scope(other, scope)) if other else _SQL("true")
        link = _SQL(" AND ").join(
            _SQL("o.{} = s.{}").format(sql.Identifier(a), sql.Identifier(b)) for a, b in zip(columns, referenced_columns, strict=True)
        )
        found = conn.execute(
            _SQL("SELECT 1 FROM {} AS s JOIN {} AS o ON {} WHERE {} AND {} LIMIT 1").format(
                plan.name, sql.Identifier(schema, table), link, doomed(plan, scope), outside
            )
        ).fetchone()
        if found:
            raise RestoreConflict(
                f"deleting from {plan.source.table} would also change rows of {schema}.{table} (foreign key {name})",
                hint=f"Restore {schema}.{table} too, as a tier, or use --mode merge --on-conflict update.",
            )


def _aliased_scope(plan: TablePlan, scope: Scope) -> sql.Composable:
    return scope_condition(plan.table, scope, alias="o", isolated=True) or _SQL("true")
