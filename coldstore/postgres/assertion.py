"""What the owner of a database knows to be true of it, as SQL: one statement that gives one row with one boolean.

It runs in a read-only transaction under a time limit, alone in its session, and is sent so that it cannot be more than one statement. The
answer never repeats a value that the statement gave: it may be memory.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import psycopg
from psycopg import errors as pg
from psycopg import sql

from coldstore.postgres.connect import Connection, connect


@dataclass(frozen=True, slots=True)
class Assertion:
    """`name` is how it is reported."""

    name: str
    sql: str


def objection(url: str, assertion: Assertion, *, timeout: int) -> str | None:
    """None if it holds in the database at `url`, otherwise why it does not. `timeout` in seconds."""
    with closing(connect(url, purpose="coldstore drill")) as conn:
        try:
            return _verdict(_ask(conn, assertion.sql, timeout))
        except pg.QueryCanceled:
            return f"it took longer than {timeout} s"
        except psycopg.Error as exc:
            return said(exc) if exc.sqlstate else "it is no statement that gives rows"


def _ask(conn: Connection, statement: str, timeout: int) -> list[tuple[object, ...]]:
    conn.execute("BEGIN READ ONLY")
    conn.execute("SELECT set_config('search_path', %s, true)", (conn.role_search_path,))
    conn.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(timeout * 1000))
    with conn.cursor() as cursor:
        return list(islice(cursor.stream(statement.encode()), 2))  # two are enough to know that it is not one


def _verdict(rows: list[tuple[object, ...]]) -> str | None:
    if len(rows) != 1:
        return "it gave more than one row" if rows else "it gave no row"
    if len(rows[0]) != 1:
        return f"it gave {len(rows[0])} columns, not one"
    (value,) = rows[0]
    if value is True:
        return None
    return "it is false" if value is False else "it gave NULL" if value is None else "it gave something that is no boolean"


def said(exc: psycopg.Error) -> str:
    """What Postgres said, without the values that errors of data repeat."""
    state = exc.sqlstate or ""
    if state.startswith(("22", "23")):
        where = exc.diag.constraint_name or exc.diag.column_name
        return f"{type(exc).__name__}{f' ({where})' if where else ''}"
    return exc.diag.message_primary or type(exc).__name__
