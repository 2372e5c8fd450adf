"""One user's memory is nobody else's: what is taken of one holds nothing of another, and what is brought back touches nobody else."""

from __future__ import annotations

import json

import psycopg
import pytest

from coldstore.errors import NotFound
from coldstore.storage.open import open_store
from coldstore.tiers import Scope
from tests.integration.helpers import bring_back, rows_of, run, table_text, take, take_each_user, tier

#: Names that try to be something else: a path, another scope, a part of one another, a piece of JSON or SQL.
UIDS = [
    "alice",
    "alic",
    "alice2",
    "Alice",
    "alice ",
    " alice",
    "../../x",
    "..",
    ".",
    "all",
    "ws~x",
    "x",
    "a/b",
    "a\\b",
    'say "hi"',
    '"',
    "\\",
    "it's",
    "'; DROP TABLE notes; --",
    "%s",
    "%61ll",
    "new\nline",
    "tab\there",
    "\x01",
    "\x7f",
    "\u2028",
    "👩‍👩‍👧",
    "é",
    "e\u0301",
    "日本",
    "null",
    "NULL",
    "42",
    "4",
    '{"uid":"alice"}',
    "\\u0061lice",
    "L" * 4096,
    "L" * 4095,
    "L" * 4095 + "M",
]
TIERS = [tier("notes"), tier("facts", '"Weird"."Facts"', uid="Owner"), tier("plain")]


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


@pytest.fixture
def crowd(make_database):
    """Every user has three rows in each tier, and every text names somebody else."""
    url = make_database(empty=True)
    run(
        url,
        'CREATE SCHEMA "Weird"',
        "CREATE TABLE notes (id int PRIMARY KEY, uid text, body text, meta jsonb)",
        'CREATE TABLE "Weird"."Facts" ("Owner" text, n int, "what" text, PRIMARY KEY ("Owner", n))',
        "CREATE TABLE plain (uid text, body text)",
    )
    with psycopg.connect(url) as conn:
        for number, uid in enumerate(UIDS):
            other = UIDS[(number + 1) % len(UIDS)]
            for n in range(3):
                conn.execute(
                    "INSERT INTO notes VALUES (%s, %s, %s, %s)", (number * 3 + n, uid, other, json.dumps({"uid": other, other: uid}))
                )
                conn.execute('INSERT INTO "Weird"."Facts" VALUES (%s, %s, %s)', (uid, n, f'","uid":"{other}","x":"'))
                conn.execute("INSERT INTO plain VALUES (%s, %s)", (uid, other))
        conn.execute("INSERT INTO notes VALUES (-1, NULL, 'alice', NULL)")
        conn.execute("INSERT INTO plain VALUES (NULL, 'alice')")
    return url


OWNERS = {"notes": "uid", '"Weird"."Facts"': '"Owner"', "plain": "uid"}


def split(url, uid, *, versions=False):
    """(the user's rows, everybody else's) of all tables; `versions`: the others' with what shows that nobody wrote them again."""
    literal = "E'" + uid.replace("\\", "\\\\").replace("'", "''") + "'"
    tables = {t if t.startswith('"') else f"public.{t}": o for t, o in OWNERS.items()}
    mine = {t: table_text(url, t, where=f"{o} = {literal}") for t, o in tables.items()}
    others = {t: table_text(url, t, where=f"{o} IS DISTINCT FROM {literal}", versions=versions) for t, o in tables.items()}
    return mine, others


def disturb(url, uid):
    """Lose some rows, alter some and add some, of this user alone."""
    with psycopg.connect(url) as conn:
        conn.execute("DELETE FROM notes WHERE id = (SELECT min(id) FROM notes WHERE uid = %s)", (uid,))
        conn.execute("UPDATE notes SET body = 'changed' WHERE id = (SELECT max(id) FROM notes WHERE uid = %s)", (uid,))
        conn.execute("INSERT INTO notes VALUES (100000, %s, 'new', NULL)", (uid,))
        conn.execute('DELETE FROM "Weird"."Facts" WHERE "Owner" = %s AND n = 1', (uid,))
        conn.execute("INSERT INTO plain VALUES (%s, 'more')", (uid,))


