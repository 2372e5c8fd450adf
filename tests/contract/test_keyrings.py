"""Every key ring keeps the same promises: what it wraps it unwraps, for that snapshot only, unchanged only, and otherwise it says why not.

AWS KMS is moto, which really encrypts; what moto does not do (a disabled key, a key that is not the right one) the fault proxy answers in
AWS's words. Google Cloud KMS is the tests' own server.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldstore.document.model import WrappedKey
from coldstore.errors import ConfigError, KeyMissing, KeyRetired, KeyRingError, KeyRingUnavailable, WrongKey
from coldstore.keyrings.keyfile import Key
from coldstore.keyrings.open import GCP_ENDPOINT, open_rings, unwrap_with_any, wrap_for_all
from coldstore.keyrings.ring import KeyRing
from tests.servers import FaultProxy, GcpKms, S3Server

CONTEXT = "memory-all-1772503200387"
data_keys = st.binary(min_size=32, max_size=32)
# Names of snapshots are text of any kind, and a KMS is asked over a network.
asking = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def aws_login(moto: S3Server, monkeypatch, tmp_path) -> None:
    for name, value in moto.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


@pytest.fixture
def aws(moto: S3Server, aws_login) -> Any:
    """A client to arrange things with from beside the code under test."""
    import botocore.session

    return botocore.session.get_session().create_client("kms", endpoint_url=moto.endpoint_url, region_name="us-east-1")


@pytest.fixture
def new_ring(request, moto: S3Server, aws: Any, gcp_kms: GcpKms) -> Callable[[str], KeyRing]:
    def make(kind: str) -> KeyRing:
        if kind == "local":
            (ring,) = open_rings(["local"], environ={"COLD_STORE_KEY": Key.new().text()})
        elif kind == "aws-kms":
            (ring,) = open_rings([f"aws-kms:{new_arn(aws)}"], environ={}, kms_endpoint_url=moto.endpoint_url)
        else:
            (ring,) = open_rings([f"gcp-kms:{gcp_kms.key()}"], environ={GCP_ENDPOINT: gcp_kms.plain_url})
        return ring

    return make


@pytest.fixture(params=["local", "aws-kms", "gcp-kms"])
def ring(request, new_ring) -> KeyRing:
    return new_ring(request.param)


def new_arn(aws: Any) -> str:
    return aws.create_key()["KeyMetadata"]["Arn"]


def changed(sealed: WrappedKey, **fields: str) -> WrappedKey:
    return msgspec.structs.replace(sealed, **fields)


def aws_says(code: str, message: str = "made up") -> dict[str, Any]:
    return {"status": 400, "body": json.dumps({"__type": code, "message": message})}


# --- what all rings promise --------------------------------------------------------------------------------------------------------


@asking
@given(data_key=data_keys, context=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40))
def test_what_is_wrapped_is_unwrapped(ring: KeyRing, data_key, context):
    wrapped = ring.wrap(data_key, context=context)
    assert wrapped.ring == ring.name
    assert wrapped.key
    assert data_key not in base64.b64decode(wrapped.wrapped)
    assert ring.unwrap(wrapped, context=context) == data_key


def test_the_same_key_is_never_wrapped_the_same_way_twice(ring: KeyRing):
    assert len({ring.wrap(b"k" * 32, context=CONTEXT).wrapped for _ in range(5)}) == 5


@asking
@given(data_key=data_keys, other=st.sampled_from(["", "memory-all-1772503200388", CONTEXT + " ", CONTEXT.upper()]))
def test_another_snapshots_key_does_not_open(ring: KeyRing, data_key, other):
    wrapped = ring.wrap(data_key, context=CONTEXT)
    with pytest.raises(WrongKey) as error:
        ring.unwrap(wrapped, context=other)
    assert error.value.hint


@settings(asking, max_examples=15)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed(ring: KeyRing, place, bit):
    wrapped = ring.wrap(bytes(range(32)), context=CONTEXT)
    data = bytearray(base64.b64decode(wrapped.wrapped))
    data[int(place * len(data))] ^= 1 << bit
    with pytest.raises(KeyRingError):
        ring.unwrap(changed(wrapped, wrapped=base64.b64encode(data).decode()), context=CONTEXT)


@settings(asking, max_examples=15)
@given(place=st.floats(0, 1, exclude_max=True), character=st.characters(codec="utf-8"))
def test_a_changed_character_is_noticed(ring: KeyRing, place, character):
    wrapped = ring.wrap(bytes(range(32)), context=CONTEXT)
    at = int(place * len(wrapped.wrapped))
    text = wrapped.wrapped[:at] + character + wrapped.wrapped[at + 1 :]
    if text != wrapped.wrapped:
        with pytest.raises(KeyRingError):
            ring.unwrap(changed(wrapped, wrapped=text), context=CONTEXT)


@pytest.mark.parametrize("text", ["", "=", "AAAA", "AA==", "not base64", "é"])
def test_nonsense_does_not_open(ring: KeyRing, text):
    wrapped = ring.wrap(b"k" * 32, context=CONTEXT)
    with pytest.raises(WrongKey):
        ring.unwrap(changed(wrapped, wrapped=text), context=CONTEXT)


def test_a_key_of_another_ring_is_missing(new_ring, ring: KeyRing):
    theirs = new_ring(ring.name).wrap(b"k" * 32, context=CONTEXT)
    for wanted in (lambda: ring.unwrap(theirs, context=CONTEXT), lambda: unwrap_with_any([ring], [theirs], context=CONTEXT)):
        with pytest.raises(KeyMissing) as error:
            wanted()
        assert theirs.key in str(error.value)
        assert ring.key_ids[0] in str(error.value)


def test_what_it_wrapped_under_another_name_does_not_open(new_ring, ring: KeyRing):
    """A manifest that says a key of ours wrapped what another one did."""
    mine, theirs = (r.wrap(b"k" * 32, context=CONTEXT) for r in (ring, new_ring(ring.name)))
    with pytest.raises(KeyRingError) as error:
        ring.unwrap(changed(theirs, key=mine.key), context=CONTEXT)
    assert not isinstance(error.value, KeyMissing)


def test_no_key_in_what_is_shown_or_logged(ring: KeyRing, caplog):
    data_key = os.urandom(32)
    caplog.set_level(logging.DEBUG, logger="")
    wrapped = ring.wrap(data_key, context=CONTEXT)
    ring.unwrap(wrapped, context=CONTEXT)
    shown = caplog.text + repr(ring) + str(getattr(ring, "__dict__", ""))
    for form in (repr(data_key)[2:-1], base64.b64encode(data_key).decode(), data_key.hex()):
        assert form not in shown


def test_many_threads_share_a_ring(ring: KeyRing):
    def there_and_back(number: int) -> bool:
        data_key, context = os.urandom(32), f"memory-u{number}-1"
        return ring.unwrap(ring.wrap(data_key, context=context), context=context) == data_key

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(there_and_back, range(24)))


# --- several rings -----------------------------------------------------------------------------------------------------------------


@asking
@given(data_key=data_keys)
def test_any_ring_opens_alone(new_ring, data_key):
    rings = [new_ring(kind) for kind in ("local", "aws-kms", "gcp-kms", "local")]
    wrapped = wrap_for_all(rings, data_key, context=CONTEXT)
    assert [w.ring for w in wrapped] == [r.name for r in rings]
    for ring in rings:
        assert unwrap_with_any([ring], wrapped, context=CONTEXT) == data_key
    assert unwrap_with_any(rings[::-1], wrapped[::-1], context=CONTEXT) == data_key


def test_what_is_sealed_for_nobody_is_refused():
    with pytest.raises(ConfigError, match="no key ring"):
        wrap_for_all([], b"k" * 32, context=CONTEXT)


def test_without_any_ring_it_says_which_key_is_missing(new_ring):
    wrapped = wrap_for_all([new_ring("local"), new_ring("gcp-kms")], b"k" * 32, context=CONTEXT)
    for rings in ([], [new_ring("aws-kms")], [new_ring("local")]):
        with pytest.raises(KeyMissing) as error:
            unwrap_with_any(rings, wrapped, context=CONTEXT)
        assert all(f"{w.ring} {w.key}" in str(error.value) for w in wrapped)
        assert all(key in str(error.value) for ring in rings for key in ring.key_ids)
    with pytest.raises(KeyMissing, match="for no key at all; configured: none"):
        unwrap_with_any([], [], context=CONTEXT)


def test_a_ring_that_is_down_does_not_keep_another_from_opening(new_ring, gcp_kms: GcpKms):
    down, up = new_ring("gcp-kms"), new_ring("local")
    wrapped = wrap_for_all([down, up], b"k" * 32, context=CONTEXT)
    gcp_kms.deny(down.key_ids[0], "decrypt")
    assert unwrap_with_any([down, up], wrapped, context=CONTEXT) == b"k" * 32


def test_when_all_fail_the_most_telling_error_is_raised(new_ring, gcp_kms: GcpKms):
    denied, disabled, local = new_ring("gcp-kms"), new_ring("gcp-kms"), new_ring("local")
    rings = [local, disabled, denied]
    wrapped = wrap_for_all(rings, b"k" * 32, context=CONTEXT)
    gcp_kms.deny(denied.key_ids[0], "decrypt")
    gcp_kms.set_state(wrapped[1].key, "DISABLED")
    wrapped[0] = changed(wrapped[0], wrapped=wrapped[1].wrapped)
    for tried, kind in ((rings, KeyRingUnavailable), (rings[:2], KeyRetired), (rings[:1], WrongKey)):
        for order in (tried, tried[::-1]):
            with pytest.raises(kind):
                unwrap_with_any(order, wrapped, context=CONTEXT)


def test_if_one_ring_cannot_wrap_nothing_is_wrapped(new_ring, gcp_kms: GcpKms):
    rings = [new_ring("local"), new_ring("gcp-kms")]
    gcp_kms.deny(rings[1].key_ids[0], "encrypt")
    with pytest.raises(KeyRingUnavailable):
        wrap_for_all(rings, b"k" * 32, context=CONTEXT)


# --- opening -----------------------------------------------------------------------------------------------------------------------


def test_opening_asks_nobody(monkeypatch, tmp_path):
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path))  # a folder: reading it would fail
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    rings = open_rings(["aws-kms:alias/x", "gcp-kms:projects/p/locations/l/keyRings/r/cryptoKeys/k"], environ={})
    assert [r.key_ids for r in rings] == [("alias/x",), ("projects/p/locations/l/keyRings/r/cryptoKeys/k",)]


def test_an_endpoint_is_for_the_kms_that_is_named(aws, moto: S3Server, gcp_kms: GcpKms):
    arn, key = f"aws-kms:{new_arn(aws)}", f"gcp-kms:{gcp_kms.key()}"
    alone = open_rings([key, key], environ={}, kms_endpoint_url=gcp_kms.plain_url)
    both = open_rings([key, arn], environ={GCP_ENDPOINT: gcp_kms.plain_url}, kms_endpoint_url=moto.endpoint_url)
    for rings in (alone, both):
        assert len(wrap_for_all(rings, b"k" * 32, context=CONTEXT)) == 2


SECRET = Key.new().text()


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "local:",
        "locals",
        "aws-kms",
        "aws-kms:",
        "aws-kms:arn:aws:s3:::bucket",
        "aws-kms:alias/with space",
        "gcp-kms:projects/p",
        "gcp-kms:projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
        "vault:transit/key",
        SECRET,
    ],
)
def test_a_spelling_that_names_no_ring_is_refused(spec):
    with pytest.raises(ConfigError) as error:
        open_rings([spec], environ={"COLD_STORE_KEY": SECRET})
    assert "local:FILE" in error.value.hint
    assert SECRET[-45:] not in str(error.value.as_dict())


def test_a_key_in_the_place_of_its_file_is_not_shown():
    with pytest.raises(KeyRingError) as error:
        open_rings([f"local:{SECRET}"], environ={})
    assert SECRET[-45:] not in str(error.value.as_dict())


@pytest.mark.parametrize("environ", [{}, {"COLD_STORE_KEY": ""}, {"COLD_STORE_KEY": " \n"}])
def test_a_variable_that_is_not_set_is_named(environ):
    with pytest.raises(ConfigError, match="COLD_STORE_KEY"):
        open_rings(["local"], environ=environ)


# --- AWS KMS -----------------------------------------------------------------------------------------------------------------------


def aws_ring(key: str, endpoint: str, **more: Any) -> KeyRing:
    (ring,) = open_rings([f"aws-kms:{key}"], environ={}, kms_endpoint_url=endpoint, **more)
    return ring


def test_a_key_goes_by_its_arn_its_id_or_an_alias(aws, moto: S3Server):
    arn = new_arn(aws)
    alias = f"alias/{arn[-12:]}"
    aws.create_alias(AliasName=alias, TargetKeyId=arn)
    rings = [
        aws_ring(name, moto.endpoint_url, region="us-east-1")
        for name in (arn, arn.rpartition("/")[2], alias, arn.rpartition(":")[0] + ":" + alias)
    ]
    wrapped = [ring.wrap(b"k" * 32, context=CONTEXT) for ring in rings]
    assert {w.key for w in wrapped} == {arn}
    for ring in rings:
        for one in wrapped:
            assert ring.unwrap(one, context=CONTEXT) == b"k" * 32


def test_the_region_comes_from_the_arn(aws, moto: S3Server, monkeypatch):
    """The configured region is the bucket's."""
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    ring = aws_ring(new_arn(aws), moto.endpoint_url, region="eu-central-1")
    assert ring.wrap(b"k" * 32, context=CONTEXT).key == ring.key_ids[0]
    with pytest.raises(ConfigError, match="any region"):
        aws_ring("alias/x", moto.endpoint_url).wrap(b"k" * 32, context=CONTEXT)


