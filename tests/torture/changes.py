"""Writers that nobody coordinates, a server that crashes, and chains of changes that must lead to what is there.

Threads write to partitioned, inherited and linked tables at random: statements of every kind, savepoints, keys and owners that change,
TRUNCATE, rollbacks, transactions that stay open or prepared for a while, sessions with strange settings, commits that are not flushed. All
the while chains of changes are followed: some by the queries of change capture and a plain dictionary, some through the documents of real
incremental snapshots. Each step is compared, row for row, with all that the same moment holds. Changes that no head needs are swept away
without grace; now and then every process of the server is killed, and what was not flushed is lost.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg

from coldstore.document import model
from coldstore.errors import ChainRefused, DatabaseError
from coldstore.export import ExportOptions, snapshot
from coldstore.incremental import snapshot_incremental
from coldstore.postgres import capture
from coldstore.postgres.connect import connect
from coldstore.postgres.embedded import EmbeddedPostgres
from coldstore.postgres.migrate import migrate
from coldstore.postgres.source import Moment, Source
from coldstore.storage.open import open_store
from coldstore.storage.store import Store
from coldstore.tiers import EVERYBODY, Scope, Tier
from tests.integration.changes import Rows, everything, key_of
from tests.torture.summary import Summary

SCHEMA = """
CREATE TABLE days (day date, agent text, uid text, ws text, n numeric, body jsonb, PRIMARY KEY (agent, day)) PARTITION BY LIST (agent);
CREATE TABLE days_a PARTITION OF days FOR VALUES IN ('a', 'b') PARTITION BY RANGE (day);
CREATE TABLE days_a1 PARTITION OF days_a FOR VALUES FROM (MINVALUE) TO ('2026-06-01');
CREATE TABLE days_a2 PARTITION OF days_a FOR VALUES FROM ('2026-06-01') TO (MAXVALUE);
CREATE TABLE days_c PARTITION OF days DEFAULT;
CREATE TABLE nodes (id int PRIMARY KEY, uid text, ws text, at timestamptz DEFAULT now(), note text);
CREATE TABLE hubs (more text) INHERITS (nodes);
CREATE TABLE edges (id float8 PRIMARY KEY, uid text, ws text, day date, agent text, x float8,
    FOREIGN KEY (agent, day) REFERENCES days ON DELETE CASCADE ON UPDATE CASCADE);
"""
TIERS = [Tier(name, f"public.{name}", workspace="ws") for name in ("days", "nodes", "edges")]
SESSIONS = (
    "SET DateStyle = 'SQL, DMY'",
    "SET extra_float_digits = -5",
    "SET TimeZone = 'Asia/Kolkata'",
    "SET synchronous_commit = off",
    "SET session_replication_role = replica",
)
DAY = "date '2026-05-20' + (random() * 25)::int"
AGENT = "(ARRAY['a', 'b', 'c', 'd'])[1 + (random() * 3)::int]"
UID = "(ARRAY['u0', 'u1', 'u2', NULL])[1 + (random() * 3)::int]"
WS = "(ARRAY['w0', 'w1', NULL])[1 + (random() * 2)::int]"
BODY = "jsonb_build_object('k', md5(random()::text), 'n', random())"
MANY = "generate_series(1, {n})"
UPSERT = f"""
INSERT INTO days SELECT {DAY}, {AGENT}, {UID}, {WS}, random(), {BODY}
ON CONFLICT (agent, day) DO UPDATE SET uid = excluded.uid, body = excluded.body, n = NULL
"""
MERGE = f"""
MERGE INTO nodes t USING {MANY} i ON t.id = i * 7
 WHEN MATCHED AND random() < 0.4 THEN DELETE
 WHEN MATCHED THEN UPDATE SET uid = {UID}, note = md5(random()::text)
 WHEN NOT MATCHED THEN INSERT (id, uid, ws) VALUES (i * 7, {UID}, {WS})
