"""A full snapshot and the incrementals that follow it, as one document.

It can be read in two ways. `parts` gives the rows that are left in the end, for whoever shows, compares or writes them: from the newest
link to the oldest, where a key that a later link has named does not count any more. What that takes is the set of keys that changed; the
full snapshot streams by. `nets` gives what changed, gathered over many links, for a restore that has the full snapshot in tables already
and lets PostgreSQL take the old rows out.

Links hold little each, and there may be hundreds: they are fetched by several threads. Every link must fit what its manifest says, and be
of the same tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, groupby
from operator import attrgetter

from coldstore.catalog import manifests, scope_of
from coldstore.chain import Step, plan, plan_at
from coldstore.codec.digest import MODULUS, format_digest, row_digest
from coldstore.codec.pipeline import ordered_map
from coldstore.document import model
from coldstore.document.keys import Deletions, KeyReader
from coldstore.document.reader import frame_rows
from coldstore.documents import Document, Owner, Part, StoredDocument, open_stored
from coldstore.errors import (
    ChainBroken,
    ChainRefused,
    ColdStoreError,
    ContentMismatch,
    CorruptDocument,
    DocumentError,
    NotFound,
    ObjectMissing,
    SignatureError,
)
from coldstore.keyrings.ring import KeyRing
from coldstore.storage import layout
from coldstore.storage.store import Store
from coldstore.tiers import Scope
from coldstore.trust import Trust

_FETCHERS = 8  # requests for incrementals at once: waiting for the store, mostly
_AT_ONCE = 1 << 20  # plain bytes that one of them asks for, if its frames are not larger


@dataclass(slots=True)
class Net:
    """What became of one array over some links. `reset`: nothing that was there before counts. `changes`: key → the row that has it now,
    or None where no row (of the owner) does."""

    array: str
    reset: bool = False
    changes: dict[bytes, bytes | None] = field(default_factory=dict)
    size: int = 0

    def put(self, key: bytes, row: bytes | None) -> None:
        self.size += len(key) + len(row or b"")
        self.changes[key] = row


@dataclass(frozen=True, slots=True)
class _Frame:
    """Rows of one frame of the `link`th link; without an array it only says that the link begins."""

    link: int
    array: str | None
    rows: Sequence[bytes] = ()
    size: int = 0


@dataclass(frozen=True, slots=True)
class ChainDocument:
    """`links`: the full one first, at least one incremental after it."""

    links: tuple[StoredDocument, ...]

    def __post_init__(self) -> None:
        for link in self.links:
            if _shape(link.manifest) != _shape(self.head.manifest):
                raise ChainBroken(
                    f"{self.name} is of other tables than {link.name}, on which it is built", key=self.name, hint="Use a full snapshot."
                )

    @property
    def head(self) -> StoredDocument:
        return self.links[-1]

    @property
    def full(self) -> StoredDocument:
        return self.links[0]

    @property
    def manifest(self) -> model.Manifest:
        return self.head.manifest

    @property
    def name(self) -> str:
        return self.head.name

    @property
    def scope(self) -> Scope:
        return self.head.scope

    @property
    def snapshot_at(self) -> str | None:
        return self.head.snapshot_at

    @property
    def schema(self) -> model.Schema:
        return self.head.manifest.schema

    @property
    def tiers(self) -> list[model.TierSummary] | None:
        """What the last link claims that all of them come to; None where it does not know."""
        return self.head.state

    @property
    def size(self) -> int:
        return sum(link.manifest.bytes for link in self.links)

    @property
    def steps(self) -> list[Step]:
        return [Step.of(link.manifest) for link in self.links]

    def readers(self, arrays: Collection[str]) -> dict[str, KeyReader]:
        """Of those arrays in which an incremental names keys."""
        touched = {f.tier for link in self.links[1:] for f in link.manifest.frames if f.rows}
        named = [t for t in self.schema.tables if t.array in arrays and (t.array in touched or model.DELETED in touched)]
        return {t.array: KeyReader(t, self.schema.types) for t in named if t.key or t.array in touched}

    # --- the rows in the end -------------------------------------------------------------------------------------------------------

    def parts(self, wanted: Iterable[str], only: Owner | None = None) -> Generator[Part]:
        """As of any document. Raises `ChainRefused` where only PostgreSQL can tell whether two keys are the same."""
        arrays = set(wanted)
        readers = self.readers(arrays)
        for reader in readers.values():
            if not reader.exact:
                raise ChainRefused(
                    f"only PostgreSQL can tell whether two keys of {reader.array} are the same, and so put {self.name} together",
                    hint="Restore it into a database.",
                )
        first = self._first(arrays)
        named: dict[str, set[bytes]] = {array: set() for array in arrays}
        numbers = range(len(self.links) - 1, 0, -1)
        with closing(self._frames(numbers, arrays)) as frames:
            for number, of_link in groupby(frames, key=attrgetter("link")):
                here = _Named(self.links[number].name)
                for array, key, row, size in _entries(of_link, readers):
                    if number >= first[array] and key not in named[array]:
                        here.add(array, key, row if only is None or row is None or only.owns(array, row) else None, size)
                yield from here.parts()
                for array, keys in here.keys.items():
                    named[array] |= keys
        yield from self._rest(arrays, first, readers, named, only)

    def _first(self, arrays: Collection[str]) -> dict[str, int]:
        """array → the link from which on its rows count."""
        return {a: max((n for n, link in enumerate(self.links) if a in link.manifest.resets), default=0) for a in arrays}

    def _rest(
        self,
        arrays: Collection[str],
        first: dict[str, int],
        readers: dict[str, KeyReader],
        named: dict[str, set[bytes]],
        only: Owner | None,
    ) -> Iterator[Part]:
        """What of the full snapshot nobody named since."""

        def rows(part: Part) -> Iterable[bytes]:
            gone = named[part.array]
            if not gone:
                return part.rows()
            key = readers[part.array]
            return (row for row in part.rows() if key(bytes(row)) not in gone)

        left = [a for a in arrays if first[a] == 0]
        for part in self.full.parts(left, only):
            yield Part(part.array, part.size, partial(rows, part))

    # --- what changed --------------------------------------------------------------------------------------------------------------

    def nets(self, wanted: Iterable[str], only: Owner | None = None, *, size: int) -> Generator[list[Net]]:
        """What the incrementals change, to be carried out in this order; of the `Net`s of one list, each is of another array. About `size`
        bytes are held at once. Where only PostgreSQL can tell whether two keys are the same, each link stands by itself."""
        arrays = set(wanted)
        readers = self.readers(arrays)
        held: dict[str, Net] = {}

        def net(array: str) -> Net:
            return held.setdefault(array, Net(array))

        with closing(self._frames(range(1, len(self.links)), arrays)) as frames:
            for number, of_link in groupby(frames, key=attrgetter("link")):
                here = _Named(self.links[number].name)
                for array in arrays.intersection(self.links[number].manifest.resets):
                    held[array] = Net(array, reset=True)
                for array, key, row, _ in _entries(of_link, readers):
                    here.name(array, key)
                    net(array).put(key, row if only is None or row is None or only.owns(array, row) else None)
                    if sum(n.size for n in held.values()) >= size:
                        yield _taken(held, list(held))
                if alone := [a for a in held if a in readers and not readers[a].exact]:
                    yield _taken(held, alone)
        if held:
            yield _taken(held, list(held))

    # --- frames --------------------------------------------------------------------------------------------------------------------

    def _frames(self, numbers: Iterable[int], arrays: Collection[str]) -> Generator[_Frame]:
        """Of these links in turn, compared with what each one's manifest says. Those of one link stand together."""

        def places() -> Iterator[tuple[int, list[int]]]:
            for number in numbers:
                yield number, []
                frames = self.links[number].manifest.frames
                wanted = [n for n, f in enumerate(frames) if f.rows and (f.tier in arrays or f.tier == model.DELETED)]
                yield from ((number, together) for together in _together(frames, wanted))

        def fetch(place: tuple[int, list[int]]) -> list[_Frame]:
            number, wanted = place
            link = _held(self.links[number], wanted)
            frames = link.manifest.frames
            found = [_Frame(number, frames[n].tier, list(frame_rows(link.frame(n))), frames[n].plain) for n in wanted]
            return found or [_Frame(number, None)]

        with closing(ordered_map(fetch, places(), workers=_FETCHERS)) as fetched:
            for number, of_link in groupby(chain.from_iterable(fetched), key=attrgetter("link")):
                yield from _compared(self.links[number], of_link)