def test_replacing_one_users_rows_never_changes_anothers(crowd, store):
    whole = take(crowd, store, TIERS, frame_size=2000)
    for uid in UIDS:
        wanted, others = split(crowd, uid, versions=True)
        assert all(len(rows) == 3 for rows in wanted.values())
        disturb(crowd, uid)
        bring_back(whole, crowd, scope=Scope.user(uid), mode="replace")
        mine, untouched = split(crowd, uid, versions=True)
        assert mine == wanted, uid
        assert untouched == others, uid


@pytest.mark.parametrize("uid", ["alice", "all", "\x01", '{"uid":"alice"}', "L" * 4096], ids=lambda u: ascii(u[:20]))
def test_nor_does_any_other_way_of_restoring(crowd, store, uid):
    whole = take(crowd, store, TIERS, frame_size=2000)
    alone = take(crowd, store, TIERS, Scope.user(uid))
    wanted, others = split(crowd, uid, versions=True)
    disturb(crowd, uid)
    bring_back(alone, crowd, mode="replace")
    assert split(crowd, uid, versions=True) == (wanted, others)
    disturb(crowd, uid)
    bring_back(whole, crowd, scope=Scope.user(uid), mode="merge", on_conflict="update")
    bring_back(alone, crowd, mode="merge", on_conflict="skip")
    assert split(crowd, uid, versions=True)[1] == others
    with psycopg.connect(crowd) as conn:
        for table, owner in OWNERS.items():
            conn.execute(f"DELETE FROM {table} WHERE {owner} = %s".encode(), (uid,))
    bring_back(whole, crowd, scope=Scope.user(uid))
    assert split(crowd, uid, versions=True) == (wanted, others)


def test_every_hostile_name_has_a_document_of_its_own(crowd, store):
    each = take_each_user(crowd, store, TIERS)
    assert sorted(d.manifest.uid for d in each) == sorted(UIDS)
    assert len({d.manifest.document for d in each}) == len(UIDS)
    assert len({d.manifest.id for d in each}) == len(UIDS)
    for document in each:
        alone = take(crowd, store, TIERS, Scope.user(document.manifest.uid))
        assert rows_of(alone) == rows_of(document)
        for array, owner in (("notes", "uid"), ("facts", "Owner"), ("plain", "uid")):
            assert {json.loads(r)[owner] for r in rows_of(alone)[array]} == {document.manifest.uid}


def test_one_user_out_of_everybodys_document_is_the_same_as_their_own(crowd, store, make_database):
    whole = take(crowd, store, TIERS, frame_size=700)
    for uid in ("alice", 'say "hi"', "\x01", "é", "\\u0061lice", "L" * 4095, '{"uid":"alice"}'):
        target = make_database(empty=True)
        report = bring_back(whole, target, scope=Scope.user(uid))
        assert report.as_dict()["rows"] == {"notes": 3, "facts": 3, "plain": 3}
        mine, others = split(target, uid)
        assert mine == split(crowd, uid)[0]
        assert not any(others.values())


def test_names_that_nobody_has(crowd, store):
    for uid in ("ALICE", "alice\\", "alice%", "a_ice", "", "u0061lice", "L" * 4097):
        with pytest.raises(NotFound):
            take(crowd, store, TIERS, Scope.user(uid))
        with pytest.raises(NotFound):
            bring_back(take(crowd, store, TIERS), crowd, scope=Scope.user(uid), mode="replace")


def test_an_empty_name_is_a_name(make_database, store):
    url, target = make_database(empty=True), make_database(empty=True)
    run(url, "CREATE TABLE notes (id int PRIMARY KEY, uid text)", "INSERT INTO notes VALUES (1, ''), (2, 'a'), (3, NULL)")
    (empty, other) = sorted(take_each_user(url, store, [tier("notes")]), key=lambda d: d.manifest.uid)
    assert (empty.manifest.uid, other.manifest.uid) == ("", "a")
    assert rows_of(empty)["notes"] == rows_of(take(url, store, [tier("notes")], Scope.user("")))["notes"]
    bring_back(take(url, store, [tier("notes")]), target, scope=Scope.user(""))
    assert table_text(target, "public.notes") == [("1", "")]
