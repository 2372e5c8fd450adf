"""Real Postgres databases for the tests: one embedded server a worker, one fresh database a test.

A database is copied from a template, which takes some 20 ms; whoever is still connected when the test ends is thrown out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Protocol

import psycopg
import pytest

from coldstore.postgres.embedded import EmbeddedPostgres
from coldstore.postgres.migrate import install_reference_schema

TEMPLATE = "reference_template"
_numbers = itertools.count(1)


class MakeDatabase(Protocol):
    """`make_database()` has the reference schema, `make_database(empty=True)` nothing, `make_database(name=…)` a name to rely on."""

    def __call__(self, *, empty: bool = False, name: str | None = None) -> str: ...


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """The worker's server. It has a TCP port too: `postgres.url("db", tcp=True)`, with a password."""
    with EmbeddedPostgres(durable=False, tcp=True, max_connections=300) as server:
        with psycopg.connect(server.createdb(TEMPLATE), autocommit=True) as conn:
            install_reference_schema(conn)
        yield server


@pytest.fixture
def make_database(postgres: EmbeddedPostgres) -> Iterator[MakeDatabase]:
    """A factory of URLs; what it made is dropped after the test."""
    made: list[str] = []

    def make(*, empty: bool = False, name: str | None = None) -> str:
        chosen = name if name is not None else f"test_{next(_numbers)}"
        url = postgres.createdb(chosen, template=None if empty else TEMPLATE)
        made.append(chosen)
        return url

    yield make
    for chosen in made:
        postgres.dropdb(chosen)


@pytest.fixture
def database(make_database: MakeDatabase) -> str:
    """The URL of a fresh database with the reference schema and no row."""
    return make_database()


@pytest.fixture
def empty_database(make_database: MakeDatabase) -> str:
    """The URL of a fresh database with nothing in it."""
    return make_database(empty=True)
