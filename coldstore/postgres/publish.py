"""Staged tables into the target, in one transaction on one connection. Whatever fails, the target is as it was.

A table that the restore made is moved: `SET SCHEMA`, then its defaults and identities, then foreign keys; sequences are set last of all,
for no rollback would set them back. A table that was there gets the staged rows (`modes.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import errors as pg
from psycopg import sql

from coldstore.document import model
from coldstore.errors import RestoreConflict, SchemaMismatch
from coldstore.postgres import ddl
from coldstore.postgres.connect import Connection, errors_as
from coldstore.postgres.modes import fill_defaults, load_existing
from coldstore.postgres.staging import Staging
from coldstore.postgres.table_plan import Mode, TablePlan
from coldstore.tiers import Scope

_SQL = sql.SQL


def publish(
    conn: Connection, plans: Sequence[TablePlan], schema: model.Schema | None, staging: Staging, *, scope: Scope, mode: Mode
) -> list[str]:
    """Everything inside the caller's transaction. Fills the counts of `plans`. Returns a sentence for each default that was left out."""
    notes: list[str] = []
    existing = [p for p in plans if p.target is not None]
    created = [p for p in plans if p.target is None]
    with errors_as("publish"):
        try:
            for plan in created:
                _move(conn, plan, staging)
            if schema is not None:
                notes = _sequences(conn, created, schema, staging)
            if schema is None:
                for plan in existing:
                    fill_defaults(conn, plan)
            load_existing(conn, existing, scope, mode)
            conn.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except pg.ForeignKeyViolation as exc:
            raise RestoreConflict(
                f"{exc.diag.message_primary} ({exc.diag.message_detail})",
                hint="Restore the table it refers to as well, or first.",
            ) from exc
        except pg.UniqueViolation as exc:
            raise RestoreConflict(
                f"{exc.diag.message_primary} ({exc.diag.message_detail})",
                hint="--mode merge with --on-conflict skip or update says what to do with rows that are there.",
            ) from exc
        except pg.NotNullViolation as exc:
            raise SchemaMismatch(
                f"{exc.diag.message_primary}", hint="The target wants a value that the document does not have; give the column a default."
            ) from exc
    return notes


def make(conn: Connection, statement: sql.Composed, what: str) -> str | None:
    """Make what hangs on a table. Returns a sentence when that calls a function the target lacks: functions are no part of a document,
    and the rows are worth more than what would have guarded them."""
    try:
        try:
            with conn.transaction():
                conn.execute(statement)
        except (pg.DiskFull, pg.OutOfMemory):
            # Processes that build together share memory, of which a container may have too little: then one alone.
            with conn.transaction():
                conn.execute("SET LOCAL max_parallel_maintenance_workers = 0")
                conn.execute(statement)
    except (pg.UndefinedFunction, pg.InvalidSchemaName) as exc:
        return f"{what} is left out: {exc.diag.message_primary}"
    return None


# --- tables the restore made -------------------------------------------------------------------------------------------------------


def _move(conn: Connection, plan: TablePlan, staging: Staging) -> None:
    for name in [plan.source.table, *(p.table for p in plan.source.partitions)]:
        conn.execute(_SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(name.schema)))
        conn.execute(_SQL("ALTER TABLE {} SET SCHEMA {}").format(staging.identifier(name), sql.Identifier(name.schema)))


