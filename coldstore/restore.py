"""The way back: one snapshot, or one owner's part of it, into a target database.

    document → plan → frames (hash, decompress) → lines → COPY into staging → compare with the manifest → keys, constraints, indexes
    → read back and compare → publish in one transaction → compare what was published

`export.py` is the same steps the other way round. A failure at any point leaves the target as it was: rows lie in staging schemas until
the one transaction that moves them, and what was made elsewhere (an extension, a type) is undone. What counts is content: rows are
read back by the exporter's own reader and their digests compared, never just counted.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec
import psycopg

from coldstore.codec.digest import MODULUS, format_digest, row_digest
from coldstore.document import model
from coldstore.documents import Document, ForeignFile, Owner, Part
from coldstore.errors import ColdStoreError, ContentMismatch, CorruptDocument, NotFound, SchemaMismatch, TableMissing
from coldstore.postgres import ddl
from coldstore.postgres.connect import Connection, connect, describe, errors_as
from coldstore.postgres.introspect import find, inspect, resolve
from coldstore.postgres.load import TableLoader
from coldstore.postgres.publish import Mode, TablePlan, add_foreign_keys, advance_sequences, count_scope, make, publish, refuse_rows
from coldstore.postgres.read import chunk_query, chunks, copy_lines, scope_query
from coldstore.postgres.staging import Staging, as_in_document
from coldstore.progress import Progress, silent
from coldstore.tiers import EVERYBODY, Scope, Tier

_READ_BACK = 8 << 20  # bytes of a table that are read back at once


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """`jobs`: connections that load. `allow_missing_columns`: values of columns that the target lacks may be left out.
    `maintenance_work_mem`: for building indexes, in Postgres' spelling, where the server's own is smaller."""

    mode: Mode = field(default_factory=Mode)
    jobs: int = 2
    dry_run: bool = False
    allow_missing_columns: bool = False
    tiers: tuple[str, ...] = ()
    maintenance_work_mem: str = "512MB"


@dataclass(slots=True)
class Report:
    """What a restore did, or would do. `verified`: `content` when digests were compared, `counts` when only rows could be counted."""

    document: str
    snapshot_at: str | None
    scope: Scope
    target: str
    mode: str
    dry_run: bool
    tables: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verified: str = "content"
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.document,
            "snapshotAt": self.snapshot_at,
            "uid": self.scope.uid,
            "workspace": self.scope.workspace,
            "target": self.target,
            "mode": self.mode,
            "dryRun": self.dry_run,
            "rows": {t["tier"]: t["rows"] for t in self.tables},
            "tables": self.tables,
            "notes": self.notes,
            "verified": None if self.dry_run else self.verified,
            "seconds": round(self.seconds, 6),
        }


def restore(
    document: Document,
    target: str,
    *,
    scope: Scope | None = None,
    tiers: Sequence[Tier] = (),
    options: RestoreOptions | None = None,
    progress: Progress = silent,
) -> Report:
    """Bring `document` back into the database at the URL `target`; with `scope`, only that user's or workspace's part of it.

    `tiers` tell which table an array belongs to when the document does not say. Raises `RestoreRefused` before anything is loaded,
    `DocumentError` or `ContentMismatch` after, in each case with the target untouched.
    """
    options = options or RestoreOptions()
    started = time.monotonic()
    scope = _effective_scope(document, scope)
    report = Report(document.name, document.snapshot_at, scope, describe(target), options.mode.name, options.dry_run)
    with _leader(target) as leader:
        plans = _plan(document, leader, scope, tiers, options, report)
        only = _owner(document, scope, plans)
        _refuse_early(leader, plans, scope, options)
        if options.dry_run:
            counted = _count(document, plans, only, progress)
            _describe_plan(report, plans, counted, options)
        else:
            _restore(document, target, leader, plans, only, scope, options, report, progress)
    report.seconds = time.monotonic() - started
    return report


# --- plan --------------------------------------------------------------------------------------------------------------------------


def _effective_scope(document: Document, wanted: Scope | None) -> Scope:
    """Whose memory comes back: the wanted scope, which must lie within the document's."""
    if wanted is None or wanted in {EVERYBODY, document.scope}:
        return document.scope
    if document.scope != EVERYBODY:
        raise NotFound(f"{document.name} holds the memory of {document.scope}, not of {wanted}", hint="Use an all-user snapshot.")
    return wanted


