"""Compression of one frame, and its inverse. Pure.

Each frame is a whole gzip member or zstd frame of its own, so frames are made and read independently, and the file they form
together is still an ordinary `.gz` or `.zst`. A reader never produces more than the size it was promised: a bomb is an error.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal, cast

import zstandard
from isal import isal_zlib

from coldstore.errors import ConfigError, CorruptDocument, TruncatedDocument

Name = Literal["none", "gzip", "zstd"]

#: What each codec adds to the document's name.
SUFFIXES: dict[str, str] = {"none": "", "gzip": ".gz", "zstd": ".zst"}
#: Fast levels: memory is text that compresses well at once, and little better with patience.
DEFAULT_LEVELS: dict[str, int] = {"none": 0, "gzip": 1, "zstd": 1}
_LEVELS: dict[str, range] = {"none": range(1), "gzip": range(4), "zstd": range(1, 20)}
_GZIP_WBITS = 31  # a gzip header and trailer around the deflate stream, with no time stamp in it
_STREAM_STEP = 1 << 20
_GZIP_ERRORS: Any = (isal_zlib.error, zlib.error)
# libzstd refuses larger windows by default as well; levels up to 19 stay within 8 MiB.
_ZSTD_WINDOW = 1 << 27


@dataclass(frozen=True, slots=True)
class Codec:
    """A codec and its level; `level` None is the codec's default."""

    name: Name = "none"
    level: int | None = None

    def __post_init__(self) -> None:
        if self.name not in SUFFIXES:
            raise ConfigError(f"compression {self.name!r} is not known", hint="Use none, gzip or zstd.")
        if self.level is not None and self.level not in _LEVELS[self.name]:
            allowed = _LEVELS[self.name]
            raise ConfigError(f"{self.name} has no level {self.level}", hint=f"Levels are {allowed.start} to {allowed.stop - 1}.")

    @property
    def suffix(self) -> str:
        return SUFFIXES[self.name]

    def _level(self) -> int:
        return DEFAULT_LEVELS[self.name] if self.level is None else self.level

    def encode(self, pieces: Sequence[bytes]) -> Sequence[bytes]:
        """The stored form of one frame whose plain bytes are `pieces` in a row."""
        if self.name == "none":
            return pieces
        if self.name == "zstd":  # in one call: a stream would copy everything through its window first, a third of the whole time
            whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            return (zstandard.ZstdCompressor(level=self._level()).compress(whole),)
        machine: Any = isal_zlib.compressobj(self._level(), isal_zlib.DEFLATED, _GZIP_WBITS)
        return [*(machine.compress(piece) for piece in pieces), machine.flush()]

    def decode(self, stored: bytes, plain_size: int, *, key: str | None = None) -> bytes:
        """The plain bytes of one frame: exactly `plain_size`, or `CorruptDocument`."""
        if self.name == "none":
            plain = stored
        elif self.name == "gzip":
            plain = _gunzip(stored, plain_size, key)
        else:
            plain = _unzstd(stored, plain_size, key)
        if len(plain) != plain_size:
            raise CorruptDocument(f"a frame holds {len(plain)} bytes where the manifest says {plain_size}", key=key)
        return plain


def _gunzip(stored: bytes, plain_size: int, key: str | None) -> bytes:
    machine = isal_zlib.decompressobj(_GZIP_WBITS)
    try:
        plain: bytes = machine.decompress(stored, plain_size + 1)
    except _GZIP_ERRORS as exc:
        raise CorruptDocument(f"a gzip frame cannot be decompressed: {exc}", key=key) from exc
    if len(plain) <= plain_size and (not machine.eof or machine.unused_data):
        raise CorruptDocument("a gzip frame does not end where the manifest says", key=key)
    return plain


def _unzstd(stored: bytes, plain_size: int, key: str | None) -> bytes:
    try:
        declared = zstandard.get_frame_parameters(stored).content_size
        if declared != plain_size:
            raise CorruptDocument(f"a zstd frame declares {declared} bytes where the manifest says {plain_size}", key=key)
        return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompress(
            stored, max_output_size=plain_size, allow_extra_data=False
        )
    except zstandard.ZstdError as exc:
        raise CorruptDocument(f"a zstd frame cannot be decompressed: {exc}", key=key) from exc


def codec_of(path: str) -> Codec:
    """The codec that a document's name tells."""
    for name, suffix in SUFFIXES.items():
        if suffix and path.endswith(suffix):
            return Codec(name)  # type: ignore[arg-type]
    return Codec("none")


def decode_stream(codec: Codec, chunks: Iterator[bytes], *, key: str | None = None) -> Iterator[bytes]:
    """Plain bytes of a whole document in bounded steps; for documents without a manifest. One that was cut off within a zstd frame
    simply ends early: the reader of its lines misses the closing bracket."""
    if codec.name == "none":
        yield from chunks
        return
    try:
        yield from (_gunzip_stream if codec.name == "gzip" else _unzstd_stream)(chunks)
    except (*_GZIP_ERRORS, zstandard.ZstdError) as exc:
        raise CorruptDocument(f"{key or 'the document'} cannot be decompressed: {exc}", key=key) from exc


def _gunzip_stream(chunks: Iterator[bytes]) -> Iterator[bytes]:
    machine = isal_zlib.decompressobj(_GZIP_WBITS)
    for chunk in chunks:
        data = chunk
        while data:
            if machine.eof:
                machine = isal_zlib.decompressobj(_GZIP_WBITS)
            yield machine.decompress(data, _STREAM_STEP)
            data = machine.unused_data if machine.eof else machine.unconsumed_tail
    if not machine.eof:
        raise TruncatedDocument("the document ends in the middle of a gzip member", hint="The file is cut off.")


def _unzstd_stream(chunks: Iterator[bytes]) -> Iterator[bytes]:
    reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(
        cast("IO[bytes]", _Source(chunks)), read_across_frames=True
    )
    while plain := reader.read(_STREAM_STEP):
        yield plain


class _Source:
    """Chunks as the `read` that a zstd stream reader wants."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    def read(self, _size: int = -1) -> bytes:
        return next(self._chunks, b"")
