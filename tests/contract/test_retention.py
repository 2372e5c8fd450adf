"""Locks: there from the first moment, kept by the store against everybody, never hidden by a delete of ours; and what has no locks says so.

On SeaweedFS, which keeps Object Lock as S3 does, on moto for what it alone checks, and on the GCS server behind our proxy, which follows
Google's documentation and not Google.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote

import pytest
from botocore.exceptions import ClientError

from coldstore.errors import AccessDenied, ConfigError, ObjectExists, ObjectLocked, ObjectMissing, RetentionRefused, StoreError
from coldstore.storage.open import open_store
from coldstore.storage.store import Retention, Store
from tests.contract.conftest import MIB, Place, _make
from tests.contract.test_store import blob, eventually, keys, nothing_of, put
from tests.servers import GcsServer, S3Server

both_sizes = pytest.mark.parametrize("size", ["small", "large"])
both_modes = pytest.mark.parametrize("mode", ["governance", "compliance"])
s3_only = pytest.mark.parametrize("vault", ["s3"], indirect=True)
gcs_only = pytest.mark.parametrize("vault", ["gcs"], indirect=True)


def in_days(days: float) -> datetime:
    return (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)


def retained(store: Store, key: str, data: bytes = b"x", *, mode: Any = "governance", until: datetime | None = None) -> Retention:
    retention = Retention(until or in_days(30), mode)
    with store.create(key, retain=retention) as writer:
        writer.write(data)
    return retention


class S3Owner:
    """The bucket's owner, who goes around coldstore."""

    def __init__(self, server: S3Server) -> None:
        self.client, self.bucket = server.client(), server.bucket

    def retention(self, name: str) -> Retention | None:
        head = self.client.head_object(Bucket=self.bucket, Key=name)
        if "ObjectLockMode" not in head:
            return None
        return Retention(head["ObjectLockRetainUntilDate"].astimezone(UTC), head["ObjectLockMode"].lower())

    def remove(self, name: str) -> bool:
        """Delete the bytes themselves, not only hide them."""
        return self._done(self.client.delete_object, name, **self._version(name))

    def insist(self, name: str) -> bool:
        """Delete by whatever right an owner has."""
        return self._done(self.client.delete_object, name, **self._version(name), BypassGovernanceRetention=True)

    def set_retention(self, name: str, until: datetime, mode: str) -> bool:
        retention = {"Mode": mode.upper(), "RetainUntilDate": until}
        return self._done(self.client.put_object_retention, name, **self._version(name), Retention=retention)

    def leftovers(self, name: str) -> int:
        """Versions and delete markers, whatever shows."""
        found = self.client.list_object_versions(Bucket=self.bucket, Prefix=name)
        return len(found.get("Versions", [])) + len(found.get("DeleteMarkers", []))

    def _version(self, name: str) -> dict[str, str]:
        return {"VersionId": self.client.head_object(Bucket=self.bucket, Key=name)["VersionId"]}

    def _done(self, method: Any, name: str, **arguments: Any) -> bool:
        try:
            method(Bucket=self.bucket, Key=name, **arguments)
        except ClientError as exc:
            if exc.response["ResponseMetadata"]["HTTPStatusCode"] != 403:
                raise
            return False
        return True