def test_replicas_of_a_key_open_for_each_other(moto_faults: FaultProxy, aws_login):
    """The same id in another region: it is asked, not passed over. moto keeps its regions apart, so the answer is made up."""
    ring = aws_ring("arn:aws:kms:eu-west-1:123456789012:key/mrk-1234abcd", moto_faults.url)
    sealed = WrappedKey(ring="aws-kms", key="arn:aws:kms:us-east-1:123456789012:key/mrk-1234abcd", wrapped="AAAA")
    plain = base64.b64encode(b"k" * 32).decode()
    moto_faults.add("status", status=200, body=json.dumps({"Plaintext": plain, "KeyId": ring.key_ids[0]}))
    assert ring.unwrap(sealed, context=CONTEXT) == b"k" * 32


def test_a_rotated_aws_key_still_opens(aws, moto: S3Server):
    ring = aws_ring(new_arn(aws), moto.endpoint_url)
    old = ring.wrap(b"k" * 32, context=CONTEXT)
    aws.rotate_key_on_demand(KeyId=ring.key_ids[0])
    assert ring.unwrap(old, context=CONTEXT) == b"k" * 32
    assert ring.unwrap(ring.wrap(b"n" * 32, context=CONTEXT), context=CONTEXT) == b"n" * 32


@pytest.mark.parametrize(
    ("code", "message", "kind", "words"),
    [
        ("DisabledException", "arn is disabled.", KeyRetired, "disabled|enable-key"),
        ("KMSInvalidStateException", "arn is pending deletion.", KeyRetired, "to be deleted|cancel-key-deletion"),
        ("KMSInvalidStateException", "arn is pending import.", KeyRingUnavailable, "pending import|after a while"),
        ("NotFoundException", "Key arn does not exist", KeyRetired, "was deleted|never comes back"),
        (
            "IncorrectKeyException",
            "The key ID in the request does not identify a CMK that can perform this operation.",
            WrongKey,
            "is not the one|aws-kms:",
        ),
        ("InvalidCiphertextException", "", WrongKey, "does not open|manifest was changed"),
        ("InvalidKeyUsageException", "", WrongKey, "not one that encrypts|symmetric"),
        (
            "AccessDeniedException",
            "User x is not authorized to perform: kms:Decrypt",
            KeyRingUnavailable,
            "may not decrypt|Allow kms:Decrypt",
        ),
        (
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
            KeyRingUnavailable,
            "may not|credentials",
        ),
        ("LimitExceededException", "", KeyRingUnavailable, "did not decrypt|after a while"),
    ],
)
def test_what_aws_refuses_is_told_apart(aws, moto_faults: FaultProxy, code, message, kind, words):
    ring = aws_ring(new_arn(aws), moto_faults.url)
    wrapped = ring.wrap(b"k" * 32, context=CONTEXT)
    moto_faults.add("status", **aws_says(code, message), count=None)
    with pytest.raises(KeyRingError) as error:
        ring.unwrap(wrapped, context=CONTEXT)
    moto_faults.clear()
    sentence, hint = words.split("|")
    assert type(error.value) is kind
    assert sentence in str(error.value)
    assert hint in error.value.hint
    assert ring.unwrap(wrapped, context=CONTEXT) == b"k" * 32


