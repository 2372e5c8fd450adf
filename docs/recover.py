#!/usr/bin/env python3
r"""Reads snapshots of the format `coldstore/1` without coldstore, and without anything else but Python 3.9 or later.

    python recover.py --list STORE                           which snapshots there are
    python recover.py STORE ID                               rows on standard output: array, tab, row
    python recover.py STORE ID --out DIR                     DIR/{tier}.jsonl, each row byte for byte as it was stored
    python recover.py STORE ID --out DIR --format csv        DIR/{tier}.csv, and the COPY commands that load them into PostgreSQL
    python recover.py memory-….json.zst.enc --key-file KEYS  a single file, with the manifest that lies beside it

Three packages are used where they are needed and nowhere else: `zstandard` for documents that end in .zst, `cryptography` for those that
end in .enc and for signatures, `xxhash` to compare the content of whole tiers.

Everything is checked before anything is shown: the manifest's checksum, form and signature; each frame's place, size and SHA-256; the
document's size and SHA-256, as stored and plain; the shape of its lines; the number of rows; the tiers' digests. (CRC32C of the frames is
not: SHA-256 covers the same bytes.) What could not be checked is said in a note. Whatever does not fit is one sentence and exit code 1,
and then no file is written. FORMAT.md describes the format in full; this is the order in which it is taken apart here:

    records (manifests, wrapped keys) → keys → frames → lines → rows → JSON lines, or CSV
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import gzip
import hashlib
import hmac
import importlib
import io
import json
import os
import re
import shlex
import struct
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any, ClassVar

FORMAT = "coldstore/1"
SUFFIXES = {"none": "", "gzip": ".gz", "zstd": ".zst"}
ID = re.compile(r"memory-[A-Za-z0-9._@+%~-]+-([0-9]{1,15})")
HEADER = ("format", "snapshotAt", "uid", "workspace", "id", "kind", "label", "generator", "database", "schema")
# PostgreSQL makes no value that is longer than 1 GiB, and a row of JSON is one value.
LONGEST_LINE = 1 << 30
# Levels up to 19 stay within 8 MiB; more than this would be meant to fill the memory.
ZSTD_WINDOW = 1 << 27


class Refused(Exception):
    """A sentence that says what is wrong."""


def note(sentence: str) -> None:
    print(f"note: {sentence}", file=sys.stderr)


def need(module: str, *, why: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise Refused(f"{why} needs the package {package}, which is not installed: pip install {package}") from None


@contextlib.contextmanager
def read_as(what: str) -> Iterator[None]:
    """What is not there, or is of another kind than it should be, is an error of what is read."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError, struct.error) as exc:
        raise Refused(f"{what} is damaged, or was not written by coldstore ({type(exc).__name__}: {exc})") from exc


# --- records -----------------------------------------------------------------------------------------------------------------------


class Number(str):
    """A number that is no integer, in the digits in which it is written."""

    __slots__ = ()


