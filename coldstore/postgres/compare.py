"""The content of tiers as digests, to compare databases with one another or with a manifest: equal digests, equal rows, whatever their
order."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from coldstore.codec.digest import format_digest, row_digest
from coldstore.document import model
from coldstore.postgres.connect import Connection
from coldstore.postgres.introspect import Relation, check_tiers, inspect, resolve
from coldstore.postgres.read import copy_lines, scope_query
from coldstore.postgres.staging import as_in_document
from coldstore.tiers import EVERYBODY, Scope, Tier


def content_digests(conn: Connection, tiers: Sequence[Tier], scope: Scope = EVERYBODY) -> dict[str, tuple[int, str]]:
    """tier → (rows, digest), read by the exporter's own reader."""
    oids = check_tiers(tiers, resolve(conn, [t.table for t in tiers]))
    relations = inspect(conn, list(zip(tiers, oids, strict=True))).relations
    return {r.table.tier: _digest(conn, r, scope) for r in relations}


def table_digest(conn: Connection, table: model.Table) -> tuple[int, str]:
    """(rows, digest) of all that is in a document's table here, written as the document writes it. The tier's condition is left out: it
    may ask tables that are not here."""
    return _digest(conn, as_in_document(conn, table.table, msgspec.structs.replace(table, where=None)), EVERYBODY)


def _digest(conn: Connection, relation: Relation, scope: Scope) -> tuple[int, str]:
    rows = digest = 0
    for line in copy_lines(conn, scope_query(relation, scope), raw_newlines=relation.raw_newlines):
        rows += 1
        digest += row_digest(line)
    return rows, format_digest(digest)
