"""Documents that other programs wrote: any JSON object whose arrays hold the rows, pretty-printed or not. Pure.

The text is cut, not parsed: a scanner follows strings and brackets and hands out each object that stands directly in an array of the
top level, as the bytes it was written in, so numbers keep their digits and memory stays bounded by the largest row. What remains, the
`skeleton` with every such object replaced by `0`, is a small JSON object with the document's own members.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from coldstore.document.reader import LONGEST_ROW
from coldstore.errors import CorruptDocument, TruncatedDocument

_OUTSIDE = re.compile(rb'["{}\[\]]')
_INSIDE = re.compile(rb'["\\]')
_ARRAY, _ROW = 2, 3  # nesting depth inside a top-level array, and inside one of its objects
_MAX_DEPTH = 10_000
_MAX_OUTSIDE = 256 << 20  # bytes of the skeleton, of which each row takes two


@dataclass(slots=True)
class _Scanner:
    """State between two chunks. `text` starts at the last byte not yet handed out; `at` is where scanning goes on."""

    text: bytearray = field(default_factory=bytearray)
    at: int = 0
    depth: int = 0
    string_from: int = -1
    array: str | None = None
    last_string: bytes = b""
    stack: bytearray = field(default_factory=bytearray)
    skeleton: bytearray = field(default_factory=bytearray)

    def feed(self, chunk: bytes) -> Iterator[tuple[str, bytes]]:
        self.text += chunk
        if len(self.text) > LONGEST_ROW:
            raise CorruptDocument("the document has an object or a string that is longer than any row can be")
        while True:
            if self.string_from >= 0:
                if not self._string():
                    return
                continue
            match = _OUTSIDE.search(self.text, self.at)
            if not match:
                self.at = len(self.text)
                self._flush(self.at)
                return
            yield from self._mark(match[0], match.start())

    def _string(self) -> bool:
        """Go on inside a string; True when its end was found."""
        match = _INSIDE.search(self.text, self.at)
        if not match:
            self.at = len(self.text)
            return False
        if match[0] == b"\\":
            if match.end() >= len(self.text):
                self.at = match.start()
                return False
            self.at = match.end() + 1
            return True
        self.at = match.end()
        if self.depth == 1:
            self.last_string = bytes(self.text[self.string_from : self.at])
        self.string_from = -1
        return True

    def _mark(self, mark: bytes, start: int) -> Iterator[tuple[str, bytes]]:
        self.at = start + 1
        if mark == b'"':
            self.string_from = start
        elif mark in b"{[":
            if self.depth == 1 and mark == b"[":
                self.array = _name(self.last_string)
            elif self.depth == _ARRAY and self.array is not None and mark == b"{":
                self._flush(start)
                self.at = 1
            self.stack += mark
            self.depth += 1
            if self.depth > _MAX_DEPTH:
                raise CorruptDocument("the document is nested too deeply")
        else:
            if not self.stack or self.stack[-1] + 2 != mark[0]:
                raise CorruptDocument("the document's brackets do not match: it is not JSON")
            self.stack.pop()
            self.depth -= 1
            if self.depth == _ARRAY and self.array is not None and mark == b"}":
                row = bytes(self.text[: self.at])
                del self.text[: self.at]
                self.at = 0
                self.skeleton += b"0"
                yield self.array, row
            elif self.depth == 1:
                self.array = None

    def _flush(self, end: int) -> None:
        """Move what lies outside rows, up to `end`, to the skeleton."""
        inside_row = self.array is not None and self.depth >= _ROW
        if inside_row or self.string_from >= 0:
            return
        self.skeleton += self.text[:end].strip() if self.array else self.text[:end]
        del self.text[:end]
        self.at = 0
        if len(self.skeleton) > _MAX_OUTSIDE:
            raise CorruptDocument(f"the document has more than {_MAX_OUTSIDE >> 20} MiB outside of its rows")


def _name(quoted: bytes) -> str | None:
    try:
        return str(msgspec.json.decode(quoted))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def split(chunks: Iterable[bytes], *, skeleton: dict[str, Any] | None = None) -> Iterator[tuple[str, bytes]]:
    """(array name, row) for every object directly inside a top-level array. When the document ends, `skeleton` is filled with its
    other members. Raises `CorruptDocument` for what is not a JSON object, `TruncatedDocument` for one that stops halfway."""
    scanner = _Scanner()
    for chunk in chunks:
        yield from scanner.feed(chunk)
    if scanner.depth or scanner.string_from >= 0:
        raise TruncatedDocument("the document ends too early", hint="The file is cut off.")
    scanner.skeleton += scanner.text
    try:
        found = msgspec.json.decode(bytes(scanner.skeleton).removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise CorruptDocument(f"the document is not JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise CorruptDocument("the document is not a JSON object")
    if skeleton is not None:
        skeleton.update(found)
