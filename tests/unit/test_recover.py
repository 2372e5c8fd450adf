"""The reader that needs no coldstore: what it reads, what it refuses, and that it needs nothing."""

from __future__ import annotations

import ast
import base64
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldstore.codec.compress import Codec
from coldstore.codec.digest import format_digest, row_digest
from coldstore.codec.pipeline import DocumentSums, encode
from coldstore.codec.seal import CIPHER, DataKey
from coldstore.codec.sign import SigningKey
from coldstore.document import model
from coldstore.document.values import RowEncoder
from coldstore.keyrings.keyfile import Key, buried, new_text, rotated
from coldstore.keyrings.local import LocalRing
from coldstore.storage import layout
from tests.format import test_frozen as frozen
from tests.recovering import PROGRAM, module, recover
from tests.unit import samples

NOTES = [b'{"id":%d,"uid":"%s","text":"\xc3\xa9 %s"}' % (n, [b"ann", b'b\\"ob', b"ann "][n % 3], b"x" * n) for n in range(40)]
TABLES: Mapping[str, Sequence[bytes]] = {"notes": NOTES, "things": []}
KEY, OTHER_KEY = Key.new(), Key.new()
SIGNER, STRANGER = SigningKey.generate(), SigningKey.generate()
_relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@dataclass
class Laid:
    """A snapshot in a store, and what opens it."""

    store: Path
    manifest: model.Manifest
    data_key: DataKey | None
    key_file: Path

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def document(self) -> Path:
        return self.store / self.manifest.document

    @property
    def described(self) -> Path:
        return self.store / layout.manifest_key(self.manifest.id)

    @property
    def arguments(self) -> list[str | Path]:
        return [self.store, self.id, *(["--key-file", self.key_file] if self.data_key else [])]

    def rewrite(self, *, signer: SigningKey | None = None, **changes: Any) -> None:
        """The manifest with these changes, and a checksum that fits."""
        body = {**json.loads(self.described.read_bytes()), **changes}
        self.described.write_bytes(model.encode_record(body, signer=signer))


def lay(
    folder: Path,
    *,
    codec: str = "none",
    sealed: bool = False,
    signer: SigningKey | None = None,
    tables: Mapping[str, Sequence[bytes]] = TABLES,
    **changes: Any,
) -> Laid:
    """As an export would."""
    changes.setdefault("schema", model.Schema(tables=[with_text(samples.table(a)) for a in tables]))
    of = samples.header(*tables, label="Zürich \N{SNOWMAN}", **changes)
    data_key = DataKey.new(of.id) if sealed else None
    key_file = folder / "keys"
    key_file.parent.mkdir(parents=True, exist_ok=True)
    key_file.write_text(new_text(KEY))
    key_file.chmod(0o600)
    sums, stored = DocumentSums(), b""
    for number, frame in enumerate(samples.plain_frames(of, tables, frame_size=200)):
        made = encode(frame, Codec(codec), data_key, number=number)
        sums.add(made)
        stored += b"".join(made.pieces)

    def masked(digest: str, name: str) -> str:
        return data_key.mask(digest, name) if data_key else digest

    manifest = samples.manifest(
        of,
        document=layout.document_key(of.id, Codec(codec).suffix + (".enc" if sealed else "")),
        codec=codec,
        bytes=sums.plain_bytes,
        stored_bytes=sums.stored_bytes,
        sha256=sums.stored_sha256,
        plain_sha256=masked(sums.plain_sha256, "plainSha256"),
        tiers=[
            model.TierSummary(tier=n, array=n, rows=len(r), digest=masked(format_digest(sum(map(row_digest, r))), f"digest {n}"))
            for n, r in tables.items()
        ],
        frames=sums.frames,
        seconds=0.00001,
        sealing=data_key and model.Sealing(cipher=CIPHER, nonce=data_key.nonce.hex(), check=data_key.check, keys=[wrap(data_key, KEY)]),
    )
    laid = Laid(folder / "store", model.complete(manifest, signer=signer), data_key, key_file)
    laid.document.parent.mkdir(parents=True)
    laid.document.write_bytes(stored)
    laid.described.write_bytes(model.encode_manifest(laid.manifest))
    return laid


def with_text(table: model.Table) -> model.Table:
    return msgspec.structs.replace(table, columns=[*table.columns, model.Column(name="text", type="text")])


