"""What a store holds, read from its manifests; no database is asked, for the database may be the thing that was lost.

A key already tells scope and time, so only the manifests that can match are fetched. Pointers (`latest/`, `checkpoints/`) are written
here too: they spare a listing, but nothing depends on them.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Container, Generator, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count, islice
from typing import Any

import msgspec

from coldstore.codec.pipeline import ordered_map
from coldstore.codec.sign import SigningKey
from coldstore.document import model
from coldstore.errors import ColdStoreError, CorruptManifest, NotFound, ObjectExists, ObjectLocked, ObjectMissing
from coldstore.storage import layout
from coldstore.storage.layout import SnapshotKey
from coldstore.storage.store import Store
from coldstore.tiers import EVERYBODY, Scope

_FETCHERS = 8
_LISTERS = 8


def rfc3339(timestamp: int) -> str:
    """Milliseconds since the epoch as `2026-02-26T02:00:00.000Z`."""
    seconds, milliseconds = divmod(timestamp, 1000)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{milliseconds:03d}Z"


def scope_of(manifest: model.Manifest | model.Header) -> Scope:
    return Scope.of(uid=manifest.uid, workspace=manifest.workspace)


class Drilled(msgspec.Struct, frozen=True, kw_only=True):
    """How a drill ended, and when."""

    at: str
    proven: bool


class SnapshotInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The stable form of a snapshot for programs, camelCase as JSON. `path` and `manifest` are keys below the store's root; `bytes` is
    the plain document's size, `stored_bytes` and `sha256` are of the document as stored. `parent`: what an incremental is built on, whose
    `rows` are those that changed and the keys that are gone; `built_from`: whose chain was made into this one."""

    id: str
    path: str
    manifest: str
    uid: str | None
    workspace: str | None
    kind: str
    label: str | None
    snapshot_at: str
    rows: dict[str, int]
    bytes: int
    stored_bytes: int
    sha256: str
    codec: str
    omitted_tiers: list[str]
    seconds: float
    sealed: bool
    signed_by: str | None
    retained_until: str | None
    suspect: str | None
    parent: str | None = None
    built_from: str | None = None
    last_proven: str | None = None
    last_drill: Drilled | None = None

    @classmethod
    def of(cls, manifest: model.Manifest, drilled: Sequence[layout.DrillKey] = ()) -> SnapshotInfo:
        """`drilled`: the drills that it went through, in the order of time."""
        proven = [d.timestamp for d in drilled if d.proven]
        return cls(
            id=manifest.id,
            path=manifest.document,
            manifest=layout.manifest_key(manifest.id),
            uid=manifest.uid,
            workspace=manifest.workspace,
            kind=manifest.kind,
            label=manifest.label,
            snapshot_at=manifest.snapshot_at,
            rows=manifest.rows(),
            bytes=manifest.bytes,
            stored_bytes=manifest.stored_bytes,
            sha256=manifest.sha256,
            codec=manifest.codec,
            omitted_tiers=manifest.schema.omitted,
            seconds=manifest.seconds,
            sealed=manifest.sealing is not None,
            signed_by=manifest.signature.by if manifest.signature else None,
            retained_until=manifest.retained.until if manifest.retained else None,
            suspect=manifest.suspect,
            parent=manifest.parent.id if manifest.parent else None,
            built_from=manifest.built_from,
            last_proven=rfc3339(proven[-1]) if proven else None,
            last_drill=Drilled(at=rfc3339(drilled[-1].timestamp), proven=drilled[-1].proven) if drilled else None,
        )

    def as_dict(self) -> dict[str, Any]:
        return dict(msgspec.to_builtins(self))


def read_manifest(store: Store, snapshot: str) -> model.Manifest:
    """The manifest of an id. Raises `NotFound`, `CorruptManifest` or `UnsupportedFormat`."""
    key = layout.manifest_key(snapshot)
    try:
        data = store.read(key)
    except ObjectMissing as exc:
        raise NotFound(f"there is no snapshot {snapshot} in {store.url}", hint="`coldstore list` shows what there is.", key=key) from exc
    manifest = model.decode_manifest(data, key=key)
    if manifest.id != snapshot:
        raise NotFound(f"{key} is the manifest of {manifest.id}: an object was moved", key=key, hint="Put it back under its own name.")
    if not manifest.document.startswith(layout.document_key(snapshot)):
        raise CorruptManifest(f"{key} names {manifest.document!r} as its document, which is another's", key=key)
    return manifest


