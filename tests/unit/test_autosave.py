"""Saving while an agent works: what is counted, when it is saved, what happens when it cannot be."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from coldstore import config
from coldstore.autosave import AutoSave
from coldstore.errors import ColdStoreError, ConfigError, CorruptManifest, InvalidMemory, PruneIncomplete, StoreUnavailable, SuspectSnapshot
from coldstore.storage.local import LocalStore
from coldstore.vault import MemoryVault, VaultSnapshot


class Gate(LocalStore):
    """A store on this disk whose door can be shut (whoever comes then waits) or broken (and then it is refused)."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.open = threading.Event()
        self.open.set()
        self.waiting = threading.Event()
        self.broken = 0
        self.inside = self.most = 0

    def _pass(self) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.waiting.set()
        self.open.wait()
        self.inside -= 1
        if self.broken:
            self.broken -= 1
            raise StoreUnavailable("the store is away")

    def create(self, key: str, **options: Any) -> Any:
        if ".manifest." not in key:
            self._pass()
        return super().create(key, **options)

    def folders(self, prefix: str = "") -> list[str]:
        self._pass()
        return super().folders(prefix)


class Agent:
    """A memory, and everything that is told of its saving."""

    def __init__(self, folder: str) -> None:
        self.store = Gate(folder)
        self.vault = MemoryVault("agent", url=folder, settings=config.build({}, {}))
        self.vault.store = self.store
        self.memory: dict[str, Any] = {"n": 0}
        self.errors: list[Exception] = []
        self.saves: list[VaultSnapshot] = []
        self.savers: list[AutoSave] = []

    def saver(self, state: Callable[[], Any] | None = None, **options: Any) -> AutoSave:
        options = {"every": 5, "signals": (), "wait": 60, **options}
        found = AutoSave(
            self.vault, state or (lambda: dict(self.memory)), on_error=self.errors.append, on_save=self.saves.append, **options
        )
        self.savers.append(found)
        return found

    def until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            time.sleep(0.002)

    def saved(self) -> Any:
        return self.vault.restore(snapshot_id=self.saves[-1].id)


@pytest.fixture
def agent(tmp_path):
    found = Agent(str(tmp_path / "store"))
    yield found
    found.store.open.set()
    found.store.broken = 0
    for saver in found.savers:
        saver.close()


# --- counting ----------------------------------------------------------------------------------------------------------------------


def test_every_so_many_operations_are_saved(agent):
    saver = agent.saver(every=3)
    for n in range(1, 8):
        agent.memory["n"] = n
        saver.tick()
        if n % 3 == 0:
            agent.until(lambda n=n: len(agent.saves) == n // 3)
    assert [agent.vault.restore(snapshot_id=s.id)["n"] for s in agent.saves] == [3, 6]
    assert saver.close() is True
    assert agent.vault.restore() == {"n": 7}
    assert [s.label for s in agent.saves] == [None, None, "shutdown"]
    assert agent.errors == []


def test_ten_threads_and_a_thousand_tasks_lose_no_count(agent):
    """A save is asked for exactly every 1,000 operations, whoever does them."""
    saver = agent.saver(every=1000)
    asked: list[int] = []
    wishes = saver._wishes

    class Counting:
        def put(self, wish: object) -> None:
            asked.append(1)
            wishes.put(wish)

        def empty(self) -> bool:
            return True

        get, get_nowait = wishes.get, wishes.get_nowait

    saver._wishes = Counting()

    def work(_: int) -> None:
        for _ in range(2000):
            saver.tick()

    async def task() -> None:
        for _ in range(20):
            saver.tick()
            await asyncio.sleep(0)

    async def tasks() -> None:
        await asyncio.gather(*(task() for _ in range(1000)))

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(work, range(10)))
    asyncio.run(tasks())
    assert len(asked) == 40


def test_nothing_new_is_not_saved_again(agent):
    saver = agent.saver(every=1)
    saver.tick()
    agent.until(lambda: len(agent.saves) == 1)
    for _ in range(5):
        saver.tick()
    assert saver.save() is True
    assert len(agent.saves) == 1
    assert saver.save(label="by hand") is True  # another name is something new
    assert saver.save(label="by hand") is True
    assert [s.label for s in agent.saves] == [None, "by hand"]


# --- the agent does not wait -------------------------------------------------------------------------------------------------------


def test_what_is_asked_for_meanwhile_is_one_save_and_never_two_at_once(agent):
    saver = agent.saver(every=1)
    agent.store.open.clear()
    for n in range(1, 1001):
        agent.memory["n"] = n
        saver.tick()
        if n == 1:
            agent.store.waiting.wait()  # the first is on its way; the others come while it is
    assert agent.saves == []
    agent.store.open.set()
    saver.close()
    states = [agent.vault.restore(snapshot_id=s.id)["n"] for s in agent.saves]
    assert states[0] in range(1, 1000)
    assert states[-1] == 1000
    assert len(states) <= 3
    assert agent.store.most == 1


