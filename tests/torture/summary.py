"""What a campaign found: how often which outcome, and a sentence for each promise that was broken."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Summary:
    """`broken` is empty when everything held. Each of its sentences says how to have that run again. `figures`: what was measured."""

    name: str
    seed: int
    runs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @contextmanager
    def timed(self) -> Iterator[Summary]:
        started = time.monotonic()
        yield self
        self.seconds += time.monotonic() - started

    def count(self, outcome: str, broken: list[str], *, where: str) -> None:
        """One run is over."""
        self.runs += 1
        self.outcomes["BROKEN" if broken else outcome] += 1
        self.broken += [f"{where}: {sentence}" for sentence in broken]

    def add(self, other: Summary) -> None:
        self.runs += other.runs
        self.outcomes += other.outcomes
        self.broken += other.broken
        self.figures |= other.figures
        self.seconds += other.seconds

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.runs} runs, seed {self.seed}, {self.seconds:.0f} s"]
        lines += [f"  {number:6}  {outcome}" for outcome, number in sorted(self.outcomes.items())]
        lines += [f"  {name}: {value}" for name, value in self.figures.items()]
        return "\n".join([*lines, *(f"  BROKEN {sentence}" for sentence in self.broken)])
