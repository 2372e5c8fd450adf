"""Frames through every codec and back; bombs, damage and strangers refused."""

from __future__ import annotations

import gzip
import io
import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import isal_zlib

from coldstore.codec.compress import DEFAULT_LEVELS, SUFFIXES, Codec, codec_of, decode_stream
from coldstore.errors import ConfigError, CorruptDocument, DocumentError, TruncatedDocument

LEVELS = [
    Codec("none"),
    Codec("none", 0),
    *(Codec("gzip", n) for n in (None, 0, 1, 2, 3)),
    *(Codec("zstd", n) for n in (None, 1, 3, 9, 19)),
]
PACKING = [Codec("gzip"), Codec("zstd")]
#: Text as documents hold it, and bytes that do not compress.
frames = st.lists(st.binary(max_size=200) | st.text(st.sampled_from('{"id":1},\n'), max_size=300).map(str.encode), max_size=6)


def packed(codec: Codec, *pieces: bytes) -> bytes:
    return b"".join(codec.encode(pieces))


@pytest.mark.parametrize("codec", LEVELS, ids=str)
@settings(deadline=None, max_examples=30)
@given(pieces=frames)
def test_a_frame_comes_back(codec, pieces):
    plain = b"".join(pieces)
    assert codec.decode(packed(codec, *pieces), len(plain)) == plain


