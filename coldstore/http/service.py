"""What the requests of a server share: settings, one opened `ColdStore`, and the operations under way.

cold()      for whatever only looks; safe in any thread, and opened at the first request that needs it
jobs        for whatever leaves a run
"""

from __future__ import annotations

import threading
from typing import Annotated

from fastapi import Depends, Request

from coldstore.app import ColdStore
from coldstore.config import Settings
from coldstore.http.jobs import Jobs
from coldstore.http.keys import Caller
from coldstore.http.metrics import Metrics
from coldstore.http.readiness import Readiness
from coldstore.http.replays import Replays

PREFIX = "/admin/memory"


class Service:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._cold = ColdStore(settings, trigger="http")
        self._opened = False
        self._lock = threading.Lock()
        self.jobs = Jobs(self.cold, settings)
        self.replays = Replays(self.jobs, self.cold, hours=settings.server_idempotency_hours)
        self.readiness = Readiness.of(self.cold)
        self.metrics = Metrics(self.cold, alive=lambda: [job for job in self.jobs.known() if not job.done], ready=self.readiness.parts)
        self.jobs.on_end.append(self.metrics.ended)
        self.whole = True  # of the end: nothing had to be given up

    def cold(self) -> ColdStore:
        """Raises a `StoreError` or `ConfigError` while the store cannot be opened."""
        if not self._opened:
            with self._lock:  # each of its connections is made once, and not by two threads at the same time
                _ = self._cold.store, self._cold.rings, self._cold.signer
                if self.settings.database_url is not None:
                    _ = self._cold.source
                if self.settings.database_url is not None or self.settings.runs_url is not None:
                    _ = self._cold.runs
                self._opened = True
        return self._cold

    def close(self) -> None:
        self.readiness.close()
        self._cold.close()


def _service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


def _caller(request: Request) -> Caller:
    found: Caller = request.state.caller
    return found


Here = Annotated[Service, Depends(_service)]
Who = Annotated[Caller, Depends(_caller)]
