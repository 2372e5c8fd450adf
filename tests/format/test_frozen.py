"""Documents that were written when the format was released, read by today's code. What stands here in words and numbers must never change;
a reader that needs another expectation cannot read what people have stored.

`coldstore-1/` is a whole store, made by `make_frozen.py`: everybody's memory as plain JSON and as gzip, alice's as zstd with vectors in
hexadecimal form; then both sealed and signed, with a deleted one between them, and wrapped for another key since. The keys, which keep no
secret, lie beside it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import hmac
import io
import json
from contextlib import closing
from pathlib import Path

import google_crc32c
import msgspec
import pytest
import xxhash
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from coldstore.catalog import Deleted, added_keys, deletions, manifests, newest, read_manifest
from coldstore.codec.sign import SigningKey, public_of
from coldstore.document import model
from coldstore.document.reader import lines, read_header, read_rows
from coldstore.document.values import RowEncoder
from coldstore.documents import LineFile, Owner, StoredDocument, open_file, open_loose, open_stored
from coldstore.keyrings.local import LocalRing
from coldstore.storage.open import open_store
from coldstore.tiers import EVERYBODY, Scope
from coldstore.trust import Trust
from coldstore.verify import Checks, verify

STORE = Path(__file__).parent / "coldstore-1"
DAY = STORE / "snapshots" / "2026-11-21"
PLAIN, GZIP, ZSTD = "memory-all-1795262090449", "memory-all-1795262090571", "memory-alice-1795262090636"
FILES = {PLAIN: f"{PLAIN}.json", GZIP: f"{GZIP}.json.gz", ZSTD: f"{ZSTD}.json.zst"}
SEALED, SEALED_ALICE = "memory-all-1795262090688", "memory-alice-1795262090802"

ALICE = [
    (
        rb"""{"id":100,"uid":"alice","date":"2026-02-24","entries":[{"weight": 0.10, "content": "tea, \"green\""}],"""
        rb""""raw":{ "b" : 1,   "a" : [1.0, 1e2] },"summary":"line\nbreak\ttab \\ slash / \"quote\"","weight":1234567890.12345678901234567890,"""
        rb""""tags":["plain","with space","NULL",null,"","quo\"te","back\\slash","{brace}","a,b"],"matrix":[[1,2],[3,4]],"""
        rb""""attachment":"\\x00ff5c22","created_at":"2026-02-24T23:59:59.999999+00:00"}"""
    ),
    (
        rb"""{"id":110,"uid":"alice","date":"2026-02-25","entries":null,"raw":null,"summary":"","weight":"NaN","tags":[],"""
        rb""""matrix":"[0:1]={7,8}","attachment":"\\x","created_at":"infinity","~jsonNull":["entries","raw"]}"""
    ),
    (
        rb"""{"id":120,"uid":"alice","date":"infinity","entries":null,"raw":null,"summary":null,"weight":null,"tags":null,"matrix":null,"""
        rb""""attachment":null,"created_at":"-infinity"}"""
    ),
]
OTHERS = [
    rb"""{"id":130,"uid":"bob","date":"0044-03-15 BC","entries":{"alice": 12345678901234567890.123456789},"raw":"alice","""
    + '"summary":"é 😀 \u2028 \\u0001\\u0002\x7f",'.encode()
    + rb""""weight":-0.00000000000000000001,"tags":["alice"],"matrix":[null,-1],"attachment":"\\x616c696365","""
    rb""""created_at":"2026-02-26T02:00:00+00:00"}""",
    (
        rb"""{"id":140,"uid":"Alice","date":"2026-02-24","entries":"a string","raw":[],"summary":"Not alice","""
        rb""""weight":0.00000000000000000000,"tags":null,"matrix":null,"attachment":null,"created_at":"2026-02-26T02:00:00+00:00"}"""
    ),
]


def graph(first: str, second: str) -> list[bytes]:
    """Alice's entities, with these two embeddings."""
    return [
        (
            '{"uid":"alice","Name":"Straße","mood":"Very \\"happy\\"","place":{"city":"Köln, \\"Altstadt\\"","lat":50.9375,'
            '"long":6.96030000000000000001},"places":[{"city":"a","lat":1,"long":2},null],"confidence":0.1250,"score":"NaN","rank":0.1,'
            f'"embedding":"{first}","life":"[\\"2026-01-01 00:00:00+00\\",infinity)","numbers":"{{[1,3),[5,8)}}","letters":6}}'
        ).encode(),
        (
            '{"uid":"alice","Name":"empty","mood":"calm","place":{"city":null,"lat":null,"long":null},"places":[],"confidence":1.0000,'
            f'"score":"-Infinity","rank":3.4028235e+38,"embedding":"{second}","life":"empty","numbers":"{{}}","letters":5}}'
        ).encode(),
    ]


