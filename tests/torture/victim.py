"""The process that is killed: it does what it is asked for, and dies by SIGKILL at a call whose number was named.

A server that has imported everything forks one child for each request, so a run costs some milliseconds and not the start of Python. It
reads one line of JSON a request and answers with one exit code a line; it ends with its input. What the child has to tell (every call it
came by, or its error) stands in the file that the request names.

A call is one that changes or waits for something outside: a system call of `storage/local.py`, a request to S3 or GCS, a statement, a COPY
or the end of a transaction. `before`: dead before the call is made. `amid`: while it is under way, and of a write half is done. `after`:
the call took effect, and nobody learnt of it.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ACTIONS = ("before", "amid", "after")
SYSTEM_CALLS = ("mkdir", "open", "fsync", "close", "link", "replace", "unlink", "rmdir", "pread")
KILLED = -signal.SIGKILL


class Victims:
    """The server, seen from the campaign."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._log = process, folder / "victim.json"

    def run(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Exit code, and what the child wrote down before it ended (nothing, when it was killed)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._log.unlink(missing_ok=True)
        self._process.stdin.write(json.dumps({**request, "log": str(self._log)}) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return code, {} if code == KILLED else json.loads(self._log.read_text())


@contextmanager
def victims(folder: Path) -> Iterator[Victims]:
    """A server of victims that ends with the block."""
    command = [sys.executable, "-m", "tests.torture.victim"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield Victims(process, folder)
        finally:
            assert process.stdin is not None
            process.stdin.close()


# --- in the victim -----------------------------------------------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Counter:
    """Numbers the calls of all threads, and kills at the one that was named."""

    def __init__(self, at: int = -1, action: str = "", *, delay: float = 0.0005) -> None:
        self.names: list[str] = []
        self._at, self._action, self._delay = at, action, delay
        self._lock = threading.Lock()

    def arrive(self, name: str) -> str:
        """What is to happen at this call: `before` happens here."""
        with self._lock:
            self.names.append(name)
            action = self._action if len(self.names) - 1 == self._at else ""
        if action == "before":
            die()
        if action == "amid":
            threading.Thread(target=self._soon, daemon=True).start()
        return action

    def _soon(self) -> None:
        time.sleep(self._delay)
        die()

    def wrapped(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def counted(*arguments: Any, **named: Any) -> Any:
            action = self.arrive(name)
            result = function(*arguments, **named)
            if action == "after":
                die()
            return result

        return counted

    def awaited(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        async def counted(*arguments: Any, **named: Any) -> Any:
            action = self.arrive(f"{name} {next((a for a in arguments if isinstance(a, str)), '')}")
            result = await function(*arguments, **named)
            if action == "after":
                die()
            return result

        return counted

    def rows(self, function: Callable[..., Iterator[Any]], name: str) -> Callable[..., Iterator[Any]]:
        """A stream: its begin, its first row and its end are calls."""

        @functools.wraps(function)
        def counted(*arguments: Any, **named: Any) -> Iterator[Any]:
            action = self.arrive(name)
            for number, row in enumerate(function(*arguments, **named)):
                if number == 0 and action == "after":
                    die()
                yield row
            if self.arrive(f"{name}, end"):
                die()

        return counted


class CountingSystem:
    """`os`, as `storage/local.py` sees it."""

    def __init__(self, counter: Counter) -> None:
        self._arrive = counter.arrive
        for name in SYSTEM_CALLS:
            setattr(self, name, counter.wrapped(getattr(os, name), f"os.{name}"))

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, fd: int, data: memoryview) -> int:
        action = self._arrive("os.write")
        done = os.write(fd, data[: len(data) // 2] if action == "amid" else data)
        if action:
            die()
        return done


def install(counter: Counter) -> None:
    """Every call of this process goes through the counter from now on."""
    import psycopg

    from coldstore.postgres import read
    from coldstore.storage import gcs, local, s3

    local.os = CountingSystem(counter)  # type: ignore[assignment]
    psycopg.Cursor.execute = counter.wrapped(psycopg.Cursor.execute, "execute")  # type: ignore[method-assign]
    psycopg.Copy.write = counter.wrapped(psycopg.Copy.write, "copy in")  # type: ignore[method-assign]
    psycopg.Copy.__exit__ = counter.wrapped(psycopg.Copy.__exit__, "copy in, end")  # type: ignore[method-assign]
    psycopg.Transaction.__enter__ = counter.wrapped(psycopg.Transaction.__enter__, "begin")  # type: ignore[method-assign]
    psycopg.Transaction.__exit__ = counter.wrapped(psycopg.Transaction.__exit__, "commit")  # type: ignore[method-assign]
    connect = psycopg.Connection.connect.__func__  # type: ignore[attr-defined]
    psycopg.Connection.connect = classmethod(counter.wrapped(connect, "connect"))  # type: ignore[assignment,method-assign]
    read._copy_rows = counter.rows(read._copy_rows, "copy out")  # type: ignore[assignment]
    s3._Client._once = counter.awaited(s3._Client._once, "s3")  # type: ignore[method-assign]
    gcs._Client._once = counter.awaited(gcs._Client._once, "gcs")  # type: ignore[method-assign]


def do(request: dict[str, Any]) -> None:
    """`request`: settings as of a file, flags, the name of a method of `ColdStore`, and what to call it with."""
    from coldstore.app import ColdStore
    from coldstore.config import build

    with ColdStore(build(request["settings"], request["flags"])) as cold:
        result = getattr(cold, request["method"])(**request["arguments"])
        if request["method"] == "snapshot_each_user":
            list(result)


def child(request: dict[str, Any]) -> int:
    from coldstore.errors import ColdStoreError

    counter = Counter(**request["kill"])
    install(counter)
    told: dict[str, Any] = {}
    code = 0
    try:
        do(request)
    except ColdStoreError as exc:
        told, code = exc.as_dict(), 1
    except BaseException:
        told, code = {"error": "traceback", "message": traceback.format_exc()}, 2
    Path(request["log"]).write_text(json.dumps({**told, "calls": counter.names}))
    return code


def serve() -> None:
    import gcsfs  # noqa: F401 - imported here, it costs the children nothing
    import psycopg  # noqa: F401
    import s3fs  # noqa: F401

    import coldstore.app
    import coldstore.incremental
    import coldstore.prune
    import coldstore.restore  # noqa: F401

    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        sys.stdout.flush()
        if pid := os.fork():
            _, status = os.waitpid(pid, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
        else:
            os._exit(child(json.loads(line)))


if __name__ == "__main__":
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    serve()