"""
HALVE = """
WITH gone AS (DELETE FROM edges WHERE random() < 0.1 RETURNING *)
INSERT INTO edges SELECT id / 2, 'u1', ws, day, agent, x FROM gone
"""
STATEMENTS = (
    f"INSERT INTO days SELECT {DAY}, {AGENT}, {UID}, {WS}, random(), {BODY} FROM {MANY} ON CONFLICT DO NOTHING",
    UPSERT,
    f"UPDATE days SET n = random(), ws = {WS} WHERE day = {DAY}",
    f"UPDATE days_a SET uid = {UID} WHERE day = {DAY}",
    f"UPDATE days_a2 SET body = {BODY} WHERE random() < 0.2",
    f"UPDATE days SET agent = {AGENT} WHERE day = {DAY} AND agent = {AGENT}",
    f"UPDATE days SET day = day + 1, uid = {UID} WHERE agent = {AGENT} AND day = {DAY}",
    f"DELETE FROM days WHERE day = {DAY} AND random() < 0.5",
    f"DELETE FROM days_c WHERE day = {DAY}",
    MERGE,
    f"INSERT INTO nodes SELECT (random() * 300)::int, {UID}, {WS} FROM generate_series(1, 1) ON CONFLICT DO NOTHING",
    f"INSERT INTO hubs SELECT (random() * 300)::int, {UID}, {WS} FROM {MANY}",
    f"UPDATE nodes SET uid = {UID}, at = clock_timestamp() WHERE id % 20 = (random() * 19)::int",
    "UPDATE ONLY nodes SET id = id + 1000 WHERE id = (random() * 300)::int",
    "UPDATE hubs SET id = id + 1 WHERE id % 30 = (random() * 29)::int",
    "DELETE FROM nodes WHERE id % 15 = (random() * 14)::int",
    "DELETE FROM ONLY nodes WHERE id > 1000",
    f"INSERT INTO edges SELECT random(), {UID}, {WS}, day, agent, random() FROM days WHERE random() < 0.2 LIMIT {{n}}",
    f"UPDATE edges SET id = random(), uid = {UID} WHERE random() < 0.05",
    "DELETE FROM edges WHERE random() < 0.1",
    HALVE,
)
EMPTYING = ("TRUNCATE days_a2 CASCADE", "TRUNCATE ONLY nodes", "TRUNCATE edges", "TRUNCATE hubs", "TRUNCATE days, edges")


class Writers:
    """Threads that write until they are told to stop. The transactions that they prepared are anybody's to finish."""

    def __init__(self, rng: random.Random, count: int) -> None:
        self.url = ""
        self.outcomes: Counter[str] = Counter()
        self._rngs = [random.Random(rng.random()) for _ in range(count)]
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, url: str) -> None:
        self.url = url
        self._stop.clear()
        self._threads = [threading.Thread(target=self._write, args=(r,), daemon=True) for r in self._rngs]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self, rng: random.Random) -> None:
        while not self._stop.is_set():
            # The server may be away for a moment.
            with suppress(psycopg.OperationalError), psycopg.connect(self.url, autocommit=True) as conn:
                conn.execute("SET lock_timeout = '300ms'; SET search_path = public")
                for setting in rng.sample(SESSIONS, rng.randrange(3)):
                    conn.execute(setting)
                for _ in range(30):
                    if self._stop.is_set():
                        break
                    self.outcomes[self._transaction(conn, rng)] += 1

    def _transaction(self, conn: psycopg.Connection[Any], rng: random.Random) -> str:
        if rng.random() < 0.2:
            finish_prepared(conn, rng)
        level = rng.choice(("READ COMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"))
        conn.execute(f"BEGIN ISOLATION LEVEL {level}")
        try:
            for place in range(rng.randint(1, 5)):
                kept = rng.random() < 0.7
                if not kept or rng.random() < 0.2:
                    conn.execute(f"SAVEPOINT s{place}")
                conn.execute(_statement(rng))
                if not kept:
                    conn.execute(f"ROLLBACK TO s{place}")
                if rng.random() < 0.2:
                    time.sleep(rng.random() * 0.05)
            return _end(conn, rng)
        except psycopg.OperationalError as exc:  # a deadlock, a lock that took long, a serialisation failure
            if exc.sqlstate is None:
                raise
            conn.execute("ROLLBACK")
            return "failed"
        except psycopg.IntegrityError:
            conn.execute("ROLLBACK")
            return "failed"


def _statement(rng: random.Random) -> str:
    if rng.random() < 0.03:
        return rng.choice(EMPTYING)
    return rng.choice(STATEMENTS).format(n=rng.choice((1, 3, 20)))


def _end(conn: psycopg.Connection[Any], rng: random.Random) -> str:
    if rng.random() < 0.15:
        conn.execute(f"PREPARE TRANSACTION '{uuid.UUID(int=rng.getrandbits(128))}'")
        return "prepared"
    outcome = "COMMIT" if rng.random() < 0.8 else "ROLLBACK"
    conn.execute(outcome)
    return {"COMMIT": "committed", "ROLLBACK": "rolled back"}[outcome]


