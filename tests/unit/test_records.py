"""Small objects that must not be altered: manifests, deletion records, added keys. Checksum, one form, and a signature that fits."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstore.codec.sign import SigningKey
from coldstore.document import model
from coldstore.errors import CorruptManifest, DocumentError, SignatureError, SignatureInvalid, UnsupportedFormat
from tests.unit.samples import manifest

SIGNER, STRANGER = SigningKey.generate(), SigningKey.generate()
WRAPPED = [model.WrappedKey(ring="local", key="0123", wrapped="AAAA")]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
bodies = st.dictionaries(texts.filter(lambda name: name not in {"format", "checksum", "signature"}), values, max_size=4)


def summed(body: dict) -> bytes:
    """With a checksum that fits, whatever it says."""
    rest = {k: v for k, v in body.items() if k != "checksum"}
    return model.canonical({**rest, "checksum": hashlib.sha256(model.canonical(rest)).hexdigest()}) + b"\n"


@settings(deadline=None)
@given(bodies, st.sampled_from([None, SIGNER]))
def test_there_and_back_with_every_member(body, signer):
    """Also those that only a later writer knows."""
    data = model.encode_record({"format": model.FORMAT, **body}, signer=signer)
    found = model.decode_record(data, key="k")
    assert {n: v for n, v in found.items() if n not in {"format", "checksum", "signature"}} == body
    assert (found["signature"] or {}).get("by") == (signer and signer.did)
    assert model.encode_record(found, signer=signer) == data
    assert data == model.canonical(json.loads(data)) + b"\n"


@settings(deadline=None)
@given(st.data())
def test_every_other_byte_is_refused(data):
    good = model.encode_record({"format": model.FORMAT, "kind": "x", "n": [1, {"é": None}]}, signer=SIGNER)
    at = data.draw(st.integers(0, len(good) - 1))
    for bad in (good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :], good[:at], good[:at] + b" " + good[at:]):
        with pytest.raises(DocumentError):
            model.decode_record(bad, key="k")


def test_a_signature_that_was_taken_off_changes_the_checksum():
    """So whoever names a record by its checksum notices."""
    signed, unsigned = (model.complete(manifest(), signer=s) for s in (SIGNER, None))
    assert signed.signature is not None
    assert unsigned.signature is None
    assert signed.checksum != unsigned.checksum
    body = json.loads(model.encode_manifest(signed))
    assert model.decode_manifest(model.encode_record(body), key="k").checksum == unsigned.checksum
    assert body["checksum"] == signed.checksum


def forged(**changes: object) -> dict:
    return json.loads(model.encode_manifest(model.complete(manifest(), signer=SIGNER))) | changes


@pytest.mark.parametrize(
    "change",
    [
        lambda b: {"label": "another"},
        lambda b: {"seconds": 0.5},
        lambda b: {"later": "a member that nobody knows"},
        lambda b: {"signature": {**b["signature"], "by": STRANGER.did}},
        lambda b: {"signature": {**b["signature"], "value": STRANGER.sign(b"")}},
        lambda b: {"signature": {**b["signature"], "value": ""}},
        lambda b: {"signature": {**b["signature"], "value": b["signature"]["value"] + "\n"}},
        lambda b: {"signature": {**b["signature"], "by": "nobody"}},
    ],
)
def test_a_wrong_signature_is_refused_wherever_it_is_read(change):
    """Whether or not one is required."""
    body = forged()
    assert model.decode_manifest(summed(body), key="k")
    with pytest.raises(SignatureInvalid) as caught:
        model.decode_manifest(summed(body | change(body)), key="some/key")
    assert "some/key" in str(caught.value)
    assert caught.value.key == "some/key"
    assert isinstance(caught.value, SignatureError)
    assert caught.value.hint


@pytest.mark.parametrize("signature", ["text", 7, [], {}, {"by": 1, "value": "x"}, {"value": "x"}, {"by": "x"}, False])
def test_what_is_no_signature(signature):
    with pytest.raises(CorruptManifest):
        model.decode_manifest(summed(forged(signature=signature)), key="k")


def test_a_signature_is_of_records_only():
    """What is signed begins like nothing else, so a signature of other text by the same key fits no record."""
    body = {"format": model.FORMAT, "kind": "x"}
    data = {**body, "signature": {"by": SIGNER.did, "value": SIGNER.sign(model.canonical(body))}}
    with pytest.raises(SignatureInvalid):
        model.decode_record(summed(data), key="k")


def test_completed_twice_is_the_same():
    once = model.complete(manifest(), signer=SIGNER)
    assert model.complete(once, signer=SIGNER) == once
    assert model.complete(once, signer=STRANGER).signature.by == STRANGER.did


@pytest.mark.parametrize(
    ("member", "wrong"),
    [
        ("plainSha256", "0" * 63),
        ("plainSha256", "G" * 64),
        ("sha256", "A" * 64),
        ("sealing", {"cipher": "AES-256-GCM", "nonce": "0" * 15, "check": "0" * 32, "keys": []}),
        ("sealing", {"cipher": "AES-256-GCM", "nonce": "0" * 14, "check": "0" * 31, "keys": []}),
        ("sealing", {"cipher": "AES-256-GCM", "nonce": "0" * 14, "check": "0" * 32}),
        ("sealing", {"cipher": "AES-256-GCM", "nonce": "0" * 14, "check": "0" * 32, "keys": [{"ring": "local"}]}),
        ("previous", {"id": "memory-all-1"}),
        ("retained", {"until": "x"}),
    ],
)
def test_members_that_are_not_what_they_should_be(member, wrong):
    with pytest.raises(CorruptManifest):
        model.decode_manifest(summed(forged(**{member: wrong, "signature": None})), key="k")


# --- added keys --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signer", [None, SIGNER])
def test_keys_come_back(signer):
    data = model.encode_keys("memory-all-1", WRAPPED, signer=signer)
    assert model.decode_keys(data, "memory-all-1", key="k") == WRAPPED
    _, signature = model.decode_signed_keys(data, "memory-all-1", key="k")
    assert (signature and signature.by) == (signer and signer.did)


def test_keys_of_another_snapshot():
    with pytest.raises(CorruptManifest, match="moved") as caught:
        model.decode_keys(model.encode_keys("memory-all-1", WRAPPED), "memory-all-2", key="k")
    assert caught.value.hint


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "keys", "id": "memory-all-1"},
        {"kind": "keys", "id": "memory-all-1", "keys": [{"ring": "local"}]},
        {"kind": "keys", "id": "memory-all-1", "keys": None},
        {"kind": "deletion", "id": "memory-all-1", "keys": []},
        {"id": "memory-all-1", "keys": []},
    ],
)
def test_what_is_no_object_of_keys(body):
    with pytest.raises(CorruptManifest):
        model.decode_keys(model.encode_record({"format": model.FORMAT, **body}), "memory-all-1", key="k")
    with pytest.raises(UnsupportedFormat):
        model.decode_keys(model.encode_record({"format": "coldstore/2", **body}), "memory-all-1", key="k")
