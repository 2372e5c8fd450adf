"""What is measured. Each case is a function from the world to the lines of the report; nothing here decides how a line looks.

A target is a limit for the ratio of a round, for the value itself, or none (information). Wherever a peer has a choice, it has the
better one, or what it does as it comes where the target says so; the notes say which.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from typing import Any, Literal

import msgspec
import psycopg
from psycopg import sql

from benchmarks.chains import LINKS, Day, a_day
from benchmarks.measure import Sample, Spread, ratios, spread, take_turns
from benchmarks.world import DEMO_USERS, TABLES, USUAL, VECTOR_INDEX, World
from benchmarks.writing import databases, script, writer
from coldstore import config
from coldstore.app import ColdStore
from coldstore.catalog import rfc3339
from coldstore.document import model
from coldstore.postgres.demo_data import people
from coldstore.postgres.migrate import install_reference_schema
from coldstore.storage import layout
from coldstore.storage.open import open_store
from coldstore.storage.store import Store
from coldstore.tiers import Scope
from coldstore.vault import MemoryVault

_PIECE = 8 << 20  # what an upload is handed at once: the size of a frame
_UPLOAD = 500_000_000
_USERS = 200  # users whose own snapshot is taken
_LISTED = 1000
_MANY = 10_000
_LISTED_AMONG = 100_000
_CLIENTS = 8
_DAY = 86_400_000  # milliseconds
_CHANGED_ROWS = 1_000
_SOME_ROWS = (200_000, 2_000_000)
_BULK_USERS = 2_000  # of the bulk data
_SAVES = 60  # of an agent's own documents
_WARM = 10  # before the first that counts


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the report. `limit` and `on` make it a target: `ratio` or `ours` must not be above it, or below if `at_least`."""

    case: str
    what: str
    unit: str
    ours: Spread
    peer_name: str = ""
    peer: Spread | None = None
    ratio: Spread | None = None
    on: Literal["ratio", "ours"] | None = None
    limit: float = 0.0
    at_least: bool = False
    note: str = ""
    details: Mapping[str, float] = field(default_factory=dict)

    @property
    def reached(self) -> float:
        """The median that counts."""
        judged = self.judged
        assert judged is not None  # only lines with a target are asked
        return judged.middle

    @property
    def judged(self) -> Spread | None:
        return {"ratio": self.ratio, "ours": self.ours, None: None}[self.on]

    @property
    def met(self) -> bool | None:
        """None where there is nothing to meet."""
        if self.on is None:
            return None
        return self.reached >= self.limit if self.at_least else self.reached <= self.limit


def versus(
    case: str,
    what: str,
    taken: Mapping[str, list[Sample]],
    ours: str,
    peer: str,
    *,
    limit: float | None = None,
    unit: str = "s",
    note: str = "",
    details: Mapping[str, float] | None = None,
    by: Callable[[Sample], float] = lambda s: s.value,
) -> Line:
    """Two contestants, round by round. `by`: what counts of the peer's samples."""
    return Line(
        case,
        what,
        unit,
        spread(taken[ours]),
        peer,
        spread(taken[peer], by=by),
        Spread.of([a.value / by(b) for a, b in zip(taken[ours], taken[peer], strict=False)]),
        on=None if limit is None else "ratio",
        limit=limit or 0.0,
        note=note,
        details=details or {},
    )


def _memory(case: str, what: str, samples: list[Sample]) -> Line:
    return Line(
        case, what, "MB", spread(samples, by=lambda s: s.peak / 1e6), on="ours", limit=200.0, note="Of the coldstore process alone."
    )


# --- everybody, out ----------------------------------------------------------------------------------------------------------------


def _export(world: World, codec: str, *, database: str = "bulk", **settings: str) -> Callable[[], Sample]:
    """`coldstore snapshot --all`, into a store that is new each time."""

    def once() -> Sample:
        with world.new_path("store") as store:
            sample, info = world.coldstore(
                "snapshot", "--all", "--store", store, database=world.url(database), compression=codec, **settings
            )
            if info["rows"] != world.rows[database]:
                raise RuntimeError(f"exported {info['rows']}, not {world.rows}")
            return sample.plus(bytes=info["bytes"], stored=info["storedBytes"])

    return once


def _export_inside(world: World, codec: str) -> Callable[[], Sample]:
    """The same as a call in this process: without the interpreter's start and the imports."""

    def once() -> Sample:
        with world.new_path("store") as store, world.library(store, compression=codec) as cold:
            started = time.perf_counter()
            cold.snapshot()
            return Sample(time.perf_counter() - started)

    return once


def _dump(world: World, *options: str, keep: Path | None = None) -> Callable[[], Sample]:
    def once() -> Sample:
        with world.new_path("dump") as path:
            sample = world.dump(path, *options).plus(stored=path.stat().st_size)
            if keep is not None:
                path.replace(keep)
            return sample

    return once


def _dump_into_zstd(world: World) -> Callable[[], Sample]:
    def once() -> Sample:
        with world.new_path("dump.zst") as path:
            commands = [world.dump_command(), world.zstd_command()]
            return world.run(*commands, stdout=path, sync=True).plus(stored=path.stat().st_size)

    return once