@contextmanager
def _leader(target: str) -> Iterator[Connection]:
    leader = connect(target, purpose="coldstore restore")
    try:
        yield leader
    finally:
        leader.close()


def _plan(
    document: Document, conn: Connection, scope: Scope, tiers: Sequence[Tier], options: RestoreOptions, report: Report
) -> list[TablePlan]:
    """Which array goes to which table, with which columns."""
    tables = _described(document) if document.schema else _guessed(document, conn, tiers, options)
    wanted = [t for t in tables if not options.tiers or t.tier in options.tiers]
    unknown = set(options.tiers) - {t.tier for t in tables}
    if unknown:
        raise NotFound(f"{document.name} has no tier {sorted(unknown)[0]!r}", hint=f"It has {', '.join(t.tier for t in tables)}.")
    plans = []
    for table in wanted:
        if scope != document.scope and not (table.uid_column if scope.kind == "uid" else table.workspace_column):
            report.notes.append(f"{table.table}: no column says which {scope.kind} a row belongs to, so it stays out")
            continue
        plans.append(_table_plan(conn, table, options, report))
    if not plans:
        raise NotFound(f"{document.name} has nothing that could be restored for {scope}")
    return plans


def _described(document: Document) -> list[model.Table]:
    return list(document.schema.tables) if document.schema else []


def _guessed(document: Document, conn: Connection, tiers: Sequence[Tier], options: RestoreOptions) -> list[model.Table]:
    """Tables for the arrays of another program's document: found by the tier's array, name or table."""
    assert isinstance(document, ForeignFile)  # noqa: S101 — every other kind of document describes its tables
    by_name = {alias: t for t in reversed(tiers) for alias in (t.table, t.name, t.array)}
    found: list[model.Table] = []
    mixed = sorted(a for a in document.not_rows if a in by_name or a in document.members)
    if mixed:
        raise CorruptDocument(f"the array {mixed[0]!r} of {document.name} stands there twice, or holds something else than rows")
    for array, members in document.members.items():
        tier = by_name.get(array)
        if tier is None or (options.tiers and tier.name not in options.tiers):
            if members and tier is None and not options.tiers:
                raise SchemaMismatch(
                    f"{document.name} has rows in {array!r}, and no tier is called so",
                    hint="Declare the tier in coldstore.toml, or choose tiers with --tier.",
                )
            continue
        if any(t.tier == tier.name for t in found):
            raise CorruptDocument(f"{document.name} has the tier {tier.name} twice, under two names", hint="Put its rows into one array.")
        oid = resolve(conn, [tier.table])[tier.table]
        if oid is None:
            raise TableMissing(
                f"the target has no table {tier.table}, and {document.name} does not describe it",
                hint="Create it first: `coldstore init --reference-schema`.",
            )
        table = inspect(conn, [(tier, oid)], readable=False).relations[0].table
        unknown = members - {c.name for c in table.columns}
        extra = [model.Column(name=name, type="text") for name in sorted(unknown)]
        columns = [c for c in table.columns if c.name in members] + extra
        found.append(msgspec.structs.replace(table, array=array, columns=columns, where=None))
    if not found:
        raise NotFound(f"{document.name} has no array that a tier is called after", hint="Declare the tiers in coldstore.toml.")
    return found


def _table_plan(conn: Connection, table: model.Table, options: RestoreOptions, report: Report) -> TablePlan:
    oid = find(conn, [table.table]).get(table.table)
    if oid is None:
        return TablePlan(table, None, list(table.columns))
    tier = Tier(table.tier, "", array=table.array)
    relation = inspect(conn, [(tier, oid)], vectors=_vectors(table), readable=False).relations[0]
    if relation.table.kind not in {"table", "partitioned"}:
        raise SchemaMismatch(f"{table.table} is a {relation.table.kind} in the target", hint="Restore into another database.")
    own = {c.name for c in relation.table.columns}
    missing = [c.name for c in table.columns if c.name not in own]
    if missing and not options.allow_missing_columns:
        raise SchemaMismatch(
            f"{table.table} has no column {missing[0]!r} in the target",
            hint="Add the column, or leave its values out with --allow-missing-columns.",
        )
    if missing:
        report.notes.append(f"{table.table}: left out {', '.join(missing)}, which the target lacks")
    return TablePlan(table, relation, [c for c in table.columns if c.name in own], ignored=missing)


