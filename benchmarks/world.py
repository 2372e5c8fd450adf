"""What the cases stand on: one Postgres with the data in it, a folder to write to, and the commands of both sides.

Order: an empty folder → the server → `bulk` (a wished number of bytes) and `demo` (200 readable users) → everything read once, so that
both sides find the page cache warm. With `keep`, the folder stays and a later run with the same size starts from it.

A large world has `bulk` without the vector index, whose building would take longer than everything that is measured, and `small` beside it,
just as it is but of the usual size, to compare memory with.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg import sql

from benchmarks import measure
from benchmarks.measure import Sample
from coldstore.app import ColdStore
from coldstore.config import build
from coldstore.postgres.connect import Connection, connect
from coldstore.postgres.demo_data import fill, fill_bulk
from coldstore.postgres.embedded import EmbeddedPostgres
from coldstore.postgres.migrate import install_reference_schema

USUAL, LARGE = 500_000_000, 5_000_000_000
TABLES = ("daily_memories", "graph_entities", "procedural_memory")
DEMO_USERS = 200
VECTOR_INDEX = "graph_entities_embedding"
_CHOSEN = [part for table in TABLES for part in ("-t", f"public.{table}")]
_MARK = "made.json"
_ZSTD = "import sys, zstandard; zstandard.ZstdCompressor(level=3).copy_stream(sys.stdin.buffer, sys.stdout.buffer)"
# The tests' own way to give a client its server, and everything that would steer either side.
_STEERING = ("PG", "COLD_STORE_", "DATABASE_URL", "AWS_", "ZSTD_")


def server_settings() -> dict[str, str | int]:
    """What an operator sets on a machine of this size: a share of the memory for the cache, room for a load between checkpoints. Memory
    for index builds stays at the server's default, for `pg_restore` as it comes is the peer."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return {"shared_buffers": f"{max(128, min(1024, memory // 8))}MB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}


