"""What a list costs on S3, in requests: docs/how-to/storage.md says so."""

from __future__ import annotations

import msgspec
import pytest

from coldstore import catalog
from coldstore.app import ColdStore
from coldstore.config import build
from coldstore.document import model
from coldstore.errors import ColdStoreError
from coldstore.storage import layout
from coldstore.storage.open import open_store
from coldstore.tiers import EVERYBODY, Scope
from tests.unit.samples import manifest as sample

DAYS, USERS = 30, 8
DAY = 86_400_000
FIRST = 1_760_000_000_000


def written(store, scope: Scope, timestamp: int) -> str:
    """A manifest and a document; a list reads no more of it than the former."""
    snapshot = layout.snapshot_id(scope, timestamp)
    whose = {"uid": scope.uid, "workspace": scope.workspace}
    of = msgspec.structs.replace(
        sample(), id=snapshot, document=layout.document_key(snapshot), snapshot_at=catalog.rfc3339(timestamp), checksum="", **whose
    )
    for key, data in ((of.document, b"{}"), (layout.manifest_key(snapshot), model.encode_manifest(model.complete(of)))):
        with store.create(key) as out:
            out.write(data)
    return snapshot


@pytest.fixture
def counted(weed, weed_faults):
    """A store of many users over some days, behind a proxy that counts; and what was asked of it."""
    url = weed.url()
    store = open_store(url, **weed.arguments())
    for day in range(DAYS):
        for user in range(USERS):
            written(store, Scope.user(f"uid_{user}"), FIRST + day * DAY + user)
        written(store, EVERYBODY, FIRST + day * DAY + USERS)
    store.close()
    weed_faults.clear()
    with ColdStore(build({"url": url, **weed.arguments(endpoint_url=weed_faults.url)}, {})) as cold:
        yield cold, weed_faults


def test_of_one_user_it_is_one_listing_for_each_day_and_one_manifest_for_each_snapshot(counted):
    cold, proxy = counted
    found = list(cold.list_snapshots(uid="uid_7"))
    assert not [i for i in found if isinstance(i, ColdStoreError)]
    assert [i.snapshot_at for i in found] == [catalog.rfc3339(FIRST + day * DAY + 7) for day in reversed(range(DAYS))]
    assert proxy.count(r"GET .*list-type=2") == 1 + DAYS + 1  # the days, each of them, the drills
    assert proxy.count(r"GET .*manifest\.json") == DAYS


def test_of_one_day_it_is_one_listing(counted):
    cold, proxy = counted
    (found,) = cold.list_snapshots(uid="uid_7", date=layout.date_of(FIRST))
    assert found.uid == "uid_7"
    assert proxy.count(r"GET .*list-type=2") == 1 + 1
    assert proxy.count(r"GET .*manifest\.json") == 1


def test_a_page_costs_what_it_shows(counted):
    cold, proxy = counted
    (found,) = cold.list_snapshots(uid="uid_7", limit=1)
    assert found.snapshot_at == catalog.rfc3339(FIRST + (DAYS - 1) * DAY + 7)
    # Of days and of manifests eight are asked at once and one waits, so some more are looked at than were needed.
    assert proxy.count(r"GET .*list-type=2") <= 1 + 18 + 1
    assert proxy.count(r"GET .*manifest\.json") <= 9
    first = list(cold.list_snapshots(limit=USERS))
    proxy.clear()
    (following,) = cold.list_snapshots(limit=1, before=first[-1].id)
    assert following.id < first[-1].id
    assert proxy.count(r"GET .*list-type=2") <= 1 + 2 + 1  # everybody's days are listed one after the other
