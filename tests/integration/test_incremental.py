"""What changed, as a snapshot of its own: with its parent it comes to what a full one of the same moment holds, for everybody, a user and a
workspace; and it is refused wherever that could be otherwise."""

from __future__ import annotations

import json
import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from coldstore import pointers
from coldstore.app import ColdStore
from coldstore.catalog import manifests, newest, read_pointer
from coldstore.codec.compress import Codec
from coldstore.codec.digest import format_digest, row_digest
from coldstore.codec.sign import SigningKey
from coldstore.config import build
from coldstore.document import model
from coldstore.documents import StoredDocument, open_stored
from coldstore.errors import ChainRefused, StoreError
from coldstore.export import ExportOptions, snapshot
from coldstore.keyrings.keyfile import Key
from coldstore.keyrings.local import LocalRing
from coldstore.postgres.source import Source
from coldstore.storage import layout
from coldstore.storage.open import open_store
from coldstore.tiers import EVERYBODY, Scope
from coldstore.verify import verify, verify_one
from tests.integration.helpers import (
    MEMORY,
    Notes,
    ask,
    merged,
    record_changes,
    rows_of,
    run,
    take,
    take_incremental,
    tier,
)

ALICE = Scope.user("alice")
ACME = Scope.of_workspace("acme")
SCOPES = [EVERYBODY, ALICE, ACME]


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def memory(make_database):
    """Two tables of three users in two workspaces, whose changes are recorded."""
    url = make_database(empty=True)
    run(
        url,
        "CREATE TABLE notes (id int, part text, uid text, workspace_id text, body jsonb, PRIMARY KEY (part, id))",
        "CREATE TABLE facts (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, uid text, body text)",
        "INSERT INTO notes SELECT g, 'p', (ARRAY['alice', 'bob', 'carol'])[g % 3 + 1], (ARRAY['acme', 'other'])[g % 2 + 1], to_jsonb(g)"
        " FROM generate_series(1, 300) g",
        "INSERT INTO facts (uid, body) SELECT (ARRAY['alice', 'bob'])[g % 2 + 1], repeat('x', g) FROM generate_series(1, 100) g",
    )
    record_changes(url, TIERS)
    return url


TIERS = [tier("notes"), tier("facts")]


def changes(url: str, number: int) -> None:
    """Some of everything."""
    run(
        url,
        f"INSERT INTO notes SELECT 1000 + g, 'n{number}', 'alice', 'acme', 'null' FROM generate_series(1, 3) g ON CONFLICT DO NOTHING",
        f"UPDATE notes SET body = '[{number}]' WHERE id % 50 = {number}",
        f"UPDATE notes SET uid = 'bob' WHERE id = {number * 3} AND uid = 'alice'",
        f"UPDATE notes SET uid = 'alice', workspace_id = 'acme' WHERE id = {number * 3 + 1}",
        f"UPDATE notes SET id = -id WHERE id = {number * 7}",
        f"DELETE FROM facts WHERE id % 20 = {number}",
        f"INSERT INTO facts (uid, body) VALUES (NULL, 'nobody {number}'), ('alice', E'two\\nlines')",
    )


@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_a_chain_comes_to_what_a_full_one_holds(memory, store, make_database, tmp_path, scope):
    links = [take(memory, store, TIERS, scope)]
    for number in range(1, 6):
        changes(memory, number)
        link = take_incremental(memory, store, TIERS, scope, prove=True)
        assert link is not None
        assert link.manifest.parent == model.Link(id=links[-1].manifest.id, checksum=links[-1].manifest.checksum)
        links.append(link)
        whole = take(memory, open_store(str(tmp_path / f"aside{number}")), TIERS, scope)
        # That one told the database that it is the newest, but of another store; put back what was there.
        run(memory, f"UPDATE coldstore.heads SET snapshot_id = '{link.manifest.id}', checksum = '{link.manifest.checksum}',"
            f" snapshot = '{link.manifest.database.snapshot}' WHERE scope <> 'floor' AND scope <> ''")  # fmt: skip
        assert merged(*links) == rows_of(whole)
        assert link.state == whole.tiers
    assert all(v.ok for v in verify(store, [link.manifest for link in links], whole=True))
    assert all(verify_one(store, link.manifest, deep=True).ok for link in links)
    assert pointers.check(store)[1] == []
    assert newest(store, scope).id == links[-1].manifest.id
    size = sum(t.rows for t in links[-1].manifest.tiers)
    assert 0 < size < sum(t.rows for t in whole.manifest.tiers) / 4