def export_plain(world: World) -> Iterator[Line]:
    """Everybody's memory as plain JSON on the local disk, beside `pg_dump`'s plain format. Both sync what they wrote."""
    ours, inside = "coldstore snapshot --all", "in process"
    peer, unsynced = "pg_dump -f", "pg_dump --no-sync -f"
    contestants = {
        ours: _export(world, "none"),
        peer: _dump(world),
        inside: _export_inside(world, "none"),
        unsynced: _dump(world, "--no-sync"),
    }
    taken = take_turns(contestants, rounds=world.rounds or 5, say=world.say)
    yield versus("export-plain", "all-user export, plain JSON", taken, ours, peer, limit=1.0, details=_rates(taken, ours, peer))
    yield versus("export-plain", "— called from Python", taken, inside, peer, note="Without the start of an interpreter.")
    yield versus("export-plain", "— pg_dump does not sync", taken, ours, unsynced, note="coldstore syncs all the same.")
    yield _memory("export-plain", "peak memory, export, plain JSON", taken[ours])


def _rates(taken: Mapping[str, list[Sample]], ours: str, peer: str) -> dict[str, float]:
    return {
        "bytes": taken[ours][0].extra.get("bytes", 0),
        "stored": taken[ours][0].extra.get("stored", 0),
        "peer stored": taken[peer][0].extra.get("stored", 0),
    } | _cpu(taken, ours, peer)


def _cpu(taken: Mapping[str, list[Sample]], ours: str, peer: str) -> dict[str, float]:
    """CPU seconds of each side's own processes, and of the server meanwhile."""
    return {
        "cpu": spread(taken[ours], by=lambda s: s.cpu).middle,
        "server": spread(taken[ours], by=lambda s: s.extra.get("server", 0.0)).middle,
        "peer cpu": spread(taken[peer], by=lambda s: s.cpu).middle,
        "peer server": spread(taken[peer], by=lambda s: s.extra.get("server", 0.0)).middle,
    }


def export_zstd(world: World) -> Iterator[Line]:
    """Everybody's memory compressed, beside `pg_dump` compressed by hand and by itself."""
    ours, inside = "coldstore snapshot --all", "in process"
    piped, custom = f"pg_dump | {world.zstd_name}", "pg_dump -Fc"
    contestants = {ours: _export(world, "zstd"), piped: _dump_into_zstd(world), inside: _export_inside(world, "zstd")}
    taken = take_turns(contestants, rounds=world.rounds or 5, say=world.say)
    note = "The pipeline does not sync what it wrote; coldstore does."
    details = _rates(taken, ours, piped)
    yield versus("export-zstd", "all-user export, zstd 1", taken, ours, piped, limit=1.0, note=note, details=details)
    yield versus("export-zstd", "— called from Python", taken, inside, piped)
    yield versus("export-zstd", "— the pipeline's file synced too", taken, ours, piped, by=lambda s: s.extra["synced"])
    memory = _memory("export-zstd", "peak memory, export, zstd", taken[ours])
    contestants = {ours: _export(world, "zstd"), custom: _dump(world, "-Fc", keep=world.custom_dump_path)}
    taken = take_turns(contestants, rounds=world.rounds or 3, say=world.say)
    details = _rates(taken, ours, custom)
    yield versus("export-zstd", "all-user export, zstd 1", taken, ours, custom, limit=0.2, note="Its own gzip at level 6.", details=details)
    yield memory


# --- everybody, back ---------------------------------------------------------------------------------------------------------------


def _restore(world: World, codec: str, *, database: str = "bulk") -> Callable[[], Sample]:
    """`coldstore restore --to` an empty database."""
    store, snapshot = world.snapshot(codec, database=database)

    def once() -> Sample:
        with world.new_database() as url:
            sample, _ = world.coldstore("restore", snapshot, "--store", store, "--to", url)
            world.check(url, like=database)
            return sample

    return once


def _restore_dump(world: World, dump: Path, *, index_memory: str | None = None, without: str | None = None) -> Callable[[], Sample]:
    def once() -> Sample:
        with world.new_database() as url:
            sample = world.restore_dump(dump, url, index_memory=index_memory, without=without)
            world.check(url, without=without)
            return sample

    return once


def _restore_inside(world: World, store: Path, snapshot: str, *, without: str | None = None) -> Callable[[], Sample]:
    """The same in this process, with the seconds of each step."""

    def once() -> Sample:
        steps = _Steps()
        with world.new_database() as url, world.library(store) as cold:
            started = time.perf_counter()
            cold.restore(snapshot, to=url, progress=steps)
            sample = Sample(time.perf_counter() - started, extra=steps.seconds())
            world.check(url, without=without)
        return sample

    return once


class _Steps:
    """A listener that takes the time of every step."""

    def __init__(self) -> None:
        self._moments = [("prepare", time.perf_counter())]

    def start(self, what: str, *, total_bytes: int | None = None) -> None:  # noqa: ARG002
        self._moments.append((what, time.perf_counter()))

    def advance(self, *, rows: int = 0, size: int = 0) -> None:
        pass

    def note(self, sentence: str) -> None:
        pass

    def seconds(self) -> dict[str, float]:
        ends = [at for _, at in self._moments[1:]] + [time.perf_counter()]
        found: dict[str, float] = {}
        for (what, at), end in zip(self._moments, ends, strict=True):
            found[what] = found.get(what, 0.0) + end - at
        return found


def _steps(samples: list[Sample]) -> dict[str, float]:
    return {step: spread(samples, by=lambda s, step=step: s.extra.get(step, 0.0)).middle for step in samples[0].extra}  # type: ignore[misc]