BOBS = (
    b'{"uid":"bob","Name":"nothing","mood":null,"place":null,"places":null,"confidence":0.0000,"score":5e-324,"rank":null,'
    b'"embedding":null,"life":null,"numbers":null,"letters":7}'
)
PROCEDURES = [
    (
        rb"""{"id":"00000000-0000-4000-8000-000000000001","serial":1,"uid":"bob","kind":"rule","body":{},"we\"ird":"x","small":-32768,"""
        rb""""big":9223372036854775807,"active":true,"every":"1 year -2 days +03:04:05.678","at":"24:00:00","seen":"2026-02-26T02:00:00.5","""
        rb""""address":"2001:db8::1/64","bits":"10110","fixed":"ab   ","spot":"(1.5,-2)","""
        rb""""steps":"{\"{\\\"a\\\": null}\",\"null\",NULL}","scores":["NaN","Infinity",-0,0.1]}"""
    ),
    (
        rb"""{"id":"00000000-0000-4000-8000-000000000002","serial":2,"uid":null,"kind":null,"body":null,"we\"ird":null,"small":null,"""
        rb""""big":null,"active":false,"every":null,"at":null,"seen":null,"address":null,"bits":null,"fixed":null,"spot":null,"""
        rb""""steps":null,"scores":null,"~jsonNull":["body"]}"""
    ),
]
AS_TEXT = graph("[1,-2.5,0.33333334,1e-30]", "[0,-0,3.4028235e+38,1.1754944e-38]")
AS_HEX = graph("000400003f800000c02000003eaaaaab0da24260", "0004000000000000800000007f7fffff00800000")
EVERYBODYS = {"dailyMemories": [*ALICE, *OTHERS], "graphEntities": [*AS_TEXT, BOBS], "proceduralMemory": PROCEDURES}
ALICES = {"dailyMemories": ALICE, "graphEntities": AS_HEX, "proceduralMemory": []}
ROWS = {PLAIN: EVERYBODYS, GZIP: EVERYBODYS, ZSTD: ALICES}
SEALED_ROWS = {SEALED: EVERYBODYS, SEALED_ALICE: ALICES | {"graphEntities": AS_TEXT}}

DIGESTS = {
    PLAIN: ["0296ee16eaea66ae9f271e08098dae40", "e136416b81fd2c4e6bd10b3790d4a1a5", "2d1950a1261789444a86edf57c47f808"],
    GZIP: ["0296ee16eaea66ae9f271e08098dae40", "e136416b81fd2c4e6bd10b3790d4a1a5", "2d1950a1261789444a86edf57c47f808"],
    ZSTD: ["fdee6407c4b62664df7ccb3f43b8314e", "7306803ff62cc2c7598acaf576e3f5c8", "00000000000000000000000000000000"],
}

every = pytest.mark.parametrize("identity", [PLAIN, GZIP, ZSTD])


def manifest_of(identity: str) -> model.Manifest:
    return model.decode_manifest((DAY / f"{identity}.manifest.json").read_bytes(), key=identity)


