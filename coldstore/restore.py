"""The way back: one snapshot, or one owner's part of it, into a target database.

    document → plan → frames (hash, decompress) → lines → COPY into staging → compare with the manifest → changes of incrementals
    → read back and compare → keys, constraints, indexes → publish in one transaction → compare what was published

`export.py` is the same steps the other way round. A failure at any point leaves the target as it was: rows lie in staging schemas until
the one transaction that moves them, and what was made elsewhere (an extension, a type) is undone. What counts is content: rows are
read back by the exporter's own reader and their digests compared, never just counted.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, LiteralString

import msgspec
import psycopg

from coldstore.catalog import rfc3339
from coldstore.chain import Step
from coldstore.chained import ChainDocument, Net
from coldstore.codec.digest import MODULUS, format_digest, row_digest
from coldstore.document import model
from coldstore.documents import Document, ForeignFile, LineFile, Owner, Part, StoredDocument
from coldstore.errors import ChainBroken, ChainRefused, ColdStoreError, ContentMismatch, NotFound, RestoreRefused
from coldstore.plan import effective_scope, owner_of, plan_tables
from coldstore.postgres import apply, ddl
from coldstore.postgres.connect import Connection, connect, describe, errors_as
from coldstore.postgres.crew import Crew
from coldstore.postgres.introspect import Relation
from coldstore.postgres.load import TableLoader
from coldstore.postgres.publish import add_foreign_keys, advance_sequences, make, publish
from coldstore.postgres.read import chunk_query, chunks, copy_lines, scope_query
from coldstore.postgres.staging import Staging, as_in_document
from coldstore.postgres.table_plan import Mode, TablePlan, count_scope, refuse_rows
from coldstore.progress import Progress, silent
from coldstore.tiers import EVERYBODY, Scope, Tier

if TYPE_CHECKING:  # only a dry run needs it
    from coldstore.comparison import TierDifference

_READ_BACK = 8 << 20  # bytes of a table that are read back at once
_CHANGES = 64 << 20  # bytes of changes that are gathered before they are carried out


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """`jobs`: connections that load. `allow_missing_columns`: values of columns that the target lacks may be left out.
    `maintenance_work_mem`: for building indexes, in Postgres' spelling, where the server's own is smaller. `preview`: rows that a dry run
    of `replace` shows of each kind of each tier, None for all."""

    mode: Mode = field(default_factory=Mode)
    jobs: int = 2
    dry_run: bool = False
    allow_missing_columns: bool = False
    tiers: tuple[str, ...] = ()
    maintenance_work_mem: str = "512MB"
    preview: int | None = 20


@dataclass(slots=True)
class Report:
    """What a restore did, or would do. `steps`: of a chain, the full snapshot and the incrementals, in order. `verified`: `content` when
    digests were compared, `counts` when only rows could be counted. `changes`: what `replace` would change of the tables that are there;
    a dry run alone compares rows."""

    document: str
    snapshot_at: str | None
    scope: Scope
    target: str
    mode: str
    dry_run: bool
    tables: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    verified: str = "content"
    seconds: float = 0.0
    changes: list[TierDifference] | None = None

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
            "steps": [{"id": s.id, "kind": s.kind, "snapshotAt": rfc3339(s.at), "rows": s.rows, "storedBytes": s.size} for s in self.steps],
            "verified": None if self.dry_run else self.verified,
            "changes": self.changes,
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
    scope = effective_scope(document, scope)
    if options.mode.name == "replace" and scope == EVERYBODY and isinstance(document, ForeignFile) and not document.says_whose:
        raise RestoreRefused(
            f"{document.name} does not say whose memory it is, and --mode replace would delete everybody else's",
            hint='Add "uid" to it ("uid": null for everybody), name the user with --uid, or use --mode merge.',
        )
    _refuse_part(document)
    report = Report(document.name, document.snapshot_at, scope, describe(target), options.mode.name, options.dry_run)
    report.steps = document.steps if isinstance(document, ChainDocument) else []
    with _leader(target) as leader:
        plans = plan_tables(
            document,
            leader,
            scope=scope,
            tiers=tiers,
            only=options.tiers,
            allow_missing_columns=options.allow_missing_columns,
            notes=report.notes,
        )
        only = owner_of(document, scope, plans)
        _refuse_early(leader, plans, scope, options)
        if options.dry_run:
            counted = _count(document, plans, only, progress)
            _describe_plan(report, plans, counted, options)
            if options.mode.name == "replace":
                report.changes = _preview(document, target, plans, scope, options, report, progress)
        else:
            _restore(document, target, leader, plans, only, scope, options, report, progress)
    report.seconds = time.monotonic() - started
    return report


def _refuse_part(document: Document) -> None:
    kind = (
        document.manifest.kind if isinstance(document, StoredDocument) else document.header.kind if isinstance(document, LineFile) else ""
    )
    if kind == model.INCREMENTAL:
        raise ChainBroken(
            f"{document.name} holds only what changed", hint="Restore it by its id, from the store that has what it is built on."
        )


# --- plan --------------------------------------------------------------------------------------------------------------------------


@contextmanager
def _leader(target: str) -> Iterator[Connection]:
    leader = connect(target, purpose="coldstore restore")
    try:
        yield leader
    finally:
        leader.close()


def _refuse_early(conn: Connection, plans: Sequence[TablePlan], scope: Scope, options: RestoreOptions) -> None:
    """What can be refused before a row is read. `publish` looks again, under a lock."""
    with errors_as("look at the target"):
        for plan in plans:
            if plan.target is None:
                continue
            if options.mode.name == "fresh":
                refuse_rows(conn, plan, scope)
            plan.existing = count_scope(conn, plan, scope) if options.dry_run else 0


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


def _preview(
    document: Document,
    target: str,
    plans: Sequence[TablePlan],
    scope: Scope,
    options: RestoreOptions,
    report: Report,
    progress: Progress,
) -> list[TierDifference] | None:
    """From the target as it is now to the document. None where rows cannot be compared: another program writes them in its own way."""
    from coldstore.comparison import between

    there = [p.source.tier for p in plans if p.target is not None]
    if not there or isinstance(document, ForeignFile):
        return None
    try:
        found = between(None, document, database=lambda: target, scope=scope, only=there, limit=options.preview, progress=progress)
    except ChainRefused as exc:  # the restore itself has PostgreSQL to ask
        report.notes.append(f"rows were not compared: {exc}")
        return None
    report.notes += found.notes
    return found.tiers


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
        with Crew(target, size=options.jobs, maintenance_work_mem=options.maintenance_work_mem) as crew:
            loaded = _load_whole(document, plans, only, crew, progress)
            _refuse_nothing(document, only, sum(rows for rows, _ in loaded.values()))
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


#: array → (rows, sum of the rows' digests)
Loaded = dict[str, tuple[int, int]]


def _load(document: Document, plans: Sequence[TablePlan], only: Owner | None, crew: Crew, progress: Progress) -> Loaded:
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


def _load_whole(document: Document, plans: Sequence[TablePlan], only: Owner | None, crew: Crew, progress: Progress) -> Loaded:
    """The document into its staged tables; of a chain the full one, and then what changed."""
    chain = document if isinstance(document, ChainDocument) else None
    first = chain.full if chain else document
    loaded = _load(first, plans, only, crew, progress)
    if only is None:
        _compare_with_manifest(first, loaded, plans)
    if chain:
        _apply(chain, plans, only, crew, loaded, progress)
        if only is None:
            _compare_with_manifest(chain, loaded, [p for p in plans if not p.ignored])
    return loaded


def _apply(chain: ChainDocument, plans: Sequence[TablePlan], only: Owner | None, crew: Crew, loaded: Loaded, progress: Progress) -> None:
    """What the incrementals change, group by group: rows that are there no more go, those that are there now come. Keeps `loaded` up: what
    went is summed as it is read from the table, what came as it stands in the document, and so the read-back checks both."""
    by_array = {p.source.array: p for p in plans}
    readers = chain.readers(by_array)
    with crew.connection() as conn:
        staged = {array: _as_read_back(conn, by_array[array]) for array in {*readers}}
    lock = threading.Lock()
    progress.start("apply", total_bytes=sum(link.manifest.bytes for link in chain.links[1:]))

    def carry_out(net: Net, conn: Connection) -> None:
        plan = by_array[net.array]
        assert plan.staged is not None  # noqa: S101
        loader = TableLoader(plan.staged, plan.source.columns, ignored=plan.ignored, json_null_key=plan.source.json_null_key)
        with conn.transaction():
            if net.reset:
                apply.empty(conn, plan.staged)
                left = (0, 0)
            elif net.changes:
                gone = apply.take_out(conn, staged[net.array], plan.source.key, net.changes)
                left = (loaded[net.array][0] - gone[0], loaded[net.array][1] - gone[1])
            else:
                left = loaded[net.array]
            rows, digest = loader.load(conn, (row for row in net.changes.values() if row is not None))
        with lock:
            loaded[net.array] = (left[0] + rows, (left[1] + digest) % MODULUS)
            progress.advance(rows=len(net.changes), size=net.size)

    with closing(chain.nets(list(by_array), only, size=_CHANGES)) as groups:
        for group in groups:
            crew.run(lambda conn, net=net: carry_out(net, conn) for net in group)  # type: ignore[misc]


def _compare_with_manifest(document: Document, loaded: Loaded, plans: Sequence[TablePlan]) -> None:
    wanted = {p.source.array for p in plans}
    for tier in document.tiers or []:
        if tier.array in wanted and (tier.rows, tier.digest) != (loaded[tier.array][0], format_digest(loaded[tier.array][1])):
            raise ContentMismatch(
                f"{document.name} holds {loaded[tier.array][0]} rows of {tier.tier}, or other ones, where its manifest says {tier.rows}",
                hint="Nothing was restored. Use another snapshot.",
            )


def _read_back(crew: Crew, plans: Sequence[TablePlan], loaded: Loaded, progress: Progress) -> None:
    """Read what was staged as the exporter would, and compare."""
    found: dict[str, tuple[int, int]] = {p.source.array: (0, 0) for p in plans}
    lock = threading.Lock()
    progress.start("compare")

    def tasks() -> Iterator[Callable[[Connection], None]]:
        for plan in plans:
            with crew.connection() as conn:
                staged = _as_read_back(conn, plan)
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


def _as_read_back(conn: Connection, plan: TablePlan) -> Relation:
    """The staged table, whose lines look as the document's."""
    assert plan.staged is not None  # noqa: S101
    return as_in_document(conn, plan.staged.table.table, msgspec.structs.replace(plan.source, where=None))


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


