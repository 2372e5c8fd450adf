"""One moment of a source database, seen by any number of connections.

Order: names are looked up; the tables are locked against being dropped, truncated or altered (ACCESS SHARE, which stops nobody's reads
or writes); then the first query of a REPEATABLE READ transaction fixes the moment. Locking comes first because a TRUNCATE that
commits between moment and lock would show as an empty table. Further readers import the same snapshot and take the same locks, without
waiting for them: who waits behind somebody that waits for us waits for ever.

Connections are kept for the next moment of the same process; one that was left in the middle of a stream is closed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from coldstore.document import model
from coldstore.errors import DatabaseError, TableMissing
from coldstore.postgres.capture import fingerprint
from coldstore.postgres.connect import Connection, connect, errors_as
from coldstore.postgres.introspect import Catalog, Relation, check_tiers, identifier, inspect, refresh, resolve, state
from coldstore.postgres.read import count_query, orphan_query
from coldstore.sql import query
from coldstore.tiers import Tier

_CLEAN = 60.0  # seconds
_PATIENCE = "60s"  # of several readers, for a table that could not be locked beforehand
_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_IMPATIENT = f"SET LOCAL lock_timeout = '{_PATIENCE}'"


@dataclass(slots=True)
class Moment:
    """What everything read inside `Source.moment` agrees on. `timestamp`: milliseconds since the epoch by the database's clock."""

    leader: Connection
    catalog: Catalog
    database: model.Database
    timestamp: int
    check_utf8: bool
    source: Source
    _locked: list[sql.Identifier] = field(default_factory=list)
    _exported: str | None = None
    _readers: list[Connection] = field(default_factory=list)

    def connections(self, count: int) -> list[Connection]:
        """At most `count` connections that see this moment; the first is the leader. They are fewer when somebody waits to alter or to
        truncate one of the tables."""
        if count > 1 and self._exported is None:
            with errors_as("export snapshot"):
                self.leader.execute(_IMPATIENT)
                (self._exported,) = self.leader.execute("SELECT pg_catalog.pg_export_snapshot()").fetchone() or ("",)
        while len(self._readers) < count - 1 and self._recruit():
            pass
        return [self.leader, *self._readers[: count - 1]]

    def _recruit(self) -> bool:
        reader = self.source.take()
        self._readers.append(reader)
        with errors_as("import snapshot"):
            reader.execute(_BEGIN)
            reader.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(self._exported)))
            reader.execute(_IMPATIENT)
            try:
                if self._locked:
                    reader.execute(_lock(self._locked) + sql.SQL(" NOWAIT"))
            except psycopg.errors.LockNotAvailable:
                self.dismiss(reader)
                return False
        return True

    def dismiss(self, *readers: Connection) -> None:
        """Give these back."""
        for reader in readers:
            self._readers.remove(reader)
            self.source.give_back(reader)

    def rows(self, relation: Relation) -> int:
        return self._count(count_query(relation))

    def rows_without_owner(self, relation: Relation) -> int:
        return self._count(orphan_query(relation))

    def _count(self, query: sql.Composed) -> int:
        with errors_as("count"):
            (count,) = self.leader.execute(query).fetchone() or (0,)
        return int(count)


def _lock(tables: Sequence[sql.Identifier]) -> sql.Composed:
    return sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.SQL(", ").join(tables))


