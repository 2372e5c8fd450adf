"""A store, looked at from outside after something went wrong: is everything in it whole, and what is left over.

Only the store's own protocol, the catalog's and the verifier's public answers are used, so any store that a `ColdStore` can open will do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from coldstore.app import ColdStore
from coldstore.errors import ColdStoreError, ObjectMissing
from coldstore.storage import layout


@dataclass
class Found:
    """`snapshots`: id → label of those that verify deeply. `wrong`: a sentence for each promise that this store breaks."""

    snapshots: dict[str, str | None] = field(default_factory=dict)
    orphans: list[str] = field(default_factory=list)
    latest: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def look(cold: ColdStore) -> Found:
    """Every snapshot verified to its last byte, every pointer followed."""
    found = Found()
    for item in cold.list_snapshots():
        if isinstance(item, ColdStoreError):
            found.wrong.append(f"a manifest is damaged: {item}")
        else:
            found.snapshots[item.id] = item.label
    for verdict in cold.verify(deep=True):
        if not verdict.ok:
            found.wrong.append(f"{verdict.id} does not verify: {verdict.problems}")
    found.orphans = cold.orphans()
    _orphans_are_documents_without_manifest(cold, found)
    for prefix in (layout.LATEST, layout.CHECKPOINTS):
        for entry in cold.store.list(prefix):
            _follow(cold, entry.key, found)
    return found


def _orphans_are_documents_without_manifest(cold: ColdStore, found: Found) -> None:
    """The same answer from the bare list of keys."""
    keys = [entry.key for entry in cold.store.list(layout.SNAPSHOTS)]
    committed = {key.removesuffix(layout.MANIFEST_SUFFIX) for key in keys if key.endswith(layout.MANIFEST_SUFFIX)}
    strays = [k for k in keys if not k.endswith(layout.MANIFEST_SUFFIX) and k.partition(".json")[0] not in committed]
    if sorted(strays) != sorted(found.orphans):
        found.wrong.append(f"orphans are {strays}, and are said to be {found.orphans}")


def _follow(cold: ColdStore, key: str, found: Found) -> None:
    try:
        pointer = json.loads(cold.store.read(key))
        found.latest[key] = pointer["id"]
        cold.store.stat(pointer["document"])
        cold.store.stat(pointer["manifest"])
    except (ValueError, KeyError, ObjectMissing) as exc:
        found.wrong.append(f"{key} is no good pointer: {exc!r}")
        return
    if pointer["id"] not in found.snapshots:
        found.wrong.append(f"{key} names {pointer['id']}, which is no snapshot")