def _vectors(table: model.Table) -> str:
    return "hex" if any(c.form == "hex" for c in table.columns) else "text"


def _owner(document: Document, scope: Scope, plans: Sequence[TablePlan]) -> Owner | None:
    """What picks the scope's rows out of a document of everybody's."""
    if scope == document.scope:
        return None
    columns = {p.source.array: (p.source.uid_column if scope.kind == "uid" else p.source.workspace_column) or "" for p in plans}
    blank_padded = {
        p.source.array
        for p in plans
        for c in p.source.columns
        if c.name == columns[p.source.array] and c.type.startswith(("character(", "bpchar"))
    }
    return Owner(scope.value, columns, blank_padded=blank_padded)


def _refuse_early(conn: Connection, plans: Sequence[TablePlan], scope: Scope, options: RestoreOptions) -> None:
    """What can be refused before a row is read. `publish` looks again, under a lock."""
    with errors_as("look at the target"):
        for plan in plans:
            if plan.target is None:
                continue
            if options.mode.name == "fresh":
                refuse_rows(conn, plan, scope)
            plan.existing = count_scope(conn, plan, scope, whole=False) if options.dry_run else 0


def _count(document: Document, plans: Sequence[TablePlan], only: Owner | None, progress: Progress) -> dict[str, int]:
    """Rows that would be restored, by array."""
    if only is None and document.tiers is not None:
        return {t.array: t.rows for t in document.tiers}
    counted: dict[str, int] = defaultdict(int)
    progress.start("count", total_bytes=document.size)
    with closing(document.parts([p.source.array for p in plans], only)) as parts:
        for part in parts:
            rows = sum(1 for _ in part.rows())
            counted[part.array] += rows
            progress.advance(rows=rows, size=part.size)
    _refuse_nothing(document, only, sum(counted.values()))
    return counted


def _refuse_nothing(document: Document, only: Owner | None, rows: int) -> None:
    if only is not None and not rows:
        raise NotFound(f"{document.name} has not one row of {only.value!r}", hint="Check the spelling, or look in an older snapshot.")


def _describe_plan(report: Report, plans: Sequence[TablePlan], counted: dict[str, int], options: RestoreOptions) -> None:
    for plan in plans:
        report.tables.append(
            {
                "tier": plan.source.tier,
                "table": str(plan.source.table),
                "action": "create" if plan.target is None else options.mode.name,
                "rows": counted.get(plan.source.array, 0),
                "existing": plan.existing,
            }
        )


# --- restore -----------------------------------------------------------------------------------------------------------------------


def _restore(
    document: Document,
    target: str,
    leader: Connection,
    plans: list[TablePlan],
    only: Owner | None,
    scope: Scope,
    options: RestoreOptions,
    report: Report,
    progress: Progress,
) -> None:
    staging = Staging(leader)
    published = False
    try:
        schema = document.schema
        created = [p.source for p in plans if p.target is None]
        names = [n.schema for p in plans for n in (p.source.table, *(x.table for x in p.source.partitions))]
        staging.open(schema or model.Schema(tables=[]), created=created, schemas=names)
        for plan in plans:
            plan.staged = staging.create(plan.source, plan.columns, like=plan.target)
        with _Crew(target, options) as crew:
            loaded = _load(document, plans, only, crew, progress)
            _refuse_nothing(document, only, sum(rows for rows, _ in loaded.values()))
            if only is None:
                _compare_with_manifest(document, loaded, plans)
            comparable = [p for p in plans if not p.ignored and not isinstance(document, ForeignFile)]
            if len(comparable) < len(plans):
                report.verified = "counts"
            _read_back(crew, comparable, loaded, progress)
            report.notes += _build(crew, [p for p in plans if p.target is None], staging, progress)
        progress.start("publish")
        with errors_as("publish"), leader.transaction():
            report.notes += publish(leader, plans, schema, staging, scope=scope, mode=options.mode)
            report.notes += add_foreign_keys(leader, plans, staging)
            if options.mode.name != "merge":
                _compare_published(leader, [p for p in comparable if p.target is not None], loaded, scope)
            advance_sequences(leader, plans, schema)
        published = True
    finally:
        if not staging.drop(published=published):
            with suppress(ColdStoreError, psycopg.Error), _leader(target) as other:
                staging.take_over(other)
    for plan in plans:
        rows = loaded[plan.source.array][0]
        report.tables.append(
            {
                "tier": plan.source.tier,
                "table": str(plan.source.table),
                "action": "create" if plan.target is None else options.mode.name,
                "rows": rows,
                "inserted": rows if plan.target is None else plan.inserted,
                "updated": plan.updated,
                "deleted": plan.deleted,
                "unchanged": rows - plan.inserted - plan.updated
                if plan.target is not None and options.mode.name == "replace"
                else plan.unchanged,
                "skipped": plan.skipped,
            }
        )


