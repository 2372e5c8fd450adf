"""Differences as a person reads them. What is long is cut off here, and whole with `--json`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw

from coldstore import terminal

if TYPE_CHECKING:  # a snapshot need not wait for them
    from coldstore.comparison import TierDifference
    from coldstore.differ import ColumnChange, RowChange

LIMIT = 20  # rows shown of each kind of each tier
_WIDE = 72  # characters of a value


def lines_of(tiers: Iterable[TierDifference]) -> Iterator[str]:
    """Each tier's counts, and below them the rows that are shown."""
    for tier in tiers:
        counts = [f"{getattr(tier, kind):,} {kind}" for kind in ("added", "removed", "changed", "unchanged")]
        yield f"{tier.tier}: {', '.join(counts)}"
        for names, where in ((tier.columns_removed, "from"), (tier.columns_added, "to")):
            if names:
                yield f"  not compared: {', '.join(map(terminal.printable, names))}, which only `{where}` has"
        for row in tier.rows:
            yield from _row(row)
        hidden = tier.added + tier.removed + tier.changed - len(tier.rows)
        if hidden:
            yield f"  … and {hidden:,} more: --limit 0 shows all"


_SIGNS = {"added": "+", "removed": "-", "changed": "~"}


def _row(row: RowChange) -> Iterator[str]:
    key = row.key if isinstance(row.key, dict) else {}
    rest = [members(row.row, but=key)] if isinstance(row.row, Raw) else []
    yield f"  {_SIGNS[row.change]} {'  '.join([*(f'{name} {_value(value)}' for name, value in key.items()), *rest])}"
    if isinstance(row.columns, list):
        yield from (f"      {line}" for line in changes(row.columns))


def members(row: Raw, *, but: Iterable[str] = ()) -> str:
    """A row's values, without those that are null."""
    found: Mapping[str, Any] = msgspec.json.decode(bytes(row), type=dict[str, Raw])
    told = {name: bytes(value) for name, value in found.items() if name not in but}
    return _short(", ".join(f"{name} {value.decode()}" for name, value in told.items() if value != b"null"), 2 * _WIDE)


def changes(columns: Iterable[ColumnChange]) -> Iterator[str]:
    for change in columns:
        place = terminal.printable(path_text(change.column, change.path))
        moved = f" (was {terminal.printable(path_text(change.column, change.was))})" if isinstance(change.was, list) else ""
        old, new = (_value(side) if isinstance(side, Raw) else None for side in (change.before, change.after))
        what = f"added {new}" if old is None else f"removed {old}" if new is None else f"{old} → {new}"
        yield f"{place}{moved}: {what}"


def path_text(column: str, path: Iterable[str | int]) -> str:
    """`entries[0].text`; a name that is no word stands in brackets, as JSON."""
    steps = [f".{s}" if isinstance(s, str) and s.isidentifier() else f"[{msgspec.json.encode(s).decode()}]" for s in path]
    return column + "".join(steps)


def _value(raw: Raw) -> str:
    return _short(bytes(raw).decode("utf-8", "replace"), _WIDE)


def _short(text: str, width: int) -> str:
    return terminal.printable(text if len(text) <= width else f"{text[: width - 1]}…")