def test_a_store_that_hangs_costs_the_agent_nothing_and_an_exit_no_more_than_it_said(agent):
    saver = agent.saver(every=1, wait=0.2)
    agent.store.open.clear()
    saver.tick()
    agent.store.waiting.wait()
    started = time.perf_counter()
    for _ in range(10_000):
        saver.tick()
    ticking = time.perf_counter() - started
    assert saver.save() is False
    assert saver.close() is False
    waited = time.perf_counter() - started - ticking
    assert waited >= 0.4
    assert [type(e) for e in agent.errors] == [StoreUnavailable, StoreUnavailable]
    assert "in the time that there was" in str(agent.errors[0])
    assert not agent.store.open.is_set()  # all of this happened while it hung
    agent.store.open.set()
    saver._thread.join()
    assert agent.vault.restore() == {"n": 0}


def test_a_loop_goes_on_while_the_store_hangs(agent):
    saver = agent.saver(every=1)
    agent.store.open.clear()

    async def work() -> int:
        for _ in range(1000):
            saver.tick()
            await asyncio.sleep(0)
        return 7

    assert asyncio.run(work()) == 7
    assert agent.saves == []


# --- failures ----------------------------------------------------------------------------------------------------------------------


def test_a_store_that_is_away_is_tried_again(agent):
    saver = agent.saver(every=1)
    agent.store.broken = 1
    agent.memory["n"] = 1
    saver.tick()
    agent.until(lambda: bool(agent.errors))
    assert isinstance(saver.error, StoreUnavailable) or agent.saves
    agent.memory["n"] = 2  # what is saved in the end is what is there in the end
    agent.until(lambda: bool(agent.saves))
    assert agent.saved() == {"n": 2}
    assert saver.error is None


def test_operations_do_not_hurry_a_store_that_is_away(agent):
    saver = agent.saver(every=1)
    agent.store.broken = 10**6
    saver.tick()
    agent.until(lambda: bool(agent.errors))
    started = time.monotonic()
    for _ in range(500):
        saver.tick()
        agent.until(saver._wishes.empty)  # each of them was seen
    assert len(agent.errors) <= 2 + (time.monotonic() - started) / 2


def test_whoever_waits_has_it_tried_until_he_stops(agent):
    saver = agent.saver()
    agent.store.broken = 3
    assert saver.close() is True
    assert len(agent.errors) == 3
    assert agent.vault.restore() == {"n": 0}


@pytest.mark.parametrize("state", [lambda: {"a": object()}, lambda: ["a"], lambda: None])
def test_a_memory_that_cannot_be_kept_is_told_and_not_tried_again(agent, state):
    saver = agent.saver(state)
    assert saver.save() is False
    assert [type(e) for e in agent.errors] == [InvalidMemory]
    assert agent.vault.latest() is None


def test_a_state_that_fails_does_not_end_the_saving(agent):
    fails = [ZeroDivisionError("of the agent's own")]

    def state() -> dict[str, Any]:
        if fails:
            raise fails.pop()
        return agent.memory

    saver = agent.saver(state)
    assert saver.save() is False
    assert str(agent.errors[0]) == "of the agent's own"
    assert saver.save() is True


def test_a_state_that_changes_while_it_is_read_is_read_again(agent):
    changes = [1, 2]

    def state() -> dict[str, Any]:
        if changes:
            changes.pop()
            raise RuntimeError("dictionary changed size during iteration")
        return agent.memory

    assert agent.saver(state).save() is True
    assert agent.errors == []


def test_a_listener_that_fails_does_not_end_the_saving(agent, caplog):
    def complain(_: Exception) -> None:
        raise ZeroDivisionError

    saver = AutoSave(agent.vault, lambda: {"a": object()}, on_error=complain, signals=())
    agent.savers.append(saver)
    assert saver.save() is False
    assert saver.save() is False
    assert "failed himself" in caplog.text


def test_who_names_no_listener_finds_it_in_the_log(agent, caplog):
    saver = AutoSave(agent.vault, lambda: {"a": object()}, signals=())
    agent.savers.append(saver)
    saver.save()
    assert "the memory was not saved: document 'a'" in caplog.text


def test_a_lost_memory_is_stored_once_and_told(agent):
    agent.memory = {f"{n}": n for n in range(10)}
    saver = agent.saver(every=1)
    saver.save()
    agent.memory = {}
    for _ in range(3):
        saver.save()
    assert [type(e) for e in agent.errors] == [SuspectSnapshot]
    assert len(agent.vault.restore()) == 10
    assert len(agent.vault.list_snapshots()) == 2


def test_a_save_that_could_not_be_pruned_is_a_save(agent, monkeypatch):
    from coldstore import catalog

    def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("away")

    saver = agent.saver(prune_keep=1)
    saver.save()
    agent.memory["n"] = 2
    monkeypatch.setattr(catalog, "delete", away)
    assert saver.save() is True
    assert [type(e) for e in agent.errors] == [PruneIncomplete]
    assert agent.vault.restore() == {"n": 2}


