"""`kill -9` of an agent at any moment of its saving: the last save that was said to be made comes back, byte for byte, or a later one.

One store is killed over again and again; each agent goes on where the one before was. After each kill: the newest memory is whole and one
that the agent had, it is no older than any save that was told, every snapshot that is listed passes the deepest check, and pointers lead
to what is there. At the end what is left over is swept, and nothing remains but snapshots.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from coldstore import catalog, pointers
from coldstore.errors import ColdStoreError
from coldstore.prune import prune
from coldstore.retention import Policy
from coldstore.storage import layout
from coldstore.storage.local import LocalStore
from coldstore.verify import Checks, orphans, verify
from tests.torture.agent import memory_at, vault_in
from tests.torture.summary import Summary

_LONGEST = 0.4  # seconds until the kill: time for a dozen saves
_DAY = 86_400_000


def campaign(folder: Path, *, seed: int, runs: int) -> Summary:
    summary = Summary("killed agents", seed)
    rng = random.Random(seed)
    store = LocalStore(str(folder))
    saves = 0
    with summary.timed():
        for run in range(runs):
            wait = rng.uniform(0, _LONGEST)
            told, complaints = _killed_after(folder, wait)
            saves += len(told)
            broken = [*complaints, *_wrong(store, folder, told)]
            summary.count(
                "saves were told" if told else "died before its first save", broken, where=f"run {run}, killed after {wait:.3f} s"
            )
        summary.count("swept", _swept(store), where="at the end")
    summary.figures["saves"] = f"{saves} told"
    return summary


def _killed_after(folder: Path, wait: float) -> tuple[list[str], list[str]]:
    """(ids of the saves that the agent told, what it complained of)."""
    agent = subprocess.Popen([sys.executable, "-m", "tests.torture.agent", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert agent.stdout
    if agent.stdout.readline() == b"ready\n":
        time.sleep(wait)
    agent.kill()
    out, said = agent.communicate()
    return out.decode().split(), said.decode().splitlines()


def _wrong(store: LocalStore, folder: Path, told: list[str]) -> list[str]:
    vault = vault_in(str(folder))
    try:
        newest = vault.latest()
        if newest is None:
            return ["nothing is there"] if told else []
        found = vault.restore()
    except ColdStoreError as exc:
        return [f"the newest does not come back: {exc}"]
    wrong = []
    if repr(found) != repr(memory_at(found["number"])):
        wrong.append(f"{newest.id} is not what the agent knew after {found['number']} operations")
    if told and _moment(newest.id) < _moment(told[-1]):
        wrong.append(f"{told[-1]} was told, and {newest.id} is the newest")
    verdicts = verify(store, catalog.manifests(store), checks=Checks(deep=True), whole=True)
    wrong += [f"{v.id}: {p}" for v in verdicts for p in v.problems if not _behind(v.id)]
    return wrong


def _behind(key: str) -> bool:
    """A pointer that a dead process did not come to move; the next save does, and nothing depends on it."""
    return key.startswith((layout.LATEST, layout.CHECKPOINTS))


def _moment(snapshot: str) -> int:
    return layout.parse_id(snapshot)[1]


def _swept(store: LocalStore) -> list[str]:
    """What is wrong after a last look around."""
    now = time.time_ns() // 1_000_000 + 3 * _DAY
    report = prune(store, Policy(last=3, labels=False), now=now, dry_run=False)
    pointers.rebuild(store)
    found = [m.id for m in catalog.manifests(store) if not isinstance(m, ColdStoreError)]
    left = [f"{key} is left over" for key in [*orphans(store, found), *store.sweep(before=datetime.now(UTC) + timedelta(days=1))]]
    return [*report.failures.values(), *left, *(w.problem for w in pointers.check(store)[1])]
