"""`python -m tests.torture [kill|kill-s3|faults|patience|disk|fuzz|bombs|years|cadence|tamper|changes|autosave|large …] [--runs N] [--seed S]`: the long forms of the campaigns.

Prints what each found, then all of it as the table of docs/RELIABILITY.md. Ends with 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from coldstore.config import read_file
from coldstore.postgres.embedded import EmbeddedPostgres
from tests.servers import gcs_server, weed_server
from tests.torture import autosave, changes, disk, faults, fuzz, kill, large, tamper, years
from tests.torture.chaos import chaos_proxy
from tests.torture.summary import Summary
from tests.torture.victim import victims
from tests.torture.world import World, world_in

SERVERS = (weed_server, gcs_server)


def kill_local(world: World, seed: int, runs: int) -> Iterator[Summary]:
    with victims(world.folder) as killed:
        yield kill.campaign([*kill.snapshots(world, killed), *kill.restores(world, killed)], seed=seed, runs=runs)


def kill_s3(world: World, seed: int, runs: int) -> Iterator[Summary]:
    with weed_server() as server, victims(world.folder) as killed:
        yield kill.campaign(kill.snapshots_to_s3(world, killed, server), seed=seed, runs=runs)


def faults_everywhere(world: World, seed: int, runs: int) -> Iterator[Summary]:
    for start in SERVERS:
        with start() as server, chaos_proxy(server.endpoint_url, seed=seed) as proxy:
            yield faults.campaign(world, server, proxy, seed=seed, runs=runs)


def patience(_world: World, seed: int, runs: int) -> Iterator[Summary]:
    for start in SERVERS:
        with start() as server, chaos_proxy(server.endpoint_url, seed=seed, share=1.0) as proxy:
            yield faults.patience(server, proxy, rounds=runs)


def full_disk(world: World, seed: int, runs: int) -> Iterator[Summary]:
    try:
        yield disk.campaign(world, seed=seed, runs=runs)
    except disk.NoMount as exc:
        print(f"disk: not run, {exc}")


def wrong_bytes(_world: World, seed: int, runs: int) -> Iterator[Summary]:
    yield fuzz.campaign(seed=seed, runs=runs)


def bombs(world: World, _seed: int, runs: int) -> Iterator[Summary]:
    yield fuzz.bombs(world.folder, size=runs << 30, megabytes=1500)


def schedules(world: World, seed: int, runs: int) -> Iterator[Summary]:
    yield years.campaign(world.postgres.createdb(f"years_{seed}"), seed=seed, runs=runs)


def every_minute(_world: World, seed: int, runs: int) -> Iterator[Summary]:
    yield years.every_minute(seed=seed, runs=runs)


def changing(_world: World, seed: int, runs: int) -> Iterator[Summary]:
    yield changes.campaign(seed=seed, runs=runs)


def changing_for_long(_world: World, seed: int, runs: int) -> Iterator[Summary]:
    yield changes.campaign(seed=seed, runs=0, seconds=60 * runs)


def killed_agents(world: World, seed: int, runs: int) -> Iterator[Summary]:
    yield autosave.campaign(world.folder / f"vault-{seed}", seed=seed, runs=runs)


def large_document(world: World, _seed: int, runs: int) -> Iterator[Summary]:
    yield large.campaign(world.folder / "large", megabytes=runs)


#: name → (the campaign, what `--runs` is unless told otherwise, what it counts)
CAMPAIGNS: dict[str, tuple[Callable[[World, int, int], Iterator[Summary]], int, str]] = {
    "kill": (kill_local, 700, "kills"),
    "kill-s3": (kill_s3, 60, "kills"),
    "faults": (faults_everywhere, 300, "operations on each server"),
    "patience": (patience, 3, "times each fault"),
    "disk": (full_disk, 500, "disks"),
    "fuzz": (wrong_bytes, 100_000, "inputs"),
    "bombs": (bombs, 10, "GiB"),
    "years": (schedules, 5000, "instants"),
    "cadence": (every_minute, 60, "cron expressions, each in seven zones"),
    "changes": (changing, 1000, "steps of chains"),
    "changes-long": (changing_for_long, 10, "minutes"),
    "autosave": (killed_agents, 200, "kills"),
    "large": (large_document, 200, "megabytes"),
    "tamper": (tamper.campaign, 20_000, "flipped bytes of a large document"),
}


@contextmanager
def _world(settings: Path | None) -> Iterator[World]:
    with (
        tempfile.TemporaryDirectory(prefix="torture-") as folder,
        EmbeddedPostgres(durable=False, max_connections=200) as postgres,
        world_in(postgres, Path(folder), read_file(settings) if settings else None) as world,
    ):
        yield world


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__.partition("\n")[0])
    parser.add_argument("campaigns", nargs="*", choices=[[], *CAMPAIGNS], metavar="|".join(CAMPAIGNS), help="Default: all.")
    parser.add_argument("--runs", type=int, help="; ".join(f"{name}: {n} {what}" for name, (_, n, what) in CAMPAIGNS.items()))
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--config", type=Path, help="A coldstore.toml with settings for every store: compression, keys.")
    options = parser.parse_args()
    found: list[Summary] = []
    for name in options.campaigns or CAMPAIGNS:
        campaign, runs, _ = CAMPAIGNS[name]
        with _world(options.config) as world:
            for summary in campaign(world, options.seed, options.runs or runs):
                print(f"python -m tests.torture {name} --runs {options.runs or runs} --seed {options.seed}\n{summary}\n", flush=True)
                found.append(summary)
    print("| Campaign | Seed | Runs | Broken | Outcomes | Seconds |\n|---|---|---|---|---|---|")
    for s in found:
        outcomes = ", ".join(f"{n} {outcome}" for outcome, n in s.outcomes.most_common())
        print(f"| {s.name} | {s.seed} | {s.runs} | {len(s.broken)} | {outcomes} | {s.seconds:.0f} |")
    sys.exit(1 if any(s.broken for s in found) else 0)


if __name__ == "__main__":
    main()