@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_nothing_changed_nothing_is_written(memory, store, scope):
    full = take(memory, store, TIERS, scope)
    assert take_incremental(memory, store, TIERS, scope) is None
    with psycopg.connect(memory) as conn:
        conn.execute("DELETE FROM notes")
        conn.rollback()
    run(memory, "UPDATE facts SET body = 'x' WHERE id = -1", "INSERT INTO notes VALUES (9, 'p') ON CONFLICT DO NOTHING")
    assert take_incremental(memory, store, TIERS, scope) is None
    assert newest(store, scope).id == full.manifest.id
    empty = take_incremental(memory, store, TIERS, scope, even_if_empty=True)
    assert set(empty.manifest.rows()) == {*full.manifest.rows(), "deleted"}
    assert not any(empty.manifest.rows().values())
    assert merged(full, empty) == rows_of(full)
    assert verify_one(store, empty.manifest, deep=True).ok


def test_what_another_changed_is_nothing_to_a_user(memory, store):
    take(memory, store, TIERS, ALICE)
    take(memory, store, TIERS, ACME)
    run(
        memory,
        "UPDATE notes SET body = '1' WHERE uid = 'bob' AND workspace_id = 'other'",
        "INSERT INTO facts (uid, body) VALUES ('bob', '')",
    )
    assert take_incremental(memory, store, TIERS, ALICE) is None
    assert take_incremental(memory, store, TIERS, ACME) is None


def test_what_came_and_went_is_only_gone(memory, store):
    full = take(memory, store, TIERS)
    run(memory, "INSERT INTO notes VALUES (7000, 'p', 'alice')", "DELETE FROM notes WHERE id = 7000")
    link = take_incremental(memory, store, TIERS)
    assert link.manifest.rows() == {"notes": 0, "facts": 0, "deleted": 1}
    assert rows_of(link)["deleted"] == [b'{"array":"notes","key":{"part":"p","id":7000}}']
    assert merged(full, link) == rows_of(full)


def test_what_commits_late_is_in_the_next_one(memory, store):
    links = [take(memory, store, TIERS)]
    with psycopg.connect(memory) as slow:
        slow.execute("UPDATE notes SET body = '\"late\"' WHERE id = 1")
        run(memory, "UPDATE notes SET body = '\"early\"' WHERE id = 2")
        links.append(take_incremental(memory, store, TIERS))
        assert links[-1].manifest.rows()["notes"] == 1
    links.append(take_incremental(memory, store, TIERS))
    assert links[-1].manifest.rows()["notes"] == 1
    assert merged(*links) == rows_of(take(memory, store, TIERS))


@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_a_table_that_was_emptied_is_read_again(memory, store, scope):
    links = [take(memory, store, TIERS, scope)]
    run(memory, "UPDATE facts SET body = 'other' WHERE id = 3", "UPDATE facts SET body = 'other' WHERE id = 4")
    run(memory, "TRUNCATE notes", "INSERT INTO notes VALUES (1, 'new', 'alice', 'acme'), (2, 'new', 'bob', 'other')")
    link = take_incremental(memory, store, TIERS, scope, accept=True)
    assert link.manifest.resets == ["notes"]
    assert "deleted" in link.manifest.rows()
    assert all(json.loads(line)["array"] != "notes" for line in rows_of(link)["deleted"])
    links.append(link)
    changes(memory, 1)
    links.append(take_incremental(memory, store, TIERS, scope, accept=True))
    assert merged(*links) == rows_of(take(memory, store, TIERS, scope, accept=True))


