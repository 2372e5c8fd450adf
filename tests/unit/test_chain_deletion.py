"""`ColdStore.delete` and `compact` over chains; no database is needed."""

from __future__ import annotations

import json

import pytest

from coldstore.app import ColdStore
from coldstore.catalog import manifests, read_pointer
from coldstore.chained import open_whole, summed
from coldstore.config import build
from coldstore.errors import ChainRefused, ContentMismatch, ObjectLocked
from coldstore.storage import layout
from coldstore.tiers import EVERYBODY
from tests.unit.chains import FEB_26, FIVE_MINUTES, changes, grow, lines, put
from tests.unit.test_chained import STATES, expected, read


@pytest.fixture
def cold(tmp_path):
    with ColdStore(build({"path": str(tmp_path / "store")}, {})) as store:
        yield store


def there(cold) -> set[str]:
    return {m.id for m in manifests(cold.store)}


def test_what_others_are_built_on_is_not_deleted(cold):
    made = [m.id for m in grow(cold.store, STATES)]
    with pytest.raises(ChainRefused, match="2 snapshots are built on") as caught:
        cold.delete([made[1]])
    assert made[2] in str(caught.value)
    assert "--cascade" in (caught.value.hint or "")
    assert there(cold) == set(made)


def test_with_all_that_is_built_on_it(cold):
    made = [m.id for m in grow(cold.store, STATES)]
    other = put(cold.store, lines(STATES[0]), at=FEB_26 + 99 * FIVE_MINUTES).id
    assert cold.delete([made[1]], cascade=True) == made[:0:-1]
    assert there(cold) == {made[0], other}
    assert all(v.ok for v in cold.verify())


def test_a_whole_chain_is_deleted_by_naming_all_of_it(cold):
    made = [m.id for m in grow(cold.store, STATES)]
    assert cold.delete([*made, made[0]]) == made[::-1]
    assert there(cold) == set()
    assert read_pointer(cold.store, layout.latest_key(EVERYBODY)) is None


def test_the_last_link_may_go(cold):
    made = [m.id for m in grow(cold.store, STATES)]
    assert cold.delete([made[-1]]) == [made[-1]]
    assert cold.latest().id == made[-2]
    assert all(v.ok for v in cold.verify(deep=True))


def test_nothing_goes_when_one_of_them_is_locked(cold):
    from coldstore.document import model

    made = grow(cold.store, STATES[:2])
    kept = model.Retained(until="2999-01-01T00:00:00.000Z", mode="governance")
    put(cold.store, changes(*STATES[1:3]), at=FEB_26 + 9 * FIVE_MINUTES, parent=made[-1], retained=kept)
    with pytest.raises(ObjectLocked):
        cold.delete([made[0].id], cascade=True)
    assert len(there(cold)) == 3


def test_another_scopes_chain_is_no_matter(cold):
    from coldstore.tiers import Scope

    made = [m.id for m in grow(cold.store, STATES)]
    own = put(cold.store, lines(STATES[0]), at=FEB_26, scope=Scope.user("ann")).id
    assert cold.delete([own]) == [own]
    assert there(cold) == set(made)


# --- compact ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claimed", [True, False])
def test_a_copy_of_a_chain(cold, claimed):
    made = grow(cold.store, STATES, claimed=claimed)
    info = cold.compact(made[2].id, label="kept")
    copy = cold.manifest(info.id)
    assert layout.parse_id(copy.id)[1] == layout.parse_id(made[2].id)[1] + 1
    assert (copy.kind, copy.parent, copy.built_from, copy.label, copy.suspect) == ("full", None, made[2].id, "kept", None)
    assert read(open_whole(cold.store, copy)) == expected(STATES[2])
    assert copy.tiers == summed(open_whole(cold.store, made[2]))
    assert cold.latest().id == made[3].id
    assert cold.compact(made[2].id).id == layout.snapshot_id(EVERYBODY, layout.parse_id(copy.id)[1] + 1)
    assert all(v.ok for v in cold.verify(deep=True))
    cold.delete([made[0].id], cascade=True)
    assert read(open_whole(cold.store, copy)) == expected(STATES[2])
    assert all(v.ok for v in cold.verify(deep=True))


def test_what_does_not_come_to_what_it_claims_is_not_copied(cold):
    made = grow(cold.store, STATES[:2])
    wrong = put(cold.store, changes(*STATES[1:3]), at=FEB_26 + 9 * FIVE_MINUTES, parent=made[-1], state=STATES[3])
    before = there(cold)
    with pytest.raises(ContentMismatch, match="comes to"):
        cold.compact(wrong.id)
    assert there(cold) == before
    assert cold.orphans() == []


def test_what_is_no_chain_is_not_copied(cold):
    made = grow(cold.store, STATES[:2])
    with pytest.raises(ChainRefused, match="no incremental"):
        cold.compact(made[0].id)
    doubtful = put(cold.store, changes(*STATES[1:3]), at=FEB_26 + 9 * FIVE_MINUTES, parent=made[-1], suspect="few rows")
    with pytest.raises(ChainRefused, match="few rows"):
        cold.compact(doubtful.id)


def test_a_chain_as_one_plain_document(cold):
    from coldstore.chained import ChainDocument
    from coldstore.compact import plain_chunks

    made = grow(cold.store, STATES)
    chain = open_whole(cold.store, made[-1])
    assert isinstance(chain, ChainDocument)
    found = json.loads(b"".join(plain_chunks(chain)))
    assert (found["kind"], found["parent"], found["id"]) == ("full", None, made[-1].id)
    assert {a: sorted(map(str, found[a])) for a in ("notes", "things")} == {
        a: sorted(map(str, rows.values())) for a, rows in STATES[-1].items()
    }
    assert "deleted" not in found
