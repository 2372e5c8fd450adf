"""The places that the conformance suite runs on, and the one table of what a test server gets wrong."""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from coldstore.storage.generic import FsspecStore
from coldstore.storage.open import open_store
from coldstore.storage.store import Store
from tests.servers import FaultProxy

MIB = 2**20

# (place, what the test needs): why the server cannot be asked. Anything not listed here must pass.
DEVIATIONS = {
    ("s3", "one winner of a multipart race"): "SeaweedFS lets more than one of several simultaneous completions win; moto is asked instead",
    ("s3", "buckets"): "SeaweedFS makes a missing bucket for an administrator and answers 'denied' to others; moto is asked instead",
    ("s3", "no empty folders"): "SeaweedFS keeps a folder for a while after its last object",
    ("moto", "passwords"): "moto accepts any secret",
    ("gcs", "passwords"): "the emulator knows no credentials",
    ("local", "passwords"): "a disk has owners and modes instead",
    ("memory", "passwords"): "memory has no credentials",
    ("generic", "passwords"): "a disk has owners and modes instead",
    ("local", "buckets"): "the root folder is made on the first write",
    ("memory", "buckets"): "memory has no buckets",
    ("generic", "buckets"): "the root folder is made on the first write",
}


@dataclass
class Place:
    """One kind of store, with what a test must know about it."""

    name: str
    open_at: Callable[..., Store]
    large: int  # bytes of an object that goes up in several pieces
    stream: int  # bytes of the long stream
    uploads: Callable[[], list[str]] = list
    leftovers: Callable[[], list[str]] = list
    faults: FaultProxy | None = None
    opened: list[Store] = field(default_factory=list)
    root: str = field(default_factory=lambda: f"t-{uuid.uuid4().hex[:12]}")

    def open(self, folder: str = "", **options: Any) -> Store:
        """A new store; the same root each time within a test."""
        store = self.open_at(f"{self.root}/{folder}".rstrip("/"), **options)
        self.opened.append(store)
        return store

    def needs(self, what: str) -> None:
        if reason := DEVIATIONS.get((self.name, what)):
            pytest.skip(f"{self.name}: {reason}")


def _make(name: str, request: pytest.FixtureRequest, *, faulty: bool) -> Iterator[Place]:
    if name in {"s3", "moto"}:
        server = request.getfixturevalue("weed" if name == "s3" else "moto")
        proxy = request.getfixturevalue("weed_faults" if name == "s3" else "moto_faults") if faulty else None

        def open_s3(prefix: str, **options: Any) -> Store:
            bucket = options.pop("bucket", server.bucket)
            endpoint = options.pop("endpoint_url", proxy.url if proxy else None)
            given = {"part_size": 5 * MIB, "attempts": 3, "connect_timeout": 2, "read_timeout": 20, **options}
            return open_store(f"s3://{bucket}/{prefix}", **server.arguments(endpoint_url=endpoint, **given))

        place = Place(name, open_s3, large=13 * MIB, stream=100 * MIB, faults=proxy)
        place.uploads = lambda: [key for key in server.open_uploads() if key.startswith(place.root)]
    elif name == "gcs":
        server = request.getfixturevalue("gcs")
        proxy = request.getfixturevalue("gcs_faults") if faulty else None

        def open_gcs(prefix: str, **options: Any) -> Store:
            bucket = options.pop("bucket", server.bucket)
            endpoint = options.pop("endpoint_url", proxy.url if proxy else None)
            given = {"chunk_size": MIB // 2, "attempts": 3, "connect_timeout": 2, "read_timeout": 20, **options}
            return open_store(f"gs://{bucket}/{prefix}", **server.arguments(endpoint_url=endpoint, **given))

        place = Place(name, open_gcs, large=MIB + MIB // 3, stream=48 * MIB, faults=proxy)
        place.uploads = lambda: [key for key in server.open_uploads() if key.startswith(place.root)]
    elif name == "memory":
        place = Place(name, lambda prefix: open_store(f"memory://{prefix}"), large=3 * MIB, stream=100 * MIB)
    else:
        folder = Path(request.getfixturevalue("tmp_path"))
        make = open_store if name == "local" else (lambda url: FsspecStore(url.replace("file://", "local://")))
        place = Place(name, lambda prefix: make(f"file://{folder / prefix}"), large=3 * MIB, stream=100 * MIB)
        place.leftovers = lambda: [str(p) for p in folder.rglob(".tmp-*")]
    yield place
    for store in place.opened:
        with contextlib.suppress(Exception):
            store.close()


@pytest.fixture(params=["local", "s3", "moto", "gcs", "memory", "generic"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    yield from _make(request.param, request, faulty=False)


@pytest.fixture(params=["s3", "gcs"])
def faulty(request: pytest.FixtureRequest) -> Iterator[Place]:
    """The places behind a network, through a proxy that fails on request (`place.faults`)."""
    yield from _make(request.param, request, faulty=True)


@pytest.fixture
def store(place: Place) -> Store:
    return place.open()


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder that any user may reach; pytest's own is closed to others."""
    with tempfile.TemporaryDirectory(prefix="coldstore-contract-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