def wrap(data_key: DataKey, key: Key) -> model.WrappedKey:
    return LocalRing.parse(key.text(), source="test").wrap(data_key.secret, context=data_key.snapshot)


def run_here(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """The same without a process of its own."""
    code = module().main([str(a) for a in arguments])
    return (code, *capfd.readouterr())


def refused(laid: Laid, capfd: pytest.CaptureFixture[str], *more: str | Path) -> str:
    """The one sentence with which it is refused, after making sure that nothing was written."""
    parent = laid.store.parent / "nothing here"
    parent.mkdir(exist_ok=True)
    for how in ((), ("--out", parent / "out"), ("--out", parent / "out", "--format", "csv")):
        code, out, err = run_here(capfd, *laid.arguments, *more, *how)
        said = [line for line in err.splitlines() if not line.startswith("note: ")]
        assert (code, out) == (1, "")
        assert said[0].startswith("recover: ")
        assert list(parent.iterdir()) == []
    return "\n".join(said)


def every_kind() -> Iterator[Any]:
    for codec in ("none", "gzip", "zstd"):
        for sealed in (False, True):
            yield pytest.param({"codec": codec, "sealed": sealed}, id=f"{codec}{' sealed' if sealed else ''}")


kinds = pytest.mark.parametrize("kind", list(every_kind()))


# --- it needs nothing --------------------------------------------------------------------------------------------------------------


def test_it_is_python_3_9_and_imports_the_standard_library_alone():
    tree = ast.parse(PROGRAM.read_text(encoding="utf-8"), feature_version=(3, 9))
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "json" in names
    assert {n.partition(".")[0] for n in names} <= set(sys.stdlib_module_names) - {"tomllib"}


def test_where_it_runs_there_is_no_coldstore(tmp_path):
    for name in ("coldstore", "msgspec", "psycopg", "zstandard"):
        (tmp_path / "try.py").write_text(f"import {name}")
        done = recover(program=tmp_path / "try.py", packages=(), cwd=PROGRAM.parents[1])
        assert b"is not to be had" in done.stderr


FROZEN = sorted(frozen.STORE.glob("snapshots/*/*.manifest.json"))


@pytest.mark.parametrize("path", FROZEN, ids=lambda p: p.name)
@pytest.mark.parametrize("key", ["old", "new"])
def test_frozen_snapshots(path, key, tmp_path):
    """With the packages that each one needs, and no other."""
    manifest = json.loads(path.read_bytes())
    expected = frozen.EVERYBODYS if manifest["uid"] is None else {**frozen.ALICES, "graphEntities": frozen.AS_TEXT}
    if any(c.get("form") == "hex" for t in manifest["schema"]["tables"] for c in t["columns"]):
        expected = frozen.ALICES
    packages = [p for p, ending in (("zstandard", ".zst"), ("cryptography", ".enc")) if ending in manifest["document"]]
    more = ["--key-file", frozen.STORE.parent / f"TEST-KEY-{key}"]
    done = recover(frozen.STORE, manifest["id"], *more, packages=packages)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [a.encode() + b"\t" + r for a, rows in expected.items() for r in rows]
    assert recover(frozen.STORE, manifest["id"], *more, "--out", tmp_path / "out", packages=packages).returncode == 0
    for table in manifest["schema"]["tables"]:
        assert (tmp_path / "out" / f"{table['tier']}.jsonl").read_bytes() == b"".join(r + b"\n" for r in expected[table["array"]])


def test_there_are_frozen_snapshots_of_every_kind():
    endings = {json.loads(p.read_bytes())["document"].partition(".json")[2] for p in FROZEN}
    assert endings >= {"", ".gz", ".zst", ".gz.enc", ".zst.enc"}


def test_a_package_that_is_missing_is_named(tmp_path):
    laid = lay(tmp_path, codec="zstd")
    done = recover(*laid.arguments, packages=())
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.endswith(b"needs the package zstandard, which is not installed: pip install zstandard\n")
    assert b"pip install xxhash" not in recover(*laid.arguments, packages=("zstandard", "xxhash")).stderr
    sealed = lay(tmp_path / "sealed", sealed=True)
    assert b"pip install cryptography" in recover(*sealed.arguments, packages=()).stderr


def test_a_signature_that_cannot_be_checked_is_noted_or_refused(tmp_path):
    laid = lay(tmp_path, signer=SIGNER)
    done = recover(*laid.arguments, packages=())
    assert done.returncode == 0
    assert b"signature of" in done.stderr
    assert b"pip install cryptography" in done.stderr
    assert recover(*laid.arguments, "--require-signature", "--trust", SIGNER.did, packages=()).returncode == 1


# --- what it reads -----------------------------------------------------------------------------------------------------------------


@kinds
def test_what_is_refused_below_is_whole_at_first(kind, tmp_path, capfd):
    laid = lay(tmp_path, **kind)
    assert run_here(capfd, *laid.arguments, "--out", tmp_path / "out", "--format", "csv")[0] == 0
    assert (tmp_path / "out" / "notes.csv").read_bytes().count(b"\n") == 41


@kinds
def test_every_row_byte_for_byte(kind, tmp_path):
    laid = lay(tmp_path, signer=SIGNER, **kind)
    more = ["--require-signature", "--trust", STRANGER.did, "--trust", SIGNER.did]
    done = recover(*laid.arguments, *more)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"".join(b"notes\t" + row + b"\n" for row in NOTES)
    single = recover(laid.document, *laid.arguments[2:], *more)
    assert (single.returncode, single.stdout, single.stderr) == (0, done.stdout, b"")


@kinds
def test_files(kind, tmp_path, capfd):
    laid = lay(tmp_path, **kind)
    assert run_here(capfd, *laid.arguments, "--out", tmp_path / "out")[0] == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {
        "notes.jsonl": b"".join(row + b"\n" for row in NOTES),
        "things.jsonl": b"",
    }
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_what_is_there_is_not_overwritten(tmp_path, capfd):
    laid = lay(tmp_path)
    (tmp_path / "out").mkdir()
    assert run_here(capfd, *laid.arguments, "--out", tmp_path / "out")[0] == 0
    for there in (tmp_path / "out", laid.document):
        code, _, said = run_here(capfd, *laid.arguments, "--out", there, "--tier", "things")
        assert code == 1
        assert "is not overwritten" in said
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["notes.jsonl", "things.jsonl"]
    assert "there is no folder" in run_here(capfd, *laid.arguments, "--out", tmp_path / "no" / "where")[2]


@kinds
def test_one_tier_and_one_user(kind, tmp_path, capfd):
    laid = lay(tmp_path, **kind)
    for uid in ("ann", 'b"ob', "ann "):
        code, out, _ = run_here(capfd, *laid.arguments, "--uid", uid)
        assert code == 0
        assert [json.loads(line.partition("\t")[2])["uid"] for line in out.splitlines()] == [uid] * (13 + (uid == "ann"))
    assert "not one row of user 'carol'" in refused(laid, capfd, "--uid", "carol")
    assert "it has notes, things" in refused(laid, capfd, "--tier", "else")
    assert run_here(capfd, *laid.arguments, "--tier", "things")[:2] == (0, "")


@pytest.mark.parametrize(
    ("column", "raw", "uid", "others"),
    [
        (model.Column(name="uid", type="bigint"), b"42", "42", ["042", "42.0", "4"]),
        (model.Column(name="uid", type="numeric"), b"1.50", "1.50", ["1.5"]),
        (model.Column(name="uid", type="character(5)"), b'"ab   "', "ab", ["a", "ab "]),
        (model.Column(name="uid", type="text"), b'"\\u00e9\\/"', "é/", ["\\u00e9"]),
        (model.Column(name="uid", type="text"), b"null", None, ["null", ""]),
    ],
)
def test_whose_a_row_is(tmp_path, capfd, column, raw, uid, others):
    tables = [msgspec.structs.replace(samples.table("notes"), columns=[model.Column(name="id", type="bigint"), column])]
    tables.append(samples.table("world", uid=None))
    rows = {"notes": [b'{"id":1,"uid":' + raw + b"}"], "world": [b'{"id":1,"uid":"x"}']}
    laid = lay(tmp_path, tables=rows, schema=model.Schema(tables=tables))
    if uid is not None:
        code, out, said = run_here(capfd, *laid.arguments, "--uid", uid)
        assert (code, out) == (0, f"notes\t{rows['notes'][0].decode()}\n")
        assert "world is left out" in said
    for other in others:
        assert "not one row" in refused(laid, capfd, "--uid", other)


def test_the_list(tmp_path, capfd):
    laid = lay(tmp_path, signer=SIGNER, codec="zstd", sealed=True)
    code, out, said = run_here(capfd, "--list", laid.store)
    assert (code, said) == (0, "")
    assert (
        out == f"{laid.id}  2026-02-26T02:00:00.000Z  40 rows  {laid.manifest.stored_bytes} bytes  zstd sealed label 'Z\\xfcrich \\u2603'\n"
    )
    shutil.copy(laid.described, laid.described.with_name("memory-bob-1772071200001.manifest.json"))
    with laid.described.open("ab") as file:
        file.write(b" ")
    code, out, said = run_here(capfd, "--list", laid.store)
    assert code == 1
    assert out.count("\n") == said.count("\n") == 1
    assert run_here(capfd, "--list", tmp_path / "nowhere")[0] == run_here(capfd, "--list", laid.document.parent)[0] == 1


def test_a_reader_that_has_had_enough(tmp_path):
    laid = lay(tmp_path, tables={"notes": [b'{"id":%d,"uid":"%s"}' % (n, b"x" * 1000) for n in range(1000)]})
    done = subprocess.run(
        f'"{sys.executable}" -I "{PROGRAM}" "{laid.store}" {laid.id} | head -n 1', shell=True, check=False, capture_output=True
    )
    assert done.stdout.count(b"\n") == 1
    assert b"Traceback" not in done.stderr


# --- keys --------------------------------------------------------------------------------------------------------------------------


def test_a_data_key_by_hand(tmp_path, capfd):
    laid = lay(tmp_path, sealed=True)
    secret = laid.data_key.secret
    for right in (secret.hex(), secret.hex().upper(), base64.b64encode(secret).decode() + "\n"):
        assert run_here(capfd, laid.store, laid.id, "--data-key", right)[0] == 0
    for wrong in (bytes(32).hex(), base64.b64encode(secret[::-1]).decode()):
        assert "the key is not the one" in refused(laid, capfd, "--data-key", wrong)
    for nonsense in ("", "AAAA", secret.hex()[1:], "é"):
        said = refused(laid, capfd, "--data-key", nonsense)
        assert "is not a key" in said


def test_the_right_key_among_others(tmp_path, capfd):
    laid = lay(tmp_path, sealed=True)
    laid.key_file.write_text("\ufeff# keys\n" + rotated(new_text(KEY), OTHER_KEY))
    assert run_here(capfd, *laid.arguments)[0] == 0
    laid.key_file.write_text(f"{OTHER_KEY.text()} {KEY.text()}")
    assert run_here(capfd, *laid.arguments)[0] == 0


def test_a_key_that_is_not_there(tmp_path, capfd):
    laid = lay(tmp_path, sealed=True)
    code, _, said = run_here(capfd, laid.store, laid.id)
    assert code == 1
    assert "no key is given" in said
    assert f"--key-file FILE, with key {KEY.id} in it" in said
    laid.key_file.write_text(new_text(OTHER_KEY))
    assert "holds no key that opens" in refused(laid, capfd)
    text = buried(rotated(new_text(KEY), OTHER_KEY), KEY.id, on=date(2026, 3, 4), source="")
    laid.key_file.write_text(text)
    assert "which was retired on 2026-03-04" in refused(laid, capfd)
    laid.key_file.unlink()
    assert "keys" in refused(laid, capfd)


@pytest.mark.parametrize(
    "text", ["x", KEY.text()[:-2], KEY.text().replace(KEY.id, OTHER_KEY.id), SIGNER.text(), KEY.text().replace("key-1", "key-2"), "\ud800"]
)
def test_a_key_file_that_is_none_never_shows(tmp_path, capfd, text):
    laid = lay(tmp_path, sealed=True)
    laid.key_file.write_bytes(text.encode("utf-8", "surrogatepass"))
    said = refused(laid, capfd)
    assert "no key file" in said
    assert KEY.text()[30:60] not in said


def test_a_key_that_was_wrapped_later(tmp_path, capfd):
    laid = lay(tmp_path, sealed=True)
    laid.key_file.write_text(new_text(OTHER_KEY))
    added = laid.described.with_name(f"{laid.id}.keys-0001.json")
    added.write_bytes(model.encode_keys(laid.id, [wrap(laid.data_key, OTHER_KEY)], signer=SIGNER))
    assert run_here(capfd, *laid.arguments)[0] == 0
    assert run_here(capfd, laid.document, *laid.arguments[2:])[0] == 0
    added.write_bytes(added.read_bytes().replace(b'"keys"', b'"kegs"'))
    assert "does not match its own checksum" in refused(laid, capfd)
    added.write_bytes(model.encode_keys("memory-all-1", [wrap(laid.data_key, OTHER_KEY)]))
    assert "holds no key" in refused(laid, capfd)


def test_a_wrapped_key_that_was_changed(tmp_path, capfd):
    laid = lay(tmp_path, sealed=True)
    sealing = msgspec.to_builtins(laid.manifest.sealing)
    other = DataKey.new(laid.id)
    laid.rewrite(sealing={**sealing, "keys": [msgspec.to_builtins(wrap(other, KEY))]})
    assert "the key is not the one" in refused(laid, capfd)
    for wrapped in ("", "AAAA", "no base64", sealing["keys"][0]["wrapped"].swapcase()):
        laid.rewrite(sealing={**sealing, "keys": [{**sealing["keys"][0], "wrapped": wrapped}]})
        assert "was changed" in refused(laid, capfd)
    laid.rewrite(sealing={**sealing, "cipher": "ROT13"})
    assert "ROT13" in refused(laid, capfd)


# --- signatures --------------------------------------------------------------------------------------------------------------------


def test_signatures(tmp_path, capfd):
    laid = lay(tmp_path, signer=SIGNER)
    require = ("--require-signature", "--trust", SIGNER.did)
    assert run_here(capfd, *laid.arguments, *require)[::2] == (0, "")
    assert "whom --trust does not name" in refused(laid, capfd, "--require-signature", "--trust", STRANGER.did)
    laid.rewrite(signature=None)
    assert "is not signed" in refused(laid, capfd, *require)
    assert "not signed" in run_here(capfd, *laid.arguments, "--trust", SIGNER.did)[2]
    assert run_here(capfd, *laid.arguments)[::2] == (0, "")
    laid.rewrite(signer=STRANGER)
    assert STRANGER.did in refused(laid, capfd, *require)


@pytest.mark.parametrize("change", [{"label": "another"}, {"signature": {"by": STRANGER.did}}, {"signature": {"value": "AAAA"}}])
def test_a_signature_that_does_not_fit_is_refused_by_everybody(tmp_path, change):
    laid = lay(tmp_path, signer=SIGNER)
    body = json.loads(laid.described.read_bytes())
    signature = {**body["signature"], **change.get("signature", {})}
    body = {**body, **change, "signature": signature}
    del body["checksum"]
    body["checksum"] = hashlib.sha256(model.canonical(body)).hexdigest()
    laid.described.write_bytes(model.canonical(body) + b"\n")
    done = recover(*laid.arguments)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"does not fit" in done.stderr


@pytest.mark.parametrize("signature", ["x", 1, [], {}, {"by": 1, "value": 2}, {"by": "did:key:z6", "value": ""}, {"by": "", "value": ""}])
def test_a_signature_of_another_shape(tmp_path, capfd, signature):
    laid = lay(tmp_path)
    body = {**json.loads(laid.described.read_bytes()), "signature": signature}
    del body["checksum"]
    body["checksum"] = hashlib.sha256(model.canonical(body)).hexdigest()
    laid.described.write_bytes(model.canonical(body) + b"\n")
    refused(laid, capfd)


def test_a_signature_is_required_of_somebody(tmp_path):
    laid = lay(tmp_path, signer=SIGNER)
    done = recover(*laid.arguments, "--require-signature")
    assert done.returncode == 2
    assert b"--trust" in done.stderr


# --- damage ------------------------------------------------------------------------------------------------------------------------


@kinds
@settings(_relaxed, max_examples=30)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), which=st.sampled_from(["document", "described"]))
def test_a_flipped_bit_anywhere(kind, place, bit, which, capfd, tmp_path_factory):
    laid = lay(tmp_path_factory.mktemp("flip"), **kind)
    path = getattr(laid, which)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    refused(laid, capfd)


