"""What the campaigns of faults found, each as a test of its own: deterministic, and small enough to say what was wrong."""

from __future__ import annotations

import pytest

from coldstore.errors import StoreUnavailable
from coldstore.storage.open import open_store
from tests.torture.faults import store_settings
from tests.torture.world import World

ATTEMPTS = 3
KEY = r"(/|%2F)k(\?|$)"
#: (name of the server's fixture, the request that publishes a small object, the one that looks whose an object is)
SERVERS = {
    "weed": ({"method": "PUT", "match": "manifest"}, {"method": "HEAD", "match": "manifest"}),
    # a user's document is longer than a chunk, and goes up in another way
    "gcs": ({"method": "POST", "match": "uploadType=multipart"}, {"method": "GET", "match": "/o/.*manifest"}),
}


@pytest.fixture(params=SERVERS)
def behind(request):
    """(server, proxy before it, publish, look)"""
    return request.getfixturevalue(request.param), request.getfixturevalue(f"{request.param}_faults"), *SERVERS[request.param]


def test_an_object_that_nobody_can_look_at_is_not_called_anothers(behind):
    """The reply was lost, the store said "taken", and whose it is could not be asked: a caller told "taken" would go on elsewhere."""
    server, proxy, publish, look = behind
    store = open_store(server.url(), **store_settings(server, proxy.url, attempts=ATTEMPTS))
    proxy.add("lost_reply", **publish)
    proxy.add("status", status=500, count=None, **look)
    with pytest.raises(StoreUnavailable, match="whether 'a/manifest' was written") as caught, store.create("a/manifest") as out:
        out.write(b"ours")
    assert (caught.value.op, caught.value.key) == ("create", "a/manifest")
    assert caught.value.hint
    proxy.clear()
    assert store.read("a/manifest") == b"ours"


def test_a_manifest_that_nobody_can_look_at_keeps_its_document(behind, world: World):
    """Taken for another's, the document would be deleted from under the manifest that names it."""
    server, proxy, publish, look = behind
    place = {"url": server.url(), "database_url": world.source}
    with world.cold(place, **store_settings(server, proxy.url, attempts=ATTEMPTS)) as cold:
        proxy.add("lost_reply", **publish)
        proxy.add("status", status=500, count=None, **look)
        with pytest.raises(StoreUnavailable):
            cold.snapshot(uid="u1")
        proxy.clear()
        (verdict,) = cold.verify(deep=True)
        assert verdict.ok
        assert cold.orphans() == []


@pytest.mark.parametrize("fault", [{"action": "status", "status": 429}, {"action": "stall", "seconds": 3.0}])
def test_what_passes_is_waited_for_and_what_lasts_is_given_up(behind, fault):
    server, proxy, *_ = behind
    store = open_store(server.url(), **store_settings(server, proxy.url, attempts=ATTEMPTS))
    with store.create("k") as out:
        out.write(b"data")
    proxy.clear()
    proxy.add(**fault, method="GET", match=KEY)
    assert store.read("k") == b"data"
    proxy.clear()
    proxy.add(**fault, method="GET", match=KEY, count=None)
    with pytest.raises(StoreUnavailable):
        store.read("k")
    assert 1 <= proxy.count(r"^GET ") <= ATTEMPTS
