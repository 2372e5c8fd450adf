"""What it takes to bring a snapshot back: the full one, and every incremental one from there to it, in order. Pure.

The planner is handed what there is, newest first and only as far as it asks, and answers with the steps or with the one reason why there
are none. It never takes an older snapshot for the one that was asked for, and never passes over one that it cannot read: whoever asks for a
moment must get the nearest that there is, or be told.

Every link names an earlier snapshot of the same scope by its checksum, so a chain cannot run in a circle, and one whose parent was removed
or replaced is found broken at that link.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from coldstore.document import model
from coldstore.errors import ChainBroken, NotFound
from coldstore.storage import layout

_ANOTHER = "Use a snapshot from before it, or a later full one; `coldstore verify --all` shows which are whole."


@dataclass(frozen=True, slots=True)
class Step:
    """One snapshot as the planner sees it. `at`: milliseconds since the epoch. `checksum` is None for one whose manifest cannot be read,
    and then nothing but its id is known. `rows` and `size` are of its own document, as stored."""

    id: str
    at: int
    kind: str = "full"
    checksum: str | None = None
    parent: model.Link | None = None
    suspect: bool = False
    rows: int = 0
    size: int = 0

    @classmethod
    def of(cls, manifest: model.Manifest) -> Step:
        return cls(
            manifest.id,
            layout.parse_id(manifest.id)[1],
            manifest.kind,
            manifest.checksum,
            manifest.parent,
            manifest.suspect is not None,
            sum(t.rows for t in manifest.tiers),
            manifest.stored_bytes,
        )

    @classmethod
    def unreadable(cls, snapshot: str) -> Step:
        return cls(snapshot, layout.parse_id(snapshot)[1], kind="unknown")


def plan(steps: Iterable[Step], snapshot: str) -> tuple[Step, ...]:
    """What `snapshot` is made of, the full one first. `steps`: of its scope, newest first, with itself among them. Raises `NotFound` or
    `ChainBroken`."""
    rest = iter(steps)
    for step in rest:
        if step.id == snapshot:
            return _followed(step, rest)
    raise NotFound(f"there is no snapshot {snapshot}", hint="`coldstore list` shows what there is.")


def plan_at(steps: Iterable[Step], moment: int, *, whose: str = "everybody") -> tuple[Step, ...]:
    """The same for the newest good snapshot that is not later than `moment`, milliseconds since the epoch. `steps`: of one scope, newest
    first. Raises `NotFound` for a moment before every snapshot, and where all of them are suspect."""
    rest = iter(steps)
    later: Step | None = None
    suspect: Step | None = None
    for step in rest:
        if step.kind == model.DOCUMENTS:
            continue
        if step.at > moment:
            later = step
        elif step.checksum is None:
            raise ChainBroken(f"the manifest of {step.id}, the nearest to that moment, is damaged", key=step.id, hint=_ANOTHER)
        elif step.suspect:
            suspect = suspect or step
        else:
            return _followed(step, rest)
    if suspect is not None:
        raise NotFound(f"every snapshot of {whose} until then is suspect", hint=f"The nearest is {suspect.id}: name it, if you mean it.")
    if later is not None:
        raise NotFound(f"there was no snapshot of {whose} yet at that moment", hint=f"The first is {later.id}.")
    raise NotFound(f"there is no snapshot of {whose}", hint="`coldstore list` shows what there is.")


def _followed(target: Step, rest: Iterator[Step]) -> tuple[Step, ...]:
    """`target` and all it is built on, the full one first; `rest` are the steps before it."""

    def lookup(snapshot: str) -> Step | None:
        began = layout.parse_id(snapshot)[1]
        for step in rest:
            if step.id == snapshot:
                return step
            if step.at < began:
                return None
        return None

    found = [target]
    while found[-1].kind != "full":
        parent, problem = parent_of(found[-1], lookup)
        if parent is None or problem is not None:
            raise ChainBroken(f"{target.id} cannot be put together: {problem}", key=found[-1].id, hint=_ANOTHER)
        found.append(parent)
    return tuple(reversed(found))


def parent_of(step: Step, lookup: Callable[[str], Step | None]) -> tuple[Step | None, str | None]:
    """What `step`, an incremental one, is built on, and what is wrong with that, as one sentence or None. `lookup` finds a step by its
    id."""
    problem = _no_link(step)
    if problem is not None or step.parent is None:
        return None, problem
    parent = lookup(step.parent.id)
    if parent is None:
        return None, f"{step.parent.id}, on which {step.id} is built, is gone"
    if parent.checksum is None:
        return parent, f"the manifest of {parent.id}, on which {step.id} is built, is damaged"
    if parent.checksum != step.parent.checksum:
        return parent, f"{parent.id} is not the one that {step.id} was built on"
    if parent.kind not in {"full", model.INCREMENTAL}:
        return parent, f"{step.id} is built on {parent.id}, which is of the kind {parent.kind!r}"
    return parent, None


def _no_link(step: Step) -> str | None:
    """Why `step` cannot be built on anything, whatever there is."""
    if step.checksum is None:
        return f"the manifest of {step.id} is damaged"
    if step.kind != model.INCREMENTAL:
        return f"{step.id} is of the kind {step.kind!r}, which is no part of a chain"
    if step.parent is None:
        return f"{step.id} is incremental and does not name what it is built on"
    try:
        scope, began = layout.parse_id(step.parent.id)
    except NotFound:
        return f"{step.id} is built on {step.parent.id!r}, which is no snapshot's id"
    if scope != layout.parse_id(step.id)[0] or began >= step.at:
        return f"{step.id} is built on {step.parent.id}, which is not an earlier snapshot of the same scope"
    return None


def built_on(steps: Iterable[Step], snapshots: Iterable[str]) -> list[Step]:
    """Those of `steps`, newest first, that need one of `snapshots`, directly or through others, and are none of them."""
    wanted = set(snapshots)
    needing = set(wanted)
    found = []
    for step in sorted(steps, key=lambda s: s.at):
        if step.parent is not None and step.parent.id in needing:
            needing.add(step.id)
            found += [] if step.id in wanted else [step]
    return found[::-1]
