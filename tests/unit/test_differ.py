"""Values and rows told apart: what is named differs, and what is not named is equal."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coldstore.differ import Path, RowDiffer, places
from coldstore.document import model
from coldstore.errors import CorruptDocument

NAMES = st.sampled_from(["a", "b", "", "weird key", "ä\n"])
LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "x", "1", '"', "é"]) | st.floats(allow_nan=False, width=16)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=25)


def text(value: object) -> bytes:
    return msgspec.json.encode(value)


def at(value: Any, path: Path) -> Any:
    for step in path:
        value = value[step]
    return value


GONE = object()


def without(value: Any, paths: dict[Path, object]) -> Any:
    """`value` with what stands at `paths` taken out, or another thing in its place."""

    def walk(found: Any, here: Path) -> Any:
        if here in paths:
            return paths[here]
        if isinstance(found, dict):
            return {k: w for k, v in found.items() if (w := walk(v, (*here, k))) is not GONE}
        if isinstance(found, list):
            return [w for n, v in enumerate(found) if (w := walk(v, (*here, n))) is not GONE]
        return found

    return walk(value, ())


@settings(deadline=None)
@given(VALUES, VALUES)
@example([1, {"a": 1}, {"a": 2}], [{"a": 1}, {"a": 3}])
@example({"a": [{"b": 1}] * 3}, {"a": [{"b": 1}] * 2})
def test_what_is_not_named_is_equal(before, after):
    """Take away what was removed, and from the other what was added; mark what was changed: nothing else may be different."""
    found = places(text(before), text(after))
    old: dict[Path, object] = {p.was: GONE if p.path is None else ("changed", n) for n, p in enumerate(found) if p.was is not None}
    new: dict[Path, object] = {p.path: GONE if p.was is None else ("changed", n) for n, p in enumerate(found) if p.path is not None}
    assert text(without(before, old)) == text(without(after, new)) or same_but_for_order(without(before, old), without(after, new))


def same_but_for_order(before: Any, after: Any) -> bool:
    return json.dumps(before, sort_keys=True) == json.dumps(after, sort_keys=True)


@settings(deadline=None)
@given(VALUES, VALUES)
def test_what_is_named_differs_and_stands_there(before, after):
    found = places(text(before), text(after))
    assert bool(found) == (text(before) != text(after))
    for place in found:
        assert place.before != place.after
        for value, path, said in ((before, place.was, place.before), (after, place.path, place.after)):
            assert (path is None) == (said is None)
            if path is not None and said is not None:
                assert text(at(value, path)) == said


@settings(deadline=None)
@given(VALUES)
def test_a_value_does_not_differ_from_itself(value):
    assert places(text(value), text(value)) == []


@settings(deadline=None)
@given(VALUES, VALUES)
def test_the_other_way_round_is_the_inverse_in_kind(before, after):
    there = [(p.before is None, p.after is None) for p in places(text(before), text(after))]
    back = [(p.after is None, p.before is None) for p in places(text(after), text(before))]
    assert bool(there) == bool(back)


@settings(deadline=None)
@given(st.lists(st.dictionaries(NAMES, LEAVES, min_size=1, max_size=2), max_size=8, unique_by=text), st.data())
def test_an_element_that_is_taken_out_is_one_removal(elements, data):
    """Those that follow have moved, and have not changed."""
    if elements:
        index = data.draw(st.integers(0, len(elements) - 1))
        (place,) = places(text(elements), text(elements[:index] + elements[index + 1 :]))
        assert (place.was, place.path, place.after) == ((index,), None, None)


def said(before: bytes, after: bytes) -> list[tuple[Path | None, Path | None, bytes | None, bytes | None]]:
    return [(p.was, p.path, p.before, p.after) for p in places(before, after)]


def test_paths_go_through_objects_and_arrays():
    before = b'{"role":"cook","tags":["a","b"],"n":{"deep":[{"x":1}]}}'
    after = b'{"role":"chef","tags":["b"],"n":{"deep":[{"x":2}]},"new":null}'
    assert said(before, after) == [
        (("role",), ("role",), b'"cook"', b'"chef"'),
        (("tags", 0), None, b'"a"', None),
        (("n", "deep", 0, "x"), ("n", "deep", 0, "x"), b"1", b"2"),
        (None, ("new",), None, b"null"),
    ]


def test_what_changed_is_not_taken_for_its_neighbour():
    before = b'[{"at":1,"t":"gone"},{"at":2,"t":"old","k":"x"},["a"]]'
    after = b'[{"at":2,"t":"new","k":"x"},["b"],"more"]'
    assert said(before, after) == [
        ((0,), None, b'{"at":1,"t":"gone"}', None),
        ((1, "t"), (0, "t"), b'"old"', b'"new"'),
        ((2, 0), (1, 0), b'"a"', b'"b"'),
        (None, (2,), None, b'"more"'),
    ]


def test_blanks_mean_nothing():
    assert said(b'[{"at" : 6}, {"at" : 7}]', b'[{"at":7}]') == [((0,), None, b'{"at":6}', None)]


def test_an_element_that_moved_and_changed_says_where_it_was():
    before = b'[{"id":1},{"id":2,"t":"old"},{"id":3}]'
    after = b'[{"id":0},{"id":1},{"id":2,"t":"new"},{"id":3}]'
    assert said(before, after) == [
        (None, (0,), None, b'{"id":0}'),
        ((1, "t"), (2, "t"), b'"old"', b'"new"'),
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"1.0", b"1.00"),
        (b"9007199254740993", b"9007199254740992"),
        (b"null", b'"null"'),
        (b"[1,2,3]", b"[1,2,4]"),  # numbers alone are one value: a vector
        (b'{"a":1,"a":2}', b'{"a":3,"a":2}'),  # a name twice
        (b'{"a":1,"a":2,"b":1}', b'{"a":3,"a":2,"b":2}'),
        (b'{"a":1,"b":2}', b'{"b":2,"a":1}'),  # of type json: other bytes, the same value
        (b'{"a": 1}', b'{"a":1}'),
        (b"[" * 3000 + b"1" + b"]" * 3000, b"[" * 3000 + b"2" + b"]" * 3000),  # Postgres takes it; no parser here does
    ],
)
def test_what_cannot_be_taken_apart_is_one_change(before, after):
    assert said(before, after) == [((), (), before, after)]


def test_two_long_arrays_are_not_compared_element_with_element_for_ever():
    before = text([{"n": n % 7} for n in range(3000)])
    after = text([{"n": n % 5} for n in range(3000)])
    assert len(places(before, after)) > 1000


# --- rows --------------------------------------------------------------------------------------------------------------------------


def table(*columns: str, key: tuple[str, ...] = ("id",), **more: Any) -> model.Table:
    constraint = model.Constraint(name="k", kind="p", definition="PRIMARY KEY", columns=list(key))
    found = model.Table(
        tier="notes",
        array="notes",
        table=model.Name(schema="public", name="notes"),
        kind="table",
        columns=[model.Column(name=c, type="text") for c in columns],
        constraints=[constraint] if key else [],
        json_null_key="~jsonNull",
    )
    return msgspec.structs.replace(found, **more)


def changes(differ: RowDiffer, before: bytes, after: bytes) -> list[tuple[str, list[Any], Any, Any]]:
    return [(c.column, c.path, c.before, c.after) for c in differ.columns(before, after)]


def raw(data: bytes) -> msgspec.Raw:
    return msgspec.Raw(data)


def test_a_changed_row_names_its_columns():
    differ = RowDiffer(table("id", "body", "props"), table("id", "body", "props"))
    before = b'{"id":1,"body":"x","props":{"a":1,"b":2}}'
    after = b'{"id":1,"body":"y","props":{"a":1,"b":3}}'
    assert json.loads(msgspec.json.encode(differ.changed(before, after))) == {
        "change": "changed",
        "key": {"id": 1},
        "columns": [
            {"column": "body", "before": "x", "after": "y"},
            {"column": "props", "path": ["b"], "before": 2, "after": 3},
        ],
    }


def test_identity_is_the_key_and_the_content():
    differ = RowDiffer(table("id", "body"), table("id", "body"))
    key, content = differ.before.identity(b'{"id":1,"body":"x"}')
    assert (key, content) == (b"1", b'{"id":1,"body":"x"}')
    assert differ.after.identity(b'{"id":1,"body":"y"}')[0] == key


def test_keys_of_several_columns_do_not_run_into_one_another():
    differ = RowDiffer(table("a", "b", key=("a", "b")), table("a", "b", key=("a", "b")))
    keys = {differ.before.identity(row)[0] for row in (b'{"a":1,"b":11}', b'{"a":11,"b":1}', b'{"a":"1","b":11}')}
    assert len(keys) == 3


def test_a_key_that_postgres_takes_for_the_same_is_the_same():
    numbers = table("id", "body", columns=[model.Column(name="id", type="numeric(9,2)"), model.Column(name="body", type="text")])
    differ = RowDiffer(numbers, numbers)
    assert differ.before.identity(b'{"id":1.50,"body":""}')[0] == differ.after.identity(b'{"id":1.5,"body":""}')[0]
    assert differ.before.identity(b'{"id":15,"body":""}')[0] != differ.after.identity(b'{"id":1.5,"body":""}')[0]
    assert changes(differ, b'{"id":1.50,"body":""}', b'{"id":1.5,"body":""}') == [("id", [], raw(b"1.50"), raw(b"1.5"))]


def test_without_a_key_a_row_is_what_it_holds():
    differ = RowDiffer(table("a", key=()), table("a", key=()))
    assert differ.before.identity(b'{"a":1}') == (b'{"a":1}', b'{"a":1}')
    assert differ.added_row(b'{"a":1}').key is msgspec.UNSET


def test_columns_that_only_one_side_has_are_not_compared():
    differ = RowDiffer(table("id", "old", "body"), table("body", "new", "id"))
    assert (differ.added, differ.removed, differ.alike) == (["new"], ["old"], False)
    before, after = b'{"id":1,"old":2,"body":"x"}', b'{"body":"x","new":3,"id":1}'
    assert differ.before.identity(before) == differ.after.identity(after)
    assert changes(differ, before, after) == []


def test_a_column_that_stayed_behind_is_not_one_that_went():
    differ = RowDiffer(table("id", "secret"), table("id", excluded=["secret"]))
    assert (differ.added, differ.removed) == ([], [])


def test_a_key_that_is_not_in_both_is_no_key():
    assert RowDiffer(table("id", "body"), table("body", key=())).key == []
    assert RowDiffer(table("id", "nr"), table("id", "nr", key=("nr",))).key == ["nr"]


def test_a_json_null_is_not_an_sql_null():
    differ = RowDiffer(table("id", "js"), table("id", "js"))
    before, after = b'{"id":1,"js":null}', b'{"id":1,"js":null,"~jsonNull":["js"]}'
    assert differ.before.identity(before) != differ.after.identity(after)
    assert changes(differ, before, after) == [("~jsonNull", [], raw(b"null"), raw(b'["js"]'))]


def test_vectors_are_the_same_in_either_form():
    vector = model.Column(name="v", type="vector(3)")
    decimal = table(columns=[model.Column(name="id", type="int"), vector])
    binary = table(columns=[model.Column(name="id", type="int"), msgspec.structs.replace(vector, form="hex")])
    before, after = b'{"id":1,"v":"[1,2.5,-3]"}', b'{"id":1,"v":"000300003f80000040200000c0400000"}'
    for one, other, a, b in ((decimal, binary, before, after), (binary, decimal, after, before)):
        differ = RowDiffer(one, other)
        assert differ.before.identity(a) == differ.after.identity(b)
        assert changes(differ, a, b) == []
    null = b'{"id":1,"v":null}'
    assert RowDiffer(decimal, binary).before.values(null) == [b"1", b"null", b"null"]


def test_a_row_that_is_no_json_is_a_damaged_document():
    with pytest.raises(CorruptDocument):
        RowDiffer(table("id"), table("id")).before.identity(b'{"id":')