def keys(
    store: Store, *, scope: Scope | None = None, date: str | None = None, since: str | None = None, before: str | None = None
) -> Iterator[SnapshotKey]:
    """Keys of manifests, newest first. `date` is a UTC day, `2026-02-26`, and so is `since`, the first that counts. `before`: the id where
    an earlier look ended; only what comes after it in this order.

    One listing for the days and one for each of them, of a scope only its own names; a few days are asked at once then."""
    name = layout.scope_name(scope) if scope else None
    edge = _place(before) if before is not None else None
    days = [date] if date else sorted((d for d in store.folders(layout.SNAPSHOTS) if d >= (since or "")), reverse=True)
    if edge:
        days = [d for d in days if d <= layout.date_of(edge[0])]

    def of_day(day: str) -> list[SnapshotKey]:
        found = (layout.parse_key(o.key) for o in store.list(f"{layout.SNAPSHOTS}{day}/{f'memory-{name}-' if name else ''}"))
        wanted = [k for k in found if k and k.is_manifest and name in {None, k.scope_name}]
        return sorted((k for k in wanted if edge is None or (k.timestamp, k.id) < edge), key=lambda k: (k.timestamp, k.id), reverse=True)

    # Everybody's days are as large as they are: one at a time. Of a scope a day has next to nothing, and waiting is all it costs.
    for found in ordered_map(of_day, days, workers=_LISTERS if name else 0):
        yield from found


def _place(snapshot: str) -> tuple[int, str]:
    """Where an id stands in the order of `keys`. Raises `NotFound` for one that cannot be."""
    layout.folder_of(snapshot)
    return layout.parse_id(snapshot)[1], snapshot


def manifests(
    store: Store,
    *,
    scope: Scope | None = None,
    date: str | None = None,
    since: str | None = None,
    before: str | None = None,
    label: str | None = None,
    kind: str | None = None,
    limit: int | None = None,
) -> Iterator[model.Manifest | ColdStoreError]:
    """Snapshots, newest first, as `keys` finds them. One whose manifest cannot be read stands there as its error: a damaged one must not
    hide the others."""

    def fetch(key: SnapshotKey) -> model.Manifest | ColdStoreError:
        try:
            return read_manifest(store, key.id)
        except ColdStoreError as exc:
            return exc

    def matching() -> Iterator[model.Manifest | ColdStoreError]:
        for found in ordered_map(fetch, keys(store, scope=scope, date=date, since=since, before=before), workers=_FETCHERS):
            if isinstance(found, model.Manifest):
                if scope is not None and scope_of(found) != scope:
                    continue
                if (label is not None and found.label != label) or (kind is not None and found.kind != kind):
                    continue
            yield found

    return islice(matching(), limit)


def drills(store: Store) -> dict[str, list[layout.DrillKey]]:
    """Every drill that the store remembers, by snapshot, in the order of time: from one listing, for the keys say it all."""
    found: dict[str, list[layout.DrillKey]] = {}
    for key in filter(None, (layout.parse_drill_key(o.key) for o in store.list(layout.DRILLS))):
        found.setdefault(key.id, []).append(key)
    return {snapshot: sorted(keys, key=lambda k: k.timestamp) for snapshot, keys in found.items()}


def newest(store: Store, scope: Scope = EVERYBODY, *, label: str | None = None) -> model.Manifest:
    """The newest snapshot of a scope's tables that is not suspect. A damaged manifest on the way is an error, not something to be passed
    over in silence."""
    if (found := newest_or_none(store, scope, label=label)) is not None:
        return found
    labelled = f" labelled {label!r}" if label is not None else ""
    raise NotFound(f"{store.url} has no snapshot of {scope}{labelled}", hint="`coldstore list` shows what there is.")


def newest_or_none(store: Store, scope: Scope, *, label: str | None = None, documents: bool = False) -> model.Manifest | None:
    """The same, or None; of an agent's own `documents`, if asked. Neither of the two kinds ever stands for the other."""
    for found in manifests(store, scope=scope, label=label):
        if isinstance(found, ColdStoreError):
            raise found
        if found.suspect is None and (found.kind == model.DOCUMENTS) is documents:
            return found
    return None


# --- pointers ----------------------------------------------------------------------------------------------------------------------


