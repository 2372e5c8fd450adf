"""Signatures: Ed25519 keys, and the `did:key` names by which their owners are known. Pure but for `generate`.

A `did:key` is the public key itself, written down: multibase base58btc (`z`) of the multicodec prefix 0xed01 and the 32 bytes, as the
did:key method of the W3C credentials community group has it. Whoever has the name can check a signature; there is nothing to look up.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldstore.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_DID = "did:key:z"
_ED25519 = b"\xed\x01"
_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PUBLIC_BYTES = _SEED_BYTES = 32
_TEXT = re.compile(r"coldstore-signing-key-1:([A-Za-z0-9+/]{43}=)\Z")


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key. It shows its name only."""

    did: str
    _private: Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"SigningKey({self.did})"

    @classmethod
    def generate(cls) -> SigningKey:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls._of(Ed25519PrivateKey.generate())

    @classmethod
    def parse(cls, text: str) -> SigningKey:
        """The inverse of `text`; blank lines and lines that begin with `#` do not count. Raises `ConfigError`, without the text."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
        match = _TEXT.match(lines[0]) if len(lines) == 1 else None
        if not match:
            raise ConfigError("the signing key is not one of coldstore's", hint="`coldstore keygen --sign FILE` makes one.")
        return cls._of(Ed25519PrivateKey.from_private_bytes(base64.b64decode(match[1])))

    @classmethod
    def _of(cls, private: Ed25519PrivateKey) -> SigningKey:
        return cls(did_of(private.public_key().public_bytes_raw()), private)

    def text(self) -> str:
        """The key as it stands in a file. A secret."""
        return "coldstore-signing-key-1:" + base64.b64encode(self._private.private_bytes_raw()).decode()

    def sign(self, data: bytes) -> str:
        """The signature in base64."""
        return base64.b64encode(self._private.sign(data)).decode()


def fits(data: bytes, *, by: str, signature: str) -> bool:
    """Whether the key that the did `by` names made `signature` of `data`. Nonsense is not an error, it does not fit."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    public = public_of(by)
    if public is None:
        return False
    try:
        made = base64.b64decode(signature, validate=True)
        Ed25519PublicKey.from_public_bytes(public).verify(made, data)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return base64.b64encode(made).decode() == signature  # in one spelling only


def did_of(public: bytes) -> str:
    """The `did:key` of a public key of 32 bytes; the inverse of `public_of`."""
    number = int.from_bytes(_ED25519 + public, "big")
    digits = ""
    while number:
        number, digit = divmod(number, 58)
        digits = _ALPHABET[digit] + digits
    return _DID + digits


def public_of(did: str) -> bytes | None:
    """The public key that a did names, or None when it is no Ed25519 `did:key`."""
    digits = did.removeprefix(_DID)
    if digits == did or len(digits) > 2 * _PUBLIC_BYTES or not set(digits) <= set(_ALPHABET):
        return None
    number = 0
    for digit in digits:
        number = number * 58 + _ALPHABET.index(digit)
    decoded = number.to_bytes(2 * _PUBLIC_BYTES, "big").lstrip(b"\0")
    public = decoded.removeprefix(_ED25519)
    whole = len(decoded) == _PUBLIC_BYTES + len(_ED25519) and len(public) == _PUBLIC_BYTES
    return public if whole and did_of(public) == did else None  # `z1` and more of the same number is another spelling