def test_the_day_on_which_a_key_will_be_deleted(aws, moto_faults: FaultProxy):
    ring = aws_ring(new_arn(aws), moto_faults.url)
    wrapped = ring.wrap(b"k" * 32, context=CONTEXT)
    day = aws.schedule_key_deletion(KeyId=ring.key_ids[0].rpartition("/")[2], PendingWindowInDays=9)["DeletionDate"]
    moto_faults.add("status", **aws_says("KMSInvalidStateException", "arn is pending deletion."))
    with pytest.raises(KeyRetired, match=f"on {day:%Y-%m-%d}"):
        ring.unwrap(wrapped, context=CONTEXT)


def test_an_alias_that_moved_names_the_key_to_add(aws, moto_faults: FaultProxy):
    arn = new_arn(aws)
    alias = f"alias/{arn[-12:]}"
    aws.create_alias(AliasName=alias, TargetKeyId=arn)
    ring = aws_ring(alias, moto_faults.url, region="us-east-1")
    wrapped = ring.wrap(b"k" * 32, context=CONTEXT)
    moto_faults.add("status", **aws_says("IncorrectKeyException"))
    with pytest.raises(WrongKey) as error:
        ring.unwrap(wrapped, context=CONTEXT)
    assert f"aws-kms:{arn}" in error.value.hint
    aws.update_alias(AliasName=alias, TargetKeyId=new_arn(aws))
    assert unwrap_with_any([aws_ring(arn, moto_faults.url)], [wrapped], context=CONTEXT) == b"k" * 32


