"""The values of format `coldstore/1`: header, schema and manifest, and their one JSON form.

Pure. Fields are camelCase on disk. A reader ignores members it does not know (a later `coldstore/1` may add some) and refuses a
format with another number. The canonical form (sorted keys, no spaces, UTF-8) is what the manifest's checksum covers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec

from coldstore.codec.sign import SigningKey, fits
from coldstore.errors import CorruptManifest, SignatureInvalid, UnsupportedFormat
from coldstore.storage import layout

FORMAT = "coldstore/1"
#: The kind of a snapshot of an agent's own documents, and the name of the one array (and tier) that it has.
DOCUMENTS = "documents"
#: The kind of a snapshot of what changed since another one; and its last array (and tier), the keys of rows that are gone.
INCREMENTAL = "incremental"
DELETED = "deleted"

#: A number of rows or bytes, or a place in a file. What is read from a manifest must not ask for a negative or an absurd one.
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
#: Bytes of a frame, stored or plain: it is held in memory, and is no larger than the largest row (1 GiB) and what may stand before it.
FrameSize = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
#: Hexadecimal digits: a digest of rows, a SHA-256, a CRC32C, a nonce's prefix.
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Crc32c = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8}$")]
Prefix = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{14}$")]


class _Value(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Base of all: frozen, named members, camelCase on disk."""


class Name(_Value, frozen=True, kw_only=True):
    """A table, type or sequence with its schema."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


class Identity(_Value, frozen=True, kw_only=True):
    """`GENERATED … AS IDENTITY` of a column."""

    always: bool
    sequence: Name


class Column(_Value, frozen=True, kw_only=True):
    """A column as `CREATE TABLE` needs it. `type` is Postgres' own spelling, qualified. `form` says how its values stand in a row:

    - `json`: as `to_json` writes them (numbers, strings, arrays, objects)
    - `text`: a string in the type's own text form, for types whose JSON would not be exact
    - `hex`: a pgvector's binary form in hexadecimal digits
    """

    name: str
    type: str
    not_null: bool = False
    default: str | None = None
    generated: str | None = None  # "stored" or "virtual"; the expression is in `default`
    identity: Identity | None = None
    collation: str | None = None
    form: str = "json"


class Constraint(_Value, frozen=True, kw_only=True):
    """`kind` as in pg_constraint: p primary key, u unique, f foreign key, c check, x exclusion."""

    name: str
    kind: str
    definition: str
    columns: list[str] = []
    references: Name | None = None


class Index(_Value, frozen=True, kw_only=True):
    """An index that no constraint owns. `using` is everything after `USING`."""

    name: str
    using: str
    unique: bool = False


class Partition(_Value, frozen=True, kw_only=True):
    """One partition, listed after its parent. `bound` is its `FOR VALUES …`, `key` its own `PARTITION BY`, if it has one."""

    table: Name
    parent: Name
    bound: str
    key: str | None = None


class Sequence(_Value, frozen=True, kw_only=True):
    """A sequence that columns of a tier draw from. `owner` is (table, column) for `serial`."""

    name: Name
    type: str
    start: int
    increment: int
    minimum: int
    maximum: int
    cache: int
    cycle: bool = False
    last_value: int | None = None  # None: never drawn from
    owner_column: str | None = None
    owner_table: Name | None = None


class TypeDef(_Value, frozen=True, kw_only=True):
    """A user-defined type. `kind`: enum (`labels`), domain (`base`, `default`, `not_null`, `checks`), composite (`attributes`) or
    range (`subtype`, `collation`, `multirange`). Listed so that each stands after those it needs."""

    name: Name
    kind: str
    labels: list[str] = []
    base: str | None = None
    collation: str | None = None
    default: str | None = None
    not_null: bool = False
    checks: list[tuple[str, str]] = []
    attributes: list[tuple[str, str]] = []
    subtype: str | None = None
    multirange: Name | None = None


class Extension(_Value, frozen=True, kw_only=True):
    name: str
    schema: str
    version: str


class Table(_Value, frozen=True, kw_only=True):
    """A tier's table, with everything needed to make it again elsewhere."""

    tier: str
    array: str
    table: Name
    kind: str  # table, partitioned, view, materialized view, foreign table
    columns: list[Column]
    constraints: list[Constraint] = []
    indexes: list[Index] = []
    partition_key: str | None = None
    partitions: list[Partition] = []
    uid_column: str | None = None
    workspace_column: str | None = None
    where: str | None = None
    excluded: list[str] = []
    json_null_key: str | None = None

    @property
    def key(self) -> list[str]:
        """Columns of the primary key, empty when there is none."""
        return next((c.columns for c in self.constraints if c.kind == "p"), [])


