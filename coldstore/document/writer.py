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
    """Rows of one tier as they will stand in the document, joined by `,` and a newline, with their share of the tier's digest."""

    body: bytes
    rows: int
    digest: int


@dataclass(frozen=True, slots=True)
class PlainFrame:
    """A frame before its codec: `pieces` in a row are its bytes. `tier` is an array's name, None for the header."""

    tier: str | None
    rows: int
    pieces: tuple[bytes, ...]

    @property
    def size(self) -> int:
        return sum(map(len, self.pieces))


def batches(rows: Iterable[bytes], *, size: int) -> Iterator[RowBatch]:
    """Rows gathered until a batch has `size` bytes. A single larger row makes a larger batch; no batch is empty."""
    gathered: list[bytes] = []
    held = digest = 0
    for row in rows:
        gathered.append(row)
        digest += row_digest(row)
        held += len(row) + len(SEPARATOR)
        if held >= size:
            yield RowBatch(SEPARATOR.join(gathered), len(gathered), digest)
            gathered = []
            held = digest = 0
    if gathered:
        yield RowBatch(SEPARATOR.join(gathered), len(gathered), digest)


class DocumentWriter:
    """The order of a document: `header`, then for each array of `arrays` in turn `open`, `rows` any number of times, `close`.
    Small batches are put together until a frame has about `frame_size` bytes."""

    def __init__(self, arrays: Iterable[str], *, frame_size: int) -> None:
        self._arrays = list(arrays)
        self._frame_size = frame_size
        self._next = 0
        self._prefix = b""
        self._held: list[RowBatch] = []
        self._held_size = 0

    def header(self, header: Header) -> PlainFrame:
        return PlainFrame(None, 0, (encode_header(header) + SEPARATOR,))

    def open(self) -> None:
        self._prefix = msgspec.json.encode(self._arrays[self._next]) + b":[\n"

    def rows(self, batch: RowBatch) -> PlainFrame | None:
        """Take `batch`. Returns a frame of what was held, once that is full: by now it is known not to be the tier's end."""
        full = self._held and self._held_size + len(batch.body) > self._frame_size
        frame = self._frame(SEPARATOR) if full else None
        self._held.append(batch)
        self._held_size += len(batch.body)
        return frame

    def close(self) -> PlainFrame:
        """The tier's last frame."""
        end = b"]}\n" if self._next == len(self._arrays) - 1 else b"],\n"
        frame = self._frame(b"\n" + end if self._held else end)
        self._next += 1
        return frame

    def _frame(self, suffix: bytes) -> PlainFrame:
        pieces = [self._prefix] if self._prefix else []
        for number, batch in enumerate(self._held):
            pieces += [SEPARATOR, batch.body] if number else [batch.body]
        frame = PlainFrame(self._arrays[self._next], sum(b.rows for b in self._held), (*pieces, suffix))
        self._prefix = b""
        self._held = []
        self._held_size = 0
        return frame
