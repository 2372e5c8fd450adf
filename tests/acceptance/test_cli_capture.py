"""`coldstore init --change-capture`, as a user types it."""

from __future__ import annotations

from tests.integration.helpers import ask, run, structure


def test_made_and_removed(cold, empty_database):
    env = {"DATABASE_URL": empty_database}
    cold("init", "--reference-schema", env=env)
    before = structure(empty_database)
    made = cold("init", "--change-capture", env=env)
    assert made.out == "The coldstore tables are up to date.\nChanges are recorded from now on.\n"
    assert ask(empty_database, "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'coldstore\\_%'") == [(12,)]
    run(empty_database, "INSERT INTO daily_memories (uid, date) VALUES ('alice', '2026-03-01')")
    assert ask(empty_database, "SELECT tier, uid FROM coldstore.changes") == [("daily_memories", "alice")]
    assert cold("init", "--change-capture", env=env).out == made.out
    assert ask(empty_database, "SELECT count(*) FROM coldstore.changes") == [(1,)]
    assert cold("init", "--no-change-capture", env=env).out.endswith("Changes are not recorded.\n")
    assert structure(empty_database) == before


def test_with_the_reference_schema_at_once(cold, empty_database):
    done = cold("init", "--reference-schema", "--change-capture", "--json", env={"DATABASE_URL": empty_database})
    assert done.json == {"migrations": [1, 2], "referenceSchema": True}
    assert ask(empty_database, "SELECT count(*) FROM pg_proc WHERE proname LIKE 'capture\\_%'") == [(3,)]


def test_a_table_without_a_key_is_refused(cold, database):
    run(database, "ALTER TABLE graph_entities DROP CONSTRAINT graph_entities_pkey CASCADE")
    refused = cold("init", "--change-capture", code=2, env={"DATABASE_URL": database})
    assert "tier 'graph_entities': public.graph_entities has no primary key" in refused.err
    assert "leave change capture off" in refused.err
    assert ask(database, "SELECT to_regclass('coldstore.changes')") == [(None,)]
