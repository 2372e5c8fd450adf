"""Rows into Postgres: the inverse of `read.py`.

Lines go in by COPY, converted by `document/values.py` without a value being parsed. Where that cannot be exact (composite types), those
columns go through Postgres' own `json_to_record`, which is slower and right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec
from psycopg import sql

from coldstore.codec.digest import row_digest
from coldstore.document import model
from coldstore.document.values import COPY_OPTIONS, DELIMITER, NeedsServer, RowEncoder, copy_field, splitter
from coldstore.postgres.connect import Connection, errors_as
from coldstore.postgres.introspect import Relation, free_name

_BLOCK = 256 << 10  # bytes handed to libpq at once
_COMPOUND = frozenset({"array", "json_array", "server"})
_LINES = sql.Identifier("pg_temp", "coldstore_lines")


class TableLoader:
    """Loads rows of one array into one (staging) table. Cheap to make.

    `columns` are the document's, in its order; what of them the table does not have is in `ignored`.
    """

    def __init__(self, relation: Relation, columns: Sequence[model.Column], *, ignored: Sequence[str], json_null_key: str | None) -> None:
        stored = [c for c in columns if c.generated is None and c.name not in ignored]
        self._table = relation.identifier
        self._types = {c.name: c.type for c in relation.table.columns}
        self._kinds = {c.name: "hex" if c.form == "hex" else relation.kinds[c.name] for c in stored}
        self._ignored = [c.name for c in columns if c.name not in self._kinds]
        self._null_key = json_null_key
        self._server = [n for n, kind in self._kinds.items() if kind == "server"]
        self._encoder = None
        if self._kinds and not self._server:
            self._encoder = self._encoder_for(list(self._kinds))

    def load(self, conn: Connection, rows: Iterable[bytes]) -> tuple[int, int]:
        """(rows, sum of their digests). All or nothing."""
        held = list(rows)
        if not held:
            return 0, 0
        with errors_as("load"), conn.transaction():
            if self._encoder is None:
                self._through_server(conn, held, self._server)
            else:
                try:
                    with conn.transaction():
                        self._copy(conn, self._table, list(self._kinds), map(self._encoder.encode, held))
                except NeedsServer:
                    self._through_server(conn, held, [n for n, kind in self._kinds.items() if kind in _COMPOUND])
        return len(held), sum(map(row_digest, held))

    def _encoder_for(self, names: Sequence[str]) -> RowEncoder:
        others = [n for n in self._kinds if n not in names]
        return RowEncoder([(n, self._kinds[n]) for n in names], ignored=[*self._ignored, *others], json_null_key=self._null_key)

    def _copy(self, conn: Connection, table: sql.Composable, names: Sequence[str], lines: Iterator[bytes]) -> None:
        columns = sql.SQL(", ").join(map(sql.Identifier, names))
        statement = sql.SQL("COPY {} ({}) FROM STDIN ({})").format(table, columns, sql.SQL(COPY_OPTIONS))
        with conn.cursor() as cursor, cursor.copy(statement) as copy:
            for block in _blocks(lines):
                copy.write(block)

    def _through_server(self, conn: Connection, rows: list[bytes], server: Sequence[str]) -> None:
        """The columns `server` as JSON that Postgres takes apart, the others as text beside it: a `json` value may hold what Postgres
        stores and cannot take apart, such as an escaped NUL."""
        direct = [n for n in self._kinds if n not in server]
        line = free_name("line", set(direct))
        with conn.cursor() as cursor:
            columns = [*map(sql.Identifier, direct), sql.SQL("NULL::pg_catalog.json AS {}").format(sql.Identifier(line))]
            cursor.execute(
                sql.SQL("CREATE TEMPORARY TABLE coldstore_lines ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA").format(
                    sql.SQL(", ").join(columns), self._table
                )
            )
            self._copy(conn, _LINES, [*direct, line], self._mixed(rows, direct, server))
            cursor.execute(self._insert(direct, server, line))
            cursor.execute("DROP TABLE pg_temp.coldstore_lines")

    def _mixed(self, rows: Iterable[bytes], direct: Sequence[str], server: Sequence[str]) -> Iterator[bytes]:
        encoder = self._encoder_for(direct)
        split = splitter(server, strict=False)
        keys = [msgspec.json.encode(name) + b":" for name in server]
        for row in rows:
            text = encoder.encode(row)[:-1]
            rest = b"{" + b",".join(key + bytes(raw) for key, raw in zip(keys, split(row), strict=True)) + b"}"
            yield (text + DELIMITER if direct else b"") + copy_field(rest) + b"\n"

    def _insert(self, direct: Sequence[str], server: Sequence[str], line: str) -> sql.Composed:
        if not self._kinds:
            return sql.SQL("INSERT INTO {} SELECT FROM {}").format(self._table, _LINES)
        values = [sql.Identifier("l", n) for n in direct] + [sql.Identifier("r", n) for n in server]
        source = sql.SQL("{} AS l").format(_LINES)
        if server:
            record = sql.SQL(", ").join(sql.SQL("{} {}").format(sql.Identifier(n), sql.SQL(self._types[n])) for n in server)
            source += sql.SQL(", LATERAL pg_catalog.json_to_record({}) AS r ({})").format(sql.Identifier("l", line), record)
        return sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}").format(
            self._table, sql.SQL(", ").join(map(sql.Identifier, [*direct, *server])), sql.SQL(", ").join(values), source
        )


def _blocks(lines: Iterable[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= _BLOCK:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)
