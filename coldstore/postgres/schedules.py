"""The rows of `public.scheduled_agents` that are ours, what the list of runs knows of each, and the wish to be woken when one changes.

One query reads all of it; where the list of runs is in another database it takes one in each. Whatever is compared with a slot is by the
clock of the database with the list: all replicas have that one. Of the table it writes `last_run_at` and `last_run_error` and nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from selectors import EVENT_READ, DefaultSelector
from socket import socket
from typing import Any

import msgspec
import psycopg

from coldstore.errors import ColdStoreError, TableMissing
from coldstore.postgres.connect import connect
from coldstore.postgres.heart import Session
from coldstore.sql import query

CHANNEL = "coldstore_schedules"


class ScheduleRow(msgspec.Struct, frozen=True, kw_only=True):
    """`slot`: the newest that is settled. `begun`: the newest that was run, with how that ended; `unfinished`: its process died or was
    stopped. `going`: a run of it is under way."""

    id: str
    workspace_id: str | None
    cron_expression: str | None
    input_message: str | None
    last_run_at: datetime | None
    last_run_error: str | None
    created_at: datetime | None
    updated_at: datetime | None
    slot: datetime | None
    begun: datetime | None
    state: str | None
    error: str | None
    ended: datetime | None
    attempts: int
    unfinished: bool
    going: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """`now`: the database's clock. `dead`: a run has given no sign of life for too long."""

    now: datetime
    dead: bool
    rows: Sequence[ScheduleRow]


class Schedules:
    """The rows with `surface_id` in the database at `url`; the list of runs is there too, or at `runs_url`. `timeout`: seconds
    without a sign of life after which a run is dead. Of one thread, but for `ran`."""

    def __init__(self, url: str, *, surface_id: str, timeout: float, runs_url: str | None = None) -> None:
        self._url = url
        self._source = Session(url)
        self._runs = Session(runs_url) if runs_url else None
        self._values = {"surface_id": surface_id, "timeout": timeout}
        self._ears: psycopg.Connection[Any] | None = None
        self._deaf = False

    def close(self) -> None:
        for open_one in (self._source, self._runs, self._ears):
            if open_one is not None:
                open_one.close()

    def read(self) -> Reading:
        """Raises a `DatabaseError`."""
        with _explained():
            if self._runs is None:
                return _reading(self._source.ask(_slots_of(query("schedule_rows")), self._values))
            rows = {row["id"]: row for row in self._source.run("schedule_rows", self._values)}
            asked = {**self._values, "ids": list(rows)}
            return _reading(self._runs.ask(_slots_of("SELECT unnest(%(ids)s::text[]) AS id"), asked), rows)

    def ran(self, schedule: str, *, at: datetime | None, error: str | None) -> None:
        """Note in the row how the run of `at` ended; without it, why there is none. Raises a `DatabaseError`."""
        self._source.run("schedule_ran", {"id": schedule, "at": at, "error": error})

    def wait(self, seconds: float, *, wake: socket) -> None:
        """Until a schedule was changed or may have been, `wake` has something to read, or the time is over. What stood there to be read is
        gone then."""
        heard = self._ears
        ears = self._listening()
        if ears is not None and ears is not heard:
            return  # what was changed since the last reading was told to nobody
        with DefaultSelector() as selector:
            selector.register(wake, EVENT_READ)
            if ears is not None:
                selector.register(ears, EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select(max(0.0, seconds))]
        if wake in ready:
            wake.recv(4096)
        if ears is not None and ears in ready:
            with suppress(psycopg.Error):  # it broke; the next wait listens anew
                deque(ears.notifies(timeout=0), maxlen=0)

    def _listening(self) -> psycopg.Connection[Any] | None:
        if self._deaf or (self._ears is not None and not self._ears.closed):
            return self._ears
        try:
            self._ears = connect(self._url, purpose="coldstore schedules", connect_timeout="5", tcp_user_timeout="10000")
            self._ears.execute(f"LISTEN {CHANNEL}".encode())
        except psycopg.Error:  # a standby: what changes there is seen a tick later
            self._deaf, self._ears = self._ears is not None and not self._ears.closed, None
        except ColdStoreError:
            self._ears = None
        return self._ears


def _slots_of(asked: str) -> str:
    return f"WITH asked AS ({asked}) {query('schedule_slots')}"


def _reading(found: Iterable[Mapping[str, Any]], rows: Mapping[str, Mapping[str, Any]] | None = None) -> Reading:
    """`rows`: what the other database says of each."""
    known = list(found)
    complete = [ScheduleRow(**_of_row({**row, **(rows or {}).get(row["id"], {})})) for row in known if row["id"] is not None]
    return Reading(known[0]["now"], known[0]["dead"], complete)


def _of_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ScheduleRow.__struct_fields__}


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except TableMissing as exc:
        if "scheduled_agents" in str(exc):
            raise TableMissing("there is no table public.scheduled_agents", op="scheduler", hint=_TABLE) from exc
        raise TableMissing("there is no list of runs, coldstore.runs", op="scheduler", hint=_LIST) from exc


_TABLE = "It is the agents' own; `coldstore init --reference-schema` makes one."
_LIST = "Run `coldstore init` on that database."