def test_keys_are_written_as_their_columns_are(make_database, store):
    url = make_database(empty=True)
    run(
        url,
        "CREATE TYPE mood AS ENUM ('calm', 'we''ird \"')",
        'CREATE TABLE "T 1" ("a""b" timestamptz, m mood, n numeric, f float8, y bytea, k uuid, i interval, uid text,'
        ' PRIMARY KEY (m, "a""b", n, f, y, k, i))',
    )
    run(
        url,
        """INSERT INTO "T 1" SELECT timestamptz '2026-01-01 00:00:00.123456+02' + g * interval '1 day', (ARRAY['calm', 'we''ird "'])[g % 2 + 1]::mood,
           g + 0.10, 1e-7 * g, decode('00ff', 'hex'), md5(g::text)::uuid, g * interval '1 month 2 days', 'u' FROM generate_series(1, 10) g""",
    )
    tiers = [tier("odd", '"T 1"')]
    record_changes(url, tiers)
    full = take(url, store, tiers)
    run(url, """SET DateStyle = 'German'; SET TimeZone = 'Asia/Bangkok'; SET bytea_output = 'escape'; SET IntervalStyle = 'sql_standard';
                DELETE FROM "T 1" WHERE m = 'calm'; UPDATE "T 1" SET n = n + 1""")  # fmt: skip
    link = take_incremental(url, store, tiers, accept=True)
    assert link.manifest.rows() == {"odd": 5, "deleted": 10}
    assert merged(full, link) == rows_of(take(url, store, tiers, accept=True))
    names = {t.array: t.key for t in full.manifest.schema.tables}["odd"]
    were = [{name: row[name] for name in names} for row in map(json.loads, rows_of(full)["odd"])]
    assert all(json.loads(line)["key"] in were for line in rows_of(link)["deleted"])


# --- what it is made of ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_many_frames_sealed_signed_and_retained(memory, store, codec):
    ring, signer = LocalRing.parse(Key.new().text(), source="a test"), SigningKey.generate()
    more = {"rings": (ring,), "signer": signer, "codec": Codec(codec), "frame_size": 500, "retain_days": 1}
    full = opened(take(memory, store, TIERS, ALICE, **more), ring)
    changes(memory, 1)
    link = opened(take_incremental(memory, store, TIERS, ALICE, **more), ring)
    assert link.manifest.signature.by == signer.did
    assert link.manifest.retained is not None
    assert link.manifest.document.endswith(".enc")
    whole = take(memory, store, TIERS, ALICE)
    assert link.state == whole.tiers
    assert merged(full, link) == rows_of(whole)
    said = {t.array: t.digest for t in link.manifest.state}
    assert all(t.digest != said[t.array] for t in whole.tiers)
    # The digest of no row is known to everybody; what masks it must mask nothing else.
    assert not {t.digest for t in link.manifest.tiers} & set(said.values())


def opened(document: StoredDocument, ring) -> StoredDocument:
    return open_stored(document.store, document.manifest, rings=(ring,))


def test_a_label_names_it(memory, store):
    take(memory, store, TIERS)
    changes(memory, 1)
    link = take_incremental(memory, store, TIERS, label="before-upgrade")
    assert read_pointer(store, layout.checkpoint_key(EVERYBODY, "before-upgrade")).id == link.manifest.id


# --- the gate ----------------------------------------------------------------------------------------------------------------------


def test_one_that_loses_too_much_is_suspect_and_nothing_builds_on_it(memory, store):
    full = take(memory, store, TIERS)
    run(memory, "DELETE FROM notes WHERE id > 60")
    bad = take_incremental(memory, store, TIERS)
    assert bad.manifest.suspect == "notes: 60 rows, where the snapshot before had 300"
    assert bad.manifest.counted == {"notes": 60, "facts": 100}
    run(memory, "INSERT INTO notes SELECT g, 'p' FROM generate_series(1000, 1200) g")
    good = take_incremental(memory, store, TIERS)
    assert good.manifest.suspect is None
    assert good.manifest.parent.id == full.manifest.id
    assert good.manifest.previous.id == bad.manifest.id
    assert merged(full, good) == rows_of(take(memory, store, TIERS))
    assert pointers.check(store)[1] == []


