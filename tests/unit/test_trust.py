"""*Unsigned*, *signed by a stranger* and *signed by somebody trusted*: three answers, each with and without a demand for it."""

from __future__ import annotations

import pytest

from coldstore.codec.sign import SigningKey
from coldstore.document.model import Signature
from coldstore.errors import ConfigError, SignatureMissing, SignatureUntrusted
from coldstore.trust import Trust

MINE, OTHER, STRANGER = (SigningKey.generate().did for _ in range(3))
KEYS = frozenset({MINE, OTHER})


def by(did: str) -> Signature:
    return Signature(by=did, value="…")


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("did", [MINE, OTHER])
def test_somebody_trusted(did, required):
    assert Trust(KEYS, required).check(by(did), what="it") is None


@pytest.mark.parametrize(
    ("signature", "error"), [(None, SignatureMissing), (by(STRANGER), SignatureUntrusted), (by(""), SignatureUntrusted)]
)
def test_everybody_else(signature, error):
    with pytest.raises(error) as caught:
        Trust(KEYS, required=True).check(signature, what="memory-all-1")
    assert "memory-all-1" in str(caught.value)
    assert caught.value.key == "memory-all-1"
    assert caught.value.hint
    assert caught.value.exit_code == 11
    said = Trust(KEYS).check(signature, what="memory-all-1")
    assert said == str(caught.value)


@pytest.mark.parametrize("signature", [None, by(STRANGER)])
def test_who_trusts_nobody_is_told_nothing(signature):
    assert Trust().check(signature, what="it") is None


def test_to_require_a_signature_of_nobody():
    """Anybody could sign with a key of his own."""
    with pytest.raises(ConfigError) as caught:
        Trust(required=True)
    assert "trusted_keys" in caught.value.hint
