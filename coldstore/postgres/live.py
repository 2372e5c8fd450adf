"""Tables of a database as they are at one moment, written as a document has them: what `diff` calls `live`, and what a restore looks at
before it replaces anything. Nothing is changed; the moment lasts until the block ends.

The tables are found by the names that the document has for them. Only its columns are read; what else the database has is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from psycopg import sql

from coldstore.document import model
from coldstore.postgres.connect import Connection, connect, errors_as
from coldstore.postgres.introspect import Relation, find, identifier
from coldstore.postgres.read import Chunk, Line, chunk_query, chunks, copy_lines, scope_query
from coldstore.postgres.staging import as_in_document
from coldstore.tiers import EVERYBODY, Scope

_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_CHUNK = 4 << 20


@dataclass(slots=True)
class LiveTables:
    """`timestamp`: milliseconds since the epoch by the database's clock. `notes`: what of the database the document does not know."""

    conn: Connection
    scope: Scope
    timestamp: int
    relations: dict[str, Relation] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def pieces(self, array: str) -> list[Chunk | None]:
        """Parts of a table that can be read one after the other; None is the whole of it."""
        return list(chunks(self.relations[array], size=_CHUNK)) if self.scope == EVERYBODY else [None]

    def lines(self, array: str, piece: Chunk | None) -> Iterator[Line]:
        """All of them must be taken: the connection has nothing else to say before."""
        relation = self.relations[array]
        statement = scope_query(relation, self.scope) if piece is None else chunk_query(relation, piece, self.scope)
        return copy_lines(self.conn, statement, raw_newlines=relation.raw_newlines)


@contextmanager
def live_tables(url: str, tables: Sequence[model.Table], scope: Scope) -> Iterator[LiveTables]:
    """Those of `tables` that are there, of one moment. Raises a `DatabaseError`."""
    conn = connect(url, purpose="coldstore diff")
    try:
        with errors_as("look at the database"):
            there = find(conn, [t.table for t in tables])
            found = [t for t in tables if t.table in there]
            _begin(conn, [identifier(t.table) for t in found if _can_lock(conn, there[t.table])])
            live = LiveTables(conn, scope, _clock(conn))
            for table in found:
                live.relations[table.array] = relation = as_in_document(conn, table.table, table)
                if more := sorted(relation.types.keys() - {c.name for c in table.columns} - {*table.excluded}):
                    live.notes.append(f"{table.table}: not compared {', '.join(more)}, which only the database has")
        yield live
    finally:
        conn.close()


def _can_lock(conn: Connection, oid: int) -> bool:
    found = conn.execute(
        "SELECT 1 FROM pg_catalog.pg_class WHERE oid = %s AND relkind IN ('r', 'p') AND has_table_privilege(oid, 'SELECT')", (oid,)
    ).fetchone()
    return found is not None


def _begin(conn: Connection, names: Sequence[sql.Identifier]) -> None:
    conn.execute(_BEGIN)
    if names:  # before the first query, which fixes the moment: a TRUNCATE that commits in between would show as an empty table
        conn.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.SQL(", ").join(names)))


def _clock(conn: Connection) -> int:
    (now,) = conn.execute("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint").fetchone() or (0,)
    return int(now)
