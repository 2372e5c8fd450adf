"""`coldstore serve` as a process: how it starts, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.acceptance.program import SECRETS, Program, ask, ended, execute, files, secrets_in, wait_until
from tests.integration.served import SLOW

CONFIG, DATABASE, TERMINATED = 2, 3, 143
SNAPSHOT = "/admin/memory/snapshot"


@dataclass
class Server:
    """`lines`: what it told so far, as JSON."""

    process: subprocess.Popen[bytes]
    output: Path
    url: str = ""

    @property
    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.output.read_text().splitlines() if line]

    def told(self, word: str) -> list[dict]:
        return [line for line in self.lines if word in line["message"]]

    def post(self, body: object = None, **headers: str) -> httpx.Response:
        return httpx.post(f"{self.url}{SNAPSHOT}", json=body, headers={"x-api-key": SECRETS["api"], **headers}, timeout=None)

    def end(self, number: int = signal.SIGTERM) -> int:
        os.killpg(self.process.pid, number)
        return ended(self.process).code


@contextmanager
def serving(cold: Program, url: str, *arguments: str) -> Iterator[Server]:
    output = cold.folder.parent / "told.jsonl"
    with output.open("wb") as file:
        process = cold.start("serve", "--port", "0", "--json", *arguments, env={"DATABASE_URL": url}, stdout=file)
    server = Server(process, output)  # type: ignore[arg-type]  # with a file it is no fork
    try:
        wait_until(lambda: server.told("listening"), process=process)
        server.url = f"http://127.0.0.1:{server.told('listening')[0]['port']}"
        yield server
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert secrets_in(output.read_bytes()) == []


@pytest.fixture
def listed(cold, memory) -> Program:
    cold.env["DATABASE_URL"] = memory
    cold("init")
    return cold


def test_a_snapshot_and_a_graceful_end(listed, memory):
    with serving(listed, memory) as server:
        made = server.post({"uid": "uid_alice"})
        assert made.status_code == 201
        assert httpx.get(f"{server.url}/openapi.json").json()["info"]["title"] == "coldstore"
        assert "server" not in made.headers
        assert server.end() == 0
        assert server.told("stopped")
    assert [info["id"] for info in listed("list", "--json").json] == [made.json()["id"]]
    assert [run["trigger"] for run in listed("runs", "--json").json] == ["http"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_any_signal_ends_it(cold, memory, number):
    with serving(cold, memory) as server:
        assert server.end(number) == 0


def test_what_is_under_way_comes_to_its_end(listed, memory):
    with serving(listed, memory) as server, ThreadPoolExecutor(1) as pool, psycopg.connect(memory) as conn:
        conn.execute("LOCK TABLE daily_memories IN ACCESS EXCLUSIVE MODE")
        waiting = pool.submit(server.post, {"uid": "uid_alice"})
        wait_until(lambda: ask(memory, "SELECT FROM coldstore.runs"), process=server.process)
        os.killpg(server.process.pid, signal.SIGTERM)
        wait_until(lambda: not listens(server.url))
        conn.rollback()
        assert waiting.result().status_code == 201
        assert ended(server.process).code == 0
    assert len(listed("list", "--json").json) == 1


def listens(url: str) -> bool:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_what_takes_too_long_is_given_up(listed, memory):
    execute(memory, SLOW)
    (listed.folder / "coldstore.toml").write_text('[tiers.slow]\ntable = "slow"\n[server]\nstop_seconds = 0\n[snapshot]\nframe_mb = 1\n')
    before = files(listed.folder)
    with serving(listed, memory) as server, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.post, {"uid": "alice"})
        wait_until(lambda: ask(memory, "SELECT FROM coldstore.runs"), process=server.process)
        assert server.end() == TERMINATED
        assert (waiting.result().status_code, waiting.result().json()["type"]) == (503, "urn:coldstore:error:Stopping")
    assert ask(memory, "SELECT state FROM coldstore.runs") == [("failed",)]
    assert [name for name in files(listed.folder) if name not in before] == []


def test_a_second_signal_does_not_wait(listed, memory):
    execute(memory, SLOW)
    (listed.folder / "coldstore.toml").write_text('[tiers.slow]\ntable = "slow"\n[server]\nstop_seconds = 3600\n[snapshot]\nframe_mb = 1\n')
    with serving(listed, memory) as server:
        assert server.post({"uid": "alice"}, Prefer="respond-async").status_code == 202
        wait_until(lambda: ask(memory, "SELECT FROM coldstore.runs"), process=server.process)
        os.killpg(server.process.pid, signal.SIGTERM)
        wait_until(lambda: not listens(server.url))
        assert server.end() == TERMINATED
    assert ask(memory, "SELECT state FROM coldstore.runs") == [("failed",)]


def test_with_the_scheduler_in_it(listed, memory):
    execute(
        memory,
        "INSERT INTO scheduled_agents (cron_expression, input_message, surface_id, created_by, created_at, updated_at) VALUES ('0 * * * *',"
        " 'Take a snapshot of user uid_bob', 'cold-store-cron', 'test', now() - interval '2 hours', now() - interval '2 hours')",
    )
    with serving(listed, memory, "--scheduler") as server:
        assert server.post({"uid": "uid_alice"}).status_code == 201
        wait_until(lambda: server.told("done"), process=server.process)
        assert server.end() == 0
    assert {(run["trigger"], run["uid"]) for run in listed("runs", "--json").json} == {("http", "uid_alice"), ("schedule", "uid_bob")}


def test_a_scheduler_that_cannot_begin_ends_the_server(cold, memory):
    told = cold("serve", "--port", "0", "--scheduler", env={"DATABASE_URL": memory}, code=DATABASE)
    assert "error: there is no list of runs" in told.err


# --- what is refused ---------------------------------------------------------------------------------------------------------------


def test_without_a_key_nothing_is_served(cold, memory):
    told = cold.refused("serve", env={"DATABASE_URL": memory, "COLD_STORE_API_KEY": None}, code=CONFIG, error="ConfigError")
    assert "has no key" in told["message"]
    assert "COLD_STORE_API_KEY" in told["hint"]


def test_a_key_that_is_too_short(cold, memory):
    told = cold.refused("serve", env={"DATABASE_URL": memory, "COLD_STORE_API_KEY": "tiny-7f"}, code=CONFIG, error="ConfigError")
    assert "tiny-7f" not in str(told)


def test_a_port_that_is_taken(cold, memory):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        told = cold.refused("serve", "--port", port, env={"DATABASE_URL": memory}, code=CONFIG, error="ConfigError")
    assert port in told["message"]


def test_a_host_that_there_is_not(cold, memory):
    cold.refused("serve", "--host", "no.such.host.invalid", env={"DATABASE_URL": memory}, code=CONFIG, error="ConfigError")


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn"])
def test_without_the_extra(started, memory, missing):
    """As if it were not installed: there is one sentence, and every other command works."""
    blocked = started.folder.parent / "blocked"
    blocked.mkdir()
    (blocked / f"{missing}.py").write_text(f"raise ModuleNotFoundError(name={missing!r})\n")
    more = {"DATABASE_URL": memory, "PYTHONPATH": str(blocked)}
    told = started.refused("serve", env=more, code=CONFIG, error="ConfigError")
    assert missing in told["message"]
    assert "coldstore[server]" in told["hint"]
    assert started("snapshot", "--uid", "uid_alice", "--json", env=more).json["uid"] == "uid_alice"