def test_accepted_it_goes_on(memory, store):
    links = [take(memory, store, TIERS)]
    run(memory, "DELETE FROM notes")
    links.append(take_incremental(memory, store, TIERS, accept=True))
    assert links[-1].manifest.suspect is None
    run(memory, "INSERT INTO notes VALUES (1, 'p')")
    links.append(take_incremental(memory, store, TIERS))
    assert links[-1].manifest.parent.id == links[-2].manifest.id
    assert links[-1].manifest.suspect is None
    assert merged(*links) == rows_of(take(memory, store, TIERS, accept=True))


def test_much_that_came_and_went_is_not_suspect(memory, store):
    take(memory, store, TIERS)
    run(memory, "INSERT INTO notes SELECT g, 'x' FROM generate_series(1, 400) g", "DELETE FROM notes WHERE part = 'x'")
    link = take_incremental(memory, store, TIERS)
    assert link.manifest.rows()["deleted"] == 400
    assert link.manifest.suspect is None
    assert link.manifest.counted == {"notes": 300, "facts": 100}


def test_the_next_full_one_is_compared_with_all_rows_and_not_with_the_changed_ones(memory, store):
    take(memory, store, TIERS)
    changes(memory, 1)
    take_incremental(memory, store, TIERS)
    run(memory, "DELETE FROM notes WHERE id > 60")
    assert take(memory, store, TIERS).manifest.suspect is not None


def test_a_user_who_lost_everything_is_suspect(memory, store):
    take(memory, store, TIERS, ALICE)
    run(memory, "DELETE FROM notes WHERE uid = 'alice'", "DELETE FROM facts WHERE uid = 'alice'")
    link = take_incremental(memory, store, TIERS, ALICE)
    assert link.manifest.suspect.startswith("all tiers together: no row")
    assert sum(t.rows for t in link.manifest.state) == 0


# --- what is refused ---------------------------------------------------------------------------------------------------------------


def refused(url, store, tiers=TIERS, scope=EVERYBODY, **options) -> str:
    before = {o.key for o in store.list()}
    with pytest.raises(ChainRefused) as caught:
        take_incremental(url, store, tiers, scope, **options)
    assert "full" in caught.value.hint
    assert {o.key for o in store.list()} == before
    return str(caught.value)


def test_without_change_capture(make_database, store):
    url = make_database()
    take(url, store)
    assert refused(url, store, MEMORY) == "the changes of this database are not recorded"


def test_without_a_full_one(memory, store):
    assert refused(memory, store) == "this database knows of no snapshot of everybody to build on"
    take(memory, store, TIERS)
    assert refused(memory, store, scope=ALICE) == "this database knows of no snapshot of user 'alice' to build on"


def test_a_full_one_from_before_the_changes_were_recorded(make_database, store):
    url = make_database()
    take(url, store)
    record_changes(url)
    assert "knows of no snapshot" in refused(url, store, MEMORY)


def test_when_the_parent_is_gone(memory, store, tmp_path):
    full = take(memory, store, TIERS)
    assert "is not in" in refused(memory, open_store(str(tmp_path / "another")))
    store.delete(layout.manifest_key(full.manifest.id))
    assert refused(memory, store) == f"{full.manifest.id}, on which this would build, is not in {store.url}"


def test_when_the_parent_is_damaged_or_another(memory, store, tmp_path):
    full = take(memory, store, TIERS)
    file = tmp_path / "store" / layout.manifest_key(full.manifest.id)
    whole = file.read_bytes()
    file.chmod(0o600)
    file.write_bytes(whole.replace(b'"rows":300', b'"rows":301'))
    assert "cannot be read" in refused(memory, store)
    other = model.decode_manifest(whole, key="x")
    file.write_bytes(model.encode_manifest(model.complete(model.msgspec.structs.replace(other, label="mine"))))
    assert "is not the one that this database took" in refused(memory, store)


