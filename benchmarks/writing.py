"""Writers to two databases that differ in one thing: one of them records changes. The client is pgbench, one connection, a statement a
transaction, each flushed to the disk as it comes; the rows are those of the demo, whole, with new keys.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from psycopg import sql

from benchmarks.measure import Sample
from benchmarks.world import World
from coldstore.postgres import capture
from coldstore.postgres.connect import connect
from coldstore.postgres.migrate import install_reference_schema, migrate
from coldstore.tiers import BUILT_IN, enabled_tiers

_SECONDS = 1
_STATEMENTS = 40


@contextmanager
def databases(world: World) -> Iterator[dict[str, str]]:
    """URLs of the two, with the reference schema and no row."""
    urls = {name: world.server.createdb(f"{name}_capture") for name in ("without", "with")}
    try:
        for name, url in urls.items():
            with connect(url) as conn:
                migrate(conn)
                install_reference_schema(conn)
                if name == "with":
                    capture.install(conn, enabled_tiers(BUILT_IN))
        yield urls
    finally:
        for name in urls:
            world.server.dropdb(f"{name}_capture")


def writer(world: World, url: str, script: Path) -> Callable[[], Sample]:
    """Milliseconds for a statement, over a few seconds."""

    def once() -> Sample:
        command = [world.postgres_program("pgbench"), "-n", "-T", str(_SECONDS), "-f", script, url]
        out = subprocess.run(command, check=True, capture_output=True, text=True, env=world.environment()).stdout
        found = re.search(r"latency average = ([\d.]+) ms", out)
        if found is None or "number of failed transactions: 0" not in out:
            raise RuntimeError(out)
        return Sample(float(found[1]) / script.read_text().count("INSERT INTO"))

    return once


def script(world: World, table: str, rows: int) -> Path:
    """Statements that insert so many rows each."""
    with world.connect("demo") as conn:
        names = [
            n
            for (n,) in conn.execute(
                "SELECT attname::text FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND attname <> 'id' ORDER BY attnum",
                (f"public.{table}",),
            )
        ]
        columns = sql.SQL(", ").join(map(sql.Identifier, names))
        row = sql.SQL(" || ',' || ").join(sql.SQL("quote_nullable({})").format(sql.Identifier(n)) for n in names)
        query = sql.SQL("SELECT '(' || {} || ')' FROM public.{} ORDER BY md5(id::text) LIMIT {}").format(
            row, sql.Identifier(table), sql.Literal(rows * _statements(rows))
        )
        values = [text for (text,) in conn.execute(query)]
        into = sql.SQL("INSERT INTO public.{} ({}) VALUES ").format(sql.Identifier(table), columns).as_string(conn)
    path = world.path(f"{table}-{rows}.sql")
    path.write_text("".join(into + ",".join(values[i : i + rows]) + ";\n" for i in range(0, len(values) - rows + 1, rows)))
    return path


def _statements(rows: int) -> int:
    return _STATEMENTS if rows == 1 else 2
