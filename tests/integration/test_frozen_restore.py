"""Frozen documents back into a database of today, from nothing: tables, rows, keys, sequences."""

from __future__ import annotations

import json

import psycopg
import pytest

from coldstore.documents import open_file, open_loose
from coldstore.restore import restore
from coldstore.tiers import Scope, Tier
from tests.format.test_frozen import DAY, FILES, GZIP, PLAIN, ROWS, ZSTD, plain_of

DAILY = [
    (
        *(100, "alice", "2026-02-24", '[{"weight": 0.10, "content": "tea, \\"green\\""}]', '{ "b" : 1,   "a" : [1.0, 1e2] }'),
        *('line\nbreak\ttab \\ slash / "quote"', "1234567890.12345678901234567890"),
        *('{plain,"with space","NULL",NULL,"","quo\\"te","back\\\\slash","{brace}","a,b"}', "{{1,2},{3,4}}", "\\x00ff5c22"),
        "2026-02-24 23:59:59.999999+00",
    ),
    (110, "alice", "2026-02-25", "null", "null", "", "NaN", "{}", "[0:1]={7,8}", "\\x", "infinity"),
    (120, "alice", "infinity", None, None, None, None, None, None, None, "-infinity"),
    (
        *(130, "bob", "0044-03-15 BC", '{"alice": 12345678901234567890.123456789}', '"alice"', "é 😀 \u2028 \x01\x02\x7f"),
        *("-0.00000000000000000001", "{alice}", "{NULL,-1}", "\\x616c696365", "2026-02-26 02:00:00+00"),
    ),
    (140, "Alice", "2026-02-24", '"a string"', "[]", "Not alice", "0.00000000000000000000", None, None, None, "2026-02-26 02:00:00+00"),
]
GRAPH = [
    (
        *(
            "alice",
            "Straße",
            'Very "happy"',
            '("Köln, ""Altstadt""",50.9375,6.96030000000000000001)',
            '{"(a,1,2)",NULL}',
            "0.1250",
            "NaN",
            "0.1",
        ),
        *("[1,-2.5,0.33333334,1e-30]", '["2026-01-01 00:00:00+00",infinity)', "{[1,3),[5,8)}", "6"),
    ),
    (
        *("alice", "empty", "calm", "(,,)", "{}", "1.0000", "-Infinity", "3.4028235e+38", "[0,-0,3.4028235e+38,1.1754944e-38]"),
        *("empty", "{}", "5"),
    ),
    ("bob", "nothing", None, None, None, "0.0000", "5e-324", None, None, None, None, "7"),
]
PROCEDURES = [
    (
        *("00000000-0000-4000-8000-000000000001", 1, "bob", "rule", "{}", "x", -32768, 9223372036854775807, True),
        *("1 year -2 days +03:04:05.678", "24:00:00", "2026-02-26 02:00:00.5", "2001:db8::1/64", "10110", "ab   ", "(1.5,-2)"),
        *('{"{\\"a\\": null}","null",NULL}', "{NaN,Infinity,-0,0.1}"),
    ),
    ("00000000-0000-4000-8000-000000000002", 2, None, None, "null", None, None, None, False, *[None] * 9),
]

EVERYTHING = {
    "daily": "SELECT id, uid, date::text, entries::text, raw::text, summary, weight::text, tags::text, matrix::text, attachment::text,"
    " created_at::text FROM public.daily_memories ORDER BY id",
    "graph": 'SELECT uid, "Name", mood::text, place::text, places::text, confidence::text, score::text, rank::text, embedding::text,'
    ' life::text, numbers::text, letters::text FROM "Mem Ories"."The ""Graph"" itself" ORDER BY uid, "Name" COLLATE "C"',
    "procedures": 'SELECT id::text, serial, uid, kind, body::text, "we""ird", small, big, active, every::text, at::text, seen::text,'
    " address::text, bits::text, fixed::text || repeat(' ', 5 - length(fixed::text)), spot::text, steps::text, scores::text"
    " FROM public.procedural_memory ORDER BY id",
}


