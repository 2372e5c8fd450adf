"""The short forms of the campaigns. The seed is drawn from pytest-randomly's, so another run tries other things; it is printed."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from coldstore.codec.compress import codec_of, decode_stream
from coldstore.document import model
from coldstore.errors import CorruptManifest
from tests.torture import autosave, bomb, changes, disk, faults, fuzz, kill, large, years
from tests.torture.chaos import chaos_proxy
from tests.torture.summary import Summary
from tests.unit import samples


@pytest.fixture
def seed() -> int:
    return random.randrange(1 << 32)


def held(summary: Summary, *, runs: int) -> None:
    print(summary)
    assert summary.broken == []
    assert summary.runs >= runs


def test_killed_snapshots(world, killed, seed):
    summary = kill.campaign(kill.snapshots(world, killed), seed=seed, runs=14)
    held(summary, runs=14)
    assert sum(n for outcome, n in summary.outcomes.items() if "over before" not in outcome) > 6


def test_killed_restores(world, killed, seed):
    summary = kill.campaign(kill.restores(world, killed), seed=seed, runs=8)
    held(summary, runs=8)
    assert sum(n for outcome, n in summary.outcomes.items() if "over before" not in outcome) > 3


def test_killed_snapshots_to_s3(world, killed, weed, seed):
    held(kill.campaign(kill.snapshots_to_s3(world, killed, weed), seed=seed, runs=2), runs=2)


@pytest.mark.parametrize("server", ["weed", "gcs"])
def test_faults(request, world, server, seed):
    server = request.getfixturevalue(server)
    with chaos_proxy(server.endpoint_url, seed=seed) as proxy:
        summary = faults.campaign(world, server, proxy, seed=seed, runs=12)
    held(summary, runs=12)
    assert "faults" in summary.figures


def test_a_full_disk(world, seed):
    try:
        summary = disk.campaign(world, seed=seed, runs=16)
    except disk.NoMount as exc:
        pytest.skip(str(exc))
    held(summary, runs=16)
    assert sum(n for outcome, n in summary.outcomes.items() if "good" not in outcome) > 2


def test_years_of_schedules(empty_database, seed):
    spring = datetime(2026, 4, 15, tzinfo=UTC)  # the clocks of every zone have changed once
    held(years.campaign(empty_database, seed=seed, runs=40, until=spring), runs=40)


def test_years_of_minutes(seed):
    held(years.every_minute(seed=seed, runs=1, days=25), runs=7)


def test_changes_under_way(seed):
    summary = changes.campaign(seed=seed, runs=40, crash_every=20)
    held(summary, runs=40)
    assert "crashes" in summary.figures
    assert sum(n for outcome, n in summary.outcomes.items() if "nothing" not in outcome) > 12


def test_killed_agents(tmp_path, seed):
    summary = autosave.campaign(tmp_path / "store", seed=seed, runs=8)
    held(summary, runs=8)
    assert summary.outcomes["saves were told"] > 2


def test_a_large_document(tmp_path):
    held(large.campaign(tmp_path, megabytes=20), runs=2)


def test_wrong_bytes(seed):
    held(fuzz.campaign(seed=seed, runs=1000), runs=900)


@pytest.mark.parametrize("name", ["a row of ours", "nothing but zeros"])
def test_a_document_that_does_not_end(tmp_path, name):
    path = tmp_path / "bomb.json.zst"
    head, fill, tail = bomb.ENDLESS[name]
    path.write_bytes(bomb.zstd(head, fill, 3 * bomb.GIB, tail))
    found = bomb.read(path, 1500)
    assert (found["error"], found["rows"]) == ("CorruptDocument", 0)


@pytest.mark.parametrize("name", ["a row of ours", "a row"])
def test_a_row_of_fifty_megabytes_is_none_that_does_not_end(tmp_path, name):
    path = tmp_path / "long.json.zst"
    head, fill, tail = bomb.ENDLESS[name]
    path.write_bytes(bomb.zstd(head, fill, 400 * bomb.BLOCK, tail))
    found = bomb.read(path, 1500)
    assert (found["error"], found["rows"]) == (None, 1)


@pytest.mark.parametrize("suffix", bomb.PACK)
def test_nothing_but_its_size_is_wrong_with_a_bomb(suffix):
    for head, fill, tail in bomb.ENDLESS.values():
        packed = bomb.PACK[suffix](head, fill, 16 << 20, tail)
        assert len(packed) < 100_000
        assert b"".join(decode_stream(codec_of(f"x.{suffix}"), iter([packed]))) == head + fill * (16 << 20) + tail


@pytest.mark.parametrize("size", ["plain", "length"])
def test_a_manifest_asks_for_no_more_memory_than_a_frame_can_take(size):
    sizes = {"plain": 10, "length": 10, size: 10 * bomb.GIB}
    frame = model.Frame(tier="notes", rows=1, offset=0, crc32c="0" * 8, sha256="0" * 64, **sizes)
    with pytest.raises(CorruptManifest, match=size):
        model.decode_manifest(model.encode_manifest(samples.manifest(frames=[frame])), key="a manifest")
