"""A disk that fills up after any number of bytes, or runs out of names, and one that is read-only.

A small tmpfs is filled until so many bytes are free, and a snapshot is taken into it. It succeeds, or fails with `StoreFull` and leaves
nothing of its own but, after its manifest was written, a pointer that is behind. Then the rest is freed and the next one succeeds. That is
`ENOSPC` from the system call itself; what a disk that loses what it has confirmed does is another matter, and nobody's promise.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coldstore.app import ColdStore
from coldstore.errors import AccessDenied, ColdStoreError, StoreFull
from tests.torture.look import Found, look
from tests.torture.summary import Summary
from tests.torture.world import USERS, World

SIZE = 12 << 20
NAMES = 400
PAGE = 4096


class NoMount(Exception):
    """This machine does not let us mount a file system; the text says why."""


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of `SIZE` bytes and `NAMES` files at `folder`."""
    if os.geteuid() != 0:
        raise NoMount("only root can mount a file system")
    folder.mkdir()
    done = _mount("-t", "tmpfs", "-o", f"size={SIZE},nr_inodes={NAMES}", "tmpfs", str(folder))
    if done.returncode != 0:
        raise NoMount(f"this machine lets nobody mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _mount(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)


def campaign(world: World, *, seed: int, runs: int) -> Summary:
    """Raises `NoMount`."""
    summary = Summary("disk", seed)
    with summary.timed(), small_disk(world.folder / f"disk-{world.number()}") as disk:
        needed = _needed(world, disk)
        summary.figures["a snapshot of all takes"] = f"{needed} bytes"
        rng = random.Random(seed)
        for number in range(runs):
            # Around what is needed every page counts; a page is what a file system gives out.
            room = rng.choice([rng.randrange(needed), needed - rng.randrange(16) * PAGE, needed + rng.randrange(8) * PAGE])
            case = rng.choice(["all", "all", "one user", "each user", "names", "read-only"])
            outcome, broken = _run(world, disk, case, room, rng)
            summary.count(f"{case}: {outcome}", broken, where=f"seed {seed}, run {number}, {case} with {room} bytes")
    return summary


def _needed(world: World, disk: Path) -> int:
    with world.cold(_flags(world, disk / "first")) as cold:
        info = cold.snapshot()
        size = info.stored_bytes + cold.store.stat(info.manifest).size
    _empty(disk)
    return size + 4 * PAGE


def _flags(world: World, store: Path) -> dict[str, Any]:
    return {"url": str(store), "database_url": world.source}


def _empty(disk: Path) -> None:
    subprocess.run(["find", str(disk), "-mindepth", "1", "-delete"], check=True)


def _run(world: World, disk: Path, case: str, room: int, rng: random.Random) -> tuple[str, list[str]]:
    _empty(disk)
    with world.cold(_flags(world, disk / "store")) as cold:
        cold.snapshot(uid="u0", label="earlier")
        cold.snapshot(uid="u1", label="earlier")
        before = look(cold)
        files = _files(disk / "store")
        with _filled(disk, case, room, rng):
            outcome, made = _try(cold, case)
            after = look(cold)
            broken = before.wrong + after.wrong + _compare(cold, before, after, outcome, made, case)
            if case == "read-only" and (outcome != "AccessDenied" or _files(disk / "store") != files):
                broken.append(f"a read-only folder ended as {outcome}")
            broken += [f"{p} was left" for p in disk.rglob(".tmp-*")]
        broken += _again(cold, after)
    return outcome, broken


def _files(folder: Path) -> list[str]:
    return sorted(str(p) for p in folder.rglob("*"))


@contextmanager
def _filled(disk: Path, case: str, room: int, rng: random.Random) -> Iterator[None]:
    """Nearly nothing is left of the disk, of its names, or of the right to write."""
    ballast = disk / "ballast"
    if case == "read-only":
        assert _mount("-o", "remount,ro", str(disk)).returncode == 0
        try:
            yield
        finally:
            assert _mount("-o", "remount,rw", str(disk)).returncode == 0
        return
    ballast.mkdir()
    free = os.statvfs(disk)
    if case == "names":
        for number in range(free.f_ffree - 1 - rng.randrange(8)):
            (ballast / str(number)).touch()
    else:
        (ballast / "all").write_bytes(bytes(max(0, free.f_bavail * free.f_bsize - room)))
    try:
        yield
    finally:
        subprocess.run(["rm", "-r", str(ballast)], check=True)


def _try(cold: ColdStore, case: str) -> tuple[str, list[str]]:
    """(the outcome, ids of the snapshots that came back)"""
    made: list[str] = []
    try:
        if case == "each user":
            for info in cold.snapshot_each_user(label="torture"):
                made.append(info.id)  # noqa: PERF401 - those that came before the error count
        else:
            made.append(cold.snapshot(uid="u1" if case == "one user" else None, label="torture").id)
    except ColdStoreError as exc:
        return exc.code, made
    return "good", made


def _compare(cold: ColdStore, before: Found, after: Found, outcome: str, made: list[str], case: str) -> list[str]:
    wanted = AccessDenied if case == "read-only" else StoreFull
    broken = [] if outcome in {"good", wanted.__name__} else [f"it ended as {outcome}"]
    new = after.snapshots.keys() - before.snapshots.keys()
    broken += [f"{i} is lost" for i in [*(before.snapshots.keys() - after.snapshots.keys()), *(set(made) - new)]]
    if outcome == "good" and len(new) != (USERS if case == "each user" else 1):
        broken.append(f"made were {sorted(new)}")
    # Full between document and manifest: of those whose writer was told so, at most.
    if len(after.orphans) > (4 if case == "each user" else 1) or (after.orphans and outcome == "good"):
        broken.append(f"left are {after.orphans}")
    for key, target in after.latest.items():
        if target not in {before.latest.get(key), *new}:
            broken.append(f"{key} moved to {target}")
    return broken


def _again(cold: ColdStore, after: Found) -> list[str]:
    """There is room again."""
    info = cold.snapshot(label="next")
    last = look(cold)
    broken = list(last.wrong)
    if last.snapshots.keys() != after.snapshots.keys() | {info.id} or last.latest.get("latest/all.json") != info.id:
        broken.append(f"after the next run there are {sorted(last.snapshots)}, and latest is {last.latest}")
    if last.orphans != after.orphans:
        broken.append(f"the next run left {last.orphans}")
    return broken