def plain_of(identity: str) -> bytes:
    """The document by the tools anybody has."""
    stored = (DAY / FILES[identity]).read_bytes()
    if identity == GZIP:
        return gzip.decompress(stored)
    if identity == ZSTD:
        return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(stored), read_across_frames=True).read()
    return stored


def rows_of(document, only: Owner | None = None) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {t.array: [] for t in document.schema.tables}
    with closing(document.parts(found, only)) as parts:
        for part in parts:
            found[part.array] += map(bytes, part.rows())
    return found


# --- rows --------------------------------------------------------------------------------------------------------------------------


@every
def test_every_row_of_the_snapshot(identity):
    document = open_file(DAY / FILES[identity])
    assert isinstance(document, StoredDocument)
    assert rows_of(document) == ROWS[identity]
    assert b"".join(document.chunks()) == plain_of(identity)


@every
def test_every_row_without_the_manifest(identity):
    document = open_loose(DAY / FILES[identity])
    assert isinstance(document, LineFile)
    assert rows_of(document) == ROWS[identity]


@every
def test_every_row_by_a_plain_json_parser(identity):
    whole = json.loads(plain_of(identity))
    for array, rows in ROWS[identity].items():
        assert whole[array] == [json.loads(row) for row in rows]
    assert whole["dailyMemories"][0]["summary"] == 'line\nbreak\ttab \\ slash / "quote"'
    assert whole["dailyMemories"][0]["raw"] == {"b": 1, "a": [1.0, 100.0]}


def test_the_lines_of_the_document():
    rest = lines([plain_of(PLAIN)])
    header = read_header(next(rest))
    assert [t.array for t in header.schema.tables] == ["dailyMemories", "graphEntities", "proceduralMemory"]
    assert list(read_rows(rest, [t.array for t in header.schema.tables])) == [(a, r) for a, rows in EVERYBODYS.items() for r in rows]


@pytest.mark.parametrize("identity", [PLAIN, GZIP])
def test_one_users_rows_out_of_everybodys(identity):
    for name, wanted in {
        "alice": {"dailyMemories": ALICE, "graphEntities": AS_TEXT, "proceduralMemory": []},
        "bob": {"dailyMemories": OTHERS[:1], "graphEntities": [BOBS], "proceduralMemory": PROCEDURES[:1]},
        "Alice": {"dailyMemories": OTHERS[1:], "graphEntities": [], "proceduralMemory": []},
        "carol": {"dailyMemories": [], "graphEntities": [], "proceduralMemory": []},
    }.items():
        only = Owner(name, dict.fromkeys(EVERYBODYS, "uid"))
        assert rows_of(open_file(DAY / FILES[identity]), only) == wanted
        assert rows_of(open_loose(DAY / FILES[identity]), only) == wanted


# --- what the manifest says --------------------------------------------------------------------------------------------------------


@every
def test_the_sums(identity):
    manifest = manifest_of(identity)
    stored, plain = (DAY / FILES[identity]).read_bytes(), plain_of(identity)
    assert (manifest.stored_bytes, manifest.sha256) == (len(stored), hashlib.sha256(stored).hexdigest())
    assert (manifest.bytes, manifest.plain_sha256) == (len(plain), hashlib.sha256(plain).hexdigest())
    assert [t.digest for t in manifest.tiers] == DIGESTS[identity]
    for tier in manifest.tiers:
        rows = ROWS[identity][tier.array]
        assert (tier.rows, tier.digest) == (len(rows), f"{sum(map(xxhash.xxh3_128_intdigest, rows)) % 2**128:032x}")
    at = taken = 0
    for frame in manifest.frames:
        piece = stored[frame.offset : frame.offset + frame.length]
        assert frame.offset == at
        assert frame.sha256 == hashlib.sha256(piece).hexdigest()
        assert frame.crc32c == f"{google_crc32c.value(piece):08x}"
        at += frame.length
        taken += frame.plain
    assert (at, taken) == (len(stored), len(plain))


