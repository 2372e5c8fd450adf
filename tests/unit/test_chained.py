"""A full snapshot and its incrementals read as one document, against states that are simply known."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldstore import chained
from coldstore.chained import ChainDocument, Net, links_of, nearest, open_whole, summed
from coldstore.codec.digest import format_digest, row_digest
from coldstore.codec.sign import SigningKey
from coldstore.document import model
from coldstore.document.keys import KeyReader
from coldstore.documents import Owner, StoredDocument
from coldstore.errors import ChainBroken, ChainRefused, ContentMismatch, CorruptDocument, KeyRingError, NotFound, SignatureError
from coldstore.storage import layout
from coldstore.storage.local import LocalStore
from coldstore.tiers import Scope
from coldstore.trust import Trust
from tests.unit import chains, samples
from tests.unit.chains import FEB_26, FIVE_MINUTES, dump, grow, lines, notes, put
from tests.unit.stores import ring

STATES = [
    {"notes": notes(a1="one", b2="two", a3="three", b4="four"), "things": notes(a1="thing")},
    {"notes": notes(a1="one", b2="changed", b4="four", a5="new"), "things": notes(a1="thing")},
    {"notes": notes(a1="one", b2="two", b4="four", a5="new"), "things": {}},
    {"notes": notes(b1="one", b2="two", b4="four"), "things": notes(a1="again", b7="more")},
]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def chain(store: LocalStore, made: list[model.Manifest], **more: Any) -> ChainDocument:
    found = open_whole(store, made[-1], **more)
    assert isinstance(found, ChainDocument)
    return found


def read(document, wanted=("notes", "things"), only: Owner | None = None) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {array: [] for array in wanted}
    for part in document.parts(wanted, only):
        found[part.array] += map(bytes, part.rows())
    return {array: sorted(rows) for array, rows in found.items()}


def expected(state) -> dict[str, list[bytes]]:
    return {array: sorted(rows) for array, rows in lines(state).items()}


def netted(document: ChainDocument, start, *, size: int = 1 << 20, only: Owner | None = None) -> dict[str, list[bytes]]:
    """What a database makes of the nets."""
    found = {array: {dump({"id": row["id"]}): dump(row) for row in rows.values()} for array, rows in start.items()}
    for group in document.nets(found, only, size=size):
        assert len({net.array for net in group}) == len(group)
        for net in group:
            carry_out(found, net)
    return {array: sorted(rows.values()) for array, rows in found.items()}


def carry_out(found: dict[str, dict[bytes, bytes]], net: Net) -> None:
    if net.reset:
        found[net.array].clear()
    for key, row in net.changes.items():
        found[net.array].pop(key, None)
        if row is not None:
            found[net.array][key] = row


# --- what it reads ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_the_rows_of_every_link(store, codec):
    made = grow(store, STATES, codec=codec)
    for number in range(1, len(made)):
        document = chain(store, made[: number + 1])
        assert read(document) == expected(STATES[number])
        assert read(document) == expected(STATES[number]), "the second time"
        assert netted(document, STATES[0]) == expected(STATES[number])
        assert (document.name, document.full.name) == (made[number].id, made[0].id)
        assert [s.id for s in document.steps] == [m.id for m in made[: number + 1]]


def test_a_full_one_is_no_chain(store):
    (full,) = grow(store, STATES[:1])
    assert isinstance(open_whole(store, full), StoredDocument)


def test_one_array_of_it(store):
    document = chain(store, grow(store, STATES))
    assert read(document, ["things"]) == {"things": expected(STATES[-1])["things"]}


@pytest.mark.parametrize("claimed", [True, False])
def test_what_it_comes_to(store, claimed):
    document = chain(store, grow(store, STATES, claimed=claimed))
    known = [(a, len(rows), format_digest(sum(map(row_digest, rows)))) for a, rows in lines(STATES[-1]).items()]
    assert (document.tiers is None) is not claimed
    assert [(t.array, t.rows, t.digest) for t in summed(document)] == known


def test_one_owner_of_it(store):
    document = chain(store, grow(store, STATES))
    for uid in ("ann", "bob", "nobody"):
        mine = [{a: {k: r for k, r in rows.items() if r["uid"] == uid} for a, rows in state.items()} for state in STATES]
        assert read(document, only=Owner.of(Scope.user(uid), document.schema.tables)) == expected(mine[-1])
        assert netted(document, mine[0], only=Owner.of(Scope.user(uid), document.schema.tables)) == expected(mine[-1])


def test_a_reset_forgets_all_that_was_before(store):
    document = chain(store, grow(store, STATES, resets={1: ["notes"], 3: ["notes", "things"]}))
    assert read(document) == expected(STATES[-1])
    assert netted(document, STATES[0]) == expected(STATES[-1])
    emptied = [*STATES, {"notes": {}, "things": STATES[-1]["things"]}]
    last = put(
        store,
        {"notes": [], "things": [], "deleted": []},
        at=FEB_26 + 9 * FIVE_MINUTES,
        parent=document.manifest,
        resets=["notes"],
    )
    document = chain(store, [last])
    assert read(document) == expected(emptied[-1])
    assert netted(document, STATES[0]) == expected(emptied[-1])


def test_sealed_and_signed(store, tmp_path):
    keys, signer = ring(), SigningKey.generate()
    made = grow(store, STATES, rings=(keys,), signer=signer)
    trust = Trust(frozenset({signer.did}), required=True)
    document = chain(store, made, rings=[keys], trust=trust)
    assert read(document) == expected(STATES[-1])
    plain = LocalStore(tmp_path / "plain")
    assert document.tiers == chain(plain, grow(plain, STATES)).tiers
    assert document.tiers != made[-1].state, "digests of what was sealed are masked"
    with pytest.raises(KeyRingError):
        chain(store, made)
    with pytest.raises(SignatureError):
        chain(store, made, rings=[keys], trust=Trust(frozenset({SigningKey.generate().did}), required=True))


def test_an_unsigned_link_is_refused_where_a_signature_is_required(store):
    signer = SigningKey.generate()
    made = grow(store, STATES[:2])
    last = put(store, chains.changes(*STATES[1:3]), at=FEB_26 + 9 * FIVE_MINUTES, parent=made[-1], signer=signer)
    with pytest.raises(SignatureError, match=made[0].id):
        chain(store, [last], trust=Trust(frozenset({signer.did}), required=True))


# --- how it is found ----------------------------------------------------------------------------------------------------------------


def test_the_nearest_to_a_moment(store):
    made = grow(store, STATES)
    own = put(store, lines(STATES[0]), at=FEB_26 + 1, scope=Scope.user("ann"))
    everybody = Scope()
    assert nearest(store, everybody, FEB_26).id == made[0].id
    assert nearest(store, everybody, FEB_26 + FIVE_MINUTES - 1).id == made[0].id
    assert nearest(store, everybody, FEB_26 + FIVE_MINUTES).id == made[1].id
    assert nearest(store, everybody, FEB_26 + 99 * FIVE_MINUTES).id == made[-1].id
    assert nearest(store, Scope.user("ann"), FEB_26 + 99 * FIVE_MINUTES).id == own.id
    with pytest.raises(NotFound, match="yet at that moment") as caught:
        nearest(store, everybody, FEB_26 - 1)
    assert made[0].id in (caught.value.hint or "")
    with pytest.raises(NotFound, match="no snapshot of user 'bob'"):
        nearest(store, Scope.user("bob"), FEB_26)


def test_over_midnight_and_between_other_chains(store):
    midnight = FEB_26 + 22 * 3_600_000
    first = grow(store, STATES, at=midnight - FIVE_MINUTES)
    second = grow(store, STATES[:2], at=midnight + FIVE_MINUTES // 2)
    assert [m.id for m in links_of(store, first[-1])] == [m.id for m in first]
    assert [m.id for m in links_of(store, second[-1])] == [m.id for m in second]


@pytest.mark.parametrize("number", [0, 1])
def test_a_hole_is_refused(store, number):
    made = grow(store, STATES)
    store.delete(layout.manifest_key(made[number].id))
    with pytest.raises(ChainBroken, match=made[number].id):
        links_of(store, made[-1])
    with pytest.raises(ChainBroken):
        nearest(store, Scope(), FEB_26 + 99 * FIVE_MINUTES)


def test_a_damaged_or_replaced_link_is_refused(store):
    made = grow(store, STATES)
    other = model.complete(msgspec.structs.replace(made[1], seconds=9.0))
    store.replace(layout.manifest_key(made[1].id), model.encode_manifest(other))
    with pytest.raises(ChainBroken, match="is not the one that"):
        links_of(store, made[-1])
    store.replace(layout.manifest_key(made[1].id), b"{}\n")
    with pytest.raises(ChainBroken, match="damaged"):
        links_of(store, made[-1])


def test_other_tables_are_refused(store):
    made = grow(store, STATES[:2])
    schema = model.Schema(tables=[samples.table(a) for a in STATES[0]])
    last = put(store, chains.changes(*STATES[1:3]), at=FEB_26 + 9 * FIVE_MINUTES, parent=made[-1], schema=schema)
    with pytest.raises(ChainBroken, match="other tables"):
        chain(store, [last])


# --- what must fit ------------------------------------------------------------------------------------------------------------------


def test_a_link_that_is_not_what_its_manifest_says(store):
    made = grow(store, STATES[:2])
    tiers = [msgspec.structs.replace(t, digest="0" * 32) if t.array == "deleted" else t for t in made[-1].tiers]
    last = put(store, chains.changes(*STATES[1:3]), at=FEB_26 + 9 * FIVE_MINUTES, parent=made[-1], tiers=tiers)
    for use in (read, lambda d: netted(d, STATES[0])):
        with pytest.raises(ContentMismatch, match=last.id):
            use(chain(store, [last]))


@pytest.mark.parametrize(
    ("rows", "deleted"),
    [
        ([dump({"id": 9, "uid": "ann"}), dump({"id": 9, "uid": "bob"})], []),
        ([dump({"id": 9, "uid": "ann"})], [b'{"array":"notes","key":{"id":9}}']),
        ([], [b'{"array":"notes","key":{"id":9}}'] * 2),
        ([dump({"uid": "ann"})], []),
        ([dump({"id": None})], []),
        ([b"{"], []),
        ([], [b'{"array":"notes"}']),
        ([], [b'{"array":"notes","key":{}}']),
        ([], [b'{"array":7,"key":{"id":1}}']),
        ([], [b'{"array":"notes","key":{"id":1},"more":1}']),
    ],
)
def test_nonsense_is_refused(store, rows, deleted):
    made = grow(store, STATES[:1])
    last = put(store, {"notes": rows, "things": [], "deleted": deleted}, at=FEB_26 + FIVE_MINUTES, parent=made[-1])
    for use in (read, lambda d: netted(d, STATES[0])):
        with pytest.raises(CorruptDocument):
            use(chain(store, [last]))


def test_a_table_without_a_key_cannot_be_built_on(store):
    plain = {a: msgspec.structs.replace(chains.table(a), constraints=[]) for a in STATES[0]}
    schema = model.Schema(tables=list(plain.values()))
    made = grow(store, STATES[:2], schema=schema)
    with pytest.raises(ChainBroken, match="no primary key"):
        read(chain(store, made))


# --- keys ---------------------------------------------------------------------------------------------------------------------------


def reader(type_: str, *, types=(), **column: Any) -> KeyReader:
    key = model.Constraint(name="k", kind="p", definition="", columns=["k"])
    return KeyReader(
        msgspec.structs.replace(samples.table("notes"), columns=[model.Column(name="k", type=type_, **column)], constraints=[key]), types
    )


@pytest.mark.parametrize(
    ("type_", "one", "other"),
    [
        ("numeric(10,2)", b"1.00", b"1"),
        ("numeric", b"10", b"10.0"),
        ("numeric", b"-0.50", b"-0.5"),
        ("double precision", b"-0", b"0"),
        ("real", b"-0", b"0"),
    ],
)
def test_what_postgres_takes_for_equal_is_written_alike(type_, one, other):
    read_key = reader(type_)
    assert read_key.exact
    assert read_key(b'{"k":%b}' % one) == read_key(b'{"x":1,"k":%b,"y":[]}' % other)


@pytest.mark.parametrize("type_", ["bigint", "uuid", "text", "character varying(20)", "timestamp(3) with time zone", "date", "bytea"])
def test_what_is_written_differently_differs(type_):
    read_key = reader(type_)
    assert read_key.exact
    assert read_key(b'{"k":"10"}') != read_key(b'{"k":"1"}')
    assert read_key(b'{"k":100}') != read_key(b'{"k":10}')


NAME = model.Name(schema="public", name="my type")


@pytest.mark.parametrize(
    ("type_", "column", "types", "exact"),
    [
        ("interval", {}, [], False),
        ("public.citext", {}, [], False),
        ("jsonb", {}, [], False),
        ("integer[]", {}, [], False),
        ("text", {"collation": 'public."folding"'}, [], False),
        ("text", {"collation": 'pg_catalog."C"'}, [], True),
        ("text", {"form": "text"}, [], False),
        ('public."my type"', {}, [model.TypeDef(name=NAME, kind="enum", labels=["a"])], True),
        ('public."my type"', {}, [model.TypeDef(name=NAME, kind="domain", base="uuid")], True),
        ('public."my type"', {}, [model.TypeDef(name=NAME, kind="domain", base="interval")], False),
        ('public."my type"', {}, [model.TypeDef(name=NAME, kind="domain", base="text", collation="public.x")], False),
        ('public."my type"', {}, [model.TypeDef(name=NAME, kind="composite")], False),
    ],
)
def test_which_keys_can_be_told_apart_without_postgres(type_, column, types, exact):
    assert reader(type_, types=types, **column).exact is exact


def test_where_only_postgres_can_tell_each_link_stands_by_itself(store):
    tables = [
        msgspec.structs.replace(chains.table(a), columns=[model.Column(name="id", type="interval"), *chains.table(a).columns[1:]])
        for a in STATES[0]
    ]
    document = chain(store, grow(store, STATES, schema=model.Schema(tables=tables)))
    with pytest.raises(ChainRefused, match="only PostgreSQL"):
        read(document)
    groups = [sorted(net.array for net in group) for group in document.nets(["notes", "things"], size=1 << 20)]
    assert groups == [["notes"], ["notes", "things"], ["notes", "things"]]
    assert netted(document, STATES[0]) == expected(STATES[-1])


def test_groups_are_bounded(store):
    document = chain(store, grow(store, STATES))
    groups = list(document.nets(["notes", "things"], size=1))
    assert len(groups) > 3
    assert netted(document, STATES[0], size=1) == expected(STATES[-1])


# --- any history --------------------------------------------------------------------------------------------------------------------

_row = st.builds(lambda uid, text: {"uid": uid, "text": text}, st.sampled_from(["ann", "bob"]), st.text(max_size=3))
_rows = st.dictionaries(st.integers(0, 12), _row, max_size=8).map(lambda rows: {k: {"id": k, **r} for k, r in rows.items()})
_state = st.fixed_dictionaries({"notes": _rows, "things": _rows})


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_state, min_size=2, max_size=5), st.data())
def test_any_history(states, data):
    resets = {n: data.draw(st.lists(st.sampled_from(["notes", "things"]), unique=True, max_size=2)) for n in range(1, len(states))}
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(Path(folder))
        document = chain(store, grow(store, states, resets=resets))
        assert read(document) == expected(states[-1])
        assert [(t.array, t.rows) for t in summed(document)] == [(a, len(rows)) for a, rows in states[-1].items()]
        assert netted(document, states[0], size=data.draw(st.sampled_from([1, 100, 1 << 20]))) == expected(states[-1])
        owner = Owner.of(Scope.user("ann"), document.schema.tables)
        hers = [{a: {k: r for k, r in rows.items() if r["uid"] == "ann"} for a, rows in s.items()} for s in states]
        assert read(document, only=owner) == expected(hers[-1])
        assert netted(document, hers[0], only=owner) == expected(hers[-1])


# --- what it asks of the store ------------------------------------------------------------------------------------------------------


def counted(store, monkeypatch) -> list[str]:
    keys: list[str] = []
    whole = type(store).read

    def read_and_count(self, key, **more):
        keys.append(key)
        return whole(self, key, **more)

    monkeypatch.setattr(type(store), "read", read_and_count)
    return keys


def test_a_small_link_is_one_request(store, monkeypatch):
    made = grow(store, STATES)
    document = chain(store, made)
    asked = counted(store, monkeypatch)
    assert netted(document, STATES[0]) == expected(STATES[-1])
    assert sorted(asked) == sorted(m.document for m in made[1:])


def test_large_frames_are_fetched_one_by_one(store, monkeypatch):
    monkeypatch.setattr(chained, "_AT_ONCE", 1)
    made = grow(store, STATES)
    document = chain(store, made)
    asked = counted(store, monkeypatch)
    assert netted(document, STATES[0]) == expected(STATES[-1])
    assert len(asked) == sum(1 for m in made[1:] for f in m.frames if f.rows)


def test_a_link_whose_document_is_gone(store):
    made = grow(store, STATES)
    document = chain(store, made)
    store.delete(made[1].document)
    with pytest.raises(CorruptDocument, match="is missing, though its manifest is there"):
        netted(document, STATES[0])