@kinds
def test_what_was_cut_or_added(kind, tmp_path, capfd):
    laid = lay(tmp_path, **kind)
    for path in (laid.document, laid.described):
        good = path.read_bytes()
        for bad in (b"", good[:1], good[: len(good) // 2], good[:-1], good + b"\n", good + good):
            path.write_bytes(bad)
            refused(laid, capfd)
        path.write_bytes(good)
    assert run_here(capfd, *laid.arguments)[0] == 0
    laid.document.unlink()
    assert "is missing" in refused(laid, capfd)
    laid.described.unlink()
    assert "there is no snapshot" in refused(laid, capfd)


@kinds
def test_two_frames_that_changed_places(kind, tmp_path, capfd):
    laid = lay(tmp_path, **kind)
    data, frames = laid.document.read_bytes(), laid.manifest.frames
    cut = [data[f.offset : f.offset + f.length] for f in frames]
    cut[2], cut[3] = cut[3], cut[2]
    laid.document.write_bytes(b"".join(cut))
    assert "is damaged between byte" in refused(laid, capfd)


def test_two_sealed_frames_that_changed_places_with_their_manifest(tmp_path, capfd):
    laid = lay(tmp_path, sealed=True)
    data, frames = laid.document.read_bytes(), msgspec.to_builtins(laid.manifest.frames)
    cut = [data[f["offset"] : f["offset"] + f["length"]] for f in frames]
    for both in (cut, frames):
        both[2], both[3] = both[3], both[2]
    at = 0
    for frame in frames:
        frame["offset"], at = at, at + frame["length"]
    laid.document.write_bytes(b"".join(cut))
    laid.rewrite(frames=frames, sha256=hashlib.sha256(b"".join(cut)).hexdigest())
    assert "frame 2 of" in refused(laid, capfd)


def test_a_sealed_document_that_lost_its_last_frame_with_its_manifest(tmp_path, capfd):
    laid = lay(tmp_path, sealed=True, tables={"notes": NOTES})
    frames, tiers = msgspec.to_builtins(laid.manifest.frames), msgspec.to_builtins(laid.manifest.tiers)
    gone = frames.pop()
    tiers[0]["rows"] -= gone["rows"]
    data = laid.document.read_bytes()[: -gone["length"]]
    laid.document.write_bytes(data)
    size = laid.manifest.bytes - gone["plain"]
    laid.rewrite(frames=frames, tiers=tiers, storedBytes=len(data), bytes=size, sha256=hashlib.sha256(data).hexdigest())
    assert "belongs elsewhere" in refused(laid, capfd)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "delta"}, {"format": "coldstore/2"}, {"format": None}, {"codec": "brotli"}, {"id": "memory-all-1"}, {"label": "x"}, {"uid": "ann"},
        {"document": "../../../etc/passwd"}, {"document": "snapshots/2026-02-26/memory-all-1772071200000.json.gz"}, {"codec": "gzip"},
        {"frames": []}, {"frames": None}, {"tiers": []}, {"bytes": 1}, {"storedBytes": "many"}, {"sha256": "0" * 64}, {"plainSha256": "0" * 64},
        {"schema": None}, {"schema": {}}, {"schema": {"tables": []}}, {"snapshotAt": "2026-02-26T02:00:00.001Z"}, {"sealing": {}}, {"sealing": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_that_says_something_else(tmp_path, capfd, change):
    laid = lay(tmp_path)
    laid.rewrite(**change)
    refused(laid, capfd)


@pytest.mark.parametrize("change", [{"rows": 3}, {"offset": 1}, {"length": -1}, {"plain": 1}, {"tier": "things"}, {"tier": None}, {"length": "1"}], ids=str)  # fmt: skip
def test_a_frame_that_is_said_to_be_another(tmp_path, capfd, change):
    laid = lay(tmp_path)
    frames = msgspec.to_builtins(laid.manifest.frames)
    frames[2].update(change)
    laid.rewrite(frames=frames)
    refused(laid, capfd)


@pytest.mark.parametrize(
    "member", [*module().HEADER, "document", "codec", "bytes", "storedBytes", "sha256", "plainSha256", "tiers", "frames"]
)
def test_a_manifest_that_lacks_a_member(tmp_path, capfd, member):
    laid = lay(tmp_path)
    body = json.loads(laid.described.read_bytes())
    del body[member]
    laid.described.write_bytes(model.encode_record(body))
    refused(laid, capfd)


def test_members_of_a_later_version_are_passed_over(tmp_path, capfd):
    laid = lay(tmp_path)
    laid.rewrite(mood={"good": 1.50})
    assert run_here(capfd, *laid.arguments)[0] == 0


@pytest.mark.parametrize("tier", ["../evil", "a/b", "", "CON .", "a\nb"])
def test_a_tiers_name_becomes_no_path(tmp_path, capfd, tier):
    laid = lay(tmp_path)
    body = json.loads(laid.described.read_bytes())
    body["schema"]["tables"][0]["tier"] = tier
    laid.rewrite(schema=body["schema"])
    assert "names are not names" in refused(laid, capfd)


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_bomb(tmp_path, capfd, codec):
    """A frame that is much more than it is said to be, under checksums that fit."""
    laid = lay(tmp_path, codec=codec)
    zeros = b'{"id":1}\n' * 5_000_000
    bomb = gzip.compress(zeros, 1) if codec == "gzip" else zstandard.ZstdCompressor().compress(zeros)
    frames = msgspec.to_builtins(laid.manifest.frames)
    data = laid.document.read_bytes()[: frames[-1]["offset"]] + bomb
    frames[-1].update(length=len(bomb), sha256=hashlib.sha256(bomb).hexdigest())
    laid.document.write_bytes(data)
    laid.rewrite(frames=frames, storedBytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    assert "belongs elsewhere" in refused(laid, capfd)


def test_rows_that_the_digest_does_not_know(tmp_path, capfd):
    laid = lay(tmp_path)
    tiers = msgspec.to_builtins(laid.manifest.tiers)
    tiers[0]["digest"] = "0" * 32
    laid.rewrite(tiers=tiers)
    assert "are not those that the manifest was made for" in refused(laid, capfd)


@pytest.mark.parametrize("identity", ["latest", "memory-all-1", "memory-all-999999999999999", "../x", "memory-../../x-1", ""])
def test_an_id_of_nothing(tmp_path, capfd, identity):
    laid = lay(tmp_path)
    code, out, said = run_here(capfd, laid.store, identity)
    assert (code, out) == (1, "")
    assert said.startswith("recover: ")


# --- a single file -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_a_file_without_its_manifest(tmp_path, capfd, codec):
    laid = lay(tmp_path, codec=codec)
    with_manifest = run_here(capfd, laid.document)
    laid.described.unlink()
    code, out, said = run_here(capfd, laid.document)
    assert (code, out) == with_manifest[:2]
    assert "has no manifest beside it" in said
    code, _, said = run_here(capfd, laid.document, "--require-signature", "--trust", SIGNER.did)
    assert code == 1
    assert "no signature" in said


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_a_file_without_its_manifest_that_was_cut(tmp_path, capfd, codec):
    laid = lay(tmp_path, codec=codec)
    laid.described.unlink()
    good = laid.document.read_bytes()
    for size in {*range(0, len(good), 97), len(good) - 1, *(f.offset for f in laid.manifest.frames)}:
        laid.document.write_bytes(good[:size])
        code, out, said = run_here(capfd, laid.document)
        assert (code, out) == (1, ""), size
        assert "recover: " in said


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain.replace(b"\n{", b",{"), lambda plain: plain.replace(b"],\n", b"]\n"), lambda plain: plain + plain,
        lambda plain: json.dumps(json.loads(plain)).encode(), lambda plain: plain.replace(b'"full"', b'"delta"'), lambda plain: b"[]\n",
        lambda plain: plain.replace(b'"coldstore/1"', b'"coldstore/9"', 1), lambda plain: b"\xff" + plain, lambda plain: b'{"format":}\n',
        lambda plain: plain.replace(b'"things":[', b'"others":['), lambda plain: plain.replace(b',\n{"id":7', b'\n{"id":7'),
    ],
)  # fmt: skip
def test_a_file_of_another_shape(tmp_path, capfd, change):
    laid = lay(tmp_path)
    laid.described.unlink()
    laid.document.write_bytes(change(laid.document.read_bytes()))
    code, out, said = run_here(capfd, laid.document)
    assert (code, out) == (1, "")
    assert "recover: " in said


def test_a_sealed_file_without_its_manifest(tmp_path, capfd):
    laid = lay(tmp_path, sealed=True)
    laid.described.unlink()
    code, out, said = run_here(capfd, laid.document, "--key-file", laid.key_file)
    assert (code, out) == (1, "")
    assert laid.described.name in said


def test_a_document_that_was_decompressed_by_hand(tmp_path, capfd):
    laid = lay(tmp_path, codec="gzip")
    plain = laid.document.with_suffix("")
    plain.write_bytes(gzip.decompress(laid.document.read_bytes()))
    assert run_here(capfd, plain)[:2] == run_here(capfd, laid.document)[:2]


# --- values ------------------------------------------------------------------------------------------------------------------------

_texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=10)
_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | _texts,
    lambda v: st.lists(v, max_size=4) | st.dictionaries(_texts, v, max_size=4),
)


