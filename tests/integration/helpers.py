"""What the tests of snapshot and restore share: a short way to take one and bring it back, and ways to look at a database that owe
nothing to coldstore's own reader.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
from psycopg import sql

from coldstore.documents import StoredDocument
from coldstore.export import ExportOptions, snapshot, snapshot_each_user
from coldstore.incremental import snapshot_incremental
from coldstore.postgres import capture
from coldstore.postgres.connect import connect
from coldstore.postgres.migrate import migrate
from coldstore.postgres.source import Source
from coldstore.postgres.table_plan import Mode
from coldstore.restore import RestoreOptions, restore
from coldstore.tiers import BUILT_IN, EVERYBODY, Scope, Tier, enabled_tiers

MEMORY = enabled_tiers(BUILT_IN)
_OWN = "n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'"


class Notes:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.notes: list[str] = []
        self.rows = 0
        self._lock = threading.Lock()

    def start(self, what: str, *, total_bytes: int | None = None) -> None:
        self.steps.append(what)

    def advance(self, *, rows: int = 0, size: int = 0) -> None:
        with self._lock:
            self.rows += rows

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)


@contextmanager
def source_of(url: str) -> Iterator[Source]:
    source = Source(url)
    try:
        yield source
    finally:
        source.close()


def run(url: str, *statements: str | sql.Composable) -> None:
    """Statements, each on its own, committed at once."""
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement)  # type: ignore[call-overload]


def ask(url: str, statement: str | sql.Composable) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as conn:
        return conn.execute(statement).fetchall()  # type: ignore[call-overload]


def take(
    url: str, store, tiers=MEMORY, scope: Scope = EVERYBODY, *, label: str | None = None, progress=None, **options: Any
) -> StoredDocument:
    """A snapshot, opened for reading."""
    more = {"progress": progress} if progress else {}
    with source_of(url) as source:
        manifest = snapshot(source, store, tiers=tiers, scope=scope, label=label, options=ExportOptions(**options), **more)
    return StoredDocument(store, manifest)


def take_each_user(url: str, store, tiers=MEMORY, *, progress=None, **options: Any) -> list[StoredDocument]:
    more = {"progress": progress} if progress else {}
    with source_of(url) as source:
        return [StoredDocument(store, m) for m in snapshot_each_user(source, store, tiers=tiers, options=ExportOptions(**options), **more)]


def bring_back(document, target: str, *, scope=None, mode="fresh", on_conflict="fail", tiers=(), progress=None, **options: Any):
    more = {"progress": progress} if progress else {}
    chosen = RestoreOptions(mode=Mode(mode, on_conflict), **options)
    return restore(document, target, scope=scope, tiers=tiers, options=chosen, **more)


def rows_of(document: StoredDocument) -> dict[str, list[bytes]]:
    """The document's rows by array, as they stand there, sorted."""
    whole = b"".join(document.chunks())
    assert isinstance(json.loads(whole), dict)
    found: dict[str, list[bytes]] = {t.array: [] for t in document.manifest.tiers}
    for part in document.parts(found):
        found[part.array] += [bytes(r) for r in part.rows()]
    return {array: sorted(rows) for array, rows in found.items()}


def tier(name: str, table: str | None = None, **more: Any) -> Tier:
    return Tier(name, table or name, **more)


# --- a database as Postgres itself tells it ----------------------------------------------------------------------------------------


def columns_of(conn: psycopg.Connection, table: sql.Composable) -> list[str]:
    return [d.name for d in conn.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(table)).description or []]


def table_text(
    url: str, table: str | sql.Composable, *, versions: bool = False, where: str = "true", columns: list[str] | None = None
) -> list[tuple[Any, ...]]:
    """Every row with each column in its text form, in an order that depends on nothing else. `json` loses its raw newlines
    and the blanks around it, as it may.
    `versions`: with each row's place and the transaction that wrote it, to see that nobody touched it."""
    name = sql.SQL(table) if isinstance(table, str) else table
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SET TimeZone = 'UTC'; SET extra_float_digits = 1; SET bytea_output = 'hex'; SET search_path = ''")
        types = dict(
            conn.execute(
                "WITH RECURSIVE b (name, oid) AS (SELECT attname::text, atttypid FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
                " AND NOT attisdropped UNION ALL SELECT b.name, t.typbasetype FROM b JOIN pg_type t ON t.oid = b.oid AND t.typtype = 'd')"
                " SELECT name, oid::regtype::text FROM b",
                (name.as_string(conn),),
            ).fetchall()
        )
        items: list[sql.Composable] = [sql.SQL("ctid::text, xmin::text")] if versions else []
        for column in columns or columns_of(conn, name):
            text = sql.SQL("{}::text").format(sql.Identifier(column))
            items.append(sql.SQL("btrim(translate({}, E'\\r\\n', '  '), E' \\t')").format(text) if types[column] == "json" else text)
        query = sql.SQL("SELECT {} FROM {} WHERE {}").format(sql.SQL(", ").join(items or [sql.SQL("1")]), name, sql.SQL(where))
        return sorted(conn.execute(query).fetchall(), key=repr)


