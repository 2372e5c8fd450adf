"""Pruning on every kind of store: more objects than a page holds, deletions that fail, uploads that nobody finished; and lifecycle rules
that servers accept."""

from __future__ import annotations

import threading
import time

import pytest

from coldstore import pointers
from coldstore.catalog import manifests
from coldstore.lifecycle import rules
from coldstore.prune import prune
from coldstore.retention import Policy
from coldstore.storage import layout
from coldstore.storage.open import open_store
from coldstore.verify import verify
from tests.contract.conftest import Place
from tests.unit.histories import DAY, NOON, bulk, commit, days, whole

THREE = Policy(last=3, floor=1)
FAR = NOON + 400 * DAY


def test_prune_on_every_store(place: Place):
    store = place.open()
    made = [commit(store, NOON - 9 * DAY, label="x"), *days(store, range(6, -1, -1))]
    report = prune(store, THREE, now=NOON, dry_run=False)
    assert report.ok
    assert whole(store) == {m.id for m in (made[0], *made[-3:])}
    assert [v.problems for v in verify(store, manifests(store), whole=True) if not v.ok] == []
    assert pointers.check(store)[1] == []
    assert prune(store, THREE, now=NOON, dry_run=False).deleted == []


@pytest.mark.parametrize(
    ("place", "snapshots", "strangers", "page"), [("local", 5100, 0, 10_000), ("s3", 500, 100, 1000)], indirect=["place"]
)
def test_more_objects_under_one_prefix_than_any_page_holds(place: Place, snapshots: int, strangers: int, page: int):
    """A listing that stops at 1,000 keys would keep most of them for ever; here it would not even come to the snapshots."""
    store = place.open()
    made = bulk(store, snapshots, strangers=strangers)
    assert sum(1 for _ in store.list(layout.folder_of(made[0]))) == 2 * snapshots + strangers > page
    report = prune(store, THREE, now=FAR, dry_run=False)
    assert (report.failures, len(report.decisions), len(report.deleted)) == ({}, snapshots, snapshots - 3)
    assert len(report.strangers) == strangers
    left = {k for i in made[-3:] for k in (layout.document_key(i), layout.manifest_key(i))}
    assert {o.key for o in store.list(layout.SNAPSHOTS)} == left | set(report.strangers)


@pytest.mark.parametrize("faulty", ["s3", "gcs"], indirect=True)
def test_deletions_that_the_store_refuses(faulty: Place):
    store = faulty.open()
    made = days(store, range(9, -1, -1))
    assert faulty.faults
    faulty.faults.add("status", method="DELETE", match=made[2].id, status=403, count=100)
    report = prune(store, THREE, now=NOON, dry_run=False)
    assert list(report.failures) == [made[2].id]
    assert set(report.deleted) == {m.id for m in (*made[:2], *made[3:-3])}
    faulty.faults.clear()
    report = prune(store, THREE, now=NOON, dry_run=False)
    assert (report.deleted, report.ok) == ([made[2].id], True)
    assert pointers.check(store)[1] == []


@pytest.mark.parametrize("place", ["s3", "gcs"], indirect=True)
def test_two_at_once(place: Place):
    stores = [place.open(), place.open()]
    made = days(stores[0], range(20, -1, -1))
    barrier, reports = threading.Barrier(2), []

    def one(store) -> None:
        barrier.wait()
        reports.append(prune(store, THREE, now=NOON, dry_run=False))

    threads = [threading.Thread(target=one, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r.failures for r in reports] == [{}, {}]
    assert whole(stores[0]) == {m.id for m in made[-3:]}
    assert [v.problems for v in verify(stores[0], manifests(stores[0]), whole=True) if not v.ok] == []


def test_unfinished_uploads_of_this_store_alone(weed):
    client = weed.client()
    url = weed.url()
    prefix = url.partition(f"{weed.bucket}/")[2]
    theirs = f"{prefix}-other/a"
    for name in (f"{prefix}/snapshots/x", theirs):
        client.create_multipart_upload(Bucket=weed.bucket, Key=name)
    store = open_store(url, **weed.arguments())
    days(store, [0])
    now = time.time_ns() // 1_000_000
    assert prune(store, THREE, now=now, dry_run=False).unfinished == []
    assert prune(store, THREE, now=now + 2 * DAY).unfinished == ["snapshots/x"]
    assert prune(store, THREE, now=now + 2 * DAY, dry_run=False).swept == ["snapshots/x"]
    assert [key for key in weed.open_uploads() if key.startswith((prefix + "-", prefix + "/"))] == [theirs]
    client.abort_multipart_upload(
        Bucket=weed.bucket,
        Key=theirs,
        UploadId=next(u["UploadId"] for u in client.list_multipart_uploads(Bucket=weed.bucket)["Uploads"] if u["Key"] == theirs),
    )


@pytest.mark.parametrize("server", ["weed", "moto"])
@pytest.mark.parametrize("policy", [None, Policy(days=30, labels=False)])
def test_servers_take_the_lifecycle_rules(request, server, policy):
    server = request.getfixturevalue(server)
    client = server.client()
    bucket = f"lifecycle-{'expiry' if policy else 'safe'}"
    client.create_bucket(Bucket=bucket)
    given = rules(f"s3://{bucket}/agents", policy=policy).configuration
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=given)
    there = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert sorted(there, key=lambda r: r["ID"]) == sorted(given["Rules"], key=lambda r: r["ID"])
    client.delete_bucket(Bucket=bucket)