def test_a_key_that_is_not_there_cannot_seal(aws, moto: S3Server):
    for name in ("alias/nobody", "arn:aws:kms:us-east-1:123456789012:key/6713b80a-0000-4000-8000-000000000000"):
        with pytest.raises(WrongKey, match="there is no AWS KMS key"):
            aws_ring(name, moto.endpoint_url, region="us-east-1").wrap(b"k" * 32, context=CONTEXT)


@pytest.mark.parametrize("fault", [{"action": "reset"}, {"action": "lost_reply"}, {"action": "status", "status": 500, "body": "{}"}])
def test_a_passing_fault_of_aws_is_survived(aws, moto_faults: FaultProxy, fault):
    ring = aws_ring(new_arn(aws), moto_faults.url)
    moto_faults.add(**fault)
    wrapped = ring.wrap(b"k" * 32, context=CONTEXT)
    moto_faults.add(**fault)
    assert ring.unwrap(wrapped, context=CONTEXT) == b"k" * 32
    assert moto_faults.count("POST") == 4


@pytest.mark.parametrize(
    "fault",
    [{"action": "reset"}, {"action": "status", "status": 503, "body": "{}"}, {"action": "status", "status": 502, "body": "<html>"}],
)
def test_a_lasting_fault_of_aws_ends(aws, moto_faults: FaultProxy, fault):
    ring = aws_ring(new_arn(aws), moto_faults.url)
    moto_faults.add(**fault, count=None)
    with pytest.raises(KeyRingUnavailable):
        ring.wrap(b"k" * 32, context=CONTEXT)
    assert moto_faults.count("POST") == 3


