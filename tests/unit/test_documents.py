"""Documents in files, by whom ever they were written, and one owner's rows out of everybody's."""

from __future__ import annotations

import json
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from coldstore.codec.compress import Codec
from coldstore.document import model
from coldstore.documents import ForeignFile, LineFile, Owner, StoredDocument, open_file, open_loose
from coldstore.errors import CorruptDocument, CorruptManifest, DocumentError, NotFound, TruncatedDocument, UnsupportedFormat
from coldstore.tiers import EVERYBODY, Scope
from tests.unit.samples import snapshot

CODECS = [Codec("none"), Codec("gzip"), Codec("zstd")]


def dump(row: dict) -> bytes:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()


TABLES = {
    "notes": [dump({"id": n, "uid": "alice" if n % 3 else "bob", "t": "x" * n}) for n in range(30)],
    "empty": [],
    "graph": [dump({"id": n, "uid": None, "t": "alice"}) for n in range(5)],
}
EVERY = [(array, row) for array, rows in TABLES.items() for row in rows]


def rows_of(document, wanted=tuple(TABLES), only: Owner | None = None) -> list[tuple[str, bytes]]:
    with closing(document.parts(wanted, only)) as parts:
        return [(part.array, bytes(row)) for part in parts for row in part.rows()]


def lay(folder: Path, *, codec: Codec, tables=TABLES, with_manifest: bool = True, **changes: object) -> Path:
    """A snapshot as it lies in a store's folder."""
    stored, manifest = snapshot(tables, codec=codec, **changes)
    path = folder / manifest.document.rpartition("/")[2]
    path.write_bytes(stored)
    if with_manifest:
        (folder / f"{manifest.id}.manifest.json").write_bytes(model.encode_manifest(manifest))
    return path


# --- three kinds of files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_with_its_manifest(tmp_path, codec):
    path = lay(tmp_path, codec=codec, uid="alice")
    document = open_file(path)
    assert isinstance(document, StoredDocument)
    assert document.name == "memory-all-1772071200000"
    assert (document.scope, document.snapshot_at) == (Scope.user("alice"), "2026-02-26T02:00:00.000Z")
    assert [t.rows for t in document.tiers] == [30, 0, 5]
    assert [t.array for t in document.schema.tables] == list(TABLES)
    assert rows_of(document) == EVERY
    assert b"".join(document.chunks()) == plain_of(codec, path)
    assert document.size == len(plain_of(codec, path))
    assert sum(part.size for part in document.parts(TABLES)) < document.size


def plain_of(codec: Codec, path: Path) -> bytes:
    from coldstore.codec.compress import decode_stream

    return b"".join(decode_stream(codec, iter([path.read_bytes()])))


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_without_its_manifest(tmp_path, codec):
    path = lay(tmp_path, codec=codec, with_manifest=False, workspace="w")
    document = open_file(path)
    assert isinstance(document, LineFile)
    assert (document.name, document.scope, document.tiers) == (path.name, Scope.of_workspace("w"), None)
    assert [t.array for t in document.schema.tables] == list(TABLES)
    assert rows_of(document) == EVERY
    assert rows_of(document) == EVERY  # each time from the start
    assert document.size == (path.stat().st_size if codec.name == "none" else None)


@pytest.mark.parametrize("kind", [LineFile, StoredDocument])
def test_only_the_arrays_that_are_wanted(tmp_path, kind):
    document = open_file(lay(tmp_path, codec=Codec("zstd"), with_manifest=kind is StoredDocument))
    assert isinstance(document, kind)
    assert rows_of(document, ["graph"]) == [("graph", r) for r in TABLES["graph"]]
    assert rows_of(document, ["empty"]) == rows_of(document, []) == rows_of(document, ["unknown"]) == []


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("indent", [None, 2])
def test_of_another_program(tmp_path, indent, suffix):
    made = {"snapshotAt": "2026-02-26T02:00:00Z", "uid": "alice", "dailyMemories": [{"id": 1}, {"id": 2, "t": "é"}], "graph_entities": []}
    data = json.dumps(made, indent=indent).encode()
    path = tmp_path / f"theirs.json{suffix}"
    codec = {c.suffix: c for c in CODECS}[suffix]
    path.write_bytes(b"".join(codec.encode([data])))
    document = open_file(path)
    assert isinstance(document, ForeignFile)
    assert (document.scope, document.snapshot_at, document.schema) == (Scope.user("alice"), "2026-02-26T02:00:00Z", None)
    assert document.members == {"dailyMemories": {"id", "t"}, "graph_entities": set()}
    found = rows_of(document, ["dailyMemories", "graph_entities"])
    assert [(a, json.loads(r)) for a, r in found] == [("dailyMemories", r) for r in made["dailyMemories"]]


@pytest.mark.parametrize(
    ("members", "scope"),
    [
        ({}, EVERYBODY),
        ({"uid": None, "workspace": None}, EVERYBODY),
        ({"uid": "a", "workspace": "w"}, Scope.user("a")),
        ({"workspace": "w"}, Scope.of_workspace("w")),
        ({"uid": 7}, Scope.user("7")),
        ({"uid": ""}, Scope.user("")),
    ],
)
def test_whose_memory_a_document_of_another_program_is(tmp_path, members, scope):
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps({**members, "notes": []}))
    assert open_file(path).scope == scope


