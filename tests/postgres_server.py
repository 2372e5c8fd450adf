"""Real Postgres databases for the tests: one embedded server a worker, one fresh database a test.

A database is copied from a template: a thousand small files, which take 60 ms on a disk and 10 ms in memory, so they lie in memory where
there is a lot of it. Whoever is still connected when the test ends is thrown out.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import psycopg
import pytest

from coldstore.postgres.embedded import EmbeddedPostgres
from coldstore.postgres.migrate import install_reference_schema

TEMPLATE = "reference_template"
_numbers = itertools.count(1)
_ROOM = 6 << 30


class MakeDatabase(Protocol):
    """`make_database()` has the reference schema, `make_database(empty=True)` nothing, `make_database(name=…)` a name to rely on."""

    def __call__(self, *, empty: bool = False, name: str | None = None) -> str: ...


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """The worker's server. It has a TCP port too: `postgres.url("db", tcp=True)`, with a password."""
    # What is in memory is kept small: a checkpoint more costs nothing there.
    server = EmbeddedPostgres(durable=False, tcp=True, max_connections=300, settings={"max_wal_size": "256MB"})
    with in_memory():
        server.start()
    try:
        with psycopg.connect(server.createdb(TEMPLATE), autocommit=True) as conn:
            install_reference_schema(conn)
        yield server
    finally:
        server.stop()


@contextmanager
def in_memory() -> Iterator[None]:
    """Temporary folders of the block are in memory, where there is room for all workers' servers."""
    folder, usual = Path("/dev/shm"), tempfile.tempdir
    if folder.is_dir():
        room = os.statvfs(folder)
        if room.f_bavail * room.f_frsize >= _ROOM:
            tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = usual


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
