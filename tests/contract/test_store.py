"""What every store promises, on every place. A deviation of a test server is in the table in `conftest.py`, nowhere else."""

from __future__ import annotations

import array
import gc
import hashlib
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from coldstore.errors import AccessDenied, BucketMissing, InvalidKey, ObjectExists, ObjectMissing
from coldstore.storage.store import ObjectInfo, Store
from tests.contract.conftest import MIB, Place

STRANGE_KEYS = [
    "per%20cent 100%.json",
    "%2F",
    "%61ll",
    "a b/c  d/ e",
    "ünïcödé/日本語.json",
    "emoji/😀🧊.json",
    "plus+plus",
    "..a/b..c/x..",
    "...",
    "what?x=1&y=2#frag",
    "colon:semi;comma,at@",
    "quotes'\"`",
    "star*[x]{y}",
    "ws~x/all.json",
    "dollar$paren(s)!=",
    "<angle>&amp;",
]
BAD_KEYS = ["", "/a", "a/", "a//b", "..", "../a", "a/../b", "a/..", ".", "a/./b", "a\0b", "a/.tmp-x", "half a pair \ud83d"]


def put(store: Store, key: str, data: bytes = b"x") -> None:
    with store.create(key) as writer:
        writer.write(data)


def keys(store: Store, prefix: str = "") -> list[str]:
    return [o.key for o in store.list(prefix)]


def nothing_of(place: Place, store: Store, key: str) -> None:
    """No object, no temporary file, no upload, by any way of looking."""
    with pytest.raises(ObjectMissing):
        store.read(key)
    with pytest.raises(ObjectMissing):
        store.stat(key)
    assert keys(store) == []
    assert place.leftovers() == []
    assert place.uploads() == []


