"""Starting and stopping child processes: free ports, waiting until a port answers, SIGKILL at the end."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent
START_SECONDS = 60


def free_port() -> int:
    """A port nobody listens on now. Drawn below the range that the kernel hands to outgoing connections, so it stays free."""
    for _ in range(200):
        port = 10_240 + int.from_bytes(os.urandom(2)) % 20_000
        # seaweedfs adds 10,000 for its gRPC ports: both must be free.
        if _is_free(port) and _is_free(port + 10_000):
            return port
    raise RuntimeError("no free port")


def _is_free(port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@contextlib.contextmanager
def running(command: Sequence[str], *, ports: Sequence[int], env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """`command`, from the moment all its ports answer; killed at the end, and by the kernel if this process dies first."""
    with tempfile.TemporaryFile() as log:
        tethered = [sys.executable, "-I", "-S", str(HERE / "tether.py"), str(os.getpid()), *command]
        process = subprocess.Popen(tethered, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(env or {})})
        try:
            _wait(process, ports, log)
            yield process
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def running_module(module: str, *arguments: str, ports: Sequence[int]) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module`, found from the project's root wherever the tests were started."""
    root = str(HERE.parent.parent)
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    with running([sys.executable, "-m", module, *arguments], ports=ports, env={"PYTHONPATH": paths}) as process:
        yield process


def _wait(process: subprocess.Popen[bytes], ports: Sequence[int], log: object) -> None:
    deadline = time.monotonic() + START_SECONDS
    waiting = list(ports)
    while waiting:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", waiting[0]), timeout=1):
            waiting.pop(0)
            continue
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            said = log.read()[-4000:].decode(errors="replace")
            raise RuntimeError(f"{process.args} did not start (exit {process.returncode}):\n{said}")
        time.sleep(0.02)