def test_without_credentials_aws_is_not_asked(moto: S3Server, aws, monkeypatch):
    arn = new_arn(aws)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(KeyRingUnavailable, match="no usable credentials"):
        aws_ring(arn, moto.endpoint_url).wrap(b"k" * 32, context=CONTEXT)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigError, match="nobody"):
        aws_ring(arn, moto.endpoint_url).wrap(b"k" * 32, context=CONTEXT)


# --- Google Cloud KMS --------------------------------------------------------------------------------------------------------------


def gcp_ring(key: str, endpoint: str) -> KeyRing:
    (ring,) = open_rings([f"gcp-kms:{key}"], environ={GCP_ENDPOINT: endpoint})
    return ring


@pytest.fixture
def gcp(gcp_kms: GcpKms) -> KeyRing:
    return gcp_ring(gcp_kms.key(), gcp_kms.plain_url)


def test_a_rotated_google_key_still_opens(gcp_kms: GcpKms, gcp: KeyRing):
    old = gcp.wrap(b"k" * 32, context=CONTEXT)
    gcp_kms.rotate(gcp.key_ids[0])
    new = gcp.wrap(b"n" * 32, context=CONTEXT)
    assert [w.key for w in (old, new)] == [f"{gcp.key_ids[0]}/cryptoKeyVersions/{n}" for n in (1, 2)]
    assert [gcp.unwrap(w, context=CONTEXT) for w in (old, new)] == [b"k" * 32, b"n" * 32]