def eventually(condition: Callable[[], bool]) -> None:
    """What goes on behind the program's back is waited for, as long as it takes."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came true")


def blob(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


# --- creating ---------------------------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read(store):
    put(store, "snapshots/2026-02-26/memory-all-1.json", b'{"a":1}')
    assert store.read("snapshots/2026-02-26/memory-all-1.json") == b'{"a":1}'
    assert store.stat("snapshots/2026-02-26/memory-all-1.json") == ObjectInfo("snapshots/2026-02-26/memory-all-1.json", 7)


def test_another_store_on_the_same_root_sees_it_at_once(place):
    put(place.open(), "k", b"seen")
    other = place.open()
    assert (other.read("k"), keys(other)) == (b"seen", ["k"])


def test_an_existing_object_is_never_overwritten(place, store):
    put(store, "k", b"first")
    for data in (b"second", b"", blob(place.large)):
        with pytest.raises(ObjectExists) as caught:
            put(store, "k", data)
        assert caught.value.key == "k"
    assert store.read("k") == b"first"
    assert (place.leftovers(), place.uploads()) == ([], [])


def test_a_large_existing_object_is_never_overwritten(place, store):
    data = blob(place.large)
    put(store, "k", data)
    with pytest.raises(ObjectExists):
        put(store, "k", data)
    with pytest.raises(ObjectExists):
        put(store, "k", b"")
    assert store.read("k") == data
    assert (place.leftovers(), place.uploads()) == ([], [])


def test_an_empty_object_is_an_object(store):
    put(store, "empty", b"")
    with store.create("never written to"):
        pass
    assert store.read("empty") == b""
    assert store.read("empty", start=0, length=10) == b""
    assert [(o.key, o.size) for o in store.list()] == [("empty", 0), ("never written to", 0)]


def test_an_object_over_an_empty_one_is_refused(store):
    put(store, "empty", b"")
    with pytest.raises(ObjectExists):
        put(store, "empty", b"something")
    assert store.read("empty") == b""


@pytest.mark.parametrize("size", ["small", "large"])
def test_an_exception_while_writing_publishes_nothing(place, store, size):
    data = blob(place.large if size == "large" else 1000)
    with pytest.raises(KeyError, match="source"), store.create("k") as writer:  # noqa: PT012 - a source that fails midway
        writer.write(data)
        raise KeyError("source")
    nothing_of(place, store, "k")
    put(store, "k", b"the name is still free")


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_dropped_writer_publishes_nothing(place, store, size):
    writer = store.create("k")
    writer.__enter__().write(blob(place.large if size == "large" else 1000))
    del writer
    gc.collect()
    eventually(lambda: not place.uploads() and not place.leftovers())
    nothing_of(place, store, "k")


def test_nothing_is_visible_while_it_is_written(place, store):
    with store.create("k") as writer:
        writer.write(blob(place.large))
        assert keys(store) == []
        with pytest.raises(ObjectMissing):
            store.stat("k")
    assert keys(store) == ["k"]


def test_a_writer_is_closed_after_its_block(store):
    with store.create("k") as writer:
        writer.write(b"x")
    with pytest.raises(ValueError, match="not open"):
        writer.write(b"y")
    assert store.read("k") == b"x"


@pytest.mark.parametrize("size", ["small", "large"])
def test_of_twelve_racers_one_wins(place, size):
    if size == "large":
        place.needs("one winner of a multipart race")
    length = place.large if size == "large" else 2000
    stores = [place.open() for _ in range(3)]
    for turn in range(2):
        gate, key = threading.Barrier(12), f"race-{turn}"

        def race(number: int, gate: threading.Barrier = gate, key: str = key) -> int | None:
            data = bytes([number]) * length
            gate.wait()
            try:
                put(stores[number % 3], key, data)
            except ObjectExists:
                return None
            return number

        with ThreadPoolExecutor(12) as pool:
            winners = [n for n in pool.map(race, range(12)) if n is not None]
        assert len(winners) == 1
        assert stores[0].read(key) == bytes(winners) * length
    assert (place.leftovers(), place.uploads()) == ([], [])


def test_writers_of_different_keys_do_not_mix(place, store):
    def write(number: int) -> bytes:
        data = blob(place.large // 2 + number * 1000, seed=number)
        with store.create(f"w/{number}") as writer:
            for start in range(0, len(data), 70_001):
                writer.write(data[start : start + 70_001])
        return data

    with ThreadPoolExecutor(6) as pool:
        written = list(pool.map(write, range(6)))
    assert [store.read(f"w/{n}") for n in range(6)] == written


def test_writes_of_odd_sizes_add_up(place, store):
    data, at, sizes = blob(place.large), 0, random.Random(7)
    with store.create("k") as writer:
        while at < len(data):
            step = sizes.choice([0, 1, 3, 4095, 65_537, 1_000_003])
            writer.write(data[at : at + step])
            at += step
    assert store.read("k") == data


@pytest.mark.parametrize("pieces", [1, 2])
def test_an_object_that_fills_its_parts_exactly(place, store, pieces):
    part = {"s3": 5 * MIB, "moto": 5 * MIB, "gcs": MIB // 2}.get(place.name, MIB)
    data = blob(pieces * part)
    put(store, "k", data)
    assert store.read("k") == data
    assert place.uploads() == []


def test_any_buffer_is_taken_by_its_bytes_and_left_alone(place, store):
    numbers = array.array("I", range(1000))
    wide, both = memoryview(numbers), bytearray(blob(5000))
    kept = bytes(both)
    with store.create("k") as writer:
        writer.write(wide)
        writer.write(wide[10:20])
        writer.write(both)
        writer.write(memoryview(both)[1000:2000])
        writer.write(memoryview(both)[1500:2500].toreadonly())
        writer.write(b"")
    assert both == kept
    both.append(1)  # a view still held would forbid this
    expected = numbers.tobytes() + numbers[10:20].tobytes() + kept + kept[1000:2000] + kept[1500:2500]
    assert store.read("k") == expected


def test_a_long_stream_arrives_whole(place, store):
    piece, digest = blob(MIB), hashlib.sha256()
    with store.create("long") as writer:
        for number in range(place.stream // MIB):
            data = piece[number % 1000 :] + piece[: number % 1000]
            digest.update(data)
            writer.write(data)
    assert store.stat("long").size == place.stream
    back = hashlib.sha256()
    for start in range(0, place.stream, 16 * MIB + 1):
        back.update(store.read("long", start=start, length=16 * MIB + 1))
    assert back.digest() == digest.digest()
    assert (place.leftovers(), place.uploads()) == ([], [])
    store.delete("long")


# --- replacing --------------------------------------------------------------------------------------------------------------------------


def test_replace_writes_and_overwrites(place, store):
    for data in (b"first", b"second, longer", b"", b"3"):
        store.replace("latest/all.json", data)
        assert store.read("latest/all.json") == data
    assert keys(store) == ["latest/all.json"]
    assert place.leftovers() == []


def test_a_reader_never_sees_half_a_replacement(store):
    size = 200_000
    store.replace("k", b"a" * size)
    done = threading.Event()

    def read() -> set[tuple[int, bytes]]:
        seen = set()
        while not done.is_set():
            data = store.read("k")
            seen.add((len(data), bytes(set(data))))
        return seen

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for turn in range(30):
                store.replace("k", (b"b" if turn % 2 else b"a") * size)
        finally:
            done.set()
    for reader in readers:
        assert reader.result() <= {(size, b"a"), (size, b"b")}


# --- reading ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, None), (0, 10), (0, 0), (5, 0), (100, 50), (990, 10), (990, 50), (999, None), (1000, 5), (1000, None), (5000, 3), (0, 5000)],
)
def test_ranges(store, start, length):
    data = blob(1000)
    put(store, "k", data)
    expected = data[start:] if length is None else data[start : start + length]
    assert store.read("k", start=start, length=length) == expected


def test_ranges_of_a_large_object(place, store):
    data = blob(place.large)
    put(store, "k", data)
    for start in (0, 1, place.large // 2 - 1, place.large - 1):
        for length in (1, 100, 70_001, None):
            assert store.read("k", start=start, length=length) == (data[start:] if length is None else data[start : start + length])


def test_a_negative_range_is_refused(store):
    for bad in ({"start": -1}, {"length": -1}):
        with pytest.raises(ValueError, match="range"):
            store.read("k", **bad)


def test_a_missing_object_says_so(store):
    put(store, "there/x")
    for key in ("nothing", "there/y", "there", "there/x/deeper"):
        for look in (store.read, store.stat, lambda k: store.read(k, start=3, length=4), lambda k: store.read(k, length=0)):
            with pytest.raises(ObjectMissing) as caught:
                look(key)
            assert caught.value.key == key


# --- keys -------------------------------------------------------------------------------------------------------------------------------


def test_strange_keys_go_round(place, store):
    for number, key in enumerate(STRANGE_KEYS):
        put(store, key, str(number).encode())
    assert keys(store) == sorted(STRANGE_KEYS, key=str.encode)
    for number, key in enumerate(STRANGE_KEYS):
        assert store.read(key) == str(number).encode()
        assert store.stat(key).size == len(str(number))
        with pytest.raises(ObjectExists):
            put(store, key)
        assert keys(store, key[: len(key) // 2 + 1]).count(key) == 1
    for key in STRANGE_KEYS:
        store.delete(key)
    assert keys(store) == []


@pytest.mark.parametrize("key", BAD_KEYS)
def test_keys_that_leave_the_root_are_refused(store, key):
    def enter() -> None:
        with store.create(key):
            pass

    calls = (
        enter,
        lambda: store.replace(key, b""),
        lambda: store.read(key),
        lambda: store.stat(key),
        lambda: store.delete(key),
        lambda: store.path(key),
    )
    for call in calls:
        with pytest.raises(InvalidKey):
            call()


@pytest.mark.parametrize("prefix", ["/", "../", "a/../", "a//", "./", "../x"])
def test_prefixes_that_leave_the_root_are_refused(store, prefix):
    with pytest.raises(InvalidKey):
        list(store.list(prefix))
    with pytest.raises(InvalidKey):
        store.folders(prefix)


def test_url_and_path_name_the_object(store):
    scheme = store.url.partition("://")[0]
    assert scheme in {"file", "s3", "gs", "memory", "local"}
    assert store.path("a/b c.json").endswith("/a/b c.json")
    assert "secret" not in store.url


# --- listing ----------------------------------------------------------------------------------------------------------------------------


def test_an_empty_store_lists_nothing(store):
    assert (keys(store), keys(store, "some/where"), store.folders(), store.folders("some/")) == ([], [], [], [])


def test_more_keys_than_a_page_holds_in_byte_order(store):
    names = [f"snapshots/2026-{n % 12 + 1:02d}/memory-{n:05d}.json" for n in range(1100)]
    random.Random(3).shuffle(names)
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda name: put(store, name), names))
    assert keys(store) == sorted(names)
    assert keys(store, "snapshots/2026-03/") == sorted(n for n in names if n.startswith("snapshots/2026-03/"))
    assert store.folders("snapshots/") == [f"2026-{month:02d}" for month in range(1, 13)]


def test_byte_order_where_folders_and_names_mix(store):
    names = ["D", "d-b", "d.x", "d/x", "d/x-1/y", "d/x.1", "d0", "z", "é", "\uff5e", "😀"]
    for name in random.Random(5).sample(names, len(names)):
        put(store, name)
    assert keys(store) == sorted(names, key=str.encode)


def test_a_prefix_is_a_string_and_not_a_folder(store):
    for name in ("ab/1", "abc/2", "abc/d/3", "abd", "b/ab"):
        put(store, name)
    assert keys(store, "ab") == ["ab/1", "abc/2", "abc/d/3", "abd"]
    assert keys(store, "abc") == ["abc/2", "abc/d/3"]
    assert keys(store, "abc/") == ["abc/2", "abc/d/3"]
    assert keys(store, "abc/d") == ["abc/d/3"]
    assert keys(store, "abd") == ["abd"]
    assert keys(store, "x") == []


def test_folders_are_the_next_segments(store):
    for name in ("a/1", "a/b/2", "a/b/c/3", "a/bc/4", "d/5", "e"):
        put(store, name)
    assert store.folders() == ["a", "d"]
    assert store.folders("a/") == ["b", "bc"]
    assert store.folders("a/b/") == ["c"]
    assert store.folders("d/") == []
    with pytest.raises(InvalidKey):
        store.folders("a")


def test_a_sibling_of_the_root_is_not_listed(place):
    one, other = place.open("b"), place.open("bc")
    put(one, "mine")
    put(other, "theirs")
    assert (keys(one), keys(other)) == (["mine"], ["theirs"])
    assert (one.folders(), other.folders()) == ([], [])


# --- deleting ---------------------------------------------------------------------------------------------------------------------------


def test_delete_is_idempotent(store):
    put(store, "a/k")
    put(store, "a/other")
    for _ in range(2):
        store.delete("a/k")
    store.delete("never/was")
    store.delete("a")
    assert keys(store) == ["a/other"]
    with pytest.raises(ObjectMissing):
        store.read("a/k")
    put(store, "a/k", b"again")
    assert store.read("a/k") == b"again"


def test_a_folder_goes_with_its_last_object(place, store):
    place.needs("no empty folders")
    put(store, "snapshots/2026-01-01/x")
    put(store, "snapshots/2026-01-02/y")
    store.delete("snapshots/2026-01-01/x")
    assert store.folders("snapshots/") == ["2026-01-02"]
    put(store, "snapshots/2026-01-01/x")
    assert store.folders("snapshots/") == ["2026-01-01", "2026-01-02"]


# --- what is wrong with the place -------------------------------------------------------------------------------------------------------


def test_a_bucket_that_is_not_there(place):
    place.needs("buckets")
    store = place.open(bucket="no-such-bucket-here")
    calls = (
        lambda: put(store, "k"),
        lambda: put(store, "k", blob(place.large)),
        lambda: store.replace("k", b""),
        lambda: keys(store),
        store.folders,
    )
    for call in calls:
        with pytest.raises(BucketMissing) as caught:
            call()
        assert caught.value.hint
    for call in (lambda: store.read("k"), lambda: store.stat("k")):
        with pytest.raises((BucketMissing, ObjectMissing) if place.name == "gcs" else BucketMissing):
            call()


@pytest.mark.parametrize("wrong", [{"secret": "not-the-secret"}, {"key": "nobody"}])
def test_wrong_credentials(place, wrong):
    place.needs("passwords")
    store = place.open(**wrong)
    calls = (
        lambda: put(store, "k"),
        lambda: put(store, "k", blob(place.large)),
        lambda: store.read("k"),
        lambda: store.stat("k"),
        lambda: keys(store),
    )
    for call in calls:
        with pytest.raises(AccessDenied) as caught:
            call()
        assert "not-the-secret" not in str(caught.value)


def test_a_closed_store_can_be_closed_again(place, store):
    put(store, "k")
    store.close()
    store.close()
    assert place.open().read("k") == b"x"