def content(url: str) -> dict[str, list[tuple]]:
    with psycopg.connect(url) as conn:
        conn.execute("SET TimeZone = 'UTC'; SET IntervalStyle = 'postgres'; SET DateStyle = 'ISO'; SET extra_float_digits = 1")
        return {name: conn.execute(query).fetchall() for name, query in EVERYTHING.items()}


WHOLE = {"daily": DAILY, "graph": GRAPH, "procedures": PROCEDURES}
ALICE = {"daily": DAILY[:3], "graph": GRAPH[:2], "procedures": []}


@pytest.mark.parametrize("opened", [open_file, open_loose], ids=["with its manifest", "without"])
@pytest.mark.parametrize("identity", [PLAIN, GZIP, ZSTD])
def test_into_a_database_with_nothing_in_it(empty_database, identity, opened):
    report = restore(opened(DAY / FILES[identity]), empty_database)
    assert content(empty_database) == (ALICE if identity == ZSTD else WHOLE)
    assert {t["tier"]: t["rows"] for t in report.tables} == dict(
        zip(["daily_memories", "graph_entities", "procedural_memory"], map(len, ROWS[identity].values()), strict=True)
    )
    assert report.verified == "content"


def test_the_tables_can_be_written_to(empty_database):
    restore(open_file(DAY / FILES[PLAIN]), empty_database)
    with psycopg.connect(empty_database, autocommit=True) as conn:
        assert conn.execute("INSERT INTO daily_memories (uid, date) VALUES ('carol', '2026-03-01') RETURNING id").fetchone() == (150,)
        written = conn.execute("INSERT INTO procedural_memory (id, body) VALUES (gen_random_uuid(), '{}') RETURNING serial").fetchone()
        assert written == (42,)
        conn.execute("""INSERT INTO "Mem Ories"."The ""Graph"" itself" (uid, "Name") VALUES ('carol', 'four')""")
        for refused, error in {
            "INSERT INTO daily_memories (uid, date) VALUES ('alice', '2026-02-24')": psycopg.errors.UniqueViolation,
            "INSERT INTO procedural_memory (id, body, kind) VALUES (gen_random_uuid(), '{}', 'other')": psycopg.errors.CheckViolation,
            """UPDATE "Mem Ories"."The ""Graph"" itself" SET confidence = 2""": psycopg.errors.CheckViolation,
            """UPDATE "Mem Ories"."The ""Graph"" itself" SET letters = 2""": psycopg.errors.GeneratedAlways,
        }.items():
            with pytest.raises(error):
                conn.execute(refused)
        indexes = {r[0] for r in conn.execute("SELECT indexdef FROM pg_indexes WHERE tablename = 'daily_memories'")}
        assert "CREATE INDEX daily_memories_by_date ON public.daily_memories USING btree (date DESC) WHERE (summary IS NOT NULL)" in indexes


def test_one_user_out_of_everybodys(empty_database):
    restore(open_file(DAY / FILES[GZIP]), empty_database, scope=Scope.user("alice"))
    assert content(empty_database) == ALICE


def test_as_a_document_of_another_program(empty_database, tmp_path):
    """Reformatted by somebody's tools, its schema and forms mean nothing: only where the tables are there can the rows go in."""
    restore(open_file(DAY / FILES[PLAIN]), empty_database)
    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute("TRUNCATE daily_memories")
    body = json.loads(plain_of(PLAIN))
    for row in body["dailyMemories"]:
        row.pop("~jsonNull", None)
        row["weight"] = row["raw"] = None  # Python's floats would not be exact
    (tmp_path / "theirs.json").write_text(json.dumps({"snapshotAt": "x", "uid": None, "dailyMemories": body["dailyMemories"]}, indent=2))
    restore(open_file(tmp_path / "theirs.json"), empty_database, tiers=[Tier("daily_memories", "daily_memories")])
    found = content(empty_database)["daily"]
    assert [(*row[:3], *row[5:6], *row[7:]) for row in found] == [(*row[:3], *row[5:6], *row[7:]) for row in DAILY]