def canonical(value: Any) -> str:
    """JSON with sorted members and no blanks."""
    if isinstance(value, Number):
        return value
    if isinstance(value, dict):
        return "{" + ",".join(f"{canonical(name)}:{canonical(value[name])}" for name in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def without(record: dict[str, Any], *names: str) -> bytes:
    return canonical({name: value for name, value in record.items() if name not in names}).encode()


def read_record(path: Path) -> dict[str, Any]:
    """A manifest, or a file of wrapped keys: one line of canonical JSON with its own checksum."""
    data = path.read_bytes()
    with read_as(path.name):
        record: dict[str, Any] = json.loads(data, parse_float=Number)
        if record["format"] != FORMAT:
            raise Refused(f"{path.name} has the format {record['format']!r}, and this program reads {FORMAT}")
        if record["checksum"] != hashlib.sha256(without(record, "checksum")).hexdigest():
            raise Refused(f"{path.name} does not match its own checksum: it was altered or damaged after it was written")
        if data != without(record) + b"\n":
            raise Refused(f"{path.name} is not in the form in which it was written: somebody edited or reformatted it")
    return record


# --- signatures --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trust:
    """Whose signature counts, by their `did:key`, and whether there must be one."""

    keys: frozenset[str]
    required: bool

    def check(self, record: dict[str, Any], name: str) -> None:
        """A signature that does not fit is always refused."""
        with read_as(name):
            self._check(record, name)

    def _check(self, record: dict[str, Any], name: str) -> None:
        signature = record.get("signature")
        if signature is None:
            said = f"{name} is not signed"
        elif not self._can_check():
            said = f"the signature of {name} was not checked, which needs the package cryptography: pip install cryptography"
        elif not fits(record, signature):
            raise Refused(f"the signature of {name} does not fit: {signature['by']} did not sign this")
        elif signature["by"] in self.keys:
            return
        else:
            said = f"{name} is signed by {signature['by']}, whom --trust does not name"
        if self.required:
            raise Refused(said)
        if self.keys or (signature and not self._can_check()):
            note(said)

    @staticmethod
    def _can_check() -> bool:
        try:
            need("cryptography.hazmat.primitives.asymmetric.ed25519", why="a signature")
        except Refused:
            return False
        return True


def fits(record: dict[str, Any], signature: dict[str, Any]) -> bool:
    """Ed25519 over the canonical JSON of all else but the checksum, behind a line that says what it is."""
    ed25519 = need("cryptography.hazmat.primitives.asymmetric.ed25519", why="a signature")
    invalid: type[Exception] = need("cryptography.exceptions", why="a signature").InvalidSignature
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(public_key(signature["by"]))
        key.verify(
            base64.b64decode(signature["value"], validate=True), f"{FORMAT} record\n".encode() + without(record, "signature", "checksum")
        )
    except (invalid, LookupError, TypeError, ValueError, OverflowError):
        return False
    return True


def public_key(did: str) -> bytes:
    """A `did:key` is the key itself: base58 of 0xed01 and its 32 bytes."""
    scheme, digits = did[:9], did[9:]
    number = 0
    for digit in digits:
        number = number * 58 + "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz".index(digit)
    decoded = number.to_bytes(34, "big")
    if scheme != "did:key:z" or decoded[:2] != b"\xed\x01":
        raise ValueError(did)
    return decoded[2:]


# --- keys --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataKey:
    """The key of one snapshot. `prefix`: the first seven bytes of every frame's nonce."""

    secret: bytes
    snapshot: str
    prefix: bytes

    def open(self, stored: bytes, *, number: int, last: bool) -> bytes:
        """AES-256-GCM: the nonce is the prefix, the frame's number, and whether it is the last."""
        nonce = self.prefix + struct.pack(">I?", number, last)
        return unseal(self.secret, nonce, stored, b"coldstore/1 frame\0" + self.snapshot.encode())

    def derive(self, purpose: str, size: int) -> bytes:
        return hmac.digest(self.secret, f"coldstore/1 {purpose}\0{self.snapshot}".encode(), "sha256")[:size]

    def unmask(self, digest: str, name: str) -> str:
        """What the manifest says of plain content is hidden under bytes that only the key gives."""
        data = bytes.fromhex(digest)
        return bytes(a ^ b for a, b in zip(data, self.derive(f"mask {name}", len(data)))).hex()


def unseal(key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
    """Raises `ValueError` for another key, and for bytes that were changed or moved."""
    aead = need("cryptography.hazmat.primitives.ciphers.aead", why="a sealed document")
    invalid: type[Exception] = need("cryptography.exceptions", why="a sealed document").InvalidTag
    try:
        plain: bytes = aead.AESGCM(key).decrypt(nonce, sealed, associated)
    except invalid:
        raise ValueError("it does not open") from None
    return plain


def key_file(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """The keys by their ids, and the days on which others were retired. No message shows what stands in the file."""
    keys: dict[str, bytes] = {}
    retired: dict[str, str] = {}
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except ValueError:
        raise Refused(f"{path} is no key file: it is not text") from None
    for word in " ".join(line for line in lines if not line.lstrip().startswith("#")).split():
        kind, _, rest = word.partition(":")
        identity, _, value = rest.partition(":")
        if kind == "retired":
            retired[identity] = value
        elif kind == "coldstore-key-1" and (secret := thirty_two(value)) and key_id(secret) == identity:
            keys[identity] = secret
        else:
            raise Refused(f"{path} is damaged, or no key file: a line of one is coldstore-key-1:ID:KEY")
    return keys, retired


def key_id(secret: bytes) -> str:
    return hashlib.sha256(b"coldstore key id" + secret).hexdigest()[:16]


def thirty_two(text: str) -> bytes | None:
    """A key in hexadecimal digits or base64; None when it is none."""
    with contextlib.suppress(ValueError):
        secret = bytes.fromhex(text) if re.fullmatch("[0-9A-Fa-f]{64}", text) else base64.b64decode(text, validate=True)
        return secret if len(secret) == 32 else None
    return None


@dataclass(frozen=True)
class Keys:
    """What the command line gives to open with."""

    file: Path | None
    data_key: str | None

    def open(self, manifest: dict[str, Any], added: Iterable[dict[str, str]]) -> DataKey | None:
        """The snapshot's own key; None if it is not sealed. `added`: wrapped forms of it that stand beside the manifest, which are read
        when those in it do not open."""
        sealing = manifest.get("sealing")
        if sealing is None:
            return None
        if sealing["cipher"] != "AES-256-GCM":
            raise Refused(f"{manifest['id']} is sealed with {sealing['cipher']!r}, which this program does not know")
        secret = self._given() or self._unwrapped(manifest["id"], chain(sealing["keys"], added))
        found = DataKey(secret, manifest["id"], bytes.fromhex(sealing["nonce"]))
        if len(found.prefix) != 7 or not hmac.compare_digest(found.derive("check", 16).hex(), sealing["check"]):
            raise Refused(f"the key is not the one that {manifest['id']} was sealed with")
        return found

    def _given(self) -> bytes | None:
        if self.data_key is None:
            return None
        if secret := thirty_two(self.data_key.strip()):
            return secret
        raise Refused("what --data-key gives is not a key: 32 bytes in hexadecimal digits or base64")

    def _unwrapped(self, snapshot: str, wrapped: Iterable[dict[str, str]]) -> bytes:
        keys, retired = key_file(self.file) if self.file else ({}, {})
        seen: list[dict[str, str]] = []
        for one in wrapped:
            seen.append(one)
            if one["ring"] == "local" and one["key"] in keys:
                with contextlib.suppress(ValueError):
                    data = base64.b64decode(one["wrapped"], validate=True)
                    return unseal(keys[one["key"]], data[:12], data[12:], b"coldstore/1 data key\0" + snapshot.encode())
        if any(one["key"] in keys for one in seen):
            raise Refused(f"a key of {self.file} does not open what is said to be sealed for it: the manifest of {snapshot} was changed")
        lacking = f"{self.file} holds no key that opens {snapshot}" if self.file else f"{snapshot} is sealed, and no key is given"
        raise Refused("\n  ".join([f"{lacking}. Any one of these does:", *(how_to_open(w, snapshot, retired) for w in seen)]))


def how_to_open(wrapped: dict[str, str], snapshot: str, retired: dict[str, str]) -> str:
    """What to type for one of the keys that a snapshot was sealed for. The command lines are those of the clouds' own tools."""
    key, data = shlex.quote(wrapped["key"].partition("/cryptoKeyVersions/")[0]), shlex.quote(wrapped["wrapped"])
    if wrapped["ring"] == "local":
        day = retired.get(wrapped["key"])
        return f"--key-file FILE, with key {key} in it" + (f" (which was retired on {day})" if day else "")
    if wrapped["ring"] == "aws-kms":
        context = f"--encryption-context coldstore-snapshot={snapshot}"
        return f'--data-key "$(aws kms decrypt --key-id {key} --ciphertext-blob {data} {context} --query Plaintext --output text)"'
    if wrapped["ring"] == "gcp-kms":
        files = "--ciphertext-file - --additional-authenticated-data-file snapshot-id --plaintext-file -"
        return (
            f'--data-key "$(printf %s {snapshot} > snapshot-id; printf %s {data} | base64 -d'
            f' | gcloud kms decrypt --key {key} {files} | base64)"'
        )
    return f"the {wrapped['ring']} key {key}, with --data-key"


# --- frames ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A document with its manifest."""

    path: Path
    manifest: dict[str, Any]
    key: DataKey | None

    def lines(self) -> Iterator[bytes]:
        """Every line of the document. What the manifest says is held against what is there, frame by frame."""
        whole, plain_whole = hashlib.sha256(), hashlib.sha256()
        frames = self.manifest["frames"]
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != self.manifest["storedBytes"]:
                raise Refused(f"{self.path.name} has {size} bytes, and its manifest says {self.manifest['storedBytes']}")
            for number, frame in enumerate(frames):
                stored = file.read(frame["length"])
                if len(stored) != frame["length"] or hashlib.sha256(stored).hexdigest() != frame["sha256"]:
                    raise Refused(f"{self.path.name} is damaged between byte {frame['offset']} and {frame['offset'] + frame['length']}")
                plain = self._plain(stored, frame, number, last=number == len(frames) - 1)
                whole.update(stored)
                plain_whole.update(plain)
                yield from self._split(plain, frame)
        plain_sha256 = self.unmasked(self.manifest["plainSha256"], "plainSha256")
        if (whole.hexdigest(), plain_whole.hexdigest()) != (self.manifest["sha256"], plain_sha256):
            raise Refused(f"{self.path.name} is not the document that its manifest describes")

    def _plain(self, stored: bytes, frame: dict[str, Any], number: int, *, last: bool) -> bytes:
        try:
            if self.key:
                stored = self.key.open(stored, number=number, last=last)
            return decompress(self.manifest["codec"], stored, frame["plain"])
        except ValueError as exc:
            raise Refused(f"frame {number} of {self.path.name} was changed, or belongs elsewhere: {exc}") from exc

    def _split(self, plain: bytes, frame: dict[str, Any]) -> list[bytes]:
        lines = plain.split(b"\n")
        rows = sum(line.startswith(b"{") for line in lines)
        if lines.pop() or rows != frame["rows"] + (frame["tier"] is None):
            raise Refused(f"{self.path.name} has other rows after byte {frame['offset']} than its manifest says")
        return lines

    def check_totals(self, rows: Counter[str], digests: Counter[str]) -> None:
        for tier in self.manifest["tiers"]:
            array = tier["array"]
            if rows[array] != tier["rows"]:
                raise Refused(f"{tier['tier']} has {rows[array]} rows, and the manifest says {tier['rows']}")
            if xxh3 and f"{digests[array] % (1 << 128):032x}" != self.unmasked(tier["digest"], f"digest {array}"):
                raise Refused(f"the rows of {tier['tier']} are not those that the manifest was made for")

    def unmasked(self, digest: str, name: str) -> str:
        return self.key.unmask(digest, name) if self.key else digest


try:
    xxh3: Any = importlib.import_module("xxhash").xxh3_128_intdigest
except ImportError:
    xxh3 = None


def decompress(codec: str, stored: bytes, size: int) -> bytes:
    """One frame, and never more than a byte beyond what it should be. Raises `ValueError` if it is anything else."""
    if codec == "gzip":
        plain, ended = gunzip(stored, size)
    elif codec == "zstd":
        plain, ended = unzstd(stored, size), True
    else:
        plain, ended = stored, True
    if len(plain) != size or not ended:
        raise ValueError(f"it does not hold {size} bytes")
    return plain


def gunzip(stored: bytes, size: int) -> tuple[bytes, bool]:
    machine = zlib.decompressobj(31)
    try:
        plain = machine.decompress(stored, size + 1)
    except zlib.error as exc:
        raise ValueError(str(exc)) from exc
    return plain, machine.eof and not machine.unused_data


def unzstd(stored: bytes, size: int) -> bytes:
    zstandard = need("zstandard", why="a document that ends in .zst")
    try:
        if zstandard.get_frame_parameters(stored).content_size != size:
            raise ValueError("it declares another size")
        plain: bytes = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompress(stored, size, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise ValueError(str(exc)) from exc
    return plain


def loose_lines(path: Path) -> Iterator[bytes]:
    """Every line of a document that has no manifest, from front to back."""
    errors: list[type[Exception]] = [OSError, EOFError, zlib.error]
    with path.open("rb") as file:
        if path.name.endswith(".gz"):
            stream: Any = gzip.GzipFile(fileobj=file)
        elif path.name.endswith(".zst"):
            zstandard = need("zstandard", why="a document that ends in .zst")
            errors.append(zstandard.ZstdError)
            machine = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
            stream = io.BufferedReader(machine.stream_reader(file, read_across_frames=True))
        else:
            stream = file
        try:
            while line := stream.readline(LONGEST_LINE):
                if not line.endswith(b"\n"):
                    raise Refused(f"{path.name} is cut off in the middle of a line, or is no document of coldstore")
                yield line[:-1]
        except tuple(errors) as exc:
            raise Refused(f"{path.name} is damaged or cut off: {exc}") from exc


# --- documents ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Document:
    """A snapshot ready to be read. `stored` is None where there is no manifest to hold it against."""

    name: str
    header: dict[str, Any]
    lines: Callable[[], Iterator[bytes]]
    stored: Stored | None = None

    @property
    def tables(self) -> list[dict[str, Any]]:
        tables: list[dict[str, Any]] = self.header["schema"]["tables"]
        return tables

    def rows(self) -> Iterator[tuple[str, bytes]]:
        """(array, row) of every row. Whoever has read them all knows that they are all there, and whole."""
        with read_as(self.name):
            yield from self._rows()

    def _rows(self) -> Iterator[tuple[str, bytes]]:
        counted: Counter[str] = Counter()
        digests: Counter[str] = Counter()
        lines = self.lines()
        found = header_of(next(lines, b""), self.name)
        if {name: found.get(name) for name in self.header} != self.header:
            raise Refused(f"the document of {self.name} says another thing of itself than its manifest")
        for array, row in rows_of(lines, [t["array"] for t in self.tables], self.name):
            counted[array] += 1
            if xxh3:
                digests[array] += xxh3(row)
            yield array, row
        if self.stored:
            self.stored.check_totals(counted, digests)


def header_of(line: bytes, name: str) -> dict[str, Any]:
    """The document's first line is an object that lacks its closing brace."""
    if not (line.startswith(b'{"format":') and line.endswith(b",")):
        raise Refused(f"{name} is no document of coldstore: it does not begin like one")
    with read_as(f"the header of {name}"):
        header: dict[str, Any] = json.loads(line[:-1] + b"}", parse_float=Number)
        check_kind(header, name)
        check_names(header)
    return header


def check_kind(header: dict[str, Any], name: str) -> None:
    if header["format"] != FORMAT:
        raise Refused(f"{name} has the format {header['format']!r}, and this program reads {FORMAT}")
    if header["kind"] != "full":
        raise Refused(f"{name} is a snapshot of kind {header['kind']!r}, and this program reads full ones only")


def check_names(header: dict[str, Any]) -> None:
    """A tier's name becomes a file's."""
    tables = header["schema"]["tables"]
    names, arrays = {t["tier"] for t in tables}, {t["array"] for t in tables}
    if not all(re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name) for name in names) or not len(names) == len(arrays) == len(tables):
        raise ValueError("its tiers' names are not names")


def rows_of(lines: Iterator[bytes], arrays: list[str], name: str) -> Iterator[tuple[str, bytes]]:
    """(array, row) of the lines after the header. A comma ends each row of an array but the last."""
    for number, array in enumerate(arrays, 1):
        opening = next(lines, b"")
        if opening != json.dumps(array, ensure_ascii=False).encode() + b":[":
            raise Refused(f"{name} is cut off or damaged: the array {array!r} should begin where {opening[:40]!r} stands")
        closing = b"]}" if number == len(arrays) else b"],"
        more: bool | None = None
        for line in lines:
            if line == closing and not more:
                break
            if not line.startswith(b"{") or more is False:
                raise Refused(f"{name} is damaged: a row of {array!r} should stand where {line[:40]!r} stands")
            more = line.endswith(b",")
            yield array, line[:-1] if more else line
        else:
            raise Refused(f"{name} is cut off within the array {array!r}")
    if next(lines, None) is not None:
        raise Refused(f"{name} goes on after its end")


def with_manifest(document: Path, manifest: dict[str, Any], keys: Keys) -> Document:
    snapshot = manifest["id"]
    check_kind(manifest, snapshot)
    check_names(manifest)
    check_outline(manifest, snapshot)
    if not document.is_file():
        raise Refused(f"the document {document.name} is missing, though its manifest is there")
    stored = Stored(document, manifest, keys.open(manifest, added_keys(document.parent, snapshot)))
    header = {name: manifest[name] for name in HEADER}
    if not xxh3:
        note("the tiers' digests are not compared, which needs the package xxhash; every SHA-256 is")
    return Document(snapshot, header, stored.lines, stored)


def check_outline(manifest: dict[str, Any], name: str) -> None:
    """A manifest must not contradict itself."""
    frames, tiers = manifest["frames"], manifest["tiers"]
    arrays = [t["array"] for t in manifest["schema"]["tables"]]
    if manifest["codec"] not in SUFFIXES:
        raise Refused(f"{name} is compressed with {manifest['codec']!r}, which this program does not know")
    at = 0
    for frame in frames:
        if min(frame["rows"], frame["length"], frame["plain"]) < 0 or frame["offset"] != at:
            raise Refused(f"the manifest of {name} contradicts itself: there is a gap between two frames at byte {at}")
        at += frame["length"]
    agrees = (
        at == manifest["storedBytes"]
        and sum(f["plain"] for f in frames) == manifest["bytes"]
        and [t["array"] for t in tiers] == arrays
        and [array for array, _ in groupby(f["tier"] for f in frames)] == [None, *arrays]
        and all(t["rows"] == sum(f["rows"] for f in frames if f["tier"] == t["array"]) for t in tiers)
    )
    if not agrees:
        raise Refused(f"the manifest of {name} contradicts itself: its sums do not add up")


def added_keys(folder: Path, snapshot: str) -> Iterator[dict[str, str]]:
    """Wrapped forms of a snapshot's key that were added later, the newest first."""
    for path in sorted(folder.iterdir(), reverse=True):
        if re.fullmatch(re.escape(snapshot) + r"\.keys-\d+\.json", path.name):
            record = read_record(path)
            Trust(frozenset(), required=False).check(record, path.name)
            yield from record["keys"] if record["id"] == snapshot else []


def open_in_store(store: Path, snapshot: str, trust: Trust, keys: Keys) -> Document:
    """Where a snapshot lies follows from its id."""
    match = ID.fullmatch(snapshot)
    if not match:
        raise Refused(
            f"{snapshot!r} is not the id of a snapshot: one looks like memory-all-1772503200387, and --list shows those there are"
        )
    try:
        day = datetime.fromtimestamp(int(match[1]) / 1000, timezone.utc).date().isoformat()
    except (ValueError, OverflowError, OSError):
        raise Refused(f"{snapshot!r} is not the id of a snapshot: its time is out of range") from None
    folder = store / "snapshots" / day
    path = folder / f"{snapshot}.manifest.json"
    if not path.is_file():
        raise Refused(f"there is no snapshot {snapshot} in {store}; --list shows those there are")
    manifest = read_record(path)
    trust.check(manifest, path.name)
    with read_as(path.name):
        name = f"{snapshot}.json{SUFFIXES.get(manifest['codec'], '')}{'.enc' if manifest.get('sealing') else ''}"
        if (manifest["id"], manifest["document"]) != (snapshot, f"snapshots/{day}/{name}"):
            raise Refused(f"{path.name} is the manifest of {manifest['document']}: somebody moved or renamed it")
        return with_manifest(folder / name, manifest, keys)


def open_file(path: Path, trust: Trust, keys: Keys) -> Document:
    """A single document, with the manifest beside it if there is one."""
    beside = path.with_name(re.sub(r"\.json(\.gz|\.zst)?(\.enc)?$", ".manifest.json", path.name))
    if beside != path and beside.is_file():
        manifest = read_record(beside)
        with read_as(beside.name):
            if manifest["document"].rpartition("/")[2] == path.name:
                trust.check(manifest, beside.name)
                return with_manifest(path, manifest, keys)
    if path.name.endswith(".enc"):
        raise Refused(f"{path.name} is sealed, and the manifest that has its key is not beside it: {beside.name}")
    if trust.required:
        raise Refused(f"{path.name} has no manifest beside it, and so no signature")
    note(f"{path.name} has no manifest beside it: whether rows are missing or were changed cannot be told, only that it is in shape")
    return Document(path.name, header_of(next(loose_lines(path), b""), path.name), partial(loose_lines, path))


# --- rows --------------------------------------------------------------------------------------------------------------------------

MARK = re.compile(r'["{}\[\],]')
string_at = json.JSONDecoder().raw_decode


def pieces(raw: str) -> list[str]:
    """The members of a JSON object, or the elements of an array, each as it is written. Nothing is parsed, so every digit stays; and
    nothing recurses, for PostgreSQL stores thousands of levels."""
    found: list[str] = []
    depth, start, at = 0, 1, 0
    while mark := MARK.search(raw, at):
        at = mark.end()
        if mark[0] == '"':
            at = string_at(raw, mark.start())[1]
            continue
        if depth == 1 and mark[0] in ",]}":
            found.append(raw[start : mark.start()].strip())
            start = at
        depth += {"{": 1, "[": 1, ",": 0}.get(mark[0], -1)
        if depth == 0 and not raw[at:].strip():
            return [] if found == [""] else found
    raise ValueError("a row ends too early")


def members(row: bytes) -> dict[str, str]:
    """A row's values by name, each as it is written."""
    found = {}
    for piece in pieces(row.decode()):
        name, end = string_at(piece)
        colon, found[name] = piece[end:].lstrip()[:1], piece[end:].lstrip()[1:].lstrip()
        if not isinstance(name, str) or colon != ":" or not found[name]:
            raise ValueError("a member has no name or no value")
    return found


def text(raw: str) -> str:
    """A value's text form as PostgreSQL reads it: a string's content, an array's or a composite's literal, a number as it stands."""
    if raw[0] == '"':
        return str(json.loads(raw))
    if raw[0] == "[":
        return "{" + ",".join("NULL" if e == "null" else text(e) if e[0] == "[" else quoted(text(e)) for e in pieces(raw)) + "}"
    if raw[0] == "{":
        return "(" + ",".join("" if v == "null" else quoted(text(v)) for v in members(raw.encode()).values()) + ")"
    return raw


def quoted(value: str) -> str:
    """Within an array's or a composite's literal."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def hex_vector(raw: str) -> str:
    """`vector_send` in hexadecimal digits. Nine significant digits give back every 4-byte float."""
    data = bytes.fromhex(json.loads(raw))
    size, _ = struct.unpack_from(">HH", data)
    return "[" + ",".join(f"{value:.9g}" for value in struct.unpack(f">{size}f", data[4:])) + "]"


def owned_by(uid: str, table: dict[str, Any]) -> Callable[[bytes], bool] | None:
    """Whether a row is a user's; None for a table that does not say whose its rows are."""
    column = table.get("uidColumn")
    if column is None:
        return None
    padded = any(c["name"] == column and c["type"].startswith(("character(", "bpchar")) for c in table["columns"])

    def owned(row: bytes) -> bool:
        raw = members(row)[column]
        return raw != "null" and (text(raw).rstrip(" ") if padded else text(raw)) == uid

    return owned


# --- CSV ---------------------------------------------------------------------------------------------------------------------------


class JsonLines:
    """Rows as they are stored."""

    suffix: ClassVar[str] = "jsonl"
    header: ClassVar[bytes] = b""

    def line(self, row: bytes) -> bytes:
        return row + b"\n"

    def hint(self, _path: Path) -> str | None:
        return None


class Csv:
    """Rows of one table as CSV. NULL is an empty field without quotes; everything else is quoted. Generated columns are left out, for
    COPY does not take them."""

    suffix: ClassVar[str] = "csv"

    def __init__(self, table: dict[str, Any], types: list[dict[str, Any]]) -> None:
        self.table = (table["table"]["schema"], table["table"]["name"])
        self.key = table.get("jsonNullKey")
        self.names = {c["name"] for c in table["columns"]}
        self.columns = {c["name"]: converter(c, types) for c in table["columns"] if c.get("generated") is None}
        self.header = ",".join(map(csv_quoted, self.columns)).encode() + b"\n"

    def line(self, row: bytes) -> bytes:
        found = members(row)
        json_nulls = json.loads(found.pop(self.key, "[]")) if self.key else []
        if found.keys() != self.names:
            raise ValueError(f"{sorted(found.keys() ^ self.names)} is not both in the row and among the columns")
        fields = []
        for name, convert in self.columns.items():
            is_null = found[name] == "null" and name not in json_nulls
            fields.append("" if is_null else csv_quoted(convert(found[name])))
        return ",".join(fields).encode() + b"\n"

    def hint(self, path: Path) -> str | None:
        """The command that loads the file. A name is quoted in SQL as a field is in CSV."""
        table, columns = ".".join(map(csv_quoted, self.table)), ", ".join(map(csv_quoted, self.columns))
        file = str(path).replace("'", "''")
        return f"COPY {table} ({columns}) FROM '{file}' (FORMAT csv, HEADER, ENCODING 'UTF8');" if columns else None


def csv_quoted(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'


def converter(column: dict[str, Any], types: list[dict[str, Any]]) -> Callable[[str], str]:
    if column.get("form") == "hex":
        return hex_vector
    return str if base_type(column["type"], types) in {"json", "jsonb"} else text


def base_type(name: str, types: list[dict[str, Any]]) -> str:
    """A domain's base, and that one's, down to a type that is none. Names are compared without their quotes."""
    bases: dict[tuple[str, ...], str] = {(t["name"]["schema"], t["name"]["name"]): t["base"] for t in types if t["kind"] == "domain"}
    while base := bases.pop(identifiers(name), None):
        name = base
    return name


def identifiers(name: str) -> tuple[str, ...]:
    parts = re.findall(r'"((?:[^"]|"")*)"|([^".]+)', name)
    return tuple(quoted.replace('""', '"') or plain for quoted, plain in parts)


# --- out ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """The rows that are asked for: of these arrays, and there those of which `owned` is true."""

    document: Document
    uid: str | None
    owned: dict[str, Callable[[bytes], bool]]

    @classmethod
    def of(cls, document: Document, tiers: list[str], uid: str | None) -> Wanted:
        known = [t["tier"] for t in document.tables]
        if unknown := [t for t in tiers if t not in known]:
            raise Refused(f"there is no tier {unknown[0]!r} in {document.name}: it has {', '.join(known)}")
        owned: dict[str, Callable[[bytes], bool]] = {}
        for table in document.tables:
            predicate = (lambda _row: True) if uid is None else owned_by(uid, table)
            if tiers and table["tier"] not in tiers:
                continue
            if predicate is None:
                note(f"{table['tier']} is left out: no column says whose a row is")
            else:
                owned[table["array"]] = predicate
        return cls(document, uid, owned)

    @property
    def tables(self) -> list[dict[str, Any]]:
        return [t for t in self.document.tables if t["array"] in self.owned]

    def rows(self) -> Iterator[tuple[str, bytes]]:
        found = False
        for array, row in self.document.rows():
            if array in self.owned:
                with read_as(f"a row of {array}"):
                    mine = self.owned[array](row)
                if mine:
                    found = True
                    yield array, row
        if self.uid is not None and not found:
            raise Refused(f"there is not one row of user {self.uid!r} in {self.document.name}")


def print_rows(wanted: Wanted) -> None:
    """Read twice: nothing is printed before everything has been checked."""
    for _ in wanted.rows():
        pass
    for array, row in wanted.rows():
        sys.stdout.buffer.write(array.encode() + b"\t" + row + b"\n")
    sys.stdout.buffer.flush()


def write_files(wanted: Wanted, out: Path, *, csv: bool) -> None:
    """A new folder with a file for each tier: all of them whole, or none."""
    out = out.resolve()
    if not out.parent.is_dir():
        raise Refused(f"there is no folder {out.parent}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refused(f"{out} is there already, and is not overwritten")
    types = wanted.document.header["schema"].get("types", [])
    with read_as(f"the schema of {wanted.document.name}"):
        forms = {t["array"]: Csv(t, types) if csv else JsonLines() for t in wanted.tables}
    names = {t["array"]: f"{t['tier']}.{forms[t['array']].suffix}" for t in wanted.tables}
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir(mode=0o700)
        counted = fill(folder, wanted, forms, names)
        if out.is_dir():
            out.rmdir()
        folder.rename(out)
    for array, form in forms.items():
        path = out / names[array]
        print(f"-- {path}: {counted[array]} rows", form.hint(path) or "", sep="\n" if form.hint(path) else "")


def fill(folder: Path, wanted: Wanted, forms: dict[str, Any], names: dict[str, str]) -> Counter[str]:
    counted: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        files = {array: stack.enter_context((folder / name).open("xb")) for array, name in names.items()}
        for array, form in forms.items():
            files[array].write(form.header)
        for array, row in wanted.rows():
            with read_as(f"a row of {array}"):
                line = forms[array].line(row)
            files[array].write(line)
            counted[array] += 1
    return counted


def list_store(store: Path, trust: Trust) -> int:
    """One line for each snapshot, oldest first; a manifest that is no good is said so, and the exit code with it."""
    paths = sorted(store.glob("snapshots/*/memory-*.manifest.json"), key=lambda p: (p.parent.name, p.name.rpartition("-")[2]))
    if not paths:
        raise Refused(f"there is no snapshot in {store}: a store has a folder `snapshots` in it")
    good = [listed(path, trust) for path in paths]
    return 0 if all(good) else 1


def listed(path: Path, trust: Trust) -> bool:
    try:
        manifest = read_record(path)
        trust.check(manifest, path.name)
        with read_as(path.name):
            print(describe(manifest))
    except Refused as exc:
        print(f"recover: {exc}", file=sys.stderr)
        return False
    return True


def describe(manifest: dict[str, Any]) -> str:
    rows = sum(t["rows"] for t in manifest["tiers"])
    more = [manifest["codec"], "sealed" if manifest.get("sealing") else "", manifest["kind"] if manifest["kind"] != "full" else ""]
    label = f"label {manifest['label']!a}" if manifest["label"] is not None else ""
    words = " ".join(w for w in [*more, label] if w)
    return f"{manifest['id']}  {manifest['snapshotAt']}  {rows} rows  {manifest['storedBytes']} bytes  {words}"


# --- the command line --------------------------------------------------------------------------------------------------------------


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="recover.py", description="Reads snapshots of coldstore without coldstore.")
    add = parser.add_argument
    add("where", type=Path, metavar="STORE|FILE", help="the folder of a store, or a single document")
    add("id", nargs="?", metavar="ID", help="the snapshot, when WHERE is a store")
    add("--list", action="store_true", help="list the snapshots of the store")
    add("--out", type=Path, metavar="DIR", help="write a file for each tier into this new folder, instead of standard output")
    add("--format", choices=["jsonl", "csv"], default="jsonl", help="of the files in DIR")
    add("--tier", action="append", default=[], metavar="T", help="only this tier; may be repeated")
    add("--uid", metavar="U", help="only the rows of this user")
    add("--key-file", type=Path, metavar="FILE", help="opens what is sealed")
    add("--data-key", metavar="KEY", help="the snapshot's own key, in hexadecimal digits or base64, as a cloud's key service gives it")
    add("--trust", action="append", default=[], metavar="DID", help="a did:key whose signature counts; may be repeated")
    add("--require-signature", action="store_true", help="refuse what none of those signed")
    found = parser.parse_args(arguments)
    if found.require_signature and not found.trust:
        parser.error("--require-signature needs --trust did:key:…, for anybody can sign with a key of their own")
    if found.format == "csv" and not found.out:
        parser.error("--format csv needs --out DIR")
    return found


def run(arguments: argparse.Namespace) -> int:
    trust = Trust(frozenset(arguments.trust), required=arguments.require_signature)
    keys = Keys(arguments.key_file, arguments.data_key)
    where: Path = arguments.where
    if not where.exists():
        raise Refused(f"there is no {where}")
    if arguments.list:
        return list_store(where, trust)
    if where.is_dir() and not arguments.id:
        raise Refused(f"{where} is a folder: name a snapshot of it; --list shows those there are")
    document = open_in_store(where, arguments.id, trust, keys) if where.is_dir() else open_file(where, trust, keys)
    with read_as(f"the schema of {document.name}"):
        wanted = Wanted.of(document, arguments.tier, arguments.uid)
    if arguments.out:
        write_files(wanted, arguments.out, csv=arguments.format == "csv")
    else:
        print_rows(wanted)
    return 0


def main(arguments: list[str]) -> int:
    try:
        return run(parsed(arguments))
    except Refused as exc:
        print(f"recover: {exc}", file=sys.stderr)
    except BrokenPipeError:  # whoever read standard output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except OSError as exc:
        print(f"recover: {exc}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