def _together(frames: Sequence[model.Frame], wanted: Iterable[int]) -> Iterator[list[int]]:
    """Frames that one request may fetch: most links are small, and asking is what takes the time."""
    held: list[int] = []
    size = 0
    for number in wanted:
        if held and size + frames[number].plain > _AT_ONCE:
            yield held
            held, size = [], 0
        held.append(number)
        size += frames[number].plain
    if held:
        yield held


def _held(link: StoredDocument, wanted: Sequence[int]) -> StoredDocument:
    """The same with these frames fetched already."""
    if len(wanted) < 2 or link.manifest.parts is not None:
        return link
    first, last = (link.manifest.frames[n] for n in (wanted[0], wanted[-1]))
    with suppress(ObjectMissing):  # whoever reads a frame says it better
        data = link.store.read(link.manifest.document, start=first.offset, length=last.offset + last.length - first.offset)
        return replace(link, store=_Range(first.offset, data))
    return link


@dataclass(frozen=True, slots=True)
class _Range:
    """A part of a document in the place of its store."""

    offset: int
    data: bytes

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:  # noqa: ARG002 — there is but one
        first = start - self.offset
        return self.data[first:] if length is None else self.data[first : first + length]


class _Named:
    """The keys that one link names, and the rows that it has for them."""

    def __init__(self, link: str) -> None:
        self._link = link
        self.keys: dict[str, set[bytes]] = {}
        self._rows: dict[str, list[bytes]] = {}
        self._sizes: Counter[str] = Counter()

    def name(self, array: str, key: bytes) -> None:
        keys = self.keys.setdefault(array, set())
        if key in keys:
            raise CorruptDocument(f"{self._link} names a key of {array} twice", key=self._link, hint="Use another snapshot.")
        keys.add(key)

    def add(self, array: str, key: bytes, row: bytes | None, size: int) -> None:
        self.name(array, key)
        self._sizes[array] += size
        if row is not None:
            self._rows.setdefault(array, []).append(row)

    def parts(self) -> Iterator[Part]:
        for array, rows in self._rows.items():
            yield Part(array, self._sizes[array], partial(_same, rows))


