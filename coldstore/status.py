"""What a store holds, how it grows and what it costs: sums over its listing and its manifests. No database is asked, nothing is written.

`Tally` is pure, and holds sums, never manifests: what it takes grows with the number of scopes and months, not of snapshots. Objects count
where they lie below a folder, as all of coldstore's do. A snapshot that is dated after now is counted, and is never the newest.
"""

from __future__ import annotations

import heapq
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from coldstore import catalog
from coldstore.catalog import rfc3339, scope_of
from coldstore.document import model
from coldstore.progress import Progress, silent
from coldstore.storage import layout
from coldstore.storage.store import Store
from coldstore.tiers import EVERYBODY, Scope

TOP = 10
_DAY = 86_400_000
GROWTH_DAYS = 30
NIGHTS = 30  # of a month, for the estimate

#: Of one snapshot on top of its document: the manifest and the pointer are written; the pointer is read for the link to the snapshot
#: before, for its rows, and before it is moved.
_MORE_PUTS, _GETS = 2, 3


@dataclass(frozen=True, slots=True)
class Prices:
    """In dollars: for 10⁹ bytes and a month, for a thousand requests that write, for a thousand that read."""

    gb_month: float = 0.023
    put_1k: float = 0.0004
    get_1k: float = 0.00004

    def as_dict(self) -> dict[str, float]:
        return {"gbMonth": self.gb_month, "thousandPuts": self.put_1k, "thousandGets": self.get_1k}


@dataclass(slots=True)
class Amount:
    """Some snapshots or objects, and their bytes as stored."""

    count: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.count += 1
        self.bytes += size


@dataclass(frozen=True, slots=True)
class Requests:
    """`puts` write (and begin or complete an upload), `gets` read."""

    puts: int = 0
    gets: int = 0

    def __add__(self, other: Requests) -> Requests:
        return Requests(self.puts + other.puts, self.gets + other.gets)


