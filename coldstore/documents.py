"""A document opened for reading, wherever it lies and whoever wrote it.

Three kinds, one shape: a snapshot in a store with its manifest (every frame is fetched and checked on its own, by many threads), a
file of ours that lost its manifest (read from front to back), and a file of another program. Each tells its tables, and yields *parts*:
pieces of work that give the rows of one array when they are called, so that fetching, checking and decompressing happen on the
thread that needs the rows. `restore`, `verify --deep` and `cat` read through here and nowhere else.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec

from coldstore.catalog import add_keys, added_keys
from coldstore.codec.compress import SUFFIXES, Codec, codec_of, decode_stream
from coldstore.codec.pipeline import check, decode
from coldstore.codec.seal import CIPHER, DataKey
from coldstore.codec.seal import SUFFIX as SEALED
from coldstore.codec.sign import SigningKey
from coldstore.document import foreign, model
from coldstore.document.reader import frame_rows, lines, matching_rows, read_header, read_rows
from coldstore.document.values import splitter
from coldstore.errors import (
    CorruptDocument,
    CorruptManifest,
    KeyRingError,
    NotFound,
    ObjectMissing,
    TruncatedDocument,
    UnsupportedFormat,
    WrongKey,
)
from coldstore.keyrings.open import unwrap_with_any, wrap_for_all
from coldstore.keyrings.ring import KeyRing
from coldstore.storage import parts
from coldstore.storage.store import Store
from coldstore.tiers import Scope

_READ = 1 << 20
_NEWER = "Install a newer coldstore."
_PART = 4 << 20  # bytes of rows in a part of a document that is read from front to back


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one array. `size` is what the part takes of the plain document, for progress."""

    array: str
    size: int
    rows: Callable[[], Iterable[bytes]]


class Document(Protocol):
    """`schema` is None when the document does not describe its tables; `tiers` when it does not say what it must hold."""

    @property
    def name(self) -> str: ...

    @property
    def scope(self) -> Scope: ...

    @property
    def snapshot_at(self) -> str | None: ...

    @property
    def schema(self) -> model.Schema | None: ...

    @property
    def tiers(self) -> list[model.TierSummary] | None: ...

    @property
    def size(self) -> int | None: ...

    def parts(self, wanted: Iterable[str], only: Owner | None = None) -> Generator[Part]:
        """Parts of the arrays `wanted`, with only the rows of one owner if asked."""
        ...


