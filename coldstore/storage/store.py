"""What coldstore asks of a place that keeps objects, and nothing more.

A store holds immutable objects under `/`-separated keys below one root. The promises that every implementation keeps, and that
`tests/contract/` checks on real servers:

- `create` is create-only and atomic. Inside the `with` block nothing is visible; leaving it normally publishes the whole object or
  raises `ObjectExists`; leaving it by an exception, or dropping the writer, publishes nothing and leaves no upload behind.
  Of any number of racers on one key exactly one wins. An empty object is an object.
- `replace` is atomic and the only call that overwrites; pointers use it.
- After a return, `read`, `stat` and `list` see the object.
- A reply that was lost is not a conflict: an object that our own retried request made is recognised as ours.
- Every call retries what is worth retrying a bounded number of times and then raises a `StoreError`. Callers never retry.

Errors of the libraries beneath never leave `storage/`.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from coldstore.errors import InvalidKey


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object: its key below the store's root and its size in bytes."""

    key: str
    size: int


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

    def create(self, key: str) -> AbstractContextManager[ObjectWriter]:
        """A writer for a new object. Raises `ObjectExists` when the block ends, or earlier, if `key` is taken."""
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
        """Remove the object; one that is not there is no error."""
        ...

    def path(self, key: str) -> str:
        """Where a person finds the object: an absolute local path, or `s3://bucket/prefix/key`."""
        ...

    def close(self) -> None:
        """Let go of connections and threads."""
        ...


def check_key(key: str) -> str:
    """`key` itself, or `InvalidKey` if it could name something outside the root or a temporary file of ours."""
    segments = key.split("/")
    if not key or "\0" in key or any(s in {"", ".", ".."} for s in segments) or segments[-1].startswith(".tmp-"):
        raise InvalidKey(f"{key!r} is not a usable object key", hint="Keys are relative and have no empty, '.' or '..' part.", key=key)
    return key
