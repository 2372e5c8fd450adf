"""One document as several objects, for places that take no large ones: byte ranges of what is stored, one after the other.

The first part has the document's own key, the others that key and `.0002`, `.0003`, … A part is published when it is full. The document
exists once its manifest, which has the parts' sizes, is there: until then parts are orphans, and whoever gives up removes those he made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from coldstore.errors import ColdStoreError
from coldstore.storage import layout
from coldstore.storage.store import ObjectWriter, Retention, Store


class Readable(Protocol):
    """The one thing of a store that reading a document needs."""

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes: ...


def read(store: Readable, sizes: Mapping[str, int], *, start: int, length: int) -> bytes:
    """A range of the parts taken together, whose keys and sizes are given in order; shorter where one of them is."""
    if len(sizes) == 1:
        return store.read(next(iter(sizes)), start=start, length=length)
    pieces = []
    for key, size in sizes.items():
        if start < size and length > 0:
            piece = store.read(key, start=start, length=min(length, size - start))
            pieces.append(piece)
            length -= size - start
            start = size
        start -= size
    return b"".join(pieces)


class create:  # noqa: N801 - it reads as `Store.create` does, and promises the same of every part
    """A document in the making. `limit`: bytes of the largest object; None, and there is one of any size. `sizes`: those of the parts, once
    the block has ended. Raises `ObjectExists` when a part's name is taken."""

    def __init__(self, store: Store, key: str, *, limit: int | None = None, retain: Retention | None = None) -> None:
        self.sizes: list[int] = []
        self._store, self._key, self._limit, self._retain = store, key, limit, retain
        self._published: list[str] = []
        self._part: contextlib.AbstractContextManager[ObjectWriter] | None = None
        self._out: ObjectWriter

    def __enter__(self) -> Self:
        self._open()
        return self

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._limit is None:
            self._append(data)
            return
        view = memoryview(data)
        while view:
            if self.sizes[-1] == self._limit:
                self._publish()
                self._open()
            room = self._limit - self.sizes[-1]
            self._append(view[:room])
            view = view[room:]

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._publish()
            elif self._part is not None:
                part, self._part = self._part, None
                part.__exit__(kind, exc, trace)
        except BaseException:
            self._discard()
            raise
        if kind is not None:
            self._discard()

    def _open(self) -> None:
        part = self._store.create(layout.part_key(self._key, len(self.sizes) + 1), retain=self._retain)
        self._out = part.__enter__()
        self._part = part
        self.sizes.append(0)

    def _append(self, data: bytes | bytearray | memoryview) -> None:
        self._out.write(data)
        self.sizes[-1] += len(data)

    def _publish(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            part.__exit__(None, None, None)
            self._published.append(layout.part_key(self._key, len(self.sizes)))

    def _discard(self) -> None:
        for key in self._published:
            with contextlib.suppress(ColdStoreError):  # locked, or the store is away: an orphan, which is swept in its time
                self._store.delete(key)