def tables_of(url: str) -> list[tuple[str, str]]:
    """(schema, name) of every table of the user's own."""
    return ask(
        url,
        "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        f" WHERE c.relkind IN ('r', 'm') AND {_OWN} ORDER BY 1, 2",
    )


def contents(url: str, *, versions: bool = False) -> dict[tuple[str, str], list[tuple[Any, ...]]]:
    """All rows of all tables."""
    return {(s, t): table_text(url, sql.Identifier(s, t), versions=versions) for s, t in tables_of(url)}


_CATALOG = {
    "schemas": f"SELECT nspname, obj_description(oid, 'pg_namespace') FROM pg_namespace n WHERE {_OWN}",
    "relations": "SELECT n.nspname, c.relname, c.relkind, c.relpersistence, c.reloptions, pg_get_partkeydef(c.oid),"
    f" pg_get_expr(c.relpartbound, c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {_OWN}",
    "columns": "SELECT n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,"
    " pg_get_expr(d.adbin, d.adrelid), a.attcollation::regcollation::text FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
    " JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)"
    f" WHERE a.attnum > 0 AND NOT a.attisdropped AND {_OWN}",
    "constraints": "SELECT n.nspname, k.conrelid::regclass::text, k.contypid::regtype::text, k.conname, pg_get_constraintdef(k.oid),"
    f" k.convalidated FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace WHERE {_OWN}",
    "indexes": f"SELECT pg_get_indexdef(i.indexrelid), i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
    f" JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {_OWN}",
    "triggers": "SELECT tgrelid::regclass::text, tgname, tgenabled, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
    "types": "SELECT n.nspname, t.typname, t.typtype, t.typnotnull, t.typdefault, (SELECT array_agg(e.enumlabel ORDER BY e.enumsortorder)"
    f" FROM pg_enum e WHERE e.enumtypid = t.oid) FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE {_OWN}",
    "functions": f"SELECT p.oid::regprocedure::text, md5(coalesce(p.prosrc, '')) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {_OWN}",
    "extensions": "SELECT extname, extnamespace::regnamespace::text, extversion FROM pg_extension",
    "sequence options": "SELECT seqrelid::regclass::text, seqtypid::regtype::text, seqstart, seqincrement, seqmin, seqmax, seqcache, seqcycle"
    " FROM pg_sequence",
    "inheritance": "SELECT inhrelid::regclass::text, inhparent::regclass::text FROM pg_inherits",
    "advisory locks": "SELECT classid, objid FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database"
    " WHERE datname = current_database())",
}


def structure(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """What is there, without the rows. A session that was ended or left a moment ago is given the time to let go of its lock."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SET search_path = ''")
        patience = time.monotonic() + 5
        while conn.execute(_CATALOG["advisory locks"]).fetchone() and time.monotonic() < patience:
            time.sleep(0.05)
        return {what: sorted(conn.execute(query).fetchall(), key=repr) for what, query in _CATALOG.items()}


def sequences(url: str) -> dict[str, tuple[int, bool]]:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SET search_path = ''")
        names = [n for (n,) in conn.execute("SELECT seqrelid::regclass::text FROM pg_sequence").fetchall()]
        return {n: conn.execute(sql.SQL("SELECT last_value, is_called FROM {}").format(sql.SQL(n))).fetchone() or (0, False) for n in names}


def everything(url: str) -> dict[str, Any]:
    """A database down to the place of each row: equal before and after means that nothing happened to it."""
    return {**structure(url), "rows": contents(url, versions=True), "sequences": sequences(url)}


# --- incrementals ------------------------------------------------------------------------------------------------------------------


def record_changes(url: str, tiers=MEMORY) -> None:
    """As `coldstore init --change-capture`."""
    with closing(connect(url)) as conn:
        migrate(conn)
        capture.install(conn, tiers)


def take_incremental(
    url: str, store, tiers=MEMORY, scope: Scope = EVERYBODY, *, label=None, even_if_empty=False, prove=False, progress=None, **options: Any
) -> StoredDocument | None:
    """What changed; None when nothing did."""
    more = {"progress": progress} if progress else {}
    with source_of(url) as source:
        manifest = snapshot_incremental(
            source,
            store,
            tiers=tiers,
            scope=scope,
            label=label,
            even_if_empty=even_if_empty,
            prove=prove,
            options=ExportOptions(**options),
            **more,
        )
    return manifest and StoredDocument(store, manifest)


def merged(*links: StoredDocument) -> dict[str, list[bytes]]:
    """The rows that a chain comes to, as `rows_of` gives them; put together without any code of coldstore's."""
    found: dict[str, dict[str, bytes]] = {}
    for link in links:
        keys = {t.array: t.key for t in link.manifest.schema.tables}
        rows = rows_of(link)
        for array, names in keys.items():
            there = found.setdefault(array, {})
            if array in link.manifest.resets:
                there.clear()
            for gone in map(json.loads, rows.get("deleted", [])):
                if gone["array"] == array:
                    assert set(gone["key"]) == set(names)
                    there.pop(_key(gone["key"], names), None)
            there.update({_key(json.loads(row), names): row for row in rows[array]})
    return {array: sorted(rows.values()) for array, rows in found.items()}


def _key(row: dict[str, Any], names: list[str]) -> str:
    return json.dumps([row[name] for name in names])
