"""Saves an agent's memory while the agent works: every so many operations, at exit, and when the process is told to stop.

    save = AutoSave(vault, lambda: memory, every=50)        memory = save.restore_or_default({})
    … save.tick() after each operation …

The agent never waits for its backup: `tick` counts and returns, from any thread and from a coroutine. One thread of its own saves, never
two saves at once, and what is asked for meanwhile is one save afterwards. What fails for the store's sake is tried again, later each time;
what fails for the memory's sake is told, and tried again when there is more. Only at exit and at a signal is there something to wait for,
for as long as `wait` says and no longer. After a `fork` the child does not save: its parent does.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import thread as pools
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from coldstore.codec.digest import row_digest
from coldstore.document.notes import Value
from coldstore.errors import (
    ColdStoreError,
    ConfigError,
    InvalidMemory,
    PruneIncomplete,
    QuotaExceeded,
    StoreUnavailable,
    SuspectSnapshot,
)
from coldstore.storage.shared import pause_before
from coldstore.vault import MemoryVault, VaultSnapshot, rows_of

if TYPE_CHECKING:
    from coldstore.app import ColdStore
    from coldstore.catalog import SnapshotInfo

SHUTDOWN = "shutdown"
LOG = logging.getLogger("coldstore.autosave")

Default = TypeVar("Default")

# Nothing will be otherwise when these are tried again: another memory, another setting, somebody's decision is needed.
_FUTILE = (InvalidMemory, QuotaExceeded, SuspectSnapshot, ConfigError)
_LONGEST_PAUSE = 60.0
# A listener may need a lock (of standard output, of the log) that is held by the very code that a signal has interrupted: whoever waits
# for a save gives it a second more, and goes on.
_HEARING = 1.0
_LOOKS = 5  # at a memory that changed while it was looked at


@dataclass(frozen=True, slots=True)
class _Request:
    """A save that somebody waits for. `until`: when he stops to, by the clock of `time.monotonic`. `told`: the listeners know."""

    label: str | None
    until: float
    last: bool = False
    done: threading.Event = field(default_factory=threading.Event)
    told: threading.Event = field(default_factory=threading.Event)


class _Saver(ABC):
    """The counting, the thread, the exit and the signals; what a save is, the two below say."""

    def __init__(
        self,
        *,
        every: int,
        label: str | None,
        wait: float,
        on_error: Callable[[Exception], object] | None,
        signals: Iterable[int],
    ) -> None:
        if every < 1 or wait < 0:
            raise ConfigError("saving needs a count of operations and a time to wait", hint="Write every=50, wait=10.")
        self.every = every
        self.wait = wait
        self.label = label
        self.error: Exception | None = None
        self._on_error = on_error or _log
        self._news: list[Callable[[], object]] = []
        self._operations = count(1)
        # Both the counter and this queue may be used by a signal's handler that came in the middle of themselves; no lock may.
        self._wishes: SimpleQueue[_Request | None] = SimpleQueue()
        self._closed = False
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._work, name="coldstore-autosave", daemon=True)
        self._thread.start()
        self._signals = _Signals(self, signals)
        _living.add(self)

    @abstractmethod
    def _save(self, label: str | None) -> None:
        """One save, or none where there is nothing new. Raises what `backup` raises."""

    def tick(self) -> None:
        """One operation was done. Every so many of them ask for a save."""
        if next(self._operations) % self.every == 0 and self._wishes.empty():  # one that waits there will see this operation, too
            self._wishes.put(None)

    def save(self, *, label: str | None = None, wait: float | None = None) -> bool:
        """Save now, and wait for it as long as `wait` says. Whether it is saved; `error` tells why not."""
        return self._ask(_Request(label or self.label, time.monotonic() + (self.wait if wait is None else wait)))

    def close(self) -> bool:
        """The last save, labelled `shutdown`, and whether it was made. Waits for it as long as `wait` says, and tells when that was not
        enough."""
        if not self._closed:
            self._closed = True
            self._signals.restore()
            _living.discard(self)
            return self._ask(_Request(SHUTDOWN, time.monotonic() + self.wait, last=True))
        return self.error is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: _Request) -> bool:
        if self._process != os.getpid() or not self._thread.is_alive():
            return False
        self._wishes.put(request)
        if request.done.wait(max(0.0, request.until - time.monotonic())):
            request.told.wait(max(0.0, min(_HEARING, request.until - time.monotonic())))
            return self.error is None
        self.error = StoreUnavailable("the memory could not be saved in the time that there was", hint="Is the store there?", op="autosave")
        _attempted(partial(self._on_error, self.error))
        return False

    # --- the thread ------------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        failures, again_at = 0, 0.0
        while True:
            wishes = self._wait_for(again_at if failures else None)
            waiting = [w for w in wishes if w is not None]
            if failures and not waiting and time.monotonic() < again_at:
                continue  # an operation is no reason to try a store that is away
            label = next((w.label for w in reversed(waiting) if w.label is not None), self.label)
            until = max((w.until for w in waiting), default=0.0)
            failures = self._attempt(label, failures, until)
            again_at = time.monotonic() + min(_LONGEST_PAUSE, 2.0**failures)
            for wish in waiting:
                wish.done.set()
            while self._news:
                _attempted(self._news.pop(0))
            for wish in waiting:
                wish.told.set()
            if any(w.last for w in waiting):
                return

    def _wait_for(self, at: float | None) -> list[_Request | None]:
        """Everything that is wished for by now; nothing when it is time to try again."""
        wishes: list[_Request | None] = []
        try:
            wishes.append(self._wishes.get(timeout=None if at is None else max(0.0, at - time.monotonic())))
            while True:
                wishes.append(self._wishes.get_nowait())
        except Empty:
            return wishes

    def _attempt(self, label: str | None, failures: int, until: float) -> int:
        """How often in a row it failed for the store's sake: 0 when it is saved or there is no sense in trying. While somebody waits, it is
        tried again and again."""
        attempts = 0
        while True:
            try:
                self._save(label)
            except PruneIncomplete as exc:  # what matters is done
                self._tell(exc)
                self.error = None
                return 0
            except _FUTILE as exc:
                self._tell(exc)
                return 0
            except ColdStoreError as exc:
                self._tell(exc)
                attempts += 1
                pause = pause_before(attempts)
                if time.monotonic() + pause >= until:
                    return failures + 1
                time.sleep(pause)
            except Exception as exc:  # noqa: BLE001 - the agent's own function, whatever it raises; it must not end the saving
                self._tell(exc)
                return 0
            else:
                self.error = None
                return 0

    def _tell(self, error: Exception) -> None:
        self.error = error
        self._news.append(partial(self._on_error, error))


class AutoSave(_Saver):
    """Saves what `get_state` returns into a vault. `get_state` is called by the saving thread: it returns what nobody changes meanwhile, a
    copy for example, or takes the lock that the agent changes it under. `on_error` is told every failure, `on_save` every save, mostly by
    the saving thread. `wait`: seconds by which an exit or a signal may be held up. `prune_keep`: as `backup` takes it."""

    def __init__(
        self,
        vault: MemoryVault,
        get_state: Callable[[], Mapping[str, Value]],
        *,
        every: int = 50,
        label: str | None = None,
        prune_keep: int | None = None,
        wait: float = 10.0,
        on_error: Callable[[Exception], object] | None = None,
        on_save: Callable[[VaultSnapshot], object] | None = None,
        signals: Iterable[int] = (signal.SIGTERM, signal.SIGINT),
    ) -> None:
        self.vault = vault
        self._get_state = get_state
        self._prune_keep = prune_keep
        self._on_save = on_save
        self._saved: tuple[str | None, int, int] | None = None
        self._unread = False
        super().__init__(every=every, label=label, wait=wait, on_error=on_error, signals=signals)

    def restore_or_default(self, default: Default, *, wait: float | None = None) -> dict[str, Value] | Default:
        """The newest memory, or `default` on a first run. Raises what `restore` raises: a memory that cannot be read is not one that never
        was, and must not be saved over. Also `StoreUnavailable`, when nothing was heard for as long as `wait` says."""
        found: list[dict[str, Value] | Default] = []
        failed: list[Exception] = []

        def look() -> None:
            try:
                manifest = self.vault.latest()
                found.append(default if manifest is None else self.vault.restore(snapshot_id=manifest.id))
            except Exception as exc:  # noqa: BLE001 - it is raised below, in the thread that asked
                failed.append(exc)

        self._unread = True
        patience = self.wait if wait is None else wait
        thread = threading.Thread(target=look, name="coldstore-restore", daemon=True)
        thread.start()
        thread.join(patience)
        if failed:
            raise failed[0]
        if not found:
            raise StoreUnavailable(f"the store gave no memory within {patience:g} seconds", op="restore", hint="Is the store there?")
        self._unread = False
        return found[0]

    def _save(self, label: str | None) -> None:
        if self._unread:
            raise InvalidMemory(
                "nothing is saved: the memory that is there was not read, and the agent began without it",
                hint="Call `restore_or_default` again, or make another AutoSave without calling it.",
            )
        rows = self._rows()
        content = (len(rows), sum(map(row_digest, rows)))
        if self._saved is not None and self._saved[1:] == content and label in {self._saved[0], self.label}:
            return
        try:
            info = self.vault.backup_rows(rows, label=label, prune_keep=self._prune_keep)
        except (SuspectSnapshot, PruneIncomplete):  # it is stored all the same, and once is enough
            self._saved = (label, *content)
            raise
        self._saved = (label, *content)
        if self._on_save is not None:
            self._news.append(partial(self._on_save, info))

    def _rows(self) -> list[bytes]:
        for _ in range(_LOOKS - 1):
            try:
                return rows_of(self._get_state())
            except RuntimeError:  # a dictionary grew while it was read
                time.sleep(0.01)
        return rows_of(self._get_state())


class AutoSnapshot(_Saver):
    """Takes snapshots of one user's memory in the tables: of what changed where that is possible, whole ones otherwise, none when nothing
    did. Give it a `ColdStore` of its own: the saving thread uses its connections."""

    def __init__(
        self,
        store: ColdStore,
        *,
        uid: str,
        every: int = 50,
        label: str | None = None,
        incremental: bool = True,
        wait: float = 10.0,
        on_error: Callable[[Exception], object] | None = None,
        on_save: Callable[[SnapshotInfo], object] | None = None,
        signals: Iterable[int] = (signal.SIGTERM, signal.SIGINT),
    ) -> None:
        self.store = store
        self.uid = uid
        self._incremental = incremental
        self._on_save = on_save
        super().__init__(every=every, label=label, wait=wait, on_error=on_error, signals=signals)

    def _save(self, label: str | None) -> None:
        if self._incremental:
            info = self.store.snapshot_incremental(uid=self.uid, label=label, auto_full=True, allow_empty=True)
        else:
            info = self.store.snapshot(uid=self.uid, label=label, allow_empty=True)
        if info is not None and self._on_save is not None:
            self._news.append(partial(self._on_save, info))


def _attempted(listener: Callable[[], object]) -> None:
    try:
        listener()
    except Exception:
        LOG.exception("whoever was told of a save failed himself")


def _log(error: Exception) -> None:
    LOG.warning("the memory was not saved: %s", error)


# --- signals and exit --------------------------------------------------------------------------------------------------------------


class _Signals:
    """Handlers that save first, and then do what was done before. Only the main thread can have any; one that is ignored stays so."""

    def __init__(self, saver: _Saver, signals: Iterable[int]) -> None:
        self._saver = saver
        self._busy = False
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return
        for number in signals:
            before = signal.getsignal(number)
            if before is not None and before != signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._handle)

    def restore(self) -> None:
        """Where they still stand: whoever came later keeps his."""
        if threading.current_thread() is threading.main_thread():
            for number, before in self._before.items():
                if signal.getsignal(number) == self._handle:
                    signal.signal(number, before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._busy:  # a second one means that somebody is in a hurry
            self._busy = True
            try:
                self._saver.save(label=SHUTDOWN)
            finally:
                self._busy = False
        before = self._before[number]
        if callable(before):
            before(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


_living: set[_Saver] = set()


def _at_exit() -> None:
    saved = [saver.close() for saver in list(_living)]
    if not all(saved):
        # One that still hangs is a daemon and would not hold up the exit, but that executors wait for their threads whatever they are.
        hanging = getattr(pools, "_threads_queues", {})
        for thread in [t for t in list(hanging) if t.daemon]:
            hanging.pop(thread, None)


# While executors still take work: those that `atexit` runs come after they have closed, and a store may need one.
_register: Callable[[Callable[[], None]], object] = getattr(threading, "_register_atexit", atexit.register)
_register(_at_exit)
