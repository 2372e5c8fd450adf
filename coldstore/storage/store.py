"""What coldstore asks of a place that keeps objects, and nothing more.

A store holds immutable objects under `/`-separated keys below one root. The promises that every implementation keeps, and that
`tests/contract/` checks on real servers:

- `create` is create-only and atomic. Inside the `with` block nothing is visible; leaving it normally publishes the whole object or
  raises `ObjectExists`; leaving it by an exception, or dropping the writer, publishes nothing and leaves no upload behind.
  Of any number of racers on one key exactly one wins. An empty object is an object.
- `replace` is atomic and the only call that overwrites; pointers use it.
- After a return, `read`, `stat` and `list` see the object.
- A reply that was lost is not a conflict: an object that our own retried request made is recognised as ours.
- Where `enforces_retention`, an object made with `retain` is locked from the first moment it can be seen, by the request that makes it, and
  `delete` neither removes nor hides it before its time. What `replace` writes is never locked.
- Every call retries what is worth retrying a bounded number of times and then raises a `StoreError`. Callers never retry.

Errors of the libraries beneath never leave `storage/`.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol, runtime_checkable

from coldstore.errors import InvalidKey

RetainMode = Literal["governance", "compliance"]


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object: its key below the store's root and its size in bytes."""

    key: str
    size: int


@dataclass(frozen=True, slots=True)
class Retention:
    """Until when an object may be neither deleted nor overwritten, to the whole second of UTC, and who is held to that.

    governance: all but those whom the store's owner allows to lift the lock. compliance: everybody; nobody can shorten it.
    """

    until: datetime
    mode: RetainMode

    def __post_init__(self) -> None:
        if self.until.utcoffset() != timedelta(0) or self.until.microsecond:
            raise ValueError("a retention ends at a whole second of UTC")
        if self.mode not in {"governance", "compliance"}:
            raise ValueError("a retention is in governance or in compliance mode")


class ObjectWriter(Protocol):
    """An object in the making; published when the `with` block of `Store.create` ends normally."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`. It may be kept after the call returns (uploads run behind), so the caller must not change it."""
        ...


class Store(Protocol):
    """See the module's text for what is atomic and what is retried. All methods may be called from several threads at once."""

    @property
    def url(self) -> str:
        """The root as a person would write it, without credentials: `s3://bucket/prefix`, `file:///var/coldstore`."""
        ...

    @property
    def enforces_retention(self) -> bool:
        """Whether the store itself keeps what `create` was told to retain. Where it does not (a disk, other file systems), `retain` is
        accepted and changes nothing: the date stands in the manifest, and coldstore alone honours it."""
        ...

    def create(self, key: str, *, retain: Retention | None = None) -> AbstractContextManager[ObjectWriter]:
        """A writer for a new object. Raises `ObjectExists` when the block ends, or earlier, if `key` is taken, and `RetentionRefused` if
        the place could lock objects but this bucket does not."""
        ...

    def replace(self, key: str, data: bytes) -> None:
        """Write `data` under `key`, whatever was there."""
        ...

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from `start` (to the end when None; fewer when the object ends). Raises `ObjectMissing`."""
        ...

    def stat(self, key: str) -> ObjectInfo:
        """Raises `ObjectMissing`."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every published object whose key starts with `prefix` (a string prefix, not a folder), in byte order of the keys."""
        ...

    def folders(self, prefix: str = "") -> builtins.list[str]:
        """The next path segments below the folder `prefix` (which ends in `/` or is empty), sorted: what `ls` shows as folders."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; one that is not there is no error. Raises `ObjectLocked` if the store keeps it."""
        ...

    def path(self, key: str) -> str:
        """Where a person finds the object: an absolute local path, or `s3://bucket/prefix/key`."""
        ...

    def close(self) -> None:
        """Let go of connections and threads."""
        ...


@runtime_checkable
class Sweeps(Protocol):
    """A store in which a killed writer leaves something that no listing shows: a temporary file, an upload."""

    def sweep(self, *, before: datetime, dry_run: bool = False) -> builtins.list[str]:
        """Remove what was last written to before `before`, or with `dry_run` only tell: where each is. One that cannot be removed stops no
        other; the first such error is raised at the end."""
        ...


def check_key(key: str) -> str:
    """`key` itself, or `InvalidKey` if it could name something outside the root or a temporary file of ours."""
    segments = key.split("/")
    if not key or "\0" in key or any(s in {"", ".", ".."} for s in segments) or segments[-1].startswith(".tmp-"):
        raise InvalidKey(f"{key!r} is not a usable object key", hint="Keys are relative and have no empty, '.' or '..' part.", key=key)
    return key
