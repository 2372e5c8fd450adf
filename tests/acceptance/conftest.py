"""What the acceptance tests share: the program, a database with two users' memory, and a store with a snapshot of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import pytest

from coldstore.app import ColdStore
from coldstore.catalog import SnapshotInfo
from coldstore.config import build
from tests.acceptance.forks import fork_server
from tests.acceptance.program import SECRETS, Program, execute, files, remember, secrets_in
from tests.postgres_server import MakeDatabase

ROWS = {"daily_memories": 3, "graph_entities": 2, "procedural_memory": 1}


@pytest.fixture(scope="session")
def forks() -> Iterator[str]:
    with fork_server() as address:
        yield address


@pytest.fixture
def cold(tmp_path: Path, forks: str) -> Iterator[Program]:
    """The program in an empty folder, with no configuration at all. Whatever it writes there must hold no secret."""
    folder = tmp_path / "work"
    folder.mkdir()
    yield Program(folder, forks=forks)
    for name in files(folder):
        assert secrets_in((folder / name).read_bytes()) == [], name


@pytest.fixture
def started(cold: Program) -> Program:
    """The same, started from the beginning each time."""
    return replace(cold, forks=None)


def with_password(url: str) -> str:
    """The server's socket asks for no password, and takes one."""
    return url.replace("postgresql://postgres@", f"postgresql://postgres:{SECRETS['dsn']}@")


@pytest.fixture
def memory(database: str) -> str:
    """The URL of a database in which Alice (workspace red) and Bob (workspace blue) have `ROWS` each."""
    remember(database, "uid_alice", workspace="red")
    remember(database, "uid_bob", workspace="blue")
    return with_password(database)


@dataclass
class Stored:
    """A store with one all-user snapshot of `url`."""

    folder: Path
    url: str
    info: SnapshotInfo

    @property
    def document(self) -> Path:
        return self.folder / self.info.path

    @property
    def manifest(self) -> Path:
        return self.folder / self.info.manifest


def take(url: str, folder: Path, *, uid: str | None = None, **settings: object) -> Stored:
    """A snapshot made in this process: quicker than the program's start."""
    with ColdStore(build(settings, {"database_url": url, "path": str(folder)})) as store:
        return Stored(folder, url, store.snapshot(uid=uid))


@pytest.fixture
def stored(cold: Program, memory: str) -> Stored:
    """In `coldstore-data`, where the program looks when nobody says otherwise."""
    return take(memory, cold.folder / "coldstore-data")


@pytest.fixture
def role(postgres, database: str) -> Iterator[str]:
    """A role that may log in and nothing more; its URL is `as_role(database, role)`."""
    name = f"role_{quote(database.rpartition('/')[2].partition('?')[0])}"
    execute(postgres.url(), f"CREATE ROLE {name} LOGIN")
    yield name
    execute(database, f"DROP OWNED BY {name}")
    execute(postgres.url(), f"DROP ROLE {name}")


def as_role(url: str, name: str) -> str:
    return re.sub(r"//postgres(:\S*?)?@", f"//{name}:{SECRETS['dsn']}@", url)


@pytest.fixture
def target(make_database: MakeDatabase) -> str:
    """Where a restore may go: a database with nothing in it."""
    return with_password(make_database(empty=True))