@pytest.mark.parametrize("options", [{"every": 0}, {"wait": -1}])
def test_options_that_make_no_sense_are_refused(agent, options):
    with pytest.raises(ConfigError):
        agent.saver(**options)


# --- start and end -----------------------------------------------------------------------------------------------------------------


def test_a_first_run_is_no_error_and_a_later_one_goes_on(agent):
    assert agent.saver().restore_or_default({"new": 1}) == {"new": 1}
    with agent.saver():
        agent.memory = {"n": 5}
    assert agent.saver().restore_or_default({}) == {"n": 5}


def test_a_memory_that_cannot_be_read_is_not_taken_for_a_first_run(agent, tmp_path):
    saved = agent.vault.backup({"n": 1})
    (path,) = (tmp_path / "store").rglob(f"{saved.id}.manifest.json")
    path.write_bytes(b"{}")
    with pytest.raises(CorruptManifest):
        agent.saver().restore_or_default({})


def test_a_store_that_hangs_does_not_hold_up_a_start(agent):
    agent.store.open.clear()
    with pytest.raises(StoreUnavailable, match=r"within 0\.1 seconds"):
        agent.saver().restore_or_default({}, wait=0.1)


def test_an_agent_that_began_without_its_memory_saves_nothing_over_it(agent):
    agent.vault.backup({"n": 1, "m": 2})
    agent.store.open.clear()

    def begin() -> None:
        with agent.saver(lambda: {"n": 0, "m": 0}) as saver:
            saver.restore_or_default({}, wait=0.1)

    with pytest.raises(StoreUnavailable):
        begin()
    assert [type(e) for e in agent.errors] == [InvalidMemory]
    agent.store.open.set()
    assert agent.vault.restore() == {"n": 1, "m": 2}
    saver = agent.saver(lambda: {"n": 3, "m": 3})
    assert saver.restore_or_default({}) == {"n": 1, "m": 2}
    assert saver.close() is True
    assert agent.vault.restore() == {"n": 3, "m": 3}


def test_a_block_that_fails_is_saved(agent):
    def fail() -> None:
        with agent.saver():
            agent.memory["n"] = 9
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert agent.vault.restore(label="shutdown") == {"n": 9}


def test_closing_twice_saves_once(agent):
    saver = agent.saver()
    assert saver.close() is True
    assert saver.close() is True
    saver.tick()
    assert saver.save() is False
    assert len(agent.saves) == 1


def test_handlers_are_put_back_and_those_of_others_left(agent):
    before = signal.getsignal(signal.SIGUSR1)
    saver = agent.saver(signals=(signal.SIGUSR1,))
    assert signal.getsignal(signal.SIGUSR1) != before
    saver.close()
    assert signal.getsignal(signal.SIGUSR1) == before
    saver = agent.saver(signals=(signal.SIGUSR1,))
    try:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        saver.close()
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
        agent.saver(signals=(signal.SIGUSR1,))
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN  # what is ignored stays so
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_handler_saves_and_does_what_was_done_before(agent):
    seen: list[object] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append((number, [s.label for s in agent.saves])))
    try:
        saver = agent.saver(signals=(signal.SIGUSR1,))
        signal.raise_signal(signal.SIGUSR1)
        assert seen == [(signal.SIGUSR1, ["shutdown"])]
        agent.memory["n"] = 1  # the agent goes on, and so does the saving
        saver.close()
        assert agent.vault.restore() == {"n": 1}
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_listener_that_needs_what_the_interrupted_code_holds_does_not_hold_up_the_save(agent):
    """As `print` does: a signal may come in the middle of one."""
    held = threading.Lock()
    before = signal.signal(signal.SIGUSR1, lambda *_: None)

    def listen(info: VaultSnapshot) -> None:
        with held:
            agent.saves.append(info)

    saver = AutoSave(agent.vault, lambda: agent.memory, on_save=listen, signals=(signal.SIGUSR1,), wait=3600)
    agent.savers.append(saver)
    try:
        with held:
            signal.raise_signal(signal.SIGUSR1)
            assert agent.vault.restore(label="shutdown") == agent.memory
            assert agent.saves == []
        agent.until(lambda: bool(agent.saves))
    finally:
        saver.close()
        signal.signal(signal.SIGUSR1, before)


def test_another_thread_has_no_handlers_and_saves_all_the_same(agent):
    before = signal.getsignal(signal.SIGUSR1)
    with ThreadPoolExecutor(1) as pool:
        saver = pool.submit(agent.saver, signals=(signal.SIGUSR1,)).result()
    assert signal.getsignal(signal.SIGUSR1) == before
    assert saver.save() is True


def test_every_error_of_ours_is_told_as_it_is(agent):
    agent.store.broken = 1
    saver = agent.saver()
    saver.save()
    assert all(isinstance(e, ColdStoreError) for e in agent.errors)
