"""What a key ring is, and the little that all rings do alike. Pure.

A ring holds keys that never leave it (a KMS) or its file (`local`), and wraps data keys with them: the wrapped form stands in the
manifest, and any one ring that can unwrap it opens the snapshot.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Protocol

from coldstore.document.model import WrappedKey
from coldstore.errors import KeyMissing, WrongKey


class KeyRing(Protocol):
    """Making one asks nobody. `wrap` and `unwrap` may be called from several threads, and may be repeated."""

    @property
    def name(self) -> str:
        """`local`, `aws-kms` or `gcp-kms`: what stands as `ring` beside everything that this kind of ring wrapped."""

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The keys that it can open with, as far as it knows without asking, the current one first. No secrets."""

    def wrap(self, data_key: bytes, *, context: str) -> WrappedKey:
        """`data_key` under the current key. `context`, the snapshot's id, is bound to it: `unwrap` needs the same."""

    def unwrap(self, wrapped: WrappedKey, *, context: str) -> bytes:
        """The inverse of `wrap`. Raises `KeyMissing` for what was wrapped by a key that is not in this ring, otherwise `WrongKey`,
        `KeyRetired` or `KeyRingUnavailable`."""


def to_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def to_bytes(wrapped: WrappedKey) -> bytes:
    """The inverse of `to_text`, for that one spelling only: a changed character must not go unseen."""
    try:
        data = base64.b64decode(wrapped.wrapped, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data or to_text(data) != wrapped.wrapped:
        raise WrongKey(f"what the {wrapped.ring} key {wrapped.key} has wrapped was damaged: it is not base64", hint=CHANGED)
    return data


#: What to do when the right key does not fit what it should have wrapped.
CHANGED = (
    "The manifest was changed, or comes from another snapshot. Use another snapshot, or another key ring that this one was sealed for."
)


def not_in(ring: KeyRing, wrapped: WrappedKey) -> KeyMissing:
    return missing([wrapped], configured=[ring])


def missing(wrapped: Sequence[WrappedKey], *, configured: Sequence[KeyRing]) -> KeyMissing:
    """Nothing that is configured can open this: for which keys it was sealed, and which there are."""
    sealed = ", ".join(f"{w.ring} {w.key}" for w in wrapped) or "no key at all"
    there = ", ".join(f"{ring.name} {key}" for ring in configured for key in ring.key_ids) or "none"
    return KeyMissing(
        f"the key that opens this is not configured: it was sealed for {sealed}; configured: {there}",
        hint="Configure a key ring that holds one of these keys, or put the key back into the key file from a copy.",
    )