def test_one_of_ours_that_somebody_reformatted(tmp_path):
    path = lay(tmp_path, codec=Codec("none"), with_manifest=False)
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=2))
    document = open_file(path)
    assert isinstance(document, ForeignFile)
    assert [(a, json.loads(r)) for a, r in rows_of(document)] == [(a, json.loads(r)) for a, r in EVERY]


def test_a_manifest_of_another_document_is_left_alone(tmp_path):
    """`memory-….json` beside the manifest of `memory-….json.zst`."""
    lay(tmp_path, codec=Codec("zstd"))
    other = tmp_path / "memory-all-1772071200000.json"
    other.write_bytes(snapshot({"notes": []})[0])
    assert isinstance(open_file(other), LineFile)
    assert isinstance(open_file(tmp_path / "memory-all-1772071200000.json.zst"), StoredDocument)


def test_a_renamed_document(tmp_path):
    path = lay(tmp_path, codec=Codec("gzip"))
    renamed = path.rename(tmp_path / "alice.json.gz")
    assert isinstance(open_file(renamed), LineFile)
    assert rows_of(open_file(renamed)) == EVERY
    plain = tmp_path / "alice"
    plain.write_bytes(plain_of(Codec("gzip"), renamed))
    assert rows_of(open_file(plain)) == EVERY


# --- what is refused ---------------------------------------------------------------------------------------------------------------


def read_all(path: Path) -> list[tuple[str, bytes]]:
    return rows_of(open_file(path))


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("with_manifest", [True, False])
def test_truncation_anywhere(tmp_path, codec, with_manifest):
    path = lay(tmp_path, codec=codec, with_manifest=with_manifest, tables={"notes": TABLES["notes"][:4]})
    whole = path.read_bytes()
    for cut in range(0, len(whole) - 1, 1 if codec.name != "none" else 7):
        path.write_bytes(whole[:cut])
        try:
            found = read_all(path)
        except (TruncatedDocument, CorruptDocument):
            continue
        # Only what closes the last zstd frame (its checksum, an empty block) may be missed where no manifest says how long it was.
        assert (codec.name, with_manifest) == ("zstd", False)
        assert found == [("notes", r) for r in TABLES["notes"][:4]]


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_a_flipped_byte_is_noticed_where_a_manifest_is(tmp_path, codec):
    path = lay(tmp_path, codec=codec)
    whole = bytearray(path.read_bytes())
    document = open_file(path)
    first = document.manifest.frames[1].offset  # the header is the manifest's own
    for at in range(first, len(whole), 5):
        whole[at] ^= 4
        path.write_bytes(whole)
        with pytest.raises(CorruptDocument):
            list(document.chunks())
        whole[at] ^= 4


def test_a_damaged_manifest_is_not_passed_over(tmp_path):
    path = lay(tmp_path, codec=Codec("none"))
    manifest = tmp_path / "memory-all-1772071200000.manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"full"', b'"ful1"'))
    with pytest.raises(CorruptManifest):
        open_file(path)
    assert rows_of(open_loose(path)) == EVERY


def test_a_document_that_went_missing(tmp_path):
    path = lay(tmp_path, codec=Codec("none"))
    document = open_file(path)
    path.unlink()
    with pytest.raises(CorruptDocument, match="missing"):
        list(document.chunks())
    with pytest.raises(NotFound) as caught:
        open_loose(path)
    assert caught.value.hint
    with pytest.raises(NotFound):
        open_file(tmp_path)


@pytest.mark.parametrize("data", [b"", b"\n", b"  \n\n"])
def test_an_empty_file(tmp_path, data):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(TruncatedDocument):
        open_file(path)


def test_a_newer_format(tmp_path):
    for stored in (snapshot(TABLES, format="coldstore/2")[0], b'{\n "format": "coldstore/2",\n "notes": []}'):
        path = tmp_path / "x.json"
        path.write_bytes(stored)
        with pytest.raises(UnsupportedFormat) as caught:
            open_file(path)
        assert "newer" in caught.value.hint


@pytest.mark.parametrize("data", [b"{}", b'{"uid":"alice"}', b'{"notes":{}}', b"[]", b"hello", b'{"notes":[{"a":tru}]}', b"\xff\xfe" * 50])
def test_a_file_without_rows_to_restore(tmp_path, data):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(DocumentError):
        open_file(path)


@pytest.mark.parametrize("name", ["x.json.gz", "x.json.zst"])
def test_a_name_that_promises_another_codec(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(snapshot(TABLES)[0])
    with pytest.raises(DocumentError):
        open_file(path)


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=80), st.sampled_from([b"", b'{"format":"coldstore/1",', b'{"a":[{']))
def test_any_bytes_end_in_one_of_our_errors(data, start):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.json")
        path.write_bytes(start + data)
        try:
            read_all(path)
        except DocumentError:
            return


