"""The publish gate: whether a snapshot has so much less in it than the one before that somebody should look first. Pure.

A source that answers with empty tables (the wrong database, a migration gone wrong, somebody's DELETE) gives a snapshot that is whole and
worthless. It is kept, for it may be the truth; but it is marked, `latest` stays where it was, and the command fails.
"""

from __future__ import annotations

from collections.abc import Mapping

_FEW = 100  # rows of which a share means little: a user may forget half of ten memories


def suspicion(before: Mapping[str, int], now: Mapping[str, int], *, max_fall: float, everybody: bool) -> str | None:
    """Why rows by tier (`before`, `now`) look wrong, as one sentence, or None. `max_fall`: the share that may be missing. Everybody's
    memory is looked at tier by tier; of one user or workspace a tier may well become empty, all of them together not."""
    tiers = [name for name in now if name in before]
    compared = [((name,), name) for name in tiers] if everybody else [(tuple(tiers), "all tiers together")]
    for names, what in compared:
        had, has = sum(before[n] for n in names), sum(now[n] for n in names)
        if had and not has:
            return f"{what}: no row, where the snapshot before had {had:,}"
        if had >= _FEW and has < had * (1 - max_fall):
            return f"{what}: {has:,} rows, where the snapshot before had {had:,}"
    return None
