"""Whether a store keeps the promises of `storage/store.py`, found out by using it. A store that answers "done" is not believed:
what it says it did is read back.

Everything is tried below one folder, `doctor/{random}/`, which is removed at the end, also after a failure and after Ctrl-C. Refused are
buckets that lock every new object by default: what was tried there could not be removed again.

Where snapshots are to be locked, two objects are locked for some seconds in governance mode, whatever mode is configured: long enough to
see that a delete is refused, and nothing that outlasts the visit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from urllib.parse import quote

from coldstore.diagnosis import Clock, Doubt, Look, NotChecked
from coldstore.errors import (
    AccessDenied,
    BucketMissing,
    ColdStoreError,
    DoctorFailed,
    ObjectExists,
    ObjectLocked,
    ObjectMissing,
    RetentionRefused,
    StoreError,
    StoreUnavailable,
)
from coldstore.storage.gcs import GcsStore
from coldstore.storage.generic import FsspecStore
from coldstore.storage.local import LocalStore
from coldstore.storage.s3 import S3Store
from coldstore.storage.shared import new_nonce
from coldstore.storage.store import Retention, Store

FOLDER = "doctor/"
AWKWARD = "100% naïve ✓ + one&two=3.txt"
_SMALL = 1000
_LARGE = 8 << 20
_RACERS = 4
_LOCKED_SECONDS = 4  # a small and a large object are written meanwhile, and must still be locked when they are deleted

_CREATE_ONLY = "Two runs could overwrite each other's snapshots here. Use a store with create-only writes: docs/how-to/storage.md."
_STALE = "Snapshots would be missed or half read here. Look whether a cache or a mirror stands in between."


class _Abandoned(Exception):
    """What ends an upload in its middle; never leaves this module."""


class StoreCheckup:
    """One visit to a store. `styles`: the same bucket addressed in the path (True) and in the host's name (False), for S3. `lock`: whether
    snapshots are to be locked."""

    def __init__(self, store: Store, *, lock: bool = False, styles: Callable[[bool], Store] | None = None) -> None:
        self._store = store
        self._lock = lock
        self._styles = styles
        self._folder = f"{FOLDER}{new_nonce()}/"
        self._made: set[str] = set()
        self._locked_until = 0.0
        self._upload_seconds = 0.0
        self.clock: Clock | None = None

    def looks(self) -> Iterator[Look]:
        if self._styles is not None:
            yield Look("store: addressing", partial(self._addressing, self._styles))
        yield Look("store: reachable", self._reachable, needed=True)
        yield Look("store: no lock by default", self._unlocked, needed=True)
        yield Look("store: write and read", self._write_and_read, needed=True)
        yield Look("store: listing", self._listing)
        yield Look("store: ranges", self._ranges)
        yield Look("store: empty object", self._empty)
        yield Look("store: awkward name", self._awkward)
        yield Look("store: replace", self._replace)
        yield Look("store: create-only", self._create_only)
        yield Look("store: create-only, racing", self._racing)
        yield Look("store: large object", self._large_object)
        yield Look("store: create-only, large", self._create_only_large)
        yield Look("store: abandoned upload", self._abandoned)
        yield Look("store: delete", self._delete)
        yield Look("store: speed", self._speed)
        yield Look("store: retention", self._retention)

    def clean(self) -> str:
        """Remove all that was written. What is locked is waited for."""
        if not self._made:
            raise NotChecked("nothing was written")
        time.sleep(max(0.0, self._locked_until - time.monotonic()))
        count = len(self._made)
        for key in sorted(self._made):
            with suppress(StoreError):  # one that is refused must not keep the others there
                self._store.delete(key)
                self._made.discard(key)
        left = sorted({*self._made, *(o.key for o in self._store.list(self._folder))})
        if left:
            raise Doubt(f"{len(left)} objects stayed below {self._folder}, {left[0]!r} is one", hint="Delete that folder by hand.")
        return f"{count} objects below {FOLDER} were removed again"

    def close(self) -> None:
        """After an end that nobody planned."""
        if self._made:
            with suppress(ColdStoreError):
                self.clean()

    # --- the place -----------------------------------------------------------------------------------------------------------------

    def _addressing(self, styles: Callable[[bool], Store]) -> str:
        good = [path for path in (True, False) if _answers(styles(path), self._folder)]
        where = " and ".join("in the path" if path else "in the host name" for path in good)
        if not good:
            raise NotChecked("the bucket answers neither in the path nor in the host name")
        try:
            self._reachable()
        except StoreError:
            hint = f"Set path_style = {str(good[0]).lower()}."
            raise Doubt(f"the bucket answers where its name stands {where}, and is looked for elsewhere", hint=hint) from None
        return f"the bucket answers where its name stands {where}"

    def _reachable(self) -> str:
        next(self._store.list(self._folder), None)
        return self._store.url

    def _unlocked(self) -> str:
        try:
            lock = _default_lock(self._store)
        except AccessDenied:
            raise NotChecked("the role may not ask about the bucket's settings") from None
        if lock:
            raise DoctorFailed(
                f"{self._store.url} locks every new object by default ({lock}), pointers too",
                hint="Take the default away, and let `retain_days` lock snapshots: docs/how-to/immutability.md.",
            )
        return "the bucket locks nothing by itself" if isinstance(self._store, S3Store | GcsStore) else "this place keeps no locks"

    # --- promises ------------------------------------------------------------------------------------------------------------------

    def _write_and_read(self) -> str:
        before = time.time()
        key, data = self._write("small", os.urandom(_SMALL))
        after = time.time()
        self._same(key, data)
        size = self._store.stat(key).size
        if size != len(data):
            raise DoctorFailed(f"an object of {len(data)} bytes is {size} bytes long in {self._store.url}", hint=_STALE)
        if stamp := _stamp(self._store, key):
            self.clock = Clock(stamp.ahead - (before + after) / 2, stamp.margin + (after - before) / 2)
        return "an object is there as soon as it is written, and holds what was written"

    def _listing(self) -> str:
        keys = [self._write(f"listed/{name}", b"x")[0] for name in ("a", "b/c", "b-c")]
        found = [o.key for o in self._store.list(f"{self._folder}listed/")]
        if found != sorted(keys):
            missing = sorted(set(keys) - set(found))
            what = f"{missing[0]!r} is missing" if missing else "it is not in the order of the keys"
            raise DoctorFailed(f"a listing of {self._store.url} is wrong right after a write: {what}", hint=_STALE)
        if self._store.folders(f"{self._folder}listed/") != ["b"]:
            raise DoctorFailed(f"{self._store.url} does not list folders rightly", hint=_STALE)
        return "shows what was written, at once and in order"

    def _ranges(self) -> str:
        key, data = self._write("ranges", os.urandom(_SMALL))
        for start, length in ((0, 1), (10, 200), (_SMALL - 5, 5), (_SMALL - 5, 50), (_SMALL, 10), (300, None)):
            if self._store.read(key, start=start, length=length) != data[start : None if length is None else start + length]:
                raise DoctorFailed(
                    f"{self._store.url} answers a read from byte {start} with other bytes", hint="One user's restore reads ranges."
                )
        return "the bytes that were asked for, and no others"

    def _empty(self) -> str:
        key, _ = self._write("empty", b"")
        if self._store.stat(key).size or self._store.read(key):
            raise DoctorFailed(f"an empty object is not empty in {self._store.url}", hint=_STALE)
        return "is an object"

    def _awkward(self) -> str:
        key, data = self._write(AWKWARD, b"awkward")
        self._same(key, data)
        if key not in (o.key for o in self._store.list(self._folder)):
            raise DoctorFailed(f"{key!r} has another name in a listing of {self._store.url}", hint="Users' names are part of keys.")
        return "percent signs, spaces and letters of all kinds are kept"

    def _replace(self) -> str:
        key = self._key("pointer")
        for data in (b"first", b"second"):
            self._store.replace(key, data)
            self._same(key, data)
        return "is seen by the next read"

    def _create_only(self) -> str:
        self._refuses("exclusive", b"first")
        if isinstance(self._store, FsspecStore) and not self._store.in_memory:
            raise Doubt(
                "a second create is refused, but by a look and not by the store: two processes at once may both win",
                hint="Let one process write at a time, or use a disk, S3 or GCS.",
            )
        return "a second create is refused, and the first object stays"

    def _racing(self) -> str:
        key, together = self._key("raced"), Barrier(_RACERS)
        entries = [bytes([n]) * _SMALL for n in range(_RACERS)]

        def race(data: bytes) -> bool:
            try:
                with self._store.create(key) as out:
                    out.write(data)
                    with suppress(BrokenBarrierError):
                        together.wait()
            except ObjectExists:
                return False
            finally:
                together.abort()  # whoever did not get as far must not keep the others waiting
            return True

        with ThreadPoolExecutor(_RACERS) as pool:
            won = [data for data, first in zip(entries, pool.map(race, entries), strict=True) if first]
        if len(won) != 1:
            raise DoctorFailed(
                f"of {_RACERS} that created one object at once in {self._store.url}, {len(won)} were told that they had", hint=_CREATE_ONLY
            )
        self._same(key, won[0])
        return f"of {_RACERS} at once one wins"

    def _large_object(self) -> str:
        started = time.monotonic()
        key, data = self._write("large", self._large)
        self._upload_seconds = time.monotonic() - started
        started = time.monotonic()
        self._same(key, data)
        read, size = time.monotonic() - started, len(data) / 1e6
        return f"{size:.1f} MB: written at {size / self._upload_seconds:.1f} MB/s, read at {size / read:.1f} MB/s"

    def _create_only_large(self) -> str:
        self._refuses("exclusive, large", self._large)
        return "the same where it takes several parts"

    def _abandoned(self) -> str:
        key = self._key("abandoned")
        with suppress(_Abandoned), self._store.create(key) as out:
            out.write(self._large)
            raise _Abandoned
        if self._is_there(key):
            raise DoctorFailed(
                f"{self._store.url} published an object whose upload was given up", hint="A run that dies would leave half a document."
            )
        if uploads := _uploads(self._store, self._folder):
            raise Doubt(
                f"{self._store.url} keeps the parts of {uploads} uploads that were given up",
                hint="They cost money and no listing shows them: set a lifecycle rule (AbortIncompleteMultipartUpload).",
            )
        return "leaves nothing"

    def _delete(self) -> str:
        key, _ = self._write("deleted", b"x")
        self._store.delete(key)
        if self._is_there(key):
            raise DoctorFailed(f"{self._store.url} still shows an object that it deleted", hint="Nothing could be pruned or erased here.")
        self._store.delete(key)
        self._write("deleted", b"y")
        return "is seen by the next read and listing"

    def _speed(self) -> str:
        times = []
        for number in range(5):
            started = time.monotonic()
            key, data = self._write(f"quick-{number}", b"x" * _SMALL)
            wrote = time.monotonic()
            self._same(key, data)
            times.append((wrote - started, time.monotonic() - wrote))
        write, read = (sorted(t)[len(t) // 2] * 1000 for t in zip(*times, strict=True))
        return f"a small object is written in {write:.1f} ms and read in {read:.1f} ms"

    def _retention(self) -> str:
        if not self._lock:
            raise NotChecked("retain_days is not set")
        if not self._store.enforces_retention:
            raise Doubt(
                "this place keeps no locks: coldstore alone refuses to delete a snapshot before its date",
                hint="Where somebody else may delete from it, use S3 with Object Lock or GCS: docs/how-to/immutability.md.",
            )
        self._holds("locked", b"locked", seconds=_LOCKED_SECONDS)
        self._holds("locked, large", self._large, seconds=_LOCKED_SECONDS + 2 * self._upload_seconds)
        return "a delete is refused until the date; two objects were locked for some seconds, in governance mode"

    def _holds(self, name: str, data: bytes, *, seconds: float) -> None:
        """Lock an object by the store's own clock, and try to delete it."""
        clock = self.clock or Clock(0.0, 0.0)
        until = int(time.time() + clock.ahead + clock.margin + seconds) + 1
        self._locked_until = time.monotonic() + seconds + 2 * clock.margin + 2
        try:
            key, _ = self._write(name, data, retain=Retention(datetime.fromtimestamp(until, UTC), "governance"))
        except (RetentionRefused, AccessDenied):
            self._locked_until = 0.0
            raise
        with suppress(ObjectLocked):
            self._store.delete(key)
            if time.time() + clock.ahead + clock.margin >= until:
                raise NotChecked("writing took longer than the lock that was to be tried")
            raise DoctorFailed(
                f"{self._store.url} took a lock and then deleted the object ({name})",
                hint="Snapshots are not protected here, whatever `retain_days` says.",
            )

    # --- means ---------------------------------------------------------------------------------------------------------------------

    @property
    def _large(self) -> bytes:
        """More than the store sends at once."""
        size = max(_LARGE, _piece(self._store) + (64 << 10))
        return (bytes(range(251)) * (size // 251 + 1))[:size]

    def _key(self, name: str) -> str:
        key = self._folder + name
        self._made.add(key)
        return key

    def _write(self, name: str, data: bytes, *, retain: Retention | None = None) -> tuple[str, bytes]:
        key = self._key(name)
        with self._store.create(key, retain=retain) as out:
            if data:
                out.write(data)
        return key, data

    def _same(self, key: str, data: bytes) -> None:
        found = self._store.read(key)
        if found != data:
            raise DoctorFailed(f"{self._store.url} gives back other bytes than were written to {key!r}", hint=_STALE)

    def _refuses(self, name: str, data: bytes) -> None:
        """A second object under the name of a first."""
        key, _ = self._write(name, data)
        try:
            self._write(name, bytes(len(data)))
        except ObjectExists:
            self._same(key, data)
            return
        raise DoctorFailed(f"{self._store.url} overwrites an object that it was told only to create", hint=_CREATE_ONLY)

    def _is_there(self, key: str) -> bool:
        with suppress(ObjectMissing):
            self._store.stat(key)
            return True
        return key in (o.key for o in self._store.list(self._folder))


def _answers(store: Store, folder: str) -> bool:
    try:
        store.list(folder)
    except StoreError:
        return False
    finally:
        store.close()
    return True


# --- what each kind of store tells beyond the promises ---------------------------------------------------------------------------------


def _piece(store: Store) -> int:
    """The most that goes up in one request; 0 where there is no such limit."""
    return store.part_size if isinstance(store, S3Store) else store.chunk_size if isinstance(store, GcsStore) else 0


def _stamp(store: Store, key: str) -> Clock | None:
    """When an object was written, in seconds since the epoch by the store's clock, with half the width of the clock's ticks."""
    if isinstance(store, S3Store):
        found = store.client.call("head_object", op="stat", key=key, Key=store.name(key))["LastModified"]
        return Clock(found.timestamp() + 0.5, 0.5)
    if isinstance(store, GcsStore):
        return Clock(datetime.fromisoformat(store.fields(key)["updated"]).timestamp(), 0.001)
    if isinstance(store, LocalStore):
        return Clock(Path(store.path(key)).stat().st_mtime, 0.01)
    return None


def _default_lock(store: Store) -> str:
    """How a bucket locks what nobody asked it to lock; empty when it does not."""
    if isinstance(store, S3Store):
        try:
            answer = store.client.call("get_object_lock_configuration", op="stat", key=None)
        except (AccessDenied, BucketMissing, StoreUnavailable):
            raise
        except StoreError:  # it has no such thing
            return ""
        rule = answer.get("ObjectLockConfiguration", {}).get("Rule", {}).get("DefaultRetention", {})
        return f"{rule['Mode'].lower()} for {rule.get('Days') or rule.get('Years')} {'days' if 'Days' in rule else 'years'}" if rule else ""
    if isinstance(store, GcsStore):
        url = f"{store.client.base}/storage/v1/b/{quote(store.bucket, safe='')}"
        fields = {"fields": "retentionPolicy,defaultEventBasedHold"}
        bucket = store.client.call("GET", url, op="list", key=None, params=fields).json()
        if policy := bucket.get("retentionPolicy"):
            return f"for {policy.get('retentionPeriod')} seconds"
        return "by a hold" if bucket.get("defaultEventBasedHold") else ""
    return ""


def _uploads(store: Store, folder: str) -> int:
    """Uploads below `folder` that were begun and not ended; 0 where nobody may know."""
    if not isinstance(store, S3Store):
        return 0
    with suppress(StoreError):
        prefix = store.name(folder + "x").removesuffix("x")
        return len(store.client.call("list_multipart_uploads", op="list", key=None, Prefix=prefix).get("Uploads", ()))
    return 0
