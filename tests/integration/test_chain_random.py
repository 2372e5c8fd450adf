"""Whatever happens between snapshots: at each of them the chain, restored, made into one, and read without coldstore, is what was there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from coldstore.app import ColdStore
from coldstore.config import build
from tests.integration.helpers import run, table_text
from tests.integration.test_chain_restore import OFF
from tests.recovering import module

USERS = ("ann", "bob", 'c"\\ü', None)
TABLES = (
    "CREATE TYPE mood AS ENUM ('calm', 'sad', 'a b')",
    "CREATE TABLE plain (id int PRIMARY KEY, uid text, body text, more jsonb)",
    """CREATE TABLE "Com,pound" ("a ""b" text COLLATE "C", "when" timestamptz, how mood, n numeric(8, 2), uid text, x bytea,
    PRIMARY KEY ("a ""b", "when", how, n))""",
    "CREATE TABLE child (id uuid PRIMARY KEY, parent int, uid text, v float8[])",
    "CREATE TABLE parted (id bigint, uid text, body text, PRIMARY KEY (id, body)) PARTITION BY LIST (body)",
    "CREATE TABLE parted_x PARTITION OF parted FOR VALUES IN ('x')",
    "CREATE TABLE parted_rest PARTITION OF parted DEFAULT",
)
FOREIGN_KEY = "ALTER TABLE child ADD FOREIGN KEY (parent) REFERENCES plain ON DELETE CASCADE ON UPDATE CASCADE"
FILL = (
    "INSERT INTO plain SELECT g, (ARRAY['ann', 'bob', NULL])[1 + g % 3], 'b' || g FROM generate_series(1, 30) g",
    """INSERT INTO "Com,pound" SELECT 'k' || g % 5, timestamptz '2026-01-01Z' + g % 7 * interval '1 s', (ARRAY['calm', 'sad', 'a b'])[1 + g % 3]::mood,
    g / 2.0, (ARRAY['ann', 'bob', NULL])[1 + g % 3], '\\x00' FROM generate_series(1, 40) g""",
    "INSERT INTO child SELECT gen_random_uuid(), id, uid, '{1}' FROM plain",
    "INSERT INTO parted SELECT g, (ARRAY['ann', 'bob'])[1 + g % 2], (ARRAY['x', 'y', 'z'])[1 + g % 3] FROM generate_series(1, 40) g",
)
NAMES = {"plain": "plain", "compound": '"Com,pound"', "child": "child", "parted": "parted"}


class Chance:
    """Statements, some of which fail and are as if they had not been."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def round(self, url: str) -> None:
        with psycopg.connect(url, autocommit=True) as conn:
            for _ in range(self._random.randint(0, 25)):
                statement, values = self._random.choice(list(self._statements()))
                try:
                    conn.execute(sql.SQL(statement), values)
                except (psycopg.errors.UniqueViolation, psycopg.errors.ForeignKeyViolation):
                    continue

    def _statements(self) -> Iterator[tuple[str, list[Any]]]:
        r = self._random
        id_, other, uid = r.randint(1, 30), r.randint(1, 30), r.choice(USERS)
        text = "".join(r.choice('xy"\\\n,{}é\x01') for _ in range(r.randint(0, 6)))
        yield "INSERT INTO plain VALUES (%s, %s, %s, %s)", [id_, uid, text, r.choice([None, "null", '{"a":[1.0,null]}'])]
        yield (
            "INSERT INTO plain SELECT g, %s, %s FROM generate_series(%s::int, %s::int) g ON CONFLICT (id) DO UPDATE SET uid = excluded.uid",
            [uid, text, id_, id_ + 5],
        )
        yield "UPDATE plain SET id = %s WHERE id = %s", [id_, other]
        yield "UPDATE plain SET uid = %s, body = %s WHERE id %% 3 = %s", [uid, text, id_ % 3]
        yield "DELETE FROM plain WHERE id BETWEEN %s AND %s", [id_, id_ + 2]
        key = [
            text or "k",
            f"2026-01-01 00:00:0{id_ % 10}.5+0{id_ % 10}",
            r.choice(["calm", "sad", "a b"]),
            r.choice(["1", "1.0", "1.00", "-2.50"]),
        ]
        yield 'INSERT INTO "Com,pound" VALUES (%s, %s, %s, %s, %s, %s)', [*key, uid, text.encode()]
        yield 'UPDATE "Com,pound" SET n = n + 1, uid = %s WHERE "when" <= %s', [uid, key[1]]
        yield "UPDATE \"Com,pound\" SET how = 'calm' WHERE how = 'sad'", []
        yield 'DELETE FROM "Com,pound" WHERE n = %s', [key[3]]
        yield "INSERT INTO child SELECT gen_random_uuid(), id, %s, ARRAY[0.1, 'NaN', id] FROM plain WHERE id %% 4 = %s", [uid, id_ % 4]
        yield "DELETE FROM child WHERE parent = %s", [other]
        yield "INSERT INTO parted VALUES (%s, %s, %s)", [id_, uid, r.choice(["x", "y", "z"])]
        yield "UPDATE parted SET body = %s WHERE id = %s", [r.choice(["x", "y"]), other]
        yield "DELETE FROM parted_x WHERE id < %s", [id_ // 3]
        if r.random() < 0.1:
            yield r.choice(["TRUNCATE plain CASCADE", 'TRUNCATE "Com,pound"', "TRUNCATE parted", "TRUNCATE child"]), []


def tables(url: str, uid: str | None = None) -> dict[str, list[tuple[Any, ...]]]:
    where = "true" if uid is None else sql.SQL("uid = {}").format(sql.Literal(uid)).as_string(None)
    return {name: table_text(url, f"public.{table}", where=where) for name, table in NAMES.items()}


@pytest.mark.parametrize("scope", [None, "ann"])
@pytest.mark.parametrize("seed", range(2))
def test_anything(make_database, tmp_path, seed, scope):
    url = make_database(empty=True)
    run(url, *TABLES, *([] if scope else [FOREIGN_KEY]), *FILL)  # one user's rows may point at another's, and then cannot come back alone
    chance = Chance(seed)
    chance.round(url)
    run(url, "INSERT INTO plain VALUES (0, 'ann', 'there is always one')")
    settings = {"path": str(tmp_path / "store"), "tiers": {**{n: {"table": t} for n, t in NAMES.items()}, **OFF}, "max_fall": 1.0}
    with ColdStore(build(settings, {"database_url": url})) as cold:
        cold.init(change_capture=True)
        lived = [(cold.snapshot(uid=scope).id, tables(url, scope))]
        for number in range(7):
            chance.round(url)
            run(url, "INSERT INTO plain VALUES (0, 'ann', '') ON CONFLICT (id) DO UPDATE SET uid = 'ann'")
            info = cold.snapshot_incremental(uid=scope, prove=number % 2 == 0, accept=True)
            if info is not None:
                lived.append((info.id, tables(url, scope)))
        for snapshot, state in lived[1:]:
            target = make_database(empty=True)
            cold.restore(snapshot, to=target)
            assert tables(target) == state
        if scope is None:
            run(target, *(f"TRUNCATE {t} CASCADE" for t in NAMES.values()), "ALTER TABLE child DROP CONSTRAINT child_parent_fkey")
            cold.restore(snapshot, to=target, uid="ann")
            assert tables(target) == tables(url, "ann")
        assert sorted(recovered(tmp_path / "store", snapshot)) == sorted(read(cold, cold.compact(snapshot).id))
        assert all(v.ok for v in cold.verify(deep=True))


def read(cold: ColdStore, snapshot: str) -> list[tuple[str, bytes]]:
    document = cold.document(snapshot)
    arrays = [t.array for t in document.schema.tables]
    return [(part.array, bytes(row)) for part in document.parts(arrays) for row in part.rows()]


def recovered(store, snapshot: str) -> list[tuple[str, bytes]]:
    program = module()
    document = program.open_in_store(store, snapshot, program.Trust(frozenset(), required=False), program.Keys(None, None))
    return list(document.rows())