@pytest.mark.parametrize("codec", LEVELS, ids=str)
@pytest.mark.parametrize("size", [1, 1 << 16, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_large_frames_come_back(codec, size):
    if codec.level == 19 and size > 1 << 20:
        size = 1 << 20  # slow, and nothing new
    for plain in (b"x" * size, os.urandom(size)):
        stored = packed(codec, plain[: size // 3], plain[size // 3 :])
        assert codec.decode(stored, size) == plain
        assert b"".join(decode_stream(codec, iter([stored]))) == plain


def test_nothing_is_copied_without_a_codec():
    pieces = (b"a", b"b")
    assert Codec("none").encode(pieces) is pieces


def test_a_gzip_member_says_nothing_of_when_it_was_made():
    assert packed(Codec("gzip"), b"x")[4:8] == b"\0\0\0\0"
    assert packed(Codec("gzip"), b"x") == packed(Codec("gzip"), b"x")


@settings(deadline=None, max_examples=60)
@given(st.lists(frames, min_size=1, max_size=5))
def test_frames_together_are_an_ordinary_file(several):
    """What `zcat` and `zstdcat` would make of it, by libraries that are not ours."""
    plain = b"".join(b"".join(pieces) for pieces in several)
    assert gzip.decompress(b"".join(packed(Codec("gzip"), *pieces) for pieces in several)) == plain
    zst = io.BytesIO(b"".join(packed(Codec("zstd"), *pieces) for pieces in several))
    assert zstandard.ZstdDecompressor().stream_reader(zst, read_across_frames=True).read() == plain


@pytest.mark.parametrize("codec", PACKING, ids=str)
@settings(deadline=None, max_examples=60)
@given(several=st.lists(frames, min_size=1, max_size=5), step=st.integers(1, 300))
def test_a_stream_comes_back_however_it_is_cut(codec, several, step):
    plain = b"".join(b"".join(pieces) for pieces in several)
    stored = b"".join(packed(codec, *pieces) for pieces in several)
    chunks = (stored[i : i + step] for i in range(0, len(stored), step))
    assert b"".join(decode_stream(codec, chunks)) == plain


@pytest.mark.parametrize("codec", PACKING, ids=str)
@pytest.mark.parametrize("step", [1, 10, 1 << 20])
def test_a_stream_of_much_from_little(codec, step):
    """The decoder has used up its input long before it has given all its output."""
    plain = b"\0" * (3 << 20) + b"end" + b"\0" * (2 << 20)
    stored = packed(codec, plain) * 2
    pieces = list(decode_stream(codec, (stored[i : i + step] for i in range(0, len(stored), step))))
    assert b"".join(pieces) == plain * 2
    assert max(map(len, pieces)) <= 1 << 20


def test_a_plain_stream_passes():
    assert list(decode_stream(Codec("none"), iter([b"a", b"", b"b"]))) == [b"a", b"", b"b"]


def test_files_of_other_programs_are_read():
    plain = b"memory" * 1000
    assert b"".join(decode_stream(Codec("gzip"), iter([gzip.compress(plain, 9) + gzip.compress(b"x")]))) == plain + b"x"
    streamed = zstandard.ZstdCompressor(level=22).compressobj()  # no size in the frame
    stored = streamed.compress(plain) + streamed.flush()
    assert b"".join(decode_stream(Codec("zstd"), iter([stored]))) == plain


# --- what is refused ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", LEVELS, ids=str)
@pytest.mark.parametrize("declared", [0, 1, 4, 6, 10**6, 10**10, 2**53])
def test_a_frame_of_another_size_is_refused(codec, declared):
    with pytest.raises(CorruptDocument) as caught:
        codec.decode(packed(codec, b"plain"), declared, key="memory.json")
    assert caught.value.key == "memory.json"


@pytest.mark.parametrize("codec", PACKING, ids=str)
def test_every_truncation_of_a_frame_is_refused(codec):
    plain = b'{"id":1},\n' * 20 + os.urandom(50)
    stored = packed(codec, plain)
    for cut in range(len(stored)):
        with pytest.raises(CorruptDocument):
            codec.decode(stored[:cut], len(plain))


@pytest.mark.parametrize("codec", PACKING, ids=str)
@pytest.mark.parametrize("garbage", [b"\0", b"x", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"{}" * 100])
def test_garbage_behind_a_frame_is_refused(codec, garbage):
    stored = packed(codec, b"plain")
    with pytest.raises(CorruptDocument):
        codec.decode(stored + garbage, 5)
    with pytest.raises(CorruptDocument):
        codec.decode(stored + stored, 5)
    with pytest.raises(CorruptDocument):
        codec.decode(stored + packed(codec, b""), 5)
    with pytest.raises(CorruptDocument):
        codec.decode(garbage + stored, 5)


@pytest.mark.parametrize("codec", PACKING, ids=str)
@pytest.mark.parametrize("garbage", [b"x" * 40, b"{}" * 100])
def test_garbage_behind_a_stream_is_refused(codec, garbage):
    stored = packed(codec, b"plain")
    with pytest.raises(DocumentError):
        list(decode_stream(codec, iter([stored + garbage])))
    with pytest.raises(DocumentError):
        list(decode_stream(codec, iter([stored, garbage])))


def test_a_gzip_stream_that_was_cut_off():
    stored = packed(Codec("gzip"), b"memory" * 100)
    for cut in range(len(stored)):
        with pytest.raises(TruncatedDocument):
            list(decode_stream(Codec("gzip"), iter([stored[:cut]])))


def test_a_zstd_stream_that_was_cut_off_is_short():
    """The reader of its lines misses the end; it must never be longer, or other."""
    plain = b"memory" * 100
    stored = packed(Codec("zstd"), plain)
    for cut in range(len(stored)):
        try:
            found = b"".join(decode_stream(Codec("zstd"), iter([stored[:cut]])))
        except CorruptDocument:
            continue
        assert plain.startswith(found)
        assert len(found) < len(plain) or cut > len(stored) - 5


@pytest.mark.parametrize("codec", PACKING, ids=str)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_damage_is_noticed_or_harmless(codec, data):
    """Whether a codec sees a flipped byte is its own affair (the manifest's checksums see each); it must not fail otherwise."""
    plain = b'{"id":1,"t":"memory"},\n' * 10
    stored = bytearray(packed(codec, plain))
    at = data.draw(st.integers(0, len(stored) - 1))
    stored[at] ^= data.draw(st.integers(1, 255))
    with suppress(CorruptDocument):
        assert len(codec.decode(bytes(stored), len(plain))) == len(plain)
    with suppress(DocumentError):
        list(decode_stream(codec, iter([bytes(stored)])))


@pytest.mark.parametrize("codec", PACKING, ids=str)
@settings(deadline=None, max_examples=40)
@given(data=st.binary(max_size=60), size=st.integers(0, 100))
def test_any_bytes_end_in_one_of_our_errors(codec, data, size):
    for stored in (data, packed(codec, b"x")[:6] + data):
        with suppress(CorruptDocument):
            assert len(codec.decode(stored, size)) == size
        with suppress(DocumentError):
            list(decode_stream(codec, iter([stored])))


# --- bombs -------------------------------------------------------------------------------------------------------------------------


GIGABYTE = 1 << 30


def zeros_gzip(size: int) -> bytes:
    machine = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 31)
    block = b"\0" * (1 << 24)
    return b"".join([*(machine.compress(block) for _ in range(size >> 24)), machine.flush()])


def zeros_zstd(size: int, *, declared: int | None) -> bytes:
    """A zstd frame of blocks that each say *128 KiB of zeros* in four bytes (RFC 8878, 3.1.1)."""
    header = b"\x28\xb5\x2f\xfd" + (b"\x00\x50" if declared is None else b"\xc0\x50" + declared.to_bytes(8, "little"))
    block = 1 << 17
    *_, last = blocks = [(block << 3 | 1 << 1).to_bytes(3, "little") + b"\0"] * (size // block)
    blocks[-1] = bytes([last[0] | 1]) + last[1:]
    return header + b"".join(blocks)


#: Decodes what stands in a file with 300 MB of address space more than it had at the start.
LIMITED = """
import resource, sys
from coldstore.codec.compress import Codec, decode_stream
from coldstore.errors import CorruptDocument
name, size, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
stored = open(path, "rb").read()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
try:
    Codec(name).decode(stored, size)
except CorruptDocument as refused:
    print("refused:", refused)
"""


@pytest.fixture(scope="module")
def bombs(tmp_path_factory) -> dict[str, Path]:
    """10 GB of zeros; with gzip 1 GB, for deflate packs a thousandfold at most."""
    folder = tmp_path_factory.mktemp("bombs")
    made = {
        "gzip": zeros_gzip(GIGABYTE),
        "zstd": zeros_zstd(10 * GIGABYTE, declared=10 * GIGABYTE),
        "zstd-lying": zeros_zstd(10 * GIGABYTE, declared=1000),
        "zstd-silent": zeros_zstd(10 * GIGABYTE, declared=None),
    }
    paths = {}
    for name, data in made.items():
        paths[name] = folder / name
        paths[name].write_bytes(data)
    return paths


def test_the_bombs_are_good_zstd():
    for declared in (1 << 20, None):
        assert Codec("zstd").decode(zeros_zstd(1 << 20, declared=1 << 20), 1 << 20) == b"\0" * (1 << 20)
        assert b"".join(decode_stream(Codec("zstd"), iter([zeros_zstd(1 << 20, declared=declared)]))) == b"\0" * (1 << 20)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts its address space in /proc")
@pytest.mark.parametrize("name", ["gzip", "zstd", "zstd-lying", "zstd-silent"])
def test_a_bomb_is_refused_before_it_goes_off(bombs, name):
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, name.partition("-")[0], "1000", str(bombs[name])],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("refused:"), done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("name", ["gzip", "zstd", "zstd-silent"])
def test_a_stream_gives_a_bomb_in_small_pieces(bombs, name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stored = bombs[name].read_bytes()
    chunks = (stored[i : i + 1000] for i in range(0, 20_000, 1000))
    found = decode_stream(Codec(name.partition("-")[0]), chunks)  # type: ignore[arg-type]
    for _ in range(5):
        assert len(next(found)) <= 1 << 20
    found.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # kilobytes


# --- names -------------------------------------------------------------------------------------------------------------------------


def test_a_name_tells_its_codec():
    for name, suffix in SUFFIXES.items():
        assert Codec(name).suffix == suffix
        assert codec_of(f"memory-all-1.json{suffix}") == Codec(name)
    assert codec_of("memory.zst.json") == Codec("none")
    assert codec_of("") == Codec("none")


def test_levels():
    assert {"none", "gzip", "zstd"} == set(SUFFIXES) == set(DEFAULT_LEVELS)
    for name in DEFAULT_LEVELS:
        assert packed(Codec(name), b"x" * 99) == packed(Codec(name, DEFAULT_LEVELS[name]), b"x" * 99)


@pytest.mark.parametrize(("name", "level"), [("lz4", None), ("", None), ("gzip", 4), ("gzip", -1), ("zstd", 0), ("zstd", 20), ("none", 1)])
def test_a_codec_that_is_not_there(name, level):
    with pytest.raises(ConfigError) as caught:
        Codec(name, level)
    assert caught.value.hint