class Owner:
    """Picks one user's (or workspace's) rows: first by the bytes of the name, then by the column itself."""

    def __init__(self, value: str, columns: dict[str, str], *, blank_padded: Container[str] = ()) -> None:
        """`columns`: array → the column that names the owner. `blank_padded`: arrays where that is a `char(n)`, whose blanks at the end
        are no part of the name."""
        self._blank_padded = blank_padded
        self.value = value
        self.columns = columns
        # Text of the name that stands in the JSON as it is; the rest could be escaped in more than one way.
        self._needle = max(re.findall(r"[ !#-.0-\[\]-~]+", value), key=len, default="").encode()
        self._splitters = {array: splitter([column], strict=False) for array, column in columns.items()}

    @classmethod
    def of(cls, scope: Scope, tables: Iterable[model.Table]) -> Owner:
        """For those of `tables` that say whose a row is."""
        named = {t.array: (t.uid_column if scope.kind == "uid" else t.workspace_column, t.columns) for t in tables}
        columns = {array: column for array, (column, _) in named.items() if column}
        padded = {
            array
            for array, column in columns.items()
            for c in named[array][1]
            if c.name == column and c.type.startswith(("character(", "bpchar"))
        }
        return cls(scope.value, columns, blank_padded=padded)

    def rows(self, array: str, plain: bytes) -> Iterator[bytes]:
        """Of one decoded frame."""
        candidates = matching_rows(plain, self._needle) if self._needle else frame_rows(plain)
        return (row for row in candidates if self.owns(array, row))

    def owns(self, array: str, row: bytes) -> bool:
        try:
            raw = bytes(self._splitters[array](row)[0])
            found = msgspec.json.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise CorruptDocument(f"a row of {array} is not JSON: {exc}") from exc
        if isinstance(found, str):
            return self.value == (found.rstrip(" ") if array in self._blank_padded else found)
        return found is not None and raw == self.value.encode()


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A snapshot of a store, by its manifest; a sealed one with its data key. `open_stored` finds that."""

    store: parts.Readable
    manifest: model.Manifest
    data_key: DataKey | None = None

    @property
    def name(self) -> str:
        return self.manifest.id

    @property
    def scope(self) -> Scope:
        return Scope.of(uid=self.manifest.uid, workspace=self.manifest.workspace)

    @property
    def snapshot_at(self) -> str | None:
        return self.manifest.snapshot_at

    @property
    def schema(self) -> model.Schema | None:
        return self.manifest.schema

    @property
    def tiers(self) -> list[model.TierSummary]:
        return [msgspec.structs.replace(t, digest=self._unmasked(t.digest, f"digest {t.array}")) for t in self.manifest.tiers]

    @property
    def state(self) -> list[model.TierSummary] | None:
        """What an incremental and all that it builds on come to, where that is known."""
        found = self.manifest.state
        return found and [msgspec.structs.replace(t, digest=self._unmasked(t.digest, f"state {t.array}")) for t in found]

    @property
    def plain_sha256(self) -> str:
        return self._unmasked(self.manifest.plain_sha256, "plainSha256")

    def _unmasked(self, digest: str, name: str) -> str:
        return digest if self.data_key is None else self.data_key.mask(digest, name)

    @property
    def size(self) -> int | None:
        return self.manifest.bytes

    def frame(self, number: int) -> bytes:
        """The plain bytes of one frame, checked. Raises `TruncatedDocument` or `CorruptDocument`."""
        frame = self.manifest.frames[number]
        last = number == len(self.manifest.frames) - 1
        return decode(self._stored(frame), frame, self._codec(), self.data_key, key=self.manifest.document, number=number, last=last)

    def stored_frame(self, number: int) -> bytes:
        """The same as stored, for which no key is needed."""
        frame = self.manifest.frames[number]
        stored = self._stored(frame)
        check(stored, frame, key=self.manifest.document)
        return stored

    def _stored(self, frame: model.Frame) -> bytes:
        try:
            return parts.read(self.store, self.manifest.objects(), start=frame.offset, length=frame.length)
        except ObjectMissing as exc:
            raise CorruptDocument(
                f"the document {self.manifest.document} is missing, though its manifest is there",
                key=self.manifest.document,
                hint="Use another snapshot.",
            ) from exc

    def _codec(self) -> Codec:
        if self.manifest.codec not in SUFFIXES:
            raise UnsupportedFormat(
                f"{self.manifest.document} is compressed with {self.manifest.codec!r}",
                key=self.manifest.document,
                hint=_NEWER,
            )
        return Codec(self.manifest.codec)  # type: ignore[arg-type]

    def parts(self, wanted: Iterable[str], only: Owner | None = None) -> Generator[Part]:
        arrays = set(wanted)
        for number, frame in enumerate(self.manifest.frames):
            if frame.tier in arrays and frame.rows:
                yield Part(frame.tier or "", frame.plain, lambda n=number, a=frame.tier: self._rows(n, a, only))  # type: ignore[misc]

    def _rows(self, number: int, array: str, only: Owner | None) -> Iterable[bytes]:
        plain = self.frame(number)
        return frame_rows(plain) if only is None else only.rows(array, plain)

    def chunks(self) -> Iterator[bytes]:
        """The whole plain document, piece by piece."""
        return map(self.frame, range(len(self.manifest.frames)))


def open_stored(store: Store, manifest: model.Manifest, *, rings: Sequence[KeyRing] = ()) -> StoredDocument:
    """A snapshot ready to be read: of a sealed one the data key is unwrapped. Raises a `KeyRingError` when no ring can."""
    return StoredDocument(store, manifest, _data_key(manifest, rings, lambda: added_keys(store, manifest.id)))


def _data_key(manifest: model.Manifest, rings: Sequence[KeyRing], added: Callable[[], list[model.WrappedKey]]) -> DataKey | None:
    sealing = manifest.sealing
    if sealing is None:
        return None
    if sealing.cipher != CIPHER:
        raise UnsupportedFormat(f"{manifest.document} is sealed with {sealing.cipher!r}", key=manifest.document, hint=_NEWER)
    try:
        secret = unwrap_with_any(rings, sealing.keys, context=manifest.id)
    except KeyRingError:
        later = added()  # only then: rewrapped snapshots are few, and looking costs a listing
        if not later:
            raise
        secret = unwrap_with_any(rings, [*later, *sealing.keys], context=manifest.id)
    data_key = DataKey(secret, manifest.id, bytes.fromhex(sealing.nonce))
    if data_key.check != sealing.check:
        raise WrongKey(
            f"the key that was unwrapped for {manifest.id} is not the one that it was sealed with",
            key=manifest.document,
            hint="Its wrapped key was replaced. Use another snapshot, or another wrapped key of this one.",
        )
    return data_key


def rewrap(store: Store, manifest: model.Manifest, *, rings: Sequence[KeyRing], signer: SigningKey | None = None) -> bool:
    """Wrap a snapshot's data key for those of `rings` whose current key does not open it yet. The document stays as it is; the wrapped
    forms are added as an object of their own. False when there is nothing to do. Raises a `KeyRingError` when no ring opens it now."""
    document = open_stored(store, manifest, rings=rings)
    if document.data_key is None or manifest.sealing is None:
        return False
    there = {(w.ring, w.key) for w in [*manifest.sealing.keys, *added_keys(store, manifest.id)]}
    wrapped = [w for w in wrap_for_all(rings, document.data_key.secret, context=manifest.id) if (w.ring, w.key) not in there]
    if wrapped:
        add_keys(store, manifest.id, wrapped, signer=signer)
    return bool(wrapped)


class LineFile:
    """A document of ours without its manifest. What it holds cannot be compared with what was written, only read."""

    tiers = None

    def __init__(self, name: str, open_chunks: Callable[[], Generator[bytes]], size: int | None) -> None:
        self.name = name
        self.size = size
        self._open = open_chunks
        with closing(open_chunks()) as chunks:
            self.header = read_header(next(lines(chunks), b""), key=name)
        self.schema: model.Schema | None = self.header.schema
        self.scope = Scope.of(uid=self.header.uid, workspace=self.header.workspace)
        self.snapshot_at: str | None = self.header.snapshot_at

    def parts(self, wanted: Iterable[str], only: Owner | None = None) -> Generator[Part]:
        arrays = set(wanted)
        with closing(self._open()) as chunks:
            rest = lines(chunks)
            next(rest, None)
            rows = read_rows(rest, model.arrays(self.header), key=self.name)
            yield from gathered(((a, r) for a, r in rows if a in arrays), only)


class ForeignFile:
    """A document of another program: read once to know it, then again for its rows."""

    tiers = None
    schema = None

    def __init__(self, name: str, open_chunks: Callable[[], Generator[bytes]], size: int | None) -> None:
        self.name = name
        self.size = size
        self._open = open_chunks
        self.members: dict[str, set[str]] = {}
        skeleton: dict[str, Any] = {}
        counted: Counter[str] = Counter()
        with closing(open_chunks()) as chunks:
            for array, row in foreign.split(chunks, skeleton=skeleton):
                counted[array] += 1
                try:
                    self.members.setdefault(array, set()).update(msgspec.json.decode(row, type=dict[str, msgspec.Raw]))
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
                    raise CorruptDocument(f"a row of {array!r} is not JSON: {exc}", key=name) from exc
        model_format = skeleton.get("format")
        if model_format is not None:
            model.check_format(model_format, key=name)
        # Arrays that hold something else than rows: nobody's business, until a tier is called like one.
        self.not_rows = {a for a, v in skeleton.items() if isinstance(v, list) and v != [0] * counted[a]}
        for array, value in skeleton.items():
            if value == []:
                self.members[array] = set()
        uid, workspace = skeleton.get("uid"), skeleton.get("workspace")
        self.says_whose = "uid" in skeleton or "workspace" in skeleton
        self.scope = Scope.of(uid=None if uid is None else str(uid), workspace=None if workspace is None else str(workspace))
        at = skeleton.get("snapshotAt", skeleton.get("snapshot_at"))
        self.snapshot_at = at if isinstance(at, str) else None
        if not any(isinstance(v, list) for v in skeleton.values()):
            raise CorruptDocument(f"{name} has no array of rows", key=name, hint="A document has an array for each tier.")

    def parts(self, wanted: Iterable[str], only: Owner | None = None) -> Generator[Part]:
        arrays = set(wanted)
        with closing(self._open()) as chunks:
            yield from gathered(((a, r) for a, r in foreign.split(chunks) if a in arrays), only)


def gathered(rows: Iterator[tuple[str, bytes]], only: Owner | None) -> Generator[Part]:
    held: list[bytes] = []
    array, size = "", 0
    for name, row in rows:
        if held and (name != array or size >= _PART):
            yield Part(array, size, lambda held=held: held)  # type: ignore[misc]
            held, size = [], 0
        array = name
        size += len(row)
        if only is None or only.owns(name, row):
            held.append(row)
    if held:
        yield Part(array, size, lambda: held)


def open_file(path: Path, *, rings: Sequence[KeyRing] = ()) -> Document:
    """A document in a local file: with the manifest beside it, without, or of another program."""
    beside = re.sub(r"\.json(\.gz|\.zst)?(\.enc)?\Z", ".manifest.json", path.name)
    if beside != path.name and (path.parent / beside).is_file():
        manifest = model.decode_manifest((path.parent / beside).read_bytes(), key=beside)
        if manifest.document.rsplit("/", 1)[-1] == path.name:
            return StoredDocument(_FileStore(path.parent), manifest, _data_key(manifest, rings, lambda: _keys_beside(path, manifest.id)))
    if path.name.endswith(SEALED):
        raise CorruptManifest(
            f"{path.name} is sealed, and its manifest is not beside it",
            key=path.name,
            hint=f"The wrapped key stands in the manifest: put {beside} into the same folder.",
        )
    return open_loose(path)


def _keys_beside(path: Path, snapshot: str) -> list[model.WrappedKey]:
    return [
        wrapped
        for file in sorted(path.parent.glob(f"{glob.escape(snapshot)}.keys-[0-9][0-9][0-9][0-9].json"), reverse=True)
        for wrapped in model.decode_keys(file.read_bytes(), snapshot, key=file.name)
    ]


def open_loose(path: Path) -> Document:
    """A document in a local file, without regard to any manifest."""
    if not path.is_file():
        raise NotFound(f"there is no file {path}", hint="Check the path given to --file.")
    codec = codec_of(path.name)

    def chunks() -> Generator[bytes]:
        with path.open("rb") as file:
            yield from decode_stream(codec, _file_chunks(file), key=path.name)

    size = path.stat().st_size if codec.name == "none" else None
    with closing(chunks()) as head:
        first = _first_line(head)
    if not first.strip():
        raise TruncatedDocument(f"{path.name} is empty", key=path.name)
    if first.startswith(b'{"format":') and first.rstrip(b"\n").endswith(b","):
        return LineFile(path.name, chunks, size)
    return ForeignFile(path.name, chunks, size)


def _first_line(chunks: Iterator[bytes]) -> bytes:
    """The first line that is not blank, or what of it the first megabytes hold."""
    found = b""
    for chunk in chunks:
        found = (found + chunk).lstrip()
        if b"\n" in found or len(found) > 16 * _READ:
            break
    return found.partition(b"\n")[0]


def _file_chunks(file: BinaryIO) -> Iterator[bytes]:
    while data := file.read(_READ):
        yield data


class _FileStore:
    """The folder of a local file in the place of a store: what `StoredDocument` reads its frames from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        path = self._folder / key.rpartition("/")[2]
        try:
            with path.open("rb") as file:
                file.seek(start)
                return file.read() if length is None else file.read(length)
        except FileNotFoundError as exc:
            raise ObjectMissing(f"there is no file {path}", key=key) from exc
