"""The three sums coldstore takes: of rows, of frames, of whole documents. Pure.

A tier's content digest is the sum of XXH3-128 of every row's line modulo 2^128. Addition makes it independent of the order, so rows
read back by other connections from another database give the same digest, and it notices a row that is missing or doubled, which
an XOR would not. XXH3 is no defence against somebody who alters rows on purpose; the SHA-256 of the frames is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import google_crc32c
import xxhash

MODULUS = 1 << 128

#: One row's share of its tier's digest.
row_digest = xxhash.xxh3_128_intdigest


def format_digest(total: int) -> str:
    """The sum as 32 hexadecimal digits."""
    return f"{total % MODULUS:032x}"


def crc32c(pieces: Iterable[bytes]) -> str:
    """CRC32C (Castagnoli) of the pieces in a row, 8 hexadecimal digits."""
    value = 0
    for piece in pieces:
        value = google_crc32c.extend(value, piece)
    return f"{value:08x}"


def sha256(pieces: Iterable[bytes]) -> str:
    """SHA-256 of the pieces in a row, 64 hexadecimal digits."""
    total = hashlib.sha256()
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()
