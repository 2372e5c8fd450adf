"""Which bytes of a document a request asks for, and whether it has them already: RFC 9110, sections 13 and 14, as far as one range goes.

Pure. What cannot be understood, another unit, and several ranges at once are answered with the whole, as the standard allows.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

_RANGE = re.compile(r"bytes[ \t]*=[ \t]*(?P<first>[0-9]{0,999})-(?P<last>[0-9]{0,999})[ \t]*\Z", re.IGNORECASE | re.ASCII)
_TAG = re.compile(r'(?:W/)?"[^"]*"')


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes from `start` to before `stop` of `size`."""

    start: int
    stop: int
    size: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def content_range(self) -> str:
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"


class Unsatisfiable(ValueError):
    """A range that begins where the document has ended."""


def entity_tag(sha256: str) -> str:
    """The strong tag of content with this hash."""
    return f'"{sha256}"'


def is_known(if_none_match: str | None, tag: str) -> bool:
    """Whether the client has what carries `tag`, by its `If-None-Match`: 304 is the answer."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or tag in (t.removeprefix("W/") for t in _TAG.findall(if_none_match))


def wanted(header: str | None, if_range: str | None, *, tag: str, size: int) -> Span | None:
    """The part that `Range` asks for; None for the whole. Raises `Unsatisfiable`. An `If-Range` that is not this very tag takes the whole;
    so does a date, for documents have no date of change."""
    match = _RANGE.match(header.strip()) if header is not None else None
    if match is None or (if_range is not None and if_range.strip() != tag):
        return None
    first, last = match["first"], match["last"]
    if not first:
        return _suffix(last, size)
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise Unsatisfiable
    return Span(int(first), min(int(last) + 1, size) if last else size, size)


def _suffix(last: str, size: int) -> Span | None:
    if not last:
        return None
    if not int(last) or not size:
        raise Unsatisfiable
    return Span(max(0, size - int(last)), size, size)


def pieces(lengths: Sequence[int], span: Span, frame: Callable[[int], bytes]) -> Iterator[Callable[[], bytes]]:
    """Work that gives the bytes of `span`, a call for each frame that it touches; the others are not looked at. `lengths`: theirs."""
    ends = list(accumulate(lengths))
    for number in range(bisect_right(ends, span.start), len(ends)):
        begins = ends[number] - lengths[number]
        if begins >= span.stop:
            return
        if lengths[number]:
            cut = slice(max(0, span.start - begins), span.stop - begins)
            yield lambda number=number, cut=cut: frame(number)[cut]  # type: ignore[misc]