@pytest.mark.parametrize(
    ("state", "hint"), [("DISABLED", "versions enable"), ("DESTROY_SCHEDULED", "versions restore"), ("DESTROYED", "never comes back")]
)
def test_a_version_that_was_retired_is_named(gcp_kms: GcpKms, gcp: KeyRing, state, hint):
    old = gcp.wrap(b"k" * 32, context=CONTEXT)
    gcp_kms.rotate(gcp.key_ids[0])
    new = gcp.wrap(b"n" * 32, context=CONTEXT)
    gcp_kms.set_state(old.key, state)
    with pytest.raises(KeyRetired) as error:
        gcp.unwrap(old, context=CONTEXT)
    assert old.key in str(error.value)
    assert hint in error.value.hint
    assert gcp.unwrap(new, context=CONTEXT) == b"n" * 32
    gcp_kms.set_state(new.key, state)
    with pytest.raises(KeyRetired, match="primary version"):
        gcp.wrap(b"k" * 32, context=CONTEXT)


@pytest.mark.parametrize("operation", ["encrypt", "decrypt"])
def test_a_permission_that_is_missing_is_named(gcp_kms: GcpKms, gcp: KeyRing, operation):
    wrapped = gcp.wrap(b"k" * 32, context=CONTEXT)
    gcp_kms.deny(gcp.key_ids[0], operation)
    denied = gcp.wrap if operation == "encrypt" else gcp.unwrap
    with pytest.raises(KeyRingUnavailable, match=f"may not {operation}") as error:
        denied(b"k" * 32 if operation == "encrypt" else wrapped, context=CONTEXT)
    assert f"roles/cloudkms.cryptoKey{operation.capitalize()}er" in error.value.hint


def test_a_google_key_that_is_not_there(gcp_kms: GcpKms):
    ring = gcp_ring(gcp_kms.key() + "x", gcp_kms.plain_url)
    with pytest.raises(WrongKey, match="there is no Google Cloud KMS key"):
        ring.wrap(b"k" * 32, context=CONTEXT)
    with pytest.raises(KeyRetired, match="no longer there"):
        ring.unwrap(WrappedKey(ring="gcp-kms", key=f"{ring.key_ids[0]}/cryptoKeyVersions/1", wrapped="AAAA"), context=CONTEXT)


def test_a_google_key_that_signs_cannot_seal(gcp_kms: GcpKms):
    ring = gcp_ring(gcp_kms.key(purpose="ASYMMETRIC_SIGN"), gcp_kms.plain_url)
    with pytest.raises(WrongKey) as error:
        ring.wrap(b"k" * 32, context=CONTEXT)
    assert "ENCRYPT_DECRYPT" in error.value.hint


@pytest.mark.parametrize("how", ["unverified", "flipped"])
def test_what_was_garbled_on_the_way_is_not_taken(gcp_kms: GcpKms, gcp: KeyRing, how):
    gcp_kms.garble(gcp.key_ids[0], how, times=2)
    wrapped = gcp.wrap(b"k" * 32, context=CONTEXT)  # the third time
    gcp_kms.garble(gcp.key_ids[0], how, times=3)
    with pytest.raises(KeyRingUnavailable, match="garbled"):
        gcp.wrap(b"k" * 32, context=CONTEXT)
    if how == "flipped":
        gcp_kms.garble(gcp.key_ids[0], how, times=3)
        with pytest.raises(KeyRingUnavailable, match="garbled"):
            gcp.unwrap(wrapped, context=CONTEXT)
    assert gcp.unwrap(wrapped, context=CONTEXT) == b"k" * 32


