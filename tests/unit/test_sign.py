"""Signatures fit what was signed, by whom it was signed, in one spelling; and their keys stay secret."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstore.codec.sign import SigningKey, did_of, fits, public_of
from coldstore.errors import ConfigError

KEY = SigningKey.generate()
SIGNATURE = KEY.sign(b"data")

#: Test vectors of the did:key method (Ed25519) and RFC 8032's first key.
VECTORS = {
    "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp": "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29",
    "did:key:z6MktwupdmLXVVqTzCw4i46r4uGyosGXRnR3XjN4Zq7oMMsw": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
}


@pytest.mark.parametrize(("did", "public"), VECTORS.items())
def test_known_names(did, public):
    assert public_of(did) == bytes.fromhex(public)
    assert did_of(bytes.fromhex(public)) == did


def test_the_name_of_the_key_of_zeros():
    """The first vector's secret is 32 zeros."""
    key = SigningKey.parse("coldstore-signing-key-1:" + base64.b64encode(bytes(32)).decode())
    assert key.did == next(iter(VECTORS))


@given(st.binary(min_size=32, max_size=32))
def test_a_name_is_the_key(public):
    assert public_of(did_of(public)) == public
    assert did_of(public).startswith("did:key:z6Mk")


@pytest.mark.parametrize(
    "did",
    [
        *["", "did:key:", "did:key:z", "did:key:z1", "did:web:example.com", "z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp"],
        "did:key:z1" + KEY.did.removeprefix("did:key:z"),  # the same number, written otherwise
        "did:key:z111" + KEY.did.removeprefix("did:key:z"),
        KEY.did + "1",
        KEY.did + " ",
        KEY.did.upper(),
        KEY.did[:-1],
        "did:key:z" + "1" * 10_000_000,
        "did:key:z" + "z" * 64,
        "did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme",  # of another kind of key
        KEY.did.replace("M", "l", 1),
        KEY.did + "é",
    ],
)
def test_what_is_no_name(did):
    assert public_of(did) is None
    assert not fits(b"data", by=did, signature=SIGNATURE)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_what_is_signed_fits(data):
    signature = KEY.sign(data)
    assert fits(data, by=KEY.did, signature=signature)
    assert not fits(data + b"x", by=KEY.did, signature=signature)
    assert not fits(data, by=SigningKey.generate().did, signature=signature)
    assert KEY.sign(data) == signature


def test_every_changed_character_is_noticed():
    """Also the last one, some of whose bits base64 does not use."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=- \n\0é"
    for at, character in enumerate(SIGNATURE):
        for other in set(alphabet) - {character}:
            assert not fits(b"data", by=KEY.did, signature=SIGNATURE[:at] + other + SIGNATURE[at + 1 :]), (at, other)
    for at in range(len(SIGNATURE)):
        assert not fits(b"data", by=KEY.did, signature=SIGNATURE[:at])
        assert not fits(b"data", by=KEY.did, signature=SIGNATURE + SIGNATURE[: at + 1])


@given(st.text(max_size=100))
def test_nonsense_does_not_fit(signature):
    assert not fits(b"data", by=KEY.did, signature=signature)


@given(st.binary(min_size=4, max_size=4))
def test_every_changed_byte_of_the_data_is_noticed(data):
    assert fits(data, by=KEY.did, signature=SIGNATURE) == (data == b"data")


# --- keys --------------------------------------------------------------------------------------------------------------------------


def test_a_key_comes_back_from_its_text():
    again = SigningKey.parse(f"# a comment: not:a:key\n\n  {KEY.text()}  \r\n# another\n")
    assert again.did == KEY.did
    assert again.sign(b"data") == SIGNATURE


def test_a_key_shows_its_name_only():
    secret = KEY.text().rpartition(":")[2]
    for shown in (repr(KEY), str(KEY), f"{KEY}", repr([KEY])):
        assert shown.strip("[]") == f"SigningKey({KEY.did})"
        assert secret not in shown


@pytest.mark.parametrize(
    "wrong",
    [
        lambda secret: "",
        lambda secret: "# only a comment",
        lambda secret: secret,
        lambda secret: f"coldstore-signing-key-1:{secret[:-2]}=",
        lambda secret: f"coldstore-signing-key-1:{secret}=",
        lambda secret: f"coldstore-signing-key-2:{secret}",
        lambda secret: f"coldstore-key-1:{secret}",
        lambda secret: f"coldstore-signing-key-1:{secret}\ncoldstore-signing-key-1:{secret}",
        lambda secret: f"coldstore-signing-key-1: {secret}",
        lambda secret: f"coldstore-signing-key-1:{secret} trailing",
        lambda secret: f"coldstore-signing-key-1:{secret.replace(secret[3], '*')}",
        lambda secret: f"-----BEGIN PRIVATE KEY-----\n{secret}\n-----END PRIVATE KEY-----",
    ],
)
def test_what_is_no_key_is_not_shown(wrong):
    secret = base64.b64encode(Ed25519PrivateKey.generate().private_bytes_raw()).decode()
    with pytest.raises(ConfigError) as caught:
        SigningKey.parse(wrong(secret))
    assert caught.value.hint
    assert secret[:10] not in str(caught.value) + str(caught.value.hint)
    assert caught.value.__cause__ is None
