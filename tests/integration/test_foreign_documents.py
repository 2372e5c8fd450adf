"""Documents that another program wrote: a `snapshotAt`, a `uid` and arrays are enough, however they are laid out."""

from __future__ import annotations

import gzip
import json

import pytest
import zstandard

from coldstore.documents import open_file
from coldstore.errors import (
    ColdStoreError,
    CorruptDocument,
    DatabaseError,
    DocumentError,
    NotFound,
    RestoreConflict,
    SchemaMismatch,
    TableMissing,
    TargetNotEmpty,
    TruncatedDocument,
    UnsupportedFormat,
)
from coldstore.tiers import Scope
from tests.integration.helpers import MEMORY, ask, bring_back, everything, run, tier

MINIMAL = {
    "snapshotAt": "2026-02-26T02:00:00.000Z",
    "uid": "uid_alice",
    "dailyMemories": [
        {
            "id": "11111111-1111-1111-1111-111111111111",
            "uid": "uid_alice",
            "date": "2026-02-26",
            "entries": [
                {"timestamp": "2026-02-26T01:00:00Z", "category": "note", "content": 'She said "hi"\n\\o/ 👋 \u2028', "weight": 0.5}
            ],
            "summary": None,
        },
        {"uid": "uid_alice", "date": "2026-02-25", "entries": [], "created_at": "2026-02-25T10:00:00+05:45"},
    ],
    "graphEntities": [
        {"uid": "uid_alice", "name": "Zoë", "type": "person", "properties": {"a": [1, {"b": None}]}, "confidence": 0.25, "embedding": None}
    ],
    "proceduralMemory": [],
}


@pytest.fixture
def written(tmp_path):
    """A document of these bytes (or this value), opened."""

    def go(content, name="export.json"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode())
        return open_file(path)

    return go


def check(url):
    assert ask(url, "SELECT uid, date::text, entries, summary FROM daily_memories ORDER BY date DESC") == [
        ("uid_alice", "2026-02-26", MINIMAL["dailyMemories"][0]["entries"], None),
        ("uid_alice", "2026-02-25", [], None),
    ]
    assert ask(url, "SELECT created_at = '2026-02-25T04:15:00Z', id IS NOT NULL FROM daily_memories WHERE date = '2026-02-25'") == [
        (True, True)
    ]
    assert ask(url, "SELECT name, properties, confidence, embedding FROM graph_entities") == [("Zoë", {"a": [1, {"b": None}]}, 0.25, None)]
    assert ask(url, "SELECT count(*) FROM procedural_memory") == [(0,)]


