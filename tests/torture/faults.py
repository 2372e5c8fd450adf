"""One request in five fails: S3 and GCS behind a proxy that answers with errors, breaks off, stalls, loses replies and shows old listings.

Several threads take snapshots, list, read and verify through one `ColdStore`. What fails must fail with a `ColdStoreError`. At the end the store
is looked at without the proxy: every snapshot whose call came back is there and whole, none is there twice, and nothing else is there that
`sweep` and `orphans` do not find. `patience` measures how often and after what pauses a request that always fails is repeated.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from coldstore.app import ColdStore
from coldstore.errors import ColdStoreError, StoreUnavailable
from coldstore.storage.open import open_store
from tests.servers import FaultProxy, GcsServer, S3Server
from tests.torture.look import Found, look
from tests.torture.summary import Summary
from tests.torture.world import USERS, World

WORKERS = 4
ATTEMPTS = 5
#: `after` is the most bytes; the proxy draws a number below it.
FAULTS: tuple[dict[str, Any], ...] = (
    {"action": "status", "status": 500},
    {"action": "status", "status": 503},
    {"action": "status", "status": 429},
    {"action": "reset"},
    {"action": "reset_mid_body", "after": 20_000},
    {"action": "stall", "seconds": 2.5},
    {"action": "truncate", "after": 20_000},
    {"action": "lost_reply"},
    {"action": "late_error", "status": 500},
    {"action": "stale"},
)
#: What a single call can be held up with for ever.
LASTING: tuple[dict[str, Any], ...] = (
    {"action": "status", "status": 500},
    {"action": "status", "status": 503},
    {"action": "status", "status": 429},
    {"action": "reset"},
    {"action": "stall", "seconds": 2.5},
    {"action": "truncate", "after": 5},
)


def store_settings(server: S3Server | GcsServer, endpoint: str, *, attempts: int = ATTEMPTS) -> dict[str, Any]:
    """As of a file. Small pieces, so that a document goes up in several; little patience with what stalls."""
    pieces: dict[str, Any] = {"chunk_size": 256 << 10} if isinstance(server, GcsServer) else {"part_size": 5 << 20}
    return server.arguments(endpoint_url=endpoint, attempts=attempts, connect_timeout=2, read_timeout=1, **pieces)


# --- many operations ---------------------------------------------------------------------------------------------------------------


@dataclass
class Record:
    """What the workers did. `made`: ids by label of the calls that came back."""

    tried: set[str] = field(default_factory=set)
    made: dict[str, list[str]] = field(default_factory=dict)
    failed: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


def campaign(world: World, server: S3Server | GcsServer, proxy: FaultProxy, *, seed: int, runs: int) -> Summary:
    """`runs` operations at a share of faults that the proxy was started with."""
    summary = Summary(f"faults {server.name}", seed)
    # Of two databases, so in two stores: one that lost three quarters of its rows from one snapshot to the next would be suspect.
    places = [{"url": server.url(f"faults-{world._token}-{world.number()}"), "database_url": url} for url in (world.source, world.large)]
    records = [Record(), Record()]
    proxy.clear()
    with summary.timed(), ExitStack() as stack:
        colds = [stack.enter_context(world.cold(place, **store_settings(server, proxy.url))) for place in places]
        for cold, record in zip(colds, records, strict=True):
            cold.snapshot(label="first")  # undisturbed, so that there is something to read
            record.tried.add("first")
        for fault in FAULTS:
            proxy.add(**fault, count=None)
        pool = stack.enter_context(ThreadPoolExecutor(WORKERS))
        for name, broken in pool.map(lambda n: _operate(colds, records, n, random.Random(f"{seed} {n}")), range(runs)):
            summary.count(name, broken, where=f"{server.name}, seed {seed}")
        met = Counter(line.rpartition("-> ")[2] for line in proxy.log())
        proxy.clear()
    summary.figures["requests"] = f"{met.total()}, {met.total() / max(1, runs):.1f} an operation"
    summary.figures["faults"] = ", ".join(f"{name} {n}" for name, n in sorted(met.items()) if not name.isdigit())
    for place, record in zip(places, records, strict=True):
        with world.cold(place, **store_settings(server, server.endpoint_url)) as cold:
            summary.broken += _nothing_lost_or_doubled(look(cold), record)
            summary.broken += _nothing_hidden(cold, server, place["url"], summary)
    return summary


def _operate(colds: list[ColdStore], records: list[Record], number: int, rng: random.Random) -> tuple[str, list[str]]:
    small, large = colds
    record = records[0]
    name, work = rng.choices(
        [
            ("snapshot of one user", lambda: _take(small, record, f"op {number}", uid=f"u{rng.randrange(USERS)}")),
            ("snapshot of all", lambda: _take(small, record, f"op {number}")),
            ("snapshot of all, large", lambda: _take(large, records[1], f"op {number}")),
            ("list", lambda: _list(small, record)),
            ("read", lambda: _read(small)),
            ("verify", lambda: _verify(small, rng)),
        ],
        weights=[8, 3, 1, 3, 3, 3],
    )[0]
    try:
        broken = work()
    except ColdStoreError as exc:
        with record.lock:
            records["large" in name].failed[name] += 1
        return f"{name}: {exc.code}", _unclear(exc)
    except Exception as exc:  # what the campaign is looking for
        return name, [f"{name} {number} raised {exc!r}"]
    return f"{name}: good", broken


def _unclear(exc: ColdStoreError) -> list[str]:
    text = str(exc)
    good = isinstance(exc, StoreUnavailable) and 20 < len(text) < 600 and "\n" not in text and "Traceback" not in text
    return [] if good else [f"not what a failing network should be called: {exc.as_dict()}"]


def _take(cold: ColdStore, record: Record, label: str, **whose: str) -> list[str]:
    with record.lock:
        record.tried.add(label)
    info = cold.snapshot(label=label, **whose)
    with record.lock:
        record.made.setdefault(label, []).append(info.id)
    return []


def _list(cold: ColdStore, record: Record) -> list[str]:
    for item in cold.list_snapshots():
        if isinstance(item, ColdStoreError):
            raise item
        if item.label not in record.tried:
            return [f"the list has {item.id}, which nobody took"]
    return []


def _read(cold: ColdStore) -> list[str]:
    document = cold.document(None)
    wanted = {t.array: t.rows for t in document.tiers or []}
    found: Counter[str] = Counter()
    for part in document.parts(wanted):
        found[part.array] += sum(1 for _ in part.rows())
    return [] if found == Counter(wanted) else [f"{document.name} was read as {found}, it has {wanted}"]


def _verify(cold: ColdStore, rng: random.Random) -> list[str]:
    known = [i for i in cold.list_snapshots(limit=5) if not isinstance(i, ColdStoreError)]
    if not known:
        raise StoreUnavailable("every manifest that was listed could not be read")
    return [f"{v.id} was called bad: {v.problems}" for v in cold.verify(rng.choice(known).id, deep=True) if not v.ok]


def _nothing_lost_or_doubled(found: Found, record: Record) -> list[str]:
    broken = list(found.wrong)
    for label, ids in record.made.items():
        broken += [f"{i} came back and is not there" for i in ids if found.snapshots.get(i) != label]
    labels = Counter(found.snapshots.values())
    broken += [f"{label} is there {n} times" for label, n in labels.items() if n > 1]
    broken += [f"{label} was never asked for" for label in labels if label not in record.tried]
    if len(found.orphans) > sum(record.failed.values()):
        broken.append(f"{len(found.orphans)} documents without a manifest, of {record.failed} failures")
    return broken


def _nothing_hidden(cold: ColdStore, server: S3Server | GcsServer, url: str, summary: Summary) -> list[str]:
    prefix = url.partition("://")[2].partition("/")[2]
    left = [u for u in server.open_uploads() if u.startswith(prefix)]
    summary.figures["uploads left open"] = str(int(summary.figures.get("uploads left open", 0)) + len(left))
    if isinstance(server, GcsServer):
        return []  # Google forgets a session after a week; there is nothing to sweep
    swept = cold.store.sweep(before=datetime.now(UTC) + timedelta(hours=1))  # type: ignore[attr-defined]
    still = [u for u in server.open_uploads() if u.startswith(prefix)]
    return [*([f"not swept: {still}"] if still else []), *([f"swept {swept} of {left}"] if len(swept) != len(left) else [])]


# --- one operation, for ever -------------------------------------------------------------------------------------------------------


def patience(server: S3Server | GcsServer, proxy: FaultProxy, *, rounds: int = 3) -> Summary:
    """How often a call asks before it gives up, and what the pauses are. The proxy's share must be 1."""
    summary = Summary(f"patience {server.name}", 0)
    url = server.url()
    pauses: list[float] = []
    with summary.timed():
        for fault in LASTING:
            for call in ("read", "list"):
                # A new store each time: an S3 client that has met nothing but failures stops repeating altogether.
                store = open_store(url, **store_settings(server, proxy.url))
                proxy.clear()
                store.replace("k", b"x" * 30_000)
                work = (lambda s=store: s.read("k")) if call == "read" else (lambda s=store: list(s.list()))
                what = f"{call}, {fault['action']} {fault.get('status', '')}".rstrip()
                for _ in range(rounds):
                    proxy.clear()
                    proxy.add(**fault, count=None)
                    outcome, found = _ask(work, proxy, over=fault.get("seconds", 0))
                    pauses += found
                    summary.count(outcome, _impatient(what, outcome, len(found) + 1), where=server.name)
                    summary.figures[what] = f"{len(found) + 1} requests in {sum(found):.1f} s"
                proxy.clear()
                store.close()
    drawn = sorted(p for p in pauses if p > 0.002)
    summary.figures["pauses"] = f"{len(drawn)}, from {drawn[0]:.2f} to {drawn[-1]:.2f} s"
    return summary


def _ask(call: Callable[[], object], proxy: FaultProxy, *, over: float) -> tuple[str, list[float]]:
    """The outcome, and the times between two requests. The proxy writes one down when it is `over`."""
    try:
        call()
        outcome = "good"
    except ColdStoreError as exc:
        outcome = exc.code
    except Exception as exc:
        outcome = repr(exc)
    time.sleep(1.5 * over)
    times = [float(line.split()[0]) for line in proxy.log()]
    return outcome, [b - a for a, b in pairwise(times)]


def _impatient(what: str, outcome: str, requests: int) -> list[str]:
    broken = [] if outcome == "StoreUnavailable" else [f"{what} ended as {outcome}"]
    # The HTTP client asks once more by itself where a kept connection turns out to be dead.
    if not ATTEMPTS <= requests <= 2 * ATTEMPTS:
        broken.append(f"{what} was asked {requests} times, {ATTEMPTS} are meant")
    return broken
