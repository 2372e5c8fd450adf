"""Documents of other programs: the same rows as `json.loads` finds, byte for byte, however they are written and cut."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstore.document.foreign import split
from coldstore.errors import CorruptDocument, DocumentError, TruncatedDocument

texts = st.text(st.sampled_from('ab"\\/{}[],: \n\té😀\u2028'), max_size=6) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6)
rows = st.dictionaries(texts, values, max_size=4)
tables = st.lists(rows, max_size=4) | st.lists(rows | scalars | st.lists(rows, max_size=2), max_size=4)
objects = st.dictionaries(texts | st.sampled_from(["dailyMemories", "daily_memories", "uid", "snapshotAt"]), tables | values, max_size=5)


@st.composite
def styles(draw):
    """Ways to write JSON."""
    indent = draw(st.sampled_from([None, 0, 1, 4, "\t"]))
    separators = draw(st.sampled_from([None, (",", ":"), (" , ", " : "), ("\n,\r\n", "\t:\n")]))
    ascii_only = draw(st.booleans())
    return lambda value: json.dumps(value, indent=indent, separators=separators, ensure_ascii=ascii_only).encode()


def chunked(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` cut at the given places, empty chunks among them."""
    places = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]


def expected(found: dict) -> list[tuple[str, object]]:
    return [(name, row) for name, value in found.items() if isinstance(value, list) for row in value if isinstance(row, dict)]


def rest_of(found: dict) -> dict:
    """What must be left: each row has become a 0."""
    return {n: [0 if isinstance(r, dict) else r for r in v] if isinstance(v, list) else v for n, v in found.items()}


@settings(deadline=None, max_examples=50)
@given(objects, styles(), st.lists(st.integers(0, 10**6), max_size=30))
def test_the_same_rows_as_json_finds(found, write, cuts):
    data = write(found)
    found = json.loads(data)
    skeleton: dict = {}
    cut = list(split(chunked(data, cuts), skeleton=skeleton))
    assert [(name, json.loads(row)) for name, row in cut] == expected(found)
    assert json.loads(json.dumps(skeleton)) == rest_of(found) or any_large(found)
    at = 0
    for _, row in cut:  # the very bytes, in order
        at = data.index(row, at) + len(row)


def any_large(value: object) -> bool:
    """A number that only the rows keep exactly: elsewhere msgspec reads it as a float."""
    if isinstance(value, dict):
        return any(map(any_large, value.values()))
    if isinstance(value, list):
        return any(map(any_large, value))
    return isinstance(value, int) and abs(value) >= 2**63


@settings(deadline=None, max_examples=50)
@given(objects, styles())
def test_a_byte_at_a_time(found, write):
    data = write(found)
    assert list(split(bytes([b]) for b in data)) == list(split([data]))


@pytest.mark.parametrize(
    "row",
    [
        b'{"n":123456789012345678901234567890.10}',
        b'{"n":1e400,"m":-0.0,"k":1.50}',
        b'{ "s" : "\\u00e9\\/\\ud83d\\ude00" }',
        b'{"a":1,"a":2}',
        b'{"t":"]}\\"},{[\\\\"}',
        b'{"x":{"y":[{"z":[]},{}]}}',
        b"{}",
    ],
)
def test_rows_are_handed_out_as_they_were_written(row):
    data = b'\n{ "snapshotAt" : "now", "dailyMemories" : [ ' + row + b" ,\n" + row + b' ], "x": {"y": [{}]}, "z": []}\n'
    for step in (1, 3, len(data)):
        found = list(split(data[i : i + step] for i in range(0, len(data), step)))
        assert found == [("dailyMemories", row)] * 2


def test_only_objects_directly_in_an_array_of_the_top_level_are_rows():
    data = b'{"a":{"b":[{"c":1}]},"d":[[{"e":1}],{"f":1},2,"{",null],"g":{"h":1}}'
    skeleton: dict = {}
    assert list(split([data], skeleton=skeleton)) == [("d", b'{"f":1}')]
    assert skeleton == {"a": {"b": [{"c": 1}]}, "d": [[{"e": 1}], 0, 2, "{", None], "g": {"h": 1}}


def test_a_byte_order_mark_is_forgiven():
    assert list(split([b'\xef\xbb\xbf{"a":[{"b":1}]}'])) == [("a", b'{"b":1}')]


def test_an_array_whose_name_is_escaped():
    assert list(split([b'{"d\\u0061ily\\n":[{}]}'])) == [("daily\n", b"{}")]


