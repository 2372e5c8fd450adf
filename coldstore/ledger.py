"""The succession of a scope's snapshots: every manifest names the one before it by its checksum, so one that was removed, replaced or
put elsewhere leaves a link that leads nowhere. Pure: entries in, sentences out.

What was deleted by coldstore stands in a deletion record with its checksum and its own link, and so the succession goes on through it.
What nothing in a store can show: that the *newest* snapshots were removed together with the pointer that named them. Object lock and a
copy of the last checksum elsewhere can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from coldstore.document.model import Link, Manifest
from coldstore.errors import NotFound
from coldstore.storage import layout

#: Milliseconds from what a manifest says of its own duration until others see it: it has yet to be stored, and the pointer to be moved.
_COMMIT = 60_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One snapshot, there or deleted. `checksum` is None for one whose manifest cannot be read. `lasted`: milliseconds that it took.
    Raises `NotFound` for what is no id."""

    id: str
    checksum: str | None
    previous: Link | None = None
    lasted: float = 0.0
    deleted: bool = False

    def __post_init__(self) -> None:
        layout.parse_id(self.id)

    @classmethod
    def of(cls, manifest: Manifest) -> Entry:
        return cls(manifest.id, manifest.checksum, manifest.previous, manifest.seconds * 1000)

    @property
    def scope(self) -> str:
        return layout.parse_id(self.id)[0]

    @property
    def began(self) -> int:
        return layout.parse_id(self.id)[1]

    @property
    def ended(self) -> float:
        return self.began + self.lasted


def breaks(entry: Entry, lookup: Callable[[str], Entry | None]) -> list[str]:
    """What is wrong with the link from `entry` to the one before it; `lookup` finds an entry by its id."""
    link = entry.previous
    if link is None:
        return []
    try:
        scope, began = layout.parse_id(link.id)
    except NotFound:
        return [f"it names {link.id!r} as the snapshot before it, which is none"]
    if scope != entry.scope or began >= entry.began:
        return [f"it names {link.id} as the snapshot before it, which is not an earlier one of the same scope"]
    before = lookup(link.id)
    if before is None:
        return [f"the snapshot before it, {link.id}, is gone, and no deletion record says so"]
    if before.checksum is not None and before.checksum != link.checksum:
        return [f"the snapshot before it, {link.id}, is not the one that was there when it was written"]
    return []


def all_breaks(entries: Iterable[Entry]) -> dict[str, list[str]]:
    """What is wrong with the successions of a whole store: id → sentences, only of those with a problem.

    One that names none before it though one is there is a break as well, unless both were written at the same time."""
    known: dict[str, Entry] = {}
    for entry in entries:
        if entry.id not in known or known[entry.id].deleted:  # a deletion that did not get to its end: what is there counts
            known[entry.id] = entry
    found = {e.id: breaks(e, known.get) for e in known.values()}
    for scope in _by_scope(known).values():
        first_ended: Entry | None = None
        for entry in sorted((e for e in scope if not e.deleted), key=lambda e: e.began):  # of a deleted one it may have been too late
            starts_anew = entry.checksum is not None and entry.previous is None
            if starts_anew and first_ended is not None and first_ended.ended + _COMMIT < entry.began:
                found[entry.id].append(f"it names no snapshot before it, though {first_ended.id} was there")
            if first_ended is None or entry.ended < first_ended.ended:
                first_ended = entry
    return {name: problems for name, problems in found.items() if problems}


def _by_scope(known: Mapping[str, Entry]) -> dict[str, list[Entry]]:
    scopes: dict[str, list[Entry]] = {}
    for entry in known.values():
        scopes.setdefault(entry.scope, []).append(entry)
    return scopes
