"""The succession of snapshots against a small simulation of how stores come to be: honest histories raise no alarm, however much happens at
once; of whatever is removed or replaced without a record exactly what another one names is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstore.document.model import Link
from coldstore.errors import NotFound
from coldstore.ledger import Entry, all_breaks, breaks

FEB_26 = 1772071200000
MINUTE = 60_000


@dataclass
class Simulated:
    """One scope. `latest` is where the pointer stands, as `catalog.point_latest` moves it."""

    scope: str
    entries: dict[int, Entry] = field(default_factory=dict)
    deleted: dict[int, Entry] = field(default_factory=dict)
    latest: Entry | None = None

    def commit(self, entry: Entry) -> None:
        self.entries[entry.began] = entry
        if self.latest is None or self.latest.began <= entry.began:
            self.latest = entry

    def delete(self, began: int) -> None:
        self.deleted[began] = replace(self.entries.pop(began), deleted=True)
        if self.latest is not None and self.latest.began == began:
            self.latest = self.entries[max(self.entries)] if self.entries else None

    def every(self) -> list[Entry]:
        return [*self.entries.values(), *self.deleted.values()]

    def named(self) -> set[str]:
        """What entries, also deleted ones, name as the one before them."""
        return {e.previous.id for e in self.every() if e.previous}


@st.composite
def histories(draw, scope: str = "all") -> Simulated:
    """Snapshots begin in the order of time, and take so long that several are under way at once; each names what it saw when it began.
    Between what it says of its own duration and the moment when others see it may lie most of a minute."""
    made = Simulated(scope)
    under_way: list[tuple[float, Entry]] = []
    now = FEB_26
    for number in range(draw(st.integers(1, 9))):
        now += draw(st.integers(1, 20) | st.integers(1, 10 * MINUTE))
        for done, entry in sorted(under_way, key=lambda u: u[0]):
            if done <= now:
                made.commit(entry)
                under_way.remove((done, entry))
        if made.entries and draw(st.integers(0, 3)) == 0:
            made.delete(draw(st.sampled_from(sorted(made.entries))))
            continue
        seen = made.latest
        lasted = draw(st.integers(0, 50) | st.integers(0, 30 * MINUTE))
        entry = Entry(f"memory-{scope}-{now}", f"sum {number}", seen and Link(id=seen.id, checksum=seen.checksum), lasted)
        under_way.append((now + lasted + draw(st.integers(0, MINUTE - 1)), entry))
    for _, entry in sorted(under_way, key=lambda u: u[0]):
        made.commit(entry)
    return made


@settings(deadline=None, max_examples=75)
@given(histories(), histories("u"), st.randoms(use_true_random=False))
def test_an_honest_history_raises_no_alarm(one, other, chance):
    entries = [*one.every(), *other.every()]
    chance.shuffle(entries)
    assert all_breaks(entries) == {}
    assert all(breaks(e, {x.id: x for x in entries}.get) == [] for e in entries)


@settings(deadline=None, max_examples=75)
@given(histories(), st.data())
def test_what_was_removed_is_noticed_where_another_names_it(history, data):
    """And nowhere else: of the newest nothing tells."""
    gone = data.draw(st.sampled_from(history.every()))
    left = [e for e in history.every() if e != gone]
    found = all_breaks(left)
    following = {e.id for e in left if e.previous and e.previous.id == gone.id}
    assert set(found) == following
    assert all(gone.id in problem for problems in found.values() for problem in problems)


@settings(deadline=None, max_examples=75)
@given(histories(), st.data())
def test_what_was_replaced_is_noticed_where_another_names_it(history, data):
    old = data.draw(st.sampled_from(history.every()))
    left = [replace(e, checksum="another") if e == old else e for e in history.every()]
    assert set(all_breaks(left)) == {e.id for e in left if e.previous and e.previous.id == old.id}
    unreadable = [replace(e, checksum=None) if e == old else e for e in history.every()]
    assert all_breaks(unreadable) == {}  # it is damaged, which its own verdict says


@settings(deadline=None)
@given(histories(), st.data())
def test_a_record_without_its_deletion(history, data):
    """It was written, and the program died before anything was deleted: what is there counts."""
    if history.entries:
        kept = history.entries[data.draw(st.sampled_from(sorted(history.entries)))]
        record = replace(kept, deleted=True, checksum=data.draw(st.sampled_from([kept.checksum, "another"])))
        for order in ([*history.every(), record], [record, *history.every()]):
            assert all_breaks(order) == {}


@settings(deadline=None)
@given(histories(), st.data())
def test_a_link_that_was_bent(history, data):
    linked = [e for e in history.every() if e.previous]
    if not linked:
        return
    entry = data.draw(st.sampled_from(linked))
    wrong = data.draw(
        st.sampled_from(
            [
                entry.id,
                f"memory-all-{entry.began + 1}",
                f"memory-other-{entry.began - 1}",
                "nonsense",
                "",
                "memory-all-",
                f"memory-all-{FEB_26 - 1}",
            ]
        )
    )
    bent = replace(entry, previous=Link(id=wrong, checksum=entry.previous.checksum))
    left = [bent if e == entry else e for e in history.every()]
    assert list(all_breaks(left)) == [entry.id]


def test_one_that_denies_an_earlier_one():
    """It names none, though one was there for long."""
    first = Entry(f"memory-all-{FEB_26}", "a", None, 1000)
    denies = Entry(f"memory-all-{FEB_26 + 10 * MINUTE}", "b")
    assert all_breaks([denies, first]) == {denies.id: [f"it names no snapshot before it, though {first.id} was there"]}
    for honest in (
        [first, replace(denies, id=f"memory-all-{FEB_26 + MINUTE}")],  # it may not have been stored yet
        [replace(first, lasted=20 * MINUTE), denies],  # it was still being written
        [replace(first, deleted=True), denies],  # it may have been deleted before
        [replace(first, id=f"memory-u-{FEB_26}"), denies],
        [first, replace(denies, checksum=None)],  # what it names cannot be read
    ):
        assert all_breaks(honest) == {}


def test_what_is_no_id():
    with pytest.raises(NotFound):
        Entry("nonsense", "a")
