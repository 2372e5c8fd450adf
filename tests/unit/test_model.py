"""Header and manifest: there and back, what a reader forgives and what it refuses."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstore.document import model
from coldstore.document.reader import read_header
from coldstore.errors import CorruptDocument, CorruptManifest, DocumentError, UnsupportedFormat
from tests.unit.samples import header, manifest

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
maybe = st.none() | text
names = st.builds(model.Name, schema=text, name=text)
count = st.integers(0, 2**53)
size = st.integers(0, 2**31)
bigint = st.integers(-(2**63), 2**63 - 1)
columns = st.builds(
    model.Column,
    name=text,
    type=text,
    not_null=st.booleans(),
    default=maybe,
    generated=st.sampled_from([None, "stored", "virtual"]),
    identity=st.none() | st.builds(model.Identity, always=st.booleans(), sequence=names),
    collation=maybe,
    form=st.sampled_from(["json", "text", "hex"]),
)
tables = st.builds(
    model.Table,
    tier=text,
    array=text,
    table=names,
    kind=st.sampled_from(["table", "partitioned", "view"]),
    columns=st.lists(columns, max_size=3),
    constraints=st.lists(
        st.builds(
            model.Constraint,
            name=text,
            kind=st.sampled_from("pufcx"),
            definition=text,
            columns=st.lists(text, max_size=2),
            references=st.none() | names,
        ),
        max_size=2,
    ),
    indexes=st.lists(st.builds(model.Index, name=text, using=text, unique=st.booleans()), max_size=2),
    partition_key=maybe,
    partitions=st.lists(st.builds(model.Partition, table=names, parent=names, bound=text, key=maybe), max_size=2),
    uid_column=maybe,
    workspace_column=maybe,
    where=maybe,
    excluded=st.lists(text, max_size=2),
    json_null_key=maybe,
)
sequences = st.builds(
    model.Sequence,
    name=names,
    type=text,
    start=bigint,
    increment=bigint,
    minimum=bigint,
    maximum=bigint,
    cache=bigint,
    cycle=st.booleans(),
    last_value=st.none() | bigint,
    owner_column=maybe,
    owner_table=st.none() | names,
)
types = st.builds(
    model.TypeDef,
    name=names,
    kind=st.sampled_from(["enum", "domain", "composite", "range"]),
    labels=st.lists(text, max_size=2),
    base=maybe,
    checks=st.lists(st.tuples(text, text), max_size=2),
    attributes=st.lists(st.tuples(text, text), max_size=2),
    subtype=maybe,
)
schemas = st.builds(
    model.Schema,
    tables=st.lists(tables, max_size=2),
    types=st.lists(types, max_size=2),
    sequences=st.lists(sequences, max_size=2),
    extensions=st.lists(st.builds(model.Extension, name=text, schema=text, version=text), max_size=2),
    omitted=st.lists(text, max_size=2),
)
common = {
    "format": st.just(model.FORMAT),
    "snapshot_at": text,
    "uid": maybe,
    "workspace": maybe,
    "id": text,
    "kind": st.sampled_from(["full", "incremental", "documents"]),
    "parent": st.none() | st.builds(model.Link, id=text, checksum=text),
    "resets": st.lists(text, max_size=2),
    "label": maybe,
    "generator": text,
    "database": st.none()
    | st.builds(
        model.Database,
        system_identifier=text,
        name=text,
        server_version=text,
        snapshot=text,
        oid=st.integers(0, 2**32),
        timeline=st.integers(0, 2**32),
        capture=maybe,
    ),
    "schema": schemas,
}
headers = st.builds(model.Header, **common)


def digits(length: int) -> st.SearchStrategy[str]:
    return st.binary(min_size=length // 2, max_size=length // 2).map(bytes.hex)


frames = st.builds(model.Frame, tier=maybe, rows=count, offset=count, length=size, plain=size, crc32c=digits(8), sha256=digits(64))
sealings = st.builds(
    model.Sealing,
    cipher=text,
    nonce=digits(14),
    check=digits(32),
    keys=st.lists(st.builds(model.WrappedKey, ring=text, key=text, wrapped=text), max_size=2),
)
manifests = st.builds(
    model.Manifest,
    **common,
    document=text,
    codec=text,
    bytes=count,
    stored_bytes=count,
    sha256=digits(64),
    plain_sha256=digits(64),
    tiers=st.lists(st.builds(model.TierSummary, tier=text, array=text, rows=count, digest=digits(32)), max_size=2),
    frames=st.lists(frames, max_size=2),
    seconds=st.floats(0, 1e9),
    state=st.none() | st.lists(st.builds(model.TierSummary, tier=text, array=text, rows=count, digest=digits(32)), max_size=2),
    counted=st.none() | st.dictionaries(text, count, max_size=2),
    built_from=maybe,
    parts=st.none() | st.lists(count, max_size=3),
    previous=st.none() | st.builds(model.Link, id=text, checksum=digits(64)),
    sealing=st.none() | sealings,
    retained=st.none() | st.builds(model.Retained, until=text, mode=text),
)

RICH = manifest(
    header(
        "notes",
        label="before",
        schema=model.Schema(
            tables=header("notes").schema.tables,
            sequences=[
                model.Sequence(
                    name=model.Name(schema="public", name="s"),
                    type="bigint",
                    start=1,
                    increment=-1,
                    minimum=-(2**63),
                    maximum=2**63 - 1,
                    cache=1,
                    last_value=7,
                )
            ],
        ),
    ),
    tiers=[model.TierSummary(tier="notes", array="notes", rows=2, digest="0f" * 16)],
    frames=[model.Frame(tier=None, rows=0, offset=0, length=12, plain=12, crc32c="00c0ffee", sha256="ab" * 32)],
)


# --- header ------------------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(headers)
def test_a_header_comes_back(found):
    line = model.encode_header(found)
    assert b"\n" not in line
    assert line.startswith(b'{"format":"coldstore/1","snapshotAt":')
    assert model.decode_header(line) == found
    assert read_header(line + b",") == found
    assert json.loads(line + b"}")["snapshotAt"] == found.snapshot_at


def test_the_members_of_a_header():
    assert list(json.loads(model.encode_header(header()) + b"}")) == [
        *["format", "snapshotAt", "uid", "workspace", "id", "kind", "parent", "resets", "label", "generator", "database", "schema"]
    ]


def test_a_header_may_have_members_of_a_later_writer():
    line = model.encode_header(header("notes"))
    later = line.replace(b'"kind":', b'"mood":{"x":[1]},"kind":', 1).replace(b'"tier":', b'"colour":"red","tier":', 1)
    assert later != line
    assert model.decode_header(later) == header("notes")


@pytest.mark.parametrize("key", ["memory.json", None])
@pytest.mark.parametrize("found", ["coldstore/2", "coldstore/1.5", "coldstore/10", "coldstore/"])
def test_a_newer_format_is_refused_with_a_hint(found, key):
    with pytest.raises(UnsupportedFormat) as caught:
        model.check_format(found, key=key)
    assert found in str(caught.value)
    assert "newer coldstore" in caught.value.hint
    with pytest.raises(UnsupportedFormat):
        read_header(model.encode_header(header(format=found)))
    with pytest.raises(UnsupportedFormat) as caught:
        model.decode_manifest(model.encode_manifest(manifest(format=found)), key="k")
    assert "newer coldstore" in caught.value.hint


@pytest.mark.parametrize("found", [None, "", "other", 1, [], {}, "COLDSTORE/1", " coldstore/1"])
def test_what_is_no_document_of_ours(found):
    with pytest.raises(UnsupportedFormat) as caught:
        model.check_format(found)
    assert caught.value.hint is None


@settings(deadline=None)
@given(st.data())
def test_a_header_that_was_cut_or_altered_is_refused_or_read(data):
    line = model.encode_header(header("notes"))
    for cut in (0, 1, data.draw(st.integers(0, len(line) - 1))):
        with pytest.raises(DocumentError):
            read_header(line[:cut])
    at = data.draw(st.integers(0, len(line) - 1))
    altered = line[:at] + data.draw(st.binary(max_size=3)) + line[at + 1 :]
    with suppress(DocumentError):
        assert isinstance(read_header(altered), model.Header)


@pytest.mark.parametrize("line", [b"", b"[", b'"x"', b"1", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b'{"format":"coldstore/1"'])
def test_what_is_no_header(line):
    with pytest.raises(CorruptDocument) as caught:
        read_header(line, key="memory.json")
    assert "memory.json" in str(caught.value)
    assert caught.value.key == "memory.json"


def test_a_header_without_a_format():
    with pytest.raises(UnsupportedFormat):
        read_header(b'{"uid":null')


# --- manifest ----------------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(manifests)
def test_a_manifest_comes_back(found):
    data = model.encode_manifest(found)
    read = model.decode_manifest(data, key="k")
    assert msgspec.structs.replace(read, checksum="") == found
    assert model.encode_manifest(read) == data
    assert data == model.canonical(json.loads(data)) + b"\n"


def test_the_checksum_covers_everything_else():
    body = json.loads(model.encode_manifest(RICH))
    checksum = body.pop("checksum")
    plain = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert checksum == hashlib.sha256(plain).hexdigest()
    assert model.decode_manifest(model.encode_manifest(RICH), key="k").checksum == checksum


def test_rows_by_tier():
    assert RICH.rows() == {"notes": 2}


def signed(body: dict) -> bytes:
    """A manifest with a right checksum, whatever it says."""
    body.pop("checksum", None)
    body["checksum"] = hashlib.sha256(model.canonical(body)).hexdigest()
    return model.canonical(body) + b"\n"


def test_a_manifest_may_have_members_of_a_later_writer():
    body = json.loads(model.encode_manifest(RICH))
    body["mood"] = {"x": [1]}
    body["frames"][0]["sealed"] = True
    read = model.decode_manifest(signed(body), key="k")
    assert msgspec.structs.replace(read, checksum="") == RICH


def test_every_flipped_byte_is_noticed():
    """Every bit of every byte, and whatever would make another number or another piece of JSON of it."""
    data = model.encode_manifest(RICH)
    altered = bytearray(data)
    for at, byte in enumerate(data):
        for other in {byte ^ 1 << bit for bit in range(8)} | set(b'0123456789-+.eE"\\,:{}[] \n\0') - {byte}:
            altered[at] = other
            try:
                model.decode_manifest(bytes(altered), key="k")
            except (CorruptManifest, UnsupportedFormat):
                continue
            pytest.fail(f"byte {at} ({data[at : at + 1]!r} of {data[max(0, at - 20) : at + 20]!r}) may be {bytes([other])!r}")
        altered[at] = byte


def test_every_truncation_is_noticed():
    data = model.encode_manifest(RICH)
    for cut in range(len(data)):
        with pytest.raises(CorruptManifest):
            model.decode_manifest(data[:cut], key="k")


@settings(deadline=None)
@given(st.data())
def test_bytes_added_or_removed_are_noticed(data):
    whole = model.encode_manifest(RICH)
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    other = whole[:start] + data.draw(st.binary(max_size=8)) + whole[end:]
    if other != whole:
        with pytest.raises(DocumentError):
            model.decode_manifest(other, key="k")


@pytest.mark.parametrize(
    "again",
    [
        lambda body: json.dumps(body, indent=2).encode() + b"\n",
        lambda body: json.dumps(body).encode() + b"\n",
        model.canonical,
        lambda body: model.canonical(body) + b"\n\n",
        lambda body: b" " + model.canonical(body) + b"\n",
        lambda body: model.canonical(body) + b"\r\n",
        lambda body: b"\xef\xbb\xbf" + model.canonical(body) + b"\n",
        lambda body: json.dumps(dict(reversed(body.items())), separators=(",", ":")).encode() + b"\n",
        lambda body: model.canonical(body).replace(b'"codec"', b'"c\\u006fdec"') + b"\n",
        lambda body: model.canonical(body)[:-1] + b',"codec":"none"}\n',
    ],
)
def test_a_reformatted_manifest_is_refused(again):
    body = json.loads(model.encode_manifest(RICH))
    with pytest.raises(CorruptManifest):
        model.decode_manifest(again(body), key="k")


OPTIONAL = {"previous", "sealing", "retained", "suspect", "signature", "parent", "resets", "state", "counted", "builtFrom", "parts"}


@pytest.mark.parametrize("name", sorted(OPTIONAL))
def test_a_manifest_of_an_earlier_writer_may_lack_what_came_later(name):
    body = json.loads(model.encode_manifest(RICH))
    del body[name]
    assert msgspec.structs.replace(model.decode_manifest(signed(body), key="k"), checksum="") == RICH


@pytest.mark.parametrize("name", sorted({f.encode_name for f in msgspec.structs.fields(model.Manifest)} - OPTIONAL))
def test_a_manifest_that_lacks_a_part_is_refused(name):
    body = json.loads(model.encode_manifest(RICH))
    del body[name]
    expected = UnsupportedFormat if name == "format" else CorruptManifest
    if name == "checksum":
        with pytest.raises(expected):
            model.decode_manifest(model.canonical(body) + b"\n", key="k")
    else:
        with pytest.raises(expected):
            model.decode_manifest(signed(body), key="k")


@pytest.mark.parametrize("wrong", [-1, -(2**63), 2**64 - 1, 2**70, 1e300, "1", None])
@pytest.mark.parametrize("name", ["rows", "offset", "length", "plain"])
def test_sizes_that_cannot_be_are_refused(name, wrong):
    body = json.loads(model.encode_manifest(RICH))
    body["frames"][0][name] = wrong
    try:
        data = signed(body)
    except OverflowError:
        data = b"%d\n" % wrong
    with pytest.raises(CorruptManifest):
        model.decode_manifest(data, key="k")


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"[]\n", b"null\n", b'"x"\n', b"{}\n", b'"\xff"', b"[" * 100_000, b'{"\\ud800":1}', b"{" + b" " * 9]
)
def test_what_is_no_manifest(data):
    with pytest.raises(CorruptManifest) as caught:
        model.decode_manifest(data, key="some/key")
    assert "some/key" in str(caught.value)
    assert caught.value.key == "some/key"
