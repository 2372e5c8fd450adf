"""What is different between snapshots, and between a snapshot and the database, against what Postgres and plain Python say."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import sql

from coldstore.app import ColdStore
from coldstore.comparison import between, compare
from coldstore.config import build
from coldstore.documents import open_stored
from coldstore.errors import ChainRefused, ConfigError, NotFound
from coldstore.storage.open import open_store
from coldstore.tiers import EVERYBODY, Scope
from tests.integration.helpers import ask, bring_back, contents, everything, rows_of, run, take, tier
from tests.unit.stores import ring

NOTES = [tier("notes")]
TABLE = "CREATE TABLE notes (id int PRIMARY KEY, uid text, body text, props jsonb, entries json)"
ROWS = (
    "INSERT INTO notes SELECT g, 'u' || g % 4, 'body ' || g, jsonb_build_object('n', g, 'tags', jsonb_build_array('a', 'b')),"
    " json_build_array(json_build_object('at', g), json_build_object('at', g + 1)) FROM generate_series(1, 40) g"
)


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


@pytest.fixture
def source(make_database):
    url = make_database(empty=True)
    run(url, TABLE, ROWS)
    return url


def against_live(document, url, **more):
    """From the document to the database."""
    return between(document, None, database=lambda: url, **more)


def counts(found, name="notes"):
    (one,) = [t for t in found.tiers if t.tier == name]
    return {k: getattr(one, k) for k in ("added", "removed", "changed", "unchanged") if getattr(one, k)}


def plain(found, name="notes"):
    (one,) = [t for t in found.tiers if t.tier == name]
    return json.loads(msgspec.json.encode(one.rows))


def keys(found, kind, name="notes"):
    return sorted(r["key"]["id"] for r in plain(found, name) if r["change"] == kind)


# --- two snapshots -----------------------------------------------------------------------------------------------------------------


def test_rows_that_came_went_and_changed(source, store):
    before = take(source, store, NOTES)
    run(
        source,
        "INSERT INTO notes (id, uid, body) VALUES (41, 'u9', 'new')",
        "DELETE FROM notes WHERE id IN (3, 4)",
        "UPDATE notes SET body = 'other', props = props || '{\"n\": 0, \"more\": null}' WHERE id = 5",
        "UPDATE notes SET entries = '[{\"at\":7}]' WHERE id = 6",
    )
    after = take(source, store, NOTES)
    found = compare(before, after)
    assert counts(found) == {"added": 1, "removed": 2, "changed": 2, "unchanged": 36}
    assert not found.equal
    assert (found.before.id, found.after.id) == (before.name, after.name)
    rows = plain(found)
    assert [r["change"] for r in rows] == ["changed", "changed", "removed", "removed", "added"]
    assert rows[0] == {
        "change": "changed",
        "key": {"id": 5},
        "columns": [
            {"column": "body", "before": "body 5", "after": "other"},
            {"column": "props", "path": ["n"], "before": 5, "after": 0},
            {"column": "props", "path": ["more"], "after": None},
        ],
    }
    assert rows[1]["columns"] == [{"column": "entries", "path": [0], "before": {"at": 6}}]
    assert rows[-1]["row"] == {"id": 41, "uid": "u9", "body": "new", "props": None, "entries": None}


def test_the_other_way_round(source, store):
    before = take(source, store, NOTES)
    run(source, "INSERT INTO notes (id) VALUES (41)", "DELETE FROM notes WHERE id <= 2", "UPDATE notes SET body = '' WHERE id = 9")
    after = take(source, store, NOTES)
    assert counts(compare(before, after)) == {"added": 1, "removed": 2, "changed": 1, "unchanged": 37}
    assert counts(compare(after, before)) == {"added": 2, "removed": 1, "changed": 1, "unchanged": 37}


class Counted:
    """A store that counts what is read of documents."""

    def __init__(self, inner):
        self.inner = inner
        self.reads: list[int] = []

    def read(self, key, *, start=0, length=None):
        self.reads.append(start)
        return self.inner.read(key, start=start, length=length)


def counted(document):
    store = Counted(document.store)
    return type(document)(store, document.manifest, document.data_key), store.reads


def test_a_tier_that_both_manifests_give_alike_is_not_read(source, store):
    before, reads_before = counted(take(source, store, NOTES))
    run(source, "UPDATE notes SET body = body")  # other places, the same content
    after, reads_after = counted(take(source, store, NOTES))
    found = compare(before, after)
    assert (found.equal, counts(found)) == (True, {"unchanged": 40})
    assert reads_before == reads_after == []


def test_only_the_frames_of_rows_to_be_shown_are_read_twice(source, store):
    run(source, "INSERT INTO notes SELECT g, 'u', repeat('x', 400) FROM generate_series(100, 2000) g")
    before, reads_before = counted(take(source, store, NOTES, frame_size=16 << 10))
    run(source, "UPDATE notes SET body = 'y' WHERE id = 100")
    after, reads_after = counted(take(source, store, NOTES, frame_size=16 << 10))
    assert keys(compare(before, after), "changed") == [100]
    for document, reads in ((before, reads_before), (after, reads_after)):
        assert len(document.manifest.frames) > 20
        assert sum(reads.count(start) - 1 for start in set(reads)) == 1


def test_the_limit_is_of_each_kind(source, store):
    before = take(source, store, NOTES)
    run(source, "DELETE FROM notes WHERE id <= 10", "UPDATE notes SET body = 'z' WHERE id > 20")
    after = take(source, store, NOTES)
    found = compare(before, after, limit=3)
    assert counts(found) == {"removed": 10, "changed": 20, "unchanged": 10}
    assert len(keys(found, "removed")) == len(keys(found, "changed")) == 3
    assert len(plain(compare(before, after, limit=None))) == 30
    assert plain(compare(before, after, limit=0)) == []


def test_sealed_and_compressed_documents(source, store):
    key = ring()
    before = open_stored(store, take(source, store, NOTES, rings=(key,)).manifest, rings=[key])
    run(source, "UPDATE notes SET body = 'y' WHERE id = 7")
    after = open_stored(store, take(source, store, NOTES, rings=(key,)).manifest, rings=[key])
    assert keys(compare(before, after), "changed") == [7]
    run(source, "UPDATE notes SET body = 'body 7' WHERE id = 7")
    again = open_stored(store, take(source, store, NOTES, rings=(key,)).manifest, rings=[key])
    assert compare(before, again).equal


# --- whose ---------------------------------------------------------------------------------------------------------------------------


def test_one_user_of_everybodys(source, store):
    before = take(source, store, NOTES)
    run(source, "UPDATE notes SET body = 'x' WHERE id IN (1, 2)", "UPDATE notes SET uid = 'u1' WHERE id = 4")
    after = take(source, store, NOTES)
    own = take(source, store, NOTES, Scope.user("u1"))
    for other in (after, own):
        found = compare(before, other, scope=Scope.user("u1"))
        assert (keys(found, "changed"), keys(found, "added"), found.uid) == ([1], [4], "u1")
        assert counts(found) == {"changed": 1, "added": 1, "unchanged": 9}
    assert compare(before, own).uid == "u1"  # without being told: the narrower of the two
    live = against_live(before, source, scope=Scope.user("u1"))
    assert (live.tiers, live.uid) == (compare(before, after, scope=Scope.user("u1")).tiers, "u1")


def test_two_users_have_nothing_in_common(source, store):
    one, two = (take(source, store, NOTES, Scope.user(u)) for u in ("u1", "u2"))
    with pytest.raises(NotFound, match="nothing in common"):
        compare(one, two)
    with pytest.raises(NotFound, match="holds the memory of"):
        compare(one, one, scope=Scope.user("u2"))


def test_tiers_that_say_nothing_of_whose_a_row_is_are_noted(source, store):
    run(source, "CREATE TABLE facts (id int PRIMARY KEY)")
    both = [*NOTES, tier("facts")]
    before = take(source, store, both)
    found = compare(before, take(source, store, both), scope=Scope.user("u1"))
    assert [t.tier for t in found.tiers] == ["notes"]
    assert "facts" in found.notes[0]


def test_a_tier_of_one_alone_is_noted_and_an_unknown_one_refused(source, store):
    run(source, "CREATE TABLE facts (id int PRIMARY KEY)")
    before, after = take(source, store, NOTES), take(source, store, [*NOTES, tier("facts")])
    found = compare(before, after)
    assert ([t.tier for t in found.tiers], found.notes) == (["notes"], [f"facts is in {after.name} alone, and was not compared"])
    with pytest.raises(NotFound, match="no tier in common"):
        compare(before, after, only=["facts"])
    with pytest.raises(NotFound, match="'nothing'"):
        compare(before, after, only=["nothing"])


# --- the database ----------------------------------------------------------------------------------------------------------------------


def test_a_snapshot_against_the_database_and_back(source, store):
    document = take(source, store, NOTES)
    before = everything(source)
    assert against_live(document, source).equal
    assert everything(source) == before
    run(source, "DELETE FROM notes WHERE id = 1", "INSERT INTO notes (id) VALUES (50)", "UPDATE notes SET uid = NULL WHERE id = 2")
    found = against_live(document, source)
    assert (keys(found, "added"), keys(found, "removed"), keys(found, "changed")) == ([50], [1], [2])
    assert (found.before.id, found.after.id) == (document.name, "live")
    back = between(None, document, database=lambda: source)
    assert (keys(back, "added"), keys(back, "removed"), keys(back, "changed")) == ([1], [50], [2])


def test_the_database_is_read_at_one_moment(source, store, monkeypatch):
    """A row that changes between the first and the second reading is shown as it was counted."""
    document = take(source, store, NOTES)
    run(source, "UPDATE notes SET body = 'first' WHERE id = 1")
    parts = type(document).parts
    seen = []

    def spying(self, *arguments):
        if not seen:
            run(source, "UPDATE notes SET body = 'second'")
        seen.append(1)
        return parts(self, *arguments)

    monkeypatch.setattr(type(document), "parts", spying)
    found = between(None, document, database=lambda: source)
    assert seen
    assert counts(found) == {"changed": 1, "unchanged": 39}
    assert plain(found)[0]["columns"] == [{"column": "body", "before": "first", "after": "body 1"}]


def test_columns_that_only_the_database_has_are_told(source, store):
    document = take(source, store, [tier("notes", exclude=("props",))])
    run(source, "ALTER TABLE notes ADD extra int, DROP COLUMN entries", "UPDATE notes SET extra = 1, props = '{}'")
    found = against_live(document, source)
    assert counts(found) == {"unchanged": 40}
    assert (found.tiers[0].columns_removed, found.notes) == (
        ["entries"],
        ["public.notes: not compared extra, which only the database has"],
    )


def test_a_table_that_is_gone_is_told(source, store):
    run(source, "CREATE TABLE facts (id int PRIMARY KEY)")
    document = take(source, store, [*NOTES, tier("facts")])
    run(source, "DROP TABLE facts")
    assert against_live(document, source).notes == [f"facts is in {document.name} alone, and was not compared"]
    run(source, "DROP TABLE notes")
    with pytest.raises(NotFound, match="no tier in common"):
        against_live(document, source)


def test_the_database_with_itself_is_refused():
    with pytest.raises(ConfigError, match="itself"):
        between(None, None, database=lambda: "postgresql://nowhere.invalid/db")


def test_a_policy_that_would_hide_rows_is_an_error(source, store, make_database):
    document = take(source, store, NOTES)
    (name,) = ask(source, "SELECT current_database()")[0]
    role = f"reader_{name}"
    run(
        source,
        f"CREATE ROLE {role} LOGIN PASSWORD 'x'",
        f"GRANT SELECT ON notes TO {role}",
        "ALTER TABLE notes ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY p ON notes USING (uid = 'u1')",
    )
    try:
        with psycopg.connect(source) as conn:
            conn.execute(f"SET ROLE {role}")
            assert conn.execute("SELECT count(*) FROM notes").fetchone() == (10,)
        url = f"{source}{'&' if '?' in source else '?'}options=-c%20role%3D{role}"
        with pytest.raises(Exception, match="row-level security"):
            against_live(document, url)
    finally:
        run(source, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


# --- tables nobody designed --------------------------------------------------------------------------------------------------------------


def test_without_a_primary_key_equal_rows_are_counted(source, store):
    run(source, "CREATE TABLE log (uid text, line text)", "INSERT INTO log VALUES ('a', 'x'), ('a', 'x'), ('a', 'x'), ('b', 'y')")
    before = take(source, store, [tier("log")])
    run(
        source,
        "DELETE FROM log WHERE ctid IN (SELECT ctid FROM log WHERE line = 'x' LIMIT 1)",
        "INSERT INTO log VALUES ('b', 'y'), ('c', 'z')",
    )
    after = take(source, store, [tier("log")])
    for found in (compare(before, after), against_live(before, source)):
        assert counts(found, "log") == {"removed": 1, "added": 2, "unchanged": 3}
        assert sorted((r["change"], r["row"]["line"], "key" in r) for r in plain(found, "log")) == [
            ("added", "y", False),
            ("added", "z", False),
            ("removed", "x", False),
        ]


def test_partitions_composite_keys_and_rows_that_move(source, store):
    run(
        source,
        "CREATE TABLE parts (uid text, day date, n numeric, PRIMARY KEY (uid, day)) PARTITION BY RANGE (day)",
        "CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')",
        "CREATE TABLE parts_2 PARTITION OF parts DEFAULT",
        "INSERT INTO parts SELECT 'u', '2026-01-01'::date + g, g FROM generate_series(0, 59) g",
    )
    before = take(source, store, [tier("parts")])
    run(source, "UPDATE parts SET n = 1.10 WHERE day = '2026-01-02'", "UPDATE parts SET day = '2026-06-01' WHERE day = '2026-01-03'")
    for found in (compare(before, take(source, store, [tier("parts")])), against_live(before, source)):
        assert counts(found, "parts") == {"changed": 1, "removed": 1, "added": 1, "unchanged": 58}
        changed = next(r for r in plain(found, "parts") if r["change"] == "changed")
        assert changed["key"] == {"uid": "u", "day": "2026-01-02"}


def test_a_view_and_a_condition(source, store):
    run(source, "CREATE VIEW seen AS SELECT id, uid, body FROM notes WHERE id < 10")
    tiers = [tier("seen"), tier("notes", where="id > 30")]
    before = take(source, store, tiers)
    run(source, "UPDATE notes SET body = 'x' WHERE id IN (5, 20, 35)")
    found = against_live(before, source)
    assert counts(found, "seen") == {"added": 1, "removed": 1, "unchanged": 8}  # a view has no key
    assert counts(found) == {"changed": 1, "unchanged": 9}


def test_snapshots_with_vectors_in_two_forms(source, store):
    run(source, "CREATE EXTENSION vector", "ALTER TABLE notes ADD v vector(3)", "UPDATE notes SET v = ARRAY[id, id / 3.0, -1e-7]::vector")
    text, binary = (take(source, store, NOTES, vectors=form) for form in ("text", "hex"))
    assert compare(text, binary).equal
    assert compare(binary, text).equal
    assert against_live(binary, source).equal
    run(source, "UPDATE notes SET v = '[1,2,3]' WHERE id = 40")
    assert keys(compare(text, take(source, store, NOTES, vectors="hex")), "changed") == [40]


def test_an_altered_table(source, store):
    before = take(source, store, NOTES)
    run(source, "ALTER TABLE notes ADD extra int DEFAULT 7, DROP COLUMN body", "UPDATE notes SET uid = 'x' WHERE id = 1")
    found = compare(before, take(source, store, NOTES))
    assert (found.tiers[0].columns_added, found.tiers[0].columns_removed) == (["extra"], ["body"])
    assert counts(found) == {"changed": 1, "unchanged": 39}


def test_quoted_names_and_a_json_null(source, store):
    run(
        source,
        'CREATE TABLE "We""ird" ("I d" text PRIMARY KEY, "ro w" jsonb)',
        "INSERT INTO \"We\"\"ird\" VALUES ('a', NULL), (E'n\\n', '1')",
    )
    tiers = [tier("odd", '"We""ird"')]
    before = take(source, store, tiers)
    run(source, 'UPDATE "We""ird" SET "ro w" = \'null\'')
    found = against_live(before, source)
    assert sorted((r["key"]["I d"], [c["column"] for c in r["columns"]]) for r in plain(found, "odd")) == [
        ("a", ["~jsonNull"]),
        ("n\n", ["ro w", "~jsonNull"]),
    ]
    assert compare(before, take(source, store, tiers)).tiers == found.tiers


# --- at random ---------------------------------------------------------------------------------------------------------------------------


def change(conn: psycopg.Connection[Any], random: random.Random) -> None:
    ids = ", ".join(map(str, random.sample(range(1, 60), random.randint(1, 8))))
    value = sql.Literal(json.dumps({"n": random.randint(0, 3), "l": [random.randint(0, 2) for _ in range(3)] + ["x"]}))
    statement = random.choice(
        [
            "DELETE FROM notes WHERE id IN ({ids})",
            "INSERT INTO notes SELECT i, 'u' || i % 3, 'new', {value} FROM unnest(ARRAY[{ids}]) i ON CONFLICT (id) DO UPDATE SET props = {value}",
            "UPDATE notes SET props = {value} WHERE id IN ({ids})",
            "UPDATE notes SET uid = 'u' || {one} % 3 WHERE id IN ({ids})",
            "UPDATE notes SET id = id + 100 WHERE id IN ({ids}) AND NOT EXISTS (SELECT 1 FROM notes o WHERE o.id = notes.id + 100)",
        ]
    )
    conn.execute(sql.SQL(statement).format(ids=sql.SQL(ids), value=value, one=sql.Literal(random.randint(0, 9))))


@pytest.mark.parametrize("seed", range(12))
def test_against_dictionaries(source, store, seed):
    """Documents, the live database, one user or everybody: all say what two dictionaries say."""
    random_ = random.Random(seed)
    scope = random_.choice([EVERYBODY, Scope.user("u1")])
    before = take(source, store, NOTES, frame_size=random_.choice([500, 4 << 20]))
    with psycopg.connect(source, autocommit=True) as conn:
        for _ in range(random_.randint(1, 6)):
            change(conn, random_)
    after = take(source, store, NOTES, frame_size=500)

    def rows(document):
        found = {(r := json.loads(line))["id"]: r for line in rows_of(document)["notes"]}
        return {k: r for k, r in found.items() if scope == EVERYBODY or r["uid"] == scope.value}

    old, new = rows(before), rows(after)
    expected = {
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
        "changed": sorted(k for k in old.keys() & new.keys() if old[k] != new[k]),
    }
    for found in (compare(before, after, scope=scope, limit=None), against_live(before, source, scope=scope, limit=None)):
        assert {kind: keys(found, kind) for kind in expected} == expected
        for row in plain(found):
            key = row["key"]["id"]
            if row["change"] != "changed":
                assert row["row"] == (new if row["change"] == "added" else old)[key]
            else:
                touched = {c["column"] for c in row["columns"]}
                assert touched == {c for c in new[key] if new[key][c] != old[key][c]}


# --- undo --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_dry_run_of_replace_says_what_replace_does(source, store, seed):
    random_ = random.Random(seed)
    scope = random_.choice([EVERYBODY, Scope.user("u1")])
    document = take(source, store, NOTES)
    with psycopg.connect(source, autocommit=True) as conn:
        for _ in range(4):
            change(conn, random_)
        conn.execute("UPDATE notes SET uid = 'u1' WHERE id = 2 AND uid <> 'u1'")
    if scope != EVERYBODY:  # whose keys must not be another's now
        run(source, "UPDATE notes SET uid = 'u' || id % 4 WHERE id <= 40")
    before = everything(source)
    told = bring_back(document, source, scope=scope, mode="replace", dry_run=True)
    assert everything(source) == before
    (change_,) = told.changes
    report = bring_back(document, source, scope=scope, mode="replace")
    assert report.changes is None
    (done,) = report.tables
    assert (done["inserted"], done["deleted"], done["updated"], done["unchanged"]) == (
        change_.added,
        change_.removed,
        change_.changed,
        change_.unchanged,
    )
    again = bring_back(document, source, scope=scope, mode="replace", dry_run=True)
    assert again.changes[0].equal


def test_a_dry_run_in_another_mode_or_into_nothing_compares_no_rows(source, store, empty_database):
    document = take(source, store, NOTES)
    assert bring_back(document, source, mode="merge", dry_run=True).changes is None
    assert bring_back(document, empty_database, mode="replace", dry_run=True).changes is None
    assert contents(empty_database) == {}


def test_a_dry_run_with_a_column_that_the_target_lacks(source, store, empty_database):
    document = take(source, store, NOTES)
    run(
        empty_database,
        "CREATE TABLE notes (id int PRIMARY KEY, uid text, body text, entries json, own int)",
        "INSERT INTO notes (id) VALUES (99)",
    )
    report = bring_back(document, empty_database, mode="replace", dry_run=True, allow_missing_columns=True)
    (found,) = report.changes
    assert (found.added, found.removed, found.columns_added) == (40, 1, ["props"])
    assert any("own" in note for note in report.notes)


def test_keys_that_are_written_differently(source, store):
    """What a dry run takes for a change, `replace` takes for an update."""
    run(source, "CREATE TABLE odd (id numeric PRIMARY KEY, uid text)", "INSERT INTO odd VALUES (1.50, 'u'), (2, 'u')")
    document = take(source, store, [tier("odd")])
    run(source, "UPDATE odd SET id = id * 1.000")
    told = bring_back(document, source, mode="replace", dry_run=True)
    assert (told.changes[0].changed, told.changes[0].unchanged) == (2, 0)
    assert bring_back(document, source, mode="replace").tables[0]["updated"] == 2


def test_a_chain_that_only_postgres_can_put_together_has_no_preview(make_database, tmp_path):
    url = make_database(empty=True)
    run(url, "CREATE TABLE notes (id interval PRIMARY KEY, uid text)", "INSERT INTO notes VALUES ('1 day', 'u')")
    off = {name: {"enabled": False} for name in ("daily_memories", "graph_entities", "procedural_memory")}
    with ColdStore(build({"path": str(tmp_path / "own"), "tiers": {"notes": {"table": "notes"}, **off}}, {"database_url": url})) as cold:
        cold.init(change_capture=True)
        cold.snapshot()
        run(url, "UPDATE notes SET id = '24 hours'")
        link = cold.snapshot_incremental(prove=True)
        told = cold.restore(link.id, to=url, mode="replace", dry_run=True)
        assert told.changes is None
        assert any(note.startswith("rows were not compared") for note in told.notes)
        with pytest.raises(ChainRefused):
            cold.diff(link.id, "live")
