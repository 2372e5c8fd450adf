"""Rows out of Postgres as finished JSON lines. Postgres makes the JSON; Python only takes the bytes off the wire.

`COPY (SELECT row_to_json(…)) TO STDOUT (FORMAT binary)`: the binary frame around a single JSON column costs six bytes a row and spares
the doubling of every backslash that text COPY would do. The inverse is `load.py`.
"""

from __future__ import annotations

import re
import selectors
from collections.abc import Iterator
from dataclasses import dataclass

from psycopg import errors as pg
from psycopg import sql
from psycopg.pq.abc import PGconn

from coldstore.document import model
from coldstore.errors import CorruptDocument
from coldstore.postgres.connect import Connection, errors_as, translate
from coldstore.postgres.introspect import Leaf, Relation, free_name, identifier
from coldstore.tiers import EVERYBODY, Scope

#: A row's JSON. A view into libpq's buffer where nothing had to be changed: nothing is copied before the frame is joined.
Line = bytes | memoryview

_HEADER = 19  # signature, flags, length of the extension area
_SIGNATURE = b"PGCOPY\n\xff\r\n\0"
_FIELD = 6  # count of fields, length of the first
_NEWLINES = bytes.maketrans(b"\r\n", b"  ")
# A jsonb null takes 9 to 12 bytes. Looking at the stored size first spares fetching every large value only to see that it is none.
_SMALL = 20
_MAX_DIMENSIONS = 6
_TEXT = re.compile(r"(text|character varying(\(\d+\))?)\Z")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_INTEGERS = {"smallint": 4, "integer": 9, "bigint": 18}
_INTEGER = re.compile(r"(0|-?[1-9][0-9]{0,17})\Z")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a tier that one query reads: pages `first` to `last` (exclusive) of one leaf, or all of it."""

    leaf: Leaf
    first: int | None = None
    last: int | None = None


def chunks(relation: Relation, *, size: int) -> Iterator[Chunk]:
    """The leaves of a table cut into ranges of about `size` bytes, in order."""
    for leaf in relation.leaves:
        if leaf.pages is None:
            yield Chunk(leaf)
            continue
        step = max(1, leaf.pages * size // max(leaf.bytes, 1))
        for first in range(0, leaf.pages, step):
            yield Chunk(leaf, first, min(first + step, leaf.pages))


def value(column: model.Column, relation: Relation) -> sql.Composable:
    """The expression whose JSON form is the column's value in a document."""
    name = sql.Identifier("s", column.name)
    if column.form == "text" or (column.form == "json" and _is_vector(relation, column.name)):
        return sql.SQL("{}::pg_catalog.text").format(name)
    if column.form == "hex":
        send = sql.SQL(relation.sends[column.name])
        return sql.SQL("pg_catalog.encode({}({}), 'hex')").format(send, name)
    if relation.bases[column.name] == "json":
        # Blanks around a value mean nothing and no JSON parser hands them on: without them, what is read back is what was written.
        text = sql.SQL("{}::pg_catalog.text").format(name)
        return sql.SQL(
            "CASE WHEN pg_catalog.ascii(pg_catalog.left({t}, 1)) <= 32 OR pg_catalog.ascii(pg_catalog.right({t}, 1)) <= 32"
            " THEN pg_catalog.btrim({t}, E' \\t\\r\\n')::pg_catalog.json ELSE {n} END"
        ).format(t=text, n=name)
    if column.name in relation.arrays:
        # JSON cannot tell that an array starts elsewhere than at 1; such a one is written as its literal, a string.
        bounds = sql.SQL(" OR ").join(sql.SQL("pg_catalog.array_lower({}, {}) <> 1").format(name, d) for d in range(1, _MAX_DIMENSIONS + 1))
        return sql.SQL("CASE WHEN {b} THEN pg_catalog.to_json({n}::pg_catalog.text) ELSE pg_catalog.to_json({n}) END").format(
            b=bounds, n=name
        )
    return name


def _is_vector(relation: Relation, column: str) -> bool:
    """pgvector's types. As text they are the same string in the JSON, and Postgres escapes text faster than what it has to look up."""
    schema, _, name = relation.bases[column].rpartition(".")
    return bool(schema) and relation.kinds[column] == "text" and name in {"vector", "halfvec", "sparsevec"}


