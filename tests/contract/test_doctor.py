"""The doctor on real stores: those that keep their promises, and those that do not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from coldstore.app import ColdStore
from coldstore.config import build
from coldstore.diagnosis import Diagnosis
from coldstore.doctor import examine
from coldstore.storage import checkup
from coldstore.storage.local import LocalStore
from tests.servers import GcsServer, S3Server
from tests.servers.liars import bare_gcs_server, rclone_server
from tests.servers.s3 import KEY


@pytest.fixture(scope="session")
def rclone() -> Iterator[S3Server]:
    with rclone_server() as server:
        yield server


@pytest.fixture(scope="session")
def bare_gcs() -> Iterator[GcsServer]:
    with bare_gcs_server() as server:
        yield server


def settings_for(server: S3Server | GcsServer, **more: Any) -> dict[str, Any]:
    return {"url": server.url(), **server.arguments(), **more}


def examined(settings: dict[str, Any]) -> dict[str, Diagnosis]:
    """name → diagnosis; whatever was found, nothing of the visit is left."""
    with ColdStore(build(settings, {})) as store:
        found = {d.name: d for d in examine(store, database=False).diagnoses}
        if found["store: reachable"].state == "ok":
            assert list(store.store.list(checkup.FOLDER)) == []
    return found


def bad(found: dict[str, Diagnosis], *states: str) -> set[str]:
    states = states or ("failed", "warning")
    assert all(d.hint for d in found.values() if d.state in {"failed", "warning"})
    return {name for name, d in found.items() if d.state in states}


@pytest.mark.parametrize("name", ["weed", "moto", "gcs"])
def test_servers_that_keep_their_promises(name, request):
    server = request.getfixturevalue(name)
    before = server.open_uploads()  # other tests leave some
    found = examined(settings_for(server))
    assert bad(found) == set()
    assert found["store: create-only, large"].state == "ok"
    assert found["clocks"].detail == "those of this machine, the store agree"
    assert server.open_uploads() == before


@pytest.mark.parametrize("url", ["file://{}/store", "memory://doctor", "local://{}/generic"])
def test_places_without_a_server(url, tmp_path):
    found = examined({"url": url.format(tmp_path)})
    assert bad(found) == ({"store: create-only"} if url.startswith("local:") else set())
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_store_that_overwrites_is_noticed(rclone):
    found = examined(settings_for(rclone, checksums="when_required"))
    assert bad(found) == {"store: create-only", "store: create-only, racing", "store: create-only, large"}
    assert "overwrites an object that it was told only to create" in found["store: create-only"].detail


def test_checksums_that_do_not_fit_are_noticed(rclone):
    assert "store: ranges" in bad(examined(settings_for(rclone)))


def test_a_store_that_overwrites_large_objects_is_noticed(bare_gcs):
    assert bad(examined(settings_for(bare_gcs))) == {"store: create-only, large"}


# --- locks -------------------------------------------------------------------------------------------------------------------------


def test_locks_that_hold(weed, gcs):
    for server in (weed.with_object_lock(), gcs.with_object_retention()):
        found = examined(settings_for(server, retain_days=30, retain_mode="compliance"))
        assert bad(found) == set()
        assert "governance" in found["store: retention"].detail
        assert found["store: left as it was"].state == "ok"


def test_locks_that_are_dropped_are_noticed(moto):
    """moto drops a lock that comes with an upload in parts."""
    found = examined(settings_for(moto.with_object_lock(), retain_days=30))
    assert bad(found) == {"store: retention"}
    assert "(locked, large)" in found["store: retention"].detail


def test_a_bucket_without_locks(weed, gcs, tmp_path):
    for server in (weed, gcs):
        assert bad(examined(settings_for(server, retain_days=30)), "failed") == {"store: retention"}
    assert bad(examined({"path": str(tmp_path), "retain_days": 30})) == {"store: retention"}


def test_a_bucket_that_locks_everything_is_left_alone(moto):
    server = moto.with_object_lock()
    client = server.client()
    bucket = "coldstore-test-default-lock"
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 7}}
    client.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule})
    found = examined({**settings_for(server), "url": f"s3://{bucket}/p"})
    assert bad(found) == {"store: no lock by default"}
    assert "governance for 7 days" in found["store: no lock by default"].detail
    assert found["store: write and read"].state == "skipped"
    assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


# --- what is not there -------------------------------------------------------------------------------------------------------------


def test_a_store_that_does_not_answer(weed):
    settings = settings_for(weed)
    for wrong in ({"endpoint_url": "http://127.0.0.1:9"}, {"options": {"key": KEY, "secret": "wrong"}}):
        found = examined({**settings, **wrong, "options": {**settings["options"], **wrong.get("options", {}), "attempts": 1}})
        assert bad(found) == {"store: reachable"}
        assert found["store: delete"].state == "skipped"


def test_where_the_buckets_name_stands(weed):
    """With a name for a server there are two ways; `coldstore-test.localhost` leads nowhere or to the same server."""
    local = weed.endpoint_url.replace("127.0.0.1", "localhost")
    found = examined(settings_for(weed, endpoint_url=local))
    assert found["store: addressing"].state == "ok"
    assert "in the path" in found["store: addressing"].detail
    assert "store: addressing" not in examined(settings_for(weed))


def test_uploads_that_stay_are_noticed(weed, weed_faults):
    """The store never gets to hear that the upload is given up."""
    weed_faults.add("status", method="DELETE", match="uploadId=", status=403, count=None)
    found = examined(settings_for(weed, endpoint_url=weed_faults.url))
    assert "store: abandoned upload" in bad(found, "warning")
    client = weed.client()
    for upload in client.list_multipart_uploads(Bucket=weed.bucket).get("Uploads", []):
        if checkup.FOLDER in upload["Key"]:
            client.abort_multipart_upload(Bucket=weed.bucket, Key=upload["Key"], UploadId=upload["UploadId"])


def test_bytes_that_change_on_the_way_are_noticed(weed, weed_faults):
    weed_faults.add("flip", method="GET", match="/large$", after=1000, count=None)
    found = examined(settings_for(weed, endpoint_url=weed_faults.url, checksums="when_required"))
    assert bad(found) == {"store: large object"}
    assert "other bytes" in found["store: large object"].detail


def test_deletes_that_are_refused_are_told_with_what_stays(weed, weed_faults):
    weed_faults.add("status", method="DELETE", match="/(deleted|empty)$", status=403, count=None)
    with ColdStore(build(settings_for(weed, endpoint_url=weed_faults.url), {})) as store:
        found = {d.name: d for d in examine(store, database=False).diagnoses}
        assert bad(found) >= {"store: delete", "store: left as it was"}
        weed_faults.clear()
        left = [item.key for item in store.store.list(checkup.FOLDER)]
        assert {key.rpartition("/")[2] for key in left} == {"deleted", "empty"}
        assert left[0] in found["store: left as it was"].detail
        for key in left:
            store.store.delete(key)


# --- the end -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["store: listing", "store: create-only, large", "store: speed"])
def test_an_interruption_leaves_nothing(tmp_path, at):
    class Impatient:
        def start(self, what: str, *, total_bytes: int | None = None) -> None:
            if what == at:
                raise KeyboardInterrupt

    with ColdStore(build({"path": str(tmp_path)}, {})) as store, pytest.raises(KeyboardInterrupt):
        examine(store, database=False, progress=Impatient())
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_locked_objects_are_waited_for_after_an_interruption(weed):
    server = weed.with_object_lock()
    with ColdStore(build(settings_for(server), {})) as store:
        visit = checkup.StoreCheckup(store.store, lock=True)
        visit._holds("locked", b"x", seconds=2)
        started = time.monotonic()
        visit.close()
        assert time.monotonic() - started > 1
        assert list(store.store.list(checkup.FOLDER)) == []


def test_racers_that_fail_do_not_wait_for_ever(tmp_path):
    """One that cannot even begin must not keep the others at the start."""
    store = LocalStore(str(tmp_path))
    visit = checkup.StoreCheckup(store)
    visit._write("raced", b"there before")
    with pytest.raises(Exception, match="0 were told"):
        visit._racing()