def requests_of(size: int, *, part_size: int | None = None) -> Requests:
    """What it takes to write a snapshot whose document is stored in `size` bytes. An object that is larger than `part_size` goes up in
    parts: one request begins the upload, one completes it."""
    parts = -(-size // part_size) if part_size else 1
    return Requests((1 if parts <= 1 else parts + 2) + _MORE_PUTS, _GETS)


@dataclass(frozen=True, slots=True)
class TierSize:
    """One tier of one snapshot: rows, and bytes plain and as stored."""

    rows: int
    bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest good snapshot of everybody. `tiers`: of the newest full one, for an incremental holds but what changed."""

    id: str
    timestamp: int
    tiers: dict[str, TierSize]

    @classmethod
    def of(cls, manifest: model.Manifest, timestamp: int) -> Newest:
        sizes = {t.array: [0, 0] for t in manifest.tiers}
        for frame in manifest.frames:
            if frame.tier in sizes:
                sizes[frame.tier][0] += frame.plain
                sizes[frame.tier][1] += frame.length
        return cls(manifest.id, timestamp, {t.tier: TierSize(t.rows, *sizes[t.array]) for t in manifest.tiers})


@dataclass(slots=True)
class Tally:
    """Sums over manifests, in whatever order they come. `now`: milliseconds since the epoch."""

    now: int
    part_size: int | None = None
    total: Amount = field(default_factory=Amount)
    scopes: dict[Scope, Amount] = field(default_factory=dict)
    months: dict[str, Amount] = field(default_factory=dict)
    last_days: Amount = field(default_factory=Amount)
    days_before: Amount = field(default_factory=Amount)
    newest: Newest | None = None
    full: Newest | None = None
    incremental: int = 0
    sealed: int = 0
    signed: int = 0
    retained: int = 0
    suspect: int = 0
    future: int = 0
    damaged: int = 0
    night: str = ""
    night_snapshots: int = 0
    night_requests: Requests = field(default_factory=Requests)

    def add(self, manifest: model.Manifest) -> None:
        size, (_, timestamp) = manifest.stored_bytes, layout.parse_id(manifest.id)
        self.total.add(size)
        self.scopes.setdefault(scope_of(manifest), Amount()).add(size)
        self.months.setdefault(rfc3339(timestamp)[:7], Amount()).add(size)
        self.sealed += manifest.sealing is not None
        self.signed += manifest.signature is not None
        self.incremental += manifest.kind == model.INCREMENTAL
        self.retained += manifest.retained is not None and manifest.retained.until > rfc3339(self.now)
        self.suspect += manifest.suspect is not None
        if timestamp > self.now:
            self.future += 1
            return
        self._add_growth(timestamp, size)
        self._add_night(timestamp, size)
        if manifest.suspect is None and scope_of(manifest) == EVERYBODY and manifest.kind != model.DOCUMENTS:
            self._add_newest(manifest, timestamp)

    def _add_newest(self, manifest: model.Manifest, timestamp: int) -> None:
        if manifest.kind == "full" and (self.full is None or self.full.timestamp < timestamp):
            self.full = Newest.of(manifest, timestamp)
        newest = self.newest
        if newest is None or newest.timestamp < timestamp:
            newest = Newest(manifest.id, timestamp, {})
        self.newest = replace(newest, tiers=self.full.tiers if self.full else {})

    def _add_growth(self, timestamp: int, size: int) -> None:
        age = (self.now - timestamp) // (GROWTH_DAYS * _DAY)
        if age == 0:
            self.last_days.add(size)
        elif age == 1:
            self.days_before.add(size)

    def _add_night(self, timestamp: int, size: int) -> None:
        """The newest UTC day with a snapshot stands for every night."""
        day = layout.date_of(timestamp)
        if day > self.night:
            self.night, self.night_snapshots, self.night_requests = day, 0, Requests()
        if day == self.night:
            self.night_snapshots += 1
            self.night_requests += requests_of(size, part_size=self.part_size)

    def kinds(self) -> dict[str, dict[str, int]]:
        """For everybody, users and workspaces: how many there are, snapshots, bytes."""
        found = {kind: {"scopes": 0, "snapshots": 0, "storedBytes": 0} for kind in ("all", "uid", "workspace")}
        for scope, amount in self.scopes.items():
            kind = found[scope.kind]
            kind["scopes"] += 1
            kind["snapshots"] += amount.count
            kind["storedBytes"] += amount.bytes
        return found

    def top(self) -> list[tuple[Scope, Amount]]:
        """The scopes with the most bytes."""
        return heapq.nlargest(TOP, self.scopes.items(), key=lambda item: (item[1].bytes, item[1].count, item[0].kind, item[0].value))


@dataclass(frozen=True, slots=True)
class Cost:
    """Dollars a month."""

    storage: float
    requests: float

    @classmethod
    def of(cls, size: int, night: Requests, prices: Prices) -> Cost:
        each_night = night.puts * prices.put_1k / 1000 + night.gets * prices.get_1k / 1000
        return cls(size / 1e9 * prices.gb_month, NIGHTS * each_night)

    @property
    def total(self) -> float:
        return self.storage + self.requests


@dataclass(frozen=True, slots=True)
class Status:
    """What `coldstore status` tells. `folders`: all objects, by the folder at the top. `cost` is None where nobody bills by the byte."""

    url: str
    tally: Tally
    folders: dict[str, Amount]
    last_proven: int | None
    prices: Prices

    @property
    def total(self) -> Amount:
        return Amount(sum(a.count for a in self.folders.values()), sum(a.bytes for a in self.folders.values()))

    @property
    def cost(self) -> Cost | None:
        billed = self.url.startswith(("s3://", "gs://"))
        return Cost.of(self.total.bytes, self.tally.night_requests, self.prices) if billed else None

    def as_dict(self) -> dict[str, Any]:
        t, newest, cost = self.tally, self.tally.newest, self.cost
        return {
            "store": self.url,
            "at": rfc3339(t.now),
            "objects": self.total.count,
            "bytes": self.total.bytes,
            "folders": {name: {"objects": a.count, "bytes": a.bytes} for name, a in sorted(self.folders.items())},
            "snapshots": t.total.count,
            "incremental": t.incremental,
            "storedBytes": t.total.bytes,
            "scopes": t.kinds(),
            "topScopes": [{"uid": s.uid, "workspace": s.workspace, **_amount(a)} for s, a in t.top()],
            "newest": newest and self._newest(newest),
            "months": {month: _amount(a) for month, a in sorted(t.months.items())},
            "growth": {"last30Days": _amount(t.last_days), "before": _amount(t.days_before)},
            "suspect": t.suspect,
            "damaged": t.damaged,
            "future": t.future,
            "sealed": t.sealed,
            "signed": t.signed,
            "retained": t.retained,
            "lastProven": None if self.last_proven is None else rfc3339(self.last_proven),
            "night": {"day": t.night, "snapshots": t.night_snapshots, **asdict(t.night_requests)} if t.night else None,
            "cost": cost and {"storage": cost.storage, "requests": cost.requests, "total": cost.total, "prices": self.prices.as_dict()},
        }

    def _newest(self, newest: Newest) -> dict[str, Any]:
        tiers = {n: {"rows": s.rows, "bytes": s.bytes, "storedBytes": s.stored_bytes} for n, s in newest.tiers.items()}
        age = (self.tally.now - newest.timestamp) / 1000
        return {"id": newest.id, "snapshotAt": rfc3339(newest.timestamp), "ageSeconds": age, "tiers": tiers}


def _amount(amount: Amount) -> dict[str, int]:
    return {"snapshots": amount.count, "storedBytes": amount.bytes}


def gather(store: Store, *, now: int, prices: Prices, part_size: int | None = None, progress: Progress = silent) -> Status:
    """Read every manifest of `store` once. `now`: milliseconds since the epoch."""
    tally = Tally(now, part_size)
    progress.start("manifests")
    for found in catalog.manifests(store):
        if isinstance(found, model.Manifest):
            tally.add(found)
        else:
            tally.damaged += 1
        progress.advance(rows=1)
    progress.start("objects")
    proven = [key.timestamp for drilled in catalog.drills(store).values() for key in drilled if key.proven]
    return Status(store.url, tally, _folders(store), max(proven, default=None), prices)


def _folders(store: Store) -> dict[str, Amount]:
    found: dict[str, Amount] = {}
    for folder in store.folders():
        amount = Amount()
        # A day at a time: a store answers a listing with all of it.
        days = (
            [f"{layout.SNAPSHOTS}{day}/" for day in store.folders(layout.SNAPSHOTS)] if f"{folder}/" == layout.SNAPSHOTS else [f"{folder}/"]
        )
        for prefix in days:
            for item in store.list(prefix):
                amount.add(item.size)
        if amount.count:  # some servers go on showing an empty folder
            found[folder] = amount
    return found