def test_the_sums_as_they_were_written():
    assert manifest_of(PLAIN).sha256 == "b1b942a12e1deffb0c3533c1300d30dd0d023a0f225e358d2b3446c692356356"
    assert manifest_of(GZIP).sha256 == "420732cc73a5cb17ae319d2d9e2c211e7451df2c6bd06649a4623fe5600ec59e"
    assert manifest_of(ZSTD).sha256 == "bdc9ae8a967c2eeb1cb66d294c37336ccd29b968919d8d0812798c0f518d9709"
    assert manifest_of(PLAIN).checksum == "1dac06f5eac22727a1b12e24142ad4b03009e048e7497703c58fce66910411bd"
    assert manifest_of(GZIP).checksum == "4b9e72b5fd0d964861dea798cabb1ce9730ae87487fa7d4c015699ad52cbac5a"
    assert manifest_of(ZSTD).checksum == "15e25b289f3c0cec3629804fb0543bae9715dfce16c77f31f458bf8e446ef5f1"


@pytest.mark.parametrize(
    ("identity", "frames"),
    [
        (
            PLAIN,
            [
                (None, 0, 0, 4447, 4447),
                ("dailyMemories", 1, 4447, 434, 434),
                ("dailyMemories", 2, 4881, 374, 374),
                ("dailyMemories", 2, 5255, 507, 507),
                ("graphEntities", 1, 5762, 375, 375),
                ("graphEntities", 2, 6137, 431, 431),
                ("proceduralMemory", 1, 6568, 429, 429),
                ("proceduralMemory", 1, 6997, 284, 284),
            ],
        ),
        (
            GZIP,
            [
                (None, 0, 0, 1646, 4459),
                ("dailyMemories", 1, 1646, 334, 434),
                ("dailyMemories", 2, 1980, 215, 374),
                ("dailyMemories", 2, 2195, 294, 507),
                ("graphEntities", 1, 2489, 291, 375),
                ("graphEntities", 2, 2780, 248, 431),
                ("proceduralMemory", 1, 3028, 320, 429),
                ("proceduralMemory", 1, 3348, 206, 284),
            ],
        ),
        (
            ZSTD,
            [
                (None, 0, 0, 1640, 4465),
                ("dailyMemories", 3, 1640, 426, 810),
                ("graphEntities", 2, 2066, 384, 653),
                ("proceduralMemory", 0, 2450, 33, 24),
            ],
        ),
    ],
)
def test_the_frames(identity, frames):
    assert [(f.tier, f.rows, f.offset, f.length, f.plain) for f in manifest_of(identity).frames] == frames


@pytest.mark.parametrize(
    ("identity", "uid", "label", "codec", "at"),
    [
        (PLAIN, None, None, "none", "2026-11-21T11:54:50.449Z"),
        (GZIP, None, "frozen as gzip", "gzip", "2026-11-21T11:54:50.571Z"),
        (ZSTD, "alice", None, "zstd", "2026-11-21T11:54:50.636Z"),
    ],
)
def test_the_fields_of_header_and_manifest(identity, uid, label, codec, at):
    manifest = manifest_of(identity)
    header = read_header(plain_of(identity).partition(b"\n")[0])
    for found in (header, manifest):
        assert (found.format, found.id, found.kind, found.generator) == ("coldstore/1", identity, "full", "coldstore 0.1.0")
        assert (found.uid, found.workspace, found.label, found.snapshot_at) == (uid, None, label, at)
        assert found.database == model.Database(
            system_identifier="7710591958427093089", name="fmt_frozen", server_version="18.4", snapshot="756:756:"
        )
    assert manifest.schema == header.schema
    assert manifest.document == f"snapshots/2026-11-21/{FILES[identity]}"
    assert manifest.codec == codec


