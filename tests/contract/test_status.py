"""The requests that `status` reckons with, counted on the wire: S3 through a proxy that keeps a list."""

from __future__ import annotations

import re

import pytest

from coldstore.app import ColdStore
from coldstore.config import build
from coldstore.status import Requests
from tests.acceptance.program import remember

MIB = 1 << 20


def counted(lines: list[str]) -> Requests:
    """Listings cost what writes cost; a look at an object costs what a read does."""
    kinds = [(line.split()[0], "list-type=2" in line) for line in lines]
    puts = sum(method in {"PUT", "POST"} or listing for method, listing in kinds)
    return Requests(puts, sum(method in {"GET", "HEAD"} and not listing for method, listing in kinds))


@pytest.mark.parametrize("padding", [20, 100_000])  # a document of one part, and of several
def test_a_night(weed, weed_faults, database, padding):
    remember(database, "uid_alice", days=120, padding=padding)
    remember(database, "uid_bob")
    arguments = weed.arguments(endpoint_url=weed_faults.url, part_size=5 * MIB)
    with ColdStore(build({"url": weed.url(), **arguments}, {"database_url": database})) as store:

        def run() -> None:
            store.snapshot()
            assert len(list(store.snapshot_each_user())) == 2

        def night() -> Requests:
            return store.status().tally.night_requests

        run()  # the first has no pointers to read, and lists
        before = night()
        weed_faults.clear()
        run()
        seen = counted(weed_faults.log())
        after = night()
        assert Requests(after.puts - before.puts, after.gets - before.gets) == seen
        assert (seen.puts > 9) == (padding > 20)
        assert store.status().tally.night_snapshots == 6


def test_it_writes_nothing_and_asks_little(weed, weed_faults, database):
    remember(database, "uid_alice")
    arguments = weed.arguments(endpoint_url=weed_faults.url)
    with ColdStore(build({"url": weed.url(), **arguments}, {"database_url": database})) as store:
        store.snapshot()
        weed_faults.clear()
        found = store.status()
    lines = weed_faults.log()
    assert {line.split()[0] for line in lines} == {"GET"}
    manifests = [line for line in lines if re.search(r"\.manifest\.json", line)]
    assert len(manifests) == 1
    assert found.cost is not None
    assert found.cost.total > 0
    assert set(found.folders) == {"latest", "snapshots"}
