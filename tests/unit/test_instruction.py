"""What a row asks for: sentences and objects, and what is none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstore.errors import ConfigError
from coldstore.instruction import Instruction, parse, within
from coldstore.tiers import EVERYBODY, Scope

FULL = Instruction(action="snapshot")
DOCUMENTED = "Run a full memory cold-store snapshot for all users."


@pytest.mark.parametrize(
    "text",
    [
        DOCUMENTED,
        "run a full memory coldstore snapshot for all users",
        "  Take a snapshot of everybody  ",
        "snapshot of everybody",
        "MAKE A FULL SNAPSHOT FOR\nALL  USERS.",
        '{"action": "snapshot"}',
        '{"action": "snapshot", "of": "all", "kind": "full"}',
    ],
)
def test_everybody(text):
    assert parse(text) == FULL


@pytest.mark.parametrize("text", ["Take a snapshot of each user", "snapshot for every user.", '{"action": "snapshot", "of": "each"}'])
def test_each_user(text):
    assert parse(text) == Instruction(action="snapshot", each=True)


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("Take a snapshot of user uid_alice", Scope.user("uid_alice")),
        ("Take a snapshot of user uid_alice.", Scope.user("uid_alice")),
        ('Take a snapshot of user "uid_alice."', Scope.user("uid_alice.")),
        ("Take a snapshot of user 'two words'.", Scope.user("two words")),
        ("Take a snapshot of USER Capitals", Scope.user("Capitals")),
        ("snapshot of workspace red", Scope.of_workspace("red")),
        ('{"action": "snapshot", "of": {"uid": "a\\u0000b"}}', Scope.user("a\0b")),
        ('{"action": "snapshot", "of": {"workspace": ""}}', Scope.of_workspace("")),
    ],
)
def test_one(text, scope):
    assert parse(text) == Instruction(action="snapshot", scope=scope)


def test_the_others():
    assert parse("Verify all snapshots deeply") == Instruction(action="verify", deep=True)
    assert parse("verify the snapshots.") == Instruction(action="verify")
    assert parse("Run a restore drill") == parse("drill the latest snapshot") == Instruction(action="drill")
    assert parse("Prune old snapshots") == Instruction(action="prune")
    assert parse("Take an incremental snapshot of everybody").kind == "incremental"


def test_what_only_an_object_can_say():
    asked = parse('{"action": "snapshot", "label": "nightly", "zone": "Europe/Berlin", "misfire": "skip"}')
    assert (asked.label, asked.zone, asked.misfire) == ("nightly", "Europe/Berlin", "skip")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "snapshot",
        "snapshot of",
        "Take a snapshot of user",
        "Take a snapshot of user a b",
        "Take a snapshot of nobody",
        "Take no snapshot of everybody",
        "Take a snapshot of everybody and delete everything",
        "Good morning! What is on my calendar?",
        "{",
        "[]",
        "{}",
        '{"action": "delete"}',
        '{"action": "snapshot", "of": {}}',
        '{"action": "snapshot", "of": {"uid": "a", "workspace": "b"}}',
        '{"action": "snapshot", "of": "everybody"}',
        '{"action": "snapshot", "off": "all"}',
        '{"action": "snapshot", "kind": "differential"}',
        '{"action": "snapshot", "misfire": "always"}',
        '{"action": "snapshot"} trailing',
        '{"action":' + "[" * 100_000,
    ],
)
def test_what_is_no_instruction(text):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert caught.value.hint
    assert len(str(caught.value)) < 400


@given(st.text())
def test_any_text_is_an_instruction_or_a_configuration_error(text):
    try:
        parse(text)
    except ConfigError:
        pass
    else:
        raise AssertionError(text)


@given(st.text(min_size=1))
def test_a_name_in_an_object_is_that_name(name):
    assert parse(json.dumps({"action": "snapshot", "of": {"uid": name}})).scope == Scope.user(name)


def test_a_row_of_nobody_is_as_it_is():
    assert within(FULL, None) is FULL


def test_everybody_of_a_workspace_is_the_workspace():
    assert within(FULL, "red") == Instruction(action="snapshot", scope=Scope.of_workspace("red"))
    assert within(parse("snapshot of workspace red"), "red").scope == Scope.of_workspace("red")
    assert within(FULL, "").scope == Scope.of_workspace("")
    assert within(FULL, "red").scope != EVERYBODY


@pytest.mark.parametrize(
    "text",
    [
        "snapshot of each user",
        "snapshot of user uid_alice",
        "snapshot of workspace blue",
        "Verify all snapshots",
        "Run a drill",
        "Prune old snapshots",
    ],
)
def test_a_row_of_a_workspace_reaches_no_further(text):
    with pytest.raises(ConfigError, match="of that workspace and nothing else"):
        within(parse(text), "red")