class GcsOwner:
    """The same for a GCS bucket."""

    def __init__(self, server: GcsServer) -> None:
        self.base = f"{server.endpoint_url}/storage/v1/b/{server.bucket}/o"

    def fields(self, name: str) -> dict[str, Any]:
        return json.loads(self._ask("GET", name) or "{}")

    def retention(self, name: str) -> Retention | None:
        found = self.fields(name).get("retention")
        modes = {"Unlocked": "governance", "Locked": "compliance"}
        return Retention(datetime.fromisoformat(found["retainUntilTime"]), modes[found["mode"]]) if found else None

    def remove(self, name: str) -> bool:
        return self._ask("DELETE", name, f"?generation={self.fields(name)['generation']}") is not None

    def insist(self, name: str) -> bool:
        lifted = self._ask("PATCH", name, "?overrideUnlockedRetention=true", {"retention": None})
        return lifted is not None and self.remove(name)

    def set_retention(self, name: str, until: datetime, mode: str) -> bool:
        modes = {"governance": "Unlocked", "compliance": "Locked"}
        retention = {"mode": modes[mode], "retainUntilTime": f"{until:%Y-%m-%dT%H:%M:%SZ}"}
        return self._ask("PATCH", name, "", {"retention": retention}) is not None

    def _ask(self, method: str, name: str, query: str = "", message: dict[str, Any] | None = None) -> bytes | None:
        body = json.dumps(message).encode() if message is not None else None
        request = urllib.request.Request(f"{self.base}/{quote(name, safe='')}{query}", data=body, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return reply.read()
        except urllib.error.HTTPError as exc:
            if exc.code != 403:
                raise
            return None


@dataclass
class Vault:
    """A place whose bucket locks objects, seen through a proxy that logs, and its owner."""

    place: Place
    bucket: str
    owner: S3Owner | GcsOwner

    def open(self, **options: Any) -> Store:
        return self.place.open(bucket=self.bucket, **options)

    def name(self, key: str) -> str:
        return f"{self.place.root}/{key}"

    def data(self, size: str) -> bytes:
        return blob(self.place.large) if size == "large" else b"small"


@pytest.fixture(params=["s3", "gcs", "gcs with versions"])
def vault(request: pytest.FixtureRequest) -> Iterator[Vault]:
    name = request.param.split()[0]
    with contextlib.contextmanager(_make)(name, request, faulty=True) as place:
        if name == "s3":
            locks = request.getfixturevalue("weed").with_object_lock()
            yield Vault(place, locks.bucket, S3Owner(locks))
        else:
            locks = request.getfixturevalue("gcs").with_object_retention(versions="versions" in request.param)
            yield Vault(place, locks.bucket, GcsOwner(locks))


# --- what the store keeps ---------------------------------------------------------------------------------------------------------------


@both_sizes
@both_modes
def test_an_object_is_locked_by_the_requests_that_make_it(vault: Vault, size, mode):
    store, data = vault.open(), vault.data(size)
    assert store.enforces_retention
    vault.place.faults.clear()
    retention = retained(store, "k", data, mode=mode)
    log = vault.place.faults.log()
    assert not [line for line in log if "retention" in line.lower() or line.startswith(("GET", "HEAD", "PATCH"))]
    if size == "small":
        assert len(log) == 1
    assert vault.owner.retention(vault.name("k")) == retention
    assert store.read("k") == data


@both_sizes
@both_modes
def test_a_locked_object_is_neither_deleted_nor_hidden(vault: Vault, size, mode):
    store, data = vault.open(), vault.data(size)
    retained(store, "k", data, mode=mode)
    for other in (store, vault.open()):
        with pytest.raises(ObjectLocked) as caught:
            other.delete("k")
        assert (caught.value.op, caught.value.key) == ("delete", "k")
    assert (store.read("k"), keys(store)) == (data, ["k"])


@s3_only
def test_the_date_is_told_in_utc_wherever_one_is(vault: Vault, monkeypatch):
    store = vault.open()
    until = retained(store, "k").until
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        with pytest.raises(ObjectLocked, match=f"until {until:%Y-%m-%dT%H:%M:%SZ}"):
            store.delete("k")
    finally:
        monkeypatch.undo()
        time.tzset()


@both_sizes
def test_nobody_removes_or_shortens_a_lock_in_compliance_mode(vault: Vault, size):
    store = vault.open()
    retention = retained(store, "k", vault.data(size), mode="compliance", until=in_days(30))
    name = vault.name("k")
    assert not vault.owner.remove(name)
    assert not vault.owner.insist(name)
    assert not vault.owner.set_retention(name, in_days(1), "compliance")
    assert not vault.owner.set_retention(name, in_days(30), "governance")
    assert vault.owner.retention(name) == retention
    assert vault.owner.set_retention(name, in_days(60), "compliance")


def test_only_who_insists_removes_a_lock_in_governance_mode(vault: Vault):
    store = vault.open()
    retention = retained(store, "k", mode="governance")
    name = vault.name("k")
    assert not vault.owner.remove(name)
    assert not vault.owner.set_retention(name, in_days(1), "governance")
    assert vault.owner.retention(name) == retention
    assert vault.owner.insist(name)
    with pytest.raises(ObjectMissing):
        store.read("k")


@both_modes
def test_a_lock_ends_at_its_date(vault: Vault, mode):
    store = vault.open()
    retained(store, "k", mode=mode, until=(datetime.now(UTC) + timedelta(seconds=5)).replace(microsecond=0))

    def gone() -> bool:
        with contextlib.suppress(ObjectLocked):
            store.delete("k")
        return not keys(store)

    eventually(gone)
    if isinstance(vault.owner, S3Owner):
        assert vault.owner.leftovers(vault.name("k")) == 0


def test_a_locked_object_is_not_overwritten(vault: Vault):
    store = vault.open()
    retained(store, "k", b"first")
    for size in ("small", "large"):
        with pytest.raises(ObjectExists):
            retained(store, "k", vault.data(size))
    assert store.read("k") == b"first"


@gcs_only
def test_a_pointer_over_a_locked_object_is_refused(vault: Vault):
    store = vault.open()
    retained(store, "k", b"first")
    with pytest.raises(ObjectLocked):
        store.replace("k", b"second")
    assert store.read("k") == b"first"


# --- what is not locked in a bucket that locks ------------------------------------------------------------------------------------------


def test_pointers_are_never_locked_and_a_deleted_one_stays_away(vault: Vault):
    store = vault.open(object={"ObjectLockLegalHoldStatus": "ON"} if vault.place.name == "s3" else {"temporaryHold": True})
    store.replace("latest", b"1")
    store.replace("latest", b"2")
    assert store.read("latest") == b"2"
    assert vault.owner.retention(vault.name("latest")) is None
    store.delete("latest")
    with pytest.raises(ObjectMissing):
        store.read("latest")


@both_sizes
def test_what_is_not_locked_is_deleted_for_good(vault: Vault, size):
    store = vault.open()
    put(store, "k", vault.data(size))
    assert vault.owner.retention(vault.name("k")) is None
    store.delete("k")
    assert keys(store) == []
    if isinstance(vault.owner, S3Owner):
        assert vault.owner.leftovers(vault.name("k")) == 0
    put(store, "k", b"again")
    assert store.read("k") == b"again"


def test_delete_of_what_is_not_there_leaves_nothing(vault: Vault):
    vault.open().delete("never/was")
    vault.place.faults.clear()
    vault.open().delete("never/was")
    assert not vault.place.faults.count("^DELETE")


def test_a_hold_is_respected_and_named(vault: Vault):
    if isinstance(vault.owner, S3Owner):
        put(vault.open(), "k")
        vault.owner.client.put_object_legal_hold(Bucket=vault.bucket, Key=vault.name("k"), LegalHold={"Status": "ON"})
    else:
        put(vault.open(object={"temporaryHold": True}), "k")
    with pytest.raises(ObjectLocked, match="hold"):
        vault.open().delete("k")
    assert keys(vault.open()) == ["k"]


# --- who may not ask, and what is asked -------------------------------------------------------------------------------------------------


BUCKET = {"s3": r"\?object-lock", "gcs": r"/b/[^/]+\?fields="}


def test_who_may_not_ask_about_the_bucket_still_hides_nothing(vault: Vault):
    store = vault.open()
    retained(store, "locked")
    put(store, "free")
    vault.place.faults.add("status", method="GET", match=BUCKET[vault.place.name], status=403, count=None)
    with pytest.raises(ObjectLocked):
        store.delete("locked")
    store.delete("free")
    assert vault.place.faults.count(BUCKET[vault.place.name]) == 1
    assert keys(store) == ["locked"]


def test_a_bucket_that_cannot_be_asked_is_an_error_and_no_guess(vault: Vault):
    store = vault.open()
    retained(store, "k")
    vault.place.faults.add("status", method="GET", match=BUCKET[vault.place.name], status=503, count=None)
    with pytest.raises(StoreError):
        store.delete("k")
    vault.place.faults.clear()
    assert keys(store) == ["k"]


@pytest.mark.parametrize("faulty", ["s3", "gcs"], indirect=True)
def test_a_delete_where_nothing_locks_is_one_request(faulty: Place):
    store = faulty.open()
    for key in "abc":
        put(store, key)
    store.delete("a")
    faulty.faults.clear()
    store.delete("b")
    store.delete("c")
    assert [line.split()[0] for line in faulty.faults.log()] == ["DELETE", "DELETE"]


@pytest.mark.parametrize("faulty", ["s3"], indirect=True)
def test_a_server_that_never_heard_of_locks_deletes(faulty: Place):
    store = faulty.open()
    put(store, "k")
    body = "<?xml version='1.0'?><Error><Code>NotImplemented</Code><Message>A header implies what is not there</Message></Error>"
    faulty.faults.add("status", method="GET", match=r"\?object-lock", status=501, body=body, count=None)
    store.delete("k")
    assert keys(store) == []
    faulty.faults.add("status", method="PUT", match="/k", status=501, body=body, count=None)
    with pytest.raises(RetentionRefused, match="NotImplemented"):
        retained(store, "k")
    with pytest.raises(StoreError, match="no way to do") as caught:
        put(store, "k")
    assert not isinstance(caught.value, RetentionRefused)


# --- places without locks ---------------------------------------------------------------------------------------------------------------


# Not a large one on moto, which drops a lock that comes with a multipart upload.
@pytest.mark.parametrize(
    ("place", "size"), [("s3", "small"), ("s3", "large"), ("moto", "small"), ("gcs", "small"), ("gcs", "large")], indirect=["place"]
)
def test_a_bucket_without_locks_refuses_and_nothing_is_left(place: Place, size):
    store, data = place.open(), blob(place.large) if size == "large" else b"small"
    with pytest.raises(RetentionRefused) as caught:
        retained(store, "k", data)
    assert (caught.value.op, caught.value.key, caught.value.exit_code) == ("create", "k", 4)
    assert "retain_days" in caught.value.hint
    nothing_of(place, store, "k")
    put(store, "k", b"the name is still free")


@pytest.mark.parametrize("place", ["local", "memory", "generic"], indirect=True)
def test_a_place_that_enforces_nothing_takes_the_date_and_says_so(place: Place):
    store = place.open()
    assert not store.enforces_retention
    retained(store, "k", b"kept", mode="compliance")
    assert store.read("k") == b"kept"
    store.delete("k")
    assert keys(store) == []


def test_a_role_that_may_not_lock_is_told_so(weed: S3Server, weed_faults):
    locks = weed.with_object_lock()
    said = (
        "<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>not authorized to perform: s3:PutObjectRetention</Message></Error>"
    )
    weed_faults.add("status", method="PUT", match="/role/k", status=403, body=said, count=None)
    store = open_store(locks.url("role"), **locks.arguments(endpoint_url=weed_faults.url))
    with pytest.raises(AccessDenied, match="PutObjectRetention"):
        retained(store, "k")


@s3_only
def test_a_date_that_has_passed_is_refused(vault: Vault):
    with pytest.raises(RetentionRefused):
        retained(vault.open(), "k", until=in_days(-1))
    assert keys(vault.open()) == []


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("s3://b", {"ObjectLockMode": "GOVERNANCE"}),
        ("s3://b", {"ObjectLockRetainUntilDate": "2030-01-01"}),
        ("gs://b", {"retention": {"mode": "Locked", "retainUntilTime": "2030-01-01T00:00:00Z"}}),
    ],
)
def test_a_date_that_is_the_same_for_ever_is_no_setting(url, settings):
    with pytest.raises(ConfigError) as caught:
        open_store(url, options={"object": settings})
    assert "retain_days" in caught.value.hint