class Pointer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a pointer says. It is no more than a hint: whoever follows it reads the manifest. `head`: the newest snapshot of the scope when
    that is a suspect one, to which `latest` does not move."""

    id: str
    snapshot_at: str
    document: str
    manifest: str
    checksum: str
    rows: dict[str, int]
    kind: str = "full"
    head: model.Link | None = None


msgspec.json.Decoder(Pointer)  # worked out on one thread, as in `model`


def pointer_to(manifest: model.Manifest) -> Pointer:
    return Pointer(
        id=manifest.id,
        snapshot_at=manifest.snapshot_at,
        document=manifest.document,
        manifest=layout.manifest_key(manifest.id),
        checksum=manifest.checksum,
        rows=manifest.whole_rows(),
        kind=manifest.kind,
    )


def _pointer(manifest: model.Manifest) -> bytes:
    return msgspec.json.encode(pointer_to(manifest))


def read_pointer(store: Store, key: str) -> Pointer | None:
    """None when there is none; a pointer that is no pointer is made anew by the next snapshot, and counts as none."""
    try:
        return msgspec.json.decode(store.read(key), type=Pointer)
    except (ObjectMissing, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def point_latest(store: Store, manifest: model.Manifest) -> None:
    """Move the scope's latest pointer to this snapshot, unless it is already at a newer one. A suspect one it only takes note of."""
    key = layout.latest_key(scope_of(manifest))
    there = read_pointer(store, key)
    if manifest.suspect is not None:
        if there is not None:
            head = model.Link(id=manifest.id, checksum=manifest.checksum)
            store.replace(key, msgspec.json.encode(msgspec.structs.replace(there, head=head)))
    elif there is None or there.snapshot_at <= manifest.snapshot_at:
        store.replace(key, _pointer(manifest))


def write_checkpoint(store: Store, manifest: model.Manifest) -> None:
    """Let the label name this snapshot."""
    store.replace(layout.checkpoint_key(scope_of(manifest), manifest.label or ""), _pointer(manifest))


class Heads:
    """The newest snapshot of a scope, to be named by the next one. The pointer tells it at once; where there is none the store is listed:
    for one scope only that scope's keys, with `everybody` all of them, once."""

    def __init__(self, store: Store, *, everybody: bool = False) -> None:
        self._store = store
        self._everybody = everybody
        self._lock = threading.Lock()
        self._listed: dict[str, str] | None = None

    def rows(self, scope: Scope, *, documents: bool = False) -> dict[str, int]:
        """Rows by tier of the newest good one, as far as the pointer tells; where that names one of the other kind, as a listing does."""
        pointer = read_pointer(self._store, layout.latest_key(scope))
        if pointer is None or (pointer.kind == model.DOCUMENTS) is documents:
            return pointer.rows if pointer else {}
        with suppress(ColdStoreError):
            found = newest_or_none(self._store, scope, documents=documents)
            return found.whole_rows() if found else {}
        return {}

    def before(self, scope: Scope, timestamp: int) -> model.Link | None:
        """The newest that is older than `timestamp`; a clock that went back does not put the later one first."""
        pointer = read_pointer(self._store, layout.latest_key(scope))
        link = self._newest(scope) if pointer is None else pointer.head or model.Link(id=pointer.id, checksum=pointer.checksum)
        while link is not None and _timestamp(link.id) >= timestamp:
            try:
                link = read_manifest(self._store, link.id).previous
            except ColdStoreError:
                return self._newest(scope, older_than=timestamp)
        return link

    def _newest(self, scope: Scope, *, older_than: int | None = None) -> model.Link | None:
        for snapshot in self._candidates(scope, older_than):
            with suppress(ColdStoreError):  # one that cannot be read has no checksum to be named by
                return model.Link(id=snapshot, checksum=read_manifest(self._store, snapshot).checksum)
        return None

    def _candidates(self, scope: Scope, older_than: int | None) -> Iterator[str]:
        if self._everybody and older_than is None:
            newest = self._by_scope().get(layout.scope_name(scope))
            if newest is None:
                return
            yield newest
        yield from (k.id for k in keys(self._store, scope=scope) if older_than is None or k.timestamp < older_than)

    def _by_scope(self) -> dict[str, str]:
        with self._lock:
            if self._listed is None:
                self._listed = {}
                for key in keys(self._store):
                    self._listed.setdefault(key.scope_name, key.id)
            return self._listed


def _timestamp(snapshot: str) -> int:
    try:
        return layout.parse_id(snapshot)[1]
    except NotFound:  # of a pointer that somebody wrote; the link will lead nowhere, and be noticed
        return 0


# --- deletions ---------------------------------------------------------------------------------------------------------------------


