"""Whose signature counts. A manifest that carries a wrong signature is refused wherever it is read; whether it must carry one, and by
whom, is decided here, by whoever reads. *Unsigned*, *signed by a stranger* and *signed by somebody trusted* are three answers.
"""

from __future__ import annotations

from dataclasses import dataclass

from coldstore.document.model import Signature
from coldstore.errors import ConfigError, SignatureMissing, SignatureUntrusted


@dataclass(frozen=True, slots=True)
class Trust:
    """`keys`: the `did:key` names that count. `required`: what none of them signed is refused."""

    keys: frozenset[str] = frozenset()
    required: bool = False

    def __post_init__(self) -> None:
        if self.required and not self.keys:
            raise ConfigError(
                "a signature is required, but nobody is trusted",
                hint="Name the did:key of whoever signs in `trusted_keys`: anybody can sign with a key of their own.",
            )

    def check(self, signature: Signature | None, *, what: str) -> str | None:
        """What is to be said about `what` with this signature: None when there is nothing. Raises `SignatureMissing` or
        `SignatureUntrusted` where one is required."""
        if signature is not None and signature.by in self.keys:
            return None
        if signature is None:
            said = f"{what} is not signed"
            if self.required:
                raise SignatureMissing(said, hint="Its signature was removed, or it was written without a signing key.", key=what)
        else:
            said = f"{what} is signed by {signature.by}, who is not trusted"
            if self.required:
                raise SignatureUntrusted(said, hint="Add the key to `trusted_keys` if you know whose it is.", key=what)
        return said if self.keys else None