class _Crew:
    """Connections that work at the same time. Each task gets one; the first failure stops all."""

    def __init__(self, target: str, options: RestoreOptions) -> None:
        self._target = target
        self._memory = options.maintenance_work_mem
        self.size = max(1, options.jobs)
        self._free: list[Connection] = []
        self._all: list[Connection] = []
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(self.size, thread_name_prefix="coldstore-restore")
        self.stopped = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for conn in self._all:
            with suppress(psycopg.Error):
                conn.cancel_safe(timeout=5)
        self._pool.shutdown(cancel_futures=True)
        for conn in self._all:
            conn.close()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        with self._lock:
            conn = self._free.pop() if self._free else None
        if conn is None:
            conn = connect(self._target, purpose="coldstore restore")
            with errors_as("connect"):
                # Nothing staged has to survive a crash of the server; the commit that publishes waits for all of it.
                conn.execute("SET synchronous_commit = off")
                conn.execute(
                    "SELECT set_config('maintenance_work_mem', greatest(pg_size_bytes(%s), pg_size_bytes("
                    "current_setting('maintenance_work_mem'))) / 1024 || 'kB', false)",
                    (self._memory,),
                )
            with self._lock:
                self._all.append(conn)
        yield conn
        with self._lock:
            self._free.append(conn)

    def run(self, tasks: Iterable[Callable[[Connection], None]]) -> None:
        """Every task, as many at a time as there are connections. Raises the first error after all have stopped."""

        def one(task: Callable[[Connection], None]) -> None:
            if not self.stopped.is_set():
                with self.connection() as conn:
                    task(conn)

        futures = set()
        try:
            for task in tasks:
                futures.add(self._pool.submit(one, task))
                if len(futures) > self.size:
                    done, futures = wait(futures, return_when="FIRST_COMPLETED")
                    for future in done:
                        future.result()
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            self.stopped.set()
            raise


#: array → (rows, sum of the rows' digests)
Loaded = dict[str, tuple[int, int]]


def _load(document: Document, plans: Sequence[TablePlan], only: Owner | None, crew: _Crew, progress: Progress) -> Loaded:
    """Every part of the document into its staged table."""
    by_array = {p.source.array: p for p in plans}
    loaded: dict[str, tuple[int, int]] = {p.source.array: (0, 0) for p in plans}
    lock = threading.Lock()
    progress.start("load", total_bytes=document.size)

    def load(part: Part, conn: Connection) -> None:
        plan = by_array[part.array]
        assert plan.staged is not None  # noqa: S101
        loader = TableLoader(plan.staged, plan.source.columns, ignored=plan.ignored, json_null_key=plan.source.json_null_key)
        rows, digest = loader.load(conn, part.rows())
        with lock:
            before = loaded[part.array]
            loaded[part.array] = (before[0] + rows, (before[1] + digest) % MODULUS)
            progress.advance(rows=rows, size=part.size)

    with closing(document.parts(list(by_array), only)) as parts:
        crew.run(lambda conn, part=part: load(part, conn) for part in parts)  # type: ignore[misc]
    return loaded