def restore(world: World) -> Iterator[Line]:
    """Everybody's memory into an empty database, with the same indexes, beside `pg_restore`; then one user out of the same document."""
    ours, plain = "coldstore restore", "coldstore restore, plain JSON"
    peer, generous = "pg_restore -j2", "pg_restore -j2, maintenance_work_mem 512MB"
    dump = world.custom_dump()
    one = _OneUser(world)
    contestants = {
        ours: one.whole_and_one,
        peer: _restore_dump(world, dump),
        plain: _restore(world, "none"),
        generous: _restore_dump(world, dump, index_memory="512MB"),
    }
    taken = take_turns(contestants, rounds=world.rounds or 3, say=world.say, fewer={plain: 2, generous: 2})
    note = "HNSW index included, from zstd."
    yield versus("restore", "all-user restore, fresh database", taken, ours, peer, limit=1.1, note=note, details=_cpu(taken, ours, peer))
    yield versus("restore", "— from plain JSON", taken, plain, peer)
    details = _cpu(taken, ours, generous)
    yield versus("restore", "— pg_restore given coldstore's index memory", taken, ours, generous, details=details)
    yield _memory("restore", "peak memory, restore from zstd", taken[ours])
    yield _memory("restore", "peak memory, restore from plain JSON", taken[plain])
    yield from one.lines(taken[ours])


class _OneUser:
    """The whole of everybody's document and then one user out of it, for that is what the one is measured by."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._store, self._snapshot = world.snapshot("zstd")
        self._uid = "uid_00007"
        self._fresh: list[Sample] = []
        self._among: list[Sample] = []

    def whole_and_one(self) -> Sample:
        """The sample is the whole restore's. The user comes back among everybody else's rows, and into an empty database."""
        world = self._world
        with world.new_database() as url:
            sample, _ = world.coldstore("restore", self._snapshot, "--store", self._store, "--to", url)
            world.check(url)
            with psycopg.connect(url, autocommit=True) as conn:
                for table in TABLES:
                    conn.execute(sql.SQL("DELETE FROM public.{} WHERE uid = %s").format(sql.Identifier(table)), (self._uid,))
                conn.execute("CHECKPOINT")
            self._among.append(self._restore(url))
        with world.new_database() as url:
            self._fresh.append(self._restore(url))
        return sample

    def _restore(self, url: str) -> Sample:
        world = self._world
        sample, _ = world.coldstore("restore", self._snapshot, "--uid", self._uid, "--store", self._store, "--to", url)
        if world.count(url, uid=self._uid) != world.count(world.url(), uid=self._uid):
            raise RuntimeError(f"the memory of {self._uid} is not what it was")
        return sample

    def lines(self, whole: list[Sample]) -> Iterator[Line]:
        for what, taken in (("into an empty database", self._fresh), ("back among everybody's rows", self._among)):
            yield Line(
                "restore",
                f"one user out of everybody's document, {what}",
                "s",
                spread(taken),
                "coldstore restore of all of it",
                spread(whole),
                ratios(taken, whole),
                on="ratio",
                limit=0.15,
                note="From zstd.",
            )


def restore_steps(world: World) -> Iterator[Line]:
    """Where a restore's time goes, and what remains of it without the HNSW index."""
    store, snapshot = world.snapshot("zstd")
    dump = world.custom_dump()
    ours, bare, peer = "in process", "in process, no HNSW", "pg_restore -j2, no HNSW"
    with _without_vector_index(world) as (bare_store, bare_snapshot):
        contestants = {
            ours: _restore_inside(world, store, snapshot),
            bare: _restore_inside(world, bare_store, bare_snapshot, without=VECTOR_INDEX),
            peer: _restore_dump(world, dump, without=VECTOR_INDEX),
        }
        taken = take_turns(contestants, rounds=world.rounds or 2, say=world.say)
    yield Line("restore-steps", "all-user restore, called from Python", "s", spread(taken[ours]), details=_steps(taken[ours]))
    yield versus("restore-steps", "— without the HNSW index", taken, bare, peer, details=_steps(taken[bare]))


@contextmanager
def _without_vector_index(world: World) -> Iterator[tuple[Path, str]]:
    """A store and a snapshot of the same rows from a database that never had the index."""
    url = world.server.createdb("bare", template="bulk")
    try:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(sql.SQL("DROP INDEX public.{}").format(sql.Identifier(VECTOR_INDEX)))
        with world.new_path("store") as store:
            _, info = world.coldstore("snapshot", "--all", "--store", store, database=url, compression="zstd")
            yield store, info["id"]
    finally:
        world.server.dropdb("bare")


# --- users -------------------------------------------------------------------------------------------------------------------------


def one_user(world: World) -> Iterator[Line]:
    """One user's snapshot in a process that runs already, beside the three queries without anything around them."""
    for database, uids in _both_databases(world):
        note = f"Each of {len(uids)} users once." + ("" if database == "bulk" else f" The readable data of {DEMO_USERS} users.")
        taken = _one_by_one(world, database, uids)
        details = {"p95": sorted(s.value for s in taken["ours"])[int(len(taken["ours"]) * 0.95)]}
        yield Line(
            "one-user",
            f"one user's snapshot, {database} data",
            "ms",
            spread(taken["ours"]),
            "the three queries",
            spread(taken["queries"]),
            ratios(taken["ours"], taken["queries"]),
            on="ours",
            limit=10.0,
            note=note,
            details=details,
        )


def _both_databases(world: World) -> Iterator[tuple[str, list[str]]]:
    with psycopg.connect(world.url()) as conn:
        found = conn.execute("SELECT uid FROM public.daily_memories GROUP BY uid ORDER BY md5(uid) LIMIT %s", (_USERS,)).fetchall()
    yield "bulk", [uid for (uid,) in found]
    yield "demo", [p.uid for p in people(DEMO_USERS)]