LAYOUTS = {
    "compact": lambda d: json.dumps(d, separators=(",", ":")).encode(),
    "default": lambda d: json.dumps(d).encode(),
    "unicode": lambda d: json.dumps(d, ensure_ascii=False).encode(),
    "pretty": lambda d: json.dumps(d, indent=2).encode(),
    "tabs": lambda d: json.dumps(d, indent="\t", ensure_ascii=False).encode(),
    "windows": lambda d: json.dumps(d, indent=4).replace("\n", "\r\n").encode(),
    "byte order mark": lambda d: b"\xef\xbb\xbf" + json.dumps(d, indent=1).encode(),
    "blank lines around": lambda d: b"\n\n  " + json.dumps(d).encode() + b"\n \n",
    "snake case": lambda d: json.dumps(
        {
            {
                "dailyMemories": "daily_memories",
                "graphEntities": "graph_entities",
                "proceduralMemory": "procedural_memory",
                "snapshotAt": "snapshot_at",
            }.get(k, k): v
            for k, v in d.items()
        }
    ).encode(),
    "arrays first": lambda d: json.dumps(
        {k: d[k] for k in ("graphEntities", "proceduralMemory", "dailyMemories", "uid", "snapshotAt")}
    ).encode(),
    "other members": lambda d: json.dumps(
        {"version": 3, "meta": {"dailyMemories": [{"id": "not a row"}], "x": "}]"}, "tags": ["a", 1, [{"z": 1}]], **d, "tail": None}
    ).encode(),
    "no empty arrays": lambda d: json.dumps({k: v for k, v in d.items() if v != []}).encode(),
    "escaped": lambda d: json.dumps(d).replace('"uid"', '"\\u0075id"').replace("dailyMemories", "daily\\u004demories").encode(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_documented_minimum_in_every_layout(database, written, layout):
    document = written(LAYOUTS[layout](MINIMAL))
    assert document.scope == Scope.user("uid_alice")
    assert document.snapshot_at == "2026-02-26T02:00:00.000Z"
    report = bring_back(document, database, tiers=MEMORY)
    assert {t: n for t, n in report.as_dict()["rows"].items() if n} == {"daily_memories": 2, "graph_entities": 1}
    assert report.verified == "counts"
    check(database)


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_compressed(database, written, suffix, pack):
    bring_back(written(pack(LAYOUTS["pretty"](MINIMAL)), f"export.json{suffix}"), database, tiers=MEMORY)
    check(database)


def test_for_everybody_and_one_of_them(database, make_database, written):
    rows = [{"uid": f"u{n % 3}", "date": "2026-01-01", "entries": [f"for u{(n + 1) % 3}"]} for n in range(30)]
    document = written({"snapshotAt": "2026-01-02T00:00:00Z", "uid": None, "dailyMemories": rows})
    bring_back(document, database, tiers=MEMORY, scope=Scope.user("u1"))
    assert ask(database, "SELECT uid, count(*) FROM daily_memories GROUP BY 1") == [("u1", 10)]
    other = make_database()
    bring_back(document, other, tiers=MEMORY)
    assert ask(other, "SELECT count(*) FROM daily_memories") == [(30,)]
    with pytest.raises(NotFound, match="nobody"):
        bring_back(document, make_database(), tiers=MEMORY, scope=Scope.user("nobody"))


def test_a_row_that_is_not_the_documents_users(database, written):
    """A document that says it is Alice's cannot put rows into Bob's memory."""
    bad = {**MINIMAL, "dailyMemories": [*MINIMAL["dailyMemories"], {"uid": "bob", "date": "2026-02-26", "entries": []}]}
    before = everything(database)
    for mode in ("fresh", "merge", "replace"):
        with pytest.raises(RestoreConflict, match="uid_alice"):
            bring_back(written(bad), database, tiers=MEMORY, mode=mode)
        assert everything(database) == before


def test_modes(database, written):
    document = written(MINIMAL)
    run(database, "INSERT INTO daily_memories (uid, date) VALUES ('bob', '2026-01-01')")
    bring_back(document, database, tiers=MEMORY)
    with pytest.raises(TargetNotEmpty):
        bring_back(document, database, tiers=MEMORY)
    run(database, "UPDATE daily_memories SET summary = 'changed' WHERE id = '11111111-1111-1111-1111-111111111111'")
    with_keys = written({**MINIMAL, "dailyMemories": MINIMAL["dailyMemories"][:1], "graphEntities": []}, "keys.json")
    bring_back(with_keys, database, tiers=MEMORY, mode="merge", on_conflict="update")
    assert ask(database, "SELECT summary FROM daily_memories WHERE id = '11111111-1111-1111-1111-111111111111'") == [(None,)]
    assert ask(database, "SELECT count(*) FROM daily_memories WHERE uid = 'bob'") == [(1,)]


def test_values_of_other_programs(empty_database, written):
    """Objects for composites, arrays for arrays and vectors, numbers as strings, strings as numbers: whatever Postgres takes."""
    run(
        empty_database,
        "CREATE EXTENSION vector",
        "CREATE TYPE pair AS (a int, b text)",
        "CREATE TABLE t (id int PRIMARY KEY, uid text, n numeric(38,20), f float8, v vector(3), tags text[], p pair, ps pair[], raw bytea, at timestamptz, j json,"
        " jb jsonb, b boolean, d date)",
    )
    rows = b"""[
      {"id": 1, "uid": "a", "n": 12345678901234567.12345678901234567890, "f": 1e400e, "v": [1, 2.5, 3], "tags": ["x", null, "a,\\"b\\""],
       "p": {"a": 1, "b": "x"}, "ps": [{"a": 1, "b": null}, null], "raw": "\\\\x00ff", "at": "2026-02-26T02:00:00Z", "j": {"b":1, "b":2}, "jb": null, "b": true}
    ]""".replace(b"1e400e", b'"Infinity"')
    text = b'{"uid": "a", "t": ' + rows + b"}"
    bring_back(written(text), empty_database, tiers=[tier("t")])
    assert ask(
        empty_database, "SELECT n::text, f::text, v::text, tags, p::text, ps::text, raw, at = '2026-02-26 02:00Z', j::text, jb, b, d FROM t"
    ) == [
        (
            "12345678901234567.12345678901234567890",
            "Infinity",
            "[1,2.5,3]",
            ["x", None, 'a,"b"'],
            "(1,x)",
            '{"(1,)",NULL}',
            b"\x00\xff",
            True,
            '{"b":1, "b":2}',
            None,
            True,
            None,
        )
    ]


BROKEN = {
    "empty": (b"", TruncatedDocument),
    "blank": (b" \n ", DocumentError),
    "not JSON": (b"hello, this is not a backup", DocumentError),
    "a list": (b'[{"uid": "a"}]', CorruptDocument),
    "a string": (b'"x"', CorruptDocument),
    "null": (b"null", CorruptDocument),
    "no arrays": (b'{"uid": "a", "snapshotAt": "x"}', CorruptDocument),
    "binary": (bytes(range(256)) * 10, DocumentError),
    "brackets do not match": (b'{"dailyMemories": [{"uid": "a"}}]', CorruptDocument),
    "two documents": (json.dumps(MINIMAL).encode() * 2, DocumentError),
    "NaN": (b'{"uid": "a", "dailyMemories": [{"uid": "a", "date": "2026-01-01", "entries": [NaN]}]}', ColdStoreError),
    "bad UTF-8": (
        b'{"uid": "uid_alice", "dailyMemories": [{"uid": "uid_alice", "date": "2026-01-01", "summary": "\xff"}]}',
        ColdStoreError,
    ),
    "a lone surrogate": (
        b'{"uid": "uid_alice", "dailyMemories": [{"uid": "uid_alice", "date": "2026-01-01", "summary": "\\ud800"}]}',
        ColdStoreError,
    ),
    "a NUL": (
        b'{"uid": "uid_alice", "dailyMemories": [{"uid": "uid_alice", "date": "2026-01-01", "summary": "a\\u0000b"}]}',
        ColdStoreError,
    ),
    "trailing comma": (b'{"uid": "uid_alice", "dailyMemories": [{"uid": "uid_alice", "date": "2026-01-01"},]}', CorruptDocument),
    "a newer coldstore": (b'{"format": "coldstore/2", "uid": "a", "dailyMemories": []}', UnsupportedFormat),
    "an unknown array": (b'{"uid": "a", "somethingElse": [{"uid": "a"}]}', SchemaMismatch),
    "no array of ours": (b'{"uid": "a", "somethingElse": []}', NotFound),
    "an unknown column": (b'{"uid": "a", "dailyMemories": [{"uid": "a", "date": "2026-01-01", "colour": "red"}]}', SchemaMismatch),
    "a value of the wrong type": (b'{"uid": "a", "dailyMemories": [{"uid": "a", "date": "yesterday or so"}]}', DatabaseError),
    "a missing value": (b'{"uid": "a", "dailyMemories": [{"uid": "a"}]}', SchemaMismatch),
    "a number that is no row": (b'{"uid": "a", "dailyMemories": [1, {"uid": "a", "date": "2026-01-01"}]}', CorruptDocument),
    "a null that is no row": (b'{"uid": "a", "dailyMemories": [{"uid": "a", "date": "2026-01-01"}, null]}', CorruptDocument),
    "an array twice": (b'{"uid": "a", "dailyMemories": "x", "graphEntities": {"a": 1}}', CorruptDocument),
    "nested too deeply": (b'{"dailyMemories": ' + b"[" * 200_000, CorruptDocument),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_restored_is_said_and_nothing_is_touched(database, written, case):
    content, expected = BROKEN[case]
    run(database, "INSERT INTO daily_memories (uid, date) VALUES ('bob', '2026-01-01')")
    before = everything(database)
    with pytest.raises(expected) as caught:
        bring_back(written(content), database, tiers=MEMORY)
    assert "Traceback" not in str(caught.value)
    assert everything(database) == before


@pytest.mark.parametrize("layout", ["compact", "pretty"])
def test_cut_off_anywhere(database, written, layout):
    whole = LAYOUTS[layout](MINIMAL)
    before = everything(database)
    for length in range(1, len(whole) - 1, 61):
        with pytest.raises(DocumentError):
            bring_back(written(whole[:length]), database, tiers=MEMORY)
    assert everything(database) == before


def test_unknown_columns_may_be_left_out(database, written):
    document = written({"uid": "a", "dailyMemories": [{"uid": "a", "date": "2026-01-01", "colour": "red"}]})
    report = bring_back(document, database, tiers=MEMORY, allow_missing_columns=True)
    assert any("colour" in note for note in report.notes)
    assert ask(database, "SELECT uid, date::text FROM daily_memories") == [("a", "2026-01-01")]


def test_an_unknown_array_may_be_left_out_by_naming_tiers(database, written):
    from coldstore.restore import RestoreOptions, restore

    document = written({**MINIMAL, "somethingElse": [{"a": 1}]})
    restore(document, database, tiers=MEMORY, options=RestoreOptions(tiers=("daily_memories", "graph_entities")))
    check(database)


def test_a_table_that_is_not_there(empty_database, written):
    with pytest.raises(TableMissing, match="daily_memories"):
        bring_back(written(MINIMAL), empty_database, tiers=MEMORY)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(NotFound):
        open_file(tmp_path / "nowhere.json")
    with pytest.raises(NotFound):
        open_file(tmp_path)


def test_a_large_document_in_small_steps(database, written):
    rows = [{"uid": "a", "date": "2026-01-01", "entries": ["x" * (n % 5000)], "summary": "]}" * n} for n in range(2500)]
    document = written(json.dumps({"uid": "a", "dailyMemories": rows}, indent=1).encode())
    assert document.size > 8_000_000
    assert len(list(document.parts(["dailyMemories"]))) > 1
    bring_back(document, database, tiers=MEMORY)
    assert ask(database, "SELECT count(*), sum(length(summary)) FROM daily_memories") == [(2500, 2 * sum(range(2500)))]
