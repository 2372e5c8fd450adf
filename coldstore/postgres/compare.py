"""The content of tiers as digests, to compare databases: equal digests, equal rows, whatever their order."""

from __future__ import annotations

from collections.abc import Sequence

from coldstore.codec.digest import format_digest, row_digest
from coldstore.postgres.connect import Connection
from coldstore.postgres.introspect import check_tiers, inspect, resolve
from coldstore.postgres.read import copy_lines, scope_query
from coldstore.tiers import EVERYBODY, Scope, Tier


def content_digests(conn: Connection, tiers: Sequence[Tier], scope: Scope = EVERYBODY) -> dict[str, tuple[int, str]]:
    """tier → (rows, digest), read by the exporter's own reader."""
    oids = check_tiers(tiers, resolve(conn, [t.table for t in tiers]))
    found = {}
    for relation in inspect(conn, list(zip(tiers, oids, strict=True))).relations:
        rows = digest = 0
        for line in copy_lines(conn, scope_query(relation, scope), raw_newlines=relation.raw_newlines):
            rows += 1
            digest += row_digest(line)
        found[relation.table.tier] = (rows, format_digest(digest))
    return found
