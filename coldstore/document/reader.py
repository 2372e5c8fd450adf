"""Lines and frames of a document back into rows: the inverse of `writer.py`. Pure.

Our own documents are read line by line; no JSON parser sees more than one row. A document of another program, pretty-printed
or not, is cut into its rows by `foreign.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from coldstore.document.model import Header, decode_header
from coldstore.document.writer import SEPARATOR, frame_edges
from coldstore.errors import CorruptDocument, TruncatedDocument, UnsupportedFormat

#: No row is longer: Postgres makes no text of more bytes. What goes on longer would fill the memory.
LONGEST_ROW = 1 << 30
_BRACE, _COMMA = b"{,"
_CLOSERS = (b"]", b"],", b"]}")


def frame_rows(plain: bytes) -> Iterator[bytes]:
    """The rows of one decoded frame of rows, without commas and without the lines that open and close the tier."""
    return iter(cut_frame(plain)[0])


def cut_frame(plain: bytes) -> tuple[list[bytes], int]:
    """The same, and the number of line breaks."""
    rows: list[bytes] = []
    add, find = rows.append, plain.find
    start = breaks = 0
    while start < len(plain):
        end = find(b"\n", start)
        if end < 0:
            end = len(plain)
        else:
            breaks += 1
        if plain[start] == _BRACE:
            add(plain[start : end - 1] if plain[end - 1] == _COMMA else plain[start:end])
        start = end + 1
    return rows, breaks


def is_frame_of(plain: bytes, rows: Sequence[bytes], breaks: int, array: str, *, opens: bool, closes: bool, ends: bool) -> bool:
    """Whether `plain` is what `DocumentWriter` writes of `rows`, which `cut_frame` cut out of it with so many line breaks: nothing more,
    nothing less. Sizes and line breaks tell; to write it again for comparing would take longer than everything else."""
    opening, closing = frame_edges(array, rows=len(rows), opens=opens, closes=closes, ends=ends)
    between = len(SEPARATOR) * max(0, len(rows) - 1)
    lines = opening.count(b"\n") + max(0, len(rows) - 1) + closing.count(b"\n")
    return (
        len(plain) == len(opening) + sum(map(len, rows)) + between + len(closing)
        and breaks == lines
        and plain.startswith(opening)
        and plain.endswith(closing)
    )


def matching_rows(plain: bytes, needle: bytes) -> Iterator[bytes]:
    """Only those rows of a frame that contain `needle`; the others are never cut out."""
    at = plain.find(needle)
    while at >= 0:
        start = plain.rfind(b"\n", 0, at) + 1
        end = plain.find(b"\n", at)
        end = len(plain) if end < 0 else end
        yield from frame_rows(plain[start:end])
        at = plain.find(needle, end)


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines without their newline; the last may lack one. Raises `CorruptDocument` for one that does not end."""
    rest: list[bytes] = []
    size = 0
    for chunk in chunks:
        first, *more = chunk.split(b"\n")
        rest.append(first)
        size = len(more[-1]) if more else size + len(first)
        for line in more:
            yield b"".join(rest)
            rest = [line]
        if size > LONGEST_ROW:
            raise CorruptDocument("the document has a line that is longer than any row can be", hint="Use another snapshot.")
    if last := b"".join(rest):
        yield last


def read_header(line: bytes, *, key: str | None = None) -> Header:
    """The header from a document's first line. Raises `CorruptDocument` or `UnsupportedFormat`."""
    try:
        return decode_header(line.removesuffix(b","))
    except UnsupportedFormat as exc:
        raise UnsupportedFormat(f"{key or 'the document'}: {exc}", hint=exc.hint, key=key) from exc
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise CorruptDocument(f"the header of {key or 'the document'} cannot be read: {exc}", key=key) from exc


def read_rows(rest: Iterator[bytes], arrays: list[str], *, key: str | None = None) -> Iterator[tuple[str, bytes]]:
    """(array, row) for the lines after the header, checking that the document has the shape that was written and is not cut off."""
    openers = {msgspec.json.encode(name) + b":[": name for name in arrays}
    current: str | None = None
    ended = comma = seen = False
    for line in rest:
        if ended:
            raise CorruptDocument(f"{key or 'the document'} goes on after its end", key=key)
        if current is None:
            current = openers.pop(line, None)
            if current is None:
                raise CorruptDocument(f"{key or 'the document'} has an unexpected line {line[:40]!r}", key=key)
            comma, seen = True, False
        elif line in _CLOSERS and not (comma and seen):
            ended = line == b"]}"
            current = None
        elif line[:1] == b"{" and comma:
            comma, seen = line[-1:] == b",", True
            yield current, line[:-1] if comma else line
        else:
            raise CorruptDocument(f"{key or 'the document'} has an unexpected line {line[:40]!r}", key=key)
    if not ended:
        raise TruncatedDocument(f"{key or 'the document'} ends too early", key=key, hint="The file is cut off; use another snapshot.")
    if openers:
        raise CorruptDocument(f"{key or 'the document'} lacks the array {next(iter(openers.values()))!r}", key=key)
