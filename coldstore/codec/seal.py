"""Frames under a data key: AES-256-GCM, so that nobody without the key can read one, or change one unnoticed. Pure but for `new`.

Every snapshot has a data key of its own, so a nonce only has to be unique within one document. It is the STREAM construction of Hoang,
Reyhanitabar, Rogaway and Vizár (2015): a random prefix of 7 bytes, the frame's number in 4, and one byte that is 1 for the last frame.
The snapshot's id is the associated data. So a frame opens in its own place of its own snapshot alone: one that was moved, swapped,
repeated, dropped or cut off at the end does not.

What a manifest says about plain content (digests, the plain document's hash) would let an outsider who guesses the content see that he is
right, so in a sealed snapshot it is masked: XOR with bytes that HMAC-SHA-256 makes of the data key, different ones for each value.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coldstore.errors import ConfigError, CorruptDocument

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CIPHER = "AES-256-GCM"
#: What sealing adds to a document's name, and to each of its frames in bytes.
SUFFIX = ".enc"
OVERHEAD = 16
KEY_BYTES = 32
_PREFIX_BYTES = 7
_FRAMES = 1 << 32
_CHECK_BYTES = 16


@dataclass(frozen=True, slots=True)
class DataKey:
    """The key of one snapshot. It is never written; what is, a key ring has wrapped."""

    secret: bytes = field(repr=False)
    snapshot: str
    nonce: bytes
    _cipher: AESGCM = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if len(self.secret) != KEY_BYTES or len(self.nonce) != _PREFIX_BYTES:
            raise CorruptDocument(f"the sealing of {self.snapshot} is not one of {CIPHER}")
        object.__setattr__(self, "_cipher", AESGCM(self.secret))

    @classmethod
    def new(cls, snapshot: str) -> DataKey:
        return cls(secrets.token_bytes(KEY_BYTES), snapshot, secrets.token_bytes(_PREFIX_BYTES))

    def seal(self, pieces: Sequence[bytes], *, number: int, last: bool) -> bytes:
        """The frame whose bytes are `pieces` in a row, sealed: as long, and `OVERHEAD` more."""
        whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return self._cipher.encrypt(self._nonce(number, last=last), whole, self._associated())

    def open(self, sealed: bytes, *, number: int, last: bool, key: str) -> bytes:
        """The inverse of `seal`. Raises `CorruptDocument` for anything but that frame in that place."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(self._nonce(number, last=last), sealed, self._associated())
        except InvalidTag as exc:
            raise CorruptDocument(
                f"frame {number} of {key} does not open: it was changed, or belongs elsewhere", key=key, hint="Use another snapshot."
            ) from exc

    def _nonce(self, number: int, *, last: bool) -> bytes:
        if number >= _FRAMES:
            raise ConfigError(f"a document cannot have more than {_FRAMES} sealed frames", hint="Raise frame_mb.")
        return self.nonce + number.to_bytes(4, "big") + bytes([last])

    def _associated(self) -> bytes:
        return b"coldstore/1 frame\0" + self.snapshot.encode()

    @property
    def check(self) -> str:
        """32 hex digits by which the right key is told from another one."""
        return self._derive("check", _CHECK_BYTES).hex()

    def mask(self, digest: str, name: str) -> str:
        """Hex digits that only this key turns back, by the same call. `name`: what is masked, no two alike in one manifest."""
        pad = self._derive(f"mask {name}", len(digest) // 2)
        return (int(digest, 16) ^ int.from_bytes(pad, "big")).to_bytes(len(pad), "big").hex()

    def _derive(self, purpose: str, size: int) -> bytes:
        return hmac.digest(self.secret, f"coldstore/1 {purpose}\0{self.snapshot}".encode(), "sha256")[:size]
