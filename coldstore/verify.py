"""Whether snapshots are what they say: each check a sentence, all of them collected, nothing repaired.

Quick: the manifest has its checksum and its signature, agrees with itself and with the one before it, the document has the size that
it says, and what an incremental is built on is there. Deep: every frame is read, summed, opened, decompressed and cut into rows by the same
code that restores them; rows are parsed, counted and their digests compared; the frames must be, byte for byte, what those rows are written
as; a chain must come to what it claims. A sample is as deep, for a random part of the frames.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import msgspec

from coldstore.catalog import Deletion, Pointer, deletions, keys_objects, read_manifest, read_pointer, rfc3339
from coldstore.chain import Step, parent_of
from coldstore.claims import Claims, Reading
from coldstore.codec.digest import format_digest, row_digest
from coldstore.codec.pipeline import ordered_map
from coldstore.document import model
from coldstore.document.reader import cut_frame, is_frame_of, read_header
from coldstore.documents import StoredDocument, open_stored
from coldstore.errors import (
    ColdStoreError,
    CorruptDocument,
    DocumentError,
    KeyRingError,
    KeyRingUnavailable,
    NotFound,
    ObjectMissing,
    SignatureError,
)
from coldstore.keyrings.ring import KeyRing
from coldstore.ledger import Entry, all_breaks, breaks
from coldstore.progress import Progress, silent
from coldstore.storage import layout
from coldstore.storage.store import Store
from coldstore.trust import Trust

_JSON = msgspec.json.Decoder(msgspec.Raw)
_READERS = 2  # frames at once
_LOOKERS = 8  # snapshots looked at at once, which is waiting for the store


@dataclass(frozen=True, slots=True)
class Checks:
    """How much to check. `deep`: every byte. `sample`: this share of the frames, 0 to 1, chosen by `seed`. `rings` open what is sealed;
    `trust` says whose signature counts."""

    deep: bool = False
    sample: float = 0.0
    seed: int = 0
    rings: tuple[KeyRing, ...] = ()
    trust: Trust = field(default_factory=Trust)

    @property
    def reads(self) -> bool:
        return self.deep or self.sample > 0


@dataclass(slots=True)
class Verdict:
    """What was found out about one snapshot. `problems`: damage; `untrusted`, `unopened`: why its signature does not count, why no key
    ring opens it; it is good when there is none of these. `notes`: what should be known all the same. `frames`: how many were read."""

    id: str
    deep: bool
    rows: int = 0
    bytes: int = 0
    frames: int = 0
    problems: list[str] = field(default_factory=list)
    untrusted: str | None = None
    unopened: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.state == "ok"

    @property
    def state(self) -> str:
        return "damaged" if self.problems else "untrusted" if self.untrusted else "unopened" if self.unopened else "ok"

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "ok": self.ok,
            "state": self.state,
            "deep": self.deep,
            "rows": self.rows,
            "bytes": self.bytes,
            "framesRead": self.frames,
            "problems": [*self.problems, *filter(None, (self.untrusted, self.unopened))],
            "notes": self.notes,
        }


def verify(
    store: Store,
    found: Iterable[model.Manifest | ColdStoreError],
    *,
    checks: Checks | None = None,
    whole: bool = False,
    progress: Progress = silent,
) -> list[Verdict]:
    """A verdict for each snapshot, in the order given. `whole`: they are all that the store has, so that its successions can be followed
    from end to end; of fewer, each is compared with the one before it."""
    checks = checks or Checks()
    progress.start("verify")
    pointers = _pointers(store) if whole else []  # first: what a pointer names is there before it
    verdicts: list[Verdict] = []
    entries: list[Entry] = []
    sealed: list[str] = []
    chains = _Chains(store, whole=whole)

    def look(item: model.Manifest | ColdStoreError) -> tuple[Verdict, Entry | None, model.Manifest | None]:
        if isinstance(item, ColdStoreError):
            return Verdict(item.key or "?", checks.deep, problems=[str(item)]), _unreadable(item), None
        return _look(store, item, checks), Entry.of(item), item

    with closing(ordered_map(look, found, workers=_LOOKERS)) as looked:
        for verdict, entry, manifest in looked:
            if manifest is not None and checks.reads and verdict.ok:
                _read(store, manifest, verdict, checks, progress, chains)
            chains.add(manifest, entry)
            verdicts.append(verdict)
            entries += [entry] if entry else []
            sealed += [manifest.id] if manifest and manifest.sealing else []
    gone, problems = _deleted(store, checks.trust)
    problems += _misled(pointers, entries, gone)
    problems += _bad_keys(store, None if whole else sealed, checks.trust)
    broken = all_breaks([*entries, *gone]) if whole else _single_breaks(store, entries, gone)
    for verdict in verdicts:
        verdict.problems += broken.pop(verdict.id, [])
    chains.judge(verdicts)
    verdicts += [Verdict(snapshot, checks.deep, problems=found) for snapshot, found in broken.items()]  # of deleted ones
    verdicts += [Verdict(key, checks.deep, problems=[problem]) for key, problem in problems]
    return verdicts


def verify_one(
    store: Store,
    manifest: model.Manifest,
    *,
    deep: bool = False,
    checks: Checks | None = None,
    progress: Progress = silent,
) -> Verdict:
    """One snapshot by itself, without regard to the one before it. Never raises for what is wrong with it; what is wrong with the store
    or with a key service (no access, no network) it does raise."""
    checks = checks or Checks(deep=deep)
    verdict = _look(store, manifest, checks)
    if checks.reads and verdict.ok:
        progress.start(manifest.id, total_bytes=manifest.bytes)
        _read(store, manifest, verdict, checks, progress, _Chains(store, whole=False))
    return verdict


# --- quick -------------------------------------------------------------------------------------------------------------------------


def _look(store: Store, manifest: model.Manifest, checks: Checks) -> Verdict:
    verdict = Verdict(manifest.id, checks.deep, rows=sum(t.rows for t in manifest.tiers), bytes=manifest.bytes)
    verdict.problems += _disagreements(manifest)
    try:
        note = checks.trust.check(manifest.signature, what=manifest.id)
        verdict.notes += [note] if note else []
    except SignatureError as exc:
        verdict.untrusted = str(exc)
    what = "a part of the document" if manifest.parts else "the document"
    for key, expected in manifest.objects().items():
        try:
            size = store.stat(key).size
        except ObjectMissing:
            verdict.problems.append(f"{what} {key} is missing")
            continue
        if size != expected:
            verdict.problems.append(f"{what} has {size} bytes, the manifest says {expected}")
    return verdict


def _disagreements(manifest: model.Manifest) -> list[str]:
    """Where a manifest contradicts itself."""
    problems = []
    offset = 0
    for frame in manifest.frames:
        if frame.offset != offset:
            problems.append(f"a frame starts at {frame.offset}, the one before ends at {offset}")
            break
        offset += frame.length
    if not problems and offset != manifest.stored_bytes:
        problems.append(f"the frames have {offset} bytes together, the document {manifest.stored_bytes}")
    if sum(f.plain for f in manifest.frames) != manifest.bytes:
        problems.append("the frames' plain sizes do not add up to the document's")
    for tier in manifest.tiers:
        rows = sum(f.rows for f in manifest.frames if f.tier == tier.array)
        if rows != tier.rows:
            problems.append(f"{tier.tier}: the frames hold {rows} rows, the manifest says {tier.rows}")
    if manifest.parts is not None and sum(manifest.parts) != manifest.stored_bytes:
        problems.append("the parts' sizes do not add up to the document's")
    arrays = model.arrays(manifest)
    if arrays != [t.array for t in manifest.tiers]:
        problems.append("the tiers are not those of the schema")
    if [None, *arrays] != [array for array, _ in groupby(f.tier for f in manifest.frames)] or manifest.frames[0].rows:
        problems.append("the frames are not one for the header and then each tier's")
    return problems


# --- deep --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Read:
    """One frame, read through."""

    tier: str | None
    plain: bytes
    rows: int
    digest: int


def _read(store: Store, manifest: model.Manifest, verdict: Verdict, checks: Checks, progress: Progress, chains: _Chains) -> None:
    try:
        document = open_stored(store, manifest, rings=checks.rings)
        if checks.deep:
            reading = chains.claims.read(document)
            verdict.problems += _read_through(document, verdict, progress, reading)
            if verdict.ok:
                chains.problems += chains.claims.judge(document, reading)
        else:
            verdict.problems += _sample(document, verdict, checks, progress)
    except KeyRingUnavailable:
        raise
    except KeyRingError as exc:
        verdict.unopened = str(exc)
    except (DocumentError, SignatureError) as exc:  # the latter of keys that were added
        verdict.problems.append(str(exc))


def _read_frame(document: StoredDocument, number: int) -> _Read:
    frames = document.manifest.frames
    array = frames[number].tier
    plain = document.frame(number)
    if array is None:
        return _Read(None, plain, 0, 0)
    rows, breaks = cut_frame(plain)
    try:
        for row in rows:
            _JSON.decode(row)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise CorruptDocument(f"a row of {array} is not JSON: {exc}", key=document.manifest.document) from exc
    ends = number == len(frames) - 1
    opens, closes = frames[number - 1].tier != array, ends or frames[number + 1].tier != array
    if not is_frame_of(plain, rows, breaks, array, opens=opens, closes=closes, ends=ends):
        key = document.manifest.document
        raise CorruptDocument(f"frame {number} of {key} is not the lines of its rows", key=key)
    return _Read(array, plain, len(rows), sum(map(row_digest, rows)))


def _read_through(document: StoredDocument, verdict: Verdict, progress: Progress, reading: Reading | None) -> list[str]:
    manifest = document.manifest
    plain = hashlib.sha256()
    rows = {t.array: 0 for t in manifest.tiers}
    digests = {t.array: 0 for t in manifest.tiers}
    problems: list[str] = []
    with closing(ordered_map(lambda n: _read_frame(document, n), range(len(manifest.frames)), workers=_READERS)) as frames:
        for read in frames:
            plain.update(read.plain)
            if read.tier is None:
                problems += _other_header(manifest, read.plain)
            else:
                rows[read.tier] += read.rows
                digests[read.tier] += read.digest
                if reading is not None:
                    reading.add(read.tier, read.plain)
            verdict.frames += 1
            progress.advance(rows=read.rows, size=len(read.plain))
    if plain.hexdigest() != document.plain_sha256:
        problems.append("the document's SHA-256 is not the manifest's")
    for tier in document.tiers:
        if rows[tier.array] != tier.rows:
            problems.append(f"{tier.tier}: {rows[tier.array]} rows, the manifest says {tier.rows}")
        elif format_digest(digests[tier.array]) != tier.digest:
            problems.append(f"{tier.tier}: the rows are not those the manifest was made for")
    return problems


def _other_header(manifest: model.Manifest, plain: bytes) -> list[str]:
    header = read_header(plain.removesuffix(b"\n"), key=manifest.document)
    if (header.id, header.snapshot_at, header.uid, header.workspace) == (
        manifest.id,
        manifest.snapshot_at,
        manifest.uid,
        manifest.workspace,
    ):
        return []
    return [f"the document calls itself {header.id}, the manifest {manifest.id}"]


def _sample(document: StoredDocument, verdict: Verdict, checks: Checks, progress: Progress) -> list[str]:
    frames = document.manifest.frames
    chance = random.Random(f"{checks.seed} {document.name}")  # noqa: S311 — which frames are looked at is no secret
    chosen = [n for n in range(len(frames)) if chance.random() < checks.sample]
    problems = []
    with closing(ordered_map(lambda n: (n, _read_frame(document, n)), chosen, workers=_READERS)) as read_frames:
        for number, read in read_frames:
            if read.rows != frames[number].rows:
                problems.append(f"frame {number} holds {read.rows} rows, the manifest says {frames[number].rows}")
            verdict.frames += 1
            progress.advance(rows=read.rows, size=len(read.plain))
    return problems


# --- chains ------------------------------------------------------------------------------------------------------------------------


class _Chains:
    """What incrementals are built on. `problems`: (id, sentence) of what does not come to what it claims."""

    def __init__(self, store: Store, *, whole: bool) -> None:
        self.claims = Claims()
        self.problems: list[tuple[str, str]] = []
        self._store = store
        self._whole = whole
        self._steps: dict[str, Step | None] = {}

    def add(self, manifest: model.Manifest | None, entry: Entry | None) -> None:
        if manifest is not None:
            self._steps[manifest.id] = Step.of(manifest)
        elif entry is not None:
            self._steps[entry.id] = Step.unreadable(entry.id)

    def judge(self, verdicts: Sequence[Verdict]) -> None:
        """Whatever is wrong with a snapshot is wrong with all that is built on it."""
        by_id = {v.id: v for v in verdicts}
        for snapshot, sentence in self.problems:
            by_id[snapshot].problems.append(sentence)
        for step in sorted(filter(None, list(self._steps.values())), key=lambda s: s.at):
            verdict = by_id.get(step.id)
            if verdict is None or step.kind != model.INCREMENTAL:
                continue
            parent, problem = parent_of(step, self._lookup)
            under = by_id.get(parent.id) if parent else None
            if problem is None and under is not None and under.problems:
                problem = f"{under.id}, on which it is built, is damaged"
            verdict.problems += [problem] if problem else []
        for snapshot in self.claims.unjudged():
            if by_id[snapshot].ok:
                by_id[snapshot].notes.append("what it comes to, with all it is built on, was not compared: not all of that was read")

    def _lookup(self, snapshot: str) -> Step | None:
        if snapshot not in self._steps and not self._whole:
            try:
                self._steps[snapshot] = Step.of(read_manifest(self._store, snapshot))
            except NotFound:
                self._steps[snapshot] = None
            except (DocumentError, SignatureError):
                self._steps[snapshot] = Step.unreadable(snapshot)
        return self._steps.get(snapshot)


# --- successions -------------------------------------------------------------------------------------------------------------------


def _unreadable(error: ColdStoreError) -> Entry | None:
    key = layout.parse_key(error.key or "")
    return Entry(key.id, None) if key else None


def _deleted(store: Store, trust: Trust) -> tuple[list[Entry], list[tuple[str, str]]]:
    """Entries of what deletion records name, and the records that are no good."""
    entries: list[Entry] = []
    problems: list[tuple[str, str]] = []
    with closing(deletions(store)) as records:
        for key, record in records:
            try:
                if isinstance(record, ColdStoreError):
                    raise record
                trust.check(record.signature, what=key)
                entries += list(_entries(record))
            except ColdStoreError as exc:
                problems.append((key, str(exc)))
    return entries, problems


def _entries(record: Deletion) -> Iterator[Entry]:
    return (Entry(d.id, d.checksum, d.previous, d.seconds * 1000, deleted=True) for d in record.snapshots)


def _pointers(store: Store) -> list[tuple[str, Pointer]]:
    found = (o.key for prefix in (layout.LATEST, layout.CHECKPOINTS) for o in store.list(prefix))
    with closing(ordered_map(lambda key: (key, read_pointer(store, key)), found, workers=_LOOKERS)) as read:
        return [(key, pointer) for key, pointer in read if pointer is not None]


def _misled(pointers: Iterable[tuple[str, Pointer]], entries: Iterable[Entry], gone: Iterable[Entry]) -> list[tuple[str, str]]:
    """Pointers that name what is not there: the newest snapshot, which no other one names, was removed or replaced."""
    known = {e.id: e for e in [*gone, *entries]}
    problems = []
    for key, pointer in pointers:
        entry = known.get(pointer.id)
        if entry is None:
            problems.append((key, f"it names {pointer.id}, which is gone, and no deletion record says so"))
        elif not entry.deleted and (entry.checksum not in {None, pointer.checksum} or _askew(pointer, entry)):
            problems.append((key, f"it names {pointer.id}, and means another one than is there"))
        if pointer.head is not None and pointer.head.id not in known:
            problems.append((key, f"it takes note of {pointer.head.id}, which is gone, and no deletion record says so"))
    return problems


def _askew(pointer: Pointer, entry: Entry) -> bool:
    there = (rfc3339(entry.began), layout.manifest_key(entry.id))
    return (pointer.snapshot_at, pointer.manifest) != there or not pointer.document.startswith(layout.document_key(entry.id))


def _bad_keys(store: Store, snapshots: Iterable[str] | None, trust: Trust) -> list[tuple[str, str]]:
    """Objects with keys that were added to these snapshots, or to any, and that are no good."""
    if snapshots is None:
        parsed = ((o.key, layout.parse_key(o.key)) for o in store.list(layout.SNAPSHOTS))
        found = [(key, p.id) for key, p in parsed if p and p.is_keys]
    else:
        found = [(key, snapshot) for snapshot in snapshots for key in keys_objects(store, snapshot)]

    def look(item: tuple[str, str]) -> tuple[str, str] | None:
        key, snapshot = item
        try:
            _, signature = model.decode_signed_keys(store.read(key), snapshot, key=key)
            trust.check(signature, what=key)
        except ObjectMissing:  # it was deleted meanwhile
            return None
        except (DocumentError, SignatureError) as exc:
            return key, str(exc)
        return None

    with closing(ordered_map(look, found, workers=_LOOKERS)) as looked:
        return [problem for problem in looked if problem]


def _single_breaks(store: Store, entries: Sequence[Entry], gone: Sequence[Entry]) -> dict[str, list[str]]:
    known = {e.id: e for e in [*gone, *entries]}

    def lookup(snapshot: str) -> Entry | None:
        if snapshot not in known:
            try:
                known[snapshot] = Entry.of(read_manifest(store, snapshot))
            except NotFound:
                return None
            except DocumentError:
                known[snapshot] = Entry(snapshot, None)
        return known[snapshot]

    return {e.id: found for e in entries if (found := breaks(e, lookup))}


def orphans(store: Store, manifests: Iterable[str]) -> list[str]:
    """Keys below `snapshots/` that no manifest in `manifests` (ids) names: what a crash between document and manifest leaves behind."""
    known = set(manifests)
    found = []
    for item in store.list(layout.SNAPSHOTS):
        key = layout.parse_key(item.key)
        if key is None or (not key.is_manifest and key.id not in known):
            found.append(item.key)
    return found