class Schema(_Value, frozen=True, kw_only=True):
    """What the tiers' tables need: listed in the order in which the document's arrays stand."""

    tables: list[Table]
    types: list[TypeDef] = []
    sequences: list[Sequence] = []
    extensions: list[Extension] = []
    omitted: list[str] = []  # tiers that say nothing of whose a row is, and so are in all-user documents only


class Database(_Value, frozen=True, kw_only=True):
    """Where the rows came from. `snapshot` is `pg_current_snapshot()`. `oid`, `timeline` and `capture` (a fingerprint of the triggers that
    record changes, None where they are not whole) say whether an incremental snapshot may build on this one."""

    system_identifier: str
    name: str
    server_version: str
    snapshot: str
    oid: int = 0
    timeline: int = 0
    capture: str | None = None


class Link(_Value, frozen=True, kw_only=True, omit_defaults=False):
    """Another manifest of the same scope, by its own checksum."""

    id: str
    checksum: str


class Header(_Value, frozen=True, kw_only=True, omit_defaults=False):
    """The document's first line, but for the arrays that follow it. `kind`: full, incremental or documents. An incremental has a `parent`;
    `resets` are its arrays whose table was truncated since: they hold all there is, and nothing of the parent's counts. `database` is
    None for documents, which come from no database."""

    format: str
    snapshot_at: str
    uid: str | None
    workspace: str | None
    id: str
    kind: str
    parent: Link | None = None
    resets: list[str] = []
    label: str | None
    generator: str
    database: Database | None
    schema: Schema


class Frame(_Value, frozen=True, kw_only=True, omit_defaults=False):
    """A run of whole lines. `offset`, `length`: bytes in the stored document. `plain`: bytes when decoded. Checksums of the stored
    bytes. `tier` is the array's name, None for the header."""

    tier: str | None
    rows: Count
    offset: Count
    length: FrameSize
    plain: FrameSize
    crc32c: Crc32c
    sha256: Sha256


class TierSummary(_Value, frozen=True, kw_only=True, omit_defaults=False):
    """`digest`: the sum of the rows' XXH3-128 modulo 2^128, 32 hex digits; the same for the same rows in any order. In a sealed snapshot it
    is masked, see `codec/seal.py`, as the manifest's `plainSha256` is."""

    tier: str
    array: str
    rows: Count
    digest: Digest


class WrappedKey(_Value, frozen=True, kw_only=True, omit_defaults=False):
    """A data key that one key ring has encrypted. `key`: which of the ring's keys; `wrapped`: base64."""

    ring: str  # local, aws-kms, gcp-kms
    key: str
    wrapped: str


class Sealing(_Value, frozen=True, kw_only=True, omit_defaults=False):
    """How the frames of a sealed document are encrypted, see `codec/seal.py`. `nonce`: the prefix, 14 hex digits. `check`: tells a wrong
    data key from a damaged frame."""

    cipher: str
    nonce: Prefix
    check: Digest
    keys: list[WrappedKey]


class Retained(_Value, frozen=True, kw_only=True, omit_defaults=False):
    """Until when nobody may delete the snapshot (RFC 3339), and who sees to it: `governance` and `compliance` the store, `advisory` only
    coldstore."""

    until: str
    mode: str


class Signature(_Value, frozen=True, kw_only=True, omit_defaults=False):
    """Ed25519 by the key that `by` (a `did:key`) names; `value` in base64."""

    by: str
    value: str