def test_a_copy_of_the_database(memory, store, postgres, make_database):
    """It has the heads, too: CREATE DATABASE … TEMPLATE copies every file."""
    full = take(memory, store, TIERS)
    name = memory.rpartition("/")[2].partition("?")[0]
    copy = postgres.createdb(f"copy_of_{name}", template=name)
    try:
        assert refused(copy, store) == f"{full.manifest.id} cannot be built on: it is of another database"
    finally:
        postgres.dropdb(f"copy_of_{name}")


def test_a_database_that_was_left_behind(memory, store):
    """An older state of the same files: its head is not the newest any more."""
    full = take(memory, store, TIERS)
    (left,) = ask(memory, "SELECT snapshot_id, checksum, snapshot::text FROM coldstore.heads WHERE snapshot_id LIKE 'memory-%'")
    changes(memory, 1)
    link = take_incremental(memory, store, TIERS)
    run(
        memory,
        f"UPDATE coldstore.heads SET (snapshot_id, checksum, snapshot) = ('{left[0]}', '{left[1]}', '{left[2]}') WHERE snapshot_id LIKE 'memory-%'",
    )
    found = refused(memory, store)
    assert found == f"this database would build on {full.manifest.id}, and {link.manifest.id} is the newest of everybody"


def test_a_restored_database_does_not_go_on_with_the_chain(memory, store, make_database, tmp_path):
    take(memory, store, TIERS)
    changes(memory, 1)
    link = take_incremental(memory, store, TIERS)
    target = make_database(empty=True)
    with ColdStore(build({"path": str(tmp_path / "store"), "tiers": {"notes": {}, "facts": {}}}, {})) as cold:
        cold.restore(link.manifest.id, to=target)
    record_changes(target, TIERS)
    assert "knows of no snapshot" in refused(target, store)
    again = take(target, store, TIERS)
    assert rows_of(again) == rows_of(take(memory, open_store(str(tmp_path / "aside")), TIERS))
    run(target, "UPDATE notes SET body = '0' WHERE id = 1")
    assert take_incremental(target, store, TIERS).manifest.parent.id == again.manifest.id
    assert "is not in" in refused(memory, store)


@pytest.mark.parametrize(
    ("altered", "reason"),
    [
        ("ALTER TABLE notes ADD COLUMN more int", r"not described as they were then \(notes\)"),
        ("ALTER TABLE notes ADD COLUMN more int DEFAULT 1; ALTER TABLE notes DROP COLUMN more", "were altered since"),
        ("ALTER TABLE notes DISABLE TRIGGER USER", "not all of the triggers"),
        (
            "ALTER TABLE notes DISABLE TRIGGER coldstore_insert_notes; ALTER TABLE notes ENABLE ALWAYS TRIGGER coldstore_insert_notes",
            "were altered since",
        ),
        ("CREATE TABLE heir () INHERITS (notes)", "not all of the triggers"),
        ("CREATE INDEX ON notes (uid)", r"not described as they were then \(notes\)"),
        ("DROP TRIGGER coldstore_truncate_facts ON facts", "not all of the triggers"),
    ],
)
def test_tables_that_were_altered(memory, store, altered, reason):
    take(memory, store, TIERS)
    run(memory, altered, "INSERT INTO facts (uid, body) VALUES ('alice', '')")
    assert re.search(reason, refused(memory, store))


def test_tiers_that_were_configured_otherwise(memory, store):
    take(memory, store, TIERS)
    take(memory, store, TIERS, ALICE)
    for tiers in ([tier("notes")], [tier("notes", exclude=("body",)), tier("facts")], [tier("notes", array="other"), tier("facts")]):
        assert "are not described as they were then" in refused(memory, store, tiers)
        assert "are not described as they were then" in refused(memory, store, tiers, ALICE)
    assert "made for another primary key, owner or `where`" in refused(memory, store, [tier("notes", where="id > 3"), tier("facts")])
    assert take_incremental(memory, store, TIERS) is None


