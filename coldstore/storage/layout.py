"""Where things lie in a store: the pure mapping between snapshots and keys, in both directions.

    snapshots/{date}/{id}.json[.gz|.zst][.enc]    the document, or its first part; the others end in .0002, .0003, …
    snapshots/{date}/{id}.manifest.json       the manifest
    snapshots/{date}/{id}.keys-{nnnn}.json    its data key, wrapped once more
    deletions/{date}/{timestamp}-{nonce}.json what coldstore deleted
    drills/{id}/{timestamp}-{outcome}.json    what a drill found out; the outcome is `proven` or `failed`
    latest/{scope}.json                       pointer to the scope's newest good snapshot
    checkpoints/{scope}/{label}.json          pointer to a named one

`{id}` is `memory-{scope}-{timestamp}`, the timestamp in milliseconds since the epoch, `{date}` its UTC date: a snapshot's keys
follow from its id alone. `{scope}` is `all`, an encoded uid, or `ws~` and an encoded workspace. An encoded name has only
`A-Za-z0-9._@+-` and `%XX`, so it cannot leave its folder, and `~`, which it never holds, keeps the forms apart.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from coldstore.errors import NotFound
from coldstore.tiers import EVERYBODY, Scope

SNAPSHOTS = "snapshots/"
LATEST = "latest/"
CHECKPOINTS = "checkpoints/"
DELETIONS = "deletions/"
DRILLS = "drills/"
MANIFEST_SUFFIX = ".manifest.json"
KEYS_SUFFIX = ".keys-"

#: Longest encoded name. `memory-` + `ws~` + name + `-` + 15 digits + `.manifest.json` stays under the 255 bytes of a file name.
MAX_NAME = 180
_HASH_HEX = 32  # 128 bits: two long uids that agree so far do not exist
_UNSAFE = re.compile(rb"[^A-Za-z0-9._@+-]")
_ID = re.compile(r"memory-(?P<scope>[A-Za-z0-9._@+%~-]+)-(?P<ms>[0-9]{1,15})\Z")
_KEY = re.compile(r"snapshots/(?P<date>\d{4}-\d{2}-\d{2})/(?P<id>memory-[^/]+-[0-9]{1,15})(?P<suffix>\.[^/]*)\Z")
_KEYS = re.compile(r"snapshots/(?P<date>\d{4}-\d{2}-\d{2})/(?P<id>memory-[^/]+-[0-9]{1,15})(?P<suffix>\.keys-[0-9]{4,}\.json)\Z")
_DELETION = re.compile(r"deletions/\d{4}-\d{2}-\d{2}/(?P<ms>[0-9]{1,15})-[0-9a-f]+\.json\Z")
_DRILL = re.compile(r"drills/(?P<id>memory-[^/]+)/(?P<ms>0|[1-9][0-9]{0,14})-(?P<outcome>proven|failed)\.json\Z")


@dataclass(frozen=True, slots=True)
class ScopeName:
    """A scope as its name tells it. `scope` is None where the name was shortened and only the manifest has it whole."""

    name: str
    scope: Scope | None


@dataclass(frozen=True, slots=True)
class SnapshotKey:
    """What a key below `snapshots/` says: which snapshot, and which of its objects (`.json`, `.json.zst`, `.manifest.json`)."""

    id: str
    scope_name: str
    timestamp: int
    suffix: str

    @property
    def is_manifest(self) -> bool:
        return self.suffix == MANIFEST_SUFFIX

    @property
    def is_keys(self) -> bool:
        return self.suffix.startswith(KEYS_SUFFIX)


@dataclass(frozen=True, slots=True)
class DrillKey:
    """What a key below `drills/` says: of which snapshot, when it ended, how."""

    id: str
    timestamp: int
    proven: bool


def encode_name(text: str) -> str:
    """Any text as a safe file name part; the inverse of `decode_name` while it is not longer than `MAX_NAME`."""
    if not text:
        return "%00"  # nothing else is encoded like this: a lone NUL, which Postgres text cannot hold, takes the shortened form
    encoded = _UNSAFE.sub(lambda m: b"%%%02X" % m[0][0], text.encode("utf-8", "surrogatepass")).decode("ascii")
    if encoded.startswith("."):
        encoded = "%2E" + encoded[1:]  # neither `..` nor a hidden file
    if len(encoded) <= MAX_NAME and text != "\0":
        return encoded
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_HEX]
    head = re.sub(r"%[0-9A-F]?\Z", "", encoded[: MAX_NAME - _HASH_HEX - 1])
    return f"{head}~{digest}"


def decode_name(name: str) -> str | None:
    """The text behind an encoded name, or None when the name was shortened, or is none that `encode_name` makes."""
    if name == "%00":
        return ""
    try:
        text = unquote_to_bytes(name).decode("utf-8", "surrogatepass")
    except UnicodeError:
        return None
    return text if encode_name(text) == name else None


def scope_name(scope: Scope) -> str:
    """`all`, the encoded uid, or `ws~` and the encoded workspace."""
    if scope.kind == "all":
        return "all"
    if scope.kind == "workspace":
        return "ws~" + encode_name(scope.value)
    return "%61ll" if scope.value == "all" else encode_name(scope.value)


def parse_scope_name(name: str) -> ScopeName:
    """The inverse of `scope_name`."""
    if name == "all":
        return ScopeName(name, EVERYBODY)
    if name.startswith("ws~"):
        value = decode_name(name.removeprefix("ws~"))
        return ScopeName(name, None if value is None else Scope.of_workspace(value))
    value = "all" if name == "%61ll" else decode_name(name)
    return ScopeName(name, None if value is None else Scope.user(value))


def snapshot_id(scope: Scope, timestamp: int) -> str:
    """`memory-uid_alice-1740621600000`; `timestamp` in milliseconds since the epoch."""
    return f"memory-{scope_name(scope)}-{timestamp}"


def parse_id(snapshot: str) -> tuple[str, int]:
    """(scope name, milliseconds) of an id, or `NotFound` when it cannot be one."""
    match = _ID.match(snapshot)
    if not match:
        raise NotFound(f"{snapshot!r} is not a snapshot id", hint="An id looks like memory-all-1740621600000; see `coldstore list`.")
    return match["scope"], int(match["ms"])


@lru_cache(maxsize=64)
def date_of(timestamp: int) -> str:
    """The UTC date of milliseconds since the epoch, `2026-02-26`."""
    return datetime.fromtimestamp(timestamp / 1000, UTC).strftime("%Y-%m-%d")


def folder_of(snapshot: str) -> str:
    try:
        return f"{SNAPSHOTS}{date_of(parse_id(snapshot)[1])}/"
    except (ValueError, OverflowError, OSError):
        raise NotFound(f"{snapshot!r} is not a snapshot id", hint="Its timestamp is out of range.") from None


def document_key(snapshot: str, suffix: str = "") -> str:
    """Key of the document; `suffix` is the codec's, `.gz` or `.zst`, and `.enc` when it is sealed."""
    return f"{folder_of(snapshot)}{snapshot}.json{suffix}"


