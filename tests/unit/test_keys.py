"""`check_key`: no key leaves the root or poses as a temporary file of ours."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstore.errors import InvalidKey
from coldstore.storage.shared import check_folder, check_prefix, flat, pause_before
from coldstore.storage.store import check_key

segments = st.sampled_from(["", ".", "..", "a", "...", "..a", "b c", "%2e%2e", ".tmp-x", "x.tmp-", "\0", "é", "😀"])


@pytest.mark.parametrize("key", ["a", "a/b", "..a", "a..", "...", "a/..b/c", "a b", "%2e%2e/x", ".hidden", ".tmp-x/file", "é/😀"])
def test_usable(key):
    assert check_key(key) == key


@pytest.mark.parametrize(
    "key", ["", "/", "/a", "a/", "a//b", ".", "..", "./a", "../a", "a/..", "a/../b", "a/.", "a\0", ".tmp-x", "a/.tmp-x"]
)
def test_refused(key):
    with pytest.raises(InvalidKey) as caught:
        check_key(key)
    assert caught.value.key == key
    assert caught.value.hint


@given(st.lists(segments, max_size=6).map("/".join))
def test_what_passes_stays_below_the_root(key):
    try:
        check_key(key)
    except InvalidKey:
        return
    joined = posixpath.normpath(posixpath.join("/root", key))
    assert joined == f"/root/{key}"
    assert not posixpath.basename(joined).startswith(".tmp-")


@given(st.lists(segments, max_size=6).map("/".join), st.integers(0, 40))
def test_every_beginning_of_a_usable_key_is_a_usable_prefix(key, cut):
    try:
        check_key(key)
    except InvalidKey:
        return
    assert check_prefix(key[:cut]) == key[:cut]


@pytest.mark.parametrize("prefix", ["/", "/a", "../", "a/../b", "a//", "./", "a\0"])
def test_refused_prefixes(prefix):
    with pytest.raises(InvalidKey):
        check_prefix(prefix)


def test_a_folder_ends_in_a_slash():
    assert (check_folder(""), check_folder("a/b/")) == ("", "a/b/")
    with pytest.raises(InvalidKey):
        check_folder("a/b")


@given(st.binary(max_size=64))
def test_flat_counts_bytes(data):
    assert bytes(flat(data)) == data
    whole = data[: len(data) // 8 * 8]
    assert len(flat(memoryview(whole).cast("Q"))) == len(whole)


@given(st.integers(1, 200))
def test_pauses_are_bounded(attempt):
    assert 0 < pause_before(attempt) <= 8