COLUMNS = {
    "dailyMemories": "id bigint! | uid text! | date date! | entries jsonb | raw json | summary text | weight numeric(38,20) | tags text[]"
    " | matrix integer[] | attachment bytea | created_at timestamp with time zone!",
    "graphEntities": "uid text! | Name character varying(40)! | mood public.mood | place public.place | places public.place[]"
    " | confidence public.share! | score double precision | rank real | embedding public.vector(4) | life tstzrange"
    " | numbers int4multirange | letters integer",
    "proceduralMemory": 'id uuid! | serial integer! | uid text | kind text | body jsonb! | we"ird text | small smallint | big bigint'
    " | active boolean | every interval | at time without time zone | seen timestamp without time zone | address inet | bits bit varying"
    " | fixed character(5) | spot point | steps jsonb[] | scores double precision[]",
}


def name(schema: str, table: str) -> model.Name:
    return model.Name(schema=schema, name=table)


@every
def test_the_schema(identity):
    schema = manifest_of(identity).schema
    daily, entities, procedures = schema.tables
    assert {t.array: " | ".join(f"{c.name} {c.type}{'!' if c.not_null else ''}" for c in t.columns) for t in schema.tables} == COLUMNS
    assert [t.tier for t in schema.tables] == ["daily_memories", "graph_entities", "procedural_memory"]
    assert [t.table for t in schema.tables] == [
        name("public", "daily_memories"),
        name("Mem Ories", 'The "Graph" itself'),
        name("public", "procedural_memory"),
    ]
    assert {t.kind for t in schema.tables} == {"table"}
    assert [t.key for t in schema.tables] == [["id"], ["uid", "Name"], ["id"]]
    assert [(t.uid_column, t.workspace_column, t.json_null_key) for t in schema.tables] == [
        ("uid", None, "~jsonNull"),
        ("uid", None, None),
        ("uid", None, "~jsonNull"),
    ]
    forms = {(t.array, c.name): c.form for t in schema.tables for c in t.columns if c.form != "json"}
    hexadecimal = {("graphEntities", "embedding"): "hex"} if identity == ZSTD else {}
    assert forms == {("proceduralMemory", "steps"): "text", **hexadecimal}
    by_name = {c.name: c for t in (procedures, entities, daily) for c in t.columns}
    assert by_name["id"].identity == model.Identity(always=False, sequence=name("public", "daily_memories_id_seq"))
    assert by_name["created_at"].default == "'2026-02-26 02:00:00+00'::timestamp with time zone"
    assert (by_name["letters"].generated, by_name["letters"].default) == ("stored", 'char_length(("Name")::text)')
    assert by_name["serial"].default == "nextval('public.procedural_memory_serial_seq'::regclass)"
    assert [(c.name, c.kind, c.definition) for t in schema.tables for c in t.constraints] == [
        ("daily_memories_pkey", "p", "PRIMARY KEY (id)"),
        ("daily_memories_uid_date_key", "u", "UNIQUE (uid, date)"),
        ('The "Graph" itself_pkey', "p", 'PRIMARY KEY (uid, "Name")'),
        (
            "procedural_memory_kind_check",
            "c",
            "CHECK ((kind = ANY (ARRAY['workflow'::text, 'rule'::text, 'template'::text])))",
        ),
        ("procedural_memory_pkey", "p", "PRIMARY KEY (id)"),
    ]
    assert daily.indexes == [model.Index(name="daily_memories_by_date", using="btree (date DESC) WHERE (summary IS NOT NULL)")]
    assert schema.types == [
        model.TypeDef(name=name("public", "mood"), kind="enum", labels=["calm", 'Very "happy"', "sad"]),
        model.TypeDef(
            name=name("public", "share"),
            kind="domain",
            base="numeric(5,4)",
            checks=[("share_check", "CHECK (((VALUE >= (0)::numeric) AND (VALUE <= (1)::numeric)))")],
        ),
        model.TypeDef(
            name=name("public", "place"), kind="composite", attributes=[("city", "text"), ("lat", "double precision"), ("long", "numeric")]
        ),
    ]
    assert schema.extensions == [model.Extension(name="vector", schema="public", version="0.8.5")]
    assert [(s.name.name, s.type, s.start, s.increment, s.last_value, s.owner_column) for s in schema.sequences] == [
        ("daily_memories_id_seq", "bigint", 100, 10, 140, None),
        ("procedural_memory_serial_seq", "integer", 1, 1, 41, "serial"),
    ]
    assert schema.omitted == []


