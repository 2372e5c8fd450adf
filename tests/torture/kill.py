"""`kill -9` at every storage and every database call of a snapshot and of a restore.

Each operation is done once undisturbed, which tells how many calls it makes. Then it is done again and again, each time killed at another
call (see `victim.py`), and what it left is looked at. Of a snapshot: earlier snapshots are whole, the new one is whole or is none, pointers
lead to whole ones, what is left over is what docs/FORMAT.md says, `orphans` and `sweep` find exactly that, and the next run succeeds. Of a
restore: the target is as it was or has everything, and the next run succeeds and leaves nothing of the dead one.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Protocol

from coldstore.errors import TargetNotEmpty
from coldstore.storage import layout
from tests.integration.helpers import ask, contents, sequences, structure
from tests.servers.s3 import S3Server
from tests.torture.look import Found, look
from tests.torture.summary import Summary
from tests.torture.victim import ACTIONS, KILLED, Victims
from tests.torture.world import USERS, World

LABEL = "torture"
STAGING = "coldstore_restore_"


@dataclass(frozen=True)
class Kill:
    """Where one run dies."""

    at: int
    action: str


def kills(calls: int, rng: random.Random) -> Iterator[Kill]:
    """Each call with each action once, in a random order."""
    every = [Kill(at, action) for at in range(calls) for action in ACTIONS]
    rng.shuffle(every)
    return iter(every)


class Operation(Protocol):
    """One thing that is killed."""

    @property
    def name(self) -> str: ...

    def calls(self) -> int:
        """How many calls it makes when nobody disturbs it."""
        ...

    def run(self, kill: Kill) -> tuple[str, list[str]]:
        """The outcome, and what was wrong with it."""
        ...


def campaign(operations: list[Operation], *, seed: int, runs: int) -> Summary:
    """`runs` kills, as many of each operation, and never the same twice."""
    summary = Summary("kill", seed)
    rng = random.Random(seed)
    with summary.timed():
        plans = []
        for operation in operations:
            calls = operation.calls()
            summary.figures[operation.name] = f"{calls} calls, {calls * len(ACTIONS)} ways to die"
            plans.append([(operation, kill) for kill in kills(calls, rng)])
        for operation, kill in [p for p in chain(*zip_longest(*plans)) if p is not None][:runs]:
            outcome, broken = operation.run(kill)
            summary.count(f"{operation.name}: {outcome}", broken, where=f"{operation.name} killed {kill.action} call {kill.at}")
    return summary


# --- snapshot ----------------------------------------------------------------------------------------------------------------------


class Place(Protocol):
    """Where snapshots are written to."""

    @property
    def database(self) -> str: ...

    def fresh(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(settings, flags) of a new store that holds `earlier` snapshots: of everybody and of one user."""
        ...

    def hidden(self, flags: Mapping[str, Any]) -> list[str]:
        """What no listing shows: temporary files, open uploads. As `sweep` names them."""
        ...

    def strangers(self, flags: Mapping[str, Any], known: set[str]) -> list[str]:
        """Everything that can be seen from beside coldstore and is not among the `known` keys."""
        ...


class Folder:
    """A store on the local disk. The earlier snapshots are taken once and copied."""

    def __init__(self, world: World) -> None:
        self.world, self.database = world, world.source
        self._base = world.folder / f"base-{world.number()}"
        take_earlier(world, {}, self._flags(self._base))

    def _flags(self, folder: Path) -> dict[str, Any]:
        return {"url": str(folder), "database_url": self.database}

    def fresh(self) -> tuple[dict[str, Any], dict[str, Any]]:
        for old in self.world.folder.glob("store-*"):
            shutil.rmtree(old)
        folder = self.world.folder / f"store-{self.world.number()}"
        shutil.copytree(self._base, folder)
        return {}, self._flags(folder)

    def hidden(self, flags: Mapping[str, Any]) -> list[str]:
        return sorted(str(p) for p in Path(flags["url"]).rglob(".tmp-*"))

    def strangers(self, flags: Mapping[str, Any], known: set[str]) -> list[str]:
        root = Path(flags["url"])
        return [str(p) for p in root.rglob("*") if p.is_file() and p.relative_to(root).as_posix() not in known]


class Bucket:
    """A store on an S3 server, and so much memory that a document goes up in parts."""

    def __init__(self, world: World, server: S3Server) -> None:
        self.world, self.server, self.database = world, server, world.large
        self._client = server.client()

    def fresh(self) -> tuple[dict[str, Any], dict[str, Any]]:
        given = self.server.arguments(part_size=5 << 20, parallel=2)
        flags = {"url": self.server.url(f"kill-{self.world._token}-{self.world.number()}"), "database_url": self.database}
        take_earlier(self.world, given, flags)
        return given, flags

    def _prefix(self, flags: Mapping[str, Any]) -> str:
        return str(flags["url"]).removeprefix(f"s3://{self.server.bucket}/") + "/"

    def hidden(self, flags: Mapping[str, Any]) -> list[str]:
        prefix = self._prefix(flags)
        return sorted(key.removeprefix(prefix) for key in self.server.open_uploads() if key.startswith(prefix))

    def strangers(self, flags: Mapping[str, Any], known: set[str]) -> list[str]:
        prefix = self._prefix(flags)
        found = self._client.list_objects_v2(Bucket=self.server.bucket, Prefix=prefix).get("Contents", [])
        return [o["Key"] for o in found if o["Key"].removeprefix(prefix) not in known]