class Manifest(_Value, frozen=True, kw_only=True, omit_defaults=False):
    """Commits a snapshot. `suspect`: why somebody should look before this one is relied on. `previous`: the one before it of the same
    scope. `tiers` are of what the document holds; `state`, where it is known, of what an incremental and all it builds on come to.
    `counted`, where `state` is not known: their rows by tier, as they were last counted, in this one or before it; the gate compares them.
    `built_from`: the snapshot whose chain was made into this full one. `parts`: bytes of each object that the document is cut into, where
    there are several. `signature` is over the canonical JSON of
    everything but itself and `checksum`, which is the SHA-256 of the canonical JSON of everything else."""

    format: str
    snapshot_at: str
    uid: str | None
    workspace: str | None
    id: str
    kind: str
    label: str | None
    generator: str
    database: Database | None
    schema: Schema
    document: str  # the document's key
    codec: str
    bytes: Count
    stored_bytes: Count
    sha256: Sha256  # of the document as stored
    plain_sha256: Sha256
    tiers: list[TierSummary]
    frames: list[Frame]
    seconds: float
    parent: Link | None = None
    resets: list[str] = []
    state: list[TierSummary] | None = None
    counted: dict[str, Count] | None = None
    built_from: str | None = None
    parts: list[Count] | None = None
    suspect: str | None = None
    previous: Link | None = None
    sealing: Sealing | None = None
    retained: Retained | None = None
    signature: Signature | None = None
    checksum: str = ""

    def rows(self) -> dict[str, int]:
        return {t.tier: t.rows for t in self.tiers}

    def whole_rows(self) -> dict[str, int]:
        """The same of all that a restore brings back; of an incremental without `state`, as they were last counted."""
        if self.kind != INCREMENTAL:
            return self.rows()
        return dict(self.counted or {}) if self.state is None else {t.tier: t.rows for t in self.state}

    def objects(self) -> dict[str, int]:
        """What the document is stored as, in order: keys and sizes."""
        sizes = self.parts or [self.stored_bytes]
        return {layout.part_key(self.document, number): size for number, size in enumerate(sizes, 1)}


def arrays(of: Header | Manifest) -> list[str]:
    """Names of the document's arrays, in order."""
    if of.kind == DOCUMENTS:
        return [DOCUMENTS]
    return [*(t.array for t in of.schema.tables), *([DELETED] if of.kind == INCREMENTAL else [])]


# msgspec works a class out when it is first decoded, and crashes the process when two threads do so at once: here there is one.
msgspec.json.Decoder(Manifest)
msgspec.json.Decoder(Header)


def canonical(value: Any) -> bytes:
    """Sorted keys, no spaces, UTF-8: equal values give equal bytes."""
    return msgspec.json.encode(value, order="sorted")


def check_format(found: object, *, key: str | None = None) -> None:
    """Nothing, or `UnsupportedFormat` with what to do about it."""
    if found == FORMAT:
        return
    if isinstance(found, str) and found.startswith("coldstore/"):
        raise UnsupportedFormat(
            f"{key or 'the document'} has format {found}, this program reads {FORMAT}", hint="Install a newer coldstore.", key=key
        )
    hint = "It is a bundle: `coldstore import` reads it." if isinstance(found, str) and found.startswith("coldstore-bundle/") else None
    raise UnsupportedFormat(f"{key or 'the document'} is not a coldstore document (format {found!r})", key=key, hint=hint)


def encode_header(header: Header) -> bytes:
    """One line of JSON without its closing brace: `{"format":…,"schema":{…}` — the arrays follow."""
    return msgspec.json.encode(header)[:-1]


def decode_header(line: bytes) -> Header:
    """The inverse of `encode_header`. Raises `UnsupportedFormat` or `msgspec.MsgspecError`."""
    check_format(msgspec.json.decode(line + b"}").get("format"))
    return msgspec.json.decode(line + b"}", type=Header)


def complete(manifest: Manifest, *, signer: SigningKey | None = None) -> Manifest:
    """`manifest` with its checksum, and signed if there is a signer."""
    record = _complete(msgspec.to_builtins(manifest), signer)
    signature = msgspec.convert(record["signature"], Signature | None)
    return msgspec.structs.replace(manifest, signature=signature, checksum=record["checksum"])


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest's object, completed if it is not yet."""
    return canonical(manifest if manifest.checksum else complete(manifest)) + b"\n"