@every
def test_manifests_are_written_today_as_they_were(identity):
    """The canonical form is what the checksum covers: another one would make every stored manifest unreadable. Members may be added."""
    data = (DAY / f"{identity}.manifest.json").read_bytes()
    assert model.canonical(_common(data, model.encode_manifest(manifest_of(identity)))) + b"\n" == data
    header = plain_of(identity).partition(b"\n")[0].removesuffix(b",") + b"}"
    assert msgspec.json.encode(_common(header, model.encode_header(read_header(header[:-1])) + b"}")) == header


def _common(then: bytes, now: bytes) -> dict[str, object]:
    """What is written now, without what was not written then."""
    return {name: value for name, value in json.loads(now).items() if name in json.loads(then)}


# --- the store ---------------------------------------------------------------------------------------------------------------------


def test_the_catalog(store):
    assert [m.id for m in manifests(store)] == [SEALED_ALICE, SEALED, ZSTD, GZIP, PLAIN]
    assert [m.id for m in manifests(store, scope=Scope.user("alice"))] == [SEALED_ALICE, ZSTD]
    assert newest(store).id == SEALED
    assert newest(store, EVERYBODY, label="frozen as gzip").id == GZIP
    assert read_manifest(store, PLAIN).rows() == {"daily_memories": 5, "graph_entities": 3, "procedural_memory": 2}


def test_the_pointers():
    assert json.loads((STORE / "checkpoints" / "all" / "frozen%20as%20gzip.json").read_bytes()) == {
        "id": GZIP,
        "snapshotAt": "2026-11-21T11:54:50.571Z",
        "document": f"snapshots/2026-11-21/{GZIP}.json.gz",
        "manifest": f"snapshots/2026-11-21/{GZIP}.manifest.json",
        "checksum": "4b9e72b5fd0d964861dea798cabb1ce9730ae87487fa7d4c015699ad52cbac5a",
        "rows": {"daily_memories": 5, "graph_entities": 3, "procedural_memory": 2},
        "head": None,
    }
    named = {
        path: json.loads((STORE / path).read_bytes())["id"]
        for path in ("latest/all.json", "latest/alice.json", "checkpoints/alice/kept.json")
    }
    assert named == {"latest/all.json": SEALED, "latest/alice.json": SEALED_ALICE, "checkpoints/alice/kept.json": SEALED_ALICE}


# --- sealed, signed, in a row ------------------------------------------------------------------------------------------------------

SIGNER_HEX = "d49d431af897fb161cf200bf4113cb2b5df04411079d2a3b7eab1f90a3c31c3a"
SIGNER = "did:key:z6MktmDZUtLtdoD62rjLPvWQgWAxqUs13AF1VHS76LHLPzBK"
OLD, NEW = (LocalRing.parse((STORE.parent / name).read_text(), source=name) for name in ("TEST-KEY-old", "TEST-KEY-new"))
DELETED = "memory-alice-1795262090781"


@pytest.fixture
def store():
    with closing(open_store(str(STORE))) as found:
        yield found


@pytest.mark.parametrize("ring", [OLD, NEW], ids=["the key of the manifest", "the key that was added"])
@pytest.mark.parametrize("identity", [SEALED, SEALED_ALICE])
def test_every_row_of_a_sealed_snapshot(store, identity, ring):
    document = open_stored(store, read_manifest(store, identity), rings=[ring])
    assert rows_of(document) == SEALED_ROWS[identity]
    beside = open_file(STORE / read_manifest(store, identity).document, rings=[ring])
    assert rows_of(beside) == SEALED_ROWS[identity]


