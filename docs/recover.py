#!/usr/bin/env python3
r"""Reads snapshots of the format `coldstore/1` without coldstore, and without anything else but Python 3.9 or later.

    python recover.py --list STORE                           which snapshots there are
    python recover.py STORE ID                               rows on standard output: array, tab, row; of an incremental snapshot those
                                                             that it comes to, with all it is built on
    python recover.py STORE ID --out DIR                     DIR/{tier}.jsonl, each row byte for byte as it was stored
    python recover.py STORE ID --out DIR --format csv        DIR/{tier}.csv, and the COPY commands that load them into PostgreSQL
    python recover.py STORE ID --out DIR --format files      of an agent's own documents: each as a file
    python recover.py memory-….json.zst.enc --key-file KEYS  a single file, with the manifest that lies beside it

Three packages are used where they are needed and nowhere else: `zstandard` for documents that end in .zst, `cryptography` for those that
end in .enc and for signatures, `xxhash` to compare the content of whole tiers.

Everything is checked before anything is shown: the manifest's checksum, form and signature; each frame's place, size and SHA-256; the
document's size and SHA-256, as stored and plain; the shape of its lines; the number of rows; the tiers' digests; of a chain of incrementals
that each is built on the very one that is there, and what it says that all of them come to. (CRC32C of the frames is
not: SHA-256 covers the same bytes.) What could not be checked is said in a note. Whatever does not fit is one sentence and exit code 1,
and then no file is written. FORMAT.md describes the format in full; this is the order in which it is taken apart here:

    records (manifests, wrapped keys) → keys → frames → lines → rows → rows of a chain → JSON lines, or CSV
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
INCREMENTAL, DELETED = "incremental", "deleted"
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
        with Joined(self._parts()) as file:
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

    def _parts(self) -> list[Path]:
        """The files that the document was cut into, which have the sizes that they should have."""
        sizes = self.manifest.get("parts") or [self.manifest["storedBytes"]]
        paths = [self.path, *(self.path.with_name(f"{self.path.name}.{number:04}") for number in range(2, len(sizes) + 1))]
        for path, size in zip(paths, sizes):
            if not path.is_file():
                raise Refused(f"the document {path.name} is missing, though its manifest is there")
            if path.stat().st_size != size:
                raise Refused(f"{path.name} has {path.stat().st_size} bytes, and its manifest says {size}")
        return paths

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


class Joined(contextlib.ExitStack):
    """Files that are read one after the other, as one."""

    def __init__(self, paths: list[Path]) -> None:
        super().__init__()
        self.waiting = paths
        self.file: Any = io.BytesIO()

    def read(self, size: int) -> bytes:
        found = self.file.read(size)
        while len(found) < size and self.waiting:
            self.close()
            self.file = self.enter_context(self.waiting.pop(0).open("rb"))
            found += self.file.read(size - len(found))
        return bytes(found)


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
        return tables_of(self.header)

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
        for array, row in rows_of(lines, arrays_of(self.header), self.name):
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


def tables_of(header: dict[str, Any]) -> list[dict[str, Any]]:
    """What the arrays are of; an agent's own documents are of no table."""
    if header["kind"] == "documents":
        return [{"tier": "documents", "array": "documents"}]
    tables: list[dict[str, Any]] = header["schema"]["tables"]
    return tables


def check_kind(header: dict[str, Any], name: str) -> None:
    if header["format"] != FORMAT:
        raise Refused(f"{name} has the format {header['format']!r}, and this program reads {FORMAT}")
    if header["kind"] not in {"full", INCREMENTAL, "documents"}:
        raise Refused(f"{name} is a snapshot of kind {header['kind']!r}, which this program does not know")


def arrays_of(header: dict[str, Any]) -> list[str]:
    return [*(t["array"] for t in tables_of(header)), *([DELETED] if header["kind"] == INCREMENTAL else [])]


def check_names(header: dict[str, Any]) -> None:
    """A tier's name becomes a file's."""
    tables = tables_of(header)
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
    header = {name: manifest[name] for name in HEADER} | {name: manifest.get(name) for name in ("parent", "resets")}
    if not xxh3:
        note("the tiers' digests are not compared, which needs the package xxhash; every SHA-256 is")
    return Document(snapshot, header, stored.lines, stored)


