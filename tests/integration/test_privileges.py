"""Roles that may do less than everything, and documents that mean less than they seem to."""

from __future__ import annotations

import json
import secrets

import pytest

from coldstore.documents import open_file
from coldstore.errors import ConfigError, ContentMismatch, PermissionDenied, RestoreConflict, RestoreRefused
from coldstore.postgres.table_plan import Mode
from coldstore.restore import RestoreOptions, restore
from coldstore.storage.open import open_store
from coldstore.tiers import BUILT_IN, Scope, Tier
from tests.integration.helpers import ask, run, take


@pytest.fixture
def role(empty_database):
    """(name of a role without any right, URL under which it acts)."""
    name = f"limited_{secrets.token_hex(4)}"
    run(empty_database, f"CREATE ROLE {name}")
    yield name, f"{empty_database}{'&' if '?' in empty_database else '?'}options=-crole%3D{name}"
    run(empty_database, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"))


def test_a_schema_that_may_not_be_entered(empty_database, role, store):
    run(empty_database, "CREATE SCHEMA app", "CREATE TABLE app.notes (id int PRIMARY KEY)")
    with pytest.raises(PermissionDenied, match="app"):
        take(role[1], store, [Tier("notes", "app.notes")])


def test_a_grant_on_some_columns_serves_when_the_others_stay_behind(empty_database, role, store):
    run(
        empty_database,
        "CREATE TABLE notes (id int PRIMARY KEY, uid text, secret text)",
        "INSERT INTO notes VALUES (1, 'a', 'x'), (2, 'b', 'y')",
        f"GRANT USAGE ON SCHEMA public TO {role[0]}",
        f"GRANT SELECT (id, uid) ON notes TO {role[0]}",
    )
    with pytest.raises(PermissionDenied, match="notes"):
        take(role[1], store, [Tier("notes", "notes")])
    document = take(role[1], store, [Tier("notes", "notes", exclude=("secret",))], Scope.user("b"))
    rows = [json.loads(row) for part in document.parts(["notes"]) for row in part.rows()]
    assert rows == [{"id": 2, "uid": "b"}]


def test_one_table_is_one_tier(empty_database, store):
    run(empty_database, "CREATE TABLE notes (id int PRIMARY KEY)")
    with pytest.raises(ConfigError, match="one table"):
        take(empty_database, store, [Tier("a", "notes"), Tier("b", "public.notes")])


@pytest.mark.parametrize("key", ["PRIMARY KEY", ""])
def test_merge_notices_a_trigger_that_it_may_not_switch_off(empty_database, role, store, key):
    run(
        empty_database,
        f"CREATE TABLE notes (id int {key}, uid text, text text)",
        "INSERT INTO notes VALUES (1, 'a', 'one'), (2, 'a', 'two')",
    )
    document = take(empty_database, store, [Tier("notes", "notes")])
    run(
        empty_database,
        "DELETE FROM notes WHERE id = 2",
        "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.text := upper(NEW.text); RETURN NEW; END $$",
        "CREATE TRIGGER shout BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION shout()",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON notes TO {role[0]}",
    )
    (database,) = ask(empty_database, "SELECT current_database()")[0]
    run(empty_database, f'GRANT CREATE ON DATABASE "{database}" TO {role[0]}')
    with pytest.raises(ContentMismatch, match="merged"):
        restore(document, role[1], options=RestoreOptions(mode=Mode("merge", "skip")))
    assert ask(empty_database, "SELECT id, text FROM notes") == [(1, "one")]


def _foreign(tmp_path, **members):
    path = tmp_path / "foreign.json"
    path.write_text(json.dumps({"snapshotAt": "2026-02-26T02:00:00Z", **members}))
    return open_file(path)


def test_a_document_of_nobody_in_particular_replaces_nobody(database, tmp_path):
    run(database, "INSERT INTO daily_memories (uid, date) VALUES ('bob', '2026-02-26')")
    document = _foreign(tmp_path, dailyMemories=[{"uid": "alice", "date": "2026-02-26"}])
    with pytest.raises(RestoreRefused, match="does not say whose"):
        restore(document, database, tiers=BUILT_IN, options=RestoreOptions(mode=Mode("replace")))
    assert ask(database, "SELECT uid FROM daily_memories") == [("bob",)]


@pytest.mark.parametrize("mode", ["fresh", "replace", "merge"])
def test_a_document_of_one_user_brings_nobody_elses_rows(database, tmp_path, mode):
    document = _foreign(tmp_path, uid="alice", dailyMemories=[{"uid": "bob", "date": "2026-02-26"}])
    with pytest.raises(RestoreConflict, match="alice"):
        restore(document, database, tiers=BUILT_IN, options=RestoreOptions(mode=Mode(mode)))
    assert ask(database, "SELECT count(*) FROM daily_memories") == [(0,)]
