"""Rows of two documents side by side, against the plainest way to say the same."""

from __future__ import annotations

import errno
import tempfile
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstore.errors import ColdStoreError
from coldstore.matching import Matches, Record, Spool

ROWS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=30)


def hashed(number: int) -> bytes:
    return bytes([number * 37 % 256]) + number.to_bytes(15, "big")


def records(rows: list[tuple[int, int]]) -> list[Record]:
    return [Record(hashed(key), hashed(content), n // 4, n % 4) for n, (key, content) in enumerate(rows)]


def spooled(rows: list[tuple[int, int]], *, held: int) -> list[list[Record]]:
    with Spool(held=held) as spool:
        for record in records(rows):
            spool.add(record)
        return [list(spool.bucket(n)) for n in range(Spool.BUCKETS)]


def matched(before: list[tuple[int, int]], after: list[tuple[int, int]], *, held: int = 100, limit: int | None = None) -> Matches:
    matches = Matches(limit)
    for old, new in zip(spooled(before, held=held), spooled(after, held=held), strict=True):
        matches.take(old, new)
    return matches


@settings(deadline=None)
@given(ROWS, st.sampled_from([1, 100, 1 << 20]))
def test_a_spool_gives_back_what_it_was_given(rows, held):
    found = [record for bucket in spooled(rows, held=held) for record in bucket]
    assert sorted(found) == sorted(records(rows))


@settings(deadline=None)
@given(ROWS, ROWS, st.sampled_from([1, 1 << 20]))
def test_counts_against_multisets(before, after, held):
    """Keys may repeat, as in a tier without a primary key or with inherited tables."""
    found = matched(before, after, held=held)
    unchanged = sum((Counter(before) & Counter(after)).values())
    left, right = (Counter(k for k, _ in (Counter(a) - Counter(b)).elements()) for a, b in ((before, after), (after, before)))
    changed = sum((left & right).values())
    assert found.unchanged == unchanged
    assert found.counts == {
        "changed": changed,
        "removed": sum(left.values()) - changed,
        "added": sum(right.values()) - changed,
    }


@settings(deadline=None)
@given(ROWS, ROWS)
def test_every_row_is_in_one_pair_or_unchanged(before, after):
    found = matched(before, after)
    pairs = found.chosen()
    assert len(pairs) == sum(found.counts.values())
    assert sum(old is not None for old, _ in pairs) + found.unchanged == len(before)
    assert sum(new is not None for _, new in pairs) + found.unchanged == len(after)
    assert all(old.key == new.key and old.content != new.content for old, new in pairs if old and new)


@settings(deadline=None)
@given(ROWS, ROWS, st.integers(0, 5))
def test_a_limit_keeps_the_first_of_each_kind(before, after, limit):
    everything, some = matched(before, after), matched(before, after, limit=limit)
    assert some.counts == everything.counts

    def of_kind(matches, old, new):
        return [p for p in matches.chosen() if (p[0] is not None, p[1] is not None) == (old, new)]

    for kind in ((True, True), (True, False), (False, True)):
        assert of_kind(some, *kind) == of_kind(everything, *kind)[:limit]


def test_a_limit_bounds_what_is_held():
    matches = Matches(1)
    matches.take([], records([(n, 0) for n in range(250)] * 8))
    assert matches.counts["added"] == 2000
    assert max(map(len, matches._pairs.values())) < 150


def test_a_full_temporary_folder_is_said(monkeypatch):
    class Full:
        def tell(self):
            return 0

        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with Spool(held=1) as spool, pytest.raises(ColdStoreError, match="No space left") as caught:
        spool.add(Record(hashed(1), hashed(1), 0, 0))
    assert "TMPDIR" in (caught.value.hint or "")
