"""Every version of one memory across snapshots: full ones and incrementals, the user's own and everybody's."""

from __future__ import annotations

import json
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstore.catalog import rfc3339
from coldstore.codec.sign import SigningKey
from coldstore.documents import open_stored
from coldstore.errors import ConfigError, NotFound, SignatureMissing
from coldstore.history import History, Wanted, history
from coldstore.storage.local import LocalStore
from coldstore.tiers import EVERYBODY, Scope
from coldstore.trust import Trust
from tests.unit import chains, samples
from tests.unit.chains import FIVE_MINUTES, changes, grow, lines, notes, put
from tests.unit.stores import FEB_26, ring

DAY = 86_400_000
ANN = Scope.user("ann")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def look(store, key: str | list[str] = "1", *, scope=ANN, tier="notes", rings=(), **days: Any) -> History:
    wanted = Wanted(scope, tier, [key] if isinstance(key, str) else key)
    return history(store, wanted, opened=lambda manifest: open_stored(store, manifest, rings=rings), **days)


def short(found: History) -> list[tuple[str, int, int, str | None]]:
    """(change, first, last, text), newest first; times in steps of five minutes."""

    def when(sighting) -> int:
        return (int(sighting.id.rsplit("-", 1)[1]) - FEB_26) // FIVE_MINUTES

    def text(version) -> str | None:
        return None if version.row is msgspec.UNSET else json.loads(bytes(version.row))["text"]

    return [(v.change, when(v.first), when(v.last), text(v)) for v in found.versions]


STATES = [
    {"notes": notes(b2="two")},
    {"notes": notes(a1="one", b2="two")},
    {"notes": notes(a1="one", b2="other")},
    {"notes": notes(a1="uno", b2="other")},
    {"notes": notes(b2="other")},
    {"notes": notes(a1="back", b2="other")},
    {"notes": notes(b1="taken", b2="other")},
]
VERSIONS = [
    ("removed", 6, 6, None),
    ("added", 5, 5, "back"),
    ("removed", 4, 4, None),
    ("changed", 3, 3, "uno"),
    ("added", 1, 2, "one"),
]


def test_full_snapshots(store):
    for number, state in enumerate(STATES):
        put(store, lines(state), at=FEB_26 + number * FIVE_MINUTES)
    found = look(store)
    assert short(found) == VERSIONS
    assert (found.uid, found.tier, found.key, found.snapshots, found.notes) == ("ann", "notes", {"id": "1"}, 7, [])
    assert json.loads(msgspec.json.encode(found.versions[3])) == {
        "change": "changed",
        "first": {"id": f"memory-all-{FEB_26 + 3 * FIVE_MINUTES}", "snapshotAt": rfc3339(FEB_26 + 3 * FIVE_MINUTES)},
        "last": {"id": f"memory-all-{FEB_26 + 3 * FIVE_MINUTES}", "snapshotAt": rfc3339(FEB_26 + 3 * FIVE_MINUTES)},
        "row": {"id": 1, "uid": "ann", "text": "uno"},
        "columns": [{"column": "text", "before": "one", "after": "uno"}],
    }


def test_a_chain_says_the_same_and_only_what_changed_is_read(store):
    grow(store, STATES)
    found = look(store)
    assert short(found) == VERSIONS
    assert found.snapshots == 7


def test_a_chain_that_was_emptied(store):
    grow(store, STATES[1:5], resets={3: ["notes"]})
    assert short(look(store)) == [("removed", 3, 3, None), ("changed", 2, 2, "uno"), ("there", 0, 1, "one")]


def test_everybodys_without_a_user(store):
    grow(store, STATES)
    assert short(look(store, scope=EVERYBODY))[0] == ("changed", 6, 6, "taken")


def test_ones_own_snapshots_stand_between_everybodys(store):
    put(store, lines(STATES[1]), at=FEB_26)
    put(store, lines({"notes": notes(a1="between")}), at=FEB_26 + FIVE_MINUTES, scope=ANN)
    put(store, lines(STATES[1]), at=FEB_26 + 2 * FIVE_MINUTES)
    put(store, lines({"notes": notes(b1="nobody's business")}), at=FEB_26 + 3 * FIVE_MINUTES, scope=Scope.user("bob"))
    assert short(look(store)) == [("changed", 2, 2, "one"), ("changed", 1, 1, "between"), ("there", 0, 0, "one")]


def test_days(store):
    for number in range(4):
        put(store, lines({"notes": notes(a1=f"day {number}")}), at=FEB_26 + number * DAY)
    found = look(store, since="2026-02-27", until="2026-02-28")
    assert [(v.change, json.loads(bytes(v.row))["text"]) for v in found.versions] == [("changed", "day 2"), ("there", "day 1")]
    with pytest.raises(NotFound):
        look(store, since="2026-03-09")


def test_what_cannot_be_read_is_passed_over_with_a_note(store, tmp_path):
    made = grow(store, STATES[1:4])
    (tmp_path / "store" / made[1].document).write_bytes(b"broken")
    found = look(store)
    assert short(found) == [("changed", 2, 2, "uno"), ("there", 0, 0, "one")]
    assert len(found.notes) == 1
    assert found.notes[0].startswith(f"{made[1].id} was passed over")


