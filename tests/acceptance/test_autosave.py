"""An agent's process that ends in every way a process ends: what it knew last is in the store."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coldstore import config
from coldstore.vault import MemoryVault

AGENT = """
import os, signal, sys, threading, time
from coldstore import AutoSave, MemoryVault

# Tests that run in the background of a shell ignore Ctrl-C, and what they start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)
say = lambda *words: os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # a handler must not print
vault = MemoryVault("agent", url=sys.argv[1])
memory = {"n": 0}
"""

SAVER = """
save = AutoSave(vault, lambda: dict(memory), every=1000, wait=60, on_save=lambda s: say("saved", s.label))
memory["n"] = 7
"""

FOREVER = """
say("ready")
while True:
    time.sleep(0.01)
"""


def start(folder: Path, code: str, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", AGENT + code, str(folder), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"HOME": str(folder), **environ},
    )


def restored(folder: Path, label: str = "shutdown") -> dict:
    return MemoryVault("agent", url=str(folder), settings=config.build({}, {})).restore(label=label)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("pass", 0),
        ("sys.exit(3)", 3),
        ("raise ZeroDivisionError", 1),
        ("raise KeyboardInterrupt", 130),
        ("with save: pass", 0),
        ("save.close()", 0),
        ("threading.Thread(target=lambda: (time.sleep(0.05), memory.update(n=8))).start()", 0),
        ("memory['n'] = 8; save.save(); memory['n'] = 7", 0),
    ],
)
def test_every_way_to_end(tmp_path, how, code):
    agent = start(tmp_path, SAVER + how)
    _, said = agent.communicate()
    assert agent.returncode in {code, -signal.SIGINT if code == 130 else code}, said
    assert restored(tmp_path) == {"n": 7}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_then_ends_the_process_as_it_would_have(tmp_path, number):
    agent = start(tmp_path, SAVER + FOREVER)
    assert agent.stdout.readline() == "ready\n"
    agent.send_signal(number)
    out, said = agent.communicate()
    assert out == "saved shutdown\n"
    assert agent.returncode == -number
    assert ("KeyboardInterrupt" in said) == (number == signal.SIGINT)
    assert restored(tmp_path) == {"n": 7}


def test_the_handler_that_was_there_runs_after_the_save(tmp_path):
    before = "def stop(*_):\n    say('mine', vault.restore()); sys.exit(5)\nsignal.signal(signal.SIGTERM, stop)\n"
    agent = start(tmp_path, before + SAVER + FOREVER)
    agent.stdout.readline()
    agent.terminate()
    out, _ = agent.communicate()
    assert out == "saved shutdown\nmine {'n': 7}\n"
    assert agent.returncode == 5


def test_a_loop_with_a_handler_of_its_own(tmp_path):
    code = """
import asyncio
async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    say("ready")
    while not stop.is_set():
        save.tick(); memory["n"] += 1
        await asyncio.sleep(0.001)
    say("stopped", memory["n"])
asyncio.run(main())
"""
    agent = start(tmp_path, SAVER + code)
    agent.stdout.readline()
    time.sleep(0.05)
    agent.terminate()
    out, said = agent.communicate()
    assert agent.returncode == 0, said
    (stopped,) = [line.split()[1] for line in out.splitlines() if line.startswith("stopped")]
    assert restored(tmp_path) == {"n": int(stopped)}


def test_a_child_of_a_fork_does_not_save(tmp_path):
    code = """
child = os.fork()
if child == 0:
    memory["n"] = 666
    save.tick(); save.save(); save.close()
    sys.exit(0)
say("child", os.waitpid(child, 0)[1])
"""
    out, _ = start(tmp_path, SAVER + code).communicate()
    assert out == "child 0\nsaved shutdown\n"
    assert restored(tmp_path) == {"n": 7}


@pytest.mark.parametrize("at", ["exit", "signal"])
def test_a_store_that_hangs_holds_up_the_end_only_as_long_as_was_said(tmp_path, weed, weed_faults, at):
    """Through a server that answers nothing: every thread that a store may have is waiting, also those of executors."""
    weed_faults.add("stall", seconds=3600, count=None)
    code = f"""
from coldstore import config
a = {weed.arguments(endpoint_url=weed_faults.url)!r}
settings = config.build({{}}, {{"url": "s3://{weed.bucket}/hangs-{at}", "endpoint_url": a["endpoint_url"], "region": a.get("region"),
    "path_style": a.get("path_style"), "options": {{**(a.get("options") or {{}}), "read_timeout": 3600, "connect_timeout": 3600}}}})
vault = MemoryVault("agent", settings=settings, quota_bytes=10**9)
save = AutoSave(vault, lambda: memory, every=1, wait=0.5, on_error=lambda e: say(type(e).__name__))
for _ in range(1000):
    save.tick()
while not save._wishes.empty():
    time.sleep(0.01)
say("working")
"""
    agent = start(tmp_path, code + (FOREVER if at == "signal" else "say('ready')"))
    assert [agent.stdout.readline() for _ in range(2)] == ["working\n", "ready\n"]
    if at == "signal":
        agent.terminate()
    out, said = agent.communicate()  # it does end, and the server would not have let it for an hour
    assert (out, said) == ("StoreUnavailable\n", "")
    assert agent.returncode == (-signal.SIGTERM if at == "signal" else 0)
