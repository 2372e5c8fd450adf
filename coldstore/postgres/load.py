"""Rows into Postgres: the inverse of `read.py`.

Lines go in by COPY, converted by `document/values.py` without a value being parsed. Where that cannot be exact (composite types), the
lines of that frame go through Postgres' own `json_populate_record`, which is slower and right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec
from psycopg import sql

from coldstore.codec.digest import row_digest
from coldstore.document import model
from coldstore.document.values import COPY_OPTIONS, NeedsServer, RowEncoder, hex_vector
from coldstore.postgres.connect import Connection, errors_as
from coldstore.postgres.introspect import Relation

_BLOCK = 256 << 10  # bytes handed to libpq at once
_LINES = sql.Identifier("pg_temp", "coldstore_lines")


class TableLoader:
    """Loads rows of one array into one (staging) table. One for each thread: it is cheap, and its encoder is not shared.

    `columns` are the document's, in its order; what of them the table does not have is in `ignored`.
    """

    def __init__(self, relation: Relation, columns: Sequence[model.Column], *, ignored: Sequence[str], json_null_key: str | None) -> None:
        self._relation = relation
        self._table = relation.identifier
        self._stored = [c for c in columns if c.generated is None and c.name not in ignored]
        self._hex = [c.name for c in self._stored if c.form == "hex"]
        self._json = [c.name for c in self._stored if relation.kinds[c.name] == "json"]
        self._null_key = json_null_key
        kinds = {c.name: "hex" if c.form == "hex" else relation.kinds[c.name] for c in self._stored}
        not_stored = [c.name for c in columns if c.name not in kinds]
        self._encoder = None
        if self._stored and "server" not in kinds.values():
            self._encoder = RowEncoder(list(kinds.items()), ignored=[*ignored, *not_stored], json_null_key=json_null_key)

    def load(self, conn: Connection, rows: Iterable[bytes]) -> tuple[int, int]:
        """(rows, sum of their digests). All or nothing."""
        held = list(rows)
        if not held:
            return 0, 0
        with errors_as("load"), conn.transaction():
            if self._encoder is None:
                self._through_server(conn, held)
            else:
                try:
                    with conn.transaction():
                        self._copy(conn, map(self._encoder.encode, held))
                except NeedsServer:
                    self._through_server(conn, held)
        return len(held), sum(map(row_digest, held))

    def _copy(self, conn: Connection, lines: Iterator[bytes]) -> None:
        names = sql.SQL(", ").join(sql.Identifier(c.name) for c in self._stored)
        statement = sql.SQL("COPY {} ({}) FROM STDIN ({})").format(self._table, names, sql.SQL(COPY_OPTIONS))
        with conn.cursor() as cursor, cursor.copy(statement) as copy:
            for block in _blocks(lines):
                copy.write(block)

    def _through_server(self, conn: Connection, rows: list[bytes]) -> None:
        with conn.cursor() as cursor:
            cursor.execute("CREATE TEMPORARY TABLE coldstore_lines (line pg_catalog.json) ON COMMIT DROP")
            encoder = RowEncoder([("line", "json")])
            with cursor.copy(sql.SQL("COPY {} FROM STDIN ({})").format(_LINES, sql.SQL(COPY_OPTIONS))) as copy:
                for block in _blocks(encoder.encode(b'{"line":' + self._plain(row) + b"}") for row in rows):
                    copy.write(block)
            cursor.execute(self._insert())
            cursor.execute("DROP TABLE pg_temp.coldstore_lines")

    def _insert(self) -> sql.Composed:
        if not self._stored:
            return sql.SQL("INSERT INTO {} SELECT FROM {}").format(self._table, _LINES)
        return sql.SQL(
            "INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE SELECT {values} FROM {lines} l,"
            " LATERAL pg_catalog.json_populate_record(NULL::{table}, l.line) AS r"
        ).format(
            table=self._table,
            lines=_LINES,
            names=sql.SQL(", ").join(sql.Identifier(c.name) for c in self._stored),
            values=sql.SQL(", ").join(self._value(c.name) for c in self._stored),
        )

    def _value(self, name: str) -> sql.Composable:
        value = sql.SQL("r.{}").format(sql.Identifier(name))
        if name not in self._json or self._null_key is None:
            return value
        # json_populate_record turns a JSON null into SQL NULL; the row says where that would be wrong.
        return sql.SQL("CASE WHEN (l.line -> {key})::pg_catalog.jsonb ? {name} THEN 'null' ELSE {value} END").format(
            key=sql.Literal(self._null_key), name=sql.Literal(name), value=value
        )

    def _plain(self, row: bytes) -> bytes:
        """The row with its vectors in text form: json_populate_record does not know ours."""
        if not self._hex:
            return row
        members = msgspec.json.decode(row, type=dict[str, msgspec.Raw])
        for name in self._hex:
            raw = bytes(members.get(name, b"null"))
            if raw != b"null":
                members[name] = msgspec.Raw(b'"' + hex_vector(raw) + b'"')
        return msgspec.json.encode(members)


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
