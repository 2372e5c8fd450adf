"""What only a cloud store has: settings of objects, checksums, parts that are counted, credentials from the environment, uploads to sweep."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from coldstore.errors import AccessDenied, ConfigError, ObjectExists, StoreError
from coldstore.storage import s3 as s3_module
from coldstore.storage.open import open_store
from tests.contract.conftest import MIB, Place
from tests.contract.test_store import blob, keys, put
from tests.servers import GcsServer, S3Server

both_s3 = pytest.mark.parametrize("place", ["s3", "moto"], indirect=True)


@pytest.fixture
def no_credentials(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))


@both_s3
def test_settings_go_with_every_new_object(place: Place, request):
    server: S3Server = request.getfixturevalue("weed" if place.name == "s3" else "moto")
    settings = {"StorageClass": "STANDARD_IA", "ContentType": "application/json", "Metadata": {"team": "memory"}}
    store = place.open(object=settings)
    put(store, "small", b"{}")
    put(store, "large", blob(place.large))
    store.replace("pointer", b"{}")
    for key in ("small", "large", "pointer"):
        head = server.client().head_object(Bucket=server.bucket, Key=f"{place.root}/{key}")
        assert (head["StorageClass"], head["ContentType"], head["Metadata"]["team"]) == ("STANDARD_IA", "application/json", "memory")
        assert ("coldstore-nonce" in head["Metadata"]) == (key != "pointer")
    with pytest.raises(ObjectExists):
        put(store, "small")


def test_settings_of_a_gcs_object(gcs: GcsServer):
    store = open_store(gcs.url(), **gcs.arguments(chunk_size=MIB, object={"storageClass": "NEARLINE", "metadata": {"team": "memory"}}))
    put(store, "small", b"{}")
    put(store, "large", blob(3 * MIB))
    for key in ("small", "large"):
        fields = store.fields(key)
        assert fields["metadata"]["team"] == "memory"
        assert fields["metadata"]["coldstore-nonce"]
    assert store.fields("small")["storageClass"] == "NEARLINE"


@pytest.mark.parametrize(
    ("place", "settings"),
    [
        ("s3", {"ServerSideEncryption": "AES256"}),
        ("moto", {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/memory"}),
    ],
    indirect=["place"],
)
def test_encryption_is_asked_for_by_the_request_that_makes_the_object(place: Place, settings, request):
    server: S3Server = request.getfixturevalue("weed" if place.name == "s3" else "moto")
    data = blob(place.large)

    def seen(key: str) -> dict[str, object]:
        head = server.client().head_object(Bucket=server.bucket, Key=f"{place.root}/{key}")
        return {name: head.get(name) for name in settings}

    put(place.open(), "plain", b"{}")
    assert seen("plain") == dict.fromkeys(settings)
    store = place.open(object=settings)
    put(store, "small", b"{}")
    put(store, "large", data)
    store.replace("pointer", b"{}")
    assert [seen(key) for key in ("small", "large", "pointer")] == [settings] * 3
    assert (store.read("small"), store.read("large")) == (b"{}", data)
    assert store.read("large", start=6 * MIB, length=1000) == data[6 * MIB : 6 * MIB + 1000]


def test_the_key_of_a_gcs_object_goes_with_the_request_that_makes_it(gcs: GcsServer):
    key = "projects/p/locations/l/keyRings/r/cryptoKeys/memory"
    store = open_store(gcs.url(), **gcs.arguments(chunk_size=MIB, kms_key=key))
    put(store, "small", b"{}")
    put(store, "large", blob(3 * MIB))
    store.replace("pointer", b"{}")
    assert [store.fields(name).get("kmsKeyName") for name in ("small", "large", "pointer")] == [key] * 3


@both_s3
def test_without_checksums_of_the_newer_kind(place: Place, request):
    server: S3Server = request.getfixturevalue("weed" if place.name == "s3" else "moto")
    arguments = {**server.arguments(part_size=5 * MIB), "checksums": "when_required", "path_style": True}
    store = open_store(f"s3://{server.bucket}/{place.root}", **arguments)
    data = blob(place.large)
    put(store, "small", b"small")
    put(store, "large", data)
    assert (store.read("small"), store.read("large")) == (b"small", data)
    assert "ChecksumAlgorithm" not in store.upload_settings
    with pytest.raises(ObjectExists):
        put(store, "large", data)


def test_all_parts_but_the_last_are_of_equal_size(weed: S3Server, weed_faults, monkeypatch):
    sizes = []
    real = s3_module._Upload.send

    def send(self, data, **more):
        sizes.append(len(data))
        real(self, data, **more)

    monkeypatch.setattr(s3_module._Upload, "send", send)
    store = open_store(weed.url(), **weed.arguments(part_size=5 * MIB))
    with store.create("k") as writer:
        for size in (3 * MIB, 1, 11 * MIB, 77, 4 * MIB):
            writer.write(bytes(size))
    assert sizes == [5 * MIB, 5 * MIB, 5 * MIB, 3 * MIB + 78]


def test_too_many_parts_say_what_to_do(weed: S3Server, monkeypatch):
    monkeypatch.setattr(s3_module, "MOST_PARTS", 2)
    prefix = "too-many-parts"
    store = open_store(weed.url(prefix), **weed.arguments(part_size=5 * MIB))
    put(store, "fits", bytes(10 * MIB))
    with pytest.raises(StoreError) as caught:
        put(store, "larger", bytes(10 * MIB + 1))
    assert "part_size" in caught.value.hint
    assert keys(store) == ["fits"]
    assert not [key for key in weed.open_uploads() if key.startswith(prefix)]


def test_abandoned_uploads_are_swept_below_the_prefix_only(weed: S3Server):
    client = weed.client()
    for name in ("sweep/mine/a", "sweep/mine/b", "sweep/mine2/theirs", "sweep/theirs"):
        client.create_multipart_upload(Bucket=weed.bucket, Key=name)
    store = open_store(weed.url("sweep/mine"), **weed.arguments())
    assert store.sweep(before=datetime.now(UTC) - timedelta(days=1)) == []
    assert store.sweep(before=datetime.now(UTC) + timedelta(days=1)) == ["a", "b"]
    assert sorted(key for key in weed.open_uploads() if key.startswith("sweep/")) == ["sweep/mine2/theirs", "sweep/theirs"]


def test_abandoned_temporary_files_are_swept(tmp_path):
    store = open_store(str(tmp_path))
    put(store, "a/k")
    (tmp_path / "a" / ".tmp-left").write_bytes(b"x")
    assert store.sweep(before=datetime.now(UTC) - timedelta(days=1)) == []
    assert store.sweep(before=datetime.now(UTC) + timedelta(days=1)) == [str(tmp_path / "a" / ".tmp-left")]
    assert keys(store) == ["a/k"]
    assert not (tmp_path / "a" / ".tmp-left").exists()


def test_s3_credentials_and_endpoint_from_the_environment(weed: S3Server, no_credentials, monkeypatch):
    for name, value in weed.env.items():
        monkeypatch.setenv(name, value)
    store = open_store(weed.url())
    put(store, "k", b"x")
    assert keys(store) == ["k"]


def test_gcs_emulator_from_the_environment(gcs: GcsServer, no_credentials, monkeypatch):
    for name, value in gcs.env.items():
        monkeypatch.setenv(name, value)
    store = open_store(gcs.url())
    put(store, "k", b"x")
    assert keys(store) == ["k"]


def test_no_credentials_at_all(weed: S3Server, no_credentials):
    store = open_store(weed.url(), endpoint_url=weed.endpoint_url, region="us-east-1")
    with pytest.raises(AccessDenied) as caught:
        store.read("k")
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


def test_a_profile_that_is_not_there(weed: S3Server, no_credentials):
    with pytest.raises(ConfigError, match="nobody"):
        open_store(weed.url(), endpoint_url=weed.endpoint_url, options={"profile": "nobody"}).read("k")


def test_gcs_credentials_that_are_not_there(no_credentials, tmp_path):
    with pytest.raises(AccessDenied) as caught:
        open_store("gs://bucket/p", options={"token": str(tmp_path / "none.json")})
    assert "GOOGLE_APPLICATION_CREDENTIALS" in caught.value.hint


def test_objects_at_the_root_of_a_bucket(weed: S3Server, gcs: GcsServer):
    for server in (weed, gcs):
        store = open_store(server.url("").rstrip("/"), **server.arguments())
        put(store, "at-the-root/k", b"x")
        assert store.url == f"{server.url('').partition('://')[0]}://{server.bucket}"
        assert keys(store, "at-the-root/") == ["at-the-root/k"]
        assert "at-the-root" in store.folders()
        store.delete("at-the-root/k")
