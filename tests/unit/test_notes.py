"""An agent's own documents as rows: equal to what they were, or refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstore.document.notes import decode_note, encode_note
from coldstore.errors import CorruptDocument, InvalidMemory

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


def same(one, other) -> bool:
    """Equal, and of the same types all the way down: 1, 1.0 and True are three things, as 0.0 and -0.0 are two."""
    return repr(one) == repr(other)


@given(name=TEXT, value=JSON | st.binary(), executable=st.booleans())
def test_what_goes_in_comes_out(name, value, executable):
    row = encode_note(name, value, executable=executable)
    assert b"\n" not in row
    found, again, runs = decode_note(row)
    assert (found, runs) == (name, executable)
    assert same(again, value)


@pytest.mark.parametrize(
    "value",
    ["", b"", [], {}, 0, 10**400, -0.0, 5e-324, 1.7976931348623157e308, '\x00\u2028\r\n\\"', {"": [None, True]}, bytes(range(256))],
    ids=repr,
)
def test_edges_come_out(value):
    assert same(decode_note(encode_note("n", value))[1], value)


def test_other_buffers_are_bytes():
    assert decode_note(encode_note("n", bytearray(b"ab")))[1] == b"ab"
    assert decode_note(encode_note("n", memoryview(b"ab")))[1] == b"ab"


def test_a_tuple_comes_back_as_a_list():
    assert decode_note(encode_note("n", {"a": (1, 2)}))[1] == {"a": [1, 2]}


def nested(levels: int) -> list:
    found: list = []
    for _ in range(levels):
        found = [found]
    return found


CYCLE: list = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "not JSON"),
        ({"a": [math.inf]}, "not JSON"),
        ({1: 2}, "the key 1 is no text"),
        ({"a": {None: 2}}, "the key None is no text"),
        ({"a": {1, 2}}, "type set"),
        ({"a": b"x"}, "type bytes"),
        (object(), "type object"),
        (CYCLE, "[Cc]ircular"),
        (nested(250), "levels deep"),
        (nested(100_000), "recursion"),
        ("\ud800", "not Unicode"),
        ({"a": "\udfff"}, "not Unicode"),
        (10**5000, "digits"),
    ],
    ids=lambda v: v if isinstance(v, str) and v.isascii() else "value",
)
def test_what_would_come_back_as_something_else_is_refused(value, said):
    with pytest.raises(InvalidMemory, match=said) as refused:
        encode_note("a name", value)
    assert "'a name'" in str(refused.value)
    assert refused.value.hint


@pytest.mark.parametrize("name", [1, None, b"x", ("a",)])
def test_names_are_text(name):
    with pytest.raises(InvalidMemory, match="no text"):
        encode_note(name, "x")
    with pytest.raises(InvalidMemory, match="not Unicode"):
        encode_note("\ud800", "x")


def test_the_deepest_that_is_taken_is_read_again():
    assert decode_note(encode_note("n", nested(199)))[1] == nested(199)


@pytest.mark.parametrize(
    "row",
    [
        b"",
        b"{}",
        b"[]",
        b'{"name":1,"text":"x"}',
        b'{"name":"n","text":1}',
        b'{"name":"n","base64":"*"}',
        b'{"name":"n","text":"\xff"}',
        b"{",
    ],
)
def test_a_row_that_is_none_is_refused(row):
    with pytest.raises(CorruptDocument, match="cannot be read"):
        decode_note(row)


def test_content_of_a_later_version_is_refused_and_its_members_are_not():
    with pytest.raises(CorruptDocument, match="no content") as refused:
        decode_note(b'{"name":"n","cbor":"x"}')
    assert "newer" in refused.value.hint
    assert decode_note(b'{"name":"n","text":"x","later":[1]}') == ("n", "x", False)