def test_a_request_that_google_finds_garbled_is_no_wrong_key(gcp_kms_faults: FaultProxy, gcp_kms: GcpKms):
    ring = gcp_ring(gcp_kms.key(), gcp_kms_faults.url)
    wrapped = ring.wrap(b"k" * 32, context=CONTEXT)
    error = {"code": 400, "status": "INVALID_ARGUMENT", "message": "The checksum in field ciphertext_crc32c did not match the data."}
    gcp_kms_faults.add("status", status=400, body=json.dumps({"error": error}))
    with pytest.raises(KeyRingUnavailable, match="garbled"):
        ring.unwrap(wrapped, context=CONTEXT)


@pytest.mark.parametrize("fault", [{"action": "reset"}, {"action": "lost_reply"}, {"action": "status", "status": 503, "body": "busy"}])
def test_a_passing_fault_of_google_is_survived(gcp_kms: GcpKms, gcp_kms_faults: FaultProxy, fault):
    ring = gcp_ring(gcp_kms.key(), gcp_kms_faults.url)
    gcp_kms_faults.add(**fault)
    wrapped = ring.wrap(b"k" * 32, context=CONTEXT)
    gcp_kms_faults.add(**fault)
    assert ring.unwrap(wrapped, context=CONTEXT) == b"k" * 32
    assert gcp_kms_faults.count("POST") == 4


@pytest.mark.parametrize(
    "fault",
    [
        {"action": "reset"},
        {"action": "truncate", "after": 20},
        {"action": "status", "status": 503, "body": "busy"},
        {"action": "status", "status": 200, "body": "<html>"},
        {"action": "status", "status": 404, "body": "[]"},
    ],
)
def test_a_lasting_fault_of_google_ends(gcp_kms: GcpKms, gcp_kms_faults: FaultProxy, fault):
    ring = gcp_ring(gcp_kms.key(), gcp_kms_faults.url)
    gcp_kms_faults.add(**fault, count=None)
    with pytest.raises(KeyRingError):
        ring.wrap(b"k" * 32, context=CONTEXT)
    assert gcp_kms_faults.count("POST") <= 3


def test_google_is_asked_with_the_accounts_token(gcp_kms: GcpKms, monkeypatch, caplog):
    """TLS, a service account, an assertion that is signed and checked, a token for it: as on Google, but for the address."""
    for name, value in gcp_kms.login.items():
        monkeypatch.setenv(name, value)
    caplog.set_level(logging.DEBUG, logger="")
    ring = gcp_ring(gcp_kms.key(), gcp_kms.tls_url)
    data_key = os.urandom(32)
    assert ring.unwrap(ring.wrap(data_key, context=CONTEXT), context=CONTEXT) == data_key
    assert base64.b64encode(data_key).decode() not in caplog.text
    assert json.loads((gcp_kms.folder / "account.json").read_text())["private_key"][40:80] not in caplog.text


def test_without_credentials_google_is_not_asked(gcp_kms: GcpKms, monkeypatch, tmp_path):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", gcp_kms.login["REQUESTS_CA_BUNDLE"])
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    ring = gcp_ring(gcp_kms.key(), gcp_kms.tls_url)
    with pytest.raises(KeyRingUnavailable, match="no usable credentials"):
        ring.wrap(b"k" * 32, context=CONTEXT)
    stranger = json.loads((gcp_kms.folder / "account.json").read_text()) | {"client_email": "somebody@else"}
    (tmp_path / "stranger.json").write_text(json.dumps(stranger))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "stranger.json"))
    with pytest.raises(KeyRingUnavailable, match="no usable credentials"):
        ring.wrap(b"k" * 32, context=CONTEXT)


def test_a_server_whose_certificate_nobody_trusts_gets_nothing(gcp_kms: GcpKms, monkeypatch):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", gcp_kms.login["GOOGLE_APPLICATION_CREDENTIALS"])
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    with pytest.raises(KeyRingUnavailable, match="CERTIFICATE"):
        gcp_ring(gcp_kms.key(), gcp_kms.tls_url).wrap(b"k" * 32, context=CONTEXT)
