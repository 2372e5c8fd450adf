"""The key ring of a key file, or of a variable that holds the text of one: AES-256-GCM, no network.

The wrapped form is a random nonce of 12 bytes and what AES-GCM makes of the data key, with the snapshot's id as associated data. Whoever
reads the file opens every snapshot that was sealed for it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from coldstore.document.model import WrappedKey
from coldstore.errors import KeyRetired, WrongKey
from coldstore.keyrings import files, keyfile
from coldstore.keyrings.keyfile import Key, Keys
from coldstore.keyrings.ring import CHANGED, not_in, to_bytes, to_text

WHAT = "key file"
_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class LocalRing:
    """A `KeyRing` over the keys of `source`."""

    source: str
    keys: Keys
    name: str = "local"

    @classmethod
    def read(cls, path: Path) -> LocalRing:
        return cls.parse(files.read_secret(path, what=WHAT), source=str(path))

    @classmethod
    def parse(cls, text: str, *, source: str) -> LocalRing:
        return cls(source, keyfile.parse(text, source=source))

    @property
    def key_ids(self) -> tuple[str, ...]:
        return tuple(key.id for key in self.keys.keys)

    def wrap(self, data_key: bytes, *, context: str) -> WrappedKey:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        current, nonce = self.keys.keys[0], secrets.token_bytes(_NONCE_BYTES)
        sealed = AESGCM(current.secret).encrypt(nonce, data_key, _associated(context))
        return WrappedKey(ring=self.name, key=current.id, wrapped=to_text(nonce + sealed))

    def unwrap(self, wrapped: WrappedKey, *, context: str) -> bytes:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        key, sealed = self._key(wrapped), to_bytes(wrapped)
        try:
            return AESGCM(key.secret).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _associated(context))
        except (InvalidTag, ValueError) as exc:  # ValueError: too short to hold a nonce
            raise WrongKey(f"key {key.id} of {self.source} does not open what is said to be sealed for it", hint=CHANGED) from exc

    def _key(self, wrapped: WrappedKey) -> Key:
        for key in self.keys.keys:
            if key.id == wrapped.key:
                return key
        if day := self.keys.retired.get(wrapped.key):
            raise KeyRetired(
                f"the key that opens this, {wrapped.key} of {self.source}, was retired on {day}",
                hint="Put its line back in the place of its tombstone, from a copy of the file; or use a snapshot that was taken later.",
            )
        raise not_in(self, wrapped)


def _associated(context: str) -> bytes:
    return b"coldstore/1 data key\0" + context.encode()


# --- key files ---------------------------------------------------------------------------------------------------------------------


def make_key_file(path: Path) -> str:
    """A new key file with one key; the key's id."""
    key = Key.new()
    files.write_secret(path, keyfile.new_text(key), what=WHAT)
    return key.id


def rotate_key_file(path: Path) -> str:
    """A new current key, the old ones below it; the new one's id."""
    key = Key.new()

    def change(text: str) -> str:
        keyfile.parse(text, source=str(path))
        return keyfile.rotated(text, key)

    files.rewrite_secret(path, change, what=WHAT)
    return key.id


def retire_key(path: Path, key_id: str) -> str:
    """A tombstone instead of an old key; the day on it."""
    today = datetime.now(UTC).date()
    files.rewrite_secret(path, lambda text: keyfile.buried(text, key_id, on=today, source=str(path)), what=WHAT)
    return today.isoformat()