@pytest.mark.parametrize(
    ("until", "mode"),
    [
        (datetime(2030, 1, 1), "governance"),
        (datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=1))), "governance"),
        (datetime(2030, 1, 1, microsecond=1, tzinfo=UTC), "governance"),
        (datetime(2030, 1, 1, tzinfo=UTC), "GOVERNANCE"),
    ],
)
def test_a_retention_is_exact(until, mode):
    with pytest.raises(ValueError, match="a retention"):
        Retention(until, mode)


# --- checksums: S3 takes nothing into a lock without one --------------------------------------------------------------------------------


@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
def test_every_way_to_write_into_a_lock_carries_a_checksum(moto: S3Server, checksums):
    locks = dataclasses.replace(moto, bucket=f"default-lock-{uuid.uuid4().hex[:12]}")
    locks.client().create_bucket(Bucket=locks.bucket, ObjectLockEnabledForBucket=True)
    default = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}}
    locks.client().put_object_lock_configuration(Bucket=locks.bucket, ObjectLockConfiguration=default)
    store = open_store(locks.url(), **locks.arguments(), checksums=checksums)
    retention = retained(store, "k", b"data")
    put(store, "by the bucket's default", b"data")
    store.replace("pointer", b"data")
    assert S3Owner(locks).retention(store.name("k")) == retention
    with pytest.raises(ClientError, match="Content-MD5"):
        bare(locks).put_object(Bucket=locks.bucket, Key="bare", Body=b"data")


