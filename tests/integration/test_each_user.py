"""One document for each user, all of one moment, each the same as if that user had been asked for alone."""

from __future__ import annotations

import psycopg
import pytest

from coldstore.app import ColdStore
from coldstore.catalog import newest
from coldstore.codec.compress import Codec
from coldstore.config import build
from coldstore.errors import AccessDenied, ColdStoreError, NotFound, ObjectExists, StoreError
from coldstore.export import ExportOptions, snapshot_each_user
from coldstore.postgres.migrate import migrate
from coldstore.storage.open import open_store
from coldstore.tiers import Scope
from tests.integration.helpers import (
    MEMORY,
    Notes,
    ask,
    bring_back,
    rows_of,
    run,
    source_of,
    structure,
    table_text,
    take,
    take_each_user,
    tier,
)


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


def test_the_reference_tables(database, store, make_database):
    run(
        database,
        "INSERT INTO daily_memories (uid, date, entries) SELECT 'u' || g % 9, date '2026-01-01' + g, jsonb_build_array(g) FROM generate_series(1, 400) g",
        "INSERT INTO graph_entities (uid, name, type, embedding) SELECT 'u' || g % 12, 'n' || g, 't', array_fill(g::real, ARRAY[1536])::vector"
        " FROM generate_series(1, 100) g",
        "INSERT INTO procedural_memory (uid, kind, name, body) SELECT 'only here', 'rule', 'r', '{}' FROM generate_series(1, 2)",
    )
    documents = {d.manifest.uid: d for d in take_each_user(database, store, vectors="hex")}
    assert set(documents) == {f"u{g}" for g in range(12)} | {"only here"}
    assert len({(d.manifest.database.snapshot) for d in documents.values()}) == 1
    for uid in ("u0", "u8", "u11", "only here"):
        alone = take(database, store, MEMORY, Scope.user(uid), vectors="hex")
        assert rows_of(documents[uid]) == rows_of(alone)
        assert [t.digest for t in documents[uid].manifest.tiers] == [t.digest for t in alone.manifest.tiers]
        assert documents[uid].manifest.schema == alone.manifest.schema
    target = make_database(empty=True)
    for document in documents.values():
        bring_back(document, target, mode="merge")
    for table in ("daily_memories", "graph_entities", "procedural_memory"):
        assert table_text(target, f"public.{table}") == table_text(database, f"public.{table}")
    assert structure(target)["indexes"] == [
        i for i in structure(database)["indexes"] if "graph_edges" not in i[0] and "user_prof" not in i[0] and "sched" not in i[0]
    ]


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_a_user_with_more_rows_than_a_frame(make_database, store, codec):
    url = make_database(empty=True)
    run(
        url,
        "CREATE TABLE a (id int PRIMARY KEY, uid text, body text)",
        "CREATE TABLE b (id int PRIMARY KEY, uid text, body json)",
        "INSERT INTO a SELECT g, CASE WHEN g % 10 = 0 THEN 'small' WHEN g % 11 = 0 THEN 'zlast' ELSE 'big' END, repeat('x', g % 300) FROM generate_series(1, 3000) g",
        "INSERT INTO b SELECT g, 'big', E'{\"a\":\\n1}' FROM generate_series(1, 1000) g",
    )
    tiers = [tier("a"), tier("b")]
    documents = {d.manifest.uid: d for d in take_each_user(url, store, tiers, frame_size=4000, codec=Codec(codec))}
    assert len(documents["big"].manifest.frames) > 50
    for uid, document in documents.items():
        assert rows_of(document) == rows_of(take(url, store, tiers, Scope.user(uid)))
        target = make_database(empty=True)
        assert bring_back(document, target).verified == "content"
        assert table_text(target, "public.a") == table_text(url, "public.a", where=f"uid = '{uid}'")


def test_rows_without_an_owner_are_told(make_database, store):
    url = make_database(empty=True)
    run(
        url,
        "CREATE TABLE t (id int, uid text, kind text)",
        "INSERT INTO t VALUES (1, 'a', 'x'), (2, NULL, 'x'), (3, NULL, 'x'), (4, NULL, 'tmp')",
    )
    seen = Notes()
    (only,) = take_each_user(url, store, [tier("t", where="kind <> 'tmp'")], progress=seen)
    assert only.manifest.rows() == {"t": 1}
    assert seen.notes == ["2 rows of t have no uid: only an all-user snapshot holds them"]


