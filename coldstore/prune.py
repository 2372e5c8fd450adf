"""Deletes the snapshots that a retention policy has no reason to keep, and sweeps what dead processes left behind.

In this order:
1. every manifest is read, and the policy decides; nothing is touched before all of it is known, and a dry run ends here;
2. what goes is read once more: one that is gone already is passed over, one that is another now stays;
3. a deletion record of a batch is written, pointers move away from it, and then each snapshot goes, what is built on another one first;
4. objects that a crash left without a manifest go, and uploads and temporary files that nobody finished, all older than the grace age.

One that cannot be deleted stops no other but those it is built on. Killed at any point, or run twice at the same time, it leaves nothing
that is listed and not whole; the next run goes on. Refuses to decide while a manifest cannot be fetched, or is of a newer format: what it
is built on is not known. A damaged one is never deleted, nor is an object that coldstore would not have written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby, islice
from typing import Any, TypeVar

from coldstore import catalog
from coldstore.catalog import rfc3339
from coldstore.codec.pipeline import ordered_map
from coldstore.codec.sign import SigningKey
from coldstore.document import model
from coldstore.errors import ColdStoreError, DocumentError, NotFound, ObjectLocked, ObjectMissing, SignatureError, UnsupportedFormat
from coldstore.progress import Progress, silent
from coldstore.retention import Decision, Kept, Policy, decide
from coldstore.storage import layout
from coldstore.storage.store import Store, Sweeps
from coldstore.tiers import Scope
from coldstore.trust import Trust
from coldstore.verify import orphans

Item = TypeVar("Item")

_WORKERS = 8
_BATCH = 200  # snapshots in one deletion record: about 60 kB
_HOUR = 3_600_000
_DOCUMENT = re.compile(r"\.json(\.gz|\.zst)?(\.enc)?(\.\d{4,})?")


@dataclass(slots=True)
class Report:
    """What was decided and what came of it. `orphans`: keys of objects without a manifest, `unfinished`: temporary files and uploads, both
    older than the grace age; `strangers`: keys that are none of coldstore's, and stay. `deleted`, `swept`: what is gone; `locked`,
    `failures`: what should be and is not, and why. In a dry run the last four are empty."""

    dry_run: bool
    decisions: Sequence[Decision]
    orphans: Sequence[str] = ()
    strangers: Sequence[str] = ()
    unfinished: Sequence[str] = ()
    deleted: list[str] = field(default_factory=list)
    swept: list[str] = field(default_factory=list)
    locked: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.failures

    @property
    def going(self) -> list[Kept]:
        return [d.snapshot for d in self.decisions if not d.keep]

    def failed(self, what: str, error: ColdStoreError) -> None:
        (self.locked if isinstance(error, ObjectLocked) else self.failures)[what] = str(error)

    def kept(self, snapshot: str) -> bool:
        """Whether it was to be deleted and is still there."""
        return snapshot in self.failures or snapshot in self.locked

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "dryRun": self.dry_run,
            "snapshots": [
                {"id": d.snapshot.id, "snapshotAt": rfc3339(d.snapshot.at), "keep": d.keep, "reasons": list(d.reasons)}
                for d in self.decisions
            ],
            "orphans": list(self.orphans),
            "strangers": list(self.strangers),
            "unfinished": list(self.unfinished),
            "deleted": self.deleted,
            "swept": self.swept,
            "locked": self.locked,
            "failures": self.failures,
        }


def prune(
    store: Store,
    policy: Policy,
    *,
    now: int,
    scope: Scope | None = None,
    grace_hours: int = 24,
    dry_run: bool = True,
    signer: SigningKey | None = None,
    trust: Trust | None = None,
    progress: Progress = silent,
) -> Report:
    """Every scope by itself, or only one; what dead processes left behind is looked for in the whole store or not at all. `now`:
    milliseconds since the epoch. `trust`: where it requires signatures, nobody drives good snapshots out by adding newer ones without.
    Never raises for a deletion that failed: the report names it."""
    progress.start("read manifests")
    snapshots, checksums = _snapshots(store, scope, trust or Trust(), progress)
    report = Report(dry_run, decide(snapshots, policy, now=now))
    before = now - grace_hours * _HOUR
    if scope is None:
        report.orphans, report.strangers = _strays(store, before)
    if not dry_run:
        progress.start("delete")
        _delete(store, report, checksums, now=now, signer=signer, progress=progress)
        report.swept += _each(lambda key: _delete_orphan(store, key), report.orphans, report)
    if scope is None:
        _sweep(store, report, before)
    return report


# --- looking -----------------------------------------------------------------------------------------------------------------------


def _snapshots(store: Store, scope: Scope | None, trust: Trust, progress: Progress) -> tuple[list[Kept], dict[str, str]]:
    """Every snapshot as retention sees it, and the checksum of each manifest that could be read."""
    snapshots: list[Kept] = []
    checksums: dict[str, str] = {}
    for found in catalog.manifests(store, scope=scope):
        progress.advance()
        if isinstance(found, model.Manifest):
            snapshots.append(kept_of(found, trust))
            checksums[found.id] = found.checksum
        elif (unreadable := _unreadable(found)) is not None:
            snapshots.append(unreadable)
    return snapshots, checksums


def kept_of(manifest: model.Manifest, trust: Trust) -> Kept:
    """A snapshot as retention sees it."""
    scope, at = layout.parse_id(manifest.id)
    if manifest.kind == model.DOCUMENTS:  # a policy of its own: an agent that saves every minute must not drive its tables' snapshots out
        scope += f" {model.DOCUMENTS}"
    doubt = None
    try:
        trust.check(manifest.signature, what=manifest.id)
    except SignatureError:
        doubt = "no trusted key signed it"
    return Kept(
        id=manifest.id,
        scope=scope,
        at=at,
        good=manifest.suspect is None,
        doubt=doubt,
        label=manifest.label,
        parent=manifest.parent.id if manifest.parent else None,
        locked_until=_milliseconds(manifest.retained.until) if manifest.retained else None,
    )


def _unreadable(error: ColdStoreError) -> Kept | None:
    """A damaged manifest is kept; one that went meanwhile is none. Raises whatever leaves open what is there."""
    if isinstance(error, NotFound) and isinstance(error.__cause__, ObjectMissing):
        return None
    key = layout.parse_key(error.key or "")
    if key is None or isinstance(error, UnsupportedFormat) or not isinstance(error, DocumentError | NotFound | SignatureError):
        raise error
    return Kept(id=key.id, scope=key.scope_name, at=key.timestamp, doubt="its manifest is damaged")


def _milliseconds(until: str) -> int:
    return int(datetime.fromisoformat(until).timestamp() * 1000)


def _strays(store: Store, before: int) -> tuple[list[str], list[str]]:
    """(ours that are old enough to be nobody's work in progress, strangers')."""
    ours, strangers = [], []
    for key in orphans(store, (k.id for k in catalog.keys(store))):
        parsed = layout.parse_key(key)
        if parsed is None or not (parsed.is_keys or _DOCUMENT.fullmatch(parsed.suffix)):
            strangers.append(key)
        elif parsed.timestamp < before:
            ours.append(key)
    return ours, strangers


# --- deleting ----------------------------------------------------------------------------------------------------------------------


def _delete(store: Store, report: Report, checksums: Mapping[str, str], *, now: int, signer: SigningKey | None, progress: Progress) -> None:
    needed: set[str] = set()  # what something that is still there is built on
    for _, group in groupby(report.going, key=lambda s: s.scope):
        while batch := list(islice(group, _BATCH)):
            found = _found(store, batch, checksums, report)
            try:
                if found:
                    catalog.record_deletion(store, list(found.values()), now=now, signer=signer)
            except ColdStoreError as exc:
                for name in found:
                    report.failed(name, exc)
            for wave in _waves(batch):
                for snapshot in wave:
                    if snapshot.id in needed:
                        report.failures[snapshot.id] = "something that is built on it is still there"
                going = [found[s.id] for s in wave if s.id in found and not report.kept(s.id)]
                for manifest in _each(lambda m: catalog.remove(store, m), going, report, name=lambda m: m.id):
                    report.deleted.append(manifest.id)
                    progress.advance()
                needed.update(s.parent for s in wave if s.parent is not None and report.kept(s.id))


def _waves(batch: Sequence[Kept]) -> Iterator[list[Kept]]:
    """All of them, each before what it is built on."""
    left = list(batch)
    while left:
        parents = {s.parent for s in left}
        wave = [s for s in left if s.id not in parents] or left
        yield wave
        left = [s for s in left if s not in wave]


def _found(store: Store, batch: Sequence[Kept], checksums: Mapping[str, str], report: Report) -> dict[str, model.Manifest]:
    """The manifests of those that are still there and are still what was decided on, newest first."""
    found: dict[str, model.Manifest] = {}

    def look(snapshot: Kept) -> None:
        try:
            manifest = catalog.read_manifest(store, snapshot.id)
        except NotFound as exc:
            if isinstance(exc.__cause__, ObjectMissing):  # somebody else was quicker
                return
            raise
        if manifest.checksum != checksums[snapshot.id]:
            raise ColdStoreError(f"{snapshot.id} is not the one any more that was decided on", key=layout.manifest_key(snapshot.id))
        found[snapshot.id] = manifest

    for _ in _each(look, batch, report, name=lambda s: s.id):
        pass
    return {s.id: found[s.id] for s in batch if s.id in found}


def _delete_orphan(store: Store, key: str) -> None:
    """Unless it became a snapshot meanwhile."""
    parsed = layout.parse_key(key)
    try:
        store.stat(layout.manifest_key(parsed.id if parsed else ""))
    except ObjectMissing:
        store.delete(key)


def _sweep(store: Store, report: Report, before: int) -> None:
    if not isinstance(store, Sweeps):
        return
    try:
        report.unfinished = store.sweep(before=datetime.fromtimestamp(before / 1000, UTC), dry_run=report.dry_run)
    except ColdStoreError as exc:
        report.failed("uploads and temporary files", exc)
    else:
        report.swept += [] if report.dry_run else report.unfinished


def _each(work: Callable[[Item], object], items: Iterable[Item], report: Report, *, name: Callable[[Item], str] = str) -> Iterator[Item]:
    """Those for which `work` succeeded; the others stand in the report."""

    def attempt(item: Item) -> tuple[Item, ColdStoreError | None]:
        try:
            work(item)
        except ColdStoreError as exc:
            return item, exc
        return item, None

    for item, error in ordered_map(attempt, items, workers=_WORKERS):
        if error is None:
            yield item
        else:
            report.failed(name(item), error)
