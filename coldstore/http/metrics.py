"""How it has been going, for Prometheus.

Counters and histograms are of this process since it began. Gauges are of the whole list of runs, whoever ran what, where there is a list;
else of this process, and of the pointer to the newest snapshot of everybody.

No metric has a user's or a workspace's name: a series for each of a hundred thousand users would cost more than it tells. Everybody's
snapshots are one scope, all users' together another, all workspaces' the third.
"""

from __future__ import annotations

import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coldstore.app import ColdStore
from coldstore.catalog import read_pointer
from coldstore.errors import ColdStoreError
from coldstore.http.jobs import Job
from coldstore.postgres.runs import Figure
from coldstore.storage import layout
from coldstore.tiers import EVERYBODY

_NAMESPACE = "coldstore"
_FRESH = 10.0  # seconds for which the list of runs is not asked again
_SCOPES = {"all": "everybody", "uid": "users", "workspace": "workspaces"}
_RUN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """`ready`: which parts answer. `alive`: the jobs of this process that are not over."""

    def __init__(self, cold: Callable[[], ColdStore], *, alive: Callable[[], Iterable[Job]], ready: Callable[[], dict[str, bool]]) -> None:
        self.registry = CollectorRegistry()
        self._cold = cold
        self._alive = alive
        self._ready = ready
        self._own: dict[tuple[str, str], Figure] = {}
        self._listed: tuple[float, list[Figure]] | None = None
        self._lock = threading.Lock()
        self._listing = threading.Lock()  # apart: no run that ends waits for the list
        registry = self.registry
        self._requests = Counter(
            "http_requests", "Requests that were answered.", ["method", "route", "status"], namespace=_NAMESPACE, registry=registry
        )
        self._answers = Histogram(
            "http_request_seconds", "Seconds until an answer begins.", ["method", "route"], namespace=_NAMESPACE, registry=registry
        )
        self._runs = Counter("runs", "Runs of this server that ended.", ["kind", "scope", "state"], namespace=_NAMESPACE, registry=registry)
        self._failures = Counter(
            "run_failures", "Those that failed, by what the error is called.", ["kind", "code"], namespace=_NAMESPACE, registry=registry
        )
        self._seconds = Histogram(
            "run_seconds",
            "How long runs of this server took.",
            ["kind", "scope"],
            buckets=_RUN_BUCKETS,
            namespace=_NAMESPACE,
            registry=registry,
        )
        self._bytes = Counter(
            "run_bytes",
            "Plain bytes that runs of this server wrote, restored or looked at.",
            ["kind"],
            namespace=_NAMESPACE,
            registry=registry,
        )
        self.registry.register(self)

    # --- what happens ----------------------------------------------------------------------------------------------------------

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._answers.labels(method, route).observe(seconds)

    def ended(self, job: Job) -> None:
        """A listener of `Jobs`."""
        run = job.info()
        scope = _SCOPES.get(run.scope, run.scope)
        self._runs.labels(run.kind, scope, run.state).inc()
        if run.seconds is not None:
            self._seconds.labels(run.kind, scope).observe(run.seconds)
        if run.state == "failed":
            self._failures.labels(run.kind, (run.error or "Unexpected").partition(":")[0]).inc()
            return
        self._bytes.labels(run.kind).inc(run.bytes or 0)
        now = time.time()
        with self._lock:
            self._own[run.kind, run.scope] = Figure(run.kind, run.scope, now, ended=now, bytes=run.bytes)

    # --- what is told ----------------------------------------------------------------------------------------------------------

    def collect(self) -> Iterator[Metric]:
        """Called by the registry for each look at it."""
        figures = self._figures()
        last = GaugeMetricFamily("coldstore_last_success_timestamp_seconds", "When the last good run ended.", labels=["kind", "scope"])
        age = GaugeMetricFamily("coldstore_last_success_age_seconds", "How long ago that was.", labels=["kind", "scope"])
        size = GaugeMetricFamily("coldstore_last_success_bytes", "How many plain bytes it had.", labels=["kind", "scope"])
        for figure in figures:
            labels = [figure.kind, _SCOPES.get(figure.scope, figure.scope)]
            if figure.ended is not None:
                last.add_metric(labels, figure.ended)
                age.add_metric(labels, max(0.0, figure.now - figure.ended))
            if figure.bytes is not None:
                size.add_metric(labels, figure.bytes)
        going = GaugeMetricFamily("coldstore_runs_in_progress", "Runs that are going now.", labels=["kind"])
        for kind, count in self._going(figures).items():
            going.add_metric([kind], count)
        ready = GaugeMetricFamily("coldstore_ready", "Whether that part answers.", labels=["part"])
        for part, answers in self._ready().items():
            ready.add_metric([part], int(answers))
        yield from (last, age, size, going, ready)

    def _figures(self) -> list[Figure]:
        with suppress(ColdStoreError):
            return self._of_list()
        with self._lock:
            own = dict(self._own)
        if ("snapshot", "all") not in own:
            with suppress(ColdStoreError):
                return [*own.values(), *self._of_pointer()]
        return list(own.values())

    def _of_list(self) -> list[Figure]:
        """Raises a `ColdStoreError` where there is none, or none that answers."""
        with self._listing:
            if self._listed is None or time.monotonic() - self._listed[0] >= _FRESH:
                self._listed = None
                cold = self._cold()
                if not cold.knows_runs:
                    raise ColdStoreError("there is no list of runs")
                found = cold.runs.figures()
                self._listed = time.monotonic(), found
            return self._listed[1]

    def _of_pointer(self) -> Iterator[Figure]:
        pointer = read_pointer(self._cold().store, layout.latest_key(EVERYBODY))
        if pointer is not None:
            yield Figure("snapshot", "all", time.time(), ended=datetime.fromisoformat(pointer.snapshot_at).timestamp())

    def _going(self, figures: Iterable[Figure]) -> Tally[str]:
        """The list knows of other processes, this process of what is still in its queue."""
        own, listed = Tally[str](), Tally[str]()
        for job in self._alive():
            own[job.operation.kind] += 1
        for figure in figures:
            listed[figure.kind] += figure.running
        return own | listed  # of each kind the larger number


class Counted:
    """The outermost layer: every request that is answered, by the pattern of its route and never by its address."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                self._metrics.answered(scope["method"], route, message["status"], time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, seen)
