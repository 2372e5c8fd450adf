"""Proof that a snapshot restores: it is restored into a database that is thrown away, looked at, written to, and the outcome kept in the
store beside the snapshot.

    restore → content, tier by tier, as the exporter reads it → schema → keys, NOT NULL, checks, a new row, by writing → assertions

Whatever goes wrong once there is a database is an outcome, not an error: the snapshot is not proven, and the report says why. Errors are
only what keeps a drill from beginning: no such snapshot, no server, no right to make a database.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import count
from typing import Any

from coldstore.catalog import rfc3339
from coldstore.chained import summed
from coldstore.codec.sign import SigningKey
from coldstore.document import model
from coldstore.documents import Document
from coldstore.errors import ChainRefused, ColdStoreError, ObjectExists, StoreError
from coldstore.postgres.assertion import Assertion, objection
from coldstore.postgres.compare import table_digest
from coldstore.postgres.connect import Connection, connect
from coldstore.postgres.likeness import Finding, Likeness
from coldstore.postgres.probe import Probe
from coldstore.postgres.scratch import scratch
from coldstore.progress import Progress, silent
from coldstore.restore import RestoreOptions, restore
from coldstore.storage import layout
from coldstore.storage.store import Store

#: What Postgres says of a row in an error's detail: `Key (id)=(7) already exists`.
_VALUES = re.compile(r"\)=\(.*\)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class DrillOptions:
    """`to`: a server to make the database on, instead of an embedded one. `keep` it afterwards. `timeout`: seconds for each
    assertion. `signer` signs the record."""

    to: str | None = None
    keep: bool = False
    restore: RestoreOptions = field(default_factory=RestoreOptions)
    assertions: tuple[Assertion, ...] = ()
    timeout: int = 60
    signer: SigningKey | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried."""

    name: str
    ok: bool
    detail: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "ok": self.ok, "detail": self.detail, "seconds": round(self.seconds, 6)}


@dataclass(slots=True)
class Report:
    """What a drill found out. `at`: when it ended, in milliseconds since the epoch."""

    id: str
    checks: list[Check] = field(default_factory=list)
    seconds: float = 0.0
    at: int = 0

    @property
    def proven(self) -> bool:
        return bool(self.checks) and all(c.ok for c in self.checks)

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "proven": self.proven,
            "checks": [c.as_dict() for c in self.checks],
            "seconds": round(self.seconds, 6),
            "at": rfc3339(self.at),
        }


def drill(
    document: Document, store: Store, *, options: DrillOptions, progress: Progress = silent, clock: Callable[[], float] = time.time
) -> Report:
    """Restore `document`, a snapshot of `store`, into a database of its own, try everything, and record the outcome in `store`."""
    report = Report(document.name)
    started = time.monotonic()
    with scratch(options.to, keep=options.keep, note=progress.note) as url, closing(_Drill(document, url, options, progress)) as trial:
        for name, look in trial.steps():
            check = _check(name, look, progress)
            if check is not None:
                report.checks.append(check)
            if name == "restore" and not report.proven:
                break
    report.seconds = time.monotonic() - started
    report.at = int(clock() * 1000)
    _record(store, report, options.signer, progress)
    return report


def _check(name: str, look: Callable[[], Finding | None], progress: Progress) -> Check | None:
    """None where there is nothing to look at."""
    progress.start(name)
    started = time.monotonic()
    try:
        found = look()
    except ColdStoreError as exc:
        sentence = _VALUES.sub(")=(…)", str(exc))
        found = Finding(problems=[f"{sentence}. {exc.hint}" if exc.hint else sentence])
    return None if found is None else Check(name, not found.problems, str(found), time.monotonic() - started)


# --- checks ------------------------------------------------------------------------------------------------------------------------


_ATTEMPTS: dict[str, Callable[[Probe], Finding | None]] = {
    "keys of": Probe.keys,
    "not null in": Probe.not_null,
    "checks of": Probe.checks,
    "new row in": Probe.new_row,
}


class _Drill:
    """What is tried with one document in the database at `url`. What the checks share is made by the first that needs it: if that fails,
    it is that check's outcome."""

    def __init__(self, document: Document, url: str, options: DrillOptions, progress: Progress) -> None:
        self._document = document
        self._url = url
        self._options = options
        self._progress = progress
        self._schema = document.schema or model.Schema(tables=[])

    def close(self) -> None:
        if "_conn" in self.__dict__:
            self._conn.close()

    @cached_property
    def _conn(self) -> Connection:
        return connect(self._url, purpose="coldstore drill")

    @cached_property
    def _likeness(self) -> Likeness:
        return Likeness(self._conn, self._schema)

    @cached_property
    def _tiers(self) -> dict[str, model.TierSummary]:
        """Empty for a chain that claims nothing and that only PostgreSQL can put together: then the restore alone compared."""
        try:
            return {t.array: t for t in summed(self._document)}
        except ChainRefused:
            return {}

    def steps(self) -> Iterator[tuple[str, Callable[[], Finding | None]]]:
        """(name, check) of all there is to try, in order."""
        yield "restore", self._restored
        for table in self._schema.tables:
            yield f"content of {table.tier}", partial(self._content, table)
        for table in self._schema.tables:
            yield f"schema of {table.tier}", partial(self._like, table)
        yield "types and sequences", self._surroundings
        for table in self._schema.tables:
            for what, attempt in _ATTEMPTS.items():
                yield f"{what} {table.tier}", partial(self._tried, table, attempt)
        for assertion in self._options.assertions:
            yield f"assertion {assertion.name}", partial(self._held, assertion)

    def _restored(self) -> Finding:
        report = restore(self._document, self._url, options=self._options.restore, progress=self._progress)
        rows = sum(t["rows"] for t in report.tables)
        return Finding([f"{rows:,} rows in {len(report.tables)} tables", *report.notes])

    def _content(self, table: model.Table) -> Finding:
        tier = self._tiers.get(table.array)
        rows, digest = table_digest(self._conn, table)
        if tier is None:
            return Finding([f"{rows:,} rows; the snapshot does not say how many there should be"])
        if rows != tier.rows:
            return Finding(problems=[f"{rows:,} rows, {tier.rows:,} in the manifest"])
        if digest != tier.digest:
            return Finding(problems=["the rows are not those that the manifest was made for"])
        return Finding([f"{rows:,} rows, the same as in the snapshot"])

    def _like(self, table: model.Table) -> Finding:
        return self._likeness.table(table)

    def _surroundings(self) -> Finding | None:
        return self._likeness.surroundings() if self._schema.types or self._schema.sequences else None

    def _tried(self, table: model.Table, attempt: Callable[[Probe], Finding | None]) -> Finding | None:
        return attempt(Probe(self._conn, table, self._schema.sequences))

    def _held(self, assertion: Assertion) -> Finding:
        problem = objection(self._url, assertion, timeout=self._options.timeout)
        return Finding(["true"], [problem] if problem else [])


# --- the record --------------------------------------------------------------------------------------------------------------------


def _record(store: Store, report: Report, signer: SigningKey | None, progress: Progress) -> None:
    """A store that may not be written to is no reason to doubt the snapshot."""
    data = model.encode_record({"format": model.FORMAT, "kind": "drill", **report.as_dict()}, signer=signer)
    try:
        for at in count(report.at):
            key = layout.drill_key(report.id, at, proven=report.proven)
            try:
                with store.create(key) as out:
                    out.write(data)
            except ObjectExists:  # two drills ended in one millisecond
                continue
            return
    except StoreError as exc:
        progress.note(f"the outcome could not be recorded in {store.url}: {exc}")