def test_a_sequence_that_was_drawn_from_is_no_reason(memory, store):
    take(memory, store, TIERS)
    run(memory, "INSERT INTO facts (uid, body) VALUES ('alice', '')")
    assert take_incremental(memory, store, TIERS).manifest.rows() == {"notes": 0, "facts": 1, "deleted": 0}


class Ahead(Source):
    """Of a server whose clock is an hour fast."""

    def _begin(self, *args):
        moment = super()._begin(*args)
        moment.timestamp += 3_600_000
        return moment


def test_a_clock_that_was_put_back(memory, store):
    source = Ahead(memory)
    full = snapshot(source, store, tiers=TIERS, options=ExportOptions())
    source.close()
    changes(memory, 1)
    assert f"and {full.id} is of later" in refused(memory, store)


# --- what goes wrong on the way ----------------------------------------------------------------------------------------------------


class Failing:
    """A store that does not take one kind of object."""

    def __init__(self, inner, suffix):
        self._inner, self._suffix = inner, suffix

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def create(self, key, **more):
        if key.endswith(self._suffix):
            raise StoreError("no", key=key)
        return self._inner.create(key, **more)


def test_one_that_is_not_committed_is_made_up_for_by_the_next(memory, store):
    full = take(memory, store, TIERS)
    changes(memory, 1)
    with pytest.raises(StoreError):
        take_incremental(memory, Failing(store, ".manifest.json"), TIERS)
    changes(memory, 2)
    link = take_incremental(memory, store, TIERS)
    assert link.manifest.parent.id == full.manifest.id
    assert merged(full, link) == rows_of(take(memory, store, TIERS))


@pytest.mark.parametrize("scope", [ALICE, ACME], ids=str)
def test_many_at_once_while_others_write(memory, store, scope):
    """Whichever builds on which: every chain comes to what its last link saw."""
    take(memory, store, TIERS, scope)
    done = threading.Event()

    def write(seed: int) -> None:
        chance = random.Random(seed)
        with psycopg.connect(memory) as conn:
            while not done.is_set():
                uid, space = chance.choice(["alice", "bob"]), chance.choice(["acme", "other"])
                some = [chance.randrange(1, 200) for _ in range(chance.randrange(1, 9))]
                with suppress(psycopg.errors.DeadlockDetected), conn.transaction(force_rollback=chance.random() < 0.2):
                    conn.execute("DELETE FROM notes WHERE id = ANY (%s)", (some[:3],))
                    conn.execute("UPDATE notes SET uid = %s, workspace_id = %s WHERE id = ANY (%s)", (uid, space, some))
                    conn.execute(
                        "INSERT INTO notes SELECT n, 'p', %s, %s, to_jsonb(n) FROM unnest(%s::int[]) n ON CONFLICT (part, id) DO UPDATE"
                        " SET body = to_jsonb(clock_timestamp())",
                        (uid, space, sorted(set(some[2:]))),
                    )

    def record() -> int:
        taken = 0
        while taken < 12:
            with suppress(ChainRefused):  # another's is newer, and the database has yet to hear of it
                taken += take_incremental(memory, store, TIERS, scope, even_if_empty=True, accept=True) is not None
        return taken

    with ThreadPoolExecutor(5) as pool:
        writers = [pool.submit(write, seed) for seed in (1, 2)]
        try:
            list(pool.map(lambda _: record(), range(3)))
        finally:
            done.set()
        for writer in writers:
            writer.result()
    links = {m.id: StoredDocument(store, m) for m in manifests(store, scope=scope)}
    assert len(links) == 37
    for link in links.values():
        chain = [link]
        while chain[0].manifest.parent is not None:
            chain.insert(0, links[chain[0].manifest.parent.id])
        if link.manifest.state is not None:
            found = merged(*chain)
            assert {t.array: (t.rows, t.digest) for t in link.state} == {
                a: (len(r), format_digest(sum(map(row_digest, r)))) for a, r in found.items()
            }
    assert all(v.ok for v in verify(store, [link.manifest for link in links.values()], whole=True))