def test_no_users_no_documents(make_database, store):
    url = make_database(empty=True)
    run(url, "CREATE TABLE t (id int, uid text)")
    assert take_each_user(url, store, [tier("t")]) == []
    run(url, "CREATE TABLE world (id int)")
    with pytest.raises(NotFound, match="no tier has a column"):
        take_each_user(url, store, [tier("world")])


def test_uids_that_a_locale_would_sort_otherwise(make_database, store):
    """Streams are merged in the order of bytes: a locale's order, or different ones, must not tear a user apart."""
    url = make_database(empty=True)
    found = ask(
        url,
        "SELECT quote_ident(collname) FROM pg_collation WHERE collencoding IN (-1, 6) AND collname <> 'default' ORDER BY collprovider DESC, 1",
    )
    collations = [name for (name,) in found[:8]]
    names = [f"t{n}" for n in range(len(collations))]
    run(
        url,
        *(f"CREATE TABLE {t} (id int, uid text COLLATE pg_catalog.{c})" for t, c in zip(names, collations, strict=True)),
        *(
            f"INSERT INTO {t} SELECT g % 3, u FROM unnest(ARRAY['a', 'A', 'b', 'B', 'ä', 'Ä', '_', '-', 'a-b', 'ab', 'Z', 'é', 'e', '', ' ', 'ß', 'ss']) u,"
            " generate_series(1, 5) g"
            for t in names
        ),
    )
    documents = take_each_user(url, store, [tier(t) for t in names])
    uids = [d.manifest.uid for d in documents]
    assert len(uids) == len(set(uids)) == 17
    assert all(d.manifest.rows() == dict.fromkeys(names, 5) for d in documents)


def test_one_user_where_the_collation_takes_names_for_equal(make_database, store):
    """`alice` and `ALICE` are two users, whatever the column's collation thinks of case."""
    url = make_database(empty=True)
    try:
        run(url, "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level1', deterministic = false)")
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this Postgres is built without ICU: it has no collation that takes different names for equal")
    run(
        url,
        "CREATE TABLE t (id int PRIMARY KEY, uid text COLLATE loose)",
        "INSERT INTO t VALUES (1, 'alice'), (2, 'ALICE'), (3, 'álice')",
    )
    tiers = [tier("t")]
    alone = take(url, store, tiers, Scope.user("alice"))
    assert alone.manifest.rows() == {"t": 1}
    assert {d.manifest.uid: d.manifest.rows()["t"] for d in take_each_user(url, store, tiers)} == {"alice": 1, "ALICE": 1, "álice": 1}
    others = table_text(url, "public.t", versions=True, where="id <> 1")
    run(url, "DELETE FROM t WHERE id = 1")
    bring_back(alone, url, mode="replace")
    assert table_text(url, "public.t", versions=True, where="id <> 1") == others
    assert ask(url, "SELECT count(*) FROM t") == [(3,)]


def test_many_users(make_database, store):
    url = make_database(empty=True)
    run(url, "CREATE TABLE t (id int, uid text)", "INSERT INTO t SELECT g, 'user-' || g % 600 FROM generate_series(1, 1800) g")
    documents = take_each_user(url, store, [tier("t")])
    assert len(documents) == 600
    assert all(d.manifest.rows() == {"t": 3} for d in documents)
    assert newest(store, Scope.user("user-17")).rows() == {"t": 3}


