"""Every error coldstore raises on purpose, as one tree.

Each carries what a program needs as fields (`op`, `key`, `hint`) and one clear sentence as its text; the command line prints the
sentence and the hint and exits with `exit_code`. Errors of third parties are translated into these at the edge where they arise
(`postgres/connect.py`, `storage/`), always `from` the original. No message ever holds a secret: `redact` is applied at the base.

    ColdStoreError                       exit
    ├── ConfigError                        2   the configuration or the command line is wrong
    ├── DatabaseError                      3   the source or target database said no
    │   ├── DatabaseUnreachable                no server, no such database, wrong password
    │   ├── TableMissing                       a tier's table is not there
    │   ├── PermissionDenied                   the role may not do it
    │   └── RowSecurityActive                  a policy would have filtered rows
    ├── StoreError                         4   the object store said no
    │   ├── StoreUnavailable                   gave up after the retries
    │   ├── BucketMissing
    │   ├── AccessDenied
    │   ├── InvalidKey                         a key that would leave its folder
    │   ├── ObjectExists                       create-only, and it is there
    │   ├── ObjectMissing
    │   ├── ObjectLocked                       kept from deletion until a date, or by a hold
    │   ├── RetentionRefused                   a place that cannot keep an object from deletion was asked to
    │   ├── StoreFull                          disk or quota
    │   └── QuotaExceeded                      what one agent may keep is used up; nothing was written
    ├── DocumentError                      5   what was read is not what was written
    │   ├── CorruptDocument
    │   ├── TruncatedDocument
    │   ├── CorruptManifest
    │   ├── ChainBroken                        what an incremental snapshot is built on is gone, damaged or another
    │   └── UnsupportedFormat                  written by a newer coldstore, or by nobody we know
    ├── NotFound                           6   no such snapshot, uid, workspace or tier
    ├── RestoreRefused                     7   the target would be harmed, so nothing was done
    │   ├── TargetNotEmpty
    │   ├── SchemaMismatch                     a column, type or table that the target lacks
    │   └── RestoreConflict                    a row that belongs to somebody else, or is there already
    ├── ContentMismatch                    8   after loading, the content was not the snapshot's
    ├── VerifyFailed                       9   `verify` found damage, or a drill did not prove its snapshot
    ├── KeyRingError                      10   the key that seals or opens snapshots cannot be used
    │   ├── KeyMissing                         what it was sealed for is not configured
    │   ├── WrongKey                           it is configured, and does not open this
    │   ├── KeyRetired                         it was rotated away, disabled or deleted
    │   └── KeyRingUnavailable                 the KMS cannot be reached, or denies access
    ├── PruneIncomplete                   12   something that was to be deleted is still there
    ├── SuspectSnapshot                   13   it is stored, but has so few rows that somebody should look first
    ├── DoctorFailed                      14   `doctor` found a promise that is not kept
    ├── FolderError                       15   a folder of files cannot be read, or not be put in its place
    ├── ChainRefused                      16   a chain of snapshots cannot be continued, made into one, or lose this one
    ├── InvalidMemory                     17   what an agent wants to keep would not come back as it is
    └── SignatureError                    11   who wrote it is not who must have
        ├── SignatureMissing                   one is required, and there is none
        ├── SignatureUntrusted                 by a key that is not among the trusted ones
        └── SignatureInvalid                   it does not fit what it signs
"""

from __future__ import annotations

import re

# A password may hold any of `@/:?#"'`, so it ends at the last `@` before a space; a user's name may hold `@` as well.
_USERINFO = re.compile(r"(?<![a-z0-9+.-])(?P<start>[a-z0-9+.-]+://[^/\s:]*):\S*@(?P<host>[^@\s/]*)", re.IGNORECASE)
_HEADER = re.compile(r"(?P<name>authorization[\"']?\s*[=:]\s*)[^\r\n]+|(?P<scheme>\bbearer\s+)\S+", re.IGNORECASE)
# Also within a longer name (`PGPASSWORD`, `client_secret`) and in JSON or a dict's text. Without quotes a value ends at a space that no
# backslash stands before, as in a connection string: rather too much is hidden than the end of a password shown.
_ASSIGNED = re.compile(
    r"(?P<name>(?:password|passwd|pwd|passfile|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|x-(?:amz|goog)-signature)"
    r"[\"']?\s*[=:]\s*)(?:'(?:[^'\\]|\\.)*(?:'|\\?\Z)|\"(?:[^\"\\]|\\.)*(?:\"|\\?\Z)|(?:\\.|[^\s\\]|\\\Z)+)",
    re.IGNORECASE | re.DOTALL,
)

