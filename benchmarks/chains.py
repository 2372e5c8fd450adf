"""A database whose day is in a store twice: as a full snapshot and the incrementals of every five minutes after it, and as a full snapshot
of the same end. It has no vector index, whose building would hide what a chain costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from benchmarks.world import TABLES, VECTOR_INDEX, World

LINKS = 288
_UPDATED, _DELETED = 2_000, 20_000  # one row of so many of each table, for each link: in a day one of seven is written


@dataclass(frozen=True, slots=True)
class Day:
    """Ids of the last incremental and of the full snapshot that equals it. `rows`: by table, at the end."""

    store: Path
    chain: str
    full: str
    rows: dict[str, int]
    changed: int


@contextmanager
def a_day(world: World) -> Iterator[Day]:
    url = world.server.createdb("chained", template="bulk")
    try:
        with world.new_path("store") as store, world.library(store, database=url, compression="zstd") as cold:
            with psycopg.connect(url, autocommit=True) as conn:
                conn.execute(sql.SQL("DROP INDEX public.{}").format(sql.Identifier(VECTOR_INDEX)))
                cold.init(change_capture=True)
                cold.snapshot()
                changed, last = 0, ""
                rows = world.count(url)
                for number in range(LINKS):
                    _live(conn, number, rows)
                    info = cold.snapshot_incremental(prove=number == LINKS - 1)
                    if info is None:
                        raise RuntimeError("nothing changed")
                    changed, last = changed + sum(info.rows.values()), info.id
            yield Day(store, last, cold.snapshot().id, world.count(url), changed)
    finally:
        world.server.dropdb("chained")


def _live(conn: psycopg.Connection, number: int, rows: Mapping[str, int]) -> None:
    """Five minutes of it: rows from all over each table."""
    for table in TABLES:
        updated, deleted = rows[table] // _UPDATED + 1, rows[table] // _DELETED + 1
        name = sql.Identifier("public", table)
        chosen = sql.SQL("SELECT id FROM {} TABLESAMPLE BERNOULLI (20) REPEATABLE ({}) LIMIT {}")
        conn.execute(
            sql.SQL("UPDATE {} SET updated_at = clock_timestamp() WHERE id IN ({})").format(name, chosen.format(name, number, updated))
        )
        conn.execute(sql.SQL("DELETE FROM {} WHERE id IN ({})").format(name, chosen.format(name, LINKS + number, deleted)))
