"""The short forms of the campaign of whoever may write to the store. The seed is drawn anew for each run and printed."""

from __future__ import annotations

import random

import pytest

from tests.torture import tamper
from tests.torture.summary import Summary


@pytest.fixture
def seed() -> int:
    return random.randrange(1 << 32)


def held(summary: Summary, *, runs: int) -> None:
    print(summary)
    assert summary.broken == []
    assert summary.runs == runs


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed and signed", "neither"])
def test_flipped_bytes(world, seed, sealed):
    held(tamper.flips(world, seed=seed, runs=300, sealed=sealed, whole=30), runs=300)


def test_flipped_bytes_of_a_large_document(world, seed):
    held(tamper.large(world, seed=seed, runs=300), runs=300)


def test_tricks(world, seed):
    runs = 4 * (len(tamper.TRICKS) + 1)
    held(tamper.tricks(world, seed=seed, runs=runs), runs=runs)


def test_accidents_of_a_store_without_signatures(world, seed):
    summary = tamper.accidents(world, seed=seed, runs=60)
    held(summary, runs=60)
    assert summary.figures["the rewrite, to one who requires a signature"] == "refused"