def _compare_with_manifest(document: Document, loaded: Loaded, plans: Sequence[TablePlan]) -> None:
    wanted = {p.source.array for p in plans}
    for tier in document.tiers or []:
        if tier.array in wanted and (tier.rows, tier.digest) != (loaded[tier.array][0], format_digest(loaded[tier.array][1])):
            raise ContentMismatch(
                f"{document.name} holds {loaded[tier.array][0]} rows of {tier.tier}, or other ones, where its manifest says {tier.rows}",
                hint="Nothing was restored. Use another snapshot.",
            )


def _read_back(crew: _Crew, plans: Sequence[TablePlan], loaded: Loaded, progress: Progress) -> None:
    """Read what was staged as the exporter would, and compare."""
    found: dict[str, tuple[int, int]] = {p.source.array: (0, 0) for p in plans}
    lock = threading.Lock()
    progress.start("compare")

    def tasks() -> Iterator[Callable[[Connection], None]]:
        for plan in plans:
            assert plan.staged is not None  # noqa: S101
            with crew.connection() as conn:
                staged = as_in_document(conn, plan.staged.table.table, msgspec.structs.replace(plan.source, where=None))
            for chunk in chunks(staged, size=_READ_BACK):
                statement = chunk_query(staged, chunk, EVERYBODY)
                yield lambda conn, p=plan, r=staged, s=statement: read(conn, p, r, s)  # type: ignore[misc]

    def read(conn: Connection, plan: TablePlan, relation: Any, statement: Any) -> None:
        rows, digest, size = _digest(copy_lines(conn, statement, raw_newlines=relation.raw_newlines))
        with lock:
            before = found[plan.source.array]
            found[plan.source.array] = (before[0] + rows, (before[1] + digest) % MODULUS)
            progress.advance(rows=rows, size=size)

    crew.run(tasks())
    for array, sums in found.items():
        _compare(array, loaded[array], sums)


def _digest(rows: Iterable[bytes | memoryview]) -> tuple[int, int, int]:
    count = digest = size = 0
    for row in rows:
        count += 1
        digest += row_digest(row)
        size += len(row)
    return count, digest, size


def _compare(array: str, loaded: tuple[int, int], found: tuple[int, int]) -> None:
    if (loaded[0], loaded[1] % MODULUS) != (found[0], found[1] % MODULUS):
        raise ContentMismatch(
            f"after loading, {array} reads differently from the document ({found[0]} rows, {loaded[0]} in the document)",
            hint="A column of the target has another type, or a trigger changed rows. Nothing was restored.",
        )


def _build(crew: _Crew, plans: Sequence[TablePlan], staging: Staging, progress: Progress) -> list[str]:
    """Keys, checks and indexes of the tables the restore makes; foreign keys come when all tables are in their place. Returns a
    sentence for each that had to be left out."""
    progress.start("index")
    statements = []
    for plan in plans:
        names = {c.name for c in plan.columns}
        table = plan.staged_name
        statements += [(ddl.index(table, i, staging.names), f"the index {i.name} of {plan.source.table}") for i in plan.source.indexes]
        statements += [
            (ddl.constraint(table, c, staging.names), f"the constraint {c.name} of {plan.source.table}")
            for c in plan.source.constraints
            if c.kind != "f" and set(c.columns) <= names
        ]
    left_out: list[str] = []

    def build(conn: Connection, statement: Any, what: str) -> None:
        with errors_as("build"):
            if sentence := make(conn, statement, what):
                left_out.append(sentence)

    crew.run(lambda conn, s=statement, w=what: build(conn, s, w) for statement, what in statements)  # type: ignore[misc]
    return left_out


def _compare_published(conn: Connection, plans: Sequence[TablePlan], loaded: Loaded, scope: Scope) -> None:
    """Inside the publishing transaction: the scope's rows of the target are now exactly the snapshot's."""
    for plan in plans:
        target = as_in_document(conn, plan.source.table, plan.source)
        rows, digest, _ = _digest(copy_lines(conn, scope_query(target, scope), raw_newlines=target.raw_newlines))
        _compare(plan.source.array, loaded[plan.source.array], (rows, digest))
