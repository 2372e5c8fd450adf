"""The real program in a process of its own. Nothing of this process reaches it: not its environment, its folder, nor its signal handlers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import psycopg

from tests.acceptance.forks import Fork
from tests.servers.s3 import SECRET

Process: TypeAlias = "subprocess.Popen[bytes] | Fork"

#: In the environment or the arguments of every run; nowhere in what it says or writes. `weed` checks the last one.
SECRETS = {
    "dsn": "dsnSecret-51c1e2",
    "api": "apiSecret-77aa01",
    "id": "AKIASECRET0DD3F1",
    "aws": "awsSecret/9b+2e",
    "endpoint": "endpointSecret-4d",
    "weed": SECRET,
}
ERROR_KEYS = {"error", "message", "hint", "op", "key", "exitCode"}
_LIMIT = 120  # seconds; only a program that hangs takes so long


def listen_to_signals() -> None:
    """Between fork and exec: a test run in the background of a shell ignores Ctrl-C, and its children would too."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@dataclass(frozen=True)
class Result:
    """What a run left behind."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def out(self) -> str:
        return self.stdout.decode()

    @property
    def err(self) -> str:
        return self.stderr.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


@dataclass
class Program:
    """`cold("list")` runs `coldstore list` in `folder` and expects it to succeed; `code=` expects something else, None anything.

    Every run has `SECRETS` in its environment, and no run may print one. With `forks` (the address of a `fork_server`) a run is forked off
    a process that has imported the program, unless options of `subprocess.Popen` are given.
    """

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = (sys.executable, "-m", "coldstore")
    forks: str | None = None

    def environment(self, more: Mapping[str, str | None] | None = None) -> dict[str, str]:
        home = self.folder.parent / "home"
        home.mkdir(exist_ok=True)
        secrets = {"COLD_STORE_API_KEY": SECRETS["api"], "AWS_ACCESS_KEY_ID": SECRETS["id"], "AWS_SECRET_ACCESS_KEY": SECRETS["aws"]}
        base: dict[str, str | None] = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        return {k: v for k, v in {**base, **secrets, **self.env, **(more or {})}.items() if v is not None}

    def start(
        self,
        *arguments: str | bytes | Path,
        env: Mapping[str, str | None] | None = None,
        before: Callable[[], None] | None = None,
        **options: Any,
    ) -> Process:
        """The program under way, in a process group of its own. `before` runs between fork and exec."""
        if self.forks and not options and not before:
            return Fork(self.forks, [str(a) for a in arguments], cwd=self.folder, env=self.environment(env))

        def prepare() -> None:
            listen_to_signals()
            if before:
                before()

        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": self.folder, **options}
        command = [*self.command, *(a if isinstance(a, bytes) else str(a) for a in arguments)]
        return subprocess.Popen(command, env=self.environment(env), start_new_session=True, preexec_fn=prepare, **options)  # noqa: PLW1509

    def __call__(self, *arguments: str | bytes | Path, code: int | None = 0, **options: Any) -> Result:
        result = ended(self.start(*arguments, **options))
        if code is not None:
            assert result.code == code, (arguments, result)
        return result

    def refused(self, *arguments: str | bytes | Path, code: int, error: str, hint: bool = True, **options: Any) -> dict[str, Any]:
        """The program says no twice, to a person and to a program: one sentence with a hint, or one JSON object; nothing on stdout."""
        for_people = self.start(*arguments, **options)
        told = ended(for_people) if arguments[0] == "restore" else None  # two into one target would be a race of their own
        for_programs = self.start(*arguments, "--json", **options)
        told = told or ended(for_people)
        assert told.code == code, told
        lines = told.err.splitlines()
        assert [line.partition(": ")[0] for line in lines] == (["error", "hint"] if hint else ["error"]), told.err
        assert told.stdout == b""
        return check_refusal(ended(for_programs), code=code, error=error, hint=hint)


def check_refusal(told: Result, *, code: int, error: str, hint: bool = True) -> dict[str, Any]:
    """One JSON object on stderr, nothing on stdout."""
    assert told.code == code, told
    assert told.stdout == b""
    assert told.err.count("\n") == 1, told.err
    found = json.loads(told.stderr)
    assert set(found) == ERROR_KEYS
    assert (found["error"], found["exitCode"]) == (error, code), found
    assert found["message"]
    assert bool(found["hint"]) == hint, found
    return dict(found)


def ended(process: Process) -> Result:
    out, err = process.communicate(timeout=_LIMIT)
    result = Result(process.returncode, out or b"", err or b"")
    assert secrets_in(result.stdout + result.stderr) == []
    return result


def secrets_in(data: bytes) -> list[str]:
    """Which secrets are somewhere in `data`, also percent-encoded."""
    return [name for name, secret in SECRETS.items() if secret.encode() in data or quote(secret, safe="").encode() in data]


def wait_until(condition: Callable[[], object], *, process: Process | None = None) -> None:
    """Until `condition()` holds; it is an error if `process` ends before."""
    deadline = time.monotonic() + _LIMIT
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"it ended before its time: {ended(process)}")
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement.encode())


def ask(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as conn:
        return conn.execute(statement.encode()).fetchall()


def remember(url: str, uid: str, *, workspace: str | None = None, days: int = 3, padding: int = 20) -> None:
    """Memory for one user: `days` days, two things with embeddings, one rule."""
    with psycopg.connect(url, autocommit=True) as conn:
        who = {"uid": uid, "workspace": workspace, "days": days, "padding": padding}
        conn.execute(
            "INSERT INTO daily_memories (uid, workspace_id, agent_id, date, entries, summary) SELECT %(uid)s, %(workspace)s, 'agent',"
            " date '2026-01-01' + n %% 3000, jsonb_build_array(jsonb_build_object('content', 'day ' || n || ' — naïve ✓')),"
            " repeat(md5(n::text), %(padding)s / 32 + 1) FROM generate_series(1, %(days)s) n",
            who,
        )
        conn.execute(
            "INSERT INTO graph_entities (uid, workspace_id, name, type, embedding) SELECT %(uid)s, %(workspace)s, 'thing ' || n, 'place',"
            " array_fill(n / 7.0, array[1536])::vector FROM generate_series(1, 2) n",
            who,
        )
        conn.execute(
            "INSERT INTO procedural_memory (uid, workspace_id, kind, name, success_rate) VALUES (%(uid)s, %(workspace)s, 'rule', 'r', 1/3.0)",
            who,
        )


def files(folder: Path) -> list[str]:
    """Every file below a folder, temporary ones too."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())