@dataclass
class World:
    """See the module's text. A context manager; what is made in it is gone at the end unless `keep`."""

    folder: Path
    size: int
    large: bool = False
    rounds: int | None = None
    keep: bool = False
    say: Callable[[str], None] = print
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=count)

    def __enter__(self) -> Self:
        made = {"size": self.size, "large": self.large}
        mark = self.folder / _MARK
        fresh = not mark.is_file() or json.loads(mark.read_text()) != made
        if fresh:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.scratch = self.folder / "scratch"
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        self.server = EmbeddedPostgres(self.folder / "postgres", durable=True, settings=server_settings())
        self.server.start()
        try:
            self._postmaster = int((self.server.folder / "postmaster.pid").read_text().split()[0])
            if fresh:
                self._fill()
                mark.write_text(json.dumps(made))
            self._warm_up()
        except BaseException:
            self.server.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()
        shutil.rmtree(self.scratch if self.keep else self.folder, ignore_errors=True)

    def _fill(self) -> None:
        self._fill_bulk("bulk", self.size)
        if self.large:
            self._fill_bulk("small", USUAL)
        with self._new_source("demo") as conn:
            fill(conn, users=DEMO_USERS)

    def _fill_bulk(self, name: str, size: int) -> None:
        self.say(f"filling a database with {size / 1e6:.0f} MB of memory …")
        with self._new_source(name) as conn:
            conn.execute(f"SET maintenance_work_mem = '{max(256, size * 2 // 5 >> 20)}MB'")
            fill_bulk(conn, target_bytes=size, indexes=not self.large)

    @contextmanager
    def _new_source(self, name: str) -> Iterator[Connection]:
        conn = connect(self.server.createdb(name))
        install_reference_schema(conn)
        yield conn
        conn.execute("VACUUM ANALYZE")
        conn.close()

    def _warm_up(self) -> None:
        for database in ("bulk", "small") if self.large else ("bulk",):
            self.rows[database] = self.count(self.url(database))
            with self.new_path("warm") as path:
                self.dump(path, "--no-sync", database=database)
        self.coldstore("list", "--store", self.scratch / "none")

    # -- places ----------------------------------------------------------------------------------------------------------------------

    def url(self, database: str = "bulk") -> str:
        return self.server.url(database)

    def path(self, name: str) -> Path:
        """A path nobody used before."""
        return self.scratch / f"{next(self._numbers)}-{name}"

    @contextmanager
    def new_path(self, name: str, *, of_many_files: bool = False) -> Iterator[Path]:
        """A path nobody used before, gone afterwards. `of_many_files`: it goes with everything else at the end. For minutes after a file is
        removed ext4 passes its inode over when it makes another one, one by one: who comes next would pay for it."""
        path = self.path(name)
        try:
            yield path
        finally:
            if not of_many_files:
                remove(path)

    @contextmanager
    def new_database(self) -> Iterator[str]:
        """The URL of an empty database that has the extension (a dump of chosen tables does not bring it), gone afterwards. What is
        dirty is written first: a checkpoint in the middle would be at the cost of whoever comes second."""
        name = f"target_{next(self._numbers)}"
        url = self.server.createdb(name)
        try:
            with psycopg.connect(url, autocommit=True) as conn:
                conn.execute("CREATE EXTENSION vector SCHEMA public")
                conn.execute("CHECKPOINT")
            yield url
        finally:
            self.server.dropdb(name)

    # -- processes -------------------------------------------------------------------------------------------------------------------

    def environment(self, **given: str) -> dict[str, str]:
        """Ours without whatever would steer one side or the other."""
        return {k: v for k, v in os.environ.items() if not k.startswith(_STEERING)} | given

    def run(
        self,
        *commands: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        stdout: Path | None = None,
        sync: bool = False,
    ) -> Sample:
        """A command or pipeline as processes of their own; `extra["server"]` the seconds of CPU that the server spent meanwhile."""
        before = self._server_cpu()
        sample = measure.run(*commands, environment=environment or self.environment(), folder=self.scratch, stdout=stdout, sync=sync)
        return sample.plus(server=self._server_cpu() - before)

    def _server_cpu(self) -> float:
        """Of all the server's processes, those that ended included; 0 where the system does not tell."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(stat.parent.name) == self._postmaster:
                ticks += sum(map(int, fields[11:15]))  # its own, and that of children that ended
            elif int(fields[1]) == self._postmaster:
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    # -- coldstore -------------------------------------------------------------------------------------------------------------------

    @property
    def program(self) -> list[str | Path]:
        """The installed command; without it (a checkout on the path), the same thing as a module."""
        command = Path(sys.executable).with_name("coldstore")
        return [command] if command.is_file() else [sys.executable, "-m", "coldstore"]

    def coldstore(
        self, *arguments: str | Path, database: str | None = None, compression: str = "none", **settings: str
    ) -> tuple[Sample, Any]:
        """The command as a user runs it, start of the interpreter included, and what it printed."""
        environment = self.environment(COLD_STORE_COMPRESSION=compression, **settings)
        if database is not None:
            environment["DATABASE_URL"] = database
        with self.new_path("stdout") as out:
            sample = self.run([*self.program, *arguments, "--json"], environment=environment, stdout=out)
            return sample, json.loads(out.read_text())

    def library(self, store: Path | str, *, database: str | None = None, **settings: Any) -> ColdStore:
        """The same inside this process."""
        return ColdStore(build({"url": str(store), **settings}, {"database_url": database or self.url()}))

    def snapshot(self, codec: str, *, database: str = "bulk") -> tuple[Path, str]:
        """The store with an all-user snapshot of the database, made once, and the snapshot's id."""
        store = self.scratch / f"kept-{database}-{codec}"
        mark = store.with_suffix(".id")
        if not mark.is_file():
            _, info = self.coldstore("snapshot", "--all", "--store", store, database=self.url(database), compression=codec)
            mark.write_text(info["id"])
        return store, mark.read_text()

    # -- the peers -------------------------------------------------------------------------------------------------------------------

    def postgres_program(self, name: str) -> Path:
        return self.server.bin / name

    def dump_command(self, *options: str, database: str = "bulk") -> list[str | Path]:
        return [self.postgres_program("pg_dump"), *options, *_CHOSEN, "-d", self.url(database)]

    def zstd_command(self) -> list[str | Path]:
        """`zstd -3` as a filter: the command where the machine has it, else the same library in a process of its own."""
        found = shutil.which("zstd")
        return [found, "-3", "-q", "-c"] if found else [sys.executable, "-c", _ZSTD]

    @property
    def zstd_name(self) -> str:
        return "zstd -3" if shutil.which("zstd") else "python-zstandard, level 3"

    def dump(self, path: Path, *options: str, database: str = "bulk") -> Sample:
        """`pg_dump` of the tables that a snapshot holds."""
        command = self.dump_command("-f", str(path), *options, database=database)
        return self.run(command)

    @property
    def custom_dump_path(self) -> Path:
        return self.scratch / "kept.dump"

    def custom_dump(self, *options: str) -> Path:
        """A dump in the custom format, as it comes unless `options` say otherwise, made once."""
        if not self.custom_dump_path.exists():
            self.dump(self.custom_dump_path, "-Fc", *options)
        return self.custom_dump_path

    def restore_dump(self, dump: Path, url: str, *, jobs: int = 2, index_memory: str | None = None, without: str | None = None) -> Sample:
        """`pg_restore` into an empty database. `without`: an index that is left out."""
        environment = self.environment()
        if index_memory is not None:
            environment["PGOPTIONS"] = f"-c maintenance_work_mem={index_memory}"
        options: list[str | Path] = ["-j", str(jobs), "--exit-on-error"]
        if without is not None:
            options += ["-L", self._contents(dump, without=without)]
        return self.run([self.postgres_program("pg_restore"), *options, "-d", url, dump], environment=environment)

    def _contents(self, dump: Path, *, without: str) -> Path:
        chosen = self.scratch / f"without-{without}.list"
        if not chosen.exists():
            whole = self.scratch / "whole.list"
            self.run([self.postgres_program("pg_restore"), "-l", "-f", whole, dump])
            lines = whole.read_text().splitlines(keepends=True)
            chosen.write_text("".join(line for line in lines if f" {without} " not in line))
        return chosen

    # -- checks ----------------------------------------------------------------------------------------------------------------------

    def count(self, url: str, *, uid: str | None = None) -> dict[str, int]:
        """Rows by table."""
        where = sql.SQL("") if uid is None else sql.SQL(" WHERE uid = {}").format(sql.Literal(uid))
        with psycopg.connect(url) as conn:
            return {
                table: (conn.execute(sql.SQL("SELECT count(*) FROM public.{}").format(sql.Identifier(table)) + where).fetchone() or (0,))[0]
                for table in TABLES
            }

    def check(self, url: str, *, like: str = "bulk", without: str | None = None) -> None:
        """A restored database has every row, and the indexes of the source: a figure for half the work is none."""
        if self.count(url) != self.rows[like]:
            raise RuntimeError(f"restored {self.count(url)} rows, not {self.rows[like]}")
        wanted, found = self._indexes(self.url(like)) - {without}, self._indexes(url)
        if found != wanted:
            raise RuntimeError(f"restored the indexes {sorted(found)}, not {sorted(wanted)}")

    def _indexes(self, url: str) -> set[str]:
        with psycopg.connect(url) as conn:
            rows = conn.execute(
                "SELECT indexname FROM pg_indexes WHERE schemaname = 'public' AND tablename = ANY (%s)", (list(TABLES),)
            ).fetchall()
        return {name for (name,) in rows}

    def connect(self, database: str = "bulk") -> Connection:
        """A connection with the settings that an export has."""
        return connect(self.url(database))


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