def take_earlier(world: World, settings: Mapping[str, Any], flags: Mapping[str, Any]) -> None:
    with world.cold(flags, **settings) as cold:
        cold.snapshot(label="earlier")
        cold.snapshot(uid="u1")


@dataclass
class Out:
    """A snapshot. `many`: how many documents the one call writes, when it is not killed."""

    victims: Victims
    world: World
    place: Place
    name: str
    method: str
    arguments: Mapping[str, Any]
    many: int = 1
    _tiers: dict[str, Any] = field(default_factory=dict)

    def calls(self) -> int:
        settings, flags = self.place.fresh()
        code, told = self._do(settings, flags, Kill(-1, ""))
        assert code == 0, told
        with self.world.cold(flags, **settings) as cold:
            self._tiers = {_scope(i): cold.document(i).tiers for i, label in look(cold).snapshots.items() if label == LABEL}
        assert len(self._tiers) == self.many
        return len(told["calls"])

    def _do(self, settings: Mapping[str, Any], flags: Mapping[str, Any], kill: Kill) -> tuple[int, dict[str, Any]]:
        return self.victims.run(
            {
                "settings": self.world.of_file(settings),
                "flags": dict(flags),
                "method": self.method,
                "arguments": {**self.arguments, "label": LABEL},
                "kill": {"at": kill.at, "action": kill.action},
            }
        )

    def run(self, kill: Kill) -> tuple[str, list[str]]:
        settings, flags = self.place.fresh()
        with self.world.cold(flags, **settings) as cold:
            before = look(cold)
            code, told = self._do(settings, flags, kill)
            if code not in {0, KILLED}:
                return "failed", [f"it ended with {code}: {told}"]
            after = look(cold)
            hidden = self.place.hidden(flags)
            broken = before.wrong + after.wrong + self._compare(cold, before, after)
            outcome = f"{self._committed(before, after)}{_left(hidden, after.orphans)}"
            broken += self._swept(cold, flags, hidden, after)
            broken += self._again(cold, after)
        return (outcome if code == KILLED else "over before it was killed"), broken

    def _committed(self, before: Found, after: Found) -> str:
        new = len(after.snapshots) - len(before.snapshots)
        return "committed" if new == self.many else f"{new} of {self.many} committed" if new and self.many > 1 else "nothing committed"

    def _compare(self, cold: Any, before: Found, after: Found) -> list[str]:
        broken = [f"{lost} is lost" for lost in before.snapshots.keys() - after.snapshots.keys()]
        new = after.snapshots.keys() - before.snapshots.keys()
        broken += [f"{n} holds something else than it should" for n in new if cold.document(n).tiers != self._tiers.get(_scope(n))]
        if len(new) > self.many or len({_scope(n) for n in new}) < len(new):
            broken.append(f"too many snapshots: {sorted(new)}")
        for key, target in after.latest.items():
            if target not in {before.latest.get(key), *new}:
                broken.append(f"{key} moved to {target}")
        if len(after.orphans) > min(self.many, 4):  # writers of --each-user
            broken.append(f"too many documents without a manifest: {after.orphans}")
        return broken

    def _swept(self, cold: Any, flags: Mapping[str, Any], hidden: list[str], after: Found) -> list[str]:
        """`sweep` finds what is hidden and nothing else; then the store holds what belongs to snapshots, and orphans."""
        broken = []
        if (swept := cold.store.sweep(before=datetime.now(UTC) + timedelta(hours=1))) != hidden:
            broken.append(f"hidden are {hidden}, swept was {swept}")
        if left := self.place.hidden(flags):
            broken.append(f"not swept: {left}")
        known = set(after.orphans) | set(after.latest)
        for snapshot in after.snapshots:
            manifest = cold.manifest(snapshot)
            known |= {manifest.document, layout.manifest_key(snapshot)}
        return broken + [f"nobody knows {stranger}" for stranger in self.place.strangers(flags, known)]

    def _again(self, cold: Any, after: Found) -> list[str]:
        """The next run succeeds, all that was there is still there, and nothing new is left over."""
        made = getattr(cold, self.method)(**self.arguments, label=LABEL)
        ids = {i.id for i in made} if self.method == "snapshot_each_user" else {made.id}
        last = look(cold)
        broken = list(last.wrong)
        if last.snapshots.keys() != after.snapshots.keys() | ids or len(ids) != self.many:
            broken.append(f"after the next run there are {sorted(last.snapshots)}, made were {sorted(ids)}")
        if last.orphans != after.orphans:
            broken.append(f"the next run left {last.orphans}")
        broken += [f"latest of {i} is {last.latest.get(key)}" for i in ids if last.latest.get(key := f"latest/{_scope(i)}.json") != i]
        for orphan in after.orphans:
            cold.store.delete(orphan)
        if cold.orphans():
            broken.append("documents without a manifest cannot be deleted")
        return broken


