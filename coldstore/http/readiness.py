"""Whether database and store answer, for load balancers that ask all the time and people who look at metrics.

Each is asked at most once in a few seconds, by one thread, whoever asks and however often; nobody waits for one that hangs. What is wrong
is told in the log and to those with a key, never to the world.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass

from coldstore.app import ColdStore
from coldstore.errors import ObjectMissing
from coldstore.postgres.connect import connect
from coldstore.postgres.runs import sentence
from coldstore.storage import layout
from coldstore.tiers import EVERYBODY

LOG = logging.getLogger("coldstore.http")

_FRESH = 5.0  # seconds for which an answer counts
_PATIENCE = 4.0  # seconds that somebody who asks waits


@dataclass(frozen=True, slots=True)
class _Told:
    at: float
    ready: bool


class Readiness:
    """`asks`: by name, what raises a `ColdStoreError` when that part does not answer."""

    def __init__(self, asks: Mapping[str, Callable[[], None]], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._asks = dict(asks)
        self._clock = clock
        self._pool = ThreadPoolExecutor(len(self._asks), thread_name_prefix="coldstore-ready")
        self._asking: dict[str, Future[None]] = {}
        self._told: dict[str, _Told] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, cold: Callable[[], ColdStore]) -> Readiness:
        return cls({"database": lambda: _ask_database(cold()), "store": lambda: _ask_store(cold())})

    def parts(self) -> dict[str, bool]:
        """Which parts answer; one that did not answer in time does not."""
        wait([f for name in self._asks if (f := self._start(name)) is not None], timeout=_PATIENCE)
        now = self._clock()
        return {name: self._is_ready(name, now) for name in self._asks}

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _is_ready(self, name: str, now: float) -> bool:
        told = self._told.get(name)
        return told is not None and told.ready and now - told.at < _FRESH + _PATIENCE

    def _start(self, name: str) -> Future[None] | None:
        """What is to be waited for; nothing while an answer is fresh."""
        with self._lock:
            told = self._told.get(name)
            if told is not None and self._clock() - told.at < _FRESH:
                return None
            if name not in self._asking:
                self._asking[name] = self._pool.submit(self._ask, name)
            return self._asking[name]

    def _ask(self, name: str) -> None:
        ready = False
        try:
            self._asks[name]()
            ready = True
        except Exception as exc:  # noqa: BLE001 — whatever it is, that part does not answer
            LOG.warning("the %s does not answer: %s", name, sentence(exc))
        finally:
            with self._lock:
                self._told[name] = _Told(self._clock(), ready)
                self._asking.pop(name, None)


def _ask_database(cold: ColdStore) -> None:
    connect(cold.settings.require_database(), purpose="coldstore ready", connect_timeout="3").close()


def _ask_store(cold: ColdStore) -> None:
    with suppress(ObjectMissing):  # that is an answer
        cold.store.stat(layout.latest_key(EVERYBODY))