def _same(rows: list[bytes]) -> list[bytes]:
    return rows


def _taken(held: dict[str, Net], arrays: Iterable[str]) -> list[Net]:
    return [held.pop(array) for array in arrays]


def _entries(frames: Iterable[_Frame], readers: dict[str, KeyReader]) -> Iterator[tuple[str, bytes, bytes | None, int]]:
    """(array, key, row or None where it is deleted, bytes) of all that one link says."""
    deletion = Deletions(readers)
    for frame in frames:
        if frame.array == model.DELETED:
            for line in frame.rows:
                if (found := deletion(line)) is not None:
                    yield *found, None, len(line)
        elif frame.array is not None:
            key = readers[frame.array]
            for row in frame.rows:
                yield frame.array, key(row), row, len(row)


def _compared(link: StoredDocument, frames: Iterable[_Frame]) -> Iterator[_Frame]:
    rows: Counter[str] = Counter()
    digests: Counter[str] = Counter()
    for frame in frames:
        if frame.array is not None:
            rows[frame.array] += len(frame.rows)
            digests[frame.array] += sum(map(row_digest, frame.rows))
        yield frame
    for tier in link.tiers:
        if tier.array in rows and (tier.rows, tier.digest) != (rows[tier.array], format_digest(digests[tier.array])):
            raise ContentMismatch(
                f"{link.name} holds {rows[tier.array]} rows of {tier.tier}, or other ones, where its manifest says {tier.rows}",
                hint="Use another snapshot.",
            )


