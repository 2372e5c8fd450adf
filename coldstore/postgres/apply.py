"""What incrementals changed, onto rows that are staged already: the rows that had the keys go, in one statement, and are summed as the
exporter would read them while they go; the rows that have the keys now are loaded as all others are.

PostgreSQL compares the keys, by the equality of their own types. The staged table has no index yet: a hash join over all of it is what a
few big groups of changes cost least with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from psycopg import sql

from coldstore.codec.digest import row_digest
from coldstore.document import model
from coldstore.postgres.connect import Connection, errors_as
from coldstore.postgres.introspect import Relation
from coldstore.postgres.load import TableLoader
from coldstore.postgres.read import copy_lines, line

_SQL = sql.SQL
_DOOMED = model.Name(schema="pg_temp", name="coldstore_doomed")


def empty(conn: Connection, relation: Relation) -> None:
    """Let no row be left."""
    with errors_as("apply"):
        conn.execute(_SQL("TRUNCATE {}").format(relation.identifier))


def take_out(conn: Connection, relation: Relation, key: Sequence[str], keys: Iterable[bytes]) -> tuple[int, int]:
    """Delete the rows of `relation` that have one of `keys`, JSON objects of the columns `key`; returns (rows, sum of their digests) as
    they stood there. Within the caller's transaction."""
    by_name = {c.name: msgspec.structs.replace(c, generated=None) for c in relation.table.columns}
    columns = [by_name[name] for name in key]
    names = _SQL(", ").join(map(sql.Identifier, key))
    with errors_as("apply"):
        # A table of the same rows' types, but of no constraint.
        conn.execute(
            _SQL("CREATE TEMPORARY TABLE coldstore_doomed ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA").format(
                names, relation.identifier
            )
        )
    doomed = relation.described_as(msgspec.structs.replace(relation.table, table=_DOOMED, columns=columns))
    TableLoader(doomed, columns, ignored=[], json_null_key=None).load(conn, keys)
    with errors_as("apply"):
        conn.execute("ANALYZE pg_temp.coldstore_doomed")
    rows = digest = 0
    for gone in copy_lines(conn, _deletion(relation, key), raw_newlines=relation.raw_newlines):
        rows += 1
        digest += row_digest(gone)
    return rows, digest


def _deletion(relation: Relation, key: Sequence[str]) -> sql.Composed:
    same = _SQL(" AND ").join(_SQL("t.{0} = d.{0}").format(sql.Identifier(name)) for name in key)
    expression, item = line(relation, _SQL("(SELECT t.*) AS s"))
    return _SQL("DELETE FROM {} AS t USING {} AS d WHERE {} RETURNING (SELECT {} FROM {})").format(
        relation.identifier, _doomed(), same, expression, item
    )


def _doomed() -> sql.Identifier:
    return sql.Identifier(_DOOMED.schema, _DOOMED.name)