# --- one owner ---------------------------------------------------------------------------------------------------------------------

NAMES = [
    *[
        "alice",
        "Alice",
        "alice2",
        "2alice",
        "al",
        "",
        " ",
        "null",
        "true",
        "1",
        "10",
        "-1",
        '"',
        '""',
        "\\",
        "\\n",
        "\n",
        "a\nb",
        "a\\b",
        'a"b',
        "é",
    ],
    *[
        "aé",
        "éa",
        "😀",
        "a😀b",
        "/",
        "a/b",
        "{",
        "}",
        "],",
        "]}",
        ",",
        ":",
        '{"uid":"alice"}',
        '","uid":"alice',
        "\x7f",
        "a\x7fb",
        "\x00",
        "a\tb",
        "\u2028",
    ],
    *["%s", "../../x", "x" * 300, "uid", "\x01", "\x02", "1e2", "100", "1.0"],
]
names = (
    st.sampled_from(NAMES)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    | st.text(st.sampled_from('al"\\/\né1'), max_size=4)
)


@st.composite
def owned(draw):
    """(the wanted owner, rows of his and others: owner, another text, how it is written)."""
    wanted = draw(names)
    somebody = st.just(wanted) | names | st.none()
    return wanted, draw(st.lists(st.tuples(somebody, names | st.just(wanted), st.booleans()), max_size=12))


@settings(deadline=None, max_examples=40)
@given(owned(), st.sampled_from([1, 80, 10_000]))
def test_exactly_the_owners_rows(case, frame_size):
    """The owner's name may stand in any other member, as a member's name, and within other names."""
    wanted, rows = case
    assume(wanted != "null" or all(owner is not None for owner, _, _ in rows))
    table = [
        dump({"t": text, text + "x": 1, "uid": owner, "v": wanted} if nested else {"uid": owner, "t": text, "n": {"uid": wanted}})
        for owner, text, nested in rows
    ]
    expected = [("notes", line) for (owner, _, _), line in zip(rows, table, strict=True) if owner == wanted]
    only = Owner(wanted, {"notes": "uid"})
    with tempfile.TemporaryDirectory() as folder:
        stored, manifest = snapshot({"notes": table}, codec=Codec("zstd"), frame_size=frame_size)
        path = Path(folder, f"{manifest.id}.json.zst")
        path.write_bytes(stored)
        loose = rows_of(open_file(path), ["notes"], only)
        Path(folder, f"{manifest.id}.manifest.json").write_bytes(model.encode_manifest(manifest))
        assert rows_of(open_file(path), ["notes"], only) == expected
    assert loose == expected


@settings(deadline=None, max_examples=80)
@given(st.lists(names, max_size=10), names, st.booleans(), st.sampled_from([None, 1]))
def test_the_owners_rows_of_another_programs_document(owners, wanted, ascii_only, indent):
    """Other programs may escape what they like."""
    data = (
        json.dumps({"notes": [{"owner": o, "t": wanted} for o in owners]}, ensure_ascii=ascii_only, indent=indent)
        .encode()
        .replace(b"/", rb"\/")
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.json")
        path.write_bytes(data)
        found = rows_of(open_file(path), ["notes"], Owner(wanted, {"notes": "owner"}))
    assert [json.loads(row)["owner"] for _, row in found] == [o for o in owners if o == wanted]


@pytest.mark.parametrize(
    ("raw", "names", "others"),
    [
        (b"7", ["7"], ["07", "7.0", "77", "", "+7"]),
        (b"-12345678901234567890", ["-12345678901234567890"], ["12345678901234567890", "-1234567890123456789"]),
        (b"10.50", ["10.50"], ["10.5"]),
        (b"true", ["true"], ["t", "1", "True"]),
        (b'"7"', ["7"], ['"7"']),
        (b'"a\\u0062"', ["ab"], ["a\\u0062"]),
    ],
)
def test_an_owner_is_its_columns_text(raw, names, others):
    row = b'{"id":1,"owner":%s}' % raw
    for name in names:
        assert Owner(name, {"t": "owner"}).owns("t", row)
    for name in others:
        assert not Owner(name, {"t": "owner"}).owns("t", row)


@pytest.mark.parametrize("name", ["alice", "", "1", "null"])
def test_a_row_without_an_owner_is_nobodys(name):
    only = Owner(name, {"t": "uid"})
    assert not only.owns("t", b'{"uid":null}')
    assert not only.owns("t", b'{"id":1}')


@pytest.mark.parametrize("column", ["uid", "User Id", 'we"ird', "back\\slash", "é", ""])
def test_owner_columns_of_any_name(column):
    only = Owner("alice", {"t": column})
    assert only.owns("t", dump({column: "alice", "uid2": "bob"}))
    assert not only.owns("t", dump({column: "bob", "other": "alice"}))


@pytest.mark.parametrize("row", [b"", b"{", b"[]", b'{"uid":"\xff"}', b'{"uid":"\\ud800"}'])
def test_a_row_that_is_no_json(row):
    with pytest.raises(CorruptDocument):
        Owner("alice", {"t": "uid"}).owns("t", row)
