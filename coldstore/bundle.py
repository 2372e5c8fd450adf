"""A bundle: one agent's memory in one file of its own, to be carried to another installation.

It has the shape of a document, a JSON object that is also a file of lines:

    {"format":"coldstore-bundle/1","uid":…,"bundle":{…},     whose memory, and a record of what follows
    "dailyMemories":[                                        an array for each tier, rows as in a snapshot
    {…}
    ],
    "documents":[                                            and the agent's own documents
    {"name":…,"text":…}
    ]}

The record has the tables' definitions, rows and digest of each array, and the SHA-256 of everything after the first line; it has a checksum
of its own and may be signed. A bundle is read whole and compared before anything is given out. Nothing in it is sealed: who has the file
has the memory, and it is written for its owner's eyes only.

With another `uid` its rows are that user's: the columns that say whose a row is are rewritten, and with `new_ids` so are keys that are
UUIDs, and what refers to them, each to one that follows from the old one and the new owner. Every other byte stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from coldstore import __version__
from coldstore.codec.compress import codec_of, decode_stream
from coldstore.codec.digest import format_digest, row_digest
from coldstore.codec.sign import SigningKey
from coldstore.document import model
from coldstore.document.reader import lines, read_rows
from coldstore.document.values import rewriter, splitter
from coldstore.document.writer import DocumentWriter, PlainFrame, batches
from coldstore.documents import Owner, Part, gathered
from coldstore.errors import (
    ConfigError,
    ContentMismatch,
    CorruptDocument,
    FolderError,
    NotFound,
    SchemaMismatch,
    TruncatedDocument,
    UnsupportedFormat,
)
from coldstore.tiers import Scope

FORMAT = "coldstore-bundle/1"
_READ = 1 << 20
_FRAME = 4 << 20
_HEAD = b'{"format":"' + FORMAT.encode() + b'","uid":'
_RECORD = b',"bundle":'
_UUIDS = "uuid"
_PADDED = ("character(", "bpchar")
_EXACT = ("text", "character", "bpchar", "smallint", "integer", "bigint")
_REFERENCED = re.compile(r"REFERENCES .*?\((?P<columns>[^)]*)\)")

#: Rows of some arrays, asked for in the order in which they are to stand.
Rows = Callable[[str], Iterable[bytes]]


class Origin(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A snapshot that went into a bundle."""

    id: str
    snapshot_at: str


