"""The SQL files are found and cut where they say."""

from __future__ import annotations

import re

import pytest

from coldstore import sql
from coldstore.errors import ConfigError


def test_the_schema_has_exactly_the_two_sections():
    coldstore, reference = sql.section("schema.sql", "coldstore"), sql.section("schema.sql", "reference")
    assert "coldstore.runs" in coldstore
    assert "scheduled_agents" not in coldstore
    assert "public.scheduled_agents" in reference
    assert "coldstore.runs" not in reference
    assert list(sql.cut(sql.text("schema.sql"), mark="section")) == ["coldstore", "reference"]


def test_no_section_is_no_guess():
    with pytest.raises(ConfigError, match="no section 'nothing'"):
        sql.section("schema.sql", "nothing")


def test_no_file():
    with pytest.raises(ConfigError, match=r"nothing\.sql is missing"):
        sql.section("nothing.sql", "coldstore")


def test_the_migrations_are_numbered_from_one():
    found = sql.migrations()
    assert [m.version for m in found] == list(range(1, len(found) + 1))
    assert found[0].name == "runs"
    assert all(m.sql.strip() for m in found)


def test_no_migration_commits_by_itself():
    for migration in sql.migrations():
        assert not re.search(r"^\s*(begin|commit|rollback)\s*;", migration.sql, re.IGNORECASE | re.MULTILINE), migration.name


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of SQL files in place of the real one."""
    (tmp_path / "migrations").mkdir()
    caches = (sql.directory, sql.text, sql.migrations, sql._parts)
    for cached in caches:
        cached.cache_clear()
    directory = sql.directory
    monkeypatch.setattr(sql, "directory", lambda: tmp_path)
    yield tmp_path
    for cached in caches:
        cached.cache_clear()
    assert directory is not sql.directory


def test_a_query_by_its_name(folder):
    (folder / "queries.sql").write_text("-- All of them.\n\n-- name: one\n-- Why it is there.\nSELECT 1;\n\n-- name: two\nSELECT 2\n")
    assert sql.query("one") == "-- Why it is there.\nSELECT 1"
    assert sql.query("two") == "SELECT 2"
    with pytest.raises(ConfigError, match="no name 'three'"):
        sql.query("three")


def test_a_name_twice_is_refused(folder):
    (folder / "queries.sql").write_text("-- name: one\nSELECT 1;\n-- name: one\nSELECT 2;\n")
    with pytest.raises(ConfigError, match="'one' twice"):
        sql.query("one")


@pytest.mark.parametrize("names", [("0001_a.sql", "0003_c.sql"), ("0002_b.sql",), ("0001_a.sql", "0001_b.sql"), ()])
def test_a_gap_in_the_numbers_is_refused(folder, names):
    for name in names:
        (folder / "migrations" / name).write_text("SELECT 1;")
    with pytest.raises(ConfigError, match="not numbered"):
        sql.migrations()


def test_a_migration_of_another_name_is_refused(folder):
    (folder / "migrations" / "first.sql").write_text("SELECT 1;")
    with pytest.raises(ConfigError, match=r"0001_some_name\.sql"):
        sql.migrations()


def test_an_installation_without_the_files_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sql, "_HERE", tmp_path / "site-packages" / "coldstore")
    sql.directory.cache_clear()
    try:
        with pytest.raises(ConfigError, match="are missing"):
            sql.directory()
        (tmp_path / "site-packages" / "coldstore" / "sql").mkdir(parents=True)
        (tmp_path / "site-packages" / "coldstore" / "sql" / "schema.sql").touch()
        assert sql.directory() == tmp_path / "site-packages" / "coldstore" / "sql"
    finally:
        sql.directory.cache_clear()
