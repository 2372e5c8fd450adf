"""What a restore into a folder would change, for people and for programs. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from coldstore.files.place import Plan
from coldstore.files.tree import File

_LINES = 2000  # of a file; comparing longer ones would take longer than anybody waits for a look


def as_dict(plan: Plan) -> dict[str, Any]:
    """`kept`: files that stay although the snapshot has none, or another, of their name. `leftAlone`: what is no file."""
    kept = {*plan.changes.surplus, *plan.changes.changed} & plan.keep
    return {
        "folder": str(plan.folder),
        "added": plan.changes.added,
        "changed": [name for name in plan.changes.changed if name in plan.write],
        "removed": sorted(plan.remove),
        "kept": sorted(kept),
        "unchanged": len(plan.changes.unchanged),
        "leftAlone": dict(sorted(plan.there.left_out.items())) if plan.there else {},
    }


def lines(plan: Plan) -> Iterator[str]:
    """A line for each file that changes, and after those the difference of each text, as `diff -u` shows it."""
    told = as_dict(plan)
    for sign, kind in (("+", "added"), ("~", "changed"), ("-", "removed")):
        yield from (f"{sign} {name}" for name in told[kind])
    for name in told["changed"]:
        there = plan.there.files.get(name) if plan.there else None
        if there is not None:
            yield from _unified(name, there, plan.wanted[name])


def _unified(name: str, there: File, wanted: File) -> Iterator[str]:
    yield ""
    if there.executable != wanted.executable:
        yield f"{name}: would {'become executable' if wanted.executable else 'not be executable any more'}"
    old, new = _text(there), _text(wanted)
    if old is None or new is None:
        if there.content != wanted.content:
            yield f"{name}: {len(there.content):,} bytes would become {len(wanted.content):,}"
        return
    for line in difflib.unified_diff(old, new, f"there/{name}", f"snapshot/{name}", lineterm=""):
        yield line.rstrip("\n")


def _text(file: File) -> list[str] | None:
    """Its lines; None for what is no text, or a long one."""
    try:
        found = file.content.decode().splitlines(keepends=True)
    except UnicodeDecodeError:
        return None
    return None if len(found) > _LINES or b"\0" in file.content else found