def part_key(document: str, number: int) -> str:
    """Key of the `number`th part, from 1, of the document with this key."""
    return document if number == 1 else f"{document}.{number:04}"


def manifest_key(snapshot: str) -> str:
    return f"{folder_of(snapshot)}{snapshot}{MANIFEST_SUFFIX}"


def keys_key(snapshot: str, number: int) -> str:
    """Key of the `number`th object, from 1, that holds the snapshot's data key wrapped anew."""
    return f"{keys_prefix(snapshot)}{number:04}.json"


def keys_prefix(snapshot: str) -> str:
    return f"{folder_of(snapshot)}{snapshot}{KEYS_SUFFIX}"


def deletion_key(timestamp: int, nonce: str) -> str:
    return f"{DELETIONS}{date_of(timestamp)}/{timestamp}-{nonce}.json"


def parse_deletion_key(key: str) -> int:
    """The milliseconds in the name of a deletion record; 0 for a stranger's object."""
    match = _DELETION.match(key)
    return int(match["ms"]) if match else 0


def drill_key(snapshot: str, timestamp: int, *, proven: bool) -> str:
    parse_id(snapshot)
    return f"{DRILLS}{snapshot}/{timestamp}-{'proven' if proven else 'failed'}.json"


def parse_drill_key(key: str) -> DrillKey | None:
    """The inverse of `drill_key`, or None for a stranger's object."""
    match = _DRILL.match(key)
    return DrillKey(match["id"], int(match["ms"]), match["outcome"] == "proven") if match and _ID.match(match["id"]) else None


def parse_key(key: str) -> SnapshotKey | None:
    """What a key below `snapshots/` names, or None for a stranger's object."""
    # A user may be called `all-1740621600000.keys`: his snapshots are no keys of others'. Their dates tell them apart.
    return _parsed(_KEY.match(key)) or _parsed(_KEYS.match(key))


def _parsed(match: re.Match[str] | None) -> SnapshotKey | None:
    parts = match and _ID.match(match["id"])
    if not match or not parts:
        return None
    parsed = SnapshotKey(match["id"], parts["scope"], int(parts["ms"]), match["suffix"])
    try:
        return parsed if date_of(parsed.timestamp) == match["date"] else None
    except (ValueError, OverflowError, OSError):
        return None


def latest_key(scope: Scope) -> str:
    return f"{LATEST}{scope_name(scope)}.json"


def checkpoint_key(scope: Scope, label: str) -> str:
    return f"{CHECKPOINTS}{scope_name(scope)}/{encode_name(label)}.json"
