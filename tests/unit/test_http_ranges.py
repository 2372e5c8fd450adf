"""Which bytes a request asks for, held against slicing; and which frames are looked at for them."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstore.http import ranges
from coldstore.http.ranges import Span, Unsatisfiable

TAG = ranges.entity_tag("a" * 64)


def wanted(header: str | None, *, size: int = 100, if_range: str | None = None) -> Span | None:
    return ranges.wanted(header, if_range, tag=TAG, size=size)


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, 100),
        ("bytes=10-19", 10, 20),
        ("bytes=99-99", 99, 100),
        ("bytes=90-1000", 90, 100),
        ("bytes=-1", 99, 100),
        ("bytes=-100", 0, 100),
        ("bytes=-5000", 0, 100),
        ("BYTES=1-2", 1, 3),
        (" bytes = 1-2 ", 1, 3),
        ("bytes=0-" + "9" * 400, 0, 100),
    ],
)
def test_one_range_is_understood(header, start, stop):
    assert wanted(header) == Span(start, stop, 100)


@pytest.mark.parametrize(
    "header",
    [
        *(None, "", "bytes", "bytes=", "bytes=-", "bytes=5-4", "bytes=1-2,4-5", "bytes=a-b", "lines=0-1", "bytes=+1-2", "bytes=1.5-2"),
        *("bytes=٣-٤", "bytes=--1", "bytes=0-1;x", "bytes=0-" + "9" * 5000),
    ],
)
def test_what_is_not_understood_is_answered_with_the_whole(header):
    assert wanted(header) is None


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=" + "9" * 400 + "-"])
def test_what_begins_behind_the_end_is_refused(header):
    with pytest.raises(Unsatisfiable):
        wanted(header)


def test_of_nothing_no_range_can_be_had():
    for header in ("bytes=0-", "bytes=-1"):
        with pytest.raises(Unsatisfiable):
            wanted(header, size=0)


@pytest.mark.parametrize("condition", ['"other"', f"W/{TAG}", "Sat, 21 Nov 2026 12:00:00 GMT", TAG.strip('"'), ""])
def test_a_range_of_something_else_is_answered_with_the_whole(condition):
    assert wanted("bytes=1-2", if_range=condition) is None
    assert wanted("bytes=500-", if_range=condition) is None  # nor is it out of reach: it is not looked at
    assert wanted("bytes=1-2", if_range=TAG) == Span(1, 3, 100)


def test_what_the_client_has_is_recognised():
    for header in ("*", TAG, f"W/{TAG}", f'"x", {TAG}', f'"x",W/{TAG},"y"', f" {TAG} "):
        assert ranges.is_known(header, TAG)
    for header in (None, "", '"x"', TAG.strip('"'), '"' + "a" * 63 + '"'):
        assert not ranges.is_known(header, TAG)


def test_a_range_says_where_it_lies():
    assert Span(10, 20, 100).content_range == "bytes 10-19/100"
    assert Span(10, 20, 100).length == 10


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=8), st.data())
def test_pieces_are_the_bytes_asked_for_and_of_no_other_frame(frames, data):
    whole = b"".join(frames)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    looked: list[int] = []

    def frame(number: int) -> bytes:
        looked.append(number)
        return frames[number]

    works = list(ranges.pieces([len(f) for f in frames], Span(start, stop, len(whole)), frame))
    assert looked == []  # nothing is fetched before it is asked for
    assert b"".join(work() for work in works) == whole[start:stop]
    ends = list(accumulate(map(len, frames)))
    assert looked == [n for n, end in enumerate(ends) if frames[n] and end > start and end - len(frames[n]) < stop]


@given(st.text("bytes=-,0123456789 ", max_size=20), st.integers(0, 50))
def test_any_header_gives_the_whole_or_a_part_of_it_or_is_refused(header, size):
    try:
        found = wanted(header, size=size)
    except Unsatisfiable:
        return
    assert found is None or 0 <= found.start < found.stop <= size