def finish_prepared(conn: psycopg.Connection[Any], rng: random.Random) -> None:
    for (name,) in conn.execute("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()").fetchall():
        with suppress(psycopg.errors.UndefinedObject, psycopg.errors.ObjectInUse, psycopg.errors.ObjectNotInPrerequisiteState):
            conn.execute(f"{rng.choice(('COMMIT', 'COMMIT', 'ROLLBACK'))} PREPARED '{name}'")


# --- chains ------------------------------------------------------------------------------------------------------------------------


class Broken(AssertionError):
    """A chain does not lead to what is there."""


class WatchedSource(Source):
    """Everything that a moment holds, read before whoever asked for the moment reads of it what he wants."""

    scope = EVERYBODY
    seen: dict[str, Rows]

    @contextmanager
    def moment(self, *args: Any, **more: Any) -> Iterator[Moment]:
        with super().moment(*args, **more) as moment:
            self.seen = {r.table.array: everything(moment.leader, r, self.scope) for r in moment.catalog.relations}
            yield moment


class Follower:
    """A scope's memory: a first whole look, then changes alone."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.rows: dict[str, Rows] = {}
        self.keys: dict[str, list[str]] = {}

    def merge(self, array: str, changed: list[bytes], deleted: list[bytes], *, emptied: bool) -> None:
        doomed = {key_of(x, self.keys[array]) for x in (*changed, *deleted)}
        left = {} if emptied else {x: n for x, n in self.rows[array].items() if key_of(x, self.keys[array]) not in doomed}
        self.rows[array] = Counter(left) + Counter(changed)

    def compare(self, seen: dict[str, Rows]) -> None:
        for array, now in seen.items():
            if self.rows[array] != now:
                lost, surplus = now - self.rows[array], self.rows[array] - now
                raise Broken(f"{self.scope}, {array}: {len(lost)} rows lost, {len(surplus)} too many: {next(iter(lost or surplus))!r}")


class Queries(Follower):
    """By the queries of change capture."""

    parent: str | None = None

    def step(self, source: WatchedSource, conn: Any) -> str:
        source.scope = self.scope
        with source.moment(TIERS) as moment:
            first, outcome = self.parent is None, "queries"
            if self.parent is None:
                self.rows = source.seen
                self.keys = {r.table.array: r.table.key for r in moment.catalog.relations}
            else:
                outcome = self._read(moment, source.seen, self.parent)
            self.compare(source.seen)
            new, name = moment.database.snapshot, f"memory-{self.scope.kind}-{moment.timestamp}"
        if not capture.set_head(conn, self.scope, capture.Head(name, "", new)) and not first:
            raise Broken(f"{self.scope}: its changes were swept away")
        self.parent = new
        return outcome

    def _read(self, moment: Moment, seen: dict[str, Rows], parent: str) -> str:
        head = capture.head(moment.leader, self.scope)
        if head is None or head.snapshot != parent:
            raise Broken(f"{self.scope}: the database knows of {head} in the place of the last one")
        touched = capture.touched(moment.leader, self.scope, parent=parent)
        for relation in moment.catalog.relations:
            tier, array = relation.table.tier, relation.table.array
            if touched.get(tier):
                self.rows[array] = seen[array]
            elif tier in touched:
                changed = map(bytes, capture.changed_lines(moment.leader, relation, self.scope, parent=parent))
                deleted = map(bytes, capture.deleted_lines(moment.leader, relation, self.scope, parent=parent))
                self.merge(array, list(changed), list(deleted), emptied=False)
        return "queries, something emptied" if any(touched.values()) else "queries" if touched else "queries, nothing"


class Documents(Follower):
    """By incremental snapshots in a store, read from their files as any reader of lines would."""

    def __init__(self, scope: Scope, folder: Path) -> None:
        super().__init__(scope)
        self.folder = folder
        self.store: Store = open_store(folder.as_uri())
        self.links = 0

    def step(self, source: WatchedSource, _conn: Any) -> str:
        source.scope = self.scope
        options = ExportOptions(accept=True, allow_empty=True)
        outcome = "documents"
        if self.links % 60 == 0:
            manifest: model.Manifest | None = snapshot(source, self.store, tiers=TIERS, scope=self.scope, options=options)
            outcome = "documents, full"
        else:
            manifest = snapshot_incremental(source, self.store, tiers=TIERS, scope=self.scope, options=options)
        self.links += 1
        if manifest is None:
            outcome = "documents, nothing"
        else:
            self._read(manifest)
        self.compare(source.seen)
        return outcome

    def _read(self, manifest: model.Manifest) -> None:
        arrays: dict[str, list[bytes]] = {}
        for text in (self.folder / manifest.document).read_bytes().splitlines()[1:]:
            if text.endswith(b":["):
                lines = arrays.setdefault(json.loads(text[:-2]), [])
            elif text.startswith(b"{"):
                lines.append(text.removesuffix(b","))
        self.keys = {t.array: t.key for t in manifest.schema.tables}
        gone: dict[str, list[bytes]] = {array: [] for array in self.keys}
        for text in arrays.pop("deleted", []):
            array = json.loads(text)["array"]
            gone[array].append(text.partition(b'"key":')[2][:-1])
        for array, changed in arrays.items():
            self.merge(array, changed, gone[array], emptied=manifest.parent is None or array in manifest.resets)


# --- the campaign ------------------------------------------------------------------------------------------------------------------


def campaign(*, seed: int, runs: int, seconds: float = 0.0, writers: int = 4, crash_every: int = 150) -> Summary:
    """At least so many steps, for at least so long."""
    summary = Summary("changes", seed)
    rng = random.Random(seed)
    folder = Path(tempfile.gettempdir()) / f"changes-{uuid.uuid4().hex}"
    settings: dict[str, str | int] = {"max_prepared_transactions": 50, "wal_writer_delay": "10s", "fsync": "off"}
    server = EmbeddedPostgres(folder / "server", settings=settings)
    work = Writers(rng, writers)
    try:
        with summary.timed(), server:
            _make(server.createdb("m"))
            chains = [Queries(Scope.user("u1")), Queries(Scope.of_workspace("w0")), Queries(Scope.user("u2"))]
            documents = [Documents(s, folder / f"store-{n}") for n, s in enumerate((EVERYBODY, Scope.user("u0")))]
            until = time.monotonic() + seconds
            while summary.runs < runs or time.monotonic() < until:
                work.start(server.url("m"))
                left = runs - summary.runs if not seconds else crash_every
                _follow(
                    server.url("m"), [*chains, *documents], rng, summary, steps=min(left, crash_every), until=until if seconds else None
                )
                if summary.broken:
                    break
                _crash(server)
                work.stop()
                server.start()
                summary.figures["crashes"] = str(int(summary.figures.get("crashes", "0")) + 1)
            work.stop()
            _settle(server.url("m"), [*chains, *documents], rng, summary)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    summary.figures["transactions"] = ", ".join(f"{n} {outcome}" for outcome, n in work.outcomes.most_common())
    return summary


def _make(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SET search_path = public; " + SCHEMA)
        for statement in STATEMENTS * 3:
            with suppress(psycopg.IntegrityError):
                conn.execute(statement.format(n=20))
    with connect(url) as own:
        migrate(own)
        capture.install(own, TIERS)


def _follow(url: str, chains: list[Any], rng: random.Random, summary: Summary, *, steps: int, until: float | None) -> None:
    source = WatchedSource(url)
    try:
        with connect(url) as conn:
            for _ in range(steps):
                if summary.broken or (until is not None and time.monotonic() > until):
                    return
                _step(rng.choice(chains), source, conn, summary)
                time.sleep(rng.random() * 0.03)
                if rng.random() < 0.3:
                    capture.clean(conn, grace=timedelta(0))
    finally:
        source.close()


def _step(chain: Any, source: WatchedSource, conn: Any, summary: Summary) -> None:
    where = f"step {summary.runs + 1} of seed {summary.seed}"
    try:
        summary.count(chain.step(source, conn), [], where=where)
    except (Broken, ChainRefused, DatabaseError) as exc:
        summary.count("", [f"{type(exc).__name__}: {exc}"], where=where)


def _settle(url: str, chains: list[Any], rng: random.Random, summary: Summary) -> None:
    """Nobody writes any more; each chain takes its last step."""
    with psycopg.connect(url, autocommit=True) as conn:
        finish_prepared(conn, rng)
    _each(chains, lambda chain, source, conn: _step(chain, source, conn, summary), url)


def _each(chains: list[Any], deed: Callable[[Any, WatchedSource, Any], None], url: str) -> None:
    source = WatchedSource(url)
    try:
        with connect(url) as conn:
            for chain in chains:
                deed(chain, source, conn)
    finally:
        source.close()


def _crash(server: EmbeddedPostgres) -> None:
    """Not even the server's own processes may write what they hold back."""
    process = server._server
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    server.stop()
