"""A sealed frame opens in its own place of its own snapshot with its own key, and nowhere else."""

from __future__ import annotations

import dataclasses
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstore.codec.seal import OVERHEAD, DataKey
from coldstore.errors import ColdStoreError, ConfigError, CorruptDocument

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
pieces = st.lists(st.binary(max_size=50), min_size=1, max_size=4)
numbers = st.integers(0, 2**32 - 1)
KEY = DataKey(bytes(range(32)), "memory-all-1", b"prefix!")


@settings(deadline=None)
@given(pieces, numbers, st.booleans(), text)
def test_there_and_back(found, number, last, snapshot):
    key = DataKey.new(snapshot)
    sealed = key.seal(found, number=number, last=last)
    assert len(sealed) == sum(map(len, found)) + OVERHEAD
    assert key.open(sealed, number=number, last=last, key="k") == b"".join(found)


@settings(deadline=None)
@given(pieces, numbers, numbers, st.booleans(), st.data())
def test_it_opens_nowhere_else(found, number, other_number, last, data):
    sealed = KEY.seal(found, number=number, last=last)
    elsewhere = [(dataclasses.replace(KEY, **change), number, last) for change in OTHERS]
    elsewhere.append((KEY, number, not last))
    if other_number != number:
        elsewhere.append((KEY, other_number, last))
    for key, at, end in elsewhere:
        with pytest.raises(CorruptDocument) as caught:
            key.open(sealed, number=at, last=end, key="a/key")
        assert caught.value.key == "a/key"
        assert caught.value.hint
    at = data.draw(st.integers(0, len(sealed) - 1))
    for wrong in (sealed[:at], sealed + b"\0", sealed[:at] + bytes([sealed[at] ^ data.draw(st.integers(1, 255))]) + sealed[at + 1 :]):
        with pytest.raises(CorruptDocument):
            KEY.open(wrong, number=number, last=last, key="k")


OTHERS = [{"secret": b"x" * 32}, {"snapshot": "memory-all-2"}, {"snapshot": ""}, {"nonce": b"another"}]


def test_by_the_tools_anybody_has():
    nonce = b"prefix!" + (7).to_bytes(4, "big") + b"\1"
    sealed = AESGCM(bytes(range(32))).encrypt(nonce, b"content", b"coldstore/1 frame\0memory-all-1")
    assert KEY.seal([b"con", b"tent"], number=7, last=True) == sealed
    assert KEY.check == hmac.digest(bytes(range(32)), b"coldstore/1 check\0memory-all-1", "sha256")[:16].hex()


@given(st.sampled_from([32, 64]).flatmap(lambda n: st.binary(min_size=n // 2, max_size=n // 2)), text, text)
def test_a_mask_is_taken_off_by_the_same_call(digest, name, other):
    masked = KEY.mask(digest.hex(), name)
    assert KEY.mask(masked, name) == digest.hex()
    assert len(masked) == 2 * len(digest)
    assert masked != digest.hex()
    if name != other:
        assert KEY.mask(digest.hex(), other) != masked
    for change in OTHERS[:3]:
        assert dataclasses.replace(KEY, **change).mask(digest.hex(), name) != masked


def test_keys_and_nonces_are_never_the_same():
    made = [DataKey.new("memory-all-1") for _ in range(200)]
    assert len({k.secret for k in made}) == len({k.nonce for k in made}) == len({k.check for k in made}) == 200


def test_the_same_content_is_never_sealed_the_same_way():
    assert len({DataKey.new("s").seal([b"content"], number=0, last=True) for _ in range(50)}) == 50


def test_a_key_does_not_show_itself():
    shown = repr(KEY) + str(KEY)
    assert "memory-all-1" in shown
    for form in (repr(KEY.secret), KEY.secret.hex(), str(list(KEY.secret))):
        assert form not in shown


@pytest.mark.parametrize("change", [{"secret": b"short"}, {"secret": b"x" * 33}, {"nonce": b""}, {"nonce": b"x" * 8}])
def test_what_is_no_key(change):
    with pytest.raises(CorruptDocument) as caught:
        dataclasses.replace(KEY, **change)
    assert "short" not in str(caught.value)


def test_there_is_an_end_to_frames():
    KEY.seal([b""], number=2**32 - 1, last=True)
    for work in (lambda: KEY.seal([b""], number=2**32, last=True), lambda: KEY.open(b"x" * 20, number=2**32, last=True, key="k")):
        with pytest.raises(ColdStoreError) as caught:
            work()
        assert isinstance(caught.value, ConfigError)
        assert caught.value.hint
