"""Rows into the lines and frames of a document. Pure: rows come in, frames go out, nothing is read or written here.

A document is a file of lines that is also one JSON object:

    {"format":"coldstore/1", …,          the header, in a frame of its own
    "dailyMemories":[                    opens a tier, at the start of the tier's first frame
    {…},                                 one row a line
    {…}
    ],                                   closes it, at the end of the tier's last frame; after the last tier it reads `]}`

Whether a row ends in a comma depends on whether another follows it anywhere in its tier. So `DocumentWriter` holds back one batch of
rows until it knows, and batches can be read by many connections that know nothing of one another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from coldstore.codec.digest import row_digest
from coldstore.document.model import Header, encode_header

SEPARATOR = b",\n"


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows of one tier as they will stand in the document, each followed by `,` and a newline, with their share of the tier's digest."""

    body: bytes
    rows: int
    digest: int


@dataclass(frozen=True, slots=True)
class PlainFrame:
    """A frame before its codec: `pieces` in a row are its bytes. `tier` is an array's name, None for the header; `last`: none follows."""

    tier: str | None
    rows: int
    pieces: tuple[bytes, ...]
    last: bool = False

    @property
    def size(self) -> int:
        return sum(map(len, self.pieces))


def deletion(array: str, key: bytes | memoryview) -> bytes:
    """The line that says that a row is gone. `key`: the JSON object of its primary key's columns."""
    return b"".join((b'{"array":', msgspec.json.encode(array), b',"key":', key, b"}"))


def batches(rows: Iterable[bytes | memoryview], *, size: int) -> Iterator[RowBatch]:
    """Rows gathered until a batch has `size` bytes. A single larger row makes a larger batch; no batch is empty."""
    gathered: list[bytes | memoryview] = []
    held = digest = 0
    for row in rows:
        gathered.append(row)
        digest += row_digest(row)
        held += len(row) + len(SEPARATOR)
        if held >= size:
            yield _batch(gathered, digest)
            gathered = []
            held = digest = 0
    if gathered:
        yield _batch(gathered, digest)


def _batch(gathered: list[bytes | memoryview], digest: int) -> RowBatch:
    return RowBatch(SEPARATOR.join([*gathered, b""]), len(gathered), digest)


def frame_edges(array: str, *, rows: int, opens: bool, closes: bool, ends: bool) -> tuple[bytes, bytes]:
    """What stands before and after the rows of a frame. `opens`, `closes`: it is the first, the last of its tier; `ends`: the last of the
    document."""
    opening = msgspec.json.encode(array) + b":[\n" if opens else b""
    return opening, (b"\n" if rows else b"") + (b"]}\n" if ends else b"],\n") if closes else SEPARATOR


class DocumentWriter:
    """The order of a document: `header`, then for each array of `arrays` in turn `open`, `rows` any number of times, `close`.
    Small batches are put together until a frame has about `frame_size` bytes."""

    def __init__(self, arrays: Iterable[str], *, frame_size: int) -> None:
        self._arrays = list(arrays)
        self._frame_size = frame_size
        self._next = 0
        self._opens = False
        self._held: list[RowBatch] = []
        self._held_size = 0

    def header(self, header: Header) -> PlainFrame:
        return PlainFrame(None, 0, (encode_header(header) + SEPARATOR,))

    def open(self) -> None:
        self._opens = True

    def rows(self, batch: RowBatch) -> PlainFrame | None:
        """Take `batch`. Returns a frame of what was held, once that is full: by now it is known not to be the tier's end."""
        full = self._held and self._held_size + len(batch.body) > self._frame_size
        frame = self._frame() if full else None
        self._held.append(batch)
        self._held_size += len(batch.body)
        return frame

    def close(self) -> PlainFrame:
        """The tier's last frame."""
        frame = self._frame(closes=True)
        self._next += 1
        return frame

    def _frame(self, *, closes: bool = False) -> PlainFrame:
        array = self._arrays[self._next]
        ends = closes and self._next == len(self._arrays) - 1
        rows = sum(b.rows for b in self._held)
        opening, closing = frame_edges(array, rows=rows, opens=self._opens, closes=closes, ends=ends)
        pieces = [opening] if opening else []
        pieces += [batch.body for batch in self._held]
        if closes:
            if self._held:  # nothing follows the last row
                pieces[-1] = pieces[-1].removesuffix(SEPARATOR)
            pieces.append(closing)
        self._opens = False
        self._held = []
        self._held_size = 0
        return PlainFrame(array, rows, tuple(pieces), ends)
