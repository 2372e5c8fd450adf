"""The way out for what changed since another snapshot of the same scope, its parent.

    head of the chain → may it be built on? → what was touched → changed rows, keys that are gone → document → manifest → pointers

No clock decides: a change belongs in here when the parent's `pg_snapshot` does not see the transaction that made it, and this moment
does. So what commits late is in the next one, and what a crash kept from being committed to the store is in the next one as well.

Refuses, with a `ChainRefused` that says why, everything that does not surely continue the parent: another database or an older state of
it, triggers that were not whole all the time, tables that were altered, a parent that is not in this store or not its newest.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import msgspec

from coldstore.catalog import Heads, newest_or_none, read_manifest, read_pointer, rfc3339
from coldstore.commit import Draft, State, Tally
from coldstore.document import model
from coldstore.document.writer import RowBatch, batches, deletion
from coldstore.errors import ChainRefused, DocumentError, NotFound
from coldstore.export import ExportOptions, Tables, frames, header_of, heads_of, remember, rows_of
from coldstore.gate import suspicion
from coldstore.postgres import capture
from coldstore.postgres.introspect import Relation
from coldstore.postgres.read import Line, copy_lines, scope_query
from coldstore.postgres.source import Moment, Source
from coldstore.progress import Progress, silent
from coldstore.storage import layout
from coldstore.storage.store import Store
from coldstore.tiers import EVERYBODY, Scope, Tier

_FULL = "Take a full snapshot, or use --auto-full."
_STEP = 1000  # milliseconds by which a clock may be put back and the order of a chain still be kept


def snapshot_incremental(
    source: Source,
    store: Store,
    *,
    tiers: Sequence[Tier],
    scope: Scope = EVERYBODY,
    label: str | None = None,
    even_if_empty: bool = False,
    prove: bool = False,
    options: ExportOptions | None = None,
    progress: Progress = silent,
) -> model.Manifest | None:
    """What changed of one scope's memory as a snapshot that builds on the newest one; None when nothing did, unless `even_if_empty`. What
    the chain then comes to is counted and claimed for a user and a workspace; for everybody only to `prove` it, because that reads all."""
    options = options or ExportOptions()
    started = time.monotonic()
    with source.moment(tiers, vectors=options.vectors, sizes=prove and scope == EVERYBODY) as moment:
        tables = Tables.of(moment, scope)
        parent = _parent(store, moment, tables, scope)
        changes = _Changes.since(parent, moment, tables, scope, options)
        with closing(changes):
            if not (changes.begin() or even_if_empty):
                return None
            timestamp = max(moment.timestamp, _at(parent) + 1)
            header = msgspec.structs.replace(
                header_of(moment, tables, scope, label),
                snapshot_at=rfc3339(timestamp),
                id=layout.snapshot_id(scope, timestamp),
                kind=model.INCREMENTAL,
                parent=model.Link(id=parent.id, checksum=parent.checksum),
                resets=changes.resets,
            )
            arrays = [*tables.arrays, (model.DELETED, model.DELETED)]
            heads = Heads(store)

            def state(tally: Tally) -> State:
                if prove or scope != EVERYBODY:
                    return _read_all(moment, tables, scope, options)
                return State(changes.counted(tally, heads.rows(scope), options))

            draft = Draft(store, header, timestamp, arrays, options, started, heads, lambda _: None, state)
            manifest = draft.publish(lambda tally: frames(arrays, changes.rows(), tally, options.frame_size, progress))
    remember(source, heads_of(manifest), options, progress)
    return manifest


# --- the parent --------------------------------------------------------------------------------------------------------------------


def _parent(store: Store, moment: Moment, tables: Tables, scope: Scope) -> model.Manifest:
    """The snapshot that this moment continues. Raises `ChainRefused`."""
    if moment.database.capture is None:
        why = capture.why_not(moment.leader, moment.catalog) or "what changes in this database is not recorded"
        raise ChainRefused(why, hint="Run `coldstore init --change-capture`, then take a full snapshot.")
    head = capture.head(moment.leader, scope)
    if head is None:
        raise ChainRefused(f"this database knows of no snapshot of {scope} to build on", hint=_FULL)
    parent = _newest(store, scope, head)
    if problem := _other_database(parent, moment, head) or _other_tables(parent, tables) or _unrecorded(parent, moment):
        raise ChainRefused(f"{parent.id} cannot be built on: {problem}", hint=_FULL)
    if moment.timestamp + _STEP <= _at(parent):
        raise ChainRefused(f"the database's clock says {rfc3339(moment.timestamp)}, and {parent.id} is of later", hint=_FULL)
    return parent


def _newest(store: Store, scope: Scope, head: capture.Head) -> model.Manifest:
    """The head's manifest, if it is the newest good one of the scope: a copy of the database that was left behind has an older head."""
    try:
        parent = read_manifest(store, head.snapshot_id)
        pointer = read_pointer(store, layout.latest_key(scope))
        newest = parent if pointer is not None and pointer.id == parent.id else newest_or_none(store, scope)
    except NotFound as exc:
        raise ChainRefused(f"{head.snapshot_id}, on which this would build, is not in {store.url}", hint=_FULL) from exc
    except DocumentError as exc:
        raise ChainRefused(f"the newest snapshot of {scope} cannot be read: {exc}", hint=_FULL) from exc
    if newest is None or parent.id not in {newest.id, newest.built_from}:  # a copy of its chain stands for it
        raise ChainRefused(
            f"this database would build on {parent.id}, and {newest.id if newest else 'none that is good'} is the newest of {scope}",
            hint=_FULL,
        )
    return parent