def _one_by_one(world: World, database: str, uids: list[str]) -> dict[str, list[Sample]]:
    """For each user ours and the bare queries, in turns. Milliseconds."""
    taken: dict[str, list[Sample]] = {"ours": [], "queries": []}
    conn = world.connect(database)
    with world.new_path("store") as store, world.library(store, database=world.url(database)) as cold:
        contestants: list[tuple[str, Callable[[str], object]]] = [
            ("ours", lambda uid: cold.snapshot(uid=uid)),
            ("queries", lambda uid: _queries(conn, uid)),
        ]
        for uid in uids[:20]:  # plans, catalog and allocator are warm afterwards
            for _, once in contestants:
                once(uid)
        for uid in uids:
            contestants.reverse()
            for name, once in contestants:
                started = time.perf_counter()
                once(uid)
                taken[name].append(Sample((time.perf_counter() - started) * 1000))
    conn.close()
    world.say(f"    {database}: {spread(taken['ours']).middle:.2f} ms, queries {spread(taken['queries']).middle:.2f} ms")
    return taken


def _queries(conn: psycopg.Connection[Any], uid: str) -> int:
    size = 0
    for table in TABLES:
        query = sql.SQL("COPY (SELECT row_to_json(t) FROM public.{} AS t WHERE uid = {}) TO STDOUT").format(
            sql.Identifier(table), sql.Literal(uid)
        )
        with conn.cursor() as cursor, cursor.copy(query) as copy:
            for row in copy:
                size += len(row)
    return size


def each_user(world: World) -> Iterator[Line]:
    """A document for each user, all of one moment; users per second of the whole command."""
    for database, rounds in (("bulk", 3), ("demo", 5)):
        with psycopg.connect(world.url(database)) as conn:
            query = sql.SQL(" UNION ").join(sql.SQL("SELECT uid FROM public.{}").format(sql.Identifier(table)) for table in TABLES)
            users = len(conn.execute(query).fetchall())
        contestants = {"command": _each_user(world, database, users), "in process": _each_user_inside(world, database, users)}
        taken = take_turns(contestants, rounds=world.rounds or rounds, say=world.say)
        what = f"--each-user, {users:,} users of the {database} data"
        yield Line("each-user", what, "users/s", spread(taken["command"]), on="ours", limit=300.0, at_least=True)
        yield Line("each-user", "— called from Python", "users/s", spread(taken["in process"]))
        if database == "bulk":
            yield _memory("each-user", "peak memory, --each-user", taken["command"])


def _each_user(world: World, database: str, users: int) -> Callable[[], Sample]:
    def once() -> Sample:
        with world.new_path("store", of_many_files=True) as store:
            sample, found = world.coldstore("snapshot", "--each-user", "--store", store, database=world.url(database))
            if len(found) != users:
                raise RuntimeError(f"{len(found)} documents of {users} users")
            return Sample(users / sample.value, sample.peak, sample.cpu)

    return once


def _each_user_inside(world: World, database: str, users: int) -> Callable[[], Sample]:
    def once() -> Sample:
        with world.new_path("store", of_many_files=True) as store, world.library(store, database=world.url(database)) as cold:
            started = time.perf_counter()
            for _ in cold.snapshot_each_user():
                pass
            return Sample(users / (time.perf_counter() - started))

    return once


# --- S3 ----------------------------------------------------------------------------------------------------------------------------


def upload(world: World) -> Iterator[Line]:
    """A finished document to S3 over a link of 30 ms and 40 MB/s a connection, beside s3fs as it comes; and a whole snapshot."""
    import s3fs

    from tests.servers import shaped_link, weed_server

    document = _document(world)
    size = document.stat().st_size
    with weed_server() as server, shaped_link(server.endpoint_url, latency_ms=30, bytes_per_second=40e6) as link:
        given = server.arguments(endpoint_url=link)
        keys = given["options"]

        def sent(key: str, send: Callable[[], None]) -> Sample:
            """Megabytes per second, once the object is there whole."""
            started = time.perf_counter()
            send()
            seconds = time.perf_counter() - started
            found = server.client().head_object(Bucket=server.bucket, Key=key)["ContentLength"]
            if found != size:
                raise RuntimeError(f"{found} of {size} bytes arrived")
            server.client().delete_object(Bucket=server.bucket, Key=key)
            return Sample(size / 1e6 / seconds)

        def ours() -> Sample:
            name = world.path("document").name
            store = open_store(server.url("ours"), **given)
            try:
                return sent(f"ours/{name}", lambda: _through_store(store, name, document))
            finally:
                store.close()

        def peer() -> Sample:
            name = world.path("document").name
            system = s3fs.S3FileSystem(key=keys["key"], secret=keys["secret"], endpoint_url=link, skip_instance_cache=True)
            return sent(f"peer/{name}", lambda: _through_s3fs(system, f"{server.bucket}/peer/{name}", document))

        def whole() -> Sample:
            settings = {"region": given["region"], "endpoint_url": link, "options": keys}
            with world.library(server.url(), **settings) as cold:
                started = time.perf_counter()
                info = cold.snapshot()
                return Sample(info.stored_bytes / 1e6 / (time.perf_counter() - started))

        taken = take_turns({"Store.create": ours, "s3fs open().write": peer}, rounds=world.rounds or 3, say=world.say)
        more = take_turns({"snapshot --all": whole}, rounds=world.rounds or 2, say=world.say)
    yield Line(
        "upload",
        f"upload of one document of {size / 1e6:.0f} MB to S3",
        "MB/s",
        spread(taken["Store.create"]),
        "s3fs open().write",
        spread(taken["s3fs open().write"]),
        ratios(taken["Store.create"], taken["s3fs open().write"]),
        on="ours",
        limit=60.0,
        at_least=True,
        note="Over a link of 30 ms and 40 MB/s a connection.",
    )
    yield Line("upload", "— a whole all-user snapshot to that store", "MB/s", spread(more["snapshot --all"]), note="Plain JSON.")


