"""The retention policy against an oracle that asks of each snapshot by itself, and against examples that a person can check.

`pytest --hypothesis-profile long tests/unit/test_retention.py` tries 10,000 stores for each property.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstore.config import Settings
from coldstore.errors import ConfigError
from coldstore.retention import PRESETS, Kept, Policy, decide, policy_of

DAY = 86_400_000
NOW = int(datetime(2026, 11, 21, 12, 0, tzinfo=UTC).timestamp() * 1000)
SKEW = 300_000

# --- an oracle ---------------------------------------------------------------------------------------------------------------------


def moment(snapshot: Kept) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=snapshot.at)


BUCKETS = {
    "daily": lambda s: moment(s).date(),
    "weekly": lambda s: moment(s).date() - timedelta(days=moment(s).weekday()),
    "monthly": lambda s: (moment(s).year, moment(s).month),
}


def wanted(s: Kept, every: Mapping[str, Kept], policy: Policy, now: int) -> bool:
    """Whether a rule wants this one, whatever it is a parent of; each rule asked by counting what is newer."""
    if s.at > now + SKEW or s.doubt is not None or (s.label is not None and policy.labels) or (s.locked_until or 0) > now:
        return True
    if policy.days and now - s.at < policy.days * DAY:
        return True
    siblings = [o for o in every.values() if o.scope == s.scope and o.good and o.doubt is None and o.at <= now + SKEW]
    if not s.good:
        return all(o.at < s.at for o in siblings)
    newer = [o for o in siblings if (o.at, s.id) > (s.at, o.id)]
    if len(newer) < max(1, policy.floor, policy.last):
        return True
    for rule, bucket in BUCKETS.items():
        filled = {bucket(o) for o in newer}
        if bucket(s) not in filled and len(filled) < getattr(policy, rule):
            return True
    return False


def kept_ids(snapshots: list[Kept], policy: Policy, now: int) -> set[str]:
    every = {s.id: s for s in snapshots}
    kept = {s.id for s in snapshots if wanted(s, every, policy, now)}
    while True:
        parents = {every[i].parent for i in kept if every[i].parent in every}
        if parents <= kept:
            return kept
        kept |= parents


counts = st.integers(0, 6)
policies = (
    st.tuples(counts, st.integers(0, 60), counts, counts, counts, st.integers(1, 5), st.booleans())
    .filter(lambda t: any(t[:5]))
    .map(lambda t: Policy(*t))
)


@st.composite
def stores(draw: st.DrawFn) -> list[Kept]:
    """Snapshots of a few scopes, near one another and far apart, most of them plain; incrementals in chains."""
    seed = draw(st.integers(0, 2**32))
    chance = random.Random(seed)
    spread = draw(st.sampled_from([DAY // 24, DAY // 3, DAY, 8 * DAY, 40 * DAY]))
    found: list[Kept] = []
    for scope in ("all", "uid_a", "ws~b")[: draw(st.integers(1, 3))]:
        at = NOW + draw(st.sampled_from([-90 * DAY, -DAY // 2, 0, SKEW, SKEW + 1, 3 * DAY]))
        older: list[Kept] = []
        for number in range(draw(st.integers(0, 14))):
            at -= 0 if chance.random() < 0.05 else chance.randrange(1, spread)
            older.append(
                Kept(
                    id=f"memory-{scope}-{at}-{number}",
                    scope=scope,
                    at=at,
                    good=chance.random() > 0.15,
                    doubt="damaged" if chance.random() < 0.1 else None,
                    label="l" if chance.random() < 0.1 else None,
                    locked_until=NOW + chance.choice([-1, 0, 1]) if chance.random() < 0.1 else None,
                )
            )
        chained = chance.random() < 0.5
        for child, parent in pairwise(older):
            found.append(replace(child, parent=parent.id) if chained and chance.random() < 0.6 else child)
        found += older[-1:]
    chance.shuffle(found)
    return found


@settings(deadline=None)
@given(stores(), policies)
def test_it_keeps_what_the_oracle_keeps(snapshots, policy):
    decisions = decide(snapshots, policy, now=NOW)
    assert {d.snapshot.id for d in decisions if d.keep} == kept_ids(snapshots, policy, NOW)
    assert [d.snapshot for d in decisions] == sorted(snapshots, key=lambda s: (s.scope, -s.at, s.id))


@settings(deadline=None)
@given(stores(), policies)
def test_what_no_policy_may_do(snapshots, policy):
    """Of every scope the newest good ones stay, and nothing kept loses what it is built on."""
    decisions = decide(snapshots, policy, now=NOW)
    kept = {d.snapshot.id for d in decisions if d.keep}
    for d in decisions:
        s = d.snapshot
        if d.keep and s.parent is not None:
            assert s.parent in kept
        if s.doubt is not None or (s.locked_until or 0) > NOW:
            assert d.keep
    for scope in {s.scope for s in snapshots}:
        ours = sorted((s for s in snapshots if s.scope == scope), key=lambda s: (-s.at, s.id))
        good = [s.id for s in ours if s.good and s.doubt is None and s.at <= NOW + SKEW]
        assert set(good[: policy.floor]) <= kept
        assert any(s.id in kept for s in ours)


@settings(deadline=None)
@given(stores(), policies, st.integers(0, 400))
def test_pruning_again_changes_nothing(snapshots, policy, days):
    """What is left after a prune is left after the next; and what a later one takes, an earlier one would not have brought back."""
    once = [d.snapshot for d in decide(snapshots, policy, now=NOW) if d.keep]
    assert all(d.keep for d in decide(once, policy, now=NOW))
    later = NOW + days * DAY
    directly = {d.snapshot.id for d in decide(snapshots, policy, now=later) if d.keep}
    after = {d.snapshot.id for d in decide(once, policy, now=later) if d.keep}
    if all(s.at <= NOW + SKEW and s.locked_until is None for s in snapshots):
        assert after <= directly


@settings(deadline=None)
@given(stores(), policies, st.integers(0, 3))
def test_a_scope_does_not_matter_to_another(snapshots, policy, scope):
    name = ("all", "uid_a", "ws~b", "none")[scope]
    together = {d.snapshot.id: d.reasons for d in decide(snapshots, policy, now=NOW)}
    for d in decide([s for s in snapshots if s.scope == name], policy, now=NOW):
        assert together[d.snapshot.id] == d.reasons


# --- examples ----------------------------------------------------------------------------------------------------------------------


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def made(*moments: str, **members: object) -> list[Kept]:
    return [Kept(id=f"memory-all-{at(m)}", scope="all", at=at(m), **members) for m in moments]


def kept(snapshots: list[Kept], policy: Policy, now: str = "2026-11-21") -> list[str]:
    found = [d for d in decide(snapshots, policy, now=at(now)) if d.keep]
    return [datetime.fromtimestamp(d.snapshot.at / 1000, UTC).strftime("%Y-%m-%d %H") for d in found]


def test_backups_that_failed_while_the_owner_was_away():
    """Age counts for nothing while nobody makes new ones."""
    old = made("2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04", "2024-01-05")
    assert kept(old, Policy(days=7)) == ["2024-01-05 00", "2024-01-04 00", "2024-01-03 00"]


def test_failed_ones_do_not_count():
    """Suspect snapshots drive no good one out."""
    good = made("2026-11-01", "2026-11-02")
    suspect = made("2026-11-03", "2026-11-04", "2026-11-05", good=False)
    assert len(kept([*good, *suspect], Policy(last=2, floor=1))) == 5
    assert kept([*good, *suspect, *made("2026-11-06")], Policy(last=2, floor=1)) == ["2026-11-06 00", "2026-11-02 00"]
    assert len(kept(suspect, Policy(last=1, floor=1))) == 3


def test_a_date_in_the_future_decides_nothing():
    wrong_clock = made("2030-01-01")
    right = made("2026-11-01", "2026-11-02", "2026-11-03")
    assert kept([*right, *wrong_clock], Policy(last=1, floor=1)) == ["2030-01-01 00", "2026-11-03 00"]


def test_days_weeks_and_months_are_those_of_utc():
    snapshots = made("2026-11-15T23:59", "2026-11-16T00:00", "2026-11-16T12:00", "2026-10-31T23:59", "2026-11-01T00:00")
    assert kept(snapshots, Policy(weekly=2, floor=1)) == ["2026-11-16 12", "2026-11-15 23"]  # a Monday and the Sunday before
    assert kept(snapshots, Policy(monthly=2, floor=1)) == ["2026-11-16 12", "2026-10-31 23"]
    assert kept(snapshots, Policy(daily=3, floor=1)) == ["2026-11-16 12", "2026-11-15 23", "2026-11-01 00"]


def test_a_week_that_spans_two_years_is_one():
    snapshots = made("2026-12-31", "2027-01-01", "2026-12-27")
    assert kept(snapshots, Policy(weekly=2, floor=1), now="2027-02-01") == ["2027-01-01 00", "2026-12-27 00"]


def test_reasons_are_told():
    snapshots = [*made("2026-11-20", label="before upgrade", locked_until=at("2026-12-01")), *made("2026-11-19")]
    first, second = decide(snapshots, Policy(days=7, last=1, daily=1, floor=1), now=at("2026-11-21"))
    assert first.reasons == (
        "the newest good one",
        "among the last 1",
        "younger than 7 days",
        "the newest of day 2026-11-20",
        "labelled 'before upgrade'",
        "locked until 2026-12-01T00:00:00Z",
    )
    assert second.reasons == ("younger than 7 days",)


def test_policies_that_keep_nothing():
    for counts in ({}, {"days": 0, "floor": 9}, {"labels": True}, {"last": -1}, {"last": 1, "floor": 0}):
        with pytest.raises(ConfigError) as caught:
            Policy(**counts)
        assert caught.value.hint


def test_presets():
    assert policy_of({"preset": "pro"}) == Policy(days=30)
    assert policy_of({"preset": "pro", "daily": 7, "labels": False}) == Policy(days=30, daily=7, labels=False)
    with pytest.raises(ConfigError, match="gold"):
        policy_of({"preset": "gold"})
    with pytest.raises(ConfigError):
        policy_of({"preset": "pro", "days": 0})
    field = Settings.model_fields["keep_preset"]
    assert all(f"'{name}'" in str(field.annotation) for name in PRESETS)


def test_rules_that_are_given_take_the_place_of_all():
    configured = {"preset": "enterprise", "daily": 7, "floor": 5, "labels": False}
    assert policy_of(configured, last=2, days=None) == Policy(last=2, floor=5, labels=False)
    assert policy_of(configured, preset="free") == Policy(days=7, floor=5, labels=False)
    assert policy_of(configured, labels=True) == Policy(days=365, daily=7, floor=5, labels=True)