def line(relation: Relation, source: sql.Composable) -> tuple[sql.Composable, sql.Composable]:
    """(expression, FROM item): `SELECT {expression} FROM {item}` gives each row of `source`, aliased `s` in it, as its JSON line."""
    columns = sql.SQL(", ").join(sql.SQL("{} AS {}").format(value(c, relation), sql.Identifier(c.name)) for c in relation.table.columns)
    # A column of the same name would be taken for the row.
    row = sql.Identifier(free_name("row", {c.name for c in relation.table.columns}))
    item = sql.SQL("(SELECT {} FROM {}) AS {}").format(columns, source, row)
    plain = sql.SQL("pg_catalog.row_to_json({})").format(row)
    json_columns = [c.name for c in relation.table.columns if relation.kinds[c.name] == "json" and c.form == "json"]
    if not json_columns:
        return plain, item
    # SQL NULL and JSON null are both `null` in a row. A row that has the latter says in which columns, in a member of its own.
    tests = [_is_json_null(row, name, relation.bases[name]) for name in json_columns]
    marked = sql.SQL(
        "(pg_catalog.left({plain}::pg_catalog.text, -1) || ',' || {key} || ':' ||"
        " pg_catalog.to_json(pg_catalog.array_remove(ARRAY[{names}]::pg_catalog.text[], NULL))::pg_catalog.text || '}}')::pg_catalog.json"
    ).format(
        plain=plain,
        key=sql.SQL("pg_catalog.to_json({}::pg_catalog.text)::pg_catalog.text").format(sql.Literal(relation.table.json_null_key)),
        names=sql.SQL(", ").join(
            sql.SQL("CASE WHEN {} THEN {} END").format(test, sql.Literal(name)) for test, name in zip(tests, json_columns, strict=True)
        ),
    )
    return sql.SQL("CASE WHEN {} THEN {} ELSE {} END").format(sql.SQL(" OR ").join(tests), marked, plain), item


def _is_json_null(row: sql.Identifier, name: str, base: str) -> sql.Composable:
    column = sql.SQL("{}.{}").format(row, sql.Identifier(name))
    if base == "json":
        return sql.SQL("coalesce(pg_catalog.json_typeof({}) = 'null', false)").format(column)
    return sql.SQL("CASE WHEN pg_catalog.pg_column_size({c}) < {small} THEN pg_catalog.jsonb_typeof({c}) = 'null' ELSE false END").format(
        c=column, small=_SMALL
    )


def scope_condition(table: model.Table, scope: Scope, *, alias: str = "s", isolated: bool = False) -> sql.Composable | None:
    """The SQL condition for a scope's rows of a table, with the tier's own `where`; None when every row is meant. `isolated`: other
    tables stand beside, so the names in `where` are tied to this one (which no index can serve)."""
    conditions: list[sql.Composable] = []
    if table.where:
        own = sql.SQL("({})").format(sql.SQL(table.where))
        conditions.append(sql.SQL("(SELECT {} FROM (SELECT {}.*) AS w)").format(own, sql.Identifier(alias)) if isolated else own)
    column = {"uid": table.uid_column, "workspace": table.workspace_column}.get(scope.kind)
    if column is not None:
        conditions.append(_owned(sql.Identifier(alias, column), next(c for c in table.columns if c.name == column), scope.value))
    return sql.SQL(" AND ").join(conditions) if conditions else None


def _owned(name: sql.Identifier, column: model.Column, value: str) -> sql.Composable:
    """The owner column's text is `value`, byte for byte. Written so that an index on the column serves, and so that a name which the
    column's type cannot hold (`alice` in a column of uuid) is nobody's instead of an error."""
    exact = sql.SQL('{}::pg_catalog.text COLLATE pg_catalog."C" = {}').format(name, sql.Literal(value))
    indexed = sql.SQL("{} = {}").format(name, sql.Literal(value))
    if _TEXT.match(column.type):
        # A collation of the column's own may take two names for equal.
        return indexed if column.collation is None else sql.SQL("({} AND {})").format(indexed, exact)
    if (column.type == "uuid" and _UUID.match(value)) or (_INTEGER.match(value) and len(value) <= _INTEGERS.get(column.type, 0)):
        return indexed
    return exact


def _where(conditions: list[sql.Composable | None]) -> sql.Composable:
    present = [c for c in conditions if c is not None]
    return sql.SQL(" WHERE ") + sql.SQL(" AND ").join(present) if present else sql.SQL("")


def chunk_query(relation: Relation, chunk: Chunk, scope: Scope) -> sql.Composed:
    """Lines of one chunk."""
    pages = None
    if chunk.first is not None:
        pages = sql.SQL("s.ctid >= {}::pg_catalog.tid AND s.ctid < {}::pg_catalog.tid").format(
            sql.Literal(f"({chunk.first},0)"), sql.Literal(f"({chunk.last},0)")
        )
    only = sql.SQL("ONLY ") if relation.table.kind in {"table", "partitioned"} else sql.SQL("")
    source = sql.SQL("{}{} AS s{}").format(only, identifier(chunk.leaf.name), _where([pages, scope_condition(relation.table, scope)]))
    return sql.SQL("SELECT {} FROM {}").format(*line(relation, source))


def scope_query(relation: Relation, scope: Scope) -> sql.Composed:
    """Lines of all of a scope's rows, in one stream."""
    source = sql.SQL("{} AS s{}").format(relation.identifier, _where([scope_condition(relation.table, scope)]))
    return sql.SQL("SELECT {} FROM {}").format(*line(relation, source))