def _document(world: World) -> Path:
    """The plain all-user document, or the first 500 MB of a larger one."""
    store, _ = world.snapshot("none")
    (document,) = store.glob("snapshots/*/memory-all-*[0-9].json")
    if document.stat().st_size <= _UPLOAD:
        return document
    part = world.path("document")
    with document.open("rb") as source, part.open("wb") as out:
        for _ in range(0, _UPLOAD, _PIECE):
            out.write(source.read(_PIECE))
    return part


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def _through_store(store: Store, key: str, document: Path) -> None:
    with store.create(key) as out:
        for piece in _pieces(document):
            out.write(piece)


def _through_s3fs(system: Any, path: str, document: Path) -> None:
    with system.open(path, "wb") as out:
        for piece in _pieces(document):
            out.write(piece)


# --- trust -------------------------------------------------------------------------------------------------------------------------


def trust(world: World) -> Iterator[Line]:
    """What it costs to seal and to sign, and how long it takes to check: ten thousand snapshots quickly, one to its last byte."""
    keys = {"COLD_STORE_KEY_RINGS": f"local:{world.path('key')}", "COLD_STORE_SIGNING_KEY_FILE": str(world.path("signing-key"))}
    world.coldstore("keygen", keys["COLD_STORE_KEY_RINGS"].removeprefix("local:"))
    world.coldstore("keygen", "--sign", keys["COLD_STORE_SIGNING_KEY_FILE"])
    rounds = world.rounds or 5
    taken = take_turns({"sealed": _export(world, "zstd", **keys), "plain": _export(world, "zstd")}, rounds=rounds, say=world.say)
    yield versus(
        "trust", "all-user export, zstd 1, sealed and signed", taken, "sealed", "plain", limit=1.1, details=_cpu(taken, "sealed", "plain")
    )
    yield _memory("trust", "peak memory, export, sealed", taken["sealed"])
    for sealing, settings in (("", {}), (", sealed and signed", keys)):
        for codec in ("none", "zstd"):
            yield _deep(world, codec, sealing, settings)
    with world.new_path("many", of_many_files=True) as store:
        with world.library(store) as cold:
            for _ in range(_MANY // _BULK_USERS):
                for _ in cold.snapshot_each_user():
                    pass

        def quick() -> Sample:
            sample, found = world.coldstore("verify", "--all", "--store", store)
            if found["checked"] != _MANY or not found["ok"]:
                raise RuntimeError(f"checked {found['checked']}, {'' if found['ok'] else 'not '}ok")
            return sample

        taken = take_turns({"coldstore verify --all": quick}, rounds=world.rounds or 3, say=world.say)
        what = f"verify --all of {_MANY:,} snapshots"
        yield Line("trust", what, "s", spread(taken["coldstore verify --all"]), on="ours", limit=30.0, note="On the local disk.")
        yield _memory("trust", f"peak memory, {what}", taken["coldstore verify --all"])


def _deep(world: World, codec: str, sealing: str, settings: Mapping[str, str]) -> Line:
    """Plain megabytes a second of `verify --all --deep`."""
    with world.new_path("deep", of_many_files=True) as store:
        world.coldstore("snapshot", "--all", "--store", store, database=world.url(), compression=codec, **settings)

        def verify() -> Sample:
            sample, found = world.coldstore("verify", "--all", "--deep", "--store", store, **settings)
            size = sum(v["bytes"] for v in found["results"])
            return Sample(size / 1e6 / sample.value, sample.peak, sample.cpu)

        taken = take_turns({"coldstore verify --deep": verify}, rounds=world.rounds or 3, say=world.say)
    what = f"verify --deep, {'plain JSON' if codec == 'none' else codec}{sealing}"
    samples = spread(taken["coldstore verify --deep"])
    return Line("trust", what, "MB/s", samples, on="ours", limit=300.0, at_least=True, note="Plain bytes a second.")


# --- reading -----------------------------------------------------------------------------------------------------------------------


def reading(world: World) -> Iterator[Line]:
    """What a person waits for: a list of a thousand snapshots."""
    with world.new_path("listed", of_many_files=True) as store:
        with world.library(store, database=world.url("demo")) as cold:
            for _ in range(_LISTED // DEMO_USERS):
                for _ in cold.snapshot_each_user():
                    pass

        def listing() -> Sample:
            sample, found = world.coldstore("list", "--store", store)
            if len(found) != _LISTED:
                raise RuntimeError(f"listed {len(found)} snapshots")
            return sample

        taken = take_turns({"coldstore list": listing}, rounds=world.rounds or 5, say=world.say)
        yield Line("reading", f"list of {_LISTED:,} snapshots", "s", spread(taken["coldstore list"]))


def listing(world: World) -> Iterator[Line]:
    """One user's snapshots among a hundred thousand, on the local disk: each day's of a year, and one among all of a day."""
    for span, users, days in (("a year of days", _LISTED_AMONG // 365, 365), ("one day", _LISTED_AMONG, 1)):
        with world.new_path("crowd", of_many_files=True) as store:
            uid = _crowd(world, store, users=users, days=days)

            def once(store: Path = store, uid: str = uid, days: int = days) -> Sample:
                sample, found = world.coldstore("list", "--uid", uid, "--store", store)
                if len(found) != days or {info["uid"] for info in found} != {uid}:
                    raise RuntimeError(f"listed {len(found)} snapshots, not {days}")
                return sample

            taken = take_turns({"coldstore list --uid": once}, rounds=world.rounds or 5, say=world.say)
            what = f"list --uid, {days:,} among {users * days:,} snapshots of {span}"
            yield Line("list", what, "s", spread(taken["coldstore list --uid"]), on="ours", limit=1.0, note="With an interpreter's start.")


def _crowd(world: World, store: Path, *, users: int, days: int) -> str:
    """Manifests of that many users on that many days, made from a real one, each beside a document that nobody opens; the user to ask for."""
    with world.library(store, database=world.url("demo")) as cold:
        manifest = cold.manifest(cold.snapshot(uid=people(1)[0].uid).id)
    at = layout.parse_id(manifest.id)[1]
    for day in range(days):
        (store / layout.folder_of(f"memory-x-{at - day * _DAY}")).mkdir(parents=True, exist_ok=True)
        for user in range(users):
            moment = at - day * _DAY
            snapshot = layout.snapshot_id(Scope.user(f"member_{user:06}"), moment)
            key = layout.document_key(snapshot)
            changes = {"id": snapshot, "uid": f"member_{user:06}", "snapshot_at": rfc3339(moment), "document": key, "checksum": ""}
            (store / layout.manifest_key(snapshot)).write_bytes(model.encode_manifest(msgspec.structs.replace(manifest, **changes)))
            (store / key).write_bytes(b"{}")
    return f"member_{users // 2:06}"


# --- incrementals ------------------------------------------------------------------------------------------------------------------


def incremental(world: World) -> Iterator[Line]:
    """A thousand changed rows as an incremental snapshot, from a process that runs already, of few and of many rows."""
    with ExitStack() as stack:
        worlds = {rows: _recorded_world(world, stack, rows) for rows in _SOME_ROWS}
        rounds = world.rounds or 9
        full = take_turns({f"full, {rows:,}": _whole(cold) for rows, (_, cold) in worlds.items()}, rounds=min(3, rounds), say=world.say)
        changes = {f"{rows:,} rows": _changed(cold, url) for rows, (url, cold) in worlds.items()}
        for once in changes.values():
            once()
        taken = take_turns(changes, rounds=rounds, say=world.say)
    note = "In a process that runs already. The reference table and its triggers; the rows that change lie far apart."
    milliseconds = [Spread.of([s.value * 1000 for s in found]) for found in taken.values()]
    for rows, ours, found in zip(_SOME_ROWS, milliseconds, full.values(), strict=True):
        whole = spread(found, by=lambda s: s.value * 1000)
        ratio = Spread.of([value / whole.middle for value in ours.values])
        on: Literal["ratio"] | None = "ratio" if rows == _SOME_ROWS[-1] else None
        what = f"{_CHANGED_ROWS:,} changed rows among {rows:,}"
        yield Line("incremental", what, "ms", ours, "a full snapshot", whole, ratio, on=on, limit=0.01, note=note)
    few, many = taken.values()
    what = f"— {_SOME_ROWS[-1] // _SOME_ROWS[0]} times the rows"
    beside = f"among {_SOME_ROWS[0]:,}"
    yield Line("incremental", what, "ms", milliseconds[1], beside, milliseconds[0], ratios(many, few), on="ratio", limit=1.3)


def _recorded_world(world: World, stack: ExitStack, rows: int) -> tuple[str, ColdStore]:
    url = stack.enter_context(world.new_database())
    cold = stack.enter_context(world.library(stack.enter_context(world.new_path("store", of_many_files=True)), database=url))
    _many_small_rows(url, rows)
    cold.init(change_capture=True)
    return url, cold


def _many_small_rows(url: str, rows: int) -> None:
    """Users of a hundred rows each, one of every user after the other."""
    users = rows // 100
    with psycopg.connect(url, autocommit=True) as conn:
        install_reference_schema(conn)
        conn.execute(
            "INSERT INTO public.daily_memories (uid, date, entries) SELECT 'user_' || n %% %s, date '2026-01-01' + n / %s, to_jsonb(n)"
            " FROM generate_series(0, %s) n",
            (users, users, rows - 1),
        )
        conn.execute("VACUUM ANALYZE public.daily_memories")
        conn.execute("CHECKPOINT")


def _whole(cold: ColdStore) -> Callable[[], Sample]:
    def once() -> Sample:
        started = time.perf_counter()
        cold.snapshot()
        return Sample(time.perf_counter() - started)

    return once


def _changed(cold: ColdStore, url: str) -> Callable[[], Sample]:
    users = count()

    def once() -> Sample:
        chosen = [f"user_{next(users)}" for _ in range(_CHANGED_ROWS // 100)]
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("UPDATE public.daily_memories SET entries = to_jsonb(now()) WHERE uid = ANY (%s)", (chosen,))
        started = time.perf_counter()
        info = cold.snapshot_incremental()
        seconds = time.perf_counter() - started
        if info is None or sum(info.rows.values()) != _CHANGED_ROWS:
            raise RuntimeError(f"taken {info and info.rows}, not {_CHANGED_ROWS} rows")
        return Sample(seconds)

    return once


def chain(world: World) -> Iterator[Line]:
    """A full snapshot and the incrementals of a day back into an empty database, beside a full snapshot of the same rows."""
    with a_day(world) as lived:

        def restored(snapshot: str) -> Callable[[], Sample]:
            def once() -> Sample:
                with world.new_database() as url:
                    sample, _ = world.coldstore("restore", snapshot, "--store", lived.store, "--to", url)
                    if world.count(url) != lived.rows:
                        raise RuntimeError(f"restored {world.count(url)}, not {lived.rows}")
                    return sample

            return once

        ours, peer = f"full + {LINKS} incrementals", "an equal full"
        taken = take_turns({ours: restored(lived.chain), peer: restored(lived.full)}, rounds=world.rounds or 3, say=world.say)
        note = f"From zstd; {lived.changed:,} rows and keys in the incrementals. No vector index."
        yield versus("chain", f"restore of a full and {LINKS} incrementals", taken, ours, peer, limit=1.3, note=note)
        yield _memory("chain", "peak memory, restore of a chain", taken[ours])
        compacted = take_turns({"compact": _compacted(world, lived)}, rounds=world.rounds or 2, say=world.say)["compact"]
        yield Line("chain", "compact of the same chain", "s", spread(compacted))
        yield _memory("chain", "peak memory, compact", compacted)


def _compacted(world: World, lived: Day) -> Callable[[], Sample]:
    def once() -> Sample:
        sample, info = world.coldstore("compact", lived.chain, "--store", lived.store, compression="zstd")
        if info["rows"] != lived.rows:
            raise RuntimeError(f"compacted {info['rows']}, not {lived.rows}")
        return sample

    return once


# --- what writing costs ------------------------------------------------------------------------------------------------------------


def capture(world: World) -> Iterator[Line]:
    """Inserts into the reference tables, with and without change capture."""
    with databases(world) as urls:
        for rows, limit in ((1, 1.3), (100, 1.1)):
            for table in TABLES:
                path = script(world, table, rows)
                taken = take_turns({n: writer(world, u, path) for n, u in urls.items()}, rounds=world.rounds or 15, say=world.say)
                what = f"{table}, {rows} row{'s' * (rows > 1)} a statement"
                yield versus("capture", what, taken, "with", "without", limit=limit, unit="ms")


# --- http --------------------------------------------------------------------------------------------------------------------------


def over_http(world: World) -> Iterator[Line]:
    """One user's snapshot over loopback: one request after the other, and from several clients at once, which share the two cores with the
    server and the database."""
    uids = [uid for database, found in _both_databases(world) if database == "bulk" for uid in found]
    with world.new_path("store", of_many_files=True) as store, world.new_database() as runs, world.library(store, database=runs) as cold:
        cold.init()
        yield from _requests(world, store, runs, uids)


def _requests(world: World, store: Path, runs: str, uids: list[str]) -> Iterator[Line]:
    with _served(world, store, runs) as post:
        for uid in uids[:20]:
            post(uid)
        alone = [Sample(post(uid) * 1000) for uid in uids]
        details = {"p95": sorted(s.value for s in alone)[int(len(alone) * 0.95)]}
        world.say(f"    {spread(alone).middle:.2f} ms")
        yield Line("http", "POST of one user's snapshot", "ms", spread(alone), on="ours", limit=25.0, details=details)
        rates = []
        for _ in range(world.rounds or 5):
            with ThreadPoolExecutor(_CLIENTS) as pool:
                started = time.perf_counter()
                list(pool.map(post, uids * 3))
                rates.append(Sample(len(uids) * 3 / (time.perf_counter() - started)))
            world.say(f"    {rates[-1].value:.0f} requests/s")
        what = f"{len(uids) * 3} snapshots of different users, {_CLIENTS} clients"
        yield Line("http", what, "requests/s", spread(rates), on="ours", limit=100.0, at_least=True)


@contextmanager
def _served(world: World, store: Path, runs: str) -> Iterator[Callable[[str], float]]:
    """A server in a process of its own; the function posts for a user, on a connection of its thread, and returns the seconds."""
    key = secrets.token_hex(16)
    environment = world.environment(COLD_STORE_API_KEY=key, COLD_STORE_RUNS_URL=runs, DATABASE_URL=world.url())
    process = subprocess.Popen(
        [*world.program, "serve", "--port", "0", "--store", store, "--json"],
        env=environment,
        cwd=world.scratch,
        stdout=subprocess.PIPE,
    )
    mine = threading.local()

    def post(uid: str) -> float:
        started = time.perf_counter()
        if not hasattr(mine, "connection"):
            mine.connection = HTTPConnection("127.0.0.1", port)
        body = json.dumps({"uid": uid})
        mine.connection.request("POST", "/admin/memory/snapshot", body, {"x-api-key": key, "Content-Type": "application/json"})
        answer = mine.connection.getresponse()
        told = answer.read()
        if answer.status != HTTPStatus.CREATED:
            raise RuntimeError(f"the server answered {answer.status}: {told!r}")
        return time.perf_counter() - started

    assert process.stdout is not None
    try:
        port = json.loads(process.stdout.readline())["port"]
        yield post
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


# --- ten times as much -------------------------------------------------------------------------------------------------------------


def large_export(world: World) -> Iterator[Line]:
    """Ten times as much memory, out: the same time for a byte, and no more memory for the process."""
    for codec, what, peer, dump in (
        ("none", "plain JSON", "pg_dump -f", _dump(world)),
        ("zstd", "zstd 1", f"pg_dump | {world.zstd_name}", _dump_into_zstd(world)),
    ):
        contestants = {"large": _export(world, codec), peer: dump, "small": _export(world, codec, database="small")}
        taken = take_turns(contestants, rounds=world.rounds or 3, say=world.say)
        yield versus("large-export", f"all-user export, {what}", taken, "large", peer, limit=1.0, details=_rates(taken, "large", peer))
        yield from _memories(world, "large-export", f"export, {what}", taken)


def large_restore(world: World) -> Iterator[Line]:
    """Ten times as much memory, back. No HNSW index on either side: it would take longer than everything else."""
    peer = "pg_restore -j2"
    # Only to restore from: at gzip's level 6, as it comes, the dump alone would take minutes.
    dump = world.custom_dump("-Z", "1")
    contestants = {
        "large": _restore(world, "zstd"),
        peer: _restore_dump(world, dump),
        "small": _restore(world, "zstd", database="small"),
    }
    taken = take_turns(contestants, rounds=world.rounds or 2, say=world.say)
    note, details = "Without the HNSW index.", _cpu(taken, "large", peer)
    yield versus("large-restore", "all-user restore, fresh database", taken, "large", peer, note=note, details=details)
    yield from _memories(world, "large-restore", "restore from zstd", taken)


def _memories(world: World, case: str, what: str, taken: Mapping[str, list[Sample]]) -> Iterator[Line]:
    """Of the large data, in itself and beside that of the usual size."""

    def peak(sample: Sample) -> float:
        return sample.peak / 1e6

    yield _memory(case, f"peak memory, {what}", taken["large"])
    large, small = taken["large"], taken["small"]
    yield Line(
        case,
        f"peak memory, {what}, {world.size / USUAL:g} times the data",
        "MB",
        spread(large, by=peak),
        "itself with 500 MB",
        spread(small, by=peak),
        ratios(large, small, by=peak),
        on="ratio",
        limit=1.1,
    )


# --- an agent's own documents ------------------------------------------------------------------------------------------------------


def vault(world: World) -> Iterator[Line]:
    """A megabyte of text saved and brought back, beside what one writes by hand: JSON, gzip, SHA-256, a file that is synced."""
    with world.new_path("vault", of_many_files=True) as store, world.new_path("by-hand", of_many_files=True) as folder:
        folder.mkdir()
        agent = MemoryVault("agent-42", url=str(store), settings=config.build({}, {}))
        saves = {"coldstore": agent.backup, "by hand": lambda memory: _save_by_hand(folder, memory)}
        loads = {"coldstore": agent.restore, "by hand": lambda: _load_by_hand(folder)}
        saved: dict[str, list[Sample]] = {name: [] for name in saves}
        loaded: dict[str, list[Sample]] = {name: [] for name in loads}
        for number in range(-_WARM, (world.rounds or 1) * _SAVES):
            memory = _notes(number)
            for name in sorted(saves, reverse=bool(number % 2)):
                for taken, once in ((saved, partial(saves[name], memory)), (loaded, loads[name])):
                    os.sync()
                    started = time.perf_counter()
                    found = once()
                    if number >= 0:
                        taken[name].append(Sample((time.perf_counter() - started) * 1000))
                if found != memory:
                    raise RuntimeError(f"{name} did not bring back what was saved")
    note = "Both sync file and folder; ours is three files, plain, by hand it is one, gzip level 1."
    for what, taken, limit in (("save 1 MB of text", saved, 15.0), ("bring it back", loaded, 10.0)):
        line = versus("vault", what, taken, "coldstore", "by hand", unit="ms", note=note)
        world.say(f"    {what}: {line.ours.middle:.2f} ms, by hand {line.peer.middle if line.peer else 0:.2f} ms")
        yield replace(line, on="ours", limit=limit)


def _notes(number: int) -> dict[str, str]:
    """A megabyte of notes, of which the first is always another."""
    text = "The user prefers short answers, and asked on Tuesday to be reminded of the report by the end of the week.\n"
    return {f"notes/{n:03}.md": f"# {n} {number if n == 0 else 0}\n{text * (n % 90 + 5)}" for n in range(200)}


def _save_by_hand(folder: Path, memory: Mapping[str, str]) -> None:
    data = gzip.compress(json.dumps(memory).encode(), 1)
    sums = hashlib.sha256(data).hexdigest()
    with (folder / "new").open("wb") as file:
        file.write(sums.encode() + data)
        file.flush()
        os.fsync(file.fileno())
    (folder / "new").replace(folder / "memory.json.gz")
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _load_by_hand(folder: Path) -> dict[str, str]:
    stored = (folder / "memory.json.gz").read_bytes()
    if hashlib.sha256(stored[64:]).hexdigest() != stored[:64].decode():
        raise RuntimeError("damaged")
    found: dict[str, str] = json.loads(gzip.decompress(stored[64:]))
    return found


Case = Callable[[World], Iterator[Line]]

#: name → case, in the order of a whole run: those that make many small files come before those that drop databases or remove many files
#: (`World.new_path`).
CASES: dict[str, Case] = {
    "export-plain": export_plain,
    "export-zstd": export_zstd,
    "one-user": one_user,
    "each-user": each_user,
    "http": over_http,
    "vault": vault,
    "reading": reading,
    "list": listing,
    "restore": restore,
    "restore-steps": restore_steps,
    "upload": upload,
    "trust": trust,
    "incremental": incremental,
    "capture": capture,
    "chain": chain,
}
#: The same for `--large`.
LARGE_CASES: dict[str, Case] = {"large-export": large_export, "large-restore": large_restore}