# An entry of a key file, which somebody took for a path or a ring's name.
_KEY_ENTRY = re.compile(r"(?P<name>coldstore-(?:signing-)?key-\d+:)\S+")


def redact(text: str) -> str:
    """`text` with `***` in the place of every password of a URL or a `name=value` pair, of what an `Authorization` header says, and of
    every key of coldstore's own."""
    text = _USERINFO.sub(lambda m: f"{m['start']}:***@{m['host']}", text)
    text = _HEADER.sub(lambda m: f"{m['name'] or m['scheme']}***", text)
    text = _KEY_ENTRY.sub(lambda m: f"{m['name']}***", text)
    return _ASSIGNED.sub(lambda m: f"{m['name']}***", text)


class ColdStoreError(Exception):
    """Base of all. `str(error)` is one sentence; `hint` says what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, op: str | None = None, key: str | None = None) -> None:
        super().__init__(redact(message))
        self.hint = redact(hint) if hint else None
        self.op = op
        self.key = key

    @property
    def code(self) -> str:
        """A stable name for programs: the class name, `TargetNotEmpty`."""
        return type(self).__name__

    def as_dict(self) -> dict[str, str | int | None]:
        """What `--json` prints: `{error, message, hint, op, key, exitCode}`."""
        return {
            "error": self.code,
            "message": str(self),
            "hint": self.hint,
            "op": self.op,
            "key": self.key,
            "exitCode": self.exit_code,
        }


class ConfigError(ColdStoreError):
    exit_code = 2


class DatabaseError(ColdStoreError):
    exit_code = 3


class DatabaseUnreachable(DatabaseError):
    pass


class TableMissing(DatabaseError):
    pass


class PermissionDenied(DatabaseError):
    pass


class RowSecurityActive(DatabaseError):
    pass


class StoreError(ColdStoreError):
    exit_code = 4


class StoreUnavailable(StoreError):
    pass


class BucketMissing(StoreError):
    pass


class AccessDenied(StoreError):
    pass


class InvalidKey(StoreError):
    pass


class ObjectExists(StoreError):
    pass


class ObjectMissing(StoreError):
    pass


class ObjectLocked(StoreError):
    pass


class RetentionRefused(StoreError):
    pass


class StoreFull(StoreError):
    pass


class QuotaExceeded(StoreError):
    pass


class DocumentError(ColdStoreError):
    exit_code = 5


class CorruptDocument(DocumentError):
    pass


class TruncatedDocument(DocumentError):
    pass


class CorruptManifest(DocumentError):
    pass


class ChainBroken(DocumentError):
    pass


class UnsupportedFormat(DocumentError):
    pass


class NotFound(ColdStoreError):
    exit_code = 6


class RestoreRefused(ColdStoreError):
    exit_code = 7


class TargetNotEmpty(RestoreRefused):
    pass


class SchemaMismatch(RestoreRefused):
    pass


class RestoreConflict(RestoreRefused):
    pass


class ContentMismatch(ColdStoreError):
    exit_code = 8


class VerifyFailed(ColdStoreError):
    exit_code = 9


class KeyRingError(ColdStoreError):
    exit_code = 10


class KeyMissing(KeyRingError):
    pass


class WrongKey(KeyRingError):
    pass


class KeyRetired(KeyRingError):
    pass


class KeyRingUnavailable(KeyRingError):
    pass


class PruneIncomplete(ColdStoreError):
    exit_code = 12


class SuspectSnapshot(ColdStoreError):
    exit_code = 13


class DoctorFailed(ColdStoreError):
    exit_code = 14


class FolderError(ColdStoreError):
    exit_code = 15


class ChainRefused(ColdStoreError):
    exit_code = 16


class InvalidMemory(ColdStoreError):
    exit_code = 17


class SignatureError(ColdStoreError):
    exit_code = 11


class SignatureMissing(SignatureError):
    pass


class SignatureUntrusted(SignatureError):
    pass


class SignatureInvalid(SignatureError):
    pass