def test_an_incremental_that_says_nothing_needs_its_parents_word(store, tmp_path):
    made = grow(store, [STATES[1], STATES[2]])
    (tmp_path / "store" / made[0].document).write_bytes(b"broken")
    put(store, lines(STATES[3]), at=FEB_26 + 9 * FIVE_MINUTES)
    found = look(store)
    assert short(found) == [("there", 9, 9, "uno")]
    assert [n.split()[0] for n in found.notes] == [made[0].id, made[1].id]


def test_a_suspect_one_proves_no_deletion(store):
    put(store, lines(STATES[1]), at=FEB_26)
    put(store, lines({"notes": {}}), at=FEB_26 + FIVE_MINUTES, suspect="far fewer rows")
    put(store, lines(STATES[1]), at=FEB_26 + 2 * FIVE_MINUTES)
    found = look(store)
    assert short(found) == [("there", 0, 2, "one")]
    assert "suspect" in found.notes[0]


def test_nothing_is_an_error(store):
    grow(store, STATES[:2])
    with pytest.raises(NotFound, match="holds this row"):
        look(store, "77")
    with pytest.raises(NotFound):
        look(store, tier="no_such_tier")
    with pytest.raises(NotFound):
        look(store, "2")  # which is bob's


def test_sealed_and_signed(store):
    own, signer = ring(), SigningKey.generate()
    made = grow(store, STATES, rings=(own,), signer=signer)
    assert short(look(store, rings=[own])) == VERSIONS

    def opened(manifest):
        Trust(frozenset({signer.did}), True).check(None if manifest.id == made[3].id else manifest.signature, what=manifest.id)
        return open_stored(store, manifest, rings=[own])

    found = history(store, Wanted(ANN, "notes", ["1"]), opened=opened)
    assert "uno" not in str(short(found))
    assert made[3].id in found.notes[0]


def test_a_required_signature_that_none_has(store):
    grow(store, STATES[:2])

    def opened(manifest):
        raise SignatureMissing(f"{manifest.id} is not signed")

    with pytest.raises(NotFound, match="is not signed"):
        history(store, Wanted(ANN, "notes", ["1"]), opened=opened)


def two_columns(*rows: dict[str, Any]) -> tuple[dict[str, list[bytes]], Any]:
    plain = samples.table("notes")
    key = msgspec.structs.replace(plain.constraints[0], columns=["uid", "id"])
    table = msgspec.structs.replace(plain, constraints=[key])
    return {"notes": [chains.dump(r) for r in rows]}, msgspec.structs.replace(samples.header("notes").schema, tables=[table])


def test_a_key_of_two_columns(store):
    arrays, schema = two_columns(
        {"id": 1, "uid": "ann", "text": "x"}, {"id": 1, "uid": "bob", "text": "y"}, {"id": 11, "uid": "ann", "text": "z"}
    )
    put(store, arrays, schema=schema)
    assert short(look(store, ["id=1", "uid=ann"])) == [("there", 0, 0, "x")]
    for wrong in (["1"], ["id=1"], ["id=1", "uid=ann", "n=3"], ["id=1", "id=1", "uid=ann"], ["id=1", "name=ann"]):
        with pytest.raises(ConfigError, match="uid, id"):
            look(store, wrong)


def test_a_tier_without_a_key_is_refused(store):
    table = msgspec.structs.replace(samples.table("notes"), constraints=[])
    put(store, {"notes": []}, schema=msgspec.structs.replace(samples.header("notes").schema, tables=[table]))
    with pytest.raises(ConfigError, match="no primary key"):
        look(store)


@given(
    st.lists(st.dictionaries(st.sampled_from(["a1", "b1", "a2", "b3"]), st.sampled_from("xy"), max_size=3), min_size=1, max_size=9),
    st.lists(st.sampled_from(["full", "incremental", "own"]), min_size=9, max_size=9),
)
@settings(deadline=None, max_examples=60)
def test_against_run_lengths(states, kinds):
    """Whatever kinds of snapshots tell it, the versions are the runs of equal states."""
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(Path(folder))
        truth: list[tuple[str | None, str]] = []
        last = None
        for number, texts in enumerate(states):
            whole = {"notes": notes(**texts)}
            own = {"notes": {k: r for k, r in whole["notes"].items() if r["uid"] == "ann"}}
            at = FEB_26 + number * FIVE_MINUTES
            if kinds[number] == "own":
                made = put(store, lines(own), at=at, scope=ANN)
            elif kinds[number] == "incremental" and last is not None:
                made = put(store, changes(last[1], whole), at=at, parent=last[0])
                last = (made, whole)
            else:
                made = put(store, lines(whole), at=at)
                last = (made, whole)
            row = own["notes"].get(1)
            truth.append((row and row["text"], made.id))
        runs = [(text, [i for _, i in ids]) for text, ids in groupby(truth, key=lambda t: t[0])]
        if not any(text for text, _ in runs):
            with pytest.raises(NotFound):
                look(store)
            return
        expected = []
        for number, (text, ids) in enumerate(runs):
            before = runs[number - 1][0] if number else None
            change = "removed" if text is None else "there" if number == 0 else "added" if before is None else "changed"
            if text is not None or number:
                expected.append((change, ids[0], ids[-1], text))
        found = look(store).versions[::-1]
        assert [(v.change, v.first.id, v.last.id) for v in found] == [e[:3] for e in expected]
        assert [None if v.row is msgspec.UNSET else json.loads(bytes(v.row))["text"] for v in found] == [e[3] for e in expected]