def owners_query(relation: Relation) -> sql.Composed:
    """(line, uid) of every row that has an owner, ordered by the uid's bytes."""
    owner = sql.SQL("o.{}::pg_catalog.text").format(sql.Identifier(relation.table.uid_column or ""))
    where = sql.SQL(" AND ({})").format(sql.SQL(relation.table.where)) if relation.table.where else sql.SQL("")
    ordered = sql.SQL('(SELECT o.*, {o} AS {u} FROM {t} AS o WHERE {o} IS NOT NULL ORDER BY {o} COLLATE pg_catalog."C")').format(
        o=owner, u=sql.Identifier(OWNER), t=relation.identifier
    )
    expression, item = line(relation, sql.SQL("(SELECT w.*) AS s"))
    return sql.SQL("SELECT (SELECT {} FROM {}), w.{} FROM {} AS w{}").format(
        expression, item, sql.Identifier(OWNER), ordered, sql.SQL(" WHERE true") + where if relation.table.where else sql.SQL("")
    )


OWNER = "~coldstore owner"


def count_query(relation: Relation) -> sql.Composed:
    """How many rows the tier has."""
    source = sql.SQL("SELECT count(*) FROM {} AS s").format(relation.identifier)
    return source + _where([scope_condition(relation.table, EVERYBODY)])


def orphan_query(relation: Relation) -> sql.Composed:
    """How many rows have no owner."""
    source = sql.SQL("SELECT count(*) FROM {} AS s WHERE s.{} IS NULL").format(
        relation.identifier, sql.Identifier(relation.table.uid_column or "")
    )
    return source + sql.SQL(" AND ({})").format(sql.SQL(relation.table.where)) if relation.table.where else source


def copy_lines(conn: Connection, statement: sql.Composable, *, raw_newlines: bool = False, check_utf8: bool = False) -> Iterator[Line]:
    """The lines that `statement` selects. `raw_newlines`: a `json` column may hold some; outside strings they mean no more than a
    space. Raises a `DatabaseError`; a reader that stops early must close the connection."""
    for row in _copy_rows(conn, statement):
        data: Line = row[_FIELD:]
        if raw_newlines:
            data = bytes(data).translate(_NEWLINES)
        if check_utf8:
            _check_utf8(data)
        yield data


def copy_owned_lines(conn: Connection, relation: Relation, *, check_utf8: bool = False) -> Iterator[tuple[bytes, bytes]]:
    """(uid, line) in byte order of the uids, for `owners_query`."""
    for row in _copy_rows(conn, owners_query(relation)):
        length = int.from_bytes(row[2:_FIELD], "big")
        data = bytes(row[_FIELD : _FIELD + length])
        if relation.raw_newlines:
            data = data.translate(_NEWLINES)
        if check_utf8:
            _check_utf8(data)
        yield bytes(row[_FIELD + length + 4 :]), data


def _check_utf8(data: Line) -> None:
    try:
        bytes(data).decode()
    except UnicodeDecodeError as exc:
        raise CorruptDocument(
            "a row is not valid UTF-8, and the database (SQL_ASCII) does not know its encoding", hint="Convert the database to UTF8 first."
        ) from exc


def _copy_rows(conn: Connection, statement: sql.Composable) -> Iterator[Line]:
    """Raw binary tuples. libpq is asked directly, one call a row, and never asked to wait: psycopg keeps the interpreter's lock in that
    call, and every other reader, the writer and Ctrl-C would wait with it."""
    pgconn = conn.pgconn
    command = sql.SQL("COPY ({}) TO STDOUT (FORMAT binary)").format(statement).as_bytes(conn)
    with errors_as("read"):
        result = pgconn.exec_(command)
        if result.status != _COPY_OUT:
            raise pg.error_from_result(result)
        with selectors.DefaultSelector() as selector:
            selector.register(pgconn.socket, selectors.EVENT_READ)
            yield from _tuples(pgconn, selector)
    _finish(conn)


def _tuples(pgconn: PGconn, selector: selectors.BaseSelector) -> Iterator[Line]:
    take, consume, wait = pgconn.get_copy_data, pgconn.consume_input, selector.select
    header = len(_SIGNATURE)
    size: int
    data: Line
    while True:
        size, data = take(1)
        while size == 0:
            wait()
            consume()
            size, data = take(1)
        if size < 0:
            return
        if header:
            data, header = data[_HEADER:], 0
        if data and bytes(data[:2]) != b"\xff\xff":
            yield data


def _finish(conn: Connection) -> None:
    """Read the end of the command, which is where an error in its middle is told."""
    failed = None
    while (result := conn.pgconn.get_result()) is not None:
        if result.status not in {_COMMAND_OK, _TUPLES_OK}:
            failed = result
    if failed is not None:
        exc = pg.error_from_result(failed)
        raise translate(exc, op="read") from exc


_COPY_OUT, _COMMAND_OK, _TUPLES_OK = 3, 1, 2  # PGRES_*, as in libpq-fe.h
