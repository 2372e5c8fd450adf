"""Work in parallel and in order; sums of frames and of whole documents; damage of any byte noticed."""

from __future__ import annotations

import hashlib
import threading
from itertools import count

import google_crc32c
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstore.codec.compress import Codec
from coldstore.codec.pipeline import DocumentSums, decode, encode, ordered_map
from coldstore.document import model
from coldstore.document.writer import PlainFrame
from coldstore.errors import CorruptDocument, TruncatedDocument

CODECS = [Codec("none"), Codec("gzip"), Codec("zstd")]
WORKERS = [0, 1, 2, 5]


class Gate:
    """Work that waits until it is let through, and counts who is inside."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.started: list[int] = []

    def __call__(self, item: int) -> int:
        self.started.append(item)
        assert self.open.wait(30)
        return item * 10


# --- ordered_map -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", WORKERS)
def test_results_keep_the_order(workers):
    later = threading.Event()

    def work(item: int) -> int:
        if item == 0 and workers > 1:
            assert later.wait(30)  # the first is ready only after the second
        later.set()
        return item * 10

    assert list(ordered_map(work, range(50), workers=workers)) == [n * 10 for n in range(50)]
    assert list(ordered_map(work, [], workers=workers)) == []


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_few_items_are_in_flight(workers):
    taken = 0

    def items():
        nonlocal taken
        for n in range(100):
            taken += 1
            yield n

    found = ordered_map(lambda n: n, items(), workers=workers)
    for done in range(1, 101):
        assert next(found) == done - 1
        assert taken <= min(100, done + workers)
    assert list(found) == []


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_no_more_threads_than_asked_for(workers):
    gate = Gate()
    found = ordered_map(gate, count(), workers=workers)
    consumer = threading.Thread(target=lambda: next(found))
    consumer.start()
    try:
        for _ in range(30_000):
            if len(gate.started) >= workers:
                break
            threading.Event().wait(0.001)
        threading.Event().wait(0.05)
        assert len(gate.started) == workers
    finally:
        gate.open.set()
        consumer.join()
    found.close()


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_of_the_work_is_raised_in_its_place(workers):
    started = []

    def work(item: int) -> int:
        started.append(item)
        if item == 3:
            raise CorruptDocument("the fourth")
        return item

    found = ordered_map(work, range(1000), workers=workers)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(CorruptDocument, match="the fourth"):
        next(found)
    assert len(started) <= 4 + workers + 1
    assert list(found) == []


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_of_the_items_is_raised(workers):
    def items():
        yield 1
        raise TruncatedDocument("no more")

    with pytest.raises(TruncatedDocument, match="no more"):
        list(ordered_map(lambda n: n, items(), workers=workers))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_closing_early_starts_nothing_more(workers):
    before = threading.active_count()
    started, closed = [], False

    def items():
        nonlocal closed
        try:
            for n in range(1000):
                started.append(n)
                yield n
        finally:
            closed = True

    source = items()
    found = ordered_map(lambda n: n, source, workers=workers)
    assert next(found) == 0
    found.close()
    at_close = len(started)
    assert at_close <= workers + 2
    assert threading.active_count() == before
    source.close()
    assert closed
    assert len(started) == at_close


def test_closing_early_waits_for_what_is_in_flight():
    gate = Gate()
    finished = []

    def work(item: int) -> int:
        if item:
            gate(item)
        finished.append(item)
        return item

    found = ordered_map(work, range(100), workers=2)
    assert next(found) == 0
    threading.Timer(0.05, gate.open.set).start()
    found.close()
    assert set(gate.started) == set(finished) - {0}


# --- frames ------------------------------------------------------------------------------------------------------------------------

pieces = st.lists(st.binary(max_size=60), max_size=4).map(tuple)


def described(stored, offset: int = 0) -> model.Frame:
    return model.Frame(
        tier=stored.plain.tier,
        rows=stored.plain.rows,
        offset=offset,
        length=stored.length,
        plain=stored.plain.size,
        crc32c=stored.crc32c,
        sha256=stored.sha256,
    )


@pytest.mark.parametrize("codec", CODECS, ids=str)
@settings(deadline=None, max_examples=50)
@given(found=pieces)
def test_a_frame_comes_back(codec, found):
    stored = encode(PlainFrame("notes", 1, found), codec)
    data = b"".join(stored.pieces)
    assert stored.length == len(data)
    assert stored.sha256 == hashlib.sha256(data).hexdigest()
    assert stored.crc32c == f"{google_crc32c.value(data):08x}"
    assert decode(data, described(stored), codec, key="k") == b"".join(found)


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_every_flipped_bit_is_noticed(codec):
    stored = encode(PlainFrame("notes", 3, (b'{"id":1},\n', b'{"id":22},\n{"id":3}')), codec)
    data = bytearray(b"".join(stored.pieces))
    frame = described(stored, offset=1000)
    for bit in range(len(data) * 8):
        data[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(CorruptDocument) as caught:
            decode(bytes(data), frame, codec, key="memory.json")
        data[bit >> 3] ^= 1 << (bit & 7)
    assert f"between byte 1000 and {1000 + stored.length}" in str(caught.value)
    assert (caught.value.key, bool(caught.value.hint)) == ("memory.json", True)
    assert decode(bytes(data), frame, codec, key="memory.json") == b"".join(stored.plain.pieces)


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_every_truncation_is_noticed(codec):
    stored = encode(PlainFrame("notes", 1, (b'{"id":1}\n' * 3,)), codec)
    data = b"".join(stored.pieces)
    for cut in range(len(data)):
        with pytest.raises(TruncatedDocument) as caught:
            decode(data[:cut], described(stored, offset=50), codec, key="memory.json")
        assert f"ends at {50 + cut}" in str(caught.value)
    with pytest.raises(CorruptDocument):
        decode(data + b"x", described(stored), codec, key="memory.json")


@pytest.mark.parametrize("name", ["crc32c", "sha256", "plain"])
@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_each_of_the_manifests_claims_counts(name, codec):
    stored = encode(PlainFrame("notes", 1, (b'{"id":1}\n',)), codec)
    frame = described(stored)
    wrong = msgspec.structs.replace(frame, **{name: 8 if name == "plain" else "0" * len(getattr(frame, name))})
    with pytest.raises(CorruptDocument):
        decode(b"".join(stored.pieces), wrong, codec, key="k")


# --- documents ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS, ids=str)
@settings(deadline=None, max_examples=50)
@given(found=st.lists(pieces, max_size=6))
def test_the_sums_are_those_of_the_whole(codec, found):
    sums = DocumentSums()
    plain = stored = b""
    for number, one in enumerate(found):
        frame = PlainFrame(f"tier{number}", number, one)
        made = encode(frame, codec)
        sums.add(made)
        plain += b"".join(one)
        assert sums.frames[-1] == described(made, offset=len(stored))
        stored += b"".join(made.pieces)
    assert sums.plain_bytes == len(plain)
    assert sums.stored_bytes == len(stored)
    assert sums.plain_sha256 == hashlib.sha256(plain).hexdigest()
    assert sums.stored_sha256 == hashlib.sha256(stored).hexdigest()
    assert len(sums.frames) == len(found)
    assert b"".join(decode(stored[f.offset : f.offset + f.length], f, codec, key="k") for f in sums.frames) == plain