def test_twice_in_a_row(make_database, store):
    url = make_database(empty=True)
    run(url, "CREATE TABLE t (id int, uid text)", "INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    first = take_each_user(url, store, [tier("t")])
    run(url, "INSERT INTO t VALUES (3, 'a')")
    second = take_each_user(url, store, [tier("t")])
    assert len({d.manifest.id for d in first + second}) == 4
    assert newest(store, Scope.user("a")).rows() == {"t": 2}


class TakenAtTheEnd:
    """A store whose answer to the first document is that the name is taken, and which says so when the last byte was written, as S3 does."""

    def __init__(self, inner):
        self._inner = inner
        self._left = 1

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def create(self, key, *, retain=None):
        if self._left and key.endswith(".json") and not key.endswith(".manifest.json"):
            self._left -= 1
            return _Refused(key)
        return self._inner.create(key, retain=retain)


class _Refused:
    def __init__(self, key):
        self._key = key

    def __enter__(self):
        return self

    def write(self, data):
        pass

    def __exit__(self, kind, *_):
        if kind is None:
            raise ObjectExists(f"{self._key} is there already", key=self._key)


@pytest.mark.parametrize("allow_empty", [True, False])
@pytest.mark.parametrize("frame_size", [8 << 20, 100])
def test_a_name_that_turns_out_to_be_taken(make_database, store, frame_size, allow_empty):
    """The next millisecond is used, with the same rows; never is less written the second time."""
    url = make_database(empty=True)
    run(url, "CREATE TABLE t (id int, uid text)", "INSERT INTO t SELECT g, 'a' FROM generate_series(1, 500) g")
    tiers = [tier("t")]
    assert take(url, TakenAtTheEnd(store), tiers, frame_size=frame_size).manifest.rows() == {"t": 500}
    if frame_size > 100:
        (document,) = take_each_user(url, TakenAtTheEnd(store), tiers, frame_size=frame_size, allow_empty=allow_empty)
        assert document.manifest.rows() == {"t": 500}
        return
    latest = {o.key for o in store.list("latest/")}
    with pytest.raises(StoreError) as caught:  # so much of one user is not held, and cannot be read twice
        take_each_user(url, TakenAtTheEnd(store), tiers, frame_size=frame_size, allow_empty=allow_empty)
    assert caught.value.hint
    assert {o.key for o in store.list("latest/")} == latest


class Refusing:
    """A store that does not take what belongs to some users."""

    def __init__(self, inner, uids):
        self._inner, self._uids = inner, uids

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def create(self, key, **more):
        if any(f"memory-{uid}-" in key for uid in self._uids):
            raise AccessDenied(f"not {key}", key=key, hint="Ask for it.")
        return self._inner.create(key, **more)


@pytest.mark.parametrize("frame_size", [4 << 20, 1000])
def test_one_users_error_leaves_the_others_snapshots(make_database, store, frame_size):
    url = make_database(empty=True)
    run(url, "CREATE TABLE t (id int, uid text)", "INSERT INTO t SELECT g, 'u' || g % 30 FROM generate_series(1, 3000) g")
    failed: dict[str, ColdStoreError] = {}
    with source_of(url) as source:
        options = ExportOptions(frame_size=frame_size)
        refusing = Refusing(store, {"u0", "u17", "u29"})
        found = [m.uid for m in snapshot_each_user(source, refusing, tiers=[tier("t")], options=options, failed=failed.__setitem__)]
    assert sorted(failed) == ["u0", "u17", "u29"]
    assert {type(e) for e in failed.values()} == {AccessDenied}
    assert sorted(found) == sorted(f"u{n}" for n in range(30) if n not in {0, 17, 29})
    assert all(newest(store, Scope.user(uid)).rows() == {"t": 100} for uid in found)


@pytest.mark.parametrize("frame_size", [4 << 20, 1000])
def test_where_everybodys_fails_it_does_not_go_on(make_database, store, frame_size):
    url = make_database(empty=True)
    run(url, "CREATE TABLE t (id int, uid text)", "INSERT INTO t SELECT g, 'u' || g % 300 FROM generate_series(1, 30000) g")
    failed: dict[str, ColdStoreError] = {}
    refusing = Refusing(store, {f"u{n}" for n in range(300)})
    with source_of(url) as source:
        options = ExportOptions(frame_size=frame_size)
        found = snapshot_each_user(source, refusing, tiers=[tier("t")], options=options, failed=failed.__setitem__)
        with pytest.raises(AccessDenied):
            list(found)
    assert 10 < len(failed) < 50


def test_the_run_tells_who_has_none_and_fails(database, tmp_path):
    with psycopg.connect(database, autocommit=True) as conn:
        migrate(conn)
    run(database, "INSERT INTO daily_memories (uid, date) SELECT 'u' || g, '2026-01-01' FROM generate_series(10, 59) g")
    with ColdStore(build({"path": str(tmp_path)}, {"database_url": database})) as cold:
        for uid in range(10, 60, 2):  # where their pointers would be
            (tmp_path / "latest" / f"u{uid}.json").mkdir(parents=True)
        seen = []
        with pytest.raises(StoreError, match=r"^25 users have no new snapshot; the first of them is 'u10': ") as caught:
            seen.extend(cold.snapshot_each_user())
        assert type(caught.value).exit_code == 4
        (told,) = cold.runs.list()
    assert sorted(info.uid for info in seen) == [f"u{n}" for n in range(11, 60, 2)]
    assert told.state == "failed"
    assert told.error.endswith(str(caught.value))
    assert (told.details["users"], told.details["failed"], len(told.details["errors"])) == (25, 25, 20)
    assert set(told.details["errors"]) <= {f"u{n}" for n in range(10, 60, 2)}