def bare(server: S3Server) -> Any:
    """A client that sends no checksum: the server must notice, or the test above proves nothing."""
    client = server.client()
    client.meta.config.request_checksum_calculation = "when_required"
    return client


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"checksums": "when_required"}, "content-md5"),
        ({"checksums": "when_supported"}, "x-amz-checksum-crc32"),
        ({"algorithm": "SHA256"}, "x-amz-checksum-sha256"),
    ],
)
def test_every_part_of_a_large_object_carries_a_checksum(weed: S3Server, arguments, expected):
    locks = weed.with_object_lock()
    settings = {"ChecksumAlgorithm": arguments["algorithm"]} if "algorithm" in arguments else {}
    checksums = {k: v for k, v in arguments.items() if k == "checksums"}
    store = open_store(locks.url(), **locks.arguments(part_size=5 * MIB, object=settings), **checksums)
    put(store, "first", b"opens the client")
    sent: list[set[str]] = []
    store.client._fs.s3.meta.events.register(
        "before-send.s3.UploadPart",
        lambda request, **_: sent.append({*map(str.lower, request.headers), str(request.headers.get("X-Amz-Trailer"))}),
    )
    data = blob(13 * MIB)
    retention = retained(store, "k", data)
    assert [expected in headers for headers in sent] == [True] * 3
    assert all(("content-md5" in headers) == (expected == "content-md5") for headers in sent)
    assert store.read("k") == data
    assert S3Owner(locks).retention(store.name("k")) == retention
