"""The fault proxy with a die: of the requests that come by, a share meets a fault, drawn at random from those that were added.

`with chaos_proxy(url, seed=1, share=0.2) as p: p.add("reset"); p.add("status", status=503)`. Without faults it passes everything on. One more
fault than the proxy has: `stale` answers a listing with what the same question was answered before. Lines of the log begin with the time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import random
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tests.servers import faults
from tests.servers.process import free_port, running_module

LISTING = r"list-type=2|/o\?.*prefix="


@contextlib.contextmanager
def chaos_proxy(target: str, *, seed: int, share: float = 0.2) -> Iterator[faults.FaultProxy]:
    port, control = free_port(), free_port()
    with running_module("tests.torture.chaos", target, str(port), str(control), str(seed), str(share), ports=[port, control]):
        yield faults.FaultProxy(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{control}")


class _Chaos(faults._Proxy):
    def __init__(self, target: str, *, seed: int, share: float) -> None:
        self._log: list[list[str]] = []
        super().__init__(target)
        self._rng = random.Random(seed)
        self._share = share
        self._listings: dict[str, tuple[int, Any, bytes]] = {}

    @property
    def lines(self) -> list[list[str]]:
        return self._log

    @lines.setter
    def lines(self, value: list[list[str]]) -> None:
        self._log = _Stamped(value)

    def rule_for(self, request: Any) -> faults.Rule | None:
        if not self.rules or self._rng.random() >= self._share:
            return None
        rule = self._rng.choice(self.rules)
        if not re.search(rule.match, request.raw_path) or not re.search(rule.method, request.method):
            return None
        return replace(rule, after=self._rng.randrange(rule.after)) if rule.after else rule

    async def reply(self, request: Any, rule: faults.Rule | None, status: int, headers: Any, body: bytes) -> Any:
        if request.method == "GET" and re.search(LISTING, request.raw_path):
            before = self._listings.get(request.raw_path)
            self._listings[request.raw_path] = (status, headers, body)
            if rule and rule.action == "stale" and before:
                status, headers, body = before
        return await super().reply(request, rule, status, headers, body)


class _Stamped(list[list[str]]):
    def append(self, line: list[str]) -> None:
        line[0] = f"{time.monotonic():.4f} {line[0]}"
        super().append(line)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser()
    for name, kind in (("target", str), ("port", int), ("control", int), ("seed", int), ("share", float)):
        parser.add_argument(name, type=kind)
    given = parser.parse_args()
    asyncio.run(faults._serve(_Chaos(given.target, seed=given.seed, share=given.share), given.port, given.control))