def test_one_that_the_database_could_not_be_told_of(memory, store):
    """It is good, and the next one must be a full one."""
    take(memory, store, TIERS)
    changes(memory, 1)
    run(memory, "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$")
    run(memory, "CREATE TRIGGER no BEFORE INSERT OR UPDATE ON coldstore.heads FOR EACH ROW EXECUTE FUNCTION no()")
    seen = Notes()
    link = take_incremental(memory, store, TIERS, progress=seen)
    (note,) = seen.notes
    assert note.startswith("an incremental snapshot will ask for a full one")
    run(memory, "DROP TRIGGER no ON coldstore.heads")
    assert f"and {link.manifest.id} is the newest" in refused(memory, store)
    links = [take(memory, store, TIERS)]
    changes(memory, 2)
    links.append(take_incremental(memory, store, TIERS))
    assert merged(*links) == rows_of(take(memory, store, TIERS))


@pytest.fixture
def role(memory, postgres):
    """A role that reads the tables, and the URL by which it comes in."""
    run(memory, "DROP ROLE IF EXISTS taker", "CREATE ROLE taker LOGIN PASSWORD 'p'", "GRANT SELECT ON notes, facts TO taker")
    yield make_conninfo(postgres.url(memory.rpartition("/")[2].partition("?")[0], tcp=True), user="taker", password="p")
    run(memory, "DROP OWNED BY taker", "DROP ROLE taker")


def test_a_role_that_only_reads_takes_full_ones_and_is_told(memory, store, role):
    run(memory, "GRANT USAGE ON SCHEMA coldstore TO taker", "GRANT SELECT ON coldstore.heads, coldstore.changes TO taker")
    seen = Notes()
    assert take(role, store, TIERS, progress=seen).manifest.database.capture is not None
    (note,) = seen.notes
    assert "permission denied" in note
    assert refused(memory, store) == "this database knows of no snapshot of everybody to build on"


def test_the_documented_grants_suffice(memory, store, role):
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "incrementals.md").read_text(encoding="utf-8")
    run(memory, *re.findall(r"^GRANT .* TO taker;$", page, re.MULTILINE))
    seen = Notes()
    links = [take(role, store, TIERS, progress=seen)]
    for number in (1, 2):
        changes(memory, number)
        run(memory, "UPDATE coldstore.heads SET taken_at = taken_at - interval '1 day'")
        links.append(take_incremental(role, store, TIERS, progress=seen))
    assert seen.notes == []
    assert ask(memory, "SELECT count(*) FROM coldstore.changes WHERE xid < (SELECT pg_snapshot_xmin(snapshot) FROM coldstore.heads WHERE scope = 'floor')") == [(0,)]  # fmt: skip
    assert merged(*links) == rows_of(take(memory, store, TIERS))


def test_what_nobody_needs_is_forgotten(memory, store):
    for number in range(1, 4):
        take(memory, store, TIERS)
        take(memory, store, TIERS, ALICE)
        changes(memory, number)
        take_incremental(memory, store, TIERS)
    assert ask(memory, "SELECT count(*) > 0 FROM coldstore.changes") == [(True,)]
    for _ in range(2):  # what a snapshot that began half a day ago may need stays half a day longer
        run(memory, "UPDATE coldstore.heads SET taken_at = taken_at - interval '1 day'")
        take(memory, store, TIERS, ALICE)
        take(memory, store, TIERS)
    assert ask(memory, "SELECT count(*) FROM coldstore.changes") == [(0,)]
    changes(memory, 4)
    assert take_incremental(memory, store, TIERS) is not None
    assert take_incremental(memory, store, TIERS, ALICE) is not None


def test_who_takes_none_for_long_must_begin_again(memory, store):
    take(memory, store, TIERS)
    take(memory, store, TIERS, ALICE)
    changes(memory, 1)
    run(memory, "UPDATE coldstore.heads SET taken_at = taken_at - interval '8 days'")
    assert take_incremental(memory, store, TIERS) is not None
    assert "knows of no snapshot of user 'alice'" in refused(memory, store, scope=ALICE)
    assert take_incremental(memory, store, TIERS, keep_days=30, even_if_empty=True) is not None