def _build(crew: Crew, plans: Sequence[TablePlan], staging: Staging, progress: Progress) -> list[str]:
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
    wide = [p for p in plans if _has_vector_index(p.source) and not p.source.partitions]

    def build(conn: Connection, statement: Any, what: str) -> None:
        with errors_as("build"):
            if sentence := make(conn, statement, what):
                left_out.append(sentence)

    # Vectors lie out of line, so the table looks too small for Postgres to build their index with more than one process.
    _set_workers(crew, wide, "SET (parallel_workers = 2)")
    crew.run(lambda conn, s=statement, w=what: build(conn, s, w) for statement, what in statements)  # type: ignore[misc]
    _set_workers(crew, wide, "RESET (parallel_workers)")
    return left_out


def _has_vector_index(table: model.Table) -> bool:
    return any(i.using.startswith(("hnsw", "ivfflat")) for i in table.indexes)


def _set_workers(crew: Crew, plans: Sequence[TablePlan], how: LiteralString) -> None:
    with crew.connection() as conn, errors_as("build"):
        for plan in plans:
            conn.execute(ddl.alter(plan.staged_name, how))


def _compare_published(conn: Connection, plans: Sequence[TablePlan], loaded: Loaded, scope: Scope) -> None:
    """Inside the publishing transaction: the scope's rows of the target are now exactly the snapshot's."""
    for plan in plans:
        target = as_in_document(conn, plan.source.table, plan.source)
        rows, digest, _ = _digest(copy_lines(conn, scope_query(target, scope), raw_newlines=target.raw_newlines))
        _compare(plan.source.array, loaded[plan.source.array], (rows, digest))
