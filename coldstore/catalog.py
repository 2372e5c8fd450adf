"""What a store holds, read from its manifests; no database is asked, for the database may be the thing that was lost.

A key already tells scope and time, so only the manifests that can match are fetched. Pointers (`latest/`, `checkpoints/`) are written
here too: they spare a listing, but nothing depends on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import msgspec

from coldstore.codec.pipeline import ordered_map
from coldstore.document import model
from coldstore.errors import ColdStoreError, NotFound, ObjectMissing
from coldstore.storage import layout
from coldstore.storage.layout import SnapshotKey
from coldstore.storage.store import Store
from coldstore.tiers import EVERYBODY, Scope

_FETCHERS = 8


def rfc3339(timestamp: int) -> str:
    """Milliseconds since the epoch as `2026-02-26T02:00:00.000Z`."""
    seconds, milliseconds = divmod(timestamp, 1000)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{milliseconds:03d}Z"


def scope_of(manifest: model.Manifest | model.Header) -> Scope:
    return Scope.of(uid=manifest.uid, workspace=manifest.workspace)


class SnapshotInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The stable form of a snapshot for programs, camelCase as JSON. `path` and `manifest` are keys below the store's root; `bytes` is
    the plain document's size, `stored_bytes` and `sha256` are of the document as stored."""

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

    @classmethod
    def of(cls, manifest: model.Manifest) -> SnapshotInfo:
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
    return manifest


def keys(store: Store, *, scope: Scope | None = None, date: str | None = None) -> Iterator[SnapshotKey]:
    """Keys of manifests, newest first. `date` is a UTC day, `2026-02-26`."""
    name = layout.scope_name(scope) if scope else None
    days = [date] if date else sorted(store.folders(layout.SNAPSHOTS), reverse=True)
    for day in days:
        found = (layout.parse_key(o.key) for o in store.list(f"{layout.SNAPSHOTS}{day}/"))
        wanted = [k for k in found if k and k.is_manifest and name in {None, k.scope_name}]
        yield from sorted(wanted, key=lambda k: (k.timestamp, k.id), reverse=True)


def manifests(
    store: Store,
    *,
    scope: Scope | None = None,
    date: str | None = None,
    label: str | None = None,
    kind: str | None = None,
    limit: int | None = None,
) -> Iterator[model.Manifest | ColdStoreError]:
    """Snapshots, newest first. One whose manifest cannot be read stands there as its error: a damaged one must not hide the others."""

    def fetch(key: SnapshotKey) -> model.Manifest | ColdStoreError:
        try:
            return read_manifest(store, key.id)
        except ColdStoreError as exc:
            return exc

    def matching() -> Iterator[model.Manifest | ColdStoreError]:
        for found in ordered_map(fetch, keys(store, scope=scope, date=date), workers=_FETCHERS):
            if isinstance(found, model.Manifest):
                if scope is not None and scope_of(found) != scope:
                    continue
                if (label is not None and found.label != label) or (kind is not None and found.kind != kind):
                    continue
            yield found

    return islice(matching(), limit)


def newest(store: Store, scope: Scope = EVERYBODY, *, label: str | None = None) -> model.Manifest:
    """The newest snapshot of a scope. A damaged manifest on the way is an error, not something to be passed over in silence."""
    for found in manifests(store, scope=scope, label=label):
        if isinstance(found, ColdStoreError):
            raise found
        return found
    labelled = f" labelled {label!r}" if label is not None else ""
    raise NotFound(f"{store.url} has no snapshot of {scope}{labelled}", hint="`coldstore list` shows what there is.")


# --- pointers ----------------------------------------------------------------------------------------------------------------------


def _pointer(manifest: model.Manifest) -> bytes:
    return msgspec.json.encode(
        {
            "id": manifest.id,
            "snapshotAt": manifest.snapshot_at,
            "document": manifest.document,
            "manifest": layout.manifest_key(manifest.id),
        }
    )


def point_latest(store: Store, manifest: model.Manifest) -> None:
    """Move the scope's latest pointer to this snapshot, unless it is already at a newer one."""
    key = layout.latest_key(scope_of(manifest))
    try:
        there = msgspec.json.decode(store.read(key))["snapshotAt"]
    except (ObjectMissing, msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):  # a pointer that is no pointer is made anew
        there = ""
    if not isinstance(there, str) or there <= manifest.snapshot_at:
        store.replace(key, _pointer(manifest))


def write_checkpoint(store: Store, manifest: model.Manifest) -> None:
    """Let the label name this snapshot."""
    store.replace(layout.checkpoint_key(scope_of(manifest), manifest.label or ""), _pointer(manifest))