def check_outline(manifest: dict[str, Any], name: str) -> None:
    """A manifest must not contradict itself."""
    frames, tiers = manifest["frames"], manifest["tiers"]
    arrays = arrays_of(manifest)
    if manifest["codec"] not in SUFFIXES:
        raise Refused(f"{name} is compressed with {manifest['codec']!r}, which this program does not know")
    at = 0
    for frame in frames:
        if min(frame["rows"], frame["length"], frame["plain"]) < 0 or frame["offset"] != at:
            raise Refused(f"the manifest of {name} contradicts itself: there is a gap between two frames at byte {at}")
        at += frame["length"]
    agrees = (
        at == manifest["storedBytes"] == sum(manifest.get("parts") or [at])
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


def open_in_store(store: Path, snapshot: str, trust: Trust, keys: Keys) -> Document | Chain:
    """A snapshot, and all it is built on."""
    links = [opened(store, snapshot, trust, keys)]
    while links[0].header["kind"] == INCREMENTAL:
        child = links[0].name
        with read_as(f"the manifest of {child}"):
            parent, checksum = links[0].header["parent"]["id"], links[0].header["parent"]["checksum"]
            if scope_and_time(parent)[0] != scope_and_time(child)[0] or scope_and_time(parent)[1] >= scope_and_time(child)[1]:
                raise Refused(f"{child} is built on {parent}, which is not an earlier snapshot of the same scope")
        try:
            links.insert(0, opened(store, parent, trust, keys))
        except Refused as exc:
            raise Refused(f"{child} is built on {parent}: {exc}") from None
        if links[0].stored and links[0].stored.manifest["checksum"] != checksum:
            raise Refused(f"{parent} is not the one that {child} was built on")
    return Chain(links) if len(links) > 1 else links[0]


def scope_and_time(snapshot: str) -> tuple[str, int]:
    match = ID.fullmatch(snapshot)
    if not match:
        raise Refused(
            f"{snapshot!r} is not the id of a snapshot: one looks like memory-all-1772503200387, and --list shows those there are"
        )
    return snapshot[: match.start(1)], int(match[1])


def opened(store: Path, snapshot: str, trust: Trust, keys: Keys) -> Document:
    """Where a snapshot lies follows from its id."""
    try:
        day = datetime.fromtimestamp(scope_and_time(snapshot)[1] / 1000, timezone.utc).date().isoformat()
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
                return no_part(with_manifest(path, manifest, keys))
    if path.name.endswith(".enc"):
        raise Refused(f"{path.name} is sealed, and the manifest that has its key is not beside it: {beside.name}")
    if trust.required:
        raise Refused(f"{path.name} has no manifest beside it, and so no signature")
    note(f"{path.name} has no manifest beside it: whether rows are missing or were changed cannot be told, only that it is in shape")
    return no_part(Document(path.name, header_of(next(loose_lines(path), b""), path.name), partial(loose_lines, path)))


def no_part(document: Document) -> Document:
    if document.header["kind"] == INCREMENTAL:
        raise Refused(f"{document.name} is incremental and holds only what changed: name the folder of its store, and its id")
    return document


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


# --- chains ------------------------------------------------------------------------------------------------------------------------

# Of these types values are the same when they are written alike.
PLAIN = re.compile(
    r"(smallint|integer|bigint|oid|xid8|pg_lsn|money|boolean|uuid|bytea|bit|bit varying|text|character varying|character"
    r"|\"char\"|name|inet|cidr|macaddr8?|date|time(stamp)? with(out)? time zone)"
)


@dataclass(frozen=True)
class Chain:
    """A full snapshot and the incrementals after it, read as the one snapshot that they come to. `links`: the full one first."""

    links: list[Document]

    @property
    def name(self) -> str:
        return self.links[-1].name

    @property
    def header(self) -> dict[str, Any]:
        return self.links[-1].header

    @property
    def tables(self) -> list[dict[str, Any]]:
        return self.links[-1].tables

    def rows(self) -> Iterator[tuple[str, bytes]]:
        """From the newest link to the oldest: what a later one has named does not count any more."""
        with read_as(self.name):
            yield from self._rows()

    def _rows(self) -> Iterator[tuple[str, bytes]]:
        readers = {t["array"]: key_reader(t, self.header["schema"].get("types", [])) for t in self.tables}
        named: dict[str, set[tuple[str, ...]]] = {array: set() for array in readers}
        emptied: set[str] = set()
        counted: Counter[str] = Counter()
        digests: Counter[str] = Counter()
        for link in reversed(self.links):
            if shape(link) != shape(self.links[-1]):
                raise Refused(f"{self.name} is of other tables than {link.name}, on which it is built")
            here: dict[str, set[tuple[str, ...]]] = {array: set() for array in readers}
            for array, row in self._left(link, readers, named, emptied, here):
                counted[array] += 1
                if xxh3:
                    digests[array] += xxh3(row)
                yield array, row
            for array, keys in here.items():
                named[array] |= keys
            emptied |= {*(link.header["resets"] or [])}
        self._check_state(counted, digests)

    @staticmethod
    def _left(
        link: Document,
        readers: dict[str, Callable[[bytes], tuple[str, ...]]],
        named: dict[str, set[tuple[str, ...]]],
        emptied: set[str],
        here: dict[str, set[tuple[str, ...]]],
    ) -> Iterator[tuple[str, bytes]]:
        """The rows of one link that nothing later has named; what it names itself goes into `here`."""
        for array, row in link.rows():
            of, key = deleted_key(row, readers) if array == DELETED else (array, None)
            if of in emptied:
                continue
            if link.header["kind"] == "full":
                if not named[of] or readers[of](row) not in named[of]:
                    yield array, row
                continue
            key = key or readers[of](row)
            if key in here[of]:
                raise Refused(f"{link.name} names a key of {of} twice")
            here[of].add(key)
            if array == of and key not in named[of]:
                yield array, row

    def _check_state(self, counted: Counter[str], digests: Counter[str]) -> None:
        stored = self.links[-1].stored
        for tier in (stored and stored.manifest.get("state")) or []:
            array = tier["array"]
            differs = xxh3 and stored and f"{digests[array] % (1 << 128):032x}" != stored.unmasked(tier["digest"], f"state {array}")
            if counted[array] != tier["rows"] or differs:
                raise Refused(f"{tier['tier']} comes to {counted[array]} rows, or other ones, and {self.name} says {tier['rows']}")


def deleted_key(line: bytes, readers: dict[str, Callable[[bytes], tuple[str, ...]]]) -> tuple[str, tuple[str, ...]]:
    found = members(line)
    array = json.loads(found["array"])
    return array, readers[array](found["key"].encode())


def shape(link: Document) -> dict[str, Any]:
    return {t["array"]: (t["table"], primary_key(t), [(c["name"], c["type"], c.get("form")) for c in t["columns"]]) for t in link.tables}


def primary_key(table: dict[str, Any]) -> list[str]:
    found: list[str] = next((c["columns"] for c in table.get("constraints", []) if c["kind"] == "p"), [])
    return found


def key_reader(table: dict[str, Any], types: list[dict[str, Any]]) -> Callable[[bytes], tuple[str, ...]]:
    """Cuts the key out of a row, in a form that is the same for what PostgreSQL takes for the same."""
    columns = {c["name"]: c for c in table["columns"]}
    same = {name: same_written(columns[name], types) for name in primary_key(table)}

    def key(row: bytes) -> tuple[str, ...]:
        found = members(row)
        if not same or None in same.values():
            raise Refused(f"only PostgreSQL can tell whether two keys of {table['tier']} are the same: restore the snapshot with coldstore")
        if any(found[name] == "null" for name in same):
            raise ValueError(f"a row of {table['array']} has no key")
        return tuple(normal(found[name]) for name, normal in same.items() if normal)

    return key


def same_written(column: dict[str, Any], types: list[dict[str, Any]]) -> Callable[[str], str] | None:
    base, collation = column["type"], column.get("collation")
    named: dict[tuple[str, ...], Any] = {(t["name"]["schema"], t["name"]["name"]): t for t in types}
    while (found := named.get(identifiers(base))) and found["kind"] == "domain":
        base, collation = found["base"], collation or found.get("collation")
    base = re.sub(r"\([0-9,]+\)", "", base)
    if column.get("form", "json") != "json" or not (collation or "pg_catalog.").startswith("pg_catalog."):
        return None
    if base == "numeric":
        return lambda raw: raw.rstrip("0").rstrip(".") if "." in raw else raw
    if base in {"real", "double precision"}:
        return lambda raw: "0" if raw == "-0" else raw
    return str if PLAIN.fullmatch(base) or (found and found["kind"] == "enum") else None


# --- owners ------------------------------------------------------------------------------------------------------------------------


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

    document: Document | Chain
    uid: str | None
    owned: dict[str, Callable[[bytes], bool]]

    @classmethod
    def of(cls, document: Document | Chain, tiers: list[str], uid: str | None) -> Wanted:
        known = [t["tier"] for t in document.tables]
        if unknown := [t for t in tiers if t not in known]:
            raise Refused(f"there is no tier {unknown[0]!r} in {document.name}: it has {', '.join(known)}")
        if uid is not None and document.header["kind"] == "documents" and document.header["uid"] != uid:
            raise Refused(f"the documents of {document.name} are those of {document.header['uid']!r}, not of {uid!r}")
        owned: dict[str, Callable[[bytes], bool]] = {}
        for table in document.tables:
            predicate = (lambda _row: True) if uid is None or "table" not in table else owned_by(uid, table)
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
    if csv and wanted.document.header["kind"] == "documents":
        raise Refused(f"{wanted.document.name} holds documents, which have no columns: use --format jsonl or files")
    types = wanted.document.header["schema"].get("types", [])
    with read_as(f"the schema of {wanted.document.name}"):
        forms = {t["array"]: Csv(t, types) if csv else JsonLines() for t in wanted.tables}
    names = {t["array"]: f"{t['tier']}.{forms[t['array']].suffix}" for t in wanted.tables}
    with new_folder(out) as folder:
        counted = fill(folder, wanted, forms, names)
    for array, form in forms.items():
        path = out / names[array]
        print(f"-- {path}: {counted[array]} rows", form.hint(path) or "", sep="\n" if form.hint(path) else "")


def write_notes(wanted: Wanted, out: Path) -> None:
    """A new folder with each of an agent's documents as a file: all of them whole, or none."""
    if wanted.document.header["kind"] != "documents":
        raise Refused(f"{wanted.document.name} holds rows of tables and no documents: use --format jsonl or csv")
    seen: set[str] = set()
    with new_folder(out) as folder:
        for _, row in wanted.rows():
            with read_as("a row of documents"):
                note_of = json.loads(row)
                path = folder / safe_name(note_of["name"], seen)
                content = content_of(note_of, row)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.write_bytes(content)
            path.chmod(0o700 if note_of.get("executable") else 0o600)
    print(f"-- {out}: {len(seen)} files")


def content_of(note_of: dict[str, Any], row: bytes) -> bytes:
    """A JSON value is written as it stands."""
    if "text" in note_of:
        return str(note_of["text"]).encode()
    if "base64" in note_of:
        return base64.b64decode(note_of["base64"], validate=True)
    return members(row)["json"].encode()


def safe_name(name: str, seen: set[str]) -> str:
    """The name as a path that stays in its folder and meets no other; else as one file whose name spells it."""
    folded = name.casefold()
    usual = all(part not in {"", ".", ".."} and len(part.encode()) < 200 for part in name.split("/")) and not re.search(
        r"[\0-\x1f\\:]", name
    )
    taken = any(folded == s or folded.startswith(s + "/") or s.startswith(folded + "/") for s in seen)
    if not usual or taken:
        spelled = hashlib.sha256(name.encode()).hexdigest()[:32]
        note(f"the document {name!a} cannot be a file of that name here, and is in {spelled}")
        folded = name = spelled
    seen.add(folded)
    return name


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that is there when the block has ended well, and was not before."""
    out = out.resolve()
    if not out.parent.is_dir():
        raise Refused(f"there is no folder {out.parent}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refused(f"{out} is there already, and is not overwritten")
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir(mode=0o700)
        yield folder
        if out.is_dir():
            out.rmdir()
        folder.rename(out)


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
    add("--format", choices=["jsonl", "csv", "files"], default="jsonl", help="of the files in DIR")
    add("--tier", action="append", default=[], metavar="T", help="only this tier; may be repeated")
    add("--uid", metavar="U", help="only the rows of this user")
    add("--key-file", type=Path, metavar="FILE", help="opens what is sealed")
    add("--data-key", metavar="KEY", help="the snapshot's own key, in hexadecimal digits or base64, as a cloud's key service gives it")
    add("--trust", action="append", default=[], metavar="DID", help="a did:key whose signature counts; may be repeated")
    add("--require-signature", action="store_true", help="refuse what none of those signed")
    found = parser.parse_args(arguments)
    if found.require_signature and not found.trust:
        parser.error("--require-signature needs --trust did:key:…, for anybody can sign with a key of their own")
    if found.format != "jsonl" and not found.out:
        parser.error(f"--format {found.format} needs --out DIR")
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
    if arguments.out and arguments.format == "files":
        write_notes(wanted, arguments.out)
    elif arguments.out:
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
