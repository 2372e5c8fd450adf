"""One array of a document and the table it goes to: what the steps of a restore hand on to one another."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from psycopg import sql

from coldstore.document import model
from coldstore.errors import TargetNotEmpty
from coldstore.postgres.connect import Connection
from coldstore.postgres.introspect import Relation
from coldstore.postgres.read import scope_condition
from coldstore.tiers import EVERYBODY, Scope

_SQL = sql.SQL


@dataclass(slots=True)
class TablePlan:
    """One array of the document and the table it goes to. `target` is None where the restore makes the table; `staged` is filled when
    it is staged. `ignored`: columns that the target lacks and that the caller allowed to be left out."""

    source: model.Table
    target: Relation | None
    columns: list[model.Column]
    ignored: list[str] = field(default_factory=list)
    staged: Relation | None = None
    existing: int = 0
    deleted: int = 0
    updated: int = 0
    inserted: int = 0
    unchanged: int = 0
    skipped: int = 0
    rewritten: int = 0  # of the updated ones, those that had to be deleted and inserted

    @property
    def name(self) -> sql.Identifier:
        return sql.Identifier(self.source.table.schema, self.source.table.name)

    @property
    def staged_name(self) -> sql.Identifier:
        assert self.staged is not None  # noqa: S101 — only called after staging
        return self.staged.identifier

    @property
    def table(self) -> model.Table:
        """The target's table, with the owner columns and the condition that the document names."""
        if self.target is None:
            return self.source
        own = {c.name for c in self.target.table.columns}
        return msgspec.structs.replace(
            self.target.table,
            uid_column=self.source.uid_column if self.source.uid_column in own else None,
            workspace_column=self.source.workspace_column if self.source.workspace_column in own else None,
            where=self.source.where,
        )


@dataclass(frozen=True, slots=True)
class Mode:
    """`name`: fresh, replace or merge. `on_conflict`: skip, update or fail, for merge."""

    name: str = "fresh"
    on_conflict: str = "fail"


def scope_rows(plan: TablePlan, scope: Scope) -> sql.Composable:
    """The condition, on alias `s`, for the rows of the target table that the restore is about."""
    return scope_condition(plan.table, scope, isolated=True) or _SQL("true")


def count_scope(conn: Connection, plan: TablePlan, scope: Scope) -> int:
    """Rows of the scope in the target."""
    condition = scope_rows(plan, scope)
    (count,) = conn.execute(_SQL("SELECT count(*) FROM {} AS s WHERE {}").format(plan.name, condition)).fetchone() or (0,)
    return int(count)


def refuse_rows(conn: Connection, plan: TablePlan, scope: Scope) -> None:
    """`TargetNotEmpty` when the target has rows where `fresh` wants none."""
    condition = _SQL("true") if scope == EVERYBODY else scope_rows(plan, scope)
    found = conn.execute(_SQL("SELECT 1 FROM {} AS s WHERE {} LIMIT 1").format(plan.name, condition)).fetchone()
    if found:
        whose = "rows" if scope == EVERYBODY else f"rows of {scope}"
        raise TargetNotEmpty(
            f"{plan.source.table} has {whose} already",
            hint="--mode replace makes them exactly the snapshot's, --mode merge adds what is missing, or name an empty database.",
        )
