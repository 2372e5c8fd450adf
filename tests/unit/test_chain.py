"""The planner of chains against a definition that is too slow and too simple to be wrong, and each of its refusals by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstore.chain import Step, built_on, plan, plan_at
from coldstore.document import model
from coldstore.errors import ChainBroken, ColdStoreError, NotFound


def step(at: int, kind: str = "full", parent: Step | None = None, *, scope: str = "all", **more) -> Step:
    link = parent and model.Link(id=parent.id, checksum=parent.checksum or "")
    return Step(f"memory-{scope}-{at}", at, kind, f"sum of {scope} {at}", link, **more)


def newest_first(steps) -> list[Step]:
    return sorted(steps, key=lambda s: -s.at)


FULL = step(10)
FIRST = step(20, "incremental", FULL)
SECOND = step(30, "incremental", FIRST)
CHAIN = [SECOND, FIRST, FULL]


# --- what it finds ------------------------------------------------------------------------------------------------------------------


def test_a_full_one_is_its_own_chain():
    assert plan(CHAIN, FULL.id) == (FULL,)


def test_an_incremental_one_needs_all_from_the_full_one_on():
    assert plan(CHAIN, SECOND.id) == (FULL, FIRST, SECOND)
    assert plan(CHAIN, FIRST.id) == (FULL, FIRST)


def test_it_asks_no_further_than_the_full_one():
    asked = []

    def steps():
        for found in [*CHAIN, step(5), step(1)]:
            asked.append(found)
            yield found

    plan(steps(), SECOND.id)
    assert asked == CHAIN


@pytest.mark.parametrize(("moment", "reached"), [(10, FULL), (19, FULL), (20, FIRST), (29, FIRST), (30, SECOND), (10**12, SECOND)])
def test_a_moment_is_the_nearest_not_after_it(moment, reached):
    assert plan_at(CHAIN, moment)[-1] == reached


def test_others_between_are_no_matter():
    strangers = [step(25), step(15, "documents"), Step.unreadable("memory-all-12"), step(27, "incremental", FIRST)]
    assert plan(newest_first([*CHAIN, *strangers]), SECOND.id) == (FULL, FIRST, SECOND)


def test_a_suspect_one_is_no_target_of_a_moment_and_may_be_named_and_built_on():
    doubtful = replace(FIRST, suspect=True)
    steps = [SECOND, doubtful, FULL]
    assert plan_at(steps, 25) == (FULL,)
    assert plan_at(steps, 30) == (FULL, doubtful, SECOND)
    assert plan(steps, doubtful.id) == (FULL, doubtful)


# --- what it refuses ----------------------------------------------------------------------------------------------------------------


def refusal(steps, snapshot: str = SECOND.id) -> str:
    with pytest.raises(ChainBroken) as caught:
        plan(newest_first(steps), snapshot)
    assert caught.value.hint
    return str(caught.value)


def test_an_id_that_is_not_there():
    with pytest.raises(NotFound, match="memory-all-31"):
        plan(CHAIN, "memory-all-31")


def test_before_the_first():
    with pytest.raises(NotFound, match="yet at that moment") as caught:
        plan_at(CHAIN, 9)
    assert FULL.id in (caught.value.hint or "")
    with pytest.raises(NotFound, match="no snapshot of everybody"):
        plan_at([], 9)
    with pytest.raises(NotFound, match="no snapshot of user 'x'"):
        plan_at([step(5, "documents")], 9, whose="user 'x'")


def test_all_suspect():
    with pytest.raises(NotFound, match="suspect") as caught:
        plan_at([replace(FIRST, suspect=True), replace(FULL, suspect=True)], 99)
    assert FIRST.id in (caught.value.hint or "")


def test_the_nearest_is_damaged():
    with pytest.raises(ChainBroken, match=r"memory-all-30.*is damaged"):
        plan_at([Step.unreadable(SECOND.id), FIRST, FULL], 30)
    assert plan_at([Step.unreadable(SECOND.id), FIRST, FULL], 29)[-1] == FIRST


def test_a_hole():
    assert f"{FIRST.id}, on which {SECOND.id} is built, is gone" in refusal([SECOND, FULL])
    assert f"{FULL.id}, on which {FIRST.id} is built, is gone" in refusal([SECOND, FIRST])


def test_a_damaged_link():
    assert "is damaged" in refusal([SECOND, Step.unreadable(FIRST.id), FULL])
    assert "is damaged" in refusal([Step.unreadable(SECOND.id), FIRST, FULL])


def test_a_replaced_link():
    assert f"{FULL.id} is not the one that {FIRST.id} was built on" in refusal([SECOND, FIRST, replace(FULL, checksum="another")])


@pytest.mark.parametrize(
    "link",
    [
        model.Link(id="memory-all-30", checksum="sum of all 30"),
        model.Link(id="memory-all-40", checksum="sum of all 40"),
        model.Link(id="memory-bob-10", checksum="sum of bob 10"),
    ],
    ids=["itself", "later", "another scope"],
)
def test_no_circle_and_no_stranger(link):
    steps = [step(40), replace(SECOND, parent=link), step(10, scope="bob"), FULL]
    assert "not an earlier snapshot of the same scope" in refusal(steps)


def test_no_parent_at_all():
    assert "does not name what it is built on" in refusal([replace(SECOND, parent=None), FULL])
    assert "no snapshot's id" in refusal([replace(SECOND, parent=model.Link(id="../x", checksum="")), FULL])


def test_what_is_no_part_of_a_chain():
    documents = step(10, "documents")
    assert "documents" in refusal([step(30, "incremental", documents), documents])
    assert "documents" in refusal([step(30, "documents"), FULL])
    odd = step(10, "differential")
    assert "differential" in refusal([step(30, "incremental", odd), odd])


# --- against the definition ---------------------------------------------------------------------------------------------------------


@st.composite
def histories(draw) -> list[Step]:
    """Snapshots of one scope, newest first: most of them sound, some of them not."""
    made: list[Step] = []
    for at in sorted(draw(st.sets(st.integers(1, 60), min_size=1, max_size=14))):
        kind = draw(st.sampled_from(["full", "incremental", "incremental", "incremental", "documents"])) if made else "full"
        parent = draw(st.sampled_from(made[-3:])) if kind == "incremental" else None
        made.append(step(at, kind, parent, suspect=draw(st.integers(0, 7)) == 0))
    for number, found in enumerate(made):
        harm = draw(st.integers(0, 24))
        if harm == 0:
            made[number] = replace(found, checksum="replaced")
        elif harm == 1:
            made[number] = Step.unreadable(found.id)
        elif harm == 2:
            made[number] = replace(found, kind="incremental", parent=None)
        elif harm == 3:
            other = draw(st.sampled_from(made))
            made[number] = replace(found, kind="incremental", parent=model.Link(id=other.id, checksum=other.checksum or ""))
    gone = draw(st.sets(st.integers(0, len(made) - 1), max_size=2))
    return [s for number, s in reversed(list(enumerate(made))) if number not in gone]


def defined(steps: list[Step], snapshot: str) -> tuple[Step, ...] | None:
    """What a chain is, said backwards: a full one, then each built on the one before it."""
    there = {s.id: s for s in steps}
    found = [there[snapshot]] if snapshot in there else []
    while found and found[0].kind == "incremental":
        link = found[0].parent
        before = there.get(link.id) if link else None
        if link is None or before is None or before.checksum != link.checksum or before.checksum is None or before.at >= found[0].at:
            return None
        found.insert(0, before)
    return tuple(found) if found and found[0].kind == "full" else None


def answer(plan, *arguments) -> tuple[Step, ...] | None:
    try:
        return plan(*arguments)
    except ColdStoreError:
        return None


@given(histories(), st.integers(0, 61))
def test_by_id_as_defined(steps, at):
    wanted = f"memory-all-{at}"
    assert answer(plan, iter(steps), wanted) == defined(steps, wanted)


@given(histories(), st.integers(0, 61))
def test_by_moment_as_defined(steps, moment):
    until = [s for s in steps if s.at <= moment and s.kind != "documents"]
    target = next((s for s in until if s.checksum is None or not s.suspect), None)
    expected = defined(steps, target.id) if target else None
    assert answer(plan_at, iter(steps), moment) == expected


@given(histories(), st.data())
def test_what_is_built_on_some_is_what_breaks_without_them(steps, data):
    gone = {s.id for s in data.draw(st.lists(st.sampled_from(steps), max_size=3))} if steps else set()
    left = [s for s in steps if s.id not in gone]
    breaks = {s.id for s in left if defined(steps, s.id) is not None and defined(left, s.id) is None}
    found = [s.id for s in built_on(steps, gone)]
    assert breaks <= set(found)
    assert not gone & set(found)
    assert [s.id for s in newest_first(s for s in steps if s.id in found)] == found
