"""Bringing a database up to date: coldstore's own schema, and the reference tables for those who ask for them.

`migrate`, for each step: begin → take the lock → look which versions are applied → run the next one → note it → commit. The lock lives
as long as the step's transaction, so several processes may start at once and behind a connection pool: whoever comes second finds the
step done. A step that fails leaves nothing of itself.

It refuses a database that a newer coldstore has migrated, and a connection that is in the middle of something. It never goes back.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import psycopg
from psycopg import sql as compose
from psycopg.pq import TransactionStatus

from coldstore import sql
from coldstore.errors import ConfigError, DatabaseError
from coldstore.postgres.connect import errors_as

Connection: TypeAlias = psycopg.Connection[Any]

# Any fixed number does, as long as nobody else takes an advisory lock on it: the bytes of "coldmigr".
LOCK = int.from_bytes(b"coldmigr", "big")


def migrate(conn: Connection) -> list[int]:
    """Apply what is pending, each step in a transaction of its own, and return the versions applied now (none: it was up to date)."""
    _require_idle(conn)
    applied = []
    with errors_as("migrate"):
        while (version := _step(conn)) is not None:
            applied.append(version)
    return applied


def installed_version(conn: Connection) -> int:
    """The newest migration that the database has seen; 0 where coldstore never was."""
    # Two questions, because a statement that names a missing table is an error even where it would not be reached.
    found = conn.execute("SELECT to_regclass('coldstore.migrations') IS NOT NULL AS there").fetchone()
    if found is None or not _only(found):
        return 0
    newest = conn.execute("SELECT coalesce(max(version), 0) AS version FROM coldstore.migrations").fetchone()
    return int(_only(newest))


def install_reference_schema(conn: Connection) -> None:
    """Create the tables of section `reference` that are absent, all of them or none. Tables that are there stay as they are."""
    _require_idle(conn)
    with errors_as("install the reference schema"), conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        conn.execute("SET LOCAL client_min_messages = warning")
        conn.execute("SET LOCAL search_path = public")
        _require_pgvector(conn)
        conn.execute("CREATE EXTENSION IF NOT EXISTS vector")
        _see_pgvector(conn)
        conn.execute(sql.section("schema.sql", "reference").encode())


def set_schedule_trigger(conn: Connection, *, installed: bool) -> None:
    """Make the trigger by which a changed row of `public.scheduled_agents` wakes the schedulers, or remove it. Twice is as good as once."""
    _require_idle(conn)
    with errors_as("schedule trigger"), conn.transaction():
        conn.execute("SET LOCAL client_min_messages = warning")
        conn.execute(sql.section("schedule_trigger.sql", "install" if installed else "remove").encode())


def _step(conn: Connection) -> int | None:
    """The next pending migration, applied; None when there is none."""
    known = sql.migrations()
    with conn.transaction():
        # Under any other level the snapshot would be older than the lock, and the loser of a race would not see what the winner did.
        conn.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        version = installed_version(conn)
        if version > len(known):
            raise ConfigError(
                f"the database is at version {version} of coldstore's schema, this program knows {len(known)}",
                hint="A newer coldstore has been here: upgrade this one.",
                op="migrate",
            )
        if version == len(known):
            return None
        step = known[version]
        conn.execute(step.sql.encode())
        conn.execute("INSERT INTO coldstore.migrations (version, name) VALUES (%s, %s)", (step.version, step.name))
        return step.version


def _require_idle(conn: Connection) -> None:
    # Inside somebody's transaction a step would be a savepoint: not committed when this returns, and the lock held for who knows how long.
    if conn.info.transaction_status != TransactionStatus.IDLE:
        raise ConfigError("the connection is in a transaction", hint="Commit or roll back before you change the schema.")


def _require_pgvector(conn: Connection) -> None:
    """Ask before Postgres complains about a missing control file, which says little to who has never made an extension."""
    if not conn.execute("SELECT FROM pg_available_extensions WHERE name = 'vector'").fetchall():
        raise DatabaseError(
            "this Postgres server has no pgvector, which the reference schema needs for embeddings",
            hint="Install pgvector on the server (https://github.com/pgvector/pgvector), or use the image pgvector/pgvector.",
            op="install the reference schema",
        )


def _see_pgvector(conn: Connection) -> None:
    """Put pgvector's schema on the path: some vendors keep it outside `public`."""
    row = conn.execute(
        "SELECT n.nspname AS name FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
    ).fetchone()
    conn.execute(compose.SQL("SET LOCAL search_path = public, {}").format(compose.Identifier(_only(row))))


def _only(row: Any) -> Any:
    """The one value of a row, whatever row factory the caller's connection has."""
    return next(iter(row.values())) if isinstance(row, dict) else row[0]