def _other_database(parent: model.Manifest, moment: Moment, head: capture.Head) -> str | None:
    there, here = parent.database, moment.database
    if there is None or parent.checksum != head.checksum or there.snapshot != head.snapshot:
        return "it is not the one that this database took"
    if (there.system_identifier, there.oid) != (here.system_identifier, here.oid):
        return "it is of another database"
    if there.timeline != here.timeline:
        return "the database was restored or failed over since"
    return None


def _unrecorded(parent: model.Manifest, moment: Moment) -> str | None:
    if parent.database is not None and parent.database.capture == moment.database.capture:
        return None
    return "the tables, or what records their changes, were altered since"


def _other_tables(parent: model.Manifest, tables: Tables) -> str | None:
    there, here = _lasting(parent.schema), _lasting(tables.schema)
    if there == here:
        return None
    before = {t.tier: t for t in there.tables}
    other = [t.tier for t in here.tables if before.pop(t.tier, None) != t]
    names = ", ".join([*other, *before])
    return f"the tables are not described as they were then ({names})" if names else "a type or a sequence of the tables was altered since"


def _lasting(schema: model.Schema) -> model.Schema:
    """Without what changes as rows are written, and by itself."""
    sequences = [msgspec.structs.replace(s, last_value=None) for s in schema.sequences]
    return msgspec.structs.replace(schema, sequences=sequences, extensions=[])


def _at(manifest: model.Manifest) -> int:
    return layout.parse_id(manifest.id)[1]


# --- what changed ------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Changes:
    """The rows of the document. `touched`: tiers with changes; True: the table was emptied, so that all of it is read again. `gone`: how
    many keys of each tier were not there when they were last read."""

    moment: Moment
    tables: Tables
    scope: Scope
    parent: str
    size: int
    touched: dict[str, bool]
    gone: dict[str, int] = field(default_factory=dict)
    _begun: Generator[tuple[int, RowBatch]] | None = None

    @classmethod
    def since(cls, parent: model.Manifest, moment: Moment, tables: Tables, scope: Scope, options: ExportOptions) -> _Changes:
        seen = parent.database.snapshot if parent.database else ""
        return cls(moment, tables, scope, seen, options.frame_size, capture.touched(moment.leader, scope, parent=seen))

    @property
    def resets(self) -> list[str]:
        """Arrays that hold all there is."""
        return [r.table.array for r in self.tables.relations if self.touched.get(r.table.tier)]

    def begin(self) -> bool:
        """Whether there is anything to write: a change that is another's, or was taken back, is nothing."""
        begun = self._read()
        first = next(begun, None)
        self._begun = begun if first is None else _after(first, begun)
        return first is not None or bool(self.resets)

    def rows(self) -> Generator[tuple[int, RowBatch]]:
        """(number of the array, batch) in the order of the document; the second time they are read again."""
        begun, self._begun = self._begun, None
        return begun or self._read()

    def close(self) -> None:
        if self._begun is not None:
            self._begun.close()

    def counted(self, tally: Tally, before: dict[str, int], options: ExportOptions) -> dict[str, int]:
        """Rows by tier without reading them all: as they were counted `before`, but for those of which so many are gone that the gate must
        know. A key that came and went between two snapshots is gone as well, so what is gone may be more than there was."""
        found = {}
        for number, relation in enumerate(self.tables.relations):
            tier = relation.table.tier
            if self.touched.get(tier):
                found[tier] = tally.rows[number]
            elif tier in before:
                least = {tier: max(0, before[tier] - self.gone.get(tier, 0))}
                doubtful = suspicion(before, least, max_fall=options.max_fall, everybody=True)
                found[tier] = self.moment.rows(relation) if doubtful else before[tier]
        return found

    def _read(self) -> Generator[tuple[int, RowBatch]]:
        self.gone = {}
        touched = [(n, r) for n, r in enumerate(self.tables.relations) if r.table.tier in self.touched]
        for number, relation in touched:
            for batch in batches(self._changed(relation), size=self.size):
                yield number, batch
        for _, relation in touched:
            for batch in batches(self._deleted(relation), size=self.size):
                self.gone[relation.table.tier] = self.gone.get(relation.table.tier, 0) + batch.rows
                yield len(self.tables.relations), batch

    def _changed(self, relation: Relation) -> Iterator[Line]:
        conn = self.moment.leader
        if self.touched[relation.table.tier]:
            query = scope_query(relation, self.scope)
        else:
            query = capture.changed_query(conn, relation, self.scope, parent=self.parent)
        return copy_lines(conn, query, raw_newlines=relation.raw_newlines, check_utf8=self.moment.check_utf8)

    def _deleted(self, relation: Relation) -> Iterator[Line]:
        if self.touched[relation.table.tier]:
            return
        conn = self.moment.leader
        query = capture.deleted_query(conn, relation, self.scope, parent=self.parent)
        for key in copy_lines(conn, query, check_utf8=self.moment.check_utf8):
            yield deletion(relation.table.array, key)


def _after(first: tuple[int, RowBatch], rest: Generator[tuple[int, RowBatch]]) -> Generator[tuple[int, RowBatch]]:
    with closing(rest):
        yield first
        yield from rest


def _read_all(moment: Moment, tables: Tables, scope: Scope, options: ExportOptions) -> State:
    """What the scope's rows come to, all of them read and none written."""
    tally = Tally.of(len(tables.relations))
    with closing(rows_of(moment, tables, scope, options)) as found:
        for number, batch in found:
            tally.add(number, batch)
    return State({tier: rows for (tier, _), rows in zip(tables.arrays, tally.rows, strict=True)}, tally)
