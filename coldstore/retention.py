"""Which snapshots stay and which may go, and why: a policy and what there is go in, a decision for each comes out. Pure.

Rules only ever keep: a snapshot goes when no rule wants it. Whatever the policy says, of each scope the newest good snapshots stay (the
*floor*: age counts for nothing while nobody makes new ones), as does everything that something kept is built on, what is locked, what
cannot be relied on, a suspect one until a good one follows, and what is dated in the future, for a clock that was wrong must not decide.
Days, weeks and months are those of UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from coldstore.errors import ConfigError

_DAY = 86_400_000
_SKEW = 300_000  # milliseconds by which clocks may differ without anybody being wrong


@dataclass(frozen=True, slots=True)
class Policy:
    """What to keep of each scope. `last`: so many of the newest; `days`: all that are younger; `daily`, `weekly`, `monthly`: the newest
    of each of so many of the newest days, weeks, months that have one. `floor`: of the newest, whatever their age. `labels`: labelled
    ones stay. Raises `ConfigError` for a policy that wants to keep nothing."""

    last: int = 0
    days: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    floor: int = 3
    labels: bool = True

    def __post_init__(self) -> None:
        if min(self.last, self.days, self.daily, self.weekly, self.monthly) < 0 or self.floor < 1:
            raise ConfigError("a retention policy cannot keep less than nothing", hint="Counts start at 0, `floor` at 1.")
        if not any((self.last, self.days, self.daily, self.weekly, self.monthly)):
            raise ConfigError(
                "this retention policy keeps nothing", hint="Set one of last, days, daily, weekly and monthly, or name a preset."
            )


#: What plans of the trade promise; each can be named in the place of counts.
PRESETS: Mapping[str, Policy] = {
    "free": Policy(days=7, floor=3),
    "pro": Policy(days=30, floor=3),
    "enterprise": Policy(days=365, floor=3),
}


@dataclass(frozen=True, slots=True)
class Kept:
    """One snapshot as retention sees it. `at`: milliseconds since the epoch. `good`: not suspect. `doubt`: why its manifest cannot be
    relied on. `parent`: what an incremental builds on. `locked_until`: milliseconds, while nobody may delete it."""

    id: str
    scope: str
    at: int
    good: bool = True
    doubt: str | None = None
    label: str | None = None
    parent: str | None = None
    locked_until: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """`reasons`: why it stays; none, and it goes."""

    snapshot: Kept
    reasons: tuple[str, ...] = field(default=())

    @property
    def keep(self) -> bool:
        return bool(self.reasons)


def decide(snapshots: Iterable[Kept], policy: Policy, *, now: int) -> list[Decision]:
    """A decision for each, newest first within a scope, scopes in order. `now`: milliseconds since the epoch."""
    every = sorted(snapshots, key=lambda s: (s.scope, -s.at, s.id))
    reasons: dict[str, list[str]] = {s.id: [] for s in every}
    scopes: dict[str, list[Kept]] = {}
    for snapshot in every:
        scopes.setdefault(snapshot.scope, []).append(snapshot)
    for group in scopes.values():
        for snapshot, reason in _wanted(group, policy, now):
            reasons[snapshot.id].append(reason)
    _keep_parents(every, reasons)
    return [Decision(s, tuple(reasons[s.id])) for s in every]


def _wanted(group: Sequence[Kept], policy: Policy, now: int) -> Iterable[tuple[Kept, str]]:
    """(snapshot, reason) for one scope, newest first."""
    future = {s.id for s in group if s.at > now + _SKEW}
    good = [s for s in group if s.good and s.doubt is None and s.id not in future]
    yield from ((s, "the newest good one") for s in good[:1])
    yield from ((s, f"among the newest {policy.floor}, which no age passes") for s in good[1 : policy.floor])
    yield from ((s, f"among the last {policy.last}") for s in good[: policy.last])
    yield from ((s, f"younger than {policy.days} days") for s in group if policy.days and s.at > now - policy.days * _DAY)
    for count, name, bucket in (
        (policy.daily, "day", "%Y-%m-%d"),
        (policy.weekly, "week", "%G-W%V"),
        (policy.monthly, "month", "%Y-%m"),
    ):
        yield from ((s, f"the newest of {name} {which}") for which, s in _newest_of_each(good, count, bucket))
    newest = good[0].at if good else None
    for snapshot in group:
        if not snapshot.good and (newest is None or snapshot.at > newest):
            yield snapshot, "suspect, and no good one followed"
        if snapshot.id in future:
            yield snapshot, "dated in the future"
        if snapshot.doubt is not None:
            yield snapshot, snapshot.doubt
        if policy.labels and snapshot.label is not None:
            yield snapshot, f"labelled {snapshot.label!r}"
        if snapshot.locked_until is not None and snapshot.locked_until > now:
            yield snapshot, f"locked until {_utc(snapshot.locked_until, '%Y-%m-%dT%H:%M:%SZ')}"


def _newest_of_each(good: Sequence[Kept], count: int, bucket: str) -> Iterable[tuple[str, Kept]]:
    found: dict[str, Kept] = {}
    for snapshot in good:
        name = _utc(snapshot.at, bucket)
        if name not in found:
            if len(found) == count:
                break
            found[name] = snapshot
    return found.items()


def _keep_parents(every: Sequence[Kept], reasons: dict[str, list[str]]) -> None:
    """Nothing kept loses what it is built on."""
    by_id = {s.id: s for s in every}
    waiting = [s for s in every if reasons[s.id]]
    while waiting:
        child = waiting.pop()
        parent = by_id.get(child.parent or "")
        if parent is not None:
            if not reasons[parent.id]:
                waiting.append(parent)
            reasons[parent.id].append(f"{child.id} is built on it")


def _utc(milliseconds: int, form: str) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime(form)


#: Of a policy's settings those that say what is wanted; the others only say what must not go.
_RULES = ("preset", "last", "days", "daily", "weekly", "monthly")


def policy_of(settings: Mapping[str, int | bool | str], **given: int | bool | str | None) -> Policy:
    """The policy of a configuration's `[retention]`: a `preset`, counts, or a preset with other counts. A rule that is `given` (not None)
    takes the place of all rules of the settings: whoever says `last=3` means three, and not three beside what stands elsewhere."""
    wanted = {name: value for name, value in given.items() if value is not None}
    if any(name in _RULES for name in wanted):
        settings = {name: value for name, value in settings.items() if name not in _RULES}
    counts: dict[str, Any] = {**settings, **wanted}
    preset = counts.pop("preset", None)
    if preset is None:
        return Policy(**counts)
    if preset not in PRESETS:
        raise ConfigError(f"there is no retention preset {preset!r}", hint=f"Presets are {', '.join(PRESETS)}.")
    return replace(PRESETS[preset], **counts)
