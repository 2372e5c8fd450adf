"""Frames through their codec, in parallel and in order. No I/O: what is read and where it goes is the caller's."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from coldstore.codec import digest
from coldstore.codec.compress import Codec
from coldstore.codec.seal import DataKey
from coldstore.document.model import Frame
from coldstore.document.writer import PlainFrame
from coldstore.errors import CorruptDocument, TruncatedDocument

In = TypeVar("In")
Out = TypeVar("Out")


def ordered_map(work: Callable[[In], Out], items: Iterable[In], *, workers: int) -> Generator[Out]:
    """`map(work, items)` on `workers` threads, at most one item more than that in flight; results keep the order. Closing the
    iterator early waits for what is in flight and starts nothing more."""
    if workers < 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="coldstore-map") as pool:
        waiting: deque[Future[Out]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """A frame as it will be stored, and what the manifest says about it except its offset."""

    plain: PlainFrame
    pieces: tuple[bytes, ...]
    length: int
    crc32c: str
    sha256: str


def encode(frame: PlainFrame, codec: Codec, data_key: DataKey | None = None, *, number: int = 0) -> StoredFrame:
    """Compress, seal and sum one frame, the `number`th of its document; the inverse is `decode`."""
    pieces = tuple(codec.encode(frame.pieces))
    if data_key is not None:
        pieces = (data_key.seal(pieces, number=number, last=frame.last),)
    return StoredFrame(frame, pieces, sum(map(len, pieces)), digest.crc32c(pieces), digest.sha256(pieces))


def check(stored: bytes, frame: Frame, *, key: str) -> None:
    """Nothing, if these are the stored bytes of a frame of the document `key`. Raises `TruncatedDocument` or `CorruptDocument`."""
    if len(stored) < frame.length:
        raise TruncatedDocument(f"{key} ends at {frame.offset + len(stored)}, inside a frame", key=key, hint="The document is cut off.")
    if digest.crc32c([stored]) != frame.crc32c or digest.sha256([stored]) != frame.sha256:
        raise CorruptDocument(
            f"{key} is damaged between byte {frame.offset} and {frame.offset + frame.length}",
            key=key,
            hint="Nothing was restored from it. Use another snapshot; `coldstore verify --all --deep` shows which are whole.",
        )


def decode(
    stored: bytes, frame: Frame, codec: Codec, data_key: DataKey | None = None, *, key: str, number: int = 0, last: bool = False
) -> bytes:
    """The plain bytes of the `number`th frame of the document `key`, after every check that the manifest allows; a sealed one opens
    nowhere else. Raises `TruncatedDocument` or `CorruptDocument`."""
    check(stored, frame, key=key)
    if data_key is not None:
        stored = data_key.open(stored, number=number, last=last, key=key)
    return codec.decode(stored, frame.plain, key=key)


class DocumentSums:
    """What the manifest says of a whole document, gathered frame by frame in order."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.plain_bytes = self.stored_bytes = 0
        self._plain = hashlib.sha256()
        self._stored = hashlib.sha256()
        self._same = True

    def add(self, frame: StoredFrame) -> None:
        self._same = self._same and frame.pieces is frame.plain.pieces
        for piece in frame.plain.pieces:
            self._plain.update(piece)
        size = frame.plain.size
        if not self._same:
            for piece in frame.pieces:
                self._stored.update(piece)
        self.frames.append(
            Frame(
                tier=frame.plain.tier,
                rows=frame.plain.rows,
                offset=self.stored_bytes,
                length=frame.length,
                plain=size,
                crc32c=frame.crc32c,
                sha256=frame.sha256,
            )
        )
        self.plain_bytes += size
        self.stored_bytes += frame.length

    @property
    def plain_sha256(self) -> str:
        return self._plain.hexdigest()

    @property
    def stored_sha256(self) -> str:
        return self._plain.hexdigest() if self._same else self._stored.hexdigest()
