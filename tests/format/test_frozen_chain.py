"""Chains of incrementals as they were written when the format was released: every later version puts them together, and so does the reader
that knows no version."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from coldstore.app import ColdStore
from coldstore.chained import ChainDocument, links_of
from coldstore.config import build
from coldstore.document import model
from coldstore.verify import Checks, verify
from tests.format.make_frozen import NEW_KEY, TIERS
from tests.format.make_frozen_chain import keys
from tests.recovering import recover

HERE = Path(__file__).parent
FROZEN = HERE / "coldstore-1-chain"
SNAPSHOTS = sorted(p.stem for p in (FROZEN / "expected").iterdir())


@pytest.fixture
def cold(tmp_path):
    """A copy: whoever opens a store may write to it."""
    shutil.copytree(FROZEN, tmp_path / "store")
    ring, signer = keys(HERE)
    settings = {"path": str(tmp_path / "store"), "key": (HERE / NEW_KEY).read_text(), "trusted_keys": [signer.did]}
    settings["tiers"] = {t.name: {"table": t.table} for t in TIERS}
    with ColdStore(build(settings, {})) as store:
        assert ring
        yield store


def expected(snapshot: str) -> list[bytes]:
    return (FROZEN / "expected" / f"{snapshot}.txt").read_bytes().splitlines()


def test_there_are_two_of_three_links():
    assert len(SNAPSHOTS) == 6


@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_the_rows_of_its_moment(cold, snapshot):
    document = cold.document(snapshot)
    arrays = [t.array for t in document.schema.tables]
    found = [p.array.encode() + b"\t" + bytes(row) for p in document.parts(arrays) for row in p.rows()]
    assert sorted(found) == expected(snapshot)
    assert isinstance(document, ChainDocument) is (cold.manifest(snapshot).kind == model.INCREMENTAL)


@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_without_coldstore(snapshot):
    done = recover(FROZEN, snapshot, "--key-file", HERE / NEW_KEY)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == expected(snapshot)


def test_they_pass_every_check(cold):
    found = [cold.manifest(s) for s in sorted(SNAPSHOTS, key=lambda s: s.rpartition("-")[2], reverse=True)]
    verdicts = verify(cold.store, found, checks=Checks(deep=True, rings=cold.rings), whole=True)
    assert [(v.state, v.notes) for v in verdicts] == [("ok", [])] * 6


@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_restored(cold, make_database, snapshot):
    """And read again, they are what they were: the restore compares."""
    target = make_database(empty=True)
    report = cold.restore(snapshot, to=target)
    assert report.verified == "content"
    assert sum(report.as_dict()["rows"].values()) == len(expected(snapshot))
    assert [s.id for s in report.steps] in ([], [m.id for m in links_of(cold.store, cold.manifest(snapshot))])
