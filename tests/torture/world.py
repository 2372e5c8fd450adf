"""What the campaigns share: databases with some memory in them, and settings under which a `ColdStore` reads and restores it.

`settings` is passed to every `ColdStore` that a campaign opens, the killed ones too: another kind of store (compressed, sealed, signed) is
another dictionary here and nothing else.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg

from coldstore.app import ColdStore
from coldstore.config import build
from coldstore.postgres.embedded import EmbeddedPostgres

USERS = 6
TIERS = {
    "notes": {"table": "mind.notes"},
    "links": {"table": "mind.links"},
    "facts": {"table": "mind.facts"},
    **{name: {"enabled": False} for name in ("daily_memories", "graph_entities", "procedural_memory")},
}

# A type, an extension, sequences of both kinds, a foreign key and indexes: what a restore has to make besides tables.
SCHEMA = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE SCHEMA mind;
CREATE TYPE mind.mood AS ENUM ('calm', 'glad', 'sad');
CREATE TABLE mind.notes (id bigserial PRIMARY KEY, uid text NOT NULL, mood mind.mood NOT NULL, body jsonb, place public.vector(3));
CREATE TABLE mind.links (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, uid text NOT NULL, note bigint NOT NULL REFERENCES mind.notes,
    what text NOT NULL);
CREATE TABLE mind.facts (uid text, name text, value text, PRIMARY KEY (uid, name));
CREATE INDEX notes_by_user ON mind.notes (uid, id);
"""
ROWS = """
INSERT INTO mind.notes (uid, mood, body, place) SELECT 'u' || n % {users}, (enum_range(NULL::mind.mood))[n % 3 + 1],
    jsonb_build_object('text', (SELECT string_agg(md5(n || '-' || k), ' ') FROM generate_series(1, {width}) k), 'n', n),
    format('[%s,%s,%s]', n, n / 7, -n)::public.vector FROM generate_series(1, {rows}) n;
INSERT INTO mind.links (uid, note, what) SELECT uid, id, 'because of ' || id FROM mind.notes WHERE id % 3 = 0;
INSERT INTO mind.facts SELECT 'u' || n % {users}, 'fact ' || n, repeat('so ', n % 40) FROM generate_series(1, 90) n;
"""
# What a target may hold before a restore: all of it, less some, some changed, and some that the snapshot does not know.
OLDER = """
DELETE FROM mind.links WHERE id % 4 = 0;
UPDATE mind.facts SET value = 'otherwise' WHERE name LIKE '%7';
DELETE FROM mind.facts WHERE name LIKE '%1';
INSERT INTO mind.facts SELECT 'u' || n, 'later', 'mine' FROM generate_series(0, 8) n;
"""


@dataclass
class World:
    """A Postgres server, a folder to work in, and what every `ColdStore` is to be told."""

    postgres: EmbeddedPostgres
    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    _token: str = field(default_factory=lambda: secrets.token_hex(4))
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @cached_property
    def source(self) -> str:
        """A database with two megabytes of memory of six users."""
        return self._filled("source", rows=300, width=180)

    @cached_property
    def large(self) -> str:
        """One with twelve: S3 takes it in more than one part."""
        return self._filled("large", rows=1200, width=300)

    @cached_property
    def older(self) -> str:
        """The name of a template with `OLDER` rows."""
        url = self._filled("older", rows=300, width=180)
        execute(url, OLDER)
        return f"torture_{self._token}_older"

    def _filled(self, name: str, *, rows: int, width: int) -> str:
        url = self.postgres.createdb(f"torture_{self._token}_{name}")
        execute(url, SCHEMA, ROWS.format(users=USERS, rows=rows, width=width))
        return url

    def number(self) -> int:
        return next(self._numbers)

    @contextmanager
    def target(self, template: str | None = None) -> Iterator[str]:
        """A database of its own, empty or a copy of a template, gone afterwards."""
        name = f"torture_{self._token}_t{self.number()}"
        url = self.postgres.createdb(name, template=template)
        try:
            yield url
        finally:
            self.postgres.dropdb(name)

    @contextmanager
    def cold(self, flags: Mapping[str, Any], **more: Any) -> Iterator[ColdStore]:
        """A `ColdStore` of these settings, in this process."""
        with ColdStore(build(self.of_file(more), dict(flags))) as cold:
            yield cold

    def of_file(self, more: Mapping[str, Any]) -> dict[str, Any]:
        return {"tiers": TIERS, **self.settings, **more}

    def drop(self) -> None:
        for name in ("source", "large", "older"):
            if name in self.__dict__:
                self.postgres.dropdb(f"torture_{self._token}_{name}")


@contextmanager
def world_in(postgres: EmbeddedPostgres, folder: Path, settings: Mapping[str, Any] | None = None) -> Iterator[World]:
    world = World(postgres, folder, settings or {})
    try:
        yield world
    finally:
        world.drop()


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement)  # type: ignore[call-overload]