def _shape(manifest: model.Manifest) -> dict[str, object]:
    """What of its tables all links of a chain must share."""
    return {
        t.array: (t.table, t.key, t.uid_column, t.workspace_column, t.json_null_key, [(c.name, c.type, c.form) for c in t.columns])
        for t in manifest.schema.tables
    }


def summed(document: Document) -> list[model.TierSummary]:
    """Rows and digest of each tier: what the document says of itself, or else what is in it."""
    if document.tiers is not None or document.schema is None:
        return document.tiers or []
    rows: Counter[str] = Counter()
    digests: Counter[str] = Counter()
    with closing(document.parts([t.array for t in document.schema.tables])) as parts:
        for part in parts:
            for row in part.rows():
                rows[part.array] += 1
                digests[part.array] += row_digest(row)
    return [
        model.TierSummary(tier=t.tier, array=t.array, rows=rows[t.array], digest=format_digest(digests[t.array] % MODULUS))
        for t in document.schema.tables
    ]


# --- out of a store ------------------------------------------------------------------------------------------------------------------


def open_whole(
    store: Store, manifest: model.Manifest, *, rings: Sequence[KeyRing] = (), trust: Trust | None = None
) -> StoredDocument | ChainDocument:
    """A snapshot ready to be read, with all it is built on. Raises `ChainBroken`; a `SignatureError` where one is required of any link; a
    `KeyRingError` when no ring opens one."""
    trust = trust or Trust()
    found = links_of(store, manifest)
    for link in found:
        trust.check(link.signature, what=link.id)
    if len(found) == 1:
        return open_stored(store, manifest, rings=rings)
    with closing(ordered_map(lambda m: open_stored(store, m, rings=rings), found, workers=_FETCHERS)) as opened:
        return ChainDocument(tuple(opened))


def links_of(store: Store, manifest: model.Manifest) -> list[model.Manifest]:
    """The manifests of a snapshot and of all it is built on, the full one first. One that is not incremental stands for itself."""
    if manifest.kind != model.INCREMENTAL:
        return [manifest]
    seen = {manifest.id: manifest}
    steps = _steps(store, scope_of(manifest), before=manifest.id, seen=seen)
    return [seen[step.id] for step in plan(_first_and(Step.of(manifest), steps), manifest.id)]


def nearest(store: Store, scope: Scope, moment: int) -> model.Manifest:
    """The newest good snapshot of a scope that is not later than `moment`, milliseconds since the epoch, and whose chain is whole. Raises
    `NotFound` or `ChainBroken`."""
    seen: dict[str, model.Manifest] = {}
    edge = layout.snapshot_id(scope, moment + 1)
    try:
        found = plan_at(_steps(store, scope, before=edge, seen=seen), moment, whose=str(scope))
    except NotFound:
        found = plan_at(_steps(store, scope, before=None, seen=seen), moment, whose=str(scope))  # with what there is later, for the hint
    return seen[found[-1].id]


def _first_and(first: Step, rest: Iterator[Step]) -> Iterator[Step]:
    yield first
    yield from rest


def _steps(store: Store, scope: Scope, *, before: str | None, seen: dict[str, model.Manifest]) -> Iterator[Step]:
    for item in manifests(store, scope=scope, before=before):
        if isinstance(item, model.Manifest):
            seen[item.id] = item
            yield Step.of(item)
        else:
            yield unreadable(item)


def unreadable(error: ColdStoreError) -> Step:
    """One whose manifest is damaged. Raises the error where it is not that."""
    key = layout.parse_key(error.key or "")
    if key is None or not isinstance(error, DocumentError | NotFound | SignatureError):
        raise error
    return Step.unreadable(key.id)