class Record(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a bundle says of itself. `omitted`: tiers that could not be carried, for nothing in them says whose a row is."""

    created_at: str
    generator: str
    uid: str
    tables: Origin | None
    documents: Origin | None
    schema: model.Schema
    omitted: list[str]
    arrays: list[model.TierSummary]
    sha256: model.Sha256
    signature: model.Signature | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """What is to be written."""

    uid: str
    created_at: str
    schema: model.Schema
    rows: Rows
    tables: Origin | None = None
    documents: Origin | None = None
    omitted: tuple[str, ...] = ()


# --- out ---------------------------------------------------------------------------------------------------------------------------


def write_bundle(path: Path, contents: Contents, *, signer: SigningKey | None = None) -> Record:
    """A new file at `path`, there when it is whole. Raises `FolderError`, and never overwrites one."""
    if os.path.lexists(path):
        raise FolderError(f"{path} is there already", hint="Name another file with -o, or remove it.")
    whole = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    try:
        with tempfile.TemporaryFile(dir=path.parent) as body:  # its sums stand in the first line, and so come first
            arrays, sha256 = _write_body(body, contents)
            if not any(a.rows for a in arrays):
                raise NotFound(
                    f"there is not one row or document of user {contents.uid!r}", hint="Check the spelling, or use an older snapshot."
                )
            record = _record(contents, arrays, sha256)
            body.seek(0)
            with os.fdopen(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as out:
                out.write(_first_line(record, signer))
                shutil.copyfileobj(body, out, _READ)
                out.flush()
                os.fsync(out.fileno())
        _publish(whole, path)
    except OSError as exc:
        raise FolderError(f"{path} cannot be written: {exc.strerror}", hint="Check the folder, and the room that is left.") from exc
    finally:
        whole.unlink(missing_ok=True)
    return record


def _publish(whole: Path, path: Path) -> None:
    try:
        os.link(whole, path)  # unlike a rename, it fails where something is
    except PermissionError:  # of a stick's file system, which has no links; nothing was there a moment ago
        whole.rename(path)


def _write_body(out: IO[bytes], contents: Contents) -> tuple[list[model.TierSummary], str]:
    tables = [(t.tier, t.array) for t in contents.schema.tables]
    wanted = [*tables, *([(model.DOCUMENTS, model.DOCUMENTS)] if contents.documents else [])]
    document = DocumentWriter([array for _, array in wanted], frame_size=_FRAME)
    total = hashlib.sha256()

    def write(frame: PlainFrame | None) -> None:
        for piece in frame.pieces if frame else ():
            out.write(piece)
            total.update(piece)

    found = []
    for tier, array in wanted:
        rows = digest = 0
        document.open()
        for batch in batches(map(bytes, contents.rows(array)), size=_FRAME):
            rows, digest = rows + batch.rows, digest + batch.digest
            write(document.rows(batch))
        write(document.close())
        found.append(model.TierSummary(tier=tier, array=array, rows=rows, digest=format_digest(digest)))
    return found, total.hexdigest()


def _record(contents: Contents, arrays: list[model.TierSummary], sha256: str) -> Record:
    return Record(
        created_at=contents.created_at,
        generator=f"coldstore {__version__}",
        uid=contents.uid,
        tables=contents.tables,
        documents=contents.documents,
        schema=contents.schema,
        omitted=list(contents.omitted),
        arrays=arrays,
        sha256=sha256,
    )


def _first_line(record: Record, signer: SigningKey | None) -> bytes:
    body = {"format": model.FORMAT, "kind": "bundle", **msgspec.to_builtins(record)}
    return _HEAD + msgspec.json.encode(record.uid) + _RECORD + model.encode_record(body, signer=signer).rstrip(b"\n") + b",\n"


# --- back --------------------------------------------------------------------------------------------------------------------------


class Bundle:
    """A bundle that was read and compared; a `Document` to be restored, and the rows of the agent's own documents."""

    def __init__(self, path: Path, record: Record, *, rewrite: Mapping[str, Callable[[bytes], bytes]], uid: str) -> None:
        self.name = path.name
        self.record = record
        self.uid = uid
        self.scope = Scope.user(uid)
        self.schema: model.Schema | None = record.schema
        self.size = path.stat().st_size
        self._path = path
        self._rewrite = rewrite
        self._summaries, self.mentions = self._compared()

    @property
    def snapshot_at(self) -> str | None:
        return self.record.tables.snapshot_at if self.record.tables else None

    @property
    def tiers(self) -> list[model.TierSummary] | None:
        return [s for s in self._summaries if s.array != model.DOCUMENTS]

    def documents(self) -> Iterator[bytes]:
        """The lines of the agent's own documents."""
        return (row for array, row in self._rows() if array == model.DOCUMENTS)

    def parts(self, wanted: Iterable[str], only: Owner | None = None) -> Generator[Part]:
        arrays = set(wanted)
        with closing(self._rows()) as rows:
            yield from gathered(((array, row) for array, row in rows if array in arrays), only)

    def _rows(self) -> Generator[tuple[str, bytes]]:
        with closing(_chunks(self._path)) as chunks:
            rest = lines(chunks)
            next(rest, None)
            for array, row in read_rows(rest, [s.array for s in self.record.arrays], key=self.name):
                rewrite = self._rewrite.get(array)
                yield array, rewrite(row) if rewrite else row

    def _compared(self) -> tuple[list[model.TierSummary], int]:
        """What the arrays hold, rewritten, once it is known that the file is what was written; and the number of rows that speak of the old
        owner elsewhere than where it was rewritten."""
        if (found := _sha256_of_body(self._path)) != self.record.sha256:
            raise CorruptDocument(
                f"{self.name} is not what was written: its SHA-256 is {found[:12]}…, not {self.record.sha256[:12]}…",
                key=self.name,
                hint="Nothing was imported. Copy the file again, or export once more.",
            )
        old = json.dumps(self.record.uid, ensure_ascii=False)[1:-1].encode()
        owned = {t.array: _owned_by(t, self.record.uid) for t in self.record.schema.tables}
        sums = {s.array: [0, 0, 0] for s in self.record.arrays}
        mentions = 0
        with closing(_chunks(self._path)) as chunks:
            rest = lines(chunks)
            next(rest, None)
            for array, row in read_rows(rest, list(sums), key=self.name):
                rewrite = self._rewrite.get(array)
                if array in owned and not owned[array](row):
                    raise CorruptDocument(f"{self.name} holds a row of {array} that is not of user {self.record.uid!r}", key=self.name)
                sums[array][0] += 1
                sums[array][1] += row_digest(row)
                sums[array][2] += row_digest(rewrite(row) if rewrite else row)
                mentions += rewrite is not None and row.count(old) > 1
        for s in self.record.arrays:
            if (s.rows, s.digest) != (sums[s.array][0], format_digest(sums[s.array][1])):
                raise ContentMismatch(f"{self.name} holds other rows of {s.tier} than it says", hint="Nothing was imported.")
        return [msgspec.structs.replace(s, digest=format_digest(sums[s.array][2])) for s in self.record.arrays], mentions


def open_bundle(path: Path, *, uid: str | None = None, new_ids: bool = False) -> Bundle:
    """The bundle in a local file, compared with what it says of itself; with `uid`, as that user's. Raises a `DocumentError` for what is
    no bundle or not whole, `SignatureInvalid` for a signature that does not fit, `SchemaMismatch` for what cannot be rewritten."""
    record = _read_record(path)
    uid = record.uid if uid is None else uid
    if "\0" in uid:
        raise ConfigError("the new uid has a NUL character, which Postgres text cannot hold", hint="Choose another.")
    if uid == record.uid and new_ids:
        raise ConfigError("new ids are for another user's copy", hint="Name the user with --rename-uid.")
    rewrite = {} if uid == record.uid else _rewriters(record, uid, new_ids=new_ids)
    return Bundle(path, record, rewrite=rewrite, uid=uid)


def _read_record(path: Path) -> Record:
    if not path.is_file():
        raise NotFound(f"there is no file {path}", hint="Check the path.")
    with closing(_chunks(path)) as chunks:
        line = next(lines(chunks), b"")
    if not line.startswith(_HEAD):
        raise UnsupportedFormat(
            f"{path.name} is no bundle of {FORMAT}",
            key=path.name,
            hint="`coldstore export` writes one. A document is brought back with `coldstore restore --file`.",
        )
    head, found, text = line.partition(_RECORD)
    if not found or not text.endswith(b","):
        raise TruncatedDocument(f"{path.name} ends within its first line", key=path.name, hint="Copy the file again.")
    body = model.decode_record(text[:-1] + b"\n", key=path.name)
    try:
        record = msgspec.convert(body, Record)
    except msgspec.ValidationError as exc:
        raise CorruptDocument(f"the record of {path.name} lacks a part: {exc}", key=path.name) from exc
    if head != _HEAD + msgspec.json.encode(record.uid):
        raise CorruptDocument(f"{path.name} names another uid than its record", key=path.name, hint="Somebody edited it.")
    return record


def _chunks(path: Path) -> Generator[bytes]:
    try:
        with path.open("rb") as file:
            yield from decode_stream(codec_of(path.name), iter(lambda: file.read(_READ), b""), key=path.name)
    except OSError as exc:
        raise FolderError(f"{path} cannot be read: {exc.strerror}", hint="Check who may read it.") from exc


def _sha256_of_body(path: Path) -> str:
    total = hashlib.sha256()
    with closing(_chunks(path)) as chunks:
        within = False
        for chunk in chunks:
            if within:
                total.update(chunk)
            elif b"\n" in chunk:
                within = True
                total.update(chunk.partition(b"\n")[2])
    return total.hexdigest()


# --- another owner -----------------------------------------------------------------------------------------------------------------


def _rewriters(record: Record, uid: str, *, new_ids: bool) -> dict[str, Callable[[bytes], bytes]]:
    """Array → what makes its rows the new owner's."""
    found = {}
    for table in record.schema.tables:
        changes: dict[str, Callable[[bytes], bytes]] = {}
        if new_ids:
            changes |= {column: lambda raw: _new_id(raw, uid) for column in _id_columns(table, record.schema)}
        if table.uid_column:
            value = _owner_value(table, uid)
            changes[table.uid_column] = lambda _, value=value: value  # type: ignore[misc]
        found[table.array] = rewriter(changes)
    return found


def _owner_value(table: model.Table, uid: str) -> bytes:
    """The new owner as `row_to_json` writes a value of the column's type."""
    kind = next(c.type for c in table.columns if c.name == table.uid_column)
    try:
        if kind in {"smallint", "integer", "bigint"}:
            return str(int(uid)).encode()
        if kind == _UUIDS:
            uid = str(uuid.UUID(uid))
        if width := re.fullmatch(r"character\((\d+)\)", kind):
            uid = uid.ljust(int(width[1]))
    except ValueError as exc:
        raise SchemaMismatch(f"{table.table} says with a {kind} whose a row is, and {uid!r} is none", hint="Choose another uid.") from exc
    return json.dumps(uid, ensure_ascii=False).encode()


def _owned_by(table: model.Table, uid: str) -> Callable[[bytes], bool]:
    """Whether a row is the user's: whoever makes a bundle must not write into another's memory with it."""
    column = table.uid_column
    if column is None:
        return lambda _: False
    kind = next((c.type for c in table.columns if c.name == column), "")
    split = splitter([column], strict=False)

    def owned(row: bytes) -> bool:
        try:
            found = msgspec.json.decode(bytes(split(row)[0]))
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise CorruptDocument(f"a row of {table.array} is not JSON: {exc}") from exc
        text = str(found).rstrip(" ") if kind.startswith(_PADDED) else str(found)
        # A uuid, a citext and the like are equal when their capitals are not.
        return text == uid or (not kind.startswith(_EXACT) and text.casefold() == uid.casefold())

    return owned


def _new_id(raw: bytes, uid: str) -> bytes:
    return raw if raw == b"null" else b'"' + str(uuid.uuid5(uuid.UUID(raw[1:-1].decode()), uid)).encode() + b'"'


def _id_columns(table: model.Table, schema: model.Schema) -> list[str]:
    """Columns with ids that are to be new: the key, and what refers to another table's. Raises `SchemaMismatch` for a key that cannot be
    made anew."""
    own = [table.key[0]] if _has_uuid_key(table) else []
    if table.key and not own and table.uid_column not in table.key:
        raise SchemaMismatch(
            f"the key of {table.table} ({', '.join(table.key)}) is no UUID, so that no new one can be made from it",
            hint="Import without --new-ids into a database where these keys are free.",
        )
    others = {t.table: t for t in schema.tables if _has_uuid_key(t)}
    for constraint in table.constraints:
        target = others.get(constraint.references) if constraint.kind == "f" and constraint.references else None
        referenced = _REFERENCED.search(constraint.definition)
        if target and referenced and len(constraint.columns) == 1 and referenced["columns"].strip('"') == target.key[0]:
            own += constraint.columns
    return own


def _has_uuid_key(table: model.Table) -> bool:
    return len(table.key) == 1 and any(c.name == table.key[0] and c.type == _UUIDS for c in table.columns)
