"""Sums over manifests: whatever the order they come in, nothing is lost, counted twice, or kept."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstore import catalog
from coldstore.catalog import rfc3339
from coldstore.document import model
from coldstore.status import GROWTH_DAYS, Cost, Prices, Requests, Status, Tally, gather, requests_of
from coldstore.storage import layout
from coldstore.storage.local import LocalStore
from coldstore.tiers import EVERYBODY, Scope
from tests.unit import samples

DAY = 86_400_000
NOW = 1_772_071_200_000
PRICES = Prices()

scopes = st.sampled_from([EVERYBODY, Scope.user("alice"), Scope.user("all"), Scope.of_workspace("red")])
frames = st.lists(st.tuples(st.sampled_from([None, "notes", "things"]), st.integers(0, 10**6), st.integers(0, 10**6)), max_size=5)


@st.composite
def manifests(draw: st.DrawFn) -> model.Manifest:
    scope, timestamp = draw(scopes), draw(st.integers(NOW - 90 * DAY, NOW + 3 * DAY))
    return samples.manifest(
        id=layout.snapshot_id(scope, timestamp),
        snapshot_at=rfc3339(timestamp),
        uid=scope.uid,
        workspace=scope.workspace,
        stored_bytes=draw(st.integers(0, 10**10)),
        suspect=draw(st.sampled_from([None, None, "few rows"])),
        retained=draw(st.none() | st.just(model.Retained(until=rfc3339(NOW + DAY), mode="advisory"))),
        tiers=[model.TierSummary(tier=n, array=n, rows=n_rows, digest="0" * 32) for n, n_rows in (("notes", 3), ("things", 0))],
        frames=[
            model.Frame(tier=t, rows=0, offset=0, length=stored, plain=plain, crc32c="0" * 8, sha256="0" * 64)
            for t, plain, stored in draw(frames)
        ],
    )


many = st.lists(manifests(), max_size=30, unique_by=lambda m: m.id)


def tally(found: list[model.Manifest], **more: int) -> Tally:
    result = Tally(NOW, **more)
    for manifest in found:
        result.add(manifest)
    return result


def timestamp_of(manifest: model.Manifest) -> int:
    return layout.parse_id(manifest.id)[1]


@given(many)
def test_each_sum_is_of_all_snapshots(found):
    t, whole = tally(found), (len(found), sum(m.stored_bytes for m in found))
    assert (t.total.count, t.total.bytes) == whole
    assert (sum(a.count for a in t.months.values()), sum(a.bytes for a in t.months.values())) == whole
    kinds = t.kinds().values()
    assert (sum(k["snapshots"] for k in kinds), sum(k["storedBytes"] for k in kinds)) == whole
    assert sum(k["scopes"] for k in kinds) == len({(m.uid, m.workspace) for m in found})
    assert t.suspect == sum(m.suspect is not None for m in found)
    assert t.retained == sum(m.retained is not None for m in found)


@given(many, st.randoms(use_true_random=False))
def test_the_order_does_not_matter(found, rng):
    other = found.copy()
    rng.shuffle(other)
    a, b = tally(found), tally(other)
    assert a == b
    assert a.top() == b.top()


@given(many)
def test_the_newest_is_good_of_everybody_and_not_of_tomorrow(found):
    good = [m for m in found if (m.uid, m.workspace, m.suspect) == (None, None, None) and timestamp_of(m) <= NOW]
    newest = tally(found).newest
    assert (newest and newest.id) == max(good, key=timestamp_of, default=samples.manifest(id=None)).id
    if newest:
        (of,) = [m for m in found if m.id == newest.id]
        assert {n: t.rows for n, t in newest.tiers.items()} == of.rows()
        assert sum(t.stored_bytes for t in newest.tiers.values()) == sum(f.length for f in of.frames if f.tier)
        assert newest.tiers["notes"].bytes == sum(f.plain for f in of.frames if f.tier == "notes")


@given(many)
def test_growth_compares_two_spans_of_the_same_length(found):
    t = tally(found)
    ages = [(NOW - timestamp_of(m), m.stored_bytes) for m in found]
    span = GROWTH_DAYS * DAY
    assert t.last_days.bytes == sum(size for age, size in ages if 0 <= age < span)
    assert t.days_before.bytes == sum(size for age, size in ages if span <= age < 2 * span)
    assert t.future == sum(age < 0 for age, _ in ages)


@given(many)
def test_a_night_is_the_newest_day(found):
    t = tally(found)
    past = [m for m in found if timestamp_of(m) <= NOW]
    day = max((layout.date_of(timestamp_of(m)) for m in past), default="")
    those = [m for m in past if layout.date_of(timestamp_of(m)) == day]
    assert (t.night, t.night_snapshots) == (day, len(those))
    assert t.night_requests == sum((requests_of(m.stored_bytes) for m in those), Requests())


@given(st.integers(0, 10**12), st.integers(1, 10**9))
def test_requests_never_fall_as_a_document_grows(size, part):
    one, more = requests_of(size, part_size=part), requests_of(size + part, part_size=part)
    assert one.puts <= more.puts
    assert one.gets == more.gets
    assert requests_of(part, part_size=part) == requests_of(0, part_size=part) == requests_of(size)


@given(st.integers(0, 10**15), st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_estimate_is_linear(size, puts, gets):
    once, twice = (Cost.of(n * size, Requests(n * puts, n * gets), PRICES) for n in (1, 2))
    assert twice.total == pytest.approx(2 * once.total)


def test_the_estimate_by_hand():
    """100 GB, and each night 1,000 requests that write and 3,000 that read."""
    cost = Cost.of(100 * 10**9, Requests(1000, 3000), PRICES)
    assert cost.storage == pytest.approx(2.30)
    assert cost.requests == pytest.approx(30 * (0.0004 + 3 * 0.00004))


def test_a_disk_bills_nothing():
    assert Status("file:///x", Tally(NOW), {}, None, PRICES).cost is None
    assert Status("s3://b/x", Tally(NOW), {}, None, PRICES).cost is not None


def test_sums_are_kept_and_no_manifests():
    frame = model.Frame(tier="notes", rows=1, offset=0, length=1, plain=1, crc32c="0" * 8, sha256="0" * 64)

    def ten_thousand() -> Iterator[model.Manifest]:
        for n in range(10_000):
            yield samples.manifest(
                id=layout.snapshot_id(EVERYBODY, NOW - n * 60_000), frames=[msgspec.structs.replace(frame) for _ in range(100)]
            )

    counted = Tally(NOW)
    tracemalloc.start()
    try:
        for manifest in ten_thousand():
            counted.add(manifest)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert counted.total.count == 10_000
    assert peak < 1_000_000  # a hundred frames of ten thousand manifests would be more than 100 MB


# --- a store -----------------------------------------------------------------------------------------------------------------------


def put(store: LocalStore, key: str, data: bytes) -> int:
    with store.create(key) as out:
        out.write(data)
    return len(data)


def test_a_store(tmp_path):
    store, rng = LocalStore(str(tmp_path)), random.Random(1)
    sizes = {"snapshots": 0, "latest": 0, "drills": 0}
    for n, scope in enumerate([EVERYBODY, EVERYBODY, Scope.user("alice")]):
        data, manifest = samples.snapshot(
            {"notes": [b'{"id":%d}' % i for i in range(n + 1)]},
            id=layout.snapshot_id(scope, NOW - n * 40 * DAY),
            snapshot_at=rfc3339(NOW - n * 40 * DAY),
            uid=scope.uid,
        )
        key = layout.manifest_key(manifest.id)
        sizes["snapshots"] += put(store, manifest.document, data) + put(store, key, model.encode_manifest(manifest))
    sizes["latest"] += put(store, "latest/all.json", rng.randbytes(100))
    sizes["drills"] += put(store, layout.drill_key(manifest.id, NOW - DAY, proven=True), b"{}")
    sizes["drills"] += put(store, layout.drill_key(manifest.id, NOW, proven=False), b"{}")
    broken = layout.manifest_key(layout.snapshot_id(EVERYBODY, NOW - 5 * DAY))
    sizes["snapshots"] += put(store, broken, b"{}")
    found = gather(store, now=NOW, prices=PRICES)
    assert {n: a.bytes for n, a in found.folders.items()} == sizes
    assert (found.tally.damaged, found.tally.total.count, found.last_proven) == (1, 3, NOW - DAY)
    assert found.total.count == sum(1 for p in tmp_path.rglob("*") if p.is_file())
    told = found.as_dict()
    assert msgspec.json.decode(msgspec.json.encode(told)) == told
    assert told["newest"]["tiers"]["notes"]["rows"] == 1
    assert told["growth"]["last30Days"]["snapshots"] == 1
    assert sum(m.stored_bytes for m in catalog.manifests(store) if isinstance(m, model.Manifest)) == told["storedBytes"]


def test_an_empty_store(tmp_path):
    told = gather(LocalStore(str(tmp_path)), now=NOW, prices=PRICES).as_dict()
    assert (told["objects"], told["newest"], told["night"], told["cost"], told["lastProven"]) == (0, None, None, None, None)


def test_what_an_incremental_holds_is_not_what_there_is():
    """The newest is the newest, and the tiers are those of the newest that has all of them."""

    def of(day: int, kind: str, rows: int) -> model.Manifest:
        at = NOW - day * DAY
        tiers = [model.TierSummary(tier="notes", array="notes", rows=rows, digest="0" * 32)]
        return samples.manifest(id=layout.snapshot_id(EVERYBODY, at), snapshot_at=rfc3339(at), kind=kind, tiers=tiers)

    found = [of(9, "full", 100), of(8, "incremental", 1), of(7, "full", 300), of(6, "incremental", 2), of(5, "documents", 4)]
    for order in (found, found[::-1]):
        result = tally(order)
        assert result.incremental == 2
        assert result.newest is not None
        assert result.newest.id == found[3].id
        assert {name: tier.rows for name, tier in result.newest.tiers.items()} == {"notes": 300}
    assert tally(found[1:2]).newest is not None
    assert tally(found[1:2]).newest.tiers == {}
