"""Makes the frozen chains of this folder, as `make_frozen` makes the frozen snapshots: once, and never by the tests.

    python -m tests.format.make_frozen_chain postgresql://…/empty_database tests/format/coldstore-1-chain

Beside the store, in `expected/`, lie the rows that were there at each moment: the chains have to come to those.
"""

from __future__ import annotations

import sys
from pathlib import Path

import psycopg

from coldstore.codec.compress import Codec
from coldstore.codec.sign import SigningKey
from coldstore.export import ExportOptions, snapshot
from coldstore.incremental import snapshot_incremental
from coldstore.keyrings.local import LocalRing
from coldstore.postgres import capture
from coldstore.postgres.connect import connect
from coldstore.postgres.migrate import migrate
from coldstore.postgres.read import copy_lines, scope_query
from coldstore.postgres.source import Source
from coldstore.storage.open import open_store
from coldstore.tiers import EVERYBODY, Scope
from tests.format.make_frozen import NEW_KEY, ROWS, SIGNING_KEY, TABLES, TIERS

#: What happens between the links: every kind of change, and values of every kind within it.
ROUNDS = (
    (
        "UPDATE public.daily_memories SET weight = weight * 1.0, raw = '[1.0]' WHERE uid = 'alice' AND weight IS NOT NULL",
        "UPDATE public.daily_memories SET uid = 'alice', date = '2026-03-01' WHERE uid = 'bob'",
        'UPDATE "Mem Ories"."The ""Graph"" itself" SET "Name" = \'Straße \' WHERE "Name" = \'Straße\'',
        "DELETE FROM public.procedural_memory WHERE uid IS NULL",
    ),
    (
        'TRUNCATE "Mem Ories"."The ""Graph"" itself"',
        'INSERT INTO "Mem Ories"."The ""Graph"" itself" (uid, "Name", embedding) VALUES (\'alice\', \'again\', \'[1,2,3,4]\')',
        "UPDATE public.daily_memories SET uid = 'Alice', date = '2026-03-02' WHERE date = '2026-03-01'",
        "INSERT INTO public.procedural_memory (id, uid, body) VALUES ('00000000-0000-4000-8000-000000000003', 'alice', 'null')",
    ),
)


def keys(folder: Path) -> tuple[LocalRing, SigningKey]:
    """Those that `make_frozen` left."""
    ring = LocalRing.parse((folder / NEW_KEY).read_text(), source=NEW_KEY)
    return ring, SigningKey.parse((folder / SIGNING_KEY).read_text())


def main(url: str, folder: str) -> None:
    if Path(folder).exists():
        raise SystemExit(f"{folder} is there: frozen documents are not made twice")
    with psycopg.connect(url, autocommit=True) as writer:
        writer.execute(TABLES)
        writer.execute(ROWS)
    with connect(url) as conn:
        migrate(conn)
        capture.install(conn, TIERS)
    ring, signer = keys(Path(folder).parent)
    expected = Path(folder) / "expected"
    expected.mkdir(parents=True)
    chosen = {
        EVERYBODY: ExportOptions(codec=Codec("zstd"), frame_size=300),
        Scope.user("alice"): ExportOptions(vectors="hex", rings=(ring,), signer=signer),
    }
    source, store = Source(url), open_store(folder)
    try:
        for rounds in ((), *ROUNDS):
            with psycopg.connect(url, autocommit=True) as writer:
                for statement in rounds:
                    writer.execute(statement)
            for scope, options in chosen.items():
                take = snapshot_incremental if rounds else snapshot
                made = take(source, store, tiers=TIERS, scope=scope, options=options)
                assert made is not None
                (expected / f"{made.id}.txt").write_bytes(whole(source, scope, options.vectors))
    finally:
        source.close()
        store.close()


def whole(source: Source, scope: Scope, vectors: str) -> bytes:
    """Each row of the moment behind its array, sorted; read by the exporter's own reader, and into no store."""
    with source.moment(TIERS, vectors=vectors) as moment:
        lines = [
            relation.table.array.encode() + b"\t" + bytes(line)
            for relation in moment.catalog.relations
            for line in copy_lines(moment.leader, scope_query(relation, scope), raw_newlines=relation.raw_newlines)
        ]
    return b"\n".join(sorted(lines)) + b"\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
