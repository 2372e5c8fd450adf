"""The whole way in one command, on a Postgres that is thrown away afterwards."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coldstore import terminal
from coldstore.app import ColdStore
from coldstore.config import build
from coldstore.errors import ConfigError, ContentMismatch
from coldstore.postgres.compare import content_digests
from coldstore.postgres.connect import connect
from coldstore.postgres.demo_data import fill
from coldstore.postgres.embedded import EmbeddedPostgres
from coldstore.postgres.migrate import install_reference_schema

ALICE = "uid_alice"
_MARK = ".coldstore-demo"
#: Edges go when their entities go, so whoever wants Alice back whole has them as a tier too.
_TIERS = {"graph_edges": {"enabled": True}}


def run(*, folder: Path, users: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Fill, snapshot, lose, restore, compare. Returns timings in seconds and counts; raises `ContentMismatch` if anything differs."""
    server = EmbeddedPostgres()  # before anything is said or written: it may not be installed
    folder = _fresh(folder)
    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str, what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        seconds[name] = round(time.monotonic() - started, 3)
        say(f"{seconds[name]:7.2f} s  {what}")

    say("A Postgres of its own, memory of its own, a store you keep.\n")
    with step("total", "all together"), server as postgres:
        source = postgres.createdb("memory")
        with step("fill", f"filled a database with the memory of {users} users, embeddings included"):
            conn = connect(source)
            install_reference_schema(conn)
            fill(conn, users=users)
        with ColdStore(build({}, {"url": str(folder), "compression": "none", "database_url": source, "tiers": _TIERS})) as store:
            tiers = store.settings.enabled_tiers()
            before = content_digests(conn, tiers)
            with step("one", f"snapshot of one user, {ALICE}"):
                one = store.snapshot(uid=ALICE)
            with step("all", "snapshot of everybody"):
                everybody = store.snapshot(label="demo")
            say(f"\n{_tree(folder)}\n")
            deleted = _forget(conn, [t.table for t in tiers])
            say(f"           deleted {deleted} rows: Alice remembers nothing")
            with step("restore_one", "brought Alice back out of everybody's snapshot"):
                store.restore(everybody.id, to=source, uid=ALICE)
            if content_digests(conn, tiers) != before:
                raise ContentMismatch("Alice's memory is not what it was")
            elsewhere = postgres.createdb("elsewhere")
            with step("restore_all", "restored everything into a second, empty database, indexes included"):
                store.restore(everybody.id, to=elsewhere)
            with step("compare", "compared the two databases, row by row: the same"):
                other = connect(elsewhere)
                if content_digests(other, tiers) != before:
                    raise ContentMismatch("the restored database is not what it was")
                other.close()
            with step("verify", "verified every byte in the store"):
                bad = [v.id for v in store.verify(deep=True) if not v.ok]
                if bad:
                    raise ContentMismatch(f"{bad[0]} is damaged")
        conn.close()
    say(f"\nThe store is in {folder}. Look around:\n")
    say(f"    {_program()} list --store {folder}")
    say(f"    {_program()} cat {one.id} --store {folder} | head -c 600")
    say(f"    {_program()} cat {everybody.id} --store {folder} --uid {ALICE} --tier daily_memories")
    rows = sum(everybody.rows.values())
    return {"folder": str(folder), "users": users, "rows": rows, "bytes": everybody.bytes, "seconds": seconds}


def _program() -> str:
    local = Path(".venv/bin/coldstore")
    return str(local) if local.is_file() else "coldstore"


def _fresh(folder: Path) -> Path:
    """An empty folder; an earlier demo's is emptied, anybody else's is refused."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"{folder} is not a folder", hint="Name another with --folder.")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARK).is_file():
            raise ConfigError(f"{folder} is not empty and not of a demo", hint="Name another with --folder.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).write_text("The store of `coldstore demo`. It may be deleted at any time.\n", encoding="utf-8")
    return folder


def _forget(conn: Any, tables: list[str]) -> int:
    return sum(conn.execute(f"DELETE FROM public.{table} WHERE uid = %s", (ALICE,)).rowcount for table in tables)


def _tree(folder: Path) -> str:
    """The store's files with their sizes."""
    lines = [f"{folder}/"]
    for path in sorted(folder.rglob("*")):
        if path.name == _MARK:
            continue
        indent = "    " * len(path.relative_to(folder).parts)
        lines.append(f"{indent}{path.name}/" if path.is_dir() else f"{indent}{path.name}  {terminal.size(path.stat().st_size)}")
    return "\n".join(lines)
