"""Taking turns, and what comes out of it: samples of contestants that run one after the other, round by round.

A machine is never equally fast for a minute. So two things are compared only within a round, where they ran side by side, and the
order is turned around every round; what is reported is the spread of those ratios, not the ratio of two averages.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

_CHILD = Path(__file__).with_name("child.py")


@dataclass(frozen=True, slots=True)
class Sample:
    """One run. `value` is what counts (seconds, unless the case says otherwise), `peak` the memory of the largest process in bytes."""

    value: float
    peak: int = 0
    cpu: float = 0.0
    extra: Mapping[str, float] = field(default_factory=dict)

    def plus(self, **extra: float) -> Sample:
        """The same, with more known about it."""
        return replace(self, extra={**self.extra, **extra})


@dataclass(frozen=True, slots=True)
class Spread:
    """Minimum, median and maximum of a few values, and the values."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(tuple(values))

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def middle(self) -> float:
        return statistics.median(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


Samples = dict[str, list[Sample]]


def spread(samples: Sequence[Sample], *, by: Callable[[Sample], float] = lambda s: s.value) -> Spread:
    return Spread.of([by(s) for s in samples])


def ratios(ours: Sequence[Sample], peer: Sequence[Sample], *, by: Callable[[Sample], float] = lambda s: s.value) -> Spread:
    """Ours divided by the peer's, each within its round; rounds that only one of them took part in do not count."""
    return Spread.of([by(a) / by(b) for a, b in zip(ours, peer, strict=False)])


def take_turns(
    contestants: Mapping[str, Callable[[], Sample]], *, rounds: int, say: Callable[[str], None], fewer: Mapping[str, int] | None = None
) -> Samples:
    """Every contestant once a round, forwards in one round and backwards in the next. `fewer`: those that are there for information,
    and for how many of the first rounds."""
    taken: Samples = {name: [] for name in contestants}
    for number in range(rounds):
        order = [name for name in contestants if number < (fewer or {}).get(name, rounds)]
        if number % 2:
            order.reverse()
        for name in order:
            # What the one before left to be written must not be written at the cost of the next.
            os.sync()
            sample = contestants[name]()
            taken[name].append(sample)
            memory = f", {sample.peak / 1e6:.0f} MB" if sample.peak else ""
            say(f"    {number + 1}/{rounds}  {name}: {sample.value:.4g}{memory}")
    return taken


def run(
    *commands: Sequence[str | Path], environment: Mapping[str, str], folder: Path, stdout: Path | None = None, sync: bool = False
) -> Sample:
    """A command, or a pipeline of several, as processes of their own in `folder`. The sample's memory is that of the first process;
    `extra["synced"]` the seconds until the output file was on the disk too, where asked for."""
    spec: dict[str, Any] = {
        "commands": [[str(part) for part in command] for command in commands],
        "cwd": str(folder),
        "stdout": None if stdout is None else str(stdout),
        "sync": sync,
    }
    arguments = [sys.executable, "-I", "-S", str(_CHILD), json.dumps(spec)]
    done = subprocess.run(arguments, env=dict(environment), capture_output=True, text=True, check=False)
    result = json.loads(done.stdout) if done.returncode == 0 else {"processes": []}
    if done.returncode or any(p["code"] for p in result["processes"]):
        raise RuntimeError(f"{' | '.join(Path(c[0]).name for c in spec['commands'])} failed:\n{done.stderr[-4000:]}")
    processes = result["processes"]
    extra = {"synced": result["synced"]} if "synced" in result else {}
    return Sample(result["seconds"], int(processes[0]["peak"]), sum(p["cpu"] for p in processes), extra)