class Deleted(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One snapshot in a deletion record."""

    id: str
    checksum: str
    previous: model.Link | None
    seconds: float


class Deletion(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What was deleted together, and when."""

    at: str
    snapshots: list[Deleted]
    signature: model.Signature | None = None


def delete(store: Store, manifests: Sequence[model.Manifest], *, now: int, signer: SigningKey | None = None) -> None:
    """Remove snapshots. `now`: milliseconds since the epoch. Raises `ObjectLocked` before anything is done if one must still be kept.

    A record of it is written first: the succession of those that stay goes through it. Then pointers are moved, then each manifest is
    deleted and then its document, so that nothing half-deleted is ever listed; called again it goes on where it was."""
    for manifest in manifests:
        if manifest.retained is not None and manifest.retained.until > rfc3339(now):
            raise ObjectLocked(
                f"{manifest.id} must be kept until {manifest.retained.until} ({manifest.retained.mode})",
                key=manifest.document,
                hint="Nothing was deleted. Delete it after that date.",
            )
    record_deletion(store, manifests, now=now, signer=signer)
    for manifest in manifests:
        remove(store, manifest)


def record_deletion(store: Store, manifests: Sequence[model.Manifest], *, now: int, signer: SigningKey | None = None) -> None:
    """The first half of `delete`: write down what goes, and move pointers away from it."""
    body = Deletion(
        at=rfc3339(now),
        snapshots=[Deleted(id=m.id, checksum=m.checksum, previous=m.previous, seconds=m.seconds) for m in manifests],
    )
    record = {"format": model.FORMAT, "kind": "deletion", **msgspec.to_builtins(body)}
    with store.create(layout.deletion_key(now, secrets.token_hex(4))) as out:
        out.write(model.encode_record(record, signer=signer))
    going = {m.id for m in manifests}
    for scope in {scope_of(m) for m in manifests}:
        _repoint(store, layout.latest_key(scope), scope, None, going)
    for scope, label in {(scope_of(m), m.label) for m in manifests if m.label is not None}:
        _repoint(store, layout.checkpoint_key(scope, label), scope, label, going)


def remove(store: Store, manifest: model.Manifest) -> None:
    """The second half, for each: it is not listed any more from the first step on."""
    store.delete(layout.manifest_key(manifest.id))
    for key in manifest.objects():
        store.delete(key)
    if manifest.sealing is not None:
        for key in keys_objects(store, manifest.id):
            store.delete(key)


def _repoint(store: Store, key: str, scope: Scope, label: str | None, going: Container[str]) -> None:
    pointer = read_pointer(store, key)
    if pointer is None or pointer.id not in going:
        return
    for found in manifests(store, scope=scope, label=label):
        if isinstance(found, model.Manifest) and found.id not in going and found.suspect is None:
            store.replace(key, _pointer(found))
            return
    store.delete(key)


def deletions(store: Store) -> Generator[tuple[str, Deletion | ColdStoreError]]:
    """(key, record) of every deletion; one that cannot be read stands there as its error."""

    def fetch(key: str) -> tuple[str, Deletion | ColdStoreError]:
        try:
            record = msgspec.convert(model.decode_record(store.read(key), key=key), Deletion)
        except msgspec.ValidationError as exc:
            return key, CorruptManifest(f"{key} lacks a part: {exc}", key=key)
        except ColdStoreError as exc:
            return key, exc
        if record.at != rfc3339(layout.parse_deletion_key(key)):
            return key, CorruptManifest(f"{key} is the record of {record.at}: an object was moved", key=key)
        return key, record

    return ordered_map(fetch, (o.key for o in store.list(layout.DELETIONS)), workers=_FETCHERS)


# --- wrapped keys ------------------------------------------------------------------------------------------------------------------


def keys_objects(store: Store, snapshot: str) -> list[str]:
    """Keys of the objects that hold a snapshot's data key wrapped anew, in order."""
    found = ((o.key, layout.parse_key(o.key)) for o in store.list(layout.keys_prefix(snapshot)))
    return [key for key, parsed in found if parsed and parsed.is_keys and parsed.id == snapshot]


def added_keys(store: Store, snapshot: str) -> list[model.WrappedKey]:
    """Wrapped forms of a snapshot's data key that were added after it was written, the newest first."""
    found: list[model.WrappedKey] = []
    for key in reversed(keys_objects(store, snapshot)):
        found += model.decode_keys(store.read(key), snapshot, key=key)
    return found


def add_keys(store: Store, snapshot: str, wrapped: Sequence[model.WrappedKey], *, signer: SigningKey | None = None) -> str:
    """Write wrapped forms of a data key beside a snapshot, as a new object; returns its key."""
    for number in count(len(keys_objects(store, snapshot)) + 1):
        key = layout.keys_key(snapshot, number)
        with suppress(ObjectExists):
            with store.create(key) as out:
                out.write(model.encode_keys(snapshot, wrapped, signer=signer))
            return key
    raise AssertionError  # `count` does not end