def decode_manifest(data: bytes, *, key: str) -> Manifest:
    """The inverse of `encode_manifest`. Raises as `decode_record` does; `CorruptManifest` also when a part is missing."""
    body = decode_record(data, key=key)
    try:
        return msgspec.convert(body, Manifest)
    except msgspec.ValidationError as exc:
        raise CorruptManifest(f"{key} lacks a part: {exc}", key=key) from exc


def encode_record(body: Mapping[str, Any], *, signer: SigningKey | None = None) -> bytes:
    """A small object that must not be altered: canonical JSON with its own checksum, and signed if there is a signer."""
    return canonical(_complete(body, signer)) + b"\n"


def _complete(body: Mapping[str, Any], signer: SigningKey | None) -> dict[str, Any]:
    record = {name: value for name, value in body.items() if name not in _SEALS}
    signature = None if signer is None else {"by": signer.did, "value": signer.sign(_signed(record))}
    record["signature"] = signature
    record["checksum"] = hashlib.sha256(canonical(record)).hexdigest()
    return record


def decode_record(data: bytes, *, key: str) -> dict[str, Any]:
    """The inverse of `encode_record`. Raises `CorruptManifest`, `UnsupportedFormat`, and `SignatureInvalid` for a signature that is there
    and does not fit. Whether one must be there, and by whom, the caller decides."""
    try:
        body = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise CorruptManifest(f"{key} is not readable: {exc}", key=key, hint="Run `coldstore verify` on the other snapshots.") from exc
    if not isinstance(body, dict):
        raise CorruptManifest(f"{key} is not a JSON object", key=key)
    found = body.pop("checksum", None)
    if found != hashlib.sha256(canonical(body)).hexdigest():
        raise CorruptManifest(f"{key} does not match its own checksum", key=key, hint="It was altered or damaged after it was written.")
    check_format(body.get("format"), key=key)
    body["checksum"] = found
    if data != canonical(body) + b"\n":
        raise CorruptManifest(f"{key} is not in the form in which it was written", key=key, hint="Somebody edited or reformatted it.")
    _check_signature(body, key)
    return body


def encode_keys(snapshot: str, wrapped: Iterable[WrappedKey], *, signer: SigningKey | None = None) -> bytes:
    """Wrapped forms of a snapshot's data key, as the object that adds them to it."""
    return encode_record({"format": FORMAT, "kind": "keys", "id": snapshot, "keys": msgspec.to_builtins(list(wrapped))}, signer=signer)


def decode_keys(data: bytes, snapshot: str, *, key: str) -> list[WrappedKey]:
    """The inverse of `encode_keys`. Raises as `decode_record` does; `CorruptManifest` also when they belong to another snapshot."""
    return decode_signed_keys(data, snapshot, key=key)[0]


def decode_signed_keys(data: bytes, snapshot: str, *, key: str) -> tuple[list[WrappedKey], Signature | None]:
    """The same, and who signed them."""
    body = decode_record(data, key=key)
    if body.get("kind") != "keys" or body.get("id") != snapshot:
        raise CorruptManifest(
            f"{key} does not hold keys of {snapshot}: an object was moved", key=key, hint="Put it back under its own name."
        )
    try:
        return msgspec.convert(body.get("keys"), list[WrappedKey]), msgspec.convert(body.get("signature"), Signature | None)
    except msgspec.ValidationError as exc:
        raise CorruptManifest(f"{key} lacks a part: {exc}", key=key) from exc


_SEALS = ("signature", "checksum")


def _signed(record: Mapping[str, Any]) -> bytes:
    """What a signature covers: nothing else that we sign begins like this."""
    return f"{FORMAT} record\n".encode() + canonical(record)


def _check_signature(body: dict[str, Any], key: str) -> None:
    if body.get("signature") is None:
        return
    try:
        signature = msgspec.convert(body["signature"], Signature)
    except msgspec.ValidationError as exc:
        raise CorruptManifest(f"{key} lacks a part: {exc}", key=key) from exc
    rest = {name: value for name, value in body.items() if name not in _SEALS}
    if not fits(_signed(rest), by=signature.by, signature=signature.value):
        raise SignatureInvalid(
            f"the signature of {key} does not fit: {signature.by} did not sign this",
            key=key,
            hint="It was altered after it was signed. Use another snapshot.",
        )
