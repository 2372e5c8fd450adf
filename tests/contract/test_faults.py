"""What every store behind a network promises when the network or the server fails: through a proxy that fails on request."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from coldstore.errors import AccessDenied, ObjectExists, ObjectMissing, StoreError, StoreFull, StoreUnavailable
from tests.contract.conftest import MIB, Place
from tests.contract.test_store import blob, keys, nothing_of, put
from tests.servers.process import free_port

# What the request that publishes an object looks like; a large one's pieces; and how many pieces `place.large` has.
PUBLISH = {"s3": ("PUT", "/k"), "moto": ("PUT", "/k"), "gcs": ("POST", "uploadType=multipart")}
COMPLETE = {"s3": ("POST", "uploadId="), "moto": ("POST", "uploadId="), "gcs": ("PUT", "upload_id=")}
PIECE = {"s3": ("PUT", "partNumber="), "moto": ("PUT", "partNumber="), "gcs": ("PUT", "upload_id=")}
ATTEMPTS = 3

# Servers differ in what they answer to the second attempt, so this is asked of all; the rest does not depend on the server.
everywhere = pytest.mark.parametrize("faulty", ["s3", "moto", "gcs"], indirect=True)


def rule(place: Place, table: dict[str, tuple[str, str]], action: str, **more: object) -> None:
    method, match = table[place.name]
    if table is COMPLETE and place.name == "gcs":
        # The last of three chunks is the one that publishes.
        more = {"skip": 2, **more}
    place.faults.add(action, method=method, match=match, **more)


def sized(place: Place, size: str) -> tuple[bytes, dict[str, tuple[str, str]]]:
    return (blob(place.large), COMPLETE) if size == "large" else (b"small", PUBLISH)


@everywhere
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("action", ["lost_reply", "late_error"])
def test_an_object_whose_reply_was_lost_is_ours(faulty, size, action):
    store, (data, publish) = faulty.open(), sized(faulty, size)
    rule(faulty, publish, action, status=500)
    put(store, "k", data)
    assert store.read("k") == data
    assert keys(store) == ["k"]
    assert faulty.uploads() == []
    assert faulty.faults.count(action) == 1


@everywhere
@pytest.mark.parametrize("size", ["small", "large"])
def test_an_object_of_another_is_a_conflict_even_after_a_lost_reply(faulty, size):
    store, (data, publish) = faulty.open(), sized(faulty, size)
    put(store, "k", b"theirs")
    faulty.faults.clear()
    # A large upload to GCS is refused when it begins.
    rule(faulty, {**publish, "gcs": ("POST", "uploadType=")}, "lost_reply", skip=0)
    with pytest.raises(ObjectExists):
        put(store, "k", data)
    assert faulty.faults.count("lost_reply") == 1
    assert store.read("k") == b"theirs"
    assert faulty.uploads() == []


@everywhere
@pytest.mark.parametrize("size", ["small", "large"])
def test_an_object_that_appears_while_ours_is_on_its_way_is_a_conflict(faulty, size):
    store, (data, _) = faulty.open(), sized(faulty, size)
    with pytest.raises(ObjectExists), store.create("k") as writer:  # noqa: PT012 - the end of the block is what raises
        writer.write(data)
        put(faulty.open(), "k", b"theirs")
    assert store.read("k") == b"theirs"
    assert faulty.uploads() == []


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("action", ["status", "reset", "reset_mid_body"])
def test_a_passing_fault_is_survived(faulty, size, action):
    store, (data, publish) = faulty.open(), sized(faulty, size)
    rule(faulty, publish, action, status=503)
    put(store, "k", data)
    assert store.read("k") == data
    assert faulty.faults.count(f"-> {action}") == 1


@pytest.mark.parametrize("action", ["status", "reset", "reset_mid_body", "lost_reply", "late_error"])
def test_a_passing_fault_of_one_piece_is_survived(faulty, action):
    store, data = faulty.open(), blob(faulty.large)
    rule(faulty, PIECE, action, status=500, skip=1, after=100_000)
    put(store, "k", data)
    assert store.read("k") == data
    assert faulty.uploads() == []


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("action", ["status", "reset"])
def test_a_lasting_fault_ends_after_a_bounded_number_of_attempts(faulty, size, action):
    store, (data, publish) = faulty.open(), sized(faulty, size)
    rule(faulty, publish, action, status=500, count=None)
    with pytest.raises(StoreUnavailable) as caught:
        put(store, "k", data)
    assert (caught.value.op, caught.value.key) == ("create", "k")
    method, match = publish[faulty.name]
    # The HTTP client asks once more by itself where a kept connection turns out to be dead.
    assert ATTEMPTS <= faulty.faults.count(f"^{method} .*{match}.* -> {action}") <= 2 * ATTEMPTS
    faulty.faults.clear()
    nothing_of(faulty, store, "k")


def test_a_piece_that_cannot_be_sent_publishes_nothing(faulty):
    store = faulty.open()
    rule(faulty, PIECE, "status", status=500, skip=1, count=None)
    with pytest.raises(StoreUnavailable):
        put(store, "k", blob(3 * faulty.large))
    faulty.faults.clear()
    nothing_of(faulty, store, "k")


def test_a_write_error_that_the_caller_swallowed_publishes_nothing(faulty):
    store, data = faulty.open(), blob(faulty.large)
    rule(faulty, PIECE, "status", status=500, count=None)

    def careless() -> None:
        with store.create("k") as writer:
            for _ in range(20):
                try:
                    writer.write(data)
                except StoreError:
                    break
            else:
                raise AssertionError("no write failed")

    with pytest.raises(StoreError):
        careless()
    faulty.faults.clear()
    nothing_of(faulty, store, "k")


@everywhere
def test_a_lost_session_is_no_object(faulty):
    store, data = faulty.open(), blob(faulty.large)
    method, match = COMPLETE[faulty.name]
    faulty.faults.add("status", method=method, match=match, status=404, skip=2 if faulty.name == "gcs" else 0, count=None)
    with pytest.raises(StoreError):
        put(store, "k", data)
    faulty.faults.clear()
    with pytest.raises(ObjectMissing):
        store.stat("k")


@everywhere
def test_an_object_is_ours_though_the_session_is_forgotten_after_the_lost_reply(faulty):
    store, data = faulty.open(), blob(faulty.large)
    rule(faulty, COMPLETE, "lost_reply")
    method, match = COMPLETE[faulty.name]
    faulty.faults.add("status", method=method, match=match, status=404, skip=2 if faulty.name == "gcs" else 0)
    put(store, "k", data)
    assert store.read("k") == data


@pytest.mark.parametrize("action", ["status", "reset", "truncate", "lost_reply"])
@pytest.mark.parametrize("window", [{}, {"start": 1000, "length": 200_000}])
def test_a_read_that_breaks_off_is_repeated(faulty, action, window):
    store, data = faulty.open(), blob(400_000)
    put(store, "k", data)
    faulty.faults.add(action, method="GET", match="k", status=503, after=70_000)
    start = window.get("start", 0)
    assert store.read("k", **window) == data[start : start + window["length"] if window else None]


@pytest.mark.parametrize("action", ["status", "truncate"])
def test_a_read_that_always_breaks_off_is_given_up(faulty, action):
    store = faulty.open()
    put(store, "k", blob(400_000))
    faulty.faults.add(action, method="GET", match="k", status=503, after=70_000, count=None)
    with pytest.raises(StoreUnavailable):
        store.read("k")
    assert faulty.faults.count("GET.*k.*-> " + action) == ATTEMPTS


def test_a_listing_survives_a_passing_fault(faulty):
    store = faulty.open()
    put(store, "a/k")
    faulty.faults.add("status", method="GET", status=503)
    faulty.faults.add("truncate", method="GET", after=20)
    assert keys(store) == ["a/k"]


def test_a_stalled_answer_is_asked_for_again(faulty):
    store = faulty.open(read_timeout=1)
    put(store, "k", b"data")
    faulty.faults.add("stall", method="GET", match="k", seconds=30)
    assert store.read("k") == b"data"


def test_replace_survives_a_lost_reply(faulty):
    store = faulty.open()
    store.replace("k", b"old")
    rule(faulty, PUBLISH, "lost_reply")
    store.replace("k", b"new")
    assert store.read("k") == b"new"


def test_delete_survives_a_lost_reply(faulty):
    store = faulty.open()
    put(store, "k")
    faulty.faults.add("lost_reply", method="DELETE")
    store.delete("k")
    assert keys(store) == []


def test_a_server_that_is_down(faulty):
    store = faulty.open(endpoint_url=f"http://127.0.0.1:{free_port()}", attempts=2)
    calls: tuple[Callable[[], object], ...] = (
        lambda: put(store, "k"),
        lambda: put(store, "k", blob(faulty.large)),
        lambda: store.replace("k", b""),
        lambda: store.read("k"),
        lambda: store.stat("k"),
        lambda: keys(store),
        store.folders,
        lambda: store.delete("k"),
    )
    for call in calls:
        with pytest.raises(StoreUnavailable) as caught:
            call()
        assert caught.value.hint


@pytest.mark.parametrize(("status", "error"), [(403, AccessDenied), (507, StoreFull), (429, StoreUnavailable)])
def test_statuses_become_errors(faulty, status, error):
    store = faulty.open(attempts=1)
    body = json.dumps({"error": {"code": status, "message": "made up"}}) if faulty.name == "gcs" else None
    faulty.faults.add("status", status=status, count=None, body=body)
    for call in (
        lambda: put(store, "k"),
        lambda: put(store, "k", blob(faulty.large)),
        lambda: store.replace("k", b"x"),
        lambda: store.read("k"),
    ):
        with pytest.raises(error):
            call()


def test_a_flipped_byte_is_not_noticed_here(faulty):
    """Written down so that nobody relies on it: the reader's own digest is what notices."""
    store, data = faulty.open(), blob(1000)
    put(store, "k", data)
    faulty.faults.add("flip", method="GET", match="k", after=500)
    assert store.read("k", start=0, length=999) != data[:999]


def test_parts_in_flight_are_bounded(faulty):
    """The writer waits for the network: of 40 parts, never more than the window were handed over."""
    if faulty.name == "gcs":
        pytest.skip("gcs: chunks go up one after the other, there is no window")
    store = faulty.open(parallel=2)
    faulty.faults.add("stall", method="PUT", match="partNumber=", seconds=0.2, count=None)
    piece = blob(MIB)
    with store.create("k") as writer:
        for number in range(1, 41):
            writer.write(piece)
            sent = faulty.faults.count("partNumber=")
            assert number - 5 * sent <= 5 * (2 + 1)
    assert store.stat("k").size == 40 * MIB