@settings(deadline=None)
@given(value=st.dictionaries(_texts, _values | st.floats(allow_nan=False, allow_infinity=False)))
def test_its_canonical_form_is_the_programs(value):
    data = model.canonical(value)
    found = json.loads(data, parse_float=module().Number)
    assert module().canonical(found).encode() == data


@settings(deadline=None)
@given(value=st.dictionaries(_texts, _values, min_size=1), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_members_are_cut_out_as_they_are_written(value, indent, ascii_only):
    row = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
    expected = {n: bytes(r).decode() for n, r in msgspec.json.decode(row, type=dict[str, msgspec.Raw]).items()}
    assert module().members(row) == expected


def test_a_row_nested_deeper_than_a_parser_likes():
    deep = "[" * 100_000 + "]" * 100_000
    assert module().members(b'{"a":%s,"b":1}' % deep.encode()) == {"a": deep, "b": "1"}


@pytest.mark.parametrize("row", ["{", '{"a"}', '{"a":}', '{"a":1', '{"a":1}}', '{"a" 1}', "{1:2}", '{"a":"}', "x", "{}x", '{"a":1,}'])
def test_a_row_that_is_none(row):
    with pytest.raises((ValueError, LookupError)):
        module().members(row.encode())


def test_values_as_postgres_reads_them():
    """Against what restores use, on the rows that are frozen."""
    copy = RowEncoder([("v", "array")])
    for raw in ('["a\\"\\\\",null,"NULL",1.10]', "[[1,2],[3,null]]", '"[0:1]={5,6}"', "[]", "[true]"):
        (direct,) = [f.strip("\x01") for f in copy.encode(b'{"v":%s}' % raw.encode()).decode().rstrip("\n").split("\x02")]
        assert module().text(raw).replace('"', "") == direct.replace('"', "")
    assert module().text('{"a":1,"b":null,"c":{"d":"x,\\"y\\\\"}}') == r'("1",,"(\"x,\\\"y\\\\\\\\\")")'.replace(r"\\\\\\\\", r"\\\\")
    assert module().hex_vector('"000300003f80000040200000c0400000"') == "[1,2.5,-3]"


def test_csv(tmp_path, capfd):
    columns = [
        model.Column(name="id", type="bigint"), model.Column(name="uid", type="text"), model.Column(name="js", type="json"),
        model.Column(name='a "b', type='public."My Json"'), model.Column(name="gone", type="text", generated="stored", default="upper(uid)"),
    ]  # fmt: skip
    domain = model.TypeDef(name=model.Name(schema="public", name="My Json"), kind="domain", base="public.inner")
    inner = model.TypeDef(name=model.Name(schema="public", name="inner"), kind="domain", base="jsonb")
    table = msgspec.structs.replace(samples.table("notes"), columns=columns, json_null_key="~jsonNull")
    rows = [
        b'{"id":9007199254740993,"uid":"a\\"\\n\\\\","js":{"a" :  1,"a":2},"a \\"b":[1.10],"gone":"A"}',
        b'{"id":null,"uid":"","js":null,"a \\"b":null,"gone":null,"~jsonNull":["js"]}',
    ]
    laid = lay(tmp_path, tables={"notes": rows}, schema=model.Schema(tables=[table], types=[inner, domain]))
    code, out, _ = run_here(capfd, *laid.arguments, "--out", tmp_path / "it's out", "--format", "csv")
    assert code == 0
    assert out.splitlines()[1] == (
        f'COPY "public"."notes" ("id", "uid", "js", "a ""b") FROM \'{tmp_path}/it\'\'s out/notes.csv\' (FORMAT csv, HEADER, ENCODING \'UTF8\');'
    )
    assert (tmp_path / "it's out" / "notes.csv").read_text() == (
        '"id","uid","js","a ""b"\n"9007199254740993","a""\n\\","{""a"" :  1,""a"":2}","[1.10]"\n,"","null",\n'
    )


@pytest.mark.parametrize(
    "row", [b'{"id":1}', b'{"id":1,"uid":"a","more":1}', b'{"id":1,"uid":"\xff"}', b"{not json}", b'{"id":1,"uid":"\\ud800"}']
)
def test_rows_that_make_no_csv(tmp_path, capfd, row):
    laid = lay(tmp_path, tables={"notes": [row]}, schema=model.Schema(tables=[samples.table("notes")]))
    code, out, said = run_here(capfd, *laid.arguments, "--out", tmp_path / "out", "--format", "csv")
    assert (code, out) == (1, "")
    assert "a row of notes is damaged" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["keys", "store"]
