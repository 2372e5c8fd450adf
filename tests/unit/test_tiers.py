"""What a tier and a scope may be."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstore.document import model
from coldstore.errors import ConfigError
from coldstore.tiers import BUILT_IN, EVERYBODY, RESERVED_ARRAYS, Scope, Tier, camel_case, enabled_tiers


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("daily_memories", "dailyMemories"),
        ("procedural_memory", "proceduralMemory"),
        ("store", "store"),
        ("a_b_c", "aBC"),
        ("_x", "X"),
        ("already_Camel", "alreadyCamel"),
        ("x__y", "xY"),
        ("v2_items", "v2Items"),
    ],
)
def test_camel_case(name, array):
    assert camel_case(name) == array
    assert Tier(name, "t").array == array


def test_built_in_tiers():
    assert [(t.name, t.array) for t in enabled_tiers(BUILT_IN)] == [
        ("daily_memories", "dailyMemories"),
        ("graph_entities", "graphEntities"),
        ("procedural_memory", "proceduralMemory"),
    ]
    assert [t.name for t in BUILT_IN if not t.enabled] == ["graph_edges", "user_profiles"]
    assert all(t.table == t.name for t in BUILT_IN)


@pytest.mark.parametrize("name", ["", "1st", "a-b", "a b", "a.b", "é", "a\n", "a;DROP"])
def test_names_that_are_refused(name):
    with pytest.raises(ConfigError) as caught:
        Tier(name, "t")
    assert caught.value.hint


@pytest.mark.parametrize("array", sorted(RESERVED_ARRAYS))
def test_an_array_cannot_take_a_member_of_the_header(array):
    with pytest.raises(ConfigError):
        Tier("t", "t", array=array)


def test_every_member_of_the_header_is_reserved():
    assert {f.encode_name for f in msgspec.structs.fields(model.Header)} <= RESERVED_ARRAYS


def test_an_array_stands_on_one_line():
    with pytest.raises(ConfigError):
        Tier("t", "t", array="a\nb")


def test_two_tiers_cannot_share_an_array():
    with pytest.raises(ConfigError, match="'aB'"):
        enabled_tiers([Tier("a_b", "x"), Tier("aB", "y")])
    assert len(enabled_tiers([Tier("a_b", "x"), Tier("aB", "y", enabled=False)])) == 1
    assert len(enabled_tiers([Tier("a_b", "x"), Tier("aB", "y", array="other")])) == 2


def test_no_tier_at_all_is_refused():
    with pytest.raises(ConfigError):
        enabled_tiers([Tier("a", "a", enabled=False)])


@given(st.text())
def test_scopes(value):
    user, workspace = Scope.user(value), Scope.of_workspace(value)
    assert (user.uid, user.workspace) == (value, None)
    assert (workspace.uid, workspace.workspace) == (None, value)
    assert len({user, workspace, EVERYBODY}) == 3
    assert str(user) == f"user {value!r}"
    assert str(workspace) == f"workspace {value!r}"


def test_everybody():
    assert (EVERYBODY.uid, EVERYBODY.workspace, str(EVERYBODY)) == (None, None, "everybody")
    assert Scope() == EVERYBODY