def _scope(snapshot: str) -> str:
    return layout.parse_id(snapshot)[0]


def _left(hidden: list[str], orphans: list[str]) -> str:
    left = [*(["something hidden"] if hidden else []), *(["a document without manifest"] if orphans else [])]
    return f", {' and '.join(left)} left" if left else ""


# --- restore -----------------------------------------------------------------------------------------------------------------------


@dataclass
class Back:
    """A restore into a copy of `template` (None: an empty database)."""

    victims: Victims
    world: World
    store: str
    name: str
    template: str | None
    arguments: Mapping[str, Any]
    _expected: dict[str, Any] = field(default_factory=dict)

    def _flags(self) -> dict[str, Any]:
        return {"url": self.store, "database_url": self.world.source}

    def calls(self) -> int:
        with self.world.target(self.template) as target:
            code, told = self._do(target, Kill(-1, ""))
            assert code == 0, told
            self._expected = {"rows": contents(target), "structure": structure(target), "sequences": sequences(target)}
        return len(told["calls"])

    def _do(self, target: str, kill: Kill) -> tuple[int, dict[str, Any]]:
        return self.victims.run(
            {
                "settings": self.world.of_file({}),
                "flags": self._flags(),
                "method": "restore",
                "arguments": {**self.arguments, "to": target},
                "kill": {"at": kill.at, "action": kill.action},
            }
        )

    def run(self, kill: Kill) -> tuple[str, list[str]]:
        with self.world.target(self.template) as target:
            before = contents(target, versions=True)
            code, told = self._do(target, kill)
            if code not in {0, KILLED}:
                return "failed", [f"it ended with {code}: {told}"]
            wait_for_the_dead(target)
            untouched = published(contents(target, versions=True)) == before
            complete = published(contents(target)) == self._expected["rows"]
            outcome = "complete" if complete else "untouched" if untouched else "half"
            left = [name for (name, _) in structure(target)["schemas"] if name.startswith(STAGING)]
            broken = [] if untouched or complete else ["the target is neither as it was nor complete"]
            broken += self._again(target, complete=complete)
        outcome += ", staging left" if left else ""
        return (outcome if code == KILLED else "over before it was killed"), broken

    def _again(self, target: str, *, complete: bool) -> list[str]:
        """The next run brings everything, and the database looks as if nothing had ever gone wrong."""
        with self.world.cold(self._flags()) as cold:
            if complete and self.template is None:
                try:
                    cold.restore(**self.arguments, to=target)
                except TargetNotEmpty:
                    cold.restore(**{**self.arguments, "mode": "replace"}, to=target)
                else:
                    return ["a fresh restore into a database with rows was not refused"]
            else:
                cold.restore(**self.arguments, to=target)
        found = {"rows": contents(target), "structure": structure(target), "sequences": sequences(target)}
        return [f"after the next run other {what} than without a kill" for what in found if found[what] != self._expected[what]]


def published(tables: Mapping[tuple[str, str], Any]) -> dict[tuple[str, str], Any]:
    return {name: rows for name, rows in tables.items() if not name[0].startswith(STAGING)}


def wait_for_the_dead(target: str) -> None:
    """Until the server has noticed that nobody is there any more: what it was asked for last may still be under way."""
    while ask(
        target, "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'coldstore%' AND datname = current_database()"
    ) != [(0,)]:
        time.sleep(0.005)


# --- what is killed ----------------------------------------------------------------------------------------------------------------


def snapshots(world: World, victims: Victims) -> list[Operation]:
    place = Folder(world)
    return [
        Out(victims, world, place, "snapshot of all", "snapshot", {}),
        Out(victims, world, place, "snapshot of one user", "snapshot", {"uid": "u1"}),
        Out(victims, world, place, "snapshot of each user", "snapshot_each_user", {}, many=USERS),
    ]


def snapshots_to_s3(world: World, victims: Victims, server: S3Server) -> list[Operation]:
    place = Bucket(world, server)
    return [Out(victims, world, place, "snapshot of all to S3", "snapshot", {})]


def restores(world: World, victims: Victims) -> list[Operation]:
    store = str(world.folder / f"to-restore-{world.number()}")
    with world.cold({"url": store, "database_url": world.source}) as cold:
        cold.snapshot()
    make: Callable[..., Operation] = lambda *given, **arguments: Back(victims, world, store, *given, arguments)  # noqa: E731
    return [
        make("restore, fresh", None),
        make("restore, replace", world.older, mode="replace"),
        make("restore, merge", world.older, mode="merge", on_conflict="update"),
        make("restore of one user", world.older, mode="replace", uid="u1"),
    ]
