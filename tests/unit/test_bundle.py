"""Bundles: whole or refused, and another's without a byte changed that is not an owner's or an id."""

from __future__ import annotations

import gzip
import json
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstore.bundle import Bundle, Contents, Origin, open_bundle, write_bundle
from coldstore.codec.sign import SigningKey
from coldstore.document import model
from coldstore.document.values import rewriter
from coldstore.errors import (
    ConfigError,
    CorruptDocument,
    CorruptManifest,
    FolderError,
    NotFound,
    SchemaMismatch,
    SignatureInvalid,
    TruncatedDocument,
    UnsupportedFormat,
)

ONE, TWO, THREE = (str(uuid.UUID(int=n)) for n in (1, 2, 3))
ENTITIES = [f'{{"id":"{ONE}","uid":"alice","name":"a \\"uid\\":\\"alice\\" b","n":1.10}}'.encode()]
EDGES = [f'{{"id":"{TWO}","uid":"alice","source_id":"{ONE}","note":null,"other":"{ONE}"}}'.encode()]
NOTES = [b'{"name":"plan.md","text":"alice"}', b'{"name":"x","base64":"AP8="}']


def name(table: str) -> model.Name:
    return model.Name(schema="public", name=table)


def key(column: str = "id") -> model.Constraint:
    return model.Constraint(name="k", kind="p", definition=f"PRIMARY KEY ({column})", columns=[column])


def table(tier: str, *columns: str, constraints: list[model.Constraint], kind: str = "uuid", uid: str = "text") -> model.Table:
    found = [model.Column(name="id", type=kind), model.Column(name="uid", type=uid), *(model.Column(name=c, type="text") for c in columns)]
    return model.Table(tier=tier, array=tier, table=name(tier), kind="table", columns=found, constraints=constraints, uid_column="uid")


SCHEMA = model.Schema(
    tables=[
        table("entities", "name", "n", constraints=[key()]),
        table(
            "edges",
            "source_id",
            "note",
            "other",
            constraints=[
                key(),
                model.Constraint(
                    name="f",
                    kind="f",
                    definition="FOREIGN KEY (source_id) REFERENCES public.entities(id) ON DELETE CASCADE",
                    columns=["source_id"],
                    references=name("entities"),
                ),
            ],
        ),
    ]
)
ORIGIN = Origin(id="memory-alice-1", snapshot_at="1970-01-01T00:00:00.001Z")


def contents(**more) -> Contents:
    rows = {"entities": ENTITIES, "edges": EDGES, "documents": NOTES}
    given = {"schema": SCHEMA, "rows": rows.__getitem__, "tables": ORIGIN, "documents": ORIGIN, "omitted": ("profiles",), **more}
    return Contents(uid="alice", created_at="2026-01-01T00:00:00.000Z", **given)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "alice.coldstore.json"


@pytest.fixture
def bundle(path: Path) -> Path:
    write_bundle(path, contents())
    return path


def rows(found: Bundle) -> dict[str, list[bytes]]:
    return {a: [bytes(r) for part in found.parts([a]) for r in part.rows()] for a in ("entities", "edges")}


def test_what_goes_in_comes_out(bundle):
    found = open_bundle(bundle)
    assert rows(found) == {"entities": ENTITIES, "edges": EDGES}
    assert list(found.documents()) == NOTES
    assert (found.uid, found.scope.uid, found.schema, found.mentions) == ("alice", "alice", SCHEMA, 0)
    assert (found.record.omitted, found.record.tables, found.snapshot_at) == (["profiles"], ORIGIN, ORIGIN.snapshot_at)
    assert bundle.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in bundle.parent.iterdir()] == [bundle.name]


def test_it_is_json(bundle):
    found = json.loads(bundle.read_text())
    assert list(found) == ["format", "uid", "bundle", "entities", "edges", "documents"]
    assert found["documents"][0] == {"name": "plan.md", "text": "alice"}
    assert found["edges"][0]["source_id"] == ONE


def test_a_compressed_one_is_read_too(bundle):
    packed = bundle.with_name("alice.json.gz")
    packed.write_bytes(gzip.compress(bundle.read_bytes()))
    assert rows(open_bundle(packed)) == {"entities": ENTITIES, "edges": EDGES}


def test_none_is_overwritten(bundle):
    before = bundle.read_bytes()
    with pytest.raises(FolderError, match="is there already"):
        write_bundle(bundle, contents())
    assert bundle.read_bytes() == before


def test_nothing_is_no_bundle(path):
    with pytest.raises(NotFound, match="not one row or document of user 'alice'"):
        write_bundle(path, contents(rows=lambda _: []))
    assert list(path.parent.iterdir()) == []


def test_a_failure_leaves_nothing(path):
    def broken(array: str):
        yield from ENTITIES
        raise CorruptDocument(f"{array} is damaged")

    with pytest.raises(CorruptDocument):
        write_bundle(path, contents(rows=broken))
    with pytest.raises(FolderError, match="cannot be written: No such file or directory"):
        write_bundle(path.parent / "missing" / "x.json", contents())
    assert list(path.parent.iterdir()) == []


def test_every_flipped_byte_is_noticed(bundle):
    whole = bundle.read_bytes()
    for at in range(len(whole)):
        bundle.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises((CorruptDocument, CorruptManifest, UnsupportedFormat, TruncatedDocument)):
            open_bundle(bundle)


