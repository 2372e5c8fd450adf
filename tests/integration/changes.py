"""The oracle of change capture: what was true at one moment, plus the changes since, must be what is true now, row for row.

`Chain.step` reads both in one moment: everything, through the exporter's own reader, and the changes since the moment before. It merges
the latter into what it knew with a plain dictionary and compares. It shares nothing with the code that restores incremental snapshots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from coldstore.postgres import capture
from coldstore.postgres.connect import Connection, connect
from coldstore.postgres.introspect import Relation
from coldstore.postgres.migrate import migrate
from coldstore.postgres.read import copy_lines, scope_query
from coldstore.postgres.source import Moment, Source
from coldstore.tiers import EVERYBODY, Scope, Tier

Rows = Counter[bytes]
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def install(url: str, tiers: Sequence[Tier]) -> bool:
    """Capture for the tiers, on top of coldstore's own schema."""
    with connect(url) as conn:
        migrate(conn)
        return capture.install(conn, tiers)


def fingerprint(url: str, tiers: Sequence[Tier]) -> str | None:
    source = Source(url)
    try:
        with source.moment(tiers) as moment:
            return moment.database.capture
    finally:
        source.close()


def key_of(line: bytes, key: Sequence[str]) -> tuple[bytes, ...]:
    members = _members.decode(line)
    return tuple(bytes(members[k]) for k in key)


class Chain:
    """The memory of one scope, followed by its changes alone."""

    def __init__(self, source: Source, tiers: Sequence[Tier], scope: Scope = EVERYBODY) -> None:
        self.source, self.tiers, self.scope = source, tiers, scope
        self.parent: str | None = None
        self.capture: str | None = None
        self.rows: dict[str, Rows] = {}
        #: Of the last step: how many rows changed, keys went, tiers were emptied.
        self.changed = self.deleted = self.emptied = 0

    def step(self) -> Chain:
        with self.source.moment(self.tiers) as moment:
            self.follow(moment)
        return self

    def follow(self, moment: Moment) -> None:
        assert moment.database.capture is not None, capture.why_not(moment.leader, moment.catalog)
        assert self.capture in {None, moment.database.capture}, "a full one was needed"
        self.capture = moment.database.capture
        now = {r.table.tier: everything(moment.leader, r, self.scope) for r in moment.catalog.relations}
        if self.parent is None:
            self.rows = now
        else:
            self._merge(moment.leader, moment.catalog.relations, self.parent)
            assert self.rows == now
        self.parent = moment.database.snapshot

    def _merge(self, conn: Connection, relations: Sequence[Relation], parent: str) -> None:
        touched = capture.touched(conn, self.scope, parent=parent)
        self.changed = self.deleted = self.emptied = 0
        for relation in relations:
            tier, key = relation.table.tier, relation.table.key
            changed = list(map(bytes, capture.changed_lines(conn, relation, self.scope, parent=parent)))
            deleted = list(map(bytes, capture.deleted_lines(conn, relation, self.scope, parent=parent)))
            assert tier in touched or not (changed or deleted)
            if touched.get(tier):
                self.emptied += 1
                self.rows[tier] = everything(conn, relation, self.scope)
                continue
            doomed = {key_of(x, key) for x in (*changed, *deleted)}
            kept: Any = ((x, n) for x, n in self.rows[tier].items() if key_of(x, key) not in doomed)
            self.rows[tier] = Counter(dict(kept)) + Counter(changed)
            self.changed += len(changed)
            self.deleted += len(deleted)


def everything(conn: Connection, relation: Relation, scope: Scope) -> Rows:
    return Counter(map(bytes, copy_lines(conn, scope_query(relation, scope), raw_newlines=relation.raw_newlines)))