def _sequences(conn: Connection, created: Sequence[TablePlan], schema: model.Schema, staging: Staging) -> list[str]:
    """Sequences, identities and defaults. Returns a sentence for each default that had to be left out."""
    by_name = {s.name: s for s in schema.sequences}
    tables = {p.source.table for p in created}
    identities = {c.identity.sequence for t in schema.tables for c in t.columns if c.identity}
    left_out = []
    for sequence in schema.sequences:
        needed = sequence.owner_table in tables or (created and sequence.owner_table is None and sequence.name not in identities)
        if needed and not _exists(conn, sequence.name):
            conn.execute(_SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(sequence.name.schema)))
            conn.execute(ddl.create_sequence(sequence))
    for plan in created:
        for column in plan.columns:
            if column.generated:
                continue
            if column.identity:
                conn.execute(ddl.identity(plan.name, column, by_name.get(column.identity.sequence)))
            elif column.default is not None:
                statement = _SQL("ALTER TABLE {} ALTER COLUMN {} SET DEFAULT {}").format(
                    plan.name, sql.Identifier(column.name), staging.names.text(column.default)
                )
                left_out.append(make(conn, statement, f"the default of {plan.source.table}.{column.name}, {column.default},"))
    described = {(p.source.table, c.name) for p in created for c in p.columns}
    for sequence in schema.sequences:  # one whose column was left behind belongs to nobody
        if sequence.owner_column and sequence.owner_table and (sequence.owner_table, sequence.owner_column) in described:
            owner = sql.Identifier(sequence.owner_table.schema, sequence.owner_table.name, sequence.owner_column)
            conn.execute(_SQL("ALTER SEQUENCE {} OWNED BY {}").format(_name(sequence.name), owner))
    return [sentence for sentence in left_out if sentence]


def advance_sequences(conn: Connection, plans: Sequence[TablePlan], schema: model.Schema | None) -> None:
    """Set each sequence so that the next value is one that no row has. The last step before the commit: no rollback undoes it."""
    with errors_as("publish"):
        for sequence in schema.sequences if schema is not None else []:
            if sequence.last_value is not None and _exists(conn, sequence.name):
                _advance(conn, _name(sequence.name), sequence.last_value, sequence.increment)
        for plan in plans:
            _follow_rows(conn, plan)


def _name(name: model.Name) -> sql.Identifier:
    return sql.Identifier(name.schema, name.name)


def _exists(conn: Connection, name: model.Name) -> bool:
    found = conn.execute(
        "SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s AND c.relkind = 'S'",
        (name.schema, name.name),
    ).fetchone()
    return found is not None


def _advance(conn: Connection, sequence: sql.Composable, value: int, increment: int) -> None:
    """Let the sequence stand at `value`, unless it is beyond."""
    beyond = "<" if increment > 0 else ">"
    conn.execute(
        _SQL(
            "SELECT pg_catalog.setval({q}::pg_catalog.regclass, {v}) FROM {s} WHERE NOT is_called OR last_value " + beyond + " {v}"
        ).format(q=sql.Literal(sequence.as_string(conn)), s=sequence, v=sql.Literal(value))
    )


def _follow_rows(conn: Connection, plan: TablePlan) -> None:
    """No sequence of the table may give a value that a row already has."""
    rows = conn.execute(
        "SELECT a.attname::text, n.nspname::text, c.relname::text, s.seqincrement FROM pg_catalog.pg_depend d"
        " JOIN pg_catalog.pg_sequence s ON s.seqrelid = d.objid JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid"
        " WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass"
        " AND d.refobjid = %s::regclass AND d.deptype IN ('i', 'a')",
        (plan.name.as_string(conn),),
    ).fetchall()
    for column, schema, name, increment in rows:
        extreme = _SQL("max" if increment > 0 else "min")
        (value,) = conn.execute(_SQL("SELECT {}({}) FROM {}").format(extreme, sql.Identifier(column), plan.name)).fetchone() or (None,)
        if value is not None:
            _advance(conn, sql.Identifier(schema, name), int(value), increment)


def add_foreign_keys(conn: Connection, plans: Sequence[TablePlan], staging: Staging) -> list[str]:
    """Foreign keys of the tables the restore made. Returns a sentence for each that has no table to point at."""
    left_out = []
    with errors_as("publish"):
        for plan in plans:
            for found in plan.source.constraints:
                if plan.target is not None or found.kind != "f" or not set(found.columns) <= {c.name for c in plan.columns}:
                    continue
                there = found.references and conn.execute("SELECT to_regclass(%s)", (_name(found.references).as_string(conn),)).fetchone()
                if not there or there[0] is None:
                    left_out.append(f"foreign key {found.name} of {plan.source.table}: there is no table {found.references} here")
                    continue
                conn.execute(ddl.constraint(plan.name, found, staging.names))
    return left_out