def test_every_cut_is_noticed(bundle):
    whole = bundle.read_bytes()
    for length in range(len(whole)):
        bundle.write_bytes(whole[:length])
        with pytest.raises((CorruptDocument, CorruptManifest, UnsupportedFormat, TruncatedDocument)):
            open_bundle(bundle)


def test_what_is_no_bundle(tmp_path):
    with pytest.raises(NotFound):
        open_bundle(tmp_path / "nothing")
    for text in ("", "{}", '{"format":"coldstore/1",\n"a":[\n]}\n', "\n", '{"format":"coldstore-bundle/2","uid":"a","bundle":{},\n'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UnsupportedFormat, match="is no bundle"):
            open_bundle(tmp_path / "x.json")


def test_signed(path):
    signer = SigningKey.generate()
    record = write_bundle(path, contents(), signer=signer)
    assert record.sha256
    found = open_bundle(path).record.signature
    assert found is not None
    assert found.by == signer.did
    first, _, rest = path.read_bytes().partition(b"\n")
    head, _, signed = first.partition(b',"bundle":')
    body = json.loads(signed[:-1])
    body["omitted"] = []
    del body["checksum"]
    other = model._complete(body, None)  # somebody makes the checksum fit, and keeps the signature
    other["signature"] = body["signature"]
    del other["checksum"]
    other["checksum"] = model.hashlib.sha256(model.canonical(other)).hexdigest()
    path.write_bytes(head + b',"bundle":' + model.canonical(other) + b",\n" + rest)
    with pytest.raises(SignatureInvalid):
        open_bundle(path)


# --- another owner -----------------------------------------------------------------------------------------------------------------


def test_another_owner(bundle):
    found = open_bundle(bundle, uid='bob "b"\x01')
    other = rb"bob \"b\"\u0001"
    assert rows(found) == {
        "entities": [ENTITIES[0].replace(b'"uid":"alice","name"', b'"uid":"' + other + b'","name"')],
        "edges": [EDGES[0].replace(b'"uid":"alice"', b'"uid":"' + other + b'"')],
    }
    assert found.uid == 'bob "b"\x01'
    assert found.mentions == 1
    assert list(found.documents()) == NOTES


def test_the_digests_are_those_of_what_comes_out(bundle):
    from coldstore.codec.digest import format_digest, row_digest

    for found in (open_bundle(bundle), open_bundle(bundle, uid="bob"), open_bundle(bundle, uid="bob", new_ids=True)):
        sums = {a: format_digest(sum(map(row_digest, r))) for a, r in rows(found).items()}
        assert {t.array: t.digest for t in found.tiers or []} == sums


def test_new_ids_follow_what_refers_to_them(bundle):
    found = {a: [json.loads(r) for r in found] for a, found in rows(open_bundle(bundle, uid="bob", new_ids=True)).items()}
    (entity,), (edge,) = found["entities"], found["edges"]
    assert entity["id"] not in {ONE, TWO}
    assert edge["source_id"] == entity["id"]
    assert edge["id"] not in {ONE, TWO, entity["id"]}
    assert edge["other"] == ONE  # no foreign key says that it is one
    again = {a: [json.loads(r) for r in f] for a, f in rows(open_bundle(bundle, uid="bob", new_ids=True)).items()}
    assert again == found
    assert rows(open_bundle(bundle, uid="carol", new_ids=True))["edges"] != rows(open_bundle(bundle, uid="bob", new_ids=True))["edges"]


@pytest.mark.parametrize(
    ("kind", "uid", "raw"),
    [
        ("bigint", "42", b"42"),
        ("uuid", THREE.upper(), f'"{THREE}"'.encode()),
        ("character(6)", "bob", b'"bob   "'),
        ("character varying(9)", "bob", b'"bob"'),
    ],
)
def test_an_owner_in_the_columns_own_form(path, kind, uid, raw):
    schema = model.Schema(tables=[table("entities", "name", "n", constraints=[key()], uid=kind)])
    write_bundle(path, contents(schema=schema, documents=None))
    (row,) = rows(open_bundle(path, uid=uid))["entities"]
    assert b'"uid":' + raw + b"," in row


def test_what_cannot_be_another_owner(path):
    schema = model.Schema(tables=[table("entities", "name", "n", constraints=[key()], uid="bigint")])
    write_bundle(path, contents(schema=schema, documents=None))
    with pytest.raises(SchemaMismatch, match="with a bigint whose a row is, and 'bob' is none"):
        open_bundle(path, uid="bob")
    with pytest.raises(ConfigError, match="NUL"):
        open_bundle(path, uid="b\0b")
    with pytest.raises(ConfigError, match="another user's copy"):
        open_bundle(path, new_ids=True)


def test_keys_that_are_no_uuids_get_no_new_ones(path):
    schema = model.Schema(tables=[table("entities", "name", "n", constraints=[key()], kind="bigint")])
    write_bundle(path, contents(schema=schema, documents=None))
    with pytest.raises(SchemaMismatch, match=r"the key of public\.entities \(id\) is no UUID"):
        open_bundle(path, uid="bob", new_ids=True)
    assert open_bundle(path, uid="bob").uid == "bob"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner)
)


@settings(deadline=None)
@given(st.dictionaries(st.text(), VALUES, max_size=5), st.text(), VALUES)
def test_only_what_is_named_is_rewritten(members, name, new):
    row = json.dumps(members, separators=(",", ":")).encode()
    changed = rewriter({name: lambda _: json.dumps(new).encode()})(row)
    assert json.loads(changed) == {n: new if n == name else v for n, v in members.items()}
    if name not in members:
        assert changed == row