@pytest.mark.parametrize("identity", [SEALED, SEALED_ALICE])
def test_a_frame_by_the_tools_anybody_has(store, identity):
    """AES-GCM, and the key from the lines of a key file: what docs/FORMAT.md says and nothing of coldstore's."""
    manifest = json.loads((DAY / f"{identity}.manifest.json").read_bytes())
    (wrapped,) = manifest["sealing"]["keys"]
    secret = base64.b64decode((STORE.parent / "TEST-KEY-old").read_text().split(":")[-1])
    sealed = base64.b64decode(wrapped["wrapped"])
    key = AESGCM(secret).decrypt(sealed[:12], sealed[12:], b"coldstore/1 data key\0" + identity.encode())
    assert manifest["sealing"]["check"] == hmac.digest(key, f"coldstore/1 check\0{identity}".encode(), "sha256").hex()[:32]
    stored = (STORE / manifest["document"]).read_bytes()
    plain = b""
    for number, frame in enumerate(manifest["frames"]):
        nonce = bytes.fromhex(manifest["sealing"]["nonce"]) + number.to_bytes(4, "big") + bytes([number + 1 == len(manifest["frames"])])
        piece = stored[frame["offset"] : frame["offset"] + frame["length"]]
        opened = AESGCM(key).decrypt(nonce, piece, b"coldstore/1 frame\0" + identity.encode())
        plain += gzip.decompress(opened) if manifest["codec"] == "gzip" else zstandard.decompress(opened)
    assert {a: [json.dumps(r) for r in json.loads(plain)[a]] for a in SEALED_ROWS[identity]} == {
        a: [json.dumps(json.loads(r)) for r in rows] for a, rows in SEALED_ROWS[identity].items()
    }
    mask = int.from_bytes(hmac.digest(key, f"coldstore/1 mask plainSha256\0{identity}".encode(), "sha256"), "big")
    assert int(manifest["plainSha256"], 16) ^ mask == int(hashlib.sha256(plain).hexdigest(), 16)
    for tier in manifest["tiers"]:
        pad = hmac.digest(key, f"coldstore/1 mask digest {tier['array']}\0{identity}".encode(), "sha256")[:16]
        digest = sum(map(xxhash.xxh3_128_intdigest, SEALED_ROWS[identity][tier["array"]])) % 2**128
        assert int(tier["digest"], 16) ^ int.from_bytes(pad, "big") == digest


SIGNED = [
    f"snapshots/2026-11-21/{SEALED}.manifest.json",
    f"snapshots/2026-11-21/{SEALED_ALICE}.manifest.json",
    f"snapshots/2026-11-21/{SEALED}.keys-0001.json",
    f"snapshots/2026-11-21/{SEALED_ALICE}.keys-0001.json",
    "deletions/2026-11-21/1795262090834-7145a3ac.json",
]


@pytest.mark.parametrize("key", SIGNED)
def test_a_signature_by_the_tools_anybody_has(key):
    body = json.loads((STORE / key).read_bytes())
    signature = body.pop("signature")
    del body["checksum"]
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert signature["by"] == SIGNER
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(SIGNER_HEX))
    public.verify(base64.b64decode(signature["value"]), b"coldstore/1 record\n" + text)


def test_signatures_as_they_were_written():
    """Ed25519 has no chance in it: today's program signs the same with the same key."""
    signer = SigningKey.parse((STORE.parent / "TEST-KEY-signing").read_text())
    assert (signer.did, public_of(signer.did)) == (SIGNER, bytes.fromhex(SIGNER_HEX))
    for key in SIGNED:
        data = (STORE / key).read_bytes()
        assert model.encode_record(json.loads(data), signer=signer) == data


