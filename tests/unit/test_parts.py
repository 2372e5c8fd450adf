"""One document as several objects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstore.errors import ObjectExists, ObjectMissing
from coldstore.storage import layout, parts
from coldstore.storage.local import LocalStore

KEY = "snapshots/2026-02-26/memory-a-1772071200000.json"


@pytest.fixture
def store(tmp_path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"))


def keys(store: LocalStore) -> list[str]:
    return [o.key for o in store.list()]


def write(store, *pieces: bytes, limit: int | None) -> dict[str, int]:
    with parts.create(store, KEY, limit=limit) as out:
        for piece in pieces:
            out.write(piece)
    found = {o.key: o.size for o in store.list()}
    assert list(found.values()) == out.sizes
    return found


def test_one_of_any_size_without_a_limit(store):
    assert write(store, b"abc", b"defg", limit=None) == {KEY: 7}


def test_parts_are_full_but_the_last(store):
    assert write(store, b"abcd", b"efghijk", limit=3) == {KEY: 3, f"{KEY}.0002": 3, f"{KEY}.0003": 3, f"{KEY}.0004": 2}
    assert store.read(f"{KEY}.0003") == b"ghi"
    assert parts.read(store, {o.key: o.size for o in store.list()}, start=2, length=7) == b"cdefghi"


def test_what_just_fits_is_one(store):
    assert write(store, b"abc", limit=3) == {KEY: 3}


def test_nothing_is_an_object_too(store):
    assert write(store, limit=3) == {KEY: 0}


class Pieces:
    """What a document was cut into."""

    def __init__(self, data: bytes, limit: int) -> None:
        cut = [data[at : at + limit] for at in range(0, len(data), limit)] or [b""]
        self.pieces = {layout.part_key(KEY, number): piece for number, piece in enumerate(cut, 1)}

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        return self.pieces[key][start : None if length is None else start + length]


@given(data=st.binary(max_size=60), limit=st.integers(1, 15), start=st.integers(0, 70), length=st.integers(0, 70))
def test_parts_are_read_as_one(data, limit, start, length):
    cut = Pieces(data, limit)
    sizes = {key: len(piece) for key, piece in cut.pieces.items()}
    assert parts.read(cut, sizes, start=start, length=length) == data[start : start + length]


def test_a_failure_leaves_no_part(store):
    def fail() -> None:
        with parts.create(store, KEY, limit=2) as out:
            out.write(b"abcdefg")
            assert keys(store) == [KEY, f"{KEY}.0002", f"{KEY}.0003"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert keys(store) == []


@pytest.mark.parametrize("taken", [KEY, f"{KEY}.0002", f"{KEY}.0003"])
def test_a_name_that_is_taken_leaves_only_the_other(store, taken):
    with store.create(taken) as out:
        out.write(b"theirs")
    with pytest.raises(ObjectExists), parts.create(store, KEY, limit=2) as out:
        out.write(b"abcde")
    assert keys(store) == [taken]
    assert store.read(taken) == b"theirs"


def test_a_part_that_is_gone_is_missing(store):
    sizes = write(store, b"abcdef", limit=2)
    store.delete(f"{KEY}.0002")
    with pytest.raises(ObjectMissing):
        parts.read(store, sizes, start=1, length=4)
    assert parts.read(store, sizes, start=4, length=2) == b"ef"
