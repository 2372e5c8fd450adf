"""Whether `latest/` and `checkpoints/` lead where they should, and making them anew. Snapshots depend on no pointer; other programs do.

A pointer should name the newest good snapshot of its scope, or of its scope and label: one that is damaged or suspect is not good. What
stands below these prefixes and is no pointer of coldstore's is told, and never touched. Snapshots may be taken at the same time: a pointer
that moved on while manifests were read is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from coldstore.catalog import Pointer, manifests, pointer_to, read_manifest, read_pointer, scope_of
from coldstore.document import model
from coldstore.errors import DocumentError, NotFound, SignatureError
from coldstore.storage import layout
from coldstore.storage.store import Store


@dataclass(frozen=True, slots=True)
class Wrong:
    """One pointer that is not what it should be, and why. `right`: what it should be, None where there should be none; `ours`: whether it
    may be replaced or removed."""

    key: str
    problem: str
    right: Pointer | None = None
    ours: bool = True

    def as_dict(self) -> dict[str, Any]:
        return {"key": self.key, "problem": self.problem}


def check(store: Store) -> tuple[int, list[Wrong]]:
    """(how many pointers there should be, those that are wrong), by key."""
    right = _right(store)
    there = [o.key for prefix in (layout.LATEST, layout.CHECKPOINTS) for o in store.list(prefix)]
    wrong = (_compare(store, key, right.get(key)) for key in sorted({*right, *there}))
    return len(right), [w for w in wrong if w is not None]


def rebuild(store: Store) -> list[Wrong]:
    """Put right what is wrong; returns what was. A stranger's object stays."""
    found = [w for w in check(store)[1] if w.ours]
    for wrong in found:
        if wrong.right is not None:
            store.replace(wrong.key, msgspec.json.encode(wrong.right))
        else:
            store.delete(wrong.key)
    return found


def _right(store: Store) -> dict[str, Pointer]:
    """Every pointer that there should be. Raises what the store raises: a manifest that cannot be fetched may be the newest."""
    right: dict[str, Pointer] = {}
    heads: dict[str, model.Link] = {}
    for found in manifests(store):
        if not isinstance(found, model.Manifest):
            if not isinstance(found, DocumentError | NotFound | SignatureError):
                raise found
            continue
        latest = layout.latest_key(scope_of(found))
        if found.suspect is not None:
            if latest not in right:
                heads.setdefault(latest, model.Link(id=found.id, checksum=found.checksum))
            continue
        right.setdefault(latest, msgspec.structs.replace(pointer_to(found), head=heads.get(latest)))
        if found.label is not None:
            right.setdefault(layout.checkpoint_key(scope_of(found), found.label), pointer_to(found))
    return right


def _compare(store: Store, key: str, right: Pointer | None) -> Wrong | None:
    there = read_pointer(store, key)
    if there is not None and right is not None and _same(there, right):
        return None
    if there is None:
        problem = "it is missing, or is none" if right else "it is no pointer of coldstore's"
        return Wrong(key, problem, right, ours=right is not None)
    if _moved_on(store, key, there, right):
        return None
    if right is None:
        return Wrong(key, f"it names {there.id}, and there is no good snapshot that it could name")
    if there.id == right.id:
        return Wrong(key, f"what it says of {there.id} is not what the manifest says", right)
    return Wrong(key, f"it names {there.id}, and should name {right.id}", right)


def _same(there: Pointer, right: Pointer) -> bool:
    """`head` may be ahead of what was read, and one that was deleted since is harmless: its deletion is on record."""
    behind = right.head is not None and (there.head is None or _at(there.head.id) < _at(right.head.id))
    return not behind and there == msgspec.structs.replace(right, head=there.head)


def _at(snapshot: str) -> int:
    try:
        return layout.parse_id(snapshot)[1]
    except NotFound:  # of a pointer that somebody wrote
        return 0


def _moved_on(store: Store, key: str, there: Pointer, right: Pointer | None) -> bool:
    """Whether it names a good snapshot that was taken after the manifests were read."""
    try:
        manifest = read_manifest(store, there.id)
        names = {layout.latest_key(scope_of(manifest))}
        if manifest.label is not None:
            names.add(layout.checkpoint_key(scope_of(manifest), manifest.label))
    except (NotFound, DocumentError, SignatureError):
        return False
    newer = right is None or _at(right.id) < _at(there.id)
    return newer and manifest.suspect is None and key in names and pointer_to(manifest) == msgspec.structs.replace(there, head=None)