class Source:
    """A database to read from. Safe to use from several threads; each moment has connections of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._known: dict[tuple[object, ...], tuple[str, Catalog]] = {}
        self._cleaned = -_CLEAN

    def due_to_clean(self) -> bool:
        """Whether it is time again to forget changes that were recorded: a service takes many snapshots a second."""
        with self._lock:
            due = time.monotonic() - self._cleaned >= _CLEAN
            self._cleaned = time.monotonic() if due else self._cleaned
        return due

    def take(self) -> Connection:
        """An idle connection that still answers, or a new one."""
        while True:
            with self._lock:
                conn = self._idle.pop() if self._idle else None
            if conn is None:
                return connect(self._url, purpose="coldstore snapshot")
            if not conn.closed and not conn.broken:
                return conn

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """For what is no snapshot: transactions are the caller's."""
        conn = self.take()
        try:
            yield conn
        finally:
            self.give_back(conn)

    def give_back(self, conn: Connection) -> None:
        """Keep the connection for whoever comes next; one that is in the middle of something is closed."""
        try:
            if conn.closed or conn.info.transaction_status not in {_IDLE, _IN_TRANSACTION, _IN_ERROR}:
                conn.close()
                return
            conn.execute("ROLLBACK")
        except psycopg.Error:
            with suppress(psycopg.Error):
                conn.close()
            return
        with self._lock:
            self._idle.append(conn)

    @contextmanager
    def moment(self, tiers: Sequence[Tier], *, vectors: str = "text", sizes: bool = True, readers: int = 1) -> Iterator[Moment]:
        """Everything read from the yielded `Moment` is of one instant. With `sizes` the tables' sizes are of now; without, what is known
        of them from an earlier moment serves, as long as nobody altered them. `readers`: so many connections it can have for sure.
        Raises a `DatabaseError` before any row is read when a tier's table is missing, unreadable or filtered by row-level security."""
        leader = self.take()
        moment: Moment | None = None
        try:
            if sizes:
                self._known.clear()
            try:
                with errors_as("begin"):
                    moment = self._begin(leader, tiers, vectors)
            except DatabaseError:
                if not leader.closed or not self._known:
                    raise
                # The idle connection had died unnoticed (a restarted server); nothing was read yet, so a fresh one may try.
                leader = connect(self._url, purpose="coldstore snapshot")
                with errors_as("begin"):
                    moment = self._begin(leader, tiers, vectors)
            while len(moment.connections(readers)) < readers:  # somebody waits for a table: after them
                moment.dismiss(*moment.connections(readers)[1:])
                self._known.clear()
                with errors_as("begin"):
                    leader.execute("ROLLBACK")
                    moment = self._begin(leader, tiers, vectors)
            yield moment
        finally:
            for conn in [leader, *(moment._readers if moment else [])]:  # noqa: SLF001
                self.give_back(conn)

    def _begin(self, leader: Connection, tiers: Sequence[Tier], vectors: str) -> Moment:
        key = (tuple(tiers), vectors)
        state_known, catalog = self._known.get(key, ("", None))
        if catalog is not None:
            try:
                locked = [r.identifier for r in catalog.relations if r.lockable and r.table.kind in {"table", "partitioned"}]
                now = self._fix(leader, locked)
                found = state(leader, [r.oid for r in catalog.relations], catalog)
            except TableMissing:
                found = ""
            if found != state_known:  # somebody altered a table: look everything up again, in a new transaction
                leader.execute("ROLLBACK")
                self._known.pop(key, None)
                return self._begin(leader, tiers, vectors)
            catalog = refresh(leader, catalog)
        else:
            oids = check_tiers(tiers, resolve(leader, [t.table for t in tiers]))
            locked = self._lockable(leader, oids)
            now = self._fix(leader, locked)
            catalog = inspect(leader, list(zip(tiers, oids, strict=True)), vectors=vectors)
            if not any(r.table.kind == "partitioned" for r in catalog.relations):  # whose leaves come and go
                self._known[key] = (state(leader, oids, catalog), catalog)
        database = model.Database(
            system_identifier=now["system_identifier"],
            name=now["name"],
            server_version=now["server_version"],
            snapshot=now["snapshot"],
            oid=now["oid"],
            timeline=now["timeline"],
            capture=fingerprint(leader, catalog) if now["captured"] else None,
        )
        return Moment(leader, catalog, database, now["milliseconds"], now["encoding"] == "SQL_ASCII", self, locked)

    def _lockable(self, leader: Connection, oids: list[int]) -> list[sql.Identifier]:
        names = leader.execute(
            "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n"
            " ON n.oid = c.relnamespace WHERE c.oid = ANY (%s::oid[]) AND c.relkind IN ('r', 'p')"
            " AND has_table_privilege(c.oid, 'SELECT')",
            (oids,),
        ).fetchall()
        return [identifier(model.Name(schema=schema, name=name)) for schema, name in names]

    def _fix(self, leader: Connection, tables: list[sql.Identifier]) -> dict[str, Any]:
        with errors_as("begin"), leader.cursor(row_factory=dict_row) as cursor:
            cursor.execute(_BEGIN)
            if tables:
                cursor.execute(_lock(tables))
            return cursor.execute(query("moment"), prepare=True).fetchone() or {}

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for conn in idle:
            conn.close()


_IDLE, _IN_TRANSACTION, _IN_ERROR = (
    psycopg.pq.TransactionStatus.IDLE,
    psycopg.pq.TransactionStatus.INTRANS,
    psycopg.pq.TransactionStatus.INERROR,
)
