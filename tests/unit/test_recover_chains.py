"""Chains of incrementals without coldstore: the same rows, and the same refusals."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldstore.codec.sign import SigningKey
from coldstore.document import model
from coldstore.keyrings.keyfile import Key, new_text
from coldstore.storage import layout
from coldstore.storage.local import LocalStore
from tests.recovering import module, recover
from tests.unit import chains, samples
from tests.unit.chains import FEB_26, FIVE_MINUTES, changes, dump, grow, lines, put
from tests.unit.stores import ring
from tests.unit.test_chained import STATES, expected


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> LocalStore:
    return LocalStore(folder)


def rows(*arguments: Any, **more: Any) -> dict[str, list[bytes]]:
    done = recover(*arguments, **more)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[bytes]] = {"notes": [], "things": []}
    for line in done.stdout.splitlines():
        array, _, row = line.partition(b"\t")
        found[array.decode()].append(row)
    return {array: sorted(each) for array, each in found.items()}


def refused(*arguments: Any, **more: Any) -> str:
    done = recover(*arguments, **more)
    assert (done.returncode, done.stdout) == (1, b"")
    return done.stderr.decode()


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_every_moment(store, folder, codec):
    made = grow(store, STATES, codec=codec)
    for manifest, state in zip(made, STATES, strict=True):
        assert rows(folder, manifest.id) == expected(state)


def test_with_nothing_but_the_standard_library(store, folder):
    made = grow(store, STATES, codec="gzip", resets={2: ["notes"]})
    assert rows(folder, made[-1].id, packages=()) == expected(STATES[-1])


def test_one_user_and_files(store, folder, tmp_path):
    made = grow(store, STATES)
    mine = {a: {k: r for k, r in each.items() if r["uid"] == "bob"} for a, each in STATES[-1].items()}
    assert rows(folder, made[-1].id, "--uid", "bob") == expected(mine)
    assert recover(folder, made[-1].id, "--out", tmp_path / "out").returncode == 0
    assert sorted((tmp_path / "out" / "notes.jsonl").read_bytes().splitlines()) == expected(STATES[-1])["notes"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["notes.jsonl", "things.jsonl"]


def test_sealed_and_signed(store, folder, tmp_path):
    key, signer = Key.new(), SigningKey.generate()
    made = grow(store, STATES, rings=(ring(key),), signer=signer)
    (tmp_path / "keys").write_text(new_text(key))
    arguments = [folder, made[-1].id, "--key-file", tmp_path / "keys", "--trust", signer.did, "--require-signature"]
    assert rows(*arguments) == expected(STATES[-1])
    assert "no key" in refused(folder, made[-1].id)
    assert "whom --trust does not name" in refused(*arguments[:-2], SigningKey.generate().did, "--require-signature")


def test_an_unsigned_link_is_refused(store, folder):
    signer = SigningKey.generate()
    made = grow(store, STATES[:2])
    last = put(store, changes(*STATES[1:3]), at=FEB_26 + 9 * FIVE_MINUTES, parent=made[-1], signer=signer)
    assert f"{made[1].id}.manifest.json is not signed" in refused(folder, last.id, "--trust", signer.did, "--require-signature")


def test_a_hole_and_a_replaced_link(store, folder):
    made = grow(store, STATES)
    other = model.complete(msgspec.structs.replace(made[1], seconds=9.0))
    store.replace(layout.manifest_key(made[1].id), model.encode_manifest(other))
    assert f"{made[1].id} is not the one that {made[2].id} was built on" in refused(folder, made[-1].id)
    store.delete(layout.manifest_key(made[1].id))
    assert f"{made[2].id} is built on {made[1].id}: there is no snapshot" in refused(folder, made[-1].id)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_flipped_bit_in_any_link(store, folder, number):
    made = grow(store, STATES)
    path = folder / made[number].document
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    assert "is damaged" in refused(folder, made[-1].id)


@pytest.mark.parametrize("link", ["memory-all-1772071500000", "memory-all-1872071500000", "memory-bob-1772071200000", "../x"])
def test_no_circle_and_no_stranger(store, folder, link):
    made = grow(store, STATES[:2])
    wrong = model.complete(msgspec.structs.replace(made[1], parent=model.Link(id=link, checksum=made[0].checksum)))
    store.replace(layout.manifest_key(made[1].id), model.encode_manifest(wrong))
    assert "not an earlier snapshot of the same scope" in refused(folder, made[1].id) or link == "../x"


def test_a_claim_that_is_not_so(store, folder):
    made = grow(store, STATES[:2])
    last = put(store, changes(*STATES[1:3]), at=FEB_26 + 9 * FIVE_MINUTES, parent=made[-1], state=STATES[3])
    assert f"and {last.id} says" in refused(folder, last.id)


@pytest.mark.parametrize(
    ("notes", "deleted"),
    [
        ([dump({"id": 9, "uid": "u", "text": ""})] * 2, []),
        ([dump({"id": 9, "uid": "u", "text": ""})], [b'{"array":"notes","key":{"id":9}}']),
        ([dump({"id": None, "uid": "u", "text": ""})], []),
        ([], [b'{"array":"notes","key":{}}']),
        ([], [b'{"array":"nowhere","key":{"id":1}}']),
    ],
)
def test_nonsense(store, folder, notes, deleted):
    made = grow(store, STATES[:1])
    last = put(store, {"notes": notes, "things": [], "deleted": deleted}, at=FEB_26 + FIVE_MINUTES, parent=made[0])
    assert refused(folder, last.id)


def test_a_link_alone(store, folder, tmp_path):
    made = grow(store, STATES[:2])
    assert "holds only what changed" in refused(folder / made[1].document)
    loose = tmp_path / "loose.json"
    loose.write_bytes((folder / made[1].document).read_bytes())
    assert "holds only what changed" in refused(loose)


def test_keys_that_only_postgres_tells_apart(store, folder):
    tables = [
        msgspec.structs.replace(t, columns=[model.Column(name="id", type="interval"), *t.columns[1:]]) for t in map(chains.table, STATES[0])
    ]
    made = grow(store, STATES[:2], schema=model.Schema(tables=tables))
    assert "only PostgreSQL can tell" in refused(folder, made[1].id)


@pytest.mark.parametrize(
    ("type_", "one", "other", "same"),
    [
        ("numeric(10,2)", b"1.00", b"1", True),
        ("numeric", b"10", b"1", False),
        ("real", b"-0", b"0", True),
        ("uuid", b'"a"', b'"b"', False),
        ("timestamp(3) with time zone", b'"a"', b'"a"', True),
    ],
)
def test_equal_keys(type_, one, other, same):
    table = msgspec.to_builtins(msgspec.structs.replace(samples.table("notes"), columns=[model.Column(name="id", type=type_)]))
    key = module().key_reader(table, [])
    assert (key(b'{"id":%b}' % one) == key(b'{"id":%b}' % other)) is same


def test_the_list_says_what_is_incremental(store, folder):
    grow(store, STATES[:2])
    listed = recover("--list", folder).stdout.decode().splitlines()
    assert ["incremental" in line for line in listed] == [False, True]


_rows = st.dictionaries(st.integers(0, 9), st.tuples(st.sampled_from(["ann", 'b"ob']), st.text(max_size=3)), max_size=6)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(_rows, _rows), min_size=2, max_size=5), st.data())
def test_any_history(pairs, data):
    states = [
        {a: {k: {"id": k, "uid": u, "text": t} for k, (u, t) in each.items()} for a, each in zip(("notes", "things"), pair, strict=True)}
        for pair in pairs
    ]
    resets = {n: data.draw(st.lists(st.sampled_from(["notes", "things"]), unique=True)) for n in range(1, len(states))}
    with tempfile.TemporaryDirectory() as folder:
        made = grow(LocalStore(Path(folder)), states, resets=resets)
        program = module()
        document = program.open_in_store(Path(folder), made[-1].id, program.Trust(frozenset(), required=False), program.Keys(None, None))
        found: dict[str, list[bytes]] = {"notes": [], "things": []}
        for array, row in document.rows():
            found[array].append(row)
        assert {a: sorted(each) for a, each in found.items()} == {a: sorted(each) for a, each in lines(states[-1]).items()}


def test_the_header_is_the_manifests(store, folder):
    """Also of what only incrementals have."""
    made = grow(store, STATES[:2], resets={1: ["notes"]})
    body = json.loads((folder / layout.manifest_key(made[1].id)).read_bytes())
    (folder / layout.manifest_key(made[1].id)).chmod(0o600)
    (folder / layout.manifest_key(made[1].id)).write_bytes(model.encode_record({**body, "resets": []}))
    assert "says another thing of itself" in refused(folder, made[1].id)
