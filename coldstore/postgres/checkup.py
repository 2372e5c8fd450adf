"""Whether snapshots can be taken from a source database: the way there, the role, one moment for several connections, each tier's table.

Reads the catalog and no row of anybody's; changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from functools import cached_property, partial
from typing import Any

import psycopg
from psycopg import sql as compose

from coldstore import sql
from coldstore.diagnosis import Clock, Doubt, Look, NotChecked
from coldstore.errors import DatabaseError, DoctorFailed
from coldstore.postgres.connect import Connection, connect, describe, errors_as
from coldstore.postgres.introspect import Relation, check_tiers, inspect, resolve
from coldstore.postgres.migrate import installed_version
from coldstore.tiers import Tier

NEWEST_TRIED = 18
_KEYS = {"p", "u"}

_SESSION_POOLING = "Give coldstore the server's own address, or a pool in session mode."


class DatabaseCheckup:
    """One visit to the database at `url`."""

    def __init__(self, url: str, tiers: Sequence[Tier]) -> None:
        self._url = url
        self._tiers = tiers
        self.clock: Clock | None = None

    def looks(self) -> Iterator[Look]:
        yield Look("database: reachable", self._reachable, needed=True)
        yield Look("database: version", self._version)
        yield Look("database: way there", self._way)
        yield Look("database: role", self._role)
        yield Look("database: sessions", self._sessions)
        yield Look("database: one moment", self._moment)
        for tier in self._tiers:
            yield Look(f"tier {tier.name}", partial(self._tier, tier))
        yield Look("tiers: one table each", self._tables)
        yield Look("database: coldstore's own tables", self._migrations)

    def close(self) -> None:
        if "_conn" in self.__dict__:
            self._conn.close()

    @cached_property
    def _conn(self) -> Connection:
        conn = connect(self._url, purpose="coldstore doctor")
        conn.read_only = True
        return conn

    # --- the server ----------------------------------------------------------------------------------------------------------------

    def _reachable(self) -> str:
        conn = self._conn
        started = time.time()
        (there,) = self._ask("SELECT extract(epoch FROM clock_timestamp())::float8")
        ended = time.time()
        self.clock = Clock(float(there) - (started + ended) / 2, (ended - started) / 2)
        return f"{describe(self._url)} as {conn.info.user}, answers in {(ended - started) * 1000:.1f} ms"

    def _version(self) -> str:
        (version,) = self._ask("SELECT current_setting('server_version')")
        if self._conn.info.server_version // 10000 > NEWEST_TRIED:
            raise Doubt(
                f"PostgreSQL {version} is newer than coldstore was tried on ({NEWEST_TRIED})", hint="Prove a snapshot: `coldstore drill`."
            )
        return f"PostgreSQL {version}"

    def _way(self) -> str:
        if self._conn.info.host.startswith("/"):
            return "a socket of this machine"
        return "encrypted with TLS" if self._conn.pgconn.ssl_in_use else "over the network, not encrypted (sslmode=require asks for TLS)"

    def _role(self) -> str:
        name, superuser, bypass, standby = self._ask(
            "SELECT r.rolname::text, r.rolsuper, r.rolbypassrls, pg_catalog.pg_is_in_recovery()"
            " FROM pg_catalog.pg_roles r WHERE r.rolname = current_user"
        )
        rights = ["superuser"] if superuser else ["sees every row (BYPASSRLS)"] if bypass else ["sees what policies let it see"]
        return ", ".join([name, *rights, *(["on a standby"] if standby else [])])

    def _sessions(self) -> str:
        """A pool in transaction mode gives a connection another server process for each transaction: settings that one statement pins are
        gone, or somebody else's, for the next."""
        with closing(connect(self._url, purpose="coldstore doctor")) as other, errors_as("compare sessions"):
            (before,) = self._ask(_PROCESS)
            other.execute("BEGIN READ ONLY")
            (others,) = other.execute(_PROCESS).fetchone() or (None,)
            (after,) = self._ask(_PROCESS)
            (zone, security) = self._ask("SELECT current_setting('TimeZone'), current_setting('row_security')")
        if before == others or before != after or (zone, security) != ("UTC", "off"):
            raise DoctorFailed(
                f"{describe(self._url)} is a connection pool in transaction mode: two connections share one server process",
                hint=_SESSION_POOLING,
            )
        return "each connection has a server process of its own, and keeps its settings"

    def _moment(self) -> str:
        with closing(connect(self._url, purpose="coldstore doctor")) as other, errors_as("share one moment"):
            self._conn.execute(_BEGIN)
            try:
                (name,) = self._ask("SELECT pg_catalog.pg_export_snapshot()")
                other.execute(_BEGIN)
                other.execute(compose.SQL("SET TRANSACTION SNAPSHOT {}").format(compose.Literal(name)))
                seen = (other.execute(_MOMENT).fetchone() or (None,))[0]
                same = seen == self._ask(_MOMENT)[0]
            finally:
                with suppress(psycopg.Error):
                    self._conn.execute("ROLLBACK")
        if not same:
            raise DoctorFailed("two connections that should see one moment do not", hint=_SESSION_POOLING)
        return "several connections see the same one"

    # --- tiers ---------------------------------------------------------------------------------------------------------------------

    def _tier(self, tier: Tier) -> str:
        (oid,) = check_tiers([tier], resolve(self._conn, [tier.table]))
        (relation,) = inspect(self._conn, [(tier, oid)]).relations
        table = relation.table
        owners = [c for c in (table.uid_column, table.workspace_column) if c]
        if not owners:
            raise Doubt(
                f"{self._size(relation)}; no column says whose a row is: only snapshots of everybody hold it",
                hint=f"Name one with `uid = …` in [tiers.{tier.name}], if there is one.",
            )
        if table.kind in {"table", "partitioned"} and not any(c.kind in _KEYS for c in table.constraints):
            raise Doubt(
                f"{self._size(relation)}; {tier.table} has no primary key: --mode merge cannot tell its rows apart",
                hint="Give the table a primary key.",
            )
        key = next((c for kind in "pu" for c in table.constraints if c.kind == kind), None)
        said = [self._size(relation), f"{len(table.columns)} columns", f"owners in {', '.join(owners)}"]
        return "; ".join([*said, *([f"key {', '.join(key.columns)}"] if key else [table.kind])])

    def _size(self, relation: Relation) -> str:
        """Rows as the server believes: counting would read the table."""
        names = [leaf.name for leaf in relation.leaves]
        (rows,) = self._ask(
            "SELECT CASE WHEN bool_and(c.reltuples >= 0) THEN sum(c.reltuples)::bigint END FROM pg_catalog.pg_class c"
            " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            " JOIN unnest(%s::text[], %s::text[]) w (s, t) ON n.nspname = w.s AND c.relname = w.t",
            [n.schema for n in names],
            [n.name for n in names],
        )
        size = f"{sum(leaf.bytes for leaf in relation.leaves) / 1e6:,.1f} MB"
        return f"{size}, rows not counted yet (ANALYZE)" if rows is None else f"about {rows:,} rows, {size}"

    def _tables(self) -> str:
        names = [t.table for t in self._tiers]
        oids = resolve(self._conn, names)
        there = [t for t in self._tiers if oids[t.table] is not None]
        check_tiers(there, oids)
        return f"{len(there)} tables"

    def _migrations(self) -> str:
        known = len(sql.migrations())
        try:
            with errors_as("look at coldstore's own tables"):
                there = installed_version(self._conn)
        except DatabaseError as exc:
            raise NotChecked(f"this role may not look at them: {exc}") from None
        if there > known:
            raise Doubt(f"a newer coldstore has been here (version {there}, this one knows {known})", hint="Upgrade coldstore.")
        if 0 < there < known:
            raise Doubt(f"they are at version {there} of {known}", hint="Run `coldstore init`.")
        return f"up to date (version {there})" if there else "absent; taking snapshots does not need them"

    def _ask(self, statement: str, *values: Any) -> tuple[Any, ...]:
        with errors_as("ask"):
            return self._conn.execute(statement.encode(), values or None).fetchone() or (None,)


_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_PROCESS = "SELECT pg_catalog.pg_backend_pid()"
_MOMENT = "SELECT pg_catalog.pg_current_snapshot()::text"