def test_memory_is_bounded_by_the_largest_row():
    """A gigabyte of rows would not fit in this test, a scanner that kept every row would show in the first hundred thousand."""
    from coldstore.document import foreign

    scanner = foreign._Scanner()
    count = sum(1 for _ in scanner.feed(b'{"a":['))
    for _ in range(1000):
        count += sum(1 for _ in scanner.feed(b'{"x":"%s"},' % (b"y" * 1000) * 10))
        assert len(scanner.text) < 20_000
    assert count == 10_000
    assert len(scanner.skeleton) < 30_000


# --- what is refused ---------------------------------------------------------------------------------------------------------------

SAMPLE = json.dumps(
    {
        "snapshotAt": "2026-02-26",
        "uid": None,
        "dailyMemories": [{"id": 1, "t": 'a"]}\\é'}, {}],
        "graphEntities": [],
        "n": -1.5,
        "x": {"y": [[], {}]},
    },
    indent=1,
    ensure_ascii=False,
).encode()


@pytest.mark.parametrize("data", [SAMPLE, b"".join(SAMPLE.split()), b"  " + SAMPLE + b"\n \n"])
def test_truncation_anywhere_is_refused(data):
    whole = list(split([data]))
    for cut in range(len(data)):
        if not data[cut:].strip():
            assert list(split([data[:cut]])) == whole
            continue
        with pytest.raises((TruncatedDocument, CorruptDocument)):
            list(split([data[:cut]]))
        if data[:cut].strip():
            with pytest.raises(TruncatedDocument):
                list(split([data[:cut]]))


@settings(deadline=None, max_examples=40)
@given(objects, styles(), st.integers(0, 10**6), st.integers(1, 20))
def test_truncation_of_any_document_is_refused(found, write, cut, step):
    data = write(found).strip()
    part = data[: cut % len(data)]
    with pytest.raises((TruncatedDocument, CorruptDocument)):
        list(split(part[i : i + step] for i in range(0, len(part), step)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" \n",
        b"[]",
        b'[{"a":1}]',
        b"1",
        b"null",
        b'"{}"',
        b"{}{}",
        b'{"a":[]}]',
        b'{"a":[{}}]',
        b'{"a":[{]}',
        b"]",
        b'{"a":[{} {}]}',
        b'{"a":[,{}]}',
        b'{"a":[{},]}',
        b"{a:[{}]}",
        b'{"a" [{}]}',
        b"{'a':[{}]}",
        b'{"a":[{}]} trailing',
        '{"a":[{}]}'.encode("utf-16"),
        b'{"\xff":1}',
        b'{"a":NaN}',
        b'{"a":[{}],}',
        b'{"x":[1,2}',
        b"PK\x03\x04",
        b"uid,date\n1,2\n",
    ],
)
def test_what_is_no_document(data):
    for step in (1, 1 << 20):
        with pytest.raises(CorruptDocument):
            list(split(data[i : i + step] for i in range(0, len(data), step)))


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"a":[', b'{"a":[{"b":['])
def test_a_document_that_is_nested_too_deeply(opening):
    with pytest.raises(CorruptDocument):
        list(split([opening * 20_000]))


@settings(deadline=None, max_examples=75)
@given(st.binary(max_size=60) | st.text('{}[]",:\\ a1', max_size=60).map(str.encode), st.integers(1, 8))
def test_any_bytes_end_in_one_of_our_errors(data, step):
    for text in (data, b'{"a":[' + data, b'{"a":[' + data + b"]}", b'{"a":[{"b":"' + data + b'"}]}'):
        try:
            for _, row in split(text[i : i + step] for i in range(0, len(text), step)):
                assert row[:1] + row[-1:] == b"{}"
        except DocumentError:
            pass


@settings(deadline=None, max_examples=50)
@given(st.integers(0, len(SAMPLE) - 1), st.binary(max_size=3), st.integers(0, 3))
def test_an_altered_document_gives_rows_or_one_of_our_errors(at, new, gone):
    altered = SAMPLE[:at] + new + SAMPLE[at + gone :]
    try:
        found = list(split([altered]))
    except DocumentError:
        return
    assert all(isinstance(name, str) for name, _ in found)


def test_long_documents_in_small_chunks():
    """Long rows, long gaps and long strings, none of which may cost more than its length."""
    long = {
        "pad": "x" * 200_000,
        "a": [{"s": '\\"' * 50_000}, {"s": "y" * 300_000}, *({"n": n} for n in range(5_000))],
        "gap": {"z": [0] * 50_000},
    }
    data = json.dumps(long, indent=2).encode()
    found = list(split(data[i : i + 997] for i in range(0, len(data), 997)))
    assert [json.loads(row) for _, row in found] == long["a"]
