"""`verify` over chains: a link is as good as all it is built on, and what it claims is worked out without reading anything twice."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldstore.catalog import manifests
from coldstore.document import model
from coldstore.storage import layout
from coldstore.storage.local import LocalStore
from coldstore.verify import Checks, Verdict, verify, verify_one
from tests.unit.chains import FEB_26, FIVE_MINUTES, changes, grow, lines, put
from tests.unit.stores import ring
from tests.unit.test_chained import STATES


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def verdicts(store, *, deep: bool = True, **more: Any) -> dict[str, Verdict]:
    return {v.id: v for v in verify(store, manifests(store), checks=Checks(deep=deep, **more), whole=True)}


def problems(found: dict[str, Verdict]) -> dict[str, list[str]]:
    return {name: verdict.problems for name, verdict in found.items() if verdict.problems}


def lie(manifest: model.Manifest, **tiers: dict[str, Any]) -> list[model.TierSummary]:
    return [msgspec.structs.replace(t, **tiers.get(t.array, {})) for t in manifest.state or []]


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("resets", [None, {2: ["notes"]}, {1: ["notes", "things"], 3: ["things"]}])
def test_whole_chains(store, deep, resets):
    grow(store, STATES, resets=resets)
    grow(store, STATES[:3], at=FEB_26 + 99 * FIVE_MINUTES)
    found = verdicts(store, deep=deep)
    assert len(found) == 7
    assert all(v.ok and not v.notes for v in found.values())


def test_sealed_ones(store):
    keys = ring()
    made = grow(store, STATES, rings=(keys,))
    assert problems(verdicts(store, rings=(keys,))) == {}
    wrong = msgspec.structs.replace(made[-1], state=made[-2].state)
    store.replace(layout.manifest_key(wrong.id), model.encode_manifest(model.complete(wrong)))
    assert "where it claims" in str(problems(verdicts(store, rings=(keys,)))[wrong.id])


@pytest.mark.parametrize("what", [{"rows": 77}, {"digest": "0" * 32}])
def test_a_claim_that_is_not_so(store, what):
    made = grow(store, STATES[:2])
    state = lie(msgspec.structs.replace(made[1], state=made[1].state), notes=what)
    wrong = put(store, changes(*STATES[1:3]), at=FEB_26 + 9 * FIVE_MINUTES, parent=made[1])
    wrong = model.complete(msgspec.structs.replace(wrong, state=state))
    store.replace(layout.manifest_key(wrong.id), model.encode_manifest(wrong))
    found = problems(verdicts(store))
    assert "notes: with all it is built on it comes to" in found[wrong.id][0]
    assert set(found) <= {wrong.id, "latest/all.json"}


def test_a_change_that_was_left_out_shows_in_what_it_comes_to(store):
    made = grow(store, STATES[:2])
    forgotten = {**changes(*STATES[1:3]), "notes": []}
    wrong = put(store, forgotten, at=FEB_26 + 9 * FIVE_MINUTES, parent=made[1], state=STATES[2])
    after = put(store, changes(*STATES[2:4]), at=FEB_26 + 10 * FIVE_MINUTES, parent=wrong)
    found = problems(verdicts(store))
    assert "notes: with all" in found[wrong.id][0]
    assert found[after.id] == [f"{wrong.id}, on which it is built, is damaged"]


def test_a_key_that_is_named_twice(store):
    made = grow(store, STATES[:1])
    twice = {"notes": lines(STATES[0])["notes"][:1] * 2, "things": [], "deleted": []}
    wrong = put(store, twice, at=FEB_26 + FIVE_MINUTES, parent=made[0])
    assert problems(verdicts(store))[wrong.id] == ["it names a key of notes twice"]


def test_two_that_are_built_on_the_same_one(store):
    made = grow(store, STATES[:2])
    left = put(store, changes(*STATES[1:3]), at=FEB_26 + 9 * FIVE_MINUTES, parent=made[1], state=STATES[2])
    right = put(store, changes(STATES[1], STATES[3]), at=FEB_26 + 10 * FIVE_MINUTES, parent=made[1], state=STATES[3])
    put(store, changes(*STATES[2:4], resets=["notes"]), at=FEB_26 + 11 * FIVE_MINUTES, parent=left, state=STATES[3], resets=["notes"])
    put(store, changes(STATES[3], STATES[0]), at=FEB_26 + 12 * FIVE_MINUTES, parent=right, state=STATES[0])
    assert problems(verdicts(store)) == {}


@pytest.mark.parametrize("deep", [True, False])
def test_a_hole(store, deep):
    made = grow(store, STATES)
    for key in (layout.manifest_key(made[1].id), made[1].document):
        store.delete(key)
    found = problems(verdicts(store, deep=deep))
    assert f"{made[1].id}, on which {made[2].id} is built, is gone" in found[made[2].id]
    assert f"{made[2].id}, on which it is built, is damaged" in found[made[3].id]
    assert made[0].id not in found


def test_a_damaged_link_is_that_of_all_after_it(store, tmp_path):
    made = grow(store, STATES)
    path = tmp_path / "store" / made[1].document
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    assert set(problems(verdicts(store))) == {m.id for m in made[1:]}
    assert problems(verdicts(store, deep=False)) == {}


def test_one_alone(store):
    made = grow(store, STATES)
    assert verify_one(store, made[-1], deep=True).ok
    (alone,) = verify(store, [made[-1]], checks=Checks(deep=True))
    assert alone.ok
    assert "was not compared" in alone.notes[0]
    store.delete(layout.manifest_key(made[2].id))
    (alone,) = verify(store, [made[-1]])
    assert f"{made[2].id}, on which {made[3].id} is built, is gone" in alone.problems


def test_every_document_is_read_once(store, monkeypatch):
    made = grow(store, STATES)
    read: list[str] = []
    whole = type(store).read

    def counted(self, key, **more):
        read.append(key)
        return whole(self, key, **more)

    monkeypatch.setattr(type(store), "read", counted)
    assert problems(verdicts(store)) == {}
    assert {m.document: read.count(m.document) for m in made} == {m.document: len(m.frames) for m in made}


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_tree_of_them(data):
    """Each built on any one before it; and one wrong claim is found, wherever it stands."""
    rows = st.dictionaries(st.integers(0, 6), st.text("ab", max_size=1), max_size=5)
    texts = data.draw(st.lists(st.tuples(rows, rows), min_size=2, max_size=6))
    states = [
        {a: {k: {"id": k, "uid": "u", "text": t} for k, t in r.items()} for a, r in zip(("notes", "things"), pair, strict=True)}
        for pair in texts
    ]
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(Path(folder))
        made = [put(store, lines(states[0]))]
        for number, state in enumerate(states[1:], 1):
            on = data.draw(st.integers(0, number - 1))
            resets = data.draw(st.lists(st.sampled_from(["notes", "things"]), unique=True))
            document = changes(states[on], state, resets=resets)
            made.append(put(store, document, at=FEB_26 + number * FIVE_MINUTES, parent=made[on], state=state, resets=resets))
        assert problems(verdicts(store)) == {}
        wrong = data.draw(st.sampled_from(made[1:]))
        state = lie(wrong, things={"digest": "f" * 32})
        store.replace(layout.manifest_key(wrong.id), model.encode_manifest(model.complete(msgspec.structs.replace(wrong, state=state))))
        assert any("things: with all" in p for p in problems(verdicts(store))[wrong.id])