def test_the_links(store):
    found = {m.id: m.previous for m in manifests(store)}
    assert {name: link and link.id for name, link in found.items()} == {
        PLAIN: None,
        GZIP: PLAIN,
        SEALED: GZIP,
        ZSTD: None,
        SEALED_ALICE: DELETED,
    }
    assert found[SEALED].checksum == read_manifest(store, GZIP).checksum
    ((_, record),) = deletions(store)
    assert record.snapshots == [
        Deleted(
            id=DELETED,
            checksum=found[SEALED_ALICE].checksum,
            previous=model.Link(id=ZSTD, checksum=read_manifest(store, ZSTD).checksum),
            seconds=0.01355,
        )
    ]


def test_what_else_the_manifest_of_a_sealed_one_says(store):
    manifest = read_manifest(store, SEALED_ALICE)
    assert manifest.retained == model.Retained(until="2036-11-18T11:54:51.000Z", mode="advisory")
    assert manifest.sealing == model.Sealing(
        cipher="AES-256-GCM", nonce="243a79d8989fd1", check="2e6f97c64e1f68ce127e7bb066e65bd3", keys=manifest.sealing.keys
    )
    assert [(k.ring, k.key) for k in manifest.sealing.keys] == [("local", OLD.key_ids[0])]
    assert [(k.ring, k.key) for k in added_keys(store, SEALED_ALICE)] == [("local", NEW.key_ids[0])]
    assert (manifest.document, manifest.label) == (f"snapshots/2026-11-21/{SEALED_ALICE}.json.gz.enc", "kept")


@pytest.mark.parametrize("ring", [OLD, NEW])
def test_the_whole_store_verifies(store, ring):
    checks = Checks(deep=True, rings=(ring,), trust=Trust(frozenset({SIGNER})))
    verdicts = verify(store, manifests(store), checks=checks, whole=True)
    assert {v.id: (v.state, len(v.notes)) for v in verdicts} == {
        **dict.fromkeys([SEALED, SEALED_ALICE], ("ok", 0)),
        **dict.fromkeys([PLAIN, GZIP, ZSTD], ("ok", 1)),  # not signed
    }


# --- towards a table ---------------------------------------------------------------------------------------------------------------


def test_what_a_table_would_be_given():
    """Rows as COPY takes them: \x02 between fields, \x01 around them."""
    kinds = {"entries": "json", "raw": "json", "tags": "array", "matrix": "array", "attachment": "bytea"}
    columns = [c.name for c in manifest_of(PLAIN).schema.tables[0].columns]
    encoder = RowEncoder([(c, kinds.get(c, "text")) for c in columns], json_null_key="~jsonNull")
    found = [[f.strip("\x01") if f else None for f in encoder.encode(r).decode().rstrip("\n").split("\x02")] for r in ALICE]
    assert found[0] == [
        "100",
        "alice",
        "2026-02-24",
        r'[{"weight": 0.10, "content": "tea, \"green\""}]',
        '{ "b" : 1,   "a" : [1.0, 1e2] }',
        'line\nbreak\ttab \\ slash / "quote"',
        "1234567890.12345678901234567890",
        r'{"plain","with space","NULL",NULL,"","quo\"te","back\\slash","{brace}","a,b"}',
        "{{1,2},{3,4}}",
        r"\x00ff5c22",
        "2026-02-24T23:59:59.999999+00:00",
    ]
    assert found[1] == ["110", "alice", "2026-02-25", "null", "null", "", "NaN", "{}", "[0:1]={7,8}", "\\x", "infinity"]
    assert found[2] == ["120", "alice", "infinity", None, None, None, None, None, None, None, "-infinity"]


def test_vectors_in_hexadecimal_form():
    encoder = RowEncoder([("embedding", "hex")], ignored=msgspec.json.decode(AS_HEX[0]).keys())
    assert [encoder.encode(row) for row in AS_HEX] == [
        b"\x01[1,-2.5,0.333333343,1e-30]\x01\n",
        b"\x01[0,-0,3.40282347e+38,1.17549435e-38]\x01\n",
    ]
