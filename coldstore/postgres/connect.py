"""Connections to a source or target, with every setting pinned that changes how a value is written, and the one place where errors of
psycopg become ours.

Refuses: a DSN it cannot parse (its text is never repeated: it may hold a password) and servers before PostgreSQL 14.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from coldstore.errors import (
    ColdStoreError,
    ConfigError,
    DatabaseError,
    DatabaseUnreachable,
    PermissionDenied,
    RowSecurityActive,
    TableMissing,
)

MINIMUM_VERSION = 140000

# What a value looks like as text or JSON must not depend on the role, the database or the client. `row_security = off` turns a policy
# that would filter rows into an error. Time-outs a role may have set would end a long read.
_PINNED = """
SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 1;
SET bytea_output = 'hex'; SET lc_monetary = 'C'; SET xmloption = 'content'; SET standard_conforming_strings = on;
SET row_security = off; SET search_path = ''; SET client_encoding = 'UTF8'; SET client_min_messages = 'warning';
SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET jit = off;
SET quote_all_identifiers = off; SET synchronize_seqscans = off;
SET plan_cache_mode = force_generic_plan
"""


class Connection(psycopg.Connection[Any]):
    """A psycopg connection that remembers the `search_path` its role had before ours was pinned: names are looked up in that one."""

    role_search_path = ""


def normalise(url: str) -> str:
    """A libpq connection string from a URL that may be spelled for SQLAlchemy (`postgresql+asyncpg://…`)."""
    return re.sub(r"\Apostgres(?:ql)?\+[a-z0-9]+://", "postgresql://", url.strip())


def describe(url: str) -> str:
    """Where a URL leads, without any secret: `localhost:5432/memory`."""
    try:
        parts = conninfo_to_dict(normalise(url))
    except psycopg.ProgrammingError:
        return "an unreadable address"
    if _misread(parts):
        return "an unreadable address"
    host = parts.get("host") or parts.get("hostaddr") or "the local socket"
    return f"{host}{':' + str(parts['port']) if parts.get('port') else ''}/{parts.get('dbname') or parts.get('user') or ''}"


def _misread(parts: Mapping[str, Any]) -> bool:
    """Part of a password is taken for something else, and would be shown."""
    return "@" in f"{parts.get('host')}{parts.get('dbname')}" or not re.fullmatch(r"[\d,]*", str(parts.get("port") or ""))


def connect(url: str, *, purpose: str = "coldstore", **usual: str) -> Connection:
    """A connection in autocommit mode, its session pinned and its `search_path` empty. `usual`: parameters of libpq, where the URL does not
    say otherwise. Raises `DatabaseUnreachable` or `ConfigError`."""
    try:
        parts = conninfo_to_dict(normalise(url))
    except psycopg.ProgrammingError:
        raise ConfigError("the database URL cannot be read", hint="It looks like postgresql://user@host:5432/database.") from None
    if _misread(parts):
        raise ConfigError("the database URL cannot be read", hint="Percent-encode the password: %40 for @, %2F for /, %3A for :.")
    parts = {"application_name": purpose, "connect_timeout": "15", **usual, **parts}
    try:
        conn = Connection.connect(make_conninfo("", **parts), autocommit=True, client_encoding="UTF8")
    except psycopg.OperationalError as exc:
        raise _unreachable(exc, describe(url)) from exc
    conn.prepare_threshold = None  # only what asks for it: the catalog queries, which are large and asked for every snapshot
    if conn.info.server_version < MINIMUM_VERSION:
        version = conn.info.server_version // 10000
        conn.close()
        raise DatabaseError(f"PostgreSQL {version} at {describe(url)} is too old", hint="coldstore needs PostgreSQL 14 or newer.")
    with errors_as("connect"):
        (conn.role_search_path,) = conn.execute("SELECT current_setting('search_path')").fetchone() or ("",)
        conn.execute(_PINNED)
    return conn


def _unreachable(exc: psycopg.OperationalError, where: str) -> ColdStoreError:
    # A failed connection names host and reason, never the password; with several addresses the last line has the reason.
    told = re.findall(r"(?:failed: |FATAL: +)(?:FATAL: +)?(.*)", str(exc))
    reason = (told or str(exc).strip().splitlines() or ["no reason given"])[-1].strip()
    hint = "Check host, port, user, password and database of the URL, and whether the server is running."
    if "password" in reason or "authentication" in reason:
        hint = "Check the user and password of the URL."
    elif "does not exist" in reason:
        hint = "Create it, or correct the name in the URL."
    return DatabaseUnreachable(f"cannot connect to {where}: {reason}", hint=hint, op="connect")


_KNOWN: list[tuple[type[psycopg.Error], str, str | None]] = [
    (pg.DiskFull, "the database server's disk is full", "Free space there and run again."),
    (pg.LockNotAvailable, "a table is locked by another session", "Somebody alters it, or waits to: run again when they are done."),
    (pg.QueryCanceled, "the database cancelled the query", None),
    (pg.ReadOnlySqlTransaction, "the database is read-only", "Restore into a primary, not a standby."),
]


def translate(exc: psycopg.Error, *, op: str) -> ColdStoreError:
    """Any error of psycopg as one of ours, with what to do about it."""
    message = exc.diag.message_primary or (str(exc).strip().splitlines() or ["the database failed"])[0]
    detail = f" ({exc.diag.message_detail})" if exc.diag.message_detail else ""
    table = exc.diag.table_name
    if isinstance(exc, pg.InsufficientPrivilege):
        if "row-level security" in message or "row security" in message:
            return RowSecurityActive(message, op=op, hint="Use a role with BYPASSRLS; a filtered backup would be a partial one.")
        return PermissionDenied(message, op=op, hint="Grant the role what it needs, or use another role.")
    if isinstance(exc, pg.UndefinedTable):
        return TableMissing(message, op=op, hint="Create it with `coldstore init --reference-schema`, or correct coldstore.toml.")
    for kind, sentence, hint in _KNOWN:
        if isinstance(exc, kind):
            return DatabaseError(f"{sentence}: {message}", op=op, hint=hint)
    if isinstance(exc, psycopg.OperationalError) and exc.sqlstate is None:
        return DatabaseUnreachable(f"the connection to the database broke: {message}", op=op, hint="Run it again; nothing was published.")
    return DatabaseError(f"{message}{detail}" + (f" [{table}]" if table else ""), op=op)


@contextmanager
def errors_as(op: str) -> Iterator[None]:
    """Everything psycopg raises inside becomes a `ColdStoreError`."""
    try:
        yield
    except psycopg.Error as exc:
        raise translate(exc, op=op) from exc
